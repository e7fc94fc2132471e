import json
import signal

import numpy as np
import pytest
import torch

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from datasets.orbits.layout import read_rgba, view_file, write_png
from datasets.orbits.packed import PackedShard, write_shard
from pipelines.training.data import latent_cache, orbit_batches
from pipelines.training.data.global_batch import epoch_order
from pipelines.training.data.latent_cache import CachedLatents, is_current
from pipelines.training.data.orbits_in_memory import composite, load_orbits
from tests.pipelines.training.test_training import load
from tests.tiny import AUTOENCODER
from tests.tiny_orbits import write_files, write_orbits
from utils.errors import DataError
from utils.registry import AUTO_ENCODER, ENGINE

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits")
    return tmp_path


def objective(folder, **changes):
    torch.manual_seed(0)
    return ENGINE.build(
        {"type": "train_t2v_entrance"},
        cfg=load(folder, **({"cache_latents": True, "chunk_size": 64} | changes)),
        device=CPU,
    )


def test_cached_latents_are_the_encoded_views(folder):
    task = objective(folder)
    cached = task.data.cached_latents()
    sample = task.dataset[5]
    expected = task.autoencoder.encode_views(sample["views_VCHW"][None])
    rows = cached.rows(torch.tensor([5]))
    torch.testing.assert_close(rows.mean_BCVHW.float(), expected, atol=2e-3, rtol=2e-3)  # half precision
    assert cached.captions[5] == [sample["caption"]]
    torch.testing.assert_close(rows.c2w_BV44[0], sample["c2w_V44"])
    assert rows.std_BCVHW is None


def test_the_cache_is_kept_until_what_made_it_changes(folder, caplog):
    caplog.set_level("INFO")
    task = objective(folder)
    task.data.cached_latents()
    shard = next((folder / "latents").glob("latents_*"))
    stamp = shard.stat().st_mtime_ns
    task.data.cached_latents()
    assert shard.stat().st_mtime_ns == stamp
    task.autoencoder.network.quant_conv.bias.data += 1
    task.data.cached_latents()
    assert shard.stat().st_mtime_ns > stamp
    assert "(weights changed)" in caplog.text
    write_orbits(folder / "orbits", copies=2)
    changed = objective(folder)
    changed.data.cached_latents()
    assert len(CachedLatents(folder / "latents")) == 8


@pytest.mark.parametrize("files", [False, True])
def test_pictures_that_are_made_anew_are_encoded_anew(folder, caplog, files):
    caplog.set_level("INFO")
    given = {"vid_dataset": write_files(folder / "files")} if files else {}
    before = objective(folder, **given).data.cached_latents().rows(torch.tensor([0])).mean_BCVHW
    if files:
        path = view_file(folder / "files" / "0/0", 0)
        write_png(path, 255 - read_rgba(path))
    else:
        dataset = load(folder).vid_dataset.build()
        arrays = [np.stack(column) for column in zip(*[dataset.stored(n)[:2] for n in range(16)], strict=True)]
        lists = {"object_ids": dataset.object_ids, "captions": dataset.captions, "attributes": dataset.attributes}
        shard = PackedShard(rgba_NVHW4=255 - arrays[0], c2w_NV44=arrays[1], fov_deg=dataset.fovs[0], **lists)
        write_shard(dataset.files[0], shard)
    after = objective(folder, **given).data.cached_latents().rows(torch.tensor([0])).mean_BCVHW
    assert "(pictures changed)" in caplog.text
    assert not torch.equal(before, after)
    caplog.clear()
    objective(folder, **given).data.cached_latents()
    assert "encoding" not in caplog.text


def test_a_cache_that_was_not_finished_does_not_count(folder):
    task = objective(folder)
    task.data.cached_latents()
    wanted = json.loads((folder / "latents" / "fingerprint.json").read_text())
    assert is_current(folder / "latents", wanted)
    (folder / "latents" / "fingerprint.json").unlink()
    assert not is_current(folder / "latents", wanted)
    next((folder / "latents").glob("latents_*")).unlink()
    with pytest.raises(DataError, match="incomplete"):
        CachedLatents(folder / "latents")


def test_a_sampled_posterior_keeps_its_spread(folder):
    options = AUTO_ENCODER.resolve({"type": "AutoencoderKL"})[1]
    assert options.posterior == "sample"
    task = objective(folder)
    sampled = task.cfg.auto_encoder.changed(posterior="sample")
    cached = objective(folder, auto_encoder=sampled.given).data.cached_latents()
    rows = cached.rows(torch.tensor([0]))
    draws = [rows.draw(generator=torch.Generator().manual_seed(seed)) for seed in range(400)]
    deviation = torch.cat(draws).std(dim=0)
    torch.testing.assert_close(deviation.mean(), rows.std_BCVHW.float().mean(), rtol=0.05, atol=0)


