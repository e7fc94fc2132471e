"""A network divided among processes (FSDP2, gloo) trains as one that is whole, and leaves the same files."""

from __future__ import annotations

import re

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from models.weights import read_weights
from pipelines.training.parallel import like, local
from pipelines.training.state import latest, read_state
from pipelines.training.trainer import train as train_here
from tests.pipelines.training.groups import train_in_group
from tests.pipelines.training.test_processes import config_file
from tests.pipelines.training.test_resume import stopped_after
from tests.pipelines.training.test_training import load
from tests.tiny import UNET, write_family
from tests.tiny_orbits import write_orbits
from utils.config import load_config
from utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

LR = 2e-3
WHOLE = {"batch_sizes": {"3": 4}, "decay_mode": "constant", "use_ema": True, "grad_clip": 0.1, "warmup_steps": 0}
DIVIDED = WHOLE | {"batch_sizes": {"3": 2}, "num_processes": 2, "use_fsdp": True}


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits", copies=2)
    return tmp_path


def run(folder, name, **changes):
    """Train, in a group where several processes are wanted; the last state."""
    file = config_file(folder, name, **changes)
    if "num_processes" in changes:
        output = train_in_group(file, num=changes["num_processes"])
        assert output.count("wrote ") >= 1
    else:
        train_here(load_config(file))
    return read_state(latest(folder / name / "state"))


def assert_close(one, two, *, steps):
    """AdamW divides by tiny gradients, so rounding shows; steps that went other ways would be steps x lr off."""
    assert (one.step, one.num_samples, one.num_averaged) == (two.step, two.num_samples, two.num_averaged)
    assert one.optimizer.keys() == two.optimizer.keys()
    for name in ("model", "average"):
        first, second = getattr(one, name), getattr(two, name)
        assert first.keys() == second.keys()
        off = [float((first[key] - second[key]).abs().mean()) for key in first]
        assert max(off) < 0.02 * steps * LR, name
    assert max(float((one.model[key] - one.average[key]).abs().max()) for key in one.average) > 0.2 * LR


@pytest.mark.slow
def test_it_trains_as_the_whole_network_does_and_takes_over_from_it(folder):
    """Three steps at once, and one by a process alone, one by two that divide the network, one alone again."""
    start = write_family(folder)["test_model"]
    pretrain = {"type": "pretrain_specific_strategies", "grad_scale": 0.5, "resume_checkpoint": start}
    visual = {"type": "VisualTrainTextImageToVideo", "prompts": ["a red disc"], "guide_scale": 2.0}
    given = {"Pretrain": pretrain, "UNet": {**UNET, "use_checkpoint": True}}
    one = run(folder, "one", **WHOLE, **given, num_steps=10, save_ckp_interval=1, keep_states=3)
    # the number of samples in a step stays; so do the settings that make a run what it is
    stopped_after(folder, 8, of="one", as_="first")
    state = read_state(latest(folder / "first" / "state"))
    previewed = DIVIDED | {"visual_train": visual}
    second = run(folder, "second", **previewed, **given, num_steps=9, resume=str(folder / "first"))
    assert (state.step, second.step) == (8, 9)
    two = run(folder, "third", **WHOLE, **given, num_steps=10, resume=str(folder / "second"))
    assert_close(one, two, steps=3)
    for kind in ("", "non_ema_"):
        name = f"checkpoints/{kind}t2v_00000009.pth"
        first, second = (read_weights(folder / run / name, option="test") for run in ("one", "second"))
        assert (first.step, first.state.keys()) == (second.step, second.state.keys())
        torch.testing.assert_close(first.state, second.state, atol=3 * LR, rtol=0)
        assert sum(float((first.state[key] - second.state[key]).abs().mean()) > 0.04 * LR for key in first.state) == 0
    exported = read_weights(folder / "second" / "t2v.safetensors", option="test").state
    averaged = read_weights(folder / "second" / "checkpoints/t2v_00000009.pth", option="test").state
    torch.testing.assert_close(exported, {key: value.half() for key, value in averaged.items()}, atol=0, rtol=0)
    sampled = {path.name for path in (folder / "second" / "previews").iterdir()}
    assert sampled == {"a-red-disc_00000009.png", "a-red-disc_00000009.mp4"}


@pytest.mark.slow
def test_low_rank_factors_are_divided_too(folder):
    start, lora = write_family(folder)["test_model"], {"rank": 3, "targets": ["to_q", "proj_out", "out.2"]}
    given = {"test_model": start, "lora": lora, "num_steps": 3}
    one = run(folder, "one", **WHOLE, **given)
    # parts of a step instead of processes: eight rows, of which each process has two at a time
    parts = DIVIDED | {"batch_sizes": {"3": 1}, "grad_accumulation": 2}
    two = run(folder, "two", **parts, **given)
    assert_close(one, two, steps=3)
    names = ("one", "two")
    first, second = (read_weights(folder / name / "t2v_lora.safetensors", option="test").state for name in names)
    assert first.keys() == second.keys()
    torch.testing.assert_close(first, second, atol=3 * LR, rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"TASK_TYPE": "train_embedder_entrance"},
            "supports only UNet training, but TASK_TYPE=train_embedder_entrance",
        ),
        ({"UNet": {**UNET, "use_lgm_refine": True}}, "supports only UNet training, but TASK_TYPE=tune_t2v_entrance"),
        ({"precision": "float16"}, "set precision=bfloat16"),
    ],
)
def test_what_cannot_be_divided_is_refused_at_once(folder, changes, message):
    given = {"TASK_TYPE": "train_t2v_entrance", "test_model": "nowhere.pth"} | changes
    with pytest.raises(ConfigError, match=re.escape(message)):
        train_here(load(folder, **given, use_fsdp=True))


def test_one_process_keeps_it_whole(folder):
    given = {"TASK_TYPE": "train_t2v_entrance", "num_steps": 1}
    for name, divide in (("one", False), ("two", True)):
        train_here(load(folder, **given, use_fsdp=divide, log_dir=str(folder / name)))
    one, two = (read_state(latest(folder / name / "state")) for name in ("one", "two"))
    torch.testing.assert_close(one.model, two.model, atol=0, rtol=0)


def test_a_state_is_laid_out_as_the_network_is():
    """AdamW's kernels on GPUs refuse moments that lie otherwise than their parameters."""
    there = torch.randn(4, 6, 3, 3)
    by_channels = there.contiguous(memory_format=torch.channels_last)
    for target in (there, by_channels):
        for whole in (there, by_channels):
            placed = like(whole.half(), target)
            assert torch.equal(placed, whole.half())
            assert placed.stride() == target.stride()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        target = distribute_tensor(there, init_device_mesh("cpu", (1,)), [Shard(0)])
        placed = local(like(by_channels, target))
        assert torch.equal(placed, there)
        assert placed.stride() == local(target).stride() == there.stride()
    finally:
        distributed.destroy_process_group()
