"""Objects with several captions: one is drawn for each sample of a step, and the cache holds the words of all."""

import numpy as np
import pytest
import torch

from datasets.orbits.packed import PackedShard, write_shard
from pipelines.training.data.global_batch import GlobalBatch
from pipelines.training.data.latent_cache import CachedLatents
from pipelines.training.objectives.embedder import MatchCaptions
from tests.pipelines.training.data.test_latent_cache import CPU, flip_in, folder, objective  # noqa: F401
from tests.pipelines.training.test_training import load
from tests.tiny_orbits import write_files
from utils.errors import DataError
from utils.files import write_json


def wordings_of_all(dataset):
    """One to three captions for each object."""
    ways = ([caption, caption[2:], caption.split()[-1]] for caption in dataset.captions)
    return [one[: 1 + n % 3] for n, one in enumerate(ways)]


@pytest.fixture
def several(folder):  # noqa: F811
    dataset = load(folder).vid_dataset.build()
    arrays = [np.stack(column) for column in zip(*[dataset.stored(n)[:2] for n in range(16)], strict=True)]
    wordings = [one if len(one) > 1 else one[0] for one in wordings_of_all(dataset)]
    lists = {"object_ids": dataset.object_ids, "captions": wordings, "attributes": dataset.attributes}
    shard = PackedShard(rgba_NVHW4=arrays[0], c2w_NV44=arrays[1], fov_deg=dataset.fovs[0], **lists)
    write_shard(dataset.files[0], shard)
    return folder


def drawn(task, num):
    """The captions' token ids of the first steps, with the words if there are any."""
    batches, found = None, []
    for step in range(num):
        task.global_batch.begin(step, 0)
        batches = task.data.batches() if batches is None else batches
        found.append(next(batches))
    return found


def test_a_data_set_has_all_captions_and_shows_the_first(several):
    dataset = load(several).vid_dataset.build()
    assert len(dataset.wordings(5)) == 3
    assert dataset.caption(5) == dataset.captions[5] == dataset.wordings(5)[0]
    assert dataset[5]["caption"] == dataset.prompts(5)[0] == dataset.prompt(5)
    assert len(dataset.wordings(3)) == 1


def test_files_and_packed_orbits_draw_the_same_captions(several):
    ids = [batch.token_ids_BL for batch in drawn(objective(several, cache_latents=False), 2)]
    files = write_files(several / "files") | {"caption_suffix": ""}
    packed = load(several).vid_dataset.build()
    write_json(several / "files/captions.json", {name: packed.wordings(n) for n, name in enumerate(packed.object_ids)})
    of_files = drawn(objective(several, cache_latents=False, num_workers=0, vid_dataset=files), 2)
    for one, other in zip(ids, of_files, strict=True):
        assert torch.equal(one, other.token_ids_BL)


def test_the_cache_gives_the_words_of_the_caption_that_is_drawn(several):
    plain = drawn(objective(several, cache_latents=False), 3)
    for gigabytes in (0, 1):
        task = objective(several, cache_memory_gb=gigabytes)
        cached = drawn(task, 3)
        for one, other in zip(plain, cached, strict=True):
            assert torch.equal(one.token_ids_BL, other.token_ids_BL)
            words = task.embedder.embed_tokens(one.token_ids_BL)[1]
            torch.testing.assert_close(other.words_BLC, words, atol=2e-3, rtol=2e-3)  # half precision
    assert [len(one) for one in CachedLatents(several / "latents").captions] == [1 + n % 3 for n in range(16)]


def test_another_caption_makes_the_cache_anew(several, caplog):
    caplog.set_level("INFO")
    task = objective(several)
    task.data.cached_latents()
    task.dataset._wordings[4] = (task.dataset.captions[4], "another one")
    task.data.cached_latents()
    assert "(index changed)" in caplog.text


def test_a_flipped_bit_in_the_words_is_noticed(several):
    cached = objective(several).data.cached_latents()
    first = cached.first_caption[5]
    words = cached.rows(torch.tensor([5]), torch.tensor([first + 2])).words_BLC.clone()
    flip_in(next((several / "latents").glob("latents_*")), words)
    with pytest.raises(DataError, match=r"object 0/5 has changed since"):
        CachedLatents(several / "latents").keep(CPU)


def test_choices_depend_on_step_and_row_and_use_every_caption():
    batch = GlobalBatch(size=4, parts=1, seed=1, device=CPU)
    before = batch.generator.get_state()
    found = set()
    for step in range(40):
        batch.begin(step, 0)
        before = batch.generator.get_state()
        chosen = batch.choices([3, 1, 3, 2])
        assert chosen == batch.choices([3, 1, 3, 2])
        assert chosen[1] == 0
        found.add(tuple(chosen))
        assert torch.equal(batch.generator.get_state(), before)
    assert {one[0] for one in found} == {0, 1, 2}
    assert len(found) > 10


def test_the_embedder_learns_from_all_captions(several):
    task = MatchCaptions(MatchCaptions.Config(), cfg=load(several), device=CPU)
    task.global_batch.begin(0, 0)
    batches, seen = task.batches(), set()
    for step in range(12):
        task.global_batch.begin(step, 0)
        seen |= {tuple(ids) for ids in next(batches)[1].tolist()}
    assert len(seen) > 4  # more than the 4 first captions of discs and squares in two colours


def test_a_list_without_captions_is_refused(several):
    file = load(several).vid_dataset.build().files[0]
    shard = PackedShard(
        rgba_NVHW4=np.zeros((1, 1, 2, 2, 4), np.uint8),
        c2w_NV44=np.zeros((1, 1, 4, 4)),
        fov_deg=30.0,
        object_ids=["0/0"],
        captions=[[]],
        attributes=[{}],
    )
    write_shard(file, shard)
    with pytest.raises(DataError, match="a list that is empty"):
        load(several).vid_dataset.build()
