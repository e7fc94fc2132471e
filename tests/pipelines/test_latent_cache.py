import json

import pytest
import torch

import datasets
import pipelines
from pipelines.global_batch import epoch_order
from pipelines.latent_cache import is_current, read_cache
from pipelines.orbit_pixels import composite, load_orbits
from tests.pipelines.test_training import load
from tests.tiny_orbits import write_orbits
from utils.errors import DataError
from utils.registry import AUTO_ENCODER, DATASETS, ENGINE

assert datasets
assert pipelines

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits")
    return tmp_path


def objective(folder, **changes):
    torch.manual_seed(0)
    return ENGINE.build(
        {"type": "train_t2v_entrance"}, cfg=load(folder, cache_latents=True, chunk_size=64, **changes), device=CPU
    )


def test_cached_latents_are_the_encoded_views(folder):
    task = objective(folder)
    cached = task.data.cached_latents()
    sample = task.dataset[5]
    expected = task.autoencoder.encode_views(sample["views_VCHW"][None])
    torch.testing.assert_close(cached.mean_NCVHW[5:6].float(), expected, atol=2e-3, rtol=2e-3)  # half precision
    assert cached.captions[5] == sample["caption"]
    torch.testing.assert_close(cached.c2w_NV44[5], sample["c2w_V44"])
    assert cached.std_NCVHW is None


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
    assert len(read_cache(folder / "latents").captions) == 8


def test_a_cache_that_was_not_finished_does_not_count(folder):
    task = objective(folder)
    task.data.cached_latents()
    wanted = json.loads((folder / "latents" / "fingerprint.json").read_text())
    assert is_current(folder / "latents", wanted)
    (folder / "latents" / "fingerprint.json").unlink()
    assert not is_current(folder / "latents", wanted)
    next((folder / "latents").glob("latents_*")).unlink()
    with pytest.raises(DataError, match="incomplete"):
        read_cache(folder / "latents")


def test_a_sampled_posterior_keeps_its_spread(folder):
    options = AUTO_ENCODER.resolve({"type": "AutoencoderKL"})[1]
    assert options.posterior == "sample"
    task = objective(folder)
    sampled = {**task.cfg.auto_encoder, "posterior": "sample"}
    cached = objective(folder, auto_encoder=sampled).data.cached_latents()
    draws = [cached.draw(torch.tensor([0]), generator=torch.Generator().manual_seed(seed)) for seed in range(400)]
    deviation = torch.cat(draws).std(dim=0)
    torch.testing.assert_close(deviation.mean(), cached.std_NCVHW[0].float().mean(), rtol=0.05, atol=0)


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


def test_compositing_agrees_with_the_data_set(folder):
    dataset = DATASETS.build(load(folder).vid_dataset)
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
    dataset = DATASETS.build({**load(folder).vid_dataset, "resolution": [64, 64]})
    with pytest.raises(DataError, match="packed images are 32 x 32"):
        load_orbits(dataset, device=CPU)
