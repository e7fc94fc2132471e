"""Bad training data and states: through train_net.py and tools/index_dataset.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from datasets.orbits.layout import VIEW_FOLDER, view_file
from tests.campaign import Case, run_command
from tests.tiny import write_config
from tests.tiny_orbits import training_config, write_files, write_orbits

HEADER = {"fov_deg": 40.0, "object_ids": ["a", "b"], "captions": ["x", "y"], "attributes": [{}, {}]}
RGBA = np.full((2, 3, 8, 8, 4), 255, np.uint8)
C2W = np.tile(np.eye(4, dtype=np.float32), (2, 3, 1, 1))
HEADERS: dict[str, Any] = {
    "ids number": HEADER | {"object_ids": 3},
    "ids of numbers": HEADER | {"object_ids": [1, 2]},
    "ids too few": HEADER | {"object_ids": ["a"]},
    "captions null": HEADER | {"captions": None},
    "captions without text": HEADER | {"captions": [["x"], [1]]},
    "attributes of text": HEADER | {"attributes": ["x", "y"]},
    "fov NaN": HEADER | {"fov_deg": float("nan")},
    "fov infinite": HEADER | {"fov_deg": float("inf")},
    "fov text": HEADER | {"fov_deg": "x"},
    "fov true": HEADER | {"fov_deg": True},
    "fov 180": HEADER | {"fov_deg": 180},
    "fov missing": {name: value for name, value in HEADER.items() if name != "fov_deg"},
    "list": [HEADER],
    "null": None,
}
ARRAYS = {
    "four dimensions": {"rgba_NVHW4": RGBA[0], "c2w_NV44": C2W},
    "three channels": {"rgba_NVHW4": np.ascontiguousarray(RGBA[..., :3]), "c2w_NV44": C2W},
    "other numbers": {"rgba_NVHW4": RGBA, "c2w_NV44": C2W[:1]},
    "float pictures": {"rgba_NVHW4": RGBA.astype(np.float32), "c2w_NV44": C2W},
    "double cameras": {"rgba_NVHW4": RGBA, "c2w_NV44": C2W.astype(np.float64)},
    "no cameras": {"rgba_NVHW4": RGBA},
}
STATES: dict[str, dict[str, Any]] = {
    "step negative": {"step": -5}, "step huge": {"step": 10**9}, "step text": {"step": "x"},
    "step null": {"step": None},
    "settings null": {"settings": None}, "settings list": {"settings": []}, "samples null": {"num_samples": None},
    "samples float": {"num_samples": 1.5}, "averaged null": {"num_averaged": None}, "averaged -1": {"num_averaged": -1},
    "elapsed text": {"elapsed_s": "1"}, "elapsed NaN": {"elapsed_s": float("nan")}, "scaler null": {"scaler": None},
    "layout 2": {"layout": 2}, "layout null": {"layout": None}, "per_step -1": {"per_step": -1},
}  # fmt: skip
STATE_FILES = {
    "no json": ("state.json", b"{"),
    "json list": ("state.json", b"[1]"),
    "json deep": ("state.json", b"[" * 100_000),
    "json latin": ("state.json", b'"\xe9"'),
    "model empty": ("model.safetensors", b""),
    "model page": ("model.safetensors", b"<html>"),
    "average gone": ("average.safetensors", None),
    "optimizer empty": ("optimizer.pt", b""),
    "optimizer stub": ("optimizer.pt", b"\x80\x02."),
    "optimizer none": ("optimizer.pt", b"\x80\x02N."),
    "optimizer gone": ("optimizer.pt", None),
}
INDEXES = {
    "no json": ("{", "not valid JSON"),
    "object": ("{}", "not a JSON list of object ids"),
    "numbers": ("[1, 2]", "not a JSON list of object ids"),
    "empty": ("[]", "lists no objects"),
    "null": ("null", "not a JSON list of object ids"),
}
CAPTIONS = {
    "list": ("[]", "not a JSON object"),
    "no json": ("x", "not valid JSON"),
    "null": ("null", "not a JSON object"),
}
OPTIONS = {
    "lr=nan": "lr=nan is not a finite number",
    "lr=0": "lr must be positive",
    "lr=1e10": "lr must be positive and at most",
    "betas=[0.9,1]": "betas must lie in",
    "betas=[0.9]": "betas=.* a list of 2 values",
    "eps=nan": "eps=nan is not a finite number",
    "grad_clip=-1": "grad_clip must not be negative",
    "max_minutes=nan": "max_minutes=nan is not a finite number",
    "num_steps=0": "num_steps must be >= 1",
    "num_steps=1e20": "num_steps=.*out of range|num_steps must lie",
    "batch_sizes={3: 0}": "batch_sizes.3=0 must be",
    "batch_sizes={three: 4}": "batch_sizes.three=4 must be",
    "batch_sizes=[4]": "batch_sizes=.* is not a section",
    "frame_lens=[]": "frame_lens=.* is not valid",
    "frame_lens=[1,3]": "img_dataset is empty",
    "num_workers=-1": "num_workers must not be negative",
    "prefetch_factor=0": "prefetch_factor must be >= 1",
    "resume=nowhere": "resume=nowhere contains no state",
    "resume=": "resume=null is not text",
    "tracker=nowhere": "tracker=nowhere is unknown",
    "decay_mode=up": "decay_mode=up is unknown",
    "TASK_TYPE=train_t2v_entrence": "did you mean train_t2v_entrance",
    "objective={p_zero: 1}": "objective.p_zero is unknown|p_zero",
    "device=cuda:77": "device=cuda:77 is not available",
    "vid_dataset.num_views=50": "3 views per object, but num_views=50",
    "vid_dataset.data_dir_list=[nowhere]": "data_dir_list=nowhere: no orbits_",
    "vid_dataset.data_dir_list=[]": "data_dir_list is empty",
    "log_dir=/dev/null": "log_dir=/dev/null cannot be written",
}
CLASSIFIER = {"TASK_TYPE": "train_classifier_entrance", "classifier": {"type": "ViewClassifier", "width": 8}}


def cases(folder: Path) -> Iterator[Case]:
    """Write the inputs below `folder`."""
    write_orbits(folder / "orbits", copies=1)
    cfg = str(write_config(folder / "run.yaml", training_config(folder, **CLASSIFIER, num_steps=1)))
    for number, (override, says) in enumerate(OPTIONS.items()):
        command = ("train_net", "--cfg", cfg, f"log_dir={folder / f'option_{number}'}", override)
        yield Case(name=override, command=command, code=2, says=says)
    yield from _shards(folder, cfg)
    yield from _lists(folder)
    yield from _states(folder, cfg)
    yield from _orbits(folder)


def _shards(folder: Path, cfg: str) -> Iterator[Case]:
    whole = {"rgba_NVHW4": RGBA, "c2w_NV44": C2W}
    contents = {f"header: {name}": (whole, json.dumps(header)) for name, header in HEADERS.items()}
    contents |= {f"arrays: {name}": (arrays, json.dumps(HEADER)) for name, arrays in ARRAYS.items()}
    contents["header: no json"] = (whole, "{")
    for number, (name, (arrays, header)) in enumerate(contents.items()):
        place = folder / f"shard_{number}"
        place.mkdir()
        save_file(arrays, place / "orbits_00000.safetensors", {"orbits": header})
        command = ("train_net", "--cfg", cfg, f"log_dir={place / 'out'}", f"vid_dataset.data_dir_list=[{place}]")
        yield Case(name=f"shard: {name}", command=command, code=2, says="not a complete shard of orbits")


def _lists(folder: Path) -> Iterator[Case]:
    section = write_files(folder / "files")
    cfg = str(write_config(folder / "files.yaml", training_config(folder, **CLASSIFIER, vid_dataset=section)))
    for key, contents in (("data_list", INDEXES), ("caption_dir", CAPTIONS)):
        for number, (name, (content, says)) in enumerate(contents.items()):
            file = folder / f"{key}_{number}.json"
            file.write_text(content)
            value = f"[{file}]" if key == "data_list" else str(file)
            command = ("train_net", "--cfg", cfg, f"log_dir={file.with_suffix('')}", f"vid_dataset.{key}={value}")
            yield Case(name=f"{key}: {name}", command=command, code=2, says=says)


def _states(folder: Path, cfg: str) -> Iterator[Case]:
    run_command("train_net", "--cfg", cfg)
    state = folder / "run" / "state" / "step_00000001"
    numbers = json.loads((state / "state.json").read_text())

    def damaged(number: int, damage: Callable[[Path], object]) -> tuple[str, ...]:
        log_dir = folder / f"state_{number}"
        shutil.copytree(state, log_dir / "state" / state.name)
        damage(log_dir / "state" / state.name)
        return ("train_net", "--cfg", cfg, "num_steps=2", f"log_dir={log_dir}")

    changes: dict[str, Callable[[Path], object]] = {}
    for name, change in STATES.items():
        changes[name] = lambda path, change=change: (path / "state.json").write_text(json.dumps(numbers | change))
    for name, (file, content) in STATE_FILES.items():
        changes[name] = lambda path, file=file, content=content: (
            (path / file).unlink() if content is None else (path / file).write_bytes(content)
        )
    for name, content in {"list": [1], "text keys": {"a": 1}, "no moments": {0: {"step": torch.ones(())}}}.items():
        changes[f"optimizer {name}"] = lambda path, content=content: torch.save(content, path / "optimizer.pt")
    for number, (name, damage) in enumerate(changes.items()):
        yield Case(name=f"state: {name}", command=damaged(number, damage), code=2, says="resume: .*resume=never")


def _orbits(folder: Path) -> Iterator[Case]:
    """Orbits that tools/index_dataset.py must not list."""

    def remove_object(path: Path) -> None:
        shutil.rmtree(path / VIEW_FOLDER)
        (path / VIEW_FOLDER).mkdir()

    damages: dict[str, Callable[[Path], object]] = {
        "view gone": lambda path: view_file(path, 1).unlink(),
        "view empty": lambda path: view_file(path, 1).write_bytes(b""),
        "view page": lambda path: view_file(path, 1).write_bytes(b"<html>"),
        "camera gone": lambda path: view_file(path, 1, ".json").unlink(),
        "camera list": lambda path: view_file(path, 1, ".json").write_text("[]"),
        "camera deep": lambda path: view_file(path, 1, ".json").write_text("[" * 100_000),
        "camera of another": lambda path: shutil.copy(view_file(path, 0, ".json"), view_file(path, 1, ".json")),
        "no views": remove_object,
    }
    for number, (name, damage) in enumerate(damages.items()):
        place = folder / f"orbit_{number}"
        shutil.copytree(folder / "files" / "0" / "0", place / "0" / "0")
        damage(place / "0" / "0")
        command = ("tools.index_dataset", str(place), "--views", "3", "--workers", "1")

        def check(place: Path = place) -> None:
            assert not (place / "index.json").exists(), "an index was written"

        yield Case(name=f"orbit: {name}", command=command, code=2, says="0 listed: nothing to write", check=check)
