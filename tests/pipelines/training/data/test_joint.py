"""Images beside orbits: both advance, in the proportion that the configuration names."""

from __future__ import annotations

import os
import re

import pytest
import torch

import pipelines  # noqa: F401 - registers
from pipelines.training.data.global_batch import JointBatch
from pipelines.training.state import latest, read_state
from pipelines.training.trainer import train as train_here
from tests.conftest import ROOT
from tests.pipelines.training.test_processes import config_file, gradients, train
from tests.pipelines.training.test_resume import assert_same_training, stopped_after
from tests.pipelines.training.test_training import load
from tests.tiny import UNET
from tests.tiny_images import write_list, write_shards
from tests.tiny_orbits import write_orbits
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.registry import ENGINE, MODEL

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
JOINT = {"TASK_TYPE": "train_t2v_entrance", "frame_lens": [1, 3], "batch_sizes": {"1": 6, "3": 2}, "log_interval": 1}


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits", copies=2)
    return tmp_path


def logged(text):
    """Figures of each logged step."""
    lines = re.findall(r"step \d+: (.*), lr ", text)
    return [{name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)", line)} for line in lines]


def joint(*, processes=1, rank=0, parts=1, frame_lens=(1, 24, 24)):
    share = JointBatch(frame_lens=frame_lens, sizes={1: 5, 24: 2}, parts=parts, seed=3, device=CPU)
    share.num_processes, share.rank = processes, rank
    return share


def test_each_process_has_the_kind_that_is_published_for_it():
    for rank in range(8):
        share = joint(processes=8, rank=rank, frame_lens=(1, *[24] * 7))
        kinds = set()
        for number in range(5):
            share.begin(number, 0)
            kinds.add((share.num_views, share.size))
        assert kinds == {(1, 5) if rank == 0 else (24, 2)}


@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (2, 1), (4, 2), (5, 1)])
def test_the_proportion_holds_on_any_number_of_processes(processes, parts):
    kinds, shares = [], [joint(processes=processes, rank=rank, parts=parts) for rank in range(processes)]
    for number in range(30):
        for part in range(parts):
            for share in shares:
                share.begin(number, part)
                kinds.append(share.num_views)
    assert kinds.count(1) == len(kinds) // 3


def test_slots_do_not_depend_on_who_has_them():
    drawn = []
    for processes, parts in ((1, 6), (2, 3), (6, 1)):
        shares = [joint(processes=processes, rank=rank, parts=parts) for rank in range(processes)]
        orders = [{n: share.kind(n).order(20, start=4) for n in (1, 24)} for share in shares]
        rows = []
        for number in (4, 5):
            for part in range(parts):
                for share, order in zip(shares, orders, strict=True):
                    share.begin(number, part)
                    index_B = next(order[share.num_views])
                    assert index_B.tolist() == share.samples_at(20, number, part, share.rank)
                    rows.append(torch.cat([index_B, share.randn(share.size), torch.randn(2)]))
        drawn.append(torch.cat(rows))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_every_image_comes_once_a_pass():
    shares = [joint(processes=2, rank=rank) for rank in range(2)]
    orders = [share.kind(1).order(10, start=0) for share in shares]
    seen = []
    for number in range(3):  # six slots: two of images
        for share, order in zip(shares, orders, strict=True):
            share.begin(number, 0)
            if share.num_views == 1:
                seen += next(order).tolist()
    assert sorted(seen) == list(range(10))


def test_one_process_takes_both_in_turn_and_goes_on_bit_for_bit(folder, caplog):
    caplog.set_level("INFO")
    given = JOINT | {"img_dataset": write_shards(folder / "shards"), "use_ema": True, "decay_mode": "constant"}
    given |= {"cache_latents": True, "num_workers": 1}
    train_here(load(folder, **given, num_steps=4, save_ckp_interval=1, keep_states=4, log_dir=str(folder / "whole")))
    figures = logged(caplog.text)
    assert [one["image_batches"] for one in figures] == [1, 0, 1, 0]
    assert [set(one) - {"loss", "image_batches"} for one in figures] == [{"loss_images"}, {"loss_orbits"}] * 2
    stopped_after(folder, 1, of="whole", as_="halves")
    train_here(load(folder, **given, num_steps=4, log_dir=str(folder / "halves")))
    assert_same_training(folder, "whole", "halves")


