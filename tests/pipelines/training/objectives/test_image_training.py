"""The image objective on made-up orbits: what is rolled, cached, dropped and learnt."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from datasets.orbits.packed import PackedShard, shard_file, write_shard
from models.weights import read_weights
from pipelines.training.data.latent_cache import CachedLatents
from pipelines.training.data.orbit_batches import roll_views
from pipelines.training.objectives.diffusion import OrbitDenoising
from pipelines.training.trainer import train
from tests.tiny import UNET, V_DIFFUSION, write_config
from tests.tiny_orbits import NUM_VIEWS, SIZE, training_config
from utils.cameras import camera_condition, orbit_cameras
from utils.config import load_config
from utils.errors import ConfigError
from utils.registry import MODEL

CPU = torch.device("cpu")
IMAGE_UNET = {**UNET, "type": "UNetSD_I2VGen", "image_dim": 16}
# Half precision in the cache, and group norms that amplify the rounding of flat pictures; other views are 0.1 away.
TOLERANCE = 0.03
# Grey levels of the views of each object, all different.
LEVELS = np.array([[60, 90, 120], [150, 180, 210], [30, 105, 240], [75, 135, 195]], dtype=np.uint8)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    """Four orbits whose views are plain grey, each of its own level, at elevations 0, 10, 20 and 30."""
    rgba_NVHW4 = np.full((4, NUM_VIEWS, SIZE, SIZE, 4), 255, dtype=np.uint8)
    rgba_NVHW4[..., :3] = LEVELS[:, :, None, None, None]
    cameras = [orbit_cameras(num_views=NUM_VIEWS, elevation_deg=10.0 * n, radius=2).numpy() for n in range(4)]
    shard = PackedShard(
        rgba_NVHW4=rgba_NVHW4,
        c2w_NV44=np.stack(cameras),
        fov_deg=39.6,
        object_ids=[f"0/{number}" for number in range(4)],
        captions=["a thing"] * 4,
        attributes=[{}] * 4,
    )
    (tmp_path / "orbits").mkdir()
    write_shard(shard_file(tmp_path / "orbits", 0), shard)
    return tmp_path


def load(folder, *, rolls=True, **changes):
    changes = {"UNet": IMAGE_UNET, "Diffusion": V_DIFFUSION, **changes}
    config = training_config(folder, TASK_TYPE="train_i2v_entrance", **changes)
    config["vid_dataset"] |= {"random_start_view": rolls, "empty_captions": True}
    return load_config(write_config(folder / "train.yaml", config))


def objective(folder, **changes):
    torch.manual_seed(0)
    cfg = load(folder, chunk_size=64, **changes)
    return cfg.training.build(cfg=cfg, device=CPU)


def as_encoded(task):
    """Latents (N, C, V, h, w), embeddings (N, V, C) and cameras (N, V, 16) of the data set, in order."""
    samples = [task.dataset[number] for number in range(len(task.dataset))]
    views_NVCHW = torch.stack([sample["views_VCHW"] for sample in samples])
    with torch.no_grad():
        image_NVC = task.embedder.encode_image(views_NVCHW.flatten(0, 1)).unflatten(0, (4, NUM_VIEWS))
        latents = task.autoencoder.encode_views(views_NVCHW)
    return latents, image_NVC, camera_condition(torch.stack([sample["c2w_V44"] for sample in samples]))


@pytest.mark.parametrize("cached", [True, False])
def test_images_roll_together_and_cameras_stay(folder, cached):
    task = objective(folder, cache_latents=cached)
    latents_NCVHW, image_NVC, camera_NV16 = as_encoded(task)
    batches, starts = task.batches(), []
    for _ in range(8):
        batch = next(batches)
        for row in range(4):
            number = int((camera_NV16 - batch.camera_data_BV16[row]).abs().amax(dim=(1, 2)).argmin())
            torch.testing.assert_close(batch.camera_data_BV16[row], camera_NV16[number])  # its own, unrolled
            rolled = [latents_NCVHW[number].roll(-start, dims=1) for start in range(NUM_VIEWS)]
            off = [float((batch.latents_BCVHW[row] - one).abs().max()) for one in rolled]
            starts.append(int(np.argmin(off)))
            assert min(off) < TOLERANCE < sorted(off)[1]
            expected = image_NVC[number, starts[-1]][None]
            torch.testing.assert_close(batch.image_B1C[row], expected, atol=TOLERANCE, rtol=0)
    assert set(starts) == {0, 1, 2}


def test_without_the_option_nothing_rolls(folder):
    task = objective(folder, rolls=False, cache_latents=True)
    latents_NCVHW, _, camera_NV16 = as_encoded(task)
    batch = next(task.batches())
    for row in range(4):
        number = int((camera_NV16 - batch.camera_data_BV16[row]).abs().amax(dim=(1, 2)).argmin())
        torch.testing.assert_close(batch.latents_BCVHW[row], latents_NCVHW[number], atol=TOLERANCE, rtol=0)


def test_rolling_is_by_sample():
    values = torch.arange(6).view(2, 3)
    assert roll_views(values, torch.tensor([1, 2])).tolist() == [[1, 2, 0], [5, 3, 4]]


@pytest.mark.parametrize("zero_local_image", [False, True])
def test_dropped_samples_look_like_the_unconditional_branch(folder, zero_local_image):
    task = objective(folder, zero_local_image=zero_local_image)
    batch = next(task.batches())
    drop_B = torch.tensor([True, False, True, False])
    conditions = task.image_conditions(batch, drop_B)
    assert [bool(row.any()) for row in conditions["image"]] == [False, True, False, True]
    local = conditions["local_image"]
    assert local.shape == batch.latents_BCVHW.shape
    assert [bool(row.any()) for row in local] == [not zero_local_image, True, not zero_local_image, True]
    for view in range(NUM_VIEWS):
        torch.testing.assert_close(local[1, :, view], batch.latents_BCVHW[1, :, 0], atol=0, rtol=0)


@pytest.mark.parametrize(("p_zero", "dropped"), [(0.0, 0), (1.0, 4)])
def test_the_share_of_dropped_samples_is_p_zero(folder, p_zero, dropped):
    task = objective(folder, p_zero=p_zero)
    seen = {}
    forward = task.network.forward
    task.network.forward = lambda *args, **kwargs: seen.update(kwargs) or forward(*args, **kwargs)
    task(next(task.batches()))
    assert sum(not bool(row.any()) for row in seen["image"]) == dropped


def inputs_of(task):
    """What the network is given in one step, and the batch."""
    seen, batch = {}, next(task.batches())
    forward = task.network.forward
    task.network.forward = lambda x, t, y, **rest: seen.update(x=x, y=y, **rest) or forward(x, t, y, **rest)
    task(batch)
    return seen, batch


def test_samples_without_an_image_have_only_text(folder):
    options = {"p_known": 1.0, "max_known": 2, "p_no_image": 1.0, "p_no_text": 1.0, "dropped_prompt": "nothing"}
    task = objective(folder, p_zero=0.0, objective=options)
    seen, batch = inputs_of(task)
    assert not any(seen[name].any() for name in ("image", "local_image"))
    assert ((seen["x"] - batch.latents_BCVHW).abs().amax(dim=(1, 3, 4)) > 0).all()  # no view is known
    kept, dropped = (task.words(batch, torch.full((4,), drop)) for drop in (False, True))
    torch.testing.assert_close(seen["y"], kept, atol=0, rtol=0)
    assert (kept - dropped).abs().max() > 0.1


def test_samples_without_text_keep_their_image(folder):
    task = objective(folder, p_zero=0.0, objective={"p_no_text": 1.0, "dropped_prompt": "nothing"})
    seen, batch = inputs_of(task)
    assert all(seen[name].flatten(1).any(dim=1).all() for name in ("image", "local_image"))
    torch.testing.assert_close(seen["y"], task.words(batch, torch.ones(4, dtype=torch.bool)), atol=0, rtol=0)


def test_shares_of_text_and_image_that_cannot_be_are_refused(folder):
    for options, message in (
        ({"p_no_image": 1.5}, "objective.p_no_image must lie in [0, 1], got 1.5"),
        ({"p_no_text": -0.1}, "objective.p_no_text must lie in [0, 1], got -0.1"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            assert load(folder, objective=options).training.options
    message = "objective.p_no_image=0.5 needs an image model; set objective.p_no_image=0 for a text model"
    with pytest.raises(ConfigError, match=re.escape(message)):
        OrbitDenoising.Config(p_no_image=0.5)


def test_embeddings_are_cached_and_follow_the_encoder(folder, caplog):
    caplog.set_level("INFO")
    task = objective(folder)
    image_NVC = task.data.cached_latents().rows(torch.arange(4)).image_BVC
    assert (image_NVC.shape, image_NVC.dtype) == ((4, NUM_VIEWS, 16), torch.float16)
    torch.testing.assert_close(image_NVC.float(), as_encoded(task)[1], atol=TOLERANCE, rtol=0)
    stamp = (folder / "latents" / "fingerprint.json").stat().st_mtime_ns
    objective(folder, rolls=False).data.cached_latents()  # how a sample begins does not change what is encoded
    assert (folder / "latents" / "fingerprint.json").stat().st_mtime_ns == stamp
    task.embedder.model.visual.proj.data *= 2
    task.data.cached_latents()
    assert "(image_weights changed)" in caplog.text
    again_NVC = CachedLatents(folder / "latents").rows(torch.arange(4)).image_BVC
    assert not torch.allclose(again_NVC, image_NVC, atol=0.1)


def test_learns_and_leaves_weights(folder, caplog):
    caplog.set_level("INFO")
    final = train(load(folder, cache_latents=True, num_steps=20, lr=4e-3))
    losses = [float(found[1]) for found in re.finditer(r"step \d+: loss ([\d.]+)", caplog.text)]
    assert losses[-1] < 0.8 * losses[0]
    assert final.name == "i2v.safetensors"
    MODEL.build(IMAGE_UNET).load_state_dict(read_weights(final, option="").state, strict=True)


def test_previews_start_from_pictures(folder):
    from PIL import Image

    rgba = np.zeros((SIZE, SIZE, 4), dtype=np.uint8)
    rgba[4:20, 4:20] = 255
    Image.fromarray(rgba).save(folder / "toy.png")
    visual = {"type": "VisualTrainTextImageToVideo", "images": [str(folder / "toy.png")], "prompts": ["unused"]}
    train(load(folder, num_steps=1, visual_train=visual))
    assert {path.name for path in (folder / "run" / "previews").iterdir()} == {"toy_00000001.png", "toy_00000001.mp4"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"UNet": UNET}, "TASK_TYPE=train_i2v_entrance needs an image model; set UNet.type=UNetSD_I2VGen"),
        ({"UNet": {**IMAGE_UNET, "image_dim": None}}, "UNet.image_dim=24, but the embedder's image embedding has 16"),
        ({"TASK_TYPE": "train_t2v_entrance"}, "TASK_TYPE=train_t2v_entrance needs a text model"),
    ],
)
def test_networks_of_the_wrong_kind_are_refused(folder, changes, message):
    config = training_config(folder, **{"TASK_TYPE": "train_i2v_entrance", "UNet": IMAGE_UNET} | changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(load_config(write_config(folder / "train.yaml", config)))


def test_a_data_set_can_begin_anywhere(folder):
    dataset = load(folder).vid_dataset.build()
    torch.manual_seed(0)
    samples = [dataset[2] for _ in range(12)]
    levels = [[round(float(view.mean()) * 255) for view in sample["views_VCHW"]] for sample in samples]
    assert {tuple(one) for one in levels} == {tuple(int(x) for x in np.roll(LEVELS[2], -start)) for start in range(3)}
    assert all(torch.equal(sample["c2w_V44"], samples[0]["c2w_V44"]) for sample in samples)
    assert {sample["caption"] for sample in samples} == {""}


def test_previews_of_a_model_that_takes_both(folder, caplog):
    pictures = [folder / "red.png", folder / "a-red-disc.png"]
    for picture in pictures:
        Image.fromarray(np.pad(np.full((20, 20, 4), 255, dtype=np.uint8), ((6, 6), (6, 6), (0, 0)))).save(picture)
    visual = {"type": "VisualTrainTextImageToVideo", "prompts": ["a red disc"], "images": [str(p) for p in pictures]}
    changes = {"num_steps": 2, "viz_interval": 2, "visual_train": visual, "target_fps": 8}
    for takes, names in ((True, {"a-red-disc", "red", "a-red-disc-2"}), (False, {"red", "a-red-disc"})):
        run = str(folder / f"takes_{takes}")
        options = {"takes_prompts": takes, "objective": {"p_no_image": 0.5 * takes}, "log_dir": run}
        train(load(folder, **changes, **options))
        found = {path.name for path in Path(run, "previews").iterdir()}
        assert found == {f"{name}_00000002{suffix}" for name in names for suffix in (".png", ".mp4")}
    assert caplog.text.count("visual_train.prompts are left out, because takes_prompts=false") == 1


@pytest.mark.parametrize(("takes", "share"), [(True, 0.0), (False, 0.5), (True, 0.5), (False, 0.0)])
def test_a_training_that_does_not_fit_its_setting_is_told(folder, caplog, takes, share):
    objective(folder, takes_prompts=takes, objective={"p_no_image": share})
    assert ("do not agree" in caplog.text) == (takes != bool(share))
