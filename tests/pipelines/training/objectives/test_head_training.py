"""Both ways of teaching the Gaussian head, end to end on made-up orbits; what they refuse; their flaws of views."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from datasets.orbits.layout import write_orbit
from datasets.orbits.packed import PackedShard, shard_file, write_shard
from models.gaussians.rendering import render
from models.weights import read_weights, save_published, save_safetensors
from pipelines.reconstruction.lgm import GaussianReconstruction
from pipelines.training.objectives.head_augment import disturb_views, jitter_poses
from pipelines.training.objectives.head_loss import draw_views, sized
from pipelines.training.trainer import Trainer, train
from tests.models.gaussians.test_splatting import random_gaussians
from tests.tiny import UNET, write_config, write_head, write_image_family
from tests.tiny_orbits import training_config
from utils.cameras import head_cameras, intrinsics, orbit_cameras
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.files import write_json
from utils.registry import MODEL

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_VIEWS, SIZE = 8, 32
GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture
def folder(tmp_path):
    return make_orbits(tmp_path)


def make_orbits(folder):
    """Write orbits of balls of Gaussians, rendered: the head can learn them."""
    c2w_V44 = orbit_cameras(num_views=NUM_VIEWS, elevation_deg=15, radius=2)
    images = []
    for seed in range(6):
        scene = random_gaussians(30, seed=seed, scale=0.1)
        scene = replace(scene, means_BN3=0.6 * scene.means_BN3, opacities_BN1=torch.ones(1, 30, 1))
        options = {"size": (SIZE, SIZE), "backend": "torch"}
        drawn = render(scene, c2w_V44[None], intrinsics(39.6, SIZE), background=0.0, **options)
        alpha = drawn.alphas_BV1HW[0]
        rgba = torch.cat([drawn.colors_BV3HW[0] / alpha.clamp_min(1e-3), alpha], dim=1).clamp(0, 1)
        images.append((rgba * 255).round().byte().permute(0, 2, 3, 1).numpy())
    shard = PackedShard(
        rgba_NVHW4=np.stack(images),
        c2w_NV44=np.broadcast_to(c2w_V44.numpy(), (6, NUM_VIEWS, 4, 4)),
        fov_deg=39.6,
        object_ids=[f"0/{number}" for number in range(6)],
        captions=[f"ball {number}" for number in range(6)],
        attributes=[{}] * 6,
    )
    (folder / "orbits").mkdir()
    write_shard(shard_file(folder / "orbits", 0), shard)
    return folder


def config(folder, **changes):
    base = training_config(folder) | {
        "reconstruction": write_head(folder)["reconstruction"] | {"pretrained": None},
        "frame_lens": [NUM_VIEWS],
        "cameras": {"num_views": NUM_VIEWS},
        "batch_sizes": {str(NUM_VIEWS): 2},
        "objective": {"num_output_views": 5, "lambda_lpips": 0.0},
        "num_steps": 6,
        "log_interval": 2,
        "lr": 4e-3,
    }
    base["vid_dataset"]["num_views"] = NUM_VIEWS
    return base | changes


def load(folder, *overrides, **changes):
    return load_config(write_config(folder / "train.yaml", config(folder, **changes)), overrides)


def losses(caplog):
    return [float(found[1]) for found in re.finditer(r"step \d+: loss ([\d.]+)", caplog.text)]


def tuning(folder, *overrides, **changes):
    """A configuration that tunes an untrained head on an untrained generator."""
    torch.manual_seed(1)
    save_published(folder / "t2v_00000007.pth", MODEL.build(UNET).state_dict(), 7)
    given = {"TASK_TYPE": "train_t2v_entrance", "UNet": {**UNET, "use_lgm_refine": True}}
    given["test_model"] = str(folder / "t2v_00000007.pth")
    return load(folder, *overrides, **(given | changes))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The checkpoint of a tuning of one step."""
    folder = make_orbits(tmp_path_factory.mktemp("tuned"))
    train(tuning(folder, num_steps=1))
    return folder / "run" / "checkpoints" / "head_00000001.pth"


def test_the_head_learns_true_views(folder, caplog):
    caplog.set_level("INFO")
    final = train(load(folder, "objective.p_autoencoded=0", TASK_TYPE="train_head_entrance"))
    first, *_, last = losses(caplog)
    assert last < 0.7 * first
    section = load(folder).reconstruction.changed(pretrained=str(final))
    head = GaussianReconstruction.load_network(section.options, test_model="", needed=True)
    assert sum(value.numel() for value in head.state_dict().values()) > 0
    assert list((folder / "run" / "previews").glob("head_*.png"))


def test_views_through_the_autoencoder_are_another_input(folder):
    cfg = load(folder, "objective.p_autoencoded=1", "objective.p_distort=0", TASK_TYPE="train_head_entrance")
    task = cfg.training.build(cfg=cfg, device=torch.device("cpu"))
    batch = next(task.batches())
    poses_BK44 = head_cameras(batch.c2w_BK44, fov_deg=39.6).poses_V44
    seen = task.inputs(batch, poses_BK44)
    task.autoencoder = None
    assert not torch.allclose(seen[:, :, :3], task.inputs(batch, poses_BK44)[:, :, :3], atol=0.1)


