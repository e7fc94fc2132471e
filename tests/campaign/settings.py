"""Bad settings: YAML files, overrides and weight files, through inference.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from tests.campaign import Case
from tests.conftest import ROOT

MINI = str(ROOT / "configs" / "mini" / "t2v_infer.yaml")

# Texts of files that are no configuration, and what the last line must say. BASE is a configuration that is whole.
FILES = {
    "empty": ("", "not a mapping"),
    "list": ("- seed: 1", "not a mapping"),
    "text": ("seed", "not a mapping"),
    "tab": ("base: BASE\n\tseed: 1", "line 2: not valid YAML"),
    "no closing quote": ("base: BASE\nlog_dir: 'a", "not valid YAML"),
    "no closing bracket": ("base: BASE\nresolution: [128, 128", "not valid YAML"),
    "wrong indent": ("base: BASE\ncameras:\n  num_views: 3\n distance: 2", "line 4: not valid YAML"),
    "two documents": ("base: BASE\n---\nseed: 1", "line 2: not valid YAML"),
    "unknown anchor": ("base: BASE\nseed: *a", "line 2: not valid YAML"),
    "python tag": ("base: BASE\nseed: !!python/name:os.system", "line 2: not valid YAML"),
    "own tag": ("base: BASE\nseed: !seed 3", "line 2: not valid YAML"),
    "control character": ("base: BASE\nlog_dir: \x01", "not valid YAML"),
    "zero byte": ("base: BASE\nlog_dir: a\x00b", "not valid YAML"),
    "deep": ("base: BASE\nprompts: " + "[" * 500, "not valid YAML"),
    "alias of itself": ("base: BASE\nUNet: &u {dim: *u}", "line 2: not valid YAML"),
    "mapping as key": ("base: BASE\n{a: 1}: 2", "line 2: not valid YAML"),
    "base list": ("base: [a.yaml]", r"line 1: base=\['a.yaml'\] is not a file name"),
    "base number": ("base: 7", "line 1: base=7 is not a file name"),
    "base gone": ("base: gone.yaml", "base=.*gone.yaml: no such file"),
    "base folder": ("base: .", "is a folder"),
    "base itself": ("base: case.yaml", "refers back"),
    "key twice": ("base: BASE\nseed: 1\nround: 2\nseed: 3", r"line 4: seed comes again \(first in line 2\)"),
    "key twice inside": ("base: BASE\nUNet:\n  dim: 64\n  dim: 96", r"line 4: UNet.dim comes again"),
    "missing value": ("base: BASE\nnegative_prompt: ???", r"line 2: negative_prompt=\?\?\?"),
    "missing inside": ("base: BASE\nUNet: {dim: '???'}", r"line 2: UNet.dim=\?\?\?"),
    "no such variable": ("base: BASE\nnegative_prompt: ${oc.env:NOT_THERE_AT_ALL}", "line 2: negative_prompt="),
    "no such setting": ("base: BASE\nnegative_prompt: ${nowhere}/x", "line 2: negative_prompt="),
    "no such resolver": ("base: BASE\nnegative_prompt: ${eval:1}", "line 2: negative_prompt="),
    "circle": ("base: BASE\nnegative_prompt: ${negative_prompt}", "line 2: negative_prompt="),
    "half a reference": ("base: BASE\nnegative_prompt: ${seed", "line 2: negative_prompt="),
    "unknown key": ("base: BASE\nguide_scal: 3", "line 2: guide_scal is unknown .*did you mean guide_scale"),
    "unknown option": ("base: BASE\nUNet:\n  dmi: 3", "line 3: UNet.dmi is unknown .*did you mean dim"),
    "unknown deep option": ("base: BASE\nauto_encoder: {ddconfig: {chh: 3}}", "auto_encoder.ddconfig.chh is unknown"),
    "unknown type": ("base: BASE\nsampler: {type: DDMI}", "line 2: sampler.type=DDMI is unknown.*DDIM"),
    "type that is a list": ("base: BASE\nsampler: {type: [DDIM]}", r"sampler.type=\['DDIM'\] is unknown"),
    "section as text": ("base: BASE\nUNet: big", "line 2: UNet=big is not a section"),
    "section null": ("base: BASE\nUNet: null", "line 2: UNet=null is not a section"),
    "cameras list": ("base: BASE\ncameras: [1]", r"line 2: cameras=\[1\] is not a section"),
    "number as list": ("base: BASE\nseed: [1]", r"line 2: seed=\[1\] is not a whole number"),
    "text as number": ("base: BASE\nguide_scale: much", "line 2: guide_scale=much is not a number"),
    "date": ("base: BASE\nseed: 2024-01-02", "line 2: seed=2024-01-02 is not a whole number"),
    "bytes": ("base: BASE\nnegative_prompt: !!binary aGFsbG8=", "line 2: negative_prompt=.* is not text"),
    "set": ("base: BASE\nnegative_prompt: !!set {a, b}", "line 2: negative_prompt=.* is not text"),
    "three faults": (
        "base: BASE\nseed: x\nround: 0\nnegative_prompt: ???",
        "3 settings are wrong: .*line 4.*line 2.*line 3",
    ),
    "task gone": ("base: BASE\nTASK_TYPE: inference_text2vide_entrance", "did you mean inference_text2video_entrance"),
    "task of training": ("base: BASE\nTASK_TYPE: train_t2v_entrance", "TASK_TYPE"),
    "fp16 maybe": ("base: BASE\nuse_fp16: maybe", "line 2: use_fp16=maybe is not true or false"),
    "old and new": ("base: BASE\nmax_frames: 3\ncameras: {num_views: 4}", "means cameras.num_views=3"),
    "vldm and base": ("base: BASE\nvldm_cfg: BASE", "name files below this one; give only one"),
    "vldm gone": ("TASK_TYPE: inference_text2video_entrance\nvldm_cfg: gone.yaml", "vldm_cfg=gone.yaml: no such file"),
    "vldm of images": (
        "TASK_TYPE: inference_text2video_entrance\nvldm_cfg: configs/i2vgen_xl_train.yaml",
        "has TASK_TYPE=train_i2v_entrance",
    ),
}
BYTES = {
    "latin-1": (b"base: BASE\nlog_dir: gr\xf6\xdfe", "line 2: not UTF-8 text"),
    "utf-16": ("base: BASE\n".encode("utf-16"), "not UTF-8 text"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "not UTF-8 text"),
    "half a character": (b"base: BASE\nlog_dir: \xc3", "line 2: not UTF-8 text"),
}
OVERRIDES = {
    "seed=1e30": "seed=.*out of range",
    "seed=99999999999999999999": "seed=.*out of range",
    "seed=0.5": "seed=0.5 is not a whole number",
    "seed=true": "seed=True is not a whole number",
    "seed=": "seed=null is not a whole number",
    "seed": "override 'seed' is not of the form",
    "=1": "override '=1' is not of the form",
    "UNet..dim=1": "is not of the form",
    "seed=[1": "override .*not valid YAML",
    "seed.x=1": "seed=.* is not a whole number",
    "guide_scale=nan": "guide_scale=nan is not a finite number",
    "guide_scale=-inf": "guide_scale=-inf is not a finite number",
    "guide_scale=1e400": "guide_scale=.* is not a finite number",
    "guide_scale=1e20": "guide_scale must lie in",
    "guide_range=[0]": "guide_range=.* a list of 2 values",
    "guide_range=[0.7,0.2]": "guide_range must be two fractions",
    "guide_range=[0,nan]": "guide_range.*finite",
    "cameras.distance=nan": "cameras.distance=nan is not a finite number",
    "cameras.distance=0": "cameras.distance must be positive",
    "cameras.elevation_deg=90": r"cameras.elevation_deg must lie in \(-90, 90\)",
    "cameras.num_views=1e9": "cameras.num_views must lie in",
    "cameras.num_views=-1": "cameras.num_views must be >= 1",
    "cameras.fov_deg=180": r"cameras.fov_deg must lie in \[1, 150\]",
    "cameras.fov_deg=inf": "cameras.fov_deg=inf is not a finite number",
    "cameras.views=[{distance: .inf}]": r"cameras.views\[0\].distance=inf is not a finite",
    "cameras.views=[{height: 3}]": r"cameras.views\[0\] has unknown keys",
    "cameras.views=[3]": r"cameras.views\[0\]=3 is not a section",
    "cameras.views=[{elevation_deg: -90}]": r"cameras.views\[0\].elevation_deg must lie",
    "resolution=[128]": "resolution=.* a list of 2 values",
    "resolution=[128,-128]": "resolution",
    "resolution=[1e9,1e9]": "resolution must lie in",
    "round=0": "round must be >= 1",
    "round=1e12": "round must lie in",
    "batch_size=0": "batch_size must be >= 1",
    "target_fps=x": "target_fps=x is not a whole number",
    "precision=half": "precision=half is unknown",
    "device=gpu": "device=gpu is not available",
    "device=cuda:99": "device=cuda:99 is not available",
    "rasterizer=none": "rasterizer",
    "UNet.dropout=nan": "UNet.dropout=nan is not a finite number",
    "Diffusion.schedule=warp": "Diffusion.schedule=warp is unknown",
    "Diffusion.schedule_param.num_timesteps=0": "num_timesteps must lie in",
    "assets.faces=0": "assets.faces must lie in",
    "lora.rank=-1": "lora.rank must not be negative",
    "known_views=[{image: a.png}]": r"known_views\[0\] must be",
    "prompts=a mug": "prompts=a mug is not a list",
}
WEIGHTS = {
    "gone": (None, "no such file"),
    "empty": (b"", "is empty"),
    "page": (b"<!doctype html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
    "json": (b'{"weight_map": {}}', "JSON text"),
    "gzip": (b"\x1f\x8b" + bytes(30), "a gzip archive"),
    "zip": (b"PK\x05\x06" + bytes(18), "an empty ZIP archive"),
    "stub": (b"\x80\x02.", "cannot be read"),
    "none": (b"\x80\x02N.", "contains no state dict|cannot be read"),
    "memo": (b"\x80\x02h\x05.", "cannot be read|is not loaded"),
    "header of zeros": (bytes(64), "is not a weight file"),
    "header too long": ((2**40).to_bytes(8, "little") + b"{}", "is not a weight file"),
    "header no json": ((8).to_bytes(8, "little") + b"{{{{{{{{", "is not a readable safetensors file"),
}
CONTENTS = {
    "integer keys": ({1: torch.zeros(1)}, "its keys are numbers"),
    "nan step": ({"state_dict": {"a": torch.zeros(1)}, "step": float("nan")}, "its step nan"),
    "no tensors": ({"state_dict": {"a": 1}}, "contains no state dict"),
    "checkpoint": ({"model": {"a": torch.zeros(1)}, "epoch": 1}, "it holds model, epoch"),
    "autoencoder": ({"encoder.conv_in.weight": torch.zeros(1)}, "the weights of an autoencoder"),
    "lora": ({"x.lora_A.weight": torch.zeros(1, 1)}, r"a low-rank addition \(LoRA\)"),
    "complex": ({"a": torch.zeros(1, dtype=torch.complex64)}, "is not a plain tensor"),
}


def cases(folder: Path) -> Iterator[Case]:
    """Write the inputs below `folder`."""
    out = f"log_dir={folder / 'out'}"
    gone = "test_model=gone.pth"  # what is not refused ends there
    for name, (text, says) in {**FILES, **BYTES}.items():
        path = folder / name.replace(" ", "_") / "case.yaml"
        path.parent.mkdir()
        content = text.encode() if isinstance(text, str) else text
        path.write_bytes(content.replace(b"BASE", MINI.encode()))
        yield Case(name=name, command=("inference", "--cfg", str(path), out, gone), code=2, says=says)
    for override, says in OVERRIDES.items():
        yield Case(name=override, command=("inference", "--cfg", MINI, out, gone, override), code=2, says=says)
    yield from _weights(folder, out)
    yield from _read_as_written(folder)


def _weights(folder: Path, out: str) -> Iterator[Case]:
    for number, (name, (content, says)) in enumerate({**WEIGHTS, **CONTENTS}.items()):
        path = folder / ("w.safetensors" if number % 2 else "w.pth")  # the suffix does not matter
        path = path.with_stem(f"weights_{name.replace(' ', '_')}")
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        option = ("test_model", "lora.path")[name == "gone"]
        command = ("inference", "--cfg", MINI, out, "--prompt", "a red mug", f"{option}={path}")
        yield Case(name=f"weights: {name}", command=command, code=2, says=f"{option}=.*{says}")


def _read_as_written(folder: Path) -> Iterator[Case]:
    """Settings that are refused late, so that config.yaml shows how they were read."""
    for number, prompt in enumerate(("a ${seed} mug", "${oc.env:HOME}", "???", "${", "a: b", "~", "null", "[1, 2]")):
        log_dir = folder / f"read_{number}"

        def check(log_dir: Path = log_dir, prompt: str = prompt) -> None:
            written = yaml.safe_load((log_dir / "config.yaml").read_text())
            assert written["prompts"] == [prompt], json.dumps(written["prompts"])

        command = ("inference", "--cfg", MINI, f"log_dir={log_dir}", "--prompt", prompt, "test_model=gone.pth")
        yield Case(name=f"prompt {prompt}", command=command, code=2, says="gone.pth: no such file", check=check)