def test_the_cached_and_the_direct_path_give_the_same_batch(folder):
    task = objective(folder)
    ways = (task.data.cached_batches(task.data.cached_latents()), task.data.encoded_batches())
    batches = [next(batches) for batches in ways]
    by_caption = [dict(zip(map(tuple, b.token_ids_BL.tolist()), b.camera_data_BV16, strict=True)) for b in batches]
    for name, camera in by_caption[0].items():
        if name in by_caption[1]:
            torch.testing.assert_close(camera, by_caption[1][name])
    assert batches[0].latents_BCVHW.shape == batches[1].latents_BCVHW.shape == (4, 4, 3, 4, 4)
    assert batches[1].latents_BCVHW.dtype == torch.float32


def test_words_are_encoded_once(folder, monkeypatch):
    task = objective(folder, p_zero=0.5)
    direct = objective(folder, p_zero=0.5, cache_latents=False)
    calls = []
    encode = task.embedder.embed_tokens
    monkeypatch.setattr(task.embedder, "embed_tokens", lambda ids: calls.append(len(ids)) or encode(ids))
    batches = task.batches()
    encoded = sum(calls)
    assert encoded == len(task.dataset)
    drop_B = torch.tensor([True, False, True, False])
    for _ in range(3):
        batch = next(batches)
        expected = direct.words(batch._replace(words_BLC=None), drop_B)
        torch.testing.assert_close(task.words(batch, drop_B), expected, atol=2e-3, rtol=2e-3)
    assert sum(calls) == encoded + 1  # the dropped prompt


def test_other_words_of_the_encoder_make_the_cache_anew(folder, caplog):
    caplog.set_level("INFO")
    task = objective(folder)
    task.data.cached_latents()
    task.data.cached_latents()
    assert "changed" not in caplog.text
    task.embedder.model.positional_embedding.data += 1
    task.data.cached_latents()
    assert "(text_weights changed)" in caplog.text


def test_compositing_agrees_with_the_data_set(folder):
    dataset = load(folder).vid_dataset.build()
    orbits = load_orbits(dataset, device=CPU)
    views, masks = orbits.views(torch.tensor([3]))
    torch.testing.assert_close(views[0], dataset[3]["views_VCHW"])
    torch.testing.assert_close(masks[0], dataset[3]["masks_V1HW"])
    single, _ = orbits.views(torch.tensor([3, 4]), torch.tensor([2, 0]))
    torch.testing.assert_close(single[0], views[0, 2])
    clear, _ = composite(torch.zeros(2, 2, 4, dtype=torch.uint8), 0.25)
    torch.testing.assert_close(clear, torch.full((3, 2, 2), 0.25))


def test_shuffling_shows_everything_once_a_pass():
    batches = epoch_order(7, 3, seed=0)
    first = torch.cat([next(batches), next(batches)]).tolist()
    assert len(set(first)) == 6
    assert set(first) <= set(range(7))
    assert len(next(epoch_order(2, 3, seed=0))) == 3


def test_other_sizes_than_packed_are_refused(folder):
    dataset = load(folder).vid_dataset.changed(resolution=[64, 64]).build()
    with pytest.raises(DataError, match="packed images are 32 x 32"):
        load_orbits(dataset, device=CPU)


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_the_cached_and_the_direct_path_give_the_same_loss(folder, posterior):
    """Also with noise of the posterior, which each row draws from a generator of its own."""
    losses = []
    for cached in (True, False):
        sampled = {**AUTOENCODER, "scale_factor": 1.0, "posterior": posterior}
        task = objective(folder, auto_encoder=sampled, cache_latents=cached)
        torch.nn.init.normal_(task.network.out[-1].weight, std=0.1)
        for number, batch in zip(range(3), task.batches(), strict=False):
            task.global_batch.begin(number, 0)
            losses.append(float(task(batch)[0].detach()))
    # the cache holds half precision: 5e-4 of a latent
    assert losses[:3] == pytest.approx(losses[3:], rel=2e-3)
    assert len(set(losses)) == 6


def test_batches_from_the_files_are_those_from_memory(folder, monkeypatch):
    """Bit for bit, whatever shards the rows lie in."""
    monkeypatch.setattr(latent_cache, "SHARD_SIZE", 4)
    monkeypatch.setattr(orbit_batches, "READ_SIZE", 3)
    sampled = {**AUTOENCODER, "scale_factor": 1.0, "posterior": "sample"}
    task = objective(folder, auto_encoder=sampled)
    files = [objective(folder, auto_encoder=sampled, cache_memory_gb=0), task]
    both = [iter(one.batches()) for one in files]
    assert len(list((folder / "latents").glob("latents_*"))) == 4
    for number in range(6):
        batches = []
        for one, source in zip(files, both, strict=True):
            one.global_batch.begin(number, 0)
            batches.append(next(source))
        for on_disk, in_memory in zip(*batches, strict=True):
            assert on_disk is in_memory is None or torch.equal(on_disk, in_memory)
    kept, read = (one.data.cached_latents() for one in files)
    kept.keep(CPU)
    for index_B in (torch.tensor([5, 6, 7, 0, 15, 15]), torch.arange(16), torch.tensor([12])):
        torch.testing.assert_close(vars(kept.rows(index_B)), vars(read.rows(index_B)), atol=0, rtol=0)