def test_tuning_teaches_the_head_and_leaves_the_generator(folder, caplog):
    caplog.set_level("INFO")
    final = train(tuning(folder, "objective.t_max=0.1"))
    first, *_, last = losses(caplog)
    assert last < 0.9 * first
    start = read_weights(folder / "t2v_00000007.pth", option="test").state
    saved = read_weights(folder / "run" / "checkpoints" / "head_00000006.pth", option="test")
    torch.testing.assert_close(saved.state, start, atol=0, rtol=0)
    exported = read_weights(final, option="test").state
    assert set(exported) == set(saved.head)
    torch.testing.assert_close(exported, {key: value.half() for key, value in saved.head.items()}, atol=0, rtol=0)
    assert list((folder / "run" / "previews").glob("head_*.png"))


def test_joint_tuning_moves_the_generator_through_the_decoder(folder):
    cfg = tuning(folder, "objective.train_unet=true", num_steps=2)
    final = train(cfg)
    start = read_weights(folder / "t2v_00000007.pth", option="test").state
    tuned = read_weights(folder / "run" / "checkpoints" / "t2v_00000002.pth", option="test")
    assert not torch.equal(tuned.state["out.2.weight"], start["out.2.weight"])
    assert set(read_weights(final, option="test").head) == set(tuned.head)


def image_tuning(folder, *overrides):
    family = write_image_family(folder)
    unet = {**family["UNet"], "use_lgm_refine": True}
    return tuning(
        folder,
        *overrides,
        TASK_TYPE="train_i2v_entrance",
        UNet=unet,
        test_model=family["test_model"],
        Diffusion=family["Diffusion"],
        vid_dataset={**config(folder)["vid_dataset"], "random_start_view": True, "empty_captions": True},
        num_steps=2,
    )


def test_image_models_tune_too(folder):
    cfg = image_tuning(folder)
    assert cfg.training.type == "tune_i2v_entrance"
    assert read_weights(train(cfg), option="test").step == 2


def test_the_head_is_tuned_on_known_views_as_they_are(folder):
    cfg = image_tuning(folder, "objective.p_known=1", "objective.max_known=1", "auto_encoder.posterior=mode")
    task = cfg.training.build(cfg=cfg, device=torch.device("cpu"))
    given = next(task.batches()).generator
    views_BI = torch.tensor([[0, 2, 4, 6]] * 2)
    with torch.no_grad():
        predicted_BICHW = task.predicted_views(given, torch.full((2,), 900), views_BI)
        true_BICHW = task.autoencoder.decode_views(given.latents_BCVHW[:, :, ::2]).float()
    torch.testing.assert_close(predicted_BICHW[:, 0], true_BICHW[:, 0], atol=1e-4, rtol=0)
    assert (predicted_BICHW[:, 1:] - true_BICHW[:, 1:]).abs().max() > 0.01


def test_tuning_reads_files_and_compares_with_the_views_as_stored(folder):
    rng = np.random.default_rng(0)
    rgba_VHW4 = rng.integers(0, 256, (NUM_VIEWS, 64, 64, 4), dtype=np.uint8)
    for number in (1, 2):
        write_orbit(
            folder / "files" / "0" / str(number),
            rgba_VHW4=rgba_VHW4,
            c2w_V44=orbit_cameras(num_views=NUM_VIEWS, elevation_deg=15, radius=2).numpy(),
            fov_deg=39.6,
            bounds_23=np.array([[-0.5] * 3, [0.5] * 3]),
            normals_VHW3=np.zeros((NUM_VIEWS, 64, 64, 3), dtype=np.float32),
            depth_VHW=np.zeros((NUM_VIEWS, 64, 64), dtype=np.float32),
        )
    write_json(folder / "index.json", ["0/1", "0/2"])
    write_json(folder / "captions.json", {"0/1": "a ball", "0/2": "a ball"})
    dataset = {"type": "VideoDataset", "data_list": [str(folder / "index.json")], "num_views": NUM_VIEWS}
    dataset |= {"data_dir_list": [str(folder / "files")], "caption_dir": str(folder / "captions.json")}
    cfg = tuning(folder, "reconstruction.render_size=64", vid_dataset={**dataset, "resolution": [SIZE, SIZE]})
    task = cfg.training.build(cfg=cfg, device=torch.device("cpu"))
    batch = next(task.batches())
    assert torch.equal(batch.rgba_BVHW4, torch.from_numpy(rgba_VHW4).expand(2, -1, -1, -1, -1))
    assert batch.generator.latents_BCVHW.shape == (2, 4, NUM_VIEWS, 4, 4)
    loss, figures = task(batch)
    loss.backward()
    assert loss.isfinite()
    assert task.network.head.conv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in task.unet.parameters())
    assert set(figures) == {"color", "mask", "psnr_unseen"}


