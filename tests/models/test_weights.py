import os

import pytest
import torch
from torch import nn

from models.weights import load_strict, placed, read_weights, save_published, save_safetensors, step_from_name
from utils.errors import DataError


class Dangerous:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_published_file_round_trip(tmp_path):
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_published(tmp_path / "t2v_00000012.pth", module.state_dict(), 12)
    assert load_strict(other, tmp_path / "t2v_00000012.pth", option="test_model") == 12
    assert torch.equal(module.weight, other.weight)
    assert [file.name for file in tmp_path.iterdir()] == ["t2v_00000012.pth"]


def test_bare_state_dict_takes_its_step_from_the_name(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "non_ema_00365000.pth")
    assert load_strict(nn.Linear(3, 2), tmp_path / "non_ema_00365000.pth", option="test_model") == 365000
    assert step_from_name("ema_00001000_rank0003.pth") == 1000
    assert step_from_name("model.safetensors") is None


def write_slices(folder, state, *, ranks=3, step=12):
    """As the original does: each process writes its share of the keys."""
    for rank in range(ranks):
        part = dict(list(state.items())[rank::ranks])
        torch.save({"state_dict": part, "step": step}, folder / f"ema_{step:08d}_rank{rank:04d}.pth")


def test_slices_of_an_average_are_joined(tmp_path):
    module, other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    write_slices(tmp_path, other.state_dict(), step=11)
    write_slices(tmp_path, module.state_dict())
    for rank in range(3):
        assert load_strict(other, tmp_path / f"ema_00000012_rank{rank:04d}.pth", option="test_model") == 12
        assert all(torch.equal(*pair) for pair in zip(module.parameters(), other.parameters(), strict=True))


def test_slices_that_are_missing_or_overlap_are_refused(tmp_path):
    write_slices(tmp_path, nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).state_dict())
    (tmp_path / "ema_00000012_rank0001.pth").rename(tmp_path / "aside.pth")
    with pytest.raises(
        DataError, match=r"test_model=.*_rank0002.pth is a slice .* rank 1 is not in its folder"
    ) as caught:
        read_weights(tmp_path / "ema_00000012_rank0002.pth", option="test_model")
    assert "\n" not in str(caught.value)
    state = {"0.weight": torch.zeros(2, 3), "more": torch.zeros(1)}
    torch.save({"state_dict": state, "step": 12}, tmp_path / "ema_00000012_rank0001.pth")
    with pytest.raises(DataError, match=r"1 keys of ema_00000012_rank0001.pth .*\(first: 0.weight\)"):
        read_weights(tmp_path / "ema_00000012_rank0000.pth", option="test_model")


def test_safetensors_round_trip_in_half_precision(tmp_path):
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_safetensors(tmp_path / "m.safetensors", module.state_dict(), metadata={"step": 7})
    assert load_strict(other, tmp_path / "m.safetensors", option="test_model") == 7
    assert other.weight.dtype == torch.float32
    torch.testing.assert_close(other.weight, module.weight.half().float(), atol=0, rtol=0)


def test_the_tuned_head_is_split_off(tmp_path):
    state = {**nn.Linear(3, 2).state_dict(), "lgm_big.conv.weight": torch.ones(1)}
    save_published(tmp_path / "t2v_5.pth", state, 5)
    weights = read_weights(tmp_path / "t2v_5.pth", option="test_model")
    assert set(weights.head) == {"conv.weight"}
    assert set(weights.state) == {"weight", "bias"}


def test_what_does_not_fit_is_counted_and_named_in_one_line(tmp_path):
    save_published(tmp_path / "m.pth", {"weight": torch.zeros(2, 4), "wieght": torch.zeros(1)}, 0)
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(DataError) as caught:
        load_strict(module, tmp_path / "m.pth", option="test_model")
    message = str(caught.value)
    assert "test_model=" in message
    assert "m.pth" in message
    assert "1 missing (first: bias)" in message
    assert "1 unexpected (first: wieght)" in message
    assert "1 misshapen (first: weight, [2, 4] in the file, [2, 3] in the model)" in message
    assert "\n" not in message
    assert torch.equal(module.weight, before)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": {"weight": Dangerous(tmp_path / "ran")}}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="could run code") as caught:
        read_weights(tmp_path / "evil.pth", option="test_model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_says_where_weights_come_from(tmp_path):
    with pytest.raises(DataError, match=r"test_model=.*2403\.12010.*configs/mini/t2v_infer\.yaml needs none"):
        read_weights(tmp_path / "t2v.pth", option="test_model")


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, name):
    path = tmp_path / name
    state = {"weight": torch.zeros(64, 64)}
    if path.suffix == ".pth":
        save_published(path, state, 0)
    else:
        save_safetensors(path, state)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=name):
        read_weights(path, option="test_model")


@pytest.mark.parametrize("name", ["x.pth", "x.bin", "x.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"<html>not found</html>" * 20,
            r"is not a weight file \(it begins with b'<html>|is not a readable safetensors file",
        ),
        (bytes(range(256)) * 9, r"is not a weight file \(it begins with b'\\x00|is not a readable safetensors file"),
        (b"\x80\x02", r"cannot be read|is not a readable safetensors file"),
    ],
)
def test_what_is_no_weight_file_is_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"test_model=.*{name} ({message}).*; download it again") as caught:
        read_weights(tmp_path / name, option="test_model")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_weight_file(tmp_path):
    with pytest.raises(DataError, match=r"test_model=.* is a folder; name a weight file"):
        read_weights(tmp_path, option="test_model")


@pytest.mark.parametrize("content", [{"step": 3}, {"state_dict": {"a": 1}}, [1, 2], {}])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(DataError, match="contains no state dict"):
        read_weights(tmp_path / "x.pth", option="test_model")


def test_a_module_without_memory_takes_the_tensors_of_the_file(tmp_path):
    path = tmp_path / "weights_00000003.pth"
    expected = nn.Linear(3, 2)
    save_published(path, {name: value.half() for name, value in expected.state_dict().items()}, 3)
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    assert load_strict(module, path, option="test") == 3
    assert (module.weight.dtype, module.weight.requires_grad) == (torch.float32, True)
    torch.testing.assert_close(module.weight, expected.weight.half().float())
    values, own = module.weight.data.clone(), module.weight.data_ptr()
    placed(module, torch.device("cpu"), torch.float32)
    assert torch.equal(module.weight, values)
    assert module.weight.data_ptr() != own  # not the file's memory
    assert placed(module, torch.device("cpu"), torch.bfloat16).bias.dtype == torch.bfloat16