def test_a_file_that_goes_away_while_training_is_named(folder):
    cached = objective(folder).data.cached_latents()
    file = next((folder / "latents").glob("latents_*"))
    file.unlink()
    with pytest.raises(DataError, match=rf"cache_dir=.*{file.name} is broken"):
        cached.rows(torch.tensor([0]))


def test_encoding_goes_on_where_it_was_stopped(folder, monkeypatch):
    monkeypatch.setattr(latent_cache, "SHARD_SIZE", 4)
    monkeypatch.setattr(orbit_batches, "READ_SIZE", 3)
    whole = objective(folder, cache_dir=str(folder / "whole")).data.cached_latents()
    task = objective(folder)
    posteriors, calls = task.autoencoder.view_posteriors, []

    def stops(*args, **options):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return posteriors(*args, **options)

    monkeypatch.setattr(task.autoencoder, "view_posteriors", stops)
    with pytest.raises(KeyboardInterrupt):
        task.data.cached_latents()
    assert len(list((folder / "latents").glob("latents_*"))) == 1  # four orbits; three more are lost
    cached = task.data.cached_latents()
    assert len(calls) == 4 + 6
    assert cached.object_ids == whole.object_ids
    torch.testing.assert_close(vars(cached.rows(torch.arange(16))), vars(whole.rows(torch.arange(16))), atol=0, rtol=0)
    assert not (folder / "latents" / "begun.json").exists()


@pytest.mark.parametrize("limit", [100, 5_000])
def test_a_full_disk_while_encoding_is_named(folder, limit):
    resource = pytest.importorskip("resource")
    task = objective(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(DataError, match=r"latents cannot be saved .* MB are free.*free disk space") as caught:
            task.data.cached_latents()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert not list((folder / "latents").glob("*.part*"))
    assert len(task.data.cached_latents()) == 16


def test_processes_encode_a_part_each(folder, monkeypatch):
    monkeypatch.setattr(latent_cache, "SHARD_SIZE", 3)
    monkeypatch.setattr(orbit_batches, "READ_SIZE", 2)
    alone = objective(folder, cache_dir=str(folder / "alone")).data.cached_latents()
    task, encoded = objective(folder), []
    monkeypatch.setattr(latent_cache, "num_processes", lambda: 3)
    for rank in (2, 1, 0):  # the main one last: it lists what all have written
        monkeypatch.setattr(latent_cache, "process_rank", lambda rank=rank: rank)
        monkeypatch.setattr(latent_cache, "is_main", lambda rank=rank: rank == 0)
        wanted = {"made": "here"}
        if rank == 2:
            latent_cache._begin(folder / "latents", wanted)

        def encode(ranges):
            encoded.extend(ranges)
            return task.data._encode(ranges)

        latent_cache.write_cache(folder / "latents", encode, wanted, num_samples=16)
    assert [rows.start for rows in encoded] == [6, 15, 3, 12, 0, 9]
    both = CachedLatents(folder / "latents"), alone
    assert both[0].object_ids == both[1].object_ids
    torch.testing.assert_close(*(vars(one.rows(torch.arange(16))) for one in both), atol=0, rtol=0)


def flip_in(file, value):
    content = bytearray(file.read_bytes())
    place = content.find(value.numpy().tobytes())
    assert place > 0
    content[place + 1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("kept", [True, False])
def test_a_flipped_bit_in_a_cache_is_noticed(folder, kept):
    cached = objective(folder).data.cached_latents()
    flip_in(next((folder / "latents").glob("latents_*")), cached.rows(torch.tensor([5])).mean_BCVHW.clone())
    changed = CachedLatents(folder / "latents")
    with pytest.raises(DataError, match=r"latents_00000.safetensors is broken \(object 0/5 has changed since"):
        changed.keep(CPU) if kept else changed.rows(torch.tensor([4, 5]))
    assert len(CachedLatents(folder / "latents").rows(torch.tensor([3])).mean_BCVHW) == 1  # other samples can be read


def test_a_cache_with_another_list_of_samples_is_broken(folder):
    objective(folder).data.cached_latents()
    for content in ("{}", "[1]", '[["a"]]', '[["a", 3]]', '[["a", []]]', '[["a", "b"]]'):
        (folder / "latents" / "samples.json").write_text(content)
        with pytest.raises(DataError, match=r"samples\.json is broken|is incomplete"):
            CachedLatents(folder / "latents")