def test_tuning_goes_on_from_its_checkpoint(folder, tuned):
    cfg = tuning(folder, f"Pretrain={{type: pretrain_specific_strategies, resume_checkpoint: {tuned}}}")
    task = cfg.training.build(cfg=cfg, device=torch.device("cpu"))
    trainer = Trainer(cfg, task, folder=folder / "again")
    assert trainer.step == 1
    expected = read_weights(tuned, option="test")
    torch.testing.assert_close(dict(trainer.objective.network.head.state_dict()), expected.head, atol=0, rtol=0)
    torch.testing.assert_close(dict(trainer.objective.unet.state_dict()), expected.state, atol=0, rtol=0)


def test_tuning_starts_from_the_heads_own_file(folder):
    head = MODEL.build({"type": "LGM", **config(folder)["reconstruction"]["head"]})
    save_safetensors(folder / "own.safetensors", head.state_dict())
    cfg = tuning(folder, f"reconstruction.pretrained={folder / 'own.safetensors'}")
    task = cfg.training.build(cfg=cfg, device=torch.device("cpu"))
    assert torch.equal(task.network.head.conv.weight, head.conv.weight.half().float())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.num_output_views=9"], "9 must lie between the head's 4 input views and the data's 8"),
        (["objective.num_output_views=3"], "num_output_views=3 must lie"),
        (["objective.input_views=some"], "input_views=some is unknown"),
        (["objective.t_max=0"], "t_max must lie"),
        (["test_model=''"], "tuning needs a trained generator"),
        (["reconstruction={}"], "tuning needs a section reconstruction"),
        (["reconstruction.head.input_size=64", "reconstruction.head.splat_size=32"], "takes views of 64 x 64"),
        (["objective.lambda_lpips=1.0"], "the weights of LPIPS are missing; put https"),
    ],
)  # fmt: skip
def test_tuning_refuses(folder, monkeypatch, overrides, message):
    monkeypatch.setenv("TORCH_HOME", str(folder))
    with pytest.raises(ConfigError, match=message):
        train(tuning(folder, *overrides))


def test_tuning_refuses_a_missing_head(folder, tuned):
    with pytest.raises(DataError, match=r"reconstruction.pretrained=.*no such file"):
        train(tuning(folder, f"reconstruction.pretrained={folder / 'none.safetensors'}"))
    none = f"reconstruction.pretrained={folder / 'none.safetensors'}"
    train(tuning(folder, none, f"test_model={tuned}", num_steps=1))  # brings its head


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reconstruction.fov_deg=49.1"], "vid_dataset was rendered with 39.6"),
        (["reconstruction.head.input_size=64", "reconstruction.head.splat_size=32"], "the head takes 64 x 64"),
        (["objective.p_jitter=2"], "p_jitter must lie"),
    ],
)
def test_training_refuses(folder, overrides, message):
    with pytest.raises(ConfigError, match=message):
        train(load(folder, *overrides, TASK_TYPE="train_head_entrance"))


def test_even_inputs_stand_as_at_sampling():
    views_BK = draw_views(50, num_views=24, num_inputs=4, num_outputs=8, even=True, generator=GENERATOR)
    assert ((views_BK[:, 1:4] - views_BK[:, :3]) % 24 == 6).all()
    assert all(len(set(row)) == 8 for row in views_BK.tolist())
    assert len(set(views_BK[:, 0].tolist())) > 10


def test_distortion_spares_the_first_view_and_the_samples_that_are_not_chosen():
    views = torch.rand(6, 4, 3, 16, 16, generator=GENERATOR)
    bent = disturb_views(views, fraction=0.5, strength=0.05, generator=GENERATOR)
    torch.testing.assert_close(bent[:, 0], views[:, 0], atol=1e-4, rtol=0)
    changed = (bent - views).abs().amax(dim=(2, 3, 4)) > 1e-3
    assert changed[:, 1:].any()
    assert not changed[:, 1:].all()


def test_jitter_turns_cameras_about_the_object():
    poses = head_cameras(orbit_cameras(num_views=4, elevation_deg=15, radius=2)).poses_V44.expand(200, -1, -1, -1)
    turned = jitter_poses(poses, fraction=1.0, angle_deg=2.0, generator=GENERATOR)
    assert torch.equal(turned[:, 0], poses[:, 0])
    torch.testing.assert_close(turned[..., :3, 3].norm(dim=-1), torch.full((200, 4), 2.0))
    cosine = ((turned[:, 1:, :3, :3] * poses[:, 1:, :3, :3]).sum(dim=(-1, -2)) - 1) / 2
    angle_deg = torch.rad2deg(cosine.clamp(-1, 1).acos())
    assert float(angle_deg.square().mean().sqrt()) == pytest.approx(2.0 * 3**0.5, rel=0.15)


def test_truth_is_brought_to_the_size_of_renders():
    rgba = torch.randint(256, (2, 3, 8, 8, 4), dtype=torch.uint8)
    images, masks = sized(rgba, 1.0, 4)
    full, full_masks = sized(rgba, 1.0, 8)
    torch.testing.assert_close(images, full.unflatten(-2, (4, 2)).unflatten(-1, (4, 2)).mean(dim=(-1, -3)))
    assert masks.shape == (2, 3, 1, 4, 4)
    assert full_masks.shape == (2, 3, 1, 8, 8)
