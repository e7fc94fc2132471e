"""Every kind of training, end to end on made-up orbits: it learns, and what it leaves can be loaded."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from models.weights import read_weights
from pipelines.training.objectives.autoencoder import RestoreViews
from pipelines.training.trainer import Trainer, train
from tests.campaign import run_command
from tests.conftest import ROOT
from tests.pipelines.training.groups import training
from tests.tiny import UNET, write_config, write_family
from tests.tiny_orbits import training_config, write_orbits
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.registry import ENGINE, MODEL

TEMPORAL = "input_blocks.1.0.temopral_conv.conv4.3.weight"
TWO_STEPS = {"TASK_TYPE": "train_t2v_entrance", "num_steps": 2, "use_ema": True, "ema_decay": 1.0}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits")
    return tmp_path


def load(folder, *overrides, **changes):
    return load_config(write_config(folder / "train.yaml", training_config(folder, **changes)), overrides)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """The folder of a training of two steps, with weights, averages and previews of both, and what it said."""
    folder = tmp_path_factory.mktemp("two_steps")
    write_orbits(folder / "orbits")
    visual = {"type": "VisualTrainTextImageToVideo", "prompts": ["a red disc"], "guide_scale": 2.0}
    given = TWO_STEPS | {"save_ckp_interval": 1, "viz_interval": 1, "visual_train": visual}
    file = write_config(folder / "train.yaml", training_config(folder, **given))
    code, _, said = run_command("train_net", "--cfg", str(file))
    assert code == 0, said
    return folder, said


def losses(caplog):
    return [float(found[1]) for found in re.finditer(r"step \d+: loss ([\d.]+)", caplog.text)]


@pytest.mark.parametrize(
    ("entrance", "stem", "changes"),
    [
        (
            "train_autoencoder_entrance",
            "autoencoder",
            {"objective": {"num_whitening": 0}, "batch_sizes": {"1": 2}, "num_steps": 8, "lr": 4e-3},
        ),
        ("train_embedder_entrance", "embedder", {"num_steps": 120}),
        ("train_classifier_entrance", "classifier", {"classifier": {"type": "ViewClassifier", "width": 8}}),
        ("train_t2v_entrance", "t2v", {"num_steps": 10, "cache_latents": True, "lr": 4e-3}),
    ],
)
def test_learns_and_leaves_weights(folder, caplog, entrance, stem, changes):
    caplog.set_level("INFO")
    final = train(load(folder, TASK_TYPE=entrance, log_interval=2, **changes))
    first, *_, last = losses(caplog)
    assert last < 0.8 * first
    steps = changes.get("num_steps", 20)
    saved = read_weights(folder / "run" / "checkpoints" / f"{stem}_{steps:08d}.pth", option="test")
    exported = read_weights(final, option="test")
    assert saved.step == exported.step == steps
    assert {value.dtype for value in exported.state.values()} == {torch.float16}
    torch.testing.assert_close(
        exported.state, {key: value.half() for key, value in saved.state.items()}, atol=0, rtol=0
    )
    assert (folder / "run" / "config.yaml").is_file()


def test_one_seed_gives_the_same_weights(folder, two_steps):
    """Also without previews."""
    final = train(load(folder, **TWO_STEPS))
    first, second = (read_weights(file, option="test") for file in (final, two_steps[0] / "run" / final.name))
    torch.testing.assert_close(first.state, second.state, atol=0, rtol=0)


def test_trained_weights_load_into_inference(two_steps):
    folder, said = two_steps
    saved = re.findall(r"saved step (\d): (.+), (.+)$", said, flags=re.MULTILINE)
    assert [int(step) for step, *_ in saved] == [1, 2]
    assert all(Path(weights).is_file() and Path(state).is_dir() for _, weights, state in saved)
    for name in ("t2v_00000002.pth", "non_ema_t2v_00000002.pth"):
        state = read_weights(folder / "run" / "checkpoints" / name, option="test_model").state
        MODEL.build(UNET).load_state_dict(state, strict=True)


def test_previews_are_sampled(two_steps):
    folder, _ = two_steps
    names = {path.name for path in (folder / "run" / "previews").iterdir()}
    stems = ("a-red-disc_00000001", "a-red-disc_00000002")
    assert names == {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".mp4")}


def test_the_autoencoder_ends_with_white_latents(folder):
    cfg = load(folder, TASK_TYPE="train_autoencoder_entrance", num_steps=5, objective={"num_whitening": 64})
    final = train(cfg)
    autoencoder = cfg.auto_encoder.changed(pretrained=str(final)).build().eval()
    objective = ENGINE.build(
        {"type": "train_autoencoder_entrance", "num_whitening": 512}, cfg=cfg, device=torch.device("cpu")
    )
    assert isinstance(objective, RestoreViews)
    objective.network.load_state_dict(autoencoder.state_dict())
    mean_C, std_C = objective.latent_moments()
    # 64 random views measured against 512 others: a few per cent
    torch.testing.assert_close(mean_C, torch.zeros(4), atol=0.1, rtol=0)
    torch.testing.assert_close(std_C, torch.ones(4), atol=0.1, rtol=0)


def test_varied_pictures_keep_white_and_masks_keep_to_their_objects(folder):
    options = {"color_spread": 0.3, "mirror": True, "decibel_weight": 1e-3}
    cfg = load(folder, TASK_TYPE="train_autoencoder_entrance", objective=options)
    objective = ENGINE.build({"type": cfg.TASK_TYPE, **cfg.objective}, cfg=cfg, device=torch.device("cpu"))
    plain_B3HW = torch.ones(8, 3, 32, 32)
    masks_B1HW = torch.zeros(8, 1, 32, 32)
    plain_B3HW[:, :, 4:9, 2:7], masks_B1HW[:, :, 4:9, 2:7] = torch.tensor([0.9, 0.5, 0.1]).view(3, 1, 1), 1.0
    objective.global_batch.begin(0, 0)
    images_B3HW, turned_B1HW = objective.varied(plain_B3HW, masks_B1HW)
    whole = turned_B1HW.expand_as(images_B3HW) == 1
    assert bool((images_B3HW[~whole] == 1).all())
    assert bool((images_B3HW[whole] < 1).all())
    assert turned_B1HW.sum() == masks_B1HW.sum()
    assert len({tuple(mask.flatten().tolist()) for mask in turned_B1HW}) == 2
    colors = {
        tuple(image[:, mask[0] == 1].mean(dim=1).tolist()) for image, mask in zip(images_B3HW, turned_B1HW, strict=True)
    }
    assert len(colors) == 8
    objective.global_batch.begin(0, 0)
    again_B3HW, _ = objective.varied(plain_B3HW, masks_B1HW)
    torch.testing.assert_close(again_B3HW, images_B3HW, atol=0, rtol=0)


def test_decibels_take_part_in_the_loss(folder):
    cfg = load(folder, TASK_TYPE="train_autoencoder_entrance")
    found = []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        entrance = {"type": cfg.TASK_TYPE, "decibel_weight": weight}
        objective = ENGINE.build(entrance, cfg=cfg, device=torch.device("cpu"))
        objective.global_batch.begin(0, 0)
        found.append(objective(next(objective.batches())))
    (plain, figures), (with_decibels, _) = found
    # a picture's own PSNR is at most a few decibels from that of the batch
    assert float((plain - with_decibels).detach()) / 0.5 == pytest.approx(float(figures["psnr"]), abs=3)


def test_the_average_is_what_is_sampled_with(two_steps):
    folder, _ = two_steps
    files = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    assert files == [f"{kind}t2v_{step:08d}.pth" for kind in ("non_ema_", "") for step in (1, 2)]
    trained, averaged, exported = (
        read_weights(folder / "run" / name, option="").state["out.2.weight"].float()
        for name in ("checkpoints/non_ema_t2v_00000002.pth", "checkpoints/t2v_00000002.pth", "t2v.safetensors")
    )
    assert not torch.equal(trained, averaged)
    torch.testing.assert_close(exported, averaged.half().float(), atol=0, rtol=0)


def test_goes_on_from_a_checkpoint(folder, caplog):
    caplog.set_level("INFO")
    write_family(folder)
    pretrain = {"type": "pretrain_specific_strategies", "resume_checkpoint": str(folder / "t2v_00000007.pth")}
    cfg = load(folder, TASK_TYPE="train_t2v_entrance", num_steps=9, Pretrain={**pretrain, "fix_weight": True})
    before = read_weights(folder / "t2v_00000007.pth", option="").state
    train(cfg)
    after = read_weights(folder / "run" / "checkpoints" / "t2v_00000009.pth", option="").state
    assert f"Pretrain: {folder / 't2v_00000007.pth'}, step 7\n" in caplog.text
    assert torch.equal(after["out.2.weight"], before["out.2.weight"])
    assert not torch.equal(after[TEMPORAL], before[TEMPORAL])


@pytest.mark.parametrize("decay_over", ["num_steps", "own_steps"])
def test_the_learning_rate_begins_anew_after_a_checkpoint(folder, monkeypatch, decay_over):
    write_family(folder)
    pretrain = {"type": "pretrain_specific_strategies", "resume_checkpoint": str(folder / "t2v_00000007.pth")}
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))
    )
    settings = {"num_steps": 11, "warmup_steps": 2, "lr": 1.0e-3, "decay_mode": "linear", "decay_over": decay_over}
    settings["batch_sizes"] = {"3": 1}
    train(load(folder, TASK_TYPE="train_t2v_entrance", Pretrain=pretrain, **settings))
    total = 11 if decay_over == "num_steps" else 4
    assert rates == pytest.approx([0.5e-3, *(1e-3 * (1 - own / total) for own in (1, 2, 3))])


def test_steps_that_a_checkpoint_has_done_already_are_refused(folder):
    write_family(folder)
    pretrain = {"type": "pretrain_specific_strategies", "resume_checkpoint": str(folder / "t2v_00000007.pth")}
    given = {"TASK_TYPE": "train_t2v_entrance", "Pretrain": pretrain, "batch_sizes": {"3": 1}}
    with pytest.raises(ConfigError, match=r"num_steps=7, but .* continues from 7 of .*_00000007.pth; set") as caught:
        train(load(folder, **given, num_steps=7))
    assert "\n" not in str(caught.value)
    assert not (folder / "run" / "checkpoints").exists()
    for _ in range(2):  # whoever has trained, and asks again, gets the files again
        assert read_weights(train(load(folder, **given, num_steps=8)), option="test").step == 8


def test_gradients_of_image_weights_are_scaled(folder):
    write_family(folder)
    grads = []
    for scale in (1.0, 0.5):
        start = str(folder / "t2v_00000007.pth")
        pretrain = {"type": "pretrain_specific_strategies", "grad_scale": scale, "resume_checkpoint": start}
        cfg = load(folder, TASK_TYPE="train_t2v_entrance", Pretrain=pretrain)
        torch.manual_seed(0)
        objective = ENGINE.build({"type": cfg.TASK_TYPE}, cfg=cfg, device=torch.device("cpu"))
        trainer = Trainer(cfg, objective, folder=folder / "run")
        trainer.optimizer.zero_grad = lambda **_: None
        trainer.train_step(objective.batches())
        parameters = dict(objective.network.named_parameters())
        grads.append({name: parameters[name].grad for name in ("out.2.weight", TEMPORAL)})
    plain, scaled = grads
    assert plain["out.2.weight"].abs().sum() > 0
    torch.testing.assert_close(scaled["out.2.weight"], 0.5 * plain["out.2.weight"], atol=0, rtol=0)
    assert plain[TEMPORAL].abs().sum() > 0
    torch.testing.assert_close(scaled[TEMPORAL], plain[TEMPORAL], atol=0, rtol=0)


def test_a_signal_saves_and_leaves(folder):
    cfg = write_config(
        folder / "train.yaml",
        training_config(
            folder, TASK_TYPE="train_classifier_entrance", classifier={"type": "ViewClassifier", "width": 8}
        )
        | {"num_steps": 100000, "log_interval": 1},
    )
    with training(cfg) as (process, printed):
        for line in printed:
            if line.startswith("step 3"):
                os.kill(process.pid, signal.SIGINT)
                break
        rest = printed.read()
        process.join()
        assert process.exitcode == 0
    step = int(re.search(r"stopped at step (\d+)", rest)[1])
    assert read_weights(folder / "run" / "checkpoints" / f"classifier_{step:08d}.pth", option="").step == step
    assert not (folder / "run" / "classifier.safetensors").exists()


def test_training_can_end_by_time(folder):
    final = train(load(folder, TASK_TYPE="train_t2v_entrance", num_steps=10**6, max_minutes=0.01))
    assert 0 < read_weights(final, option="").step < 10**6


def test_a_loss_that_is_no_number_stops(folder, monkeypatch):
    monkeypatch.setattr(
        RestoreViews, "forward", lambda self, batch: (self.network.encode(batch[0]).mean.sum() * float("nan"), {})
    )
    cfg = load(folder, TASK_TYPE="train_autoencoder_entrance", log_interval=2)
    with pytest.raises(DataError, match=r"NaN or infinite at step 1, with the samples 0/\d+, .*no state was saved"):
        train(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TASK_TYPE": "train_t2v"}, "did you mean train_t2v_entrance"),
        (
            {"TASK_TYPE": "train_t2v_entrance", "batch_sizes": {"24": 8}},
            "batch_sizes has no positive entry for 3 views",
        ),
        ({"TASK_TYPE": "train_autoencoder_entrance", "objective": {"kl": 1}}, "objective.kl is unknown"),
        (
            {"TASK_TYPE": "train_autoencoder_entrance", "auto_encoder": {"type": "AutoencoderKL"}},
            "set scale_factor to 1.0, or num_whitening to 0",
        ),
    ],
)
def test_bad_settings_are_refused(folder, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(load(folder, **changes))


class Shout:
    """Runs code when it is unpickled by something that allows that."""

    def __reduce__(self):
        return (Path.touch, (Path("shouted"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"weight": torch.zeros(1)}, "step": 3}, "missing"),
        ({"state_dict": Shout(), "step": 3}, "could run code"),
    ],
    ids=["other-model", "code"],
)
def test_a_checkpoint_that_does_not_fit_or_carries_code_is_refused_in_one_line(folder, monkeypatch, content, message):
    monkeypatch.chdir(folder)
    torch.save(content, folder / "other_3.pth")
    pretrain = {"type": "pretrain_specific_strategies", "resume_checkpoint": str(folder / "other_3.pth")}
    with pytest.raises(DataError, match=rf"Pretrain\.resume_checkpoint=.*{message}") as caught:
        train(load(folder, TASK_TYPE="train_t2v_entrance", Pretrain=pretrain))
    assert "\n" not in str(caught.value)
    assert not (folder / "shouted").exists()


def test_all_weight_files_that_are_missing_are_named_before_anything_is_written(folder):
    overrides = ["UNet.use_lgm_refine=true", "lora.rank=0", f"log_dir={folder / 'run'}", "device=cpu"]
    with pytest.raises(DataError) as caught:
        train(load_config(ROOT / "configs" / "t2v_train.yaml", overrides))
    message = str(caught.value)
    for option, name in (
        ("Pretrain.resume_checkpoint", "modelscope_t2v/model_scope_0267000.pth"),
        ("auto_encoder.pretrained", "modelscope_t2v/VQGAN_autoencoder.pth"),
        ("embedder.pretrained", "modelscope_t2v/open_clip_pytorch_model.bin"),
        ("reconstruction.pretrained", "model.safetensors"),
    ):
        assert f"{option}=pretrained_models/{name}" in message
    assert message.endswith("configs/mini/t2v_train.yaml needs none")
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("entrance", "changes", "named"),
    [
        ("train_autoencoder_entrance", {}, ["auto_encoder.pretrained"]),
        ("train_embedder_entrance", {}, ["embedder.pretrained"]),
        ("train_t2v_entrance", {}, ["auto_encoder.pretrained", "embedder.pretrained"]),
        ("train_t2v_entrance", {"lora": {"rank": 4}}, ["auto_encoder.pretrained", "embedder.pretrained", "test_model"]),
    ],
)
def test_only_weight_files_that_a_training_loads_are_asked_for(folder, entrance, changes, named):
    files = {name: {**training_config(folder)[name], "pretrained": "none.pth"} for name in ("auto_encoder", "embedder")}
    with pytest.raises(DataError) as caught:
        train(load(folder, TASK_TYPE=entrance, test_model="none.pth", **files, **changes))
    assert re.findall(r"([\w.]+)=none\.pth", str(caught.value)) == named
    assert not (folder / "run").exists()
