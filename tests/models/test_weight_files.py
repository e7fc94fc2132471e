"""Weight files as people have them: of wrapped networks, under a wrong name, damaged, or of something else."""

from __future__ import annotations

import json
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.checksums import checksum_of, first_not_finite
from models.weights import load_state, load_strict, read_weights, save_published, save_safetensors
from utils.errors import DataError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def refused(path, match: str) -> str:
    with pytest.raises(DataError, match=match) as caught:
        load_strict(network(), path, option="test_model")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"test_model={path}")
    return str(caught.value)


def loads(path, expected: nn.Module) -> None:
    module = network()
    nn.init.zeros_(module[0].weight)
    load_strict(module, path, option="test_model")
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda name: f"module.{name}", r"module\. in the names is from a wrapper"),
        (lambda name: f"_orig_mod.{name}", r"_orig_mod\. in the names is from a wrapper"),
        (lambda name: f"module._orig_mod.{name}", r"module\., _orig_mod\. in the names"),
        (lambda name: f"_orig_mod.module.{name}", r"_orig_mod\., module\. in the names"),
        (lambda name: name.replace(".", "._orig_mod."), r"_orig_mod\. in the names"),
        (lambda name: f"_fsdp_wrapped_module.{name}", r"_fsdp_wrapped_module\. in the names"),
        (lambda name: f"model.diffusion_model.{name}", r"the names begin with model\.diffusion_model\.; read without"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_of_wrappers_are_removed_and_named(tmp_path, caplog, rename, said, suffix):
    caplog.set_level("INFO")
    expected, path = network(), tmp_path / f"w{suffix}"
    state = {rename(name): value for name, value in expected.state_dict().items()}
    if suffix == ".pth":
        save_published(path, state, 3)
    else:
        save_safetensors(path, state, dtype=torch.float32)
    loads(path, expected)
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.search(said, line)


def test_a_network_inside_another_is_found_and_what_is_left_is_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    expected = network()
    state = {f"net.{name}": value for name, value in expected.state_dict().items()} | {"loss.scale": torch.ones(1)}
    save_published(tmp_path / "w.pth", state, 0)
    loads(tmp_path / "w.pth", expected)
    assert "the names begin with net.; read without it, and 1 other names are not read" in caplog.text
    state |= {f"ema.{name}": value for name, value in expected.state_dict().items()}
    save_published(tmp_path / "two.pth", state, 0)
    refused(tmp_path / "two.pth", "does not fit Sequential: 4 missing")  # which of the two is meant is not known


def test_the_prefix_of_ddp_before_that_of_the_head(tmp_path):
    state = {"module.weight": torch.zeros(1), "module.lgm_big.conv.weight": torch.ones(1)}
    save_published(tmp_path / "w.pth", state, 0)
    weights = read_weights(tmp_path / "w.pth", option="test_model")
    assert (set(weights.state), set(weights.head)) == ({"weight"}, {"conv.weight"})


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin", "w"])
def test_the_content_decides_how_a_file_is_read(tmp_path, name):
    expected = network()
    torch.save(expected.state_dict(), tmp_path / name)
    loads(tmp_path / name, expected)
    save_file(expected.state_dict(), tmp_path / name)
    loads(tmp_path / name, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_refused_with_the_tensor(tmp_path, value, dtype):
    state = {name: tensor.to(dtype) for name, tensor in network().state_dict().items()}
    state["1.weight"][1, 2] = value
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"1\.weight contains values that are not finite \(NaN or infinite\)")


def test_extreme_values_are_finite():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        limits = torch.finfo(dtype)
        state = {"x": torch.tensor([limits.max, limits.min, -0.0, 0.0, limits.tiny], dtype=dtype)}
        assert first_not_finite(state) is None
        many = torch.zeros(2**19 // dtype.itemsize + 3, dtype=dtype)
        many[-1] = -torch.inf
        assert first_not_finite({**state, "many": many}) == "many"
    assert first_not_finite({"none": torch.zeros(0), "counts": torch.arange(3)}) is None


def test_a_module_in_memory_is_not_changed_by_weights_that_are_not_finite():
    module, before = network(), network().state_dict()
    state = {**before, "0.bias": torch.full((4,), torch.nan)}
    with pytest.raises(DataError, match=r"here: 0\.bias contains"):
        load_state(module, state, source="here")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_flipped_bit_is_noticed(tmp_path, suffix):
    path, state = tmp_path / f"w{suffix}", network().state_dict()
    if suffix == ".pth":
        save_published(path, state, 3)
    else:
        save_safetensors(path, state, dtype=torch.float32)
    content = bytearray(path.read_bytes())
    place = content.find(state["1.weight"].numpy().tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    refused(path, r"has changed since it was written \(its checksum differs\)")


def test_the_checksum_depends_on_every_bit_and_name():
    state = {"a": torch.arange(9, dtype=torch.int8), "b": torch.arange(9, dtype=torch.int8)}
    others = [checksum_of({"a": state["a"]}), checksum_of({"c": state["a"], "b": state["b"]})]
    for bit in range(72):
        changed = state["a"].clone().numpy().view(np.uint8)
        changed[bit // 8] ^= 1 << bit % 8
        others.append(checksum_of({**state, "a": torch.from_numpy(changed)}))
    assert checksum_of(state) not in others
    assert checksum_of(state) == checksum_of(dict(reversed(state.items())))


def test_a_file_without_checksum_loads(tmp_path):
    torch.save({"state_dict": network().state_dict(), "step": 3}, tmp_path / "w.pth")
    assert load_strict(network(), tmp_path / "w.pth", option="test_model") == 3


ODD_STEPS = [float("nan"), float("inf"), -1, 10**15, "many", [1]]


@pytest.mark.parametrize("step", ODD_STEPS, ids=str)
def test_a_step_that_is_no_number_of_steps_is_refused(tmp_path, step):
    torch.save({"state_dict": network().state_dict(), "step": step}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"its step .* is not a number of steps")


def test_the_step_of_a_header_is_checked_too(tmp_path):
    save_file(network().state_dict(), tmp_path / "w.safetensors", {"step": "three"})
    refused(tmp_path / "w.safetensors", "its step three is not a number of steps")


STUBS = {
    "empty_pickle": b"\x80\x02.",
    "pop": b"\x80\x02" + b"0" * 9,
    "none": b"\x80\x02N.",
    "number": b"\x80\x02K\x01.",
    "memo": b"\x80\x02h\x05.",
    "string": b"\x80\x02X\xff\xff\xff\xff.",
    "build": b"\x80\x02}}b.",
    "long": b"\x80\x02\x8b\xff\xff\xff\xff.",
}


@pytest.mark.parametrize("content", STUBS.values(), ids=STUBS)
def test_stub_pickles_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", "cannot be read|contains no state dict|is not loaded")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({0: torch.zeros(1), 1: torch.zeros(1)}, "its keys are numbers, as in the state of an optimizer"),
        ({"state_dict": {3: torch.zeros(1)}}, "its keys are numbers"),
        ({"model": {"a": torch.zeros(1)}, "epoch": 3}, "it holds model, epoch; save its entry model as a file"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, r"a is not a plain tensor \(torch.complex64"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a is not a plain tensor .*sparse"),
        ([torch.zeros(1)], "contains no state dict"),
        (torch.zeros(3), "contains no state dict"),
    ],
    ids=str,
)
def test_what_is_no_state_dict_is_described(tmp_path, content, match):
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS; run `git lfs pull`"),
        (b"<!doctype html><html>", "a web page"),
        (b'{"weight_map": {}}' * 3, "JSON text"),
        (b"\x89PNG\r\n\x1a\n" * 4, "a picture"),
        (b"\x1f\x8b\x08" + bytes(30), "a gzip archive; unpack it"),
        (b"GGUF" + bytes(30), "a GGUF file"),
        (b"\x93NUMPY" + bytes(30), "an array of NumPy"),
        (bytes(257) + b"ustar" + bytes(250), "a tar archive; unpack it"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_content(tmp_path, content, match):
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert match in refused(tmp_path / name, "is not a weight file")


def test_archives_of_another_kind_are_told(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    refused(tmp_path / "w.npz", "it is arrays of NumPy")
    with zipfile.ZipFile(tmp_path / "models.pth", "w") as archive:
        archive.writestr("pretrained_models/t2v.pth", "x")
    refused(tmp_path / "models.pth", r"it is a ZIP archive \(pretrained_models/t2v.pth, ...\); unpack it")
    torch.jit.script(network()).save(tmp_path / "script.pth")
    refused(tmp_path / "script.pth", "it is a network of TorchScript; save its state dict")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "encoder.conv_in.weight",
            r"of an autoencoder, which belong in auto_encoder\.pretrained; 4 missing",
        ),
        ("first_stage_model.encoder.conv_in.weight", "of an autoencoder"),
        ("conv.lora_A.weight", r"of a low-rank addition \(LoRA\), which belong in lora\.path"),
        ("token_embedding.weight", r"of a text and image encoder, which belong in embedder\.pretrained"),
        ("unet.conv_in.weight", r"of a Gaussian head, which belong in reconstruction\.pretrained"),
        ("input_blocks.0.0.weight", r"of a generator \(UNet\), which belong in test_model"),
        ("down_blocks.0.resnets.0.norm1.weight", "of a network of diffusers; 4 missing"),
    ],
)
def test_weights_of_another_network_are_told(tmp_path, name, match):
    save_published(tmp_path / "w.pth", {name: torch.zeros(2)}, 0)
    refused(tmp_path / "w.pth", f"does not fit Sequential: it contains .*{match}")


def test_whole_numbers_are_no_weights(tmp_path):
    state = {name: value.to(torch.int8) for name, value in network().state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"4 of another kind of number \(first: 0.weight, torch.int8 in the file\)")


def test_a_safetensors_header_that_lies_is_refused(tmp_path):
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 10**9]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(48))
    refused(tmp_path / "w.safetensors", "is not a readable safetensors file")