@pytest.mark.slow
def test_two_processes_train_on_both_as_one_does(folder):
    """One image process, one orbit process, against one that takes both as parts of a step."""
    given = JOINT | {"img_dataset": write_shards(folder / "shards"), "num_steps": 1, "grad_clip": 0.1}
    train_here(load_config(config_file(folder, "one", **given, grad_accumulation=2)))
    two = config_file(folder, "two", **given, num_processes=2)
    output = train(ROOT / "train_net.py", "--cfg", two, folder=folder)
    (figures,) = logged(output)
    assert figures["image_batches"] == 0.5
    assert figures["loss_images"] > 0.1
    assert figures["loss_orbits"] > 0.1
    assert figures["loss"] == pytest.approx((figures["loss_images"] + figures["loss_orbits"]) / 2, abs=2e-4)
    expected = gradients(folder, "one")
    largest = max(float(value.abs().max()) for value in expected.values())
    # sums in another order: float32 rounding
    torch.testing.assert_close(gradients(folder, "two"), expected, atol=1e-5 * largest, rtol=1e-3)


def test_images_have_no_camera_but_all_parameters_have_gradients():
    unet = MODEL.build(UNET).train()
    torch.nn.init.normal_(unet.out[-1].weight, std=0.1)
    x, t, y = torch.randn(2, 4, 1, 4, 4), torch.tensor([5, 700]), torch.randn(2, 5, 24)
    predicted = unet(x, t, y)
    torch.testing.assert_close(predicted, unet.eval()(x, t, y), atol=0, rtol=0)
    predicted.square().sum().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())
    assert all(not parameter.grad.any() for parameter in unet.camera_embedding.parameters())


def test_broken_images_are_skipped_counted_and_limited(folder, caplog):
    section = write_shards(folder / "shards", num=2, size=8)
    file = folder / "shards" / "00001.tar"
    os.truncate(file, file.stat().st_size // 2)
    given = JOINT | {"img_dataset": {**section, "samples_per_visit": 6}, "num_steps": 4}
    train_here(load(folder, **given))
    lines = [record.getMessage() for record in caplog.records if "skipped broken sample" in record.getMessage()]
    assert any("00001.tar: the shard is truncated after 4 images" in line for line in lines)
    with pytest.raises(DataError, match=r"00001.tar.*max_bad_samples=0.*tools/check_images.py"):
        train_here(load(folder, **given, max_bad_samples=0, resume="never"))


def test_a_bad_loss_names_the_images(folder):
    cfg = load(folder, **JOINT, img_dataset=write_list(folder / "images"))
    task = ENGINE.build({"type": "train_t2v_entrance"}, cfg=cfg, device=CPU)
    batches = task.batches()
    for number in range(2):
        task.global_batch.begin(number, 0)
        batch = next(batches)
        names = task.sample_names(number, 0, 0)
        assert len(names) == len(batch.latents_BCVHW) == (6, 2)[number]
    assert batch.camera_data_BV16 is not None
    assert sorted(task.sample_names(2, 0, 0)) == sorted(str(folder / "images" / f"{n}.jpg") for n in range(6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_lens": [1, 12, 24]}, "use one number of views, plus 1 for processes"),
        ({"img_dataset": {}}, "img_dataset is empty; add this section"),
        ({"TASK_TYPE": "train_i2v_entrance"}, "only a text model trains on images too"),
        ({"batch_sizes": {"3": 2}}, "batch_sizes has no positive entry for 1 views"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, changes, message):
    section = {"type": "ImageDataset", "data_list": ["list.txt"], "data_dir_list": ["."]}
    with pytest.raises(ConfigError, match=re.escape(message)):
        train_here(load(folder, **(JOINT | {"img_dataset": section} | changes)))


def test_a_state_from_before_there_were_images_is_the_same_run(folder):
    short = {"TASK_TYPE": "train_t2v_entrance", "decay_mode": "constant"}
    train_here(load(folder, **short, num_steps=1))
    train_here(load(folder, **short, num_steps=2, img_dataset=write_list(folder / "images")))
    assert read_state(latest(folder / "run" / "state")).step == 2
