"""Orbits in a few large files, which are written and read much faster than thousands of PNG files.

A shard is a safetensors file with `rgba_NVHW4` (uint8 sRGB, straight alpha) and `c2w_NV44` (float32); field of view,
object ids, captions and attributes are one JSON object in its metadata. An object has one caption, or a list of them.

Letters: N objects, V views, H W pixels.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from datasets.base import OrbitData, StoredOrbit
from utils.errors import ConfigError, DataError
from utils.files import atomic_path
from utils.prompts import wordings_of
from utils.registry import DATASETS

HEADER = "orbits"
REMEDY = "delete it and run tools/make_zoo.py --packed again with the same options"


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """Contents of one file; the lists have N entries, like the arrays."""

    rgba_NVHW4: np.ndarray
    c2w_NV44: np.ndarray
    fov_deg: float
    object_ids: list[str]
    captions: list[str | list[str]]
    attributes: list[dict[str, Any]]


def shard_file(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"orbits_{number:05d}.safetensors"


def write_shard(path: str | Path, shard: PackedShard) -> None:
    """Write a shard, completely or not at all."""
    header = {
        "fov_deg": shard.fov_deg,
        "object_ids": shard.object_ids,
        "captions": shard.captions,
        "attributes": shard.attributes,
    }
    # Only one entry: safetensors writes several in any order, but the same objects must give the same bytes.
    metadata = {HEADER: json.dumps(header)}
    # safetensors ignores strides, so the arrays must be contiguous
    arrays = {
        "rgba_NVHW4": np.ascontiguousarray(shard.rgba_NVHW4),
        "c2w_NV44": np.ascontiguousarray(shard.c2w_NV44, dtype=np.float32),
    }
    with atomic_path(path) as part:
        save_file(arrays, str(part), metadata=metadata)


@DATASETS.register
class PackedOrbits(OrbitData):
    """Samples of packed shards."""

    in_memory = True

    @dataclass(frozen=True, kw_only=True)
    class Config(OrbitData.Config):
        """`data_dir_list` contains folders of shards."""

        resolution: list[int] = field(default_factory=lambda: [128, 128])

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.data_dir_list:
                raise ConfigError("data_dir_list is empty; list folders that tools/make_zoo.py --packed wrote")

    def __init__(self, config: Config) -> None:
        """Read the headers of the shards, but no images.

        Raises:
            DataError: a folder contains no shard, or a shard is broken or has too few views.
        """
        super().__init__(config)
        self.files: list[Path] = []
        for folder in config.data_dir_list:
            files = sorted(Path(folder).glob("orbits_*.safetensors"))
            if not files:
                raise DataError(
                    f"data_dir_list={folder}: no orbits_*.safetensors in it; make them with tools/make_zoo.py --packed"
                )
            self.files += files
        self.starts: list[int] = []
        self.fovs: list[float] = []
        self.object_ids: list[str] = []
        self.captions: list[str] = []  # the first ones
        self._wordings: list[tuple[str, ...]] = []
        self.attributes: list[dict[str, Any]] = []
        for file in self.files:
            self._read_header(file)
        self._open: dict[int, Any] = {}

    def _read_header(self, file: Path) -> None:
        try:
            with safe_open(str(file), framework="np") as shard:
                header = json.loads(shard.metadata()[HEADER])
                shapes = {name: tuple(shard.get_slice(name).get_shape()) for name in ("rgba_NVHW4", "c2w_NV44")}
                dtypes = {name: shard.get_slice(name).get_dtype() for name in shapes}
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as err:
            raise DataError(f"{file}: not a complete shard of orbits ({err}); {REMEDY}") from err
        if fault := _fault_in(header, shapes, dtypes):
            raise DataError(f"{file}: not a complete shard of orbits ({fault}); {REMEDY}")
        num_views = shapes["rgba_NVHW4"][1]
        if num_views < self.config.num_views:
            raise DataError(
                f"{file}: {num_views} views per object, but num_views={self.config.num_views}; "
                "lower num_views or render more views"
            )
        self.starts.append(len(self.object_ids))
        self.fovs.append(float(header["fov_deg"]))
        self.object_ids += header["object_ids"]
        wordings = [(one,) if isinstance(one, str) else tuple(one) for one in header["captions"]]
        self.captions += [captions[0] for captions in wordings]
        self._wordings += wordings
        self.attributes += header["attributes"]

    def source_files(self) -> list[Path]:
        return self.files

    def caption(self, index: int) -> str:
        return self.captions[index]

    def wordings(self, index: int) -> tuple[str, ...]:
        return self._wordings[index]

    def stored(self, index: int) -> StoredOrbit:
        number = bisect_right(self.starts, index) - 1
        if number not in self._open:
            self._open[number] = safe_open(str(self.files[number]), framework="np").__enter__()
        shard, row, views = self._open[number], index - self.starts[number], self.config.num_views
        try:
            rgba_VHW4 = shard.get_slice("rgba_NVHW4")[row : row + 1, :views][0]
            c2w_V44 = shard.get_slice("c2w_NV44")[row : row + 1, :views][0]
        except SafetensorError as err:
            raise DataError(f"object {self.object_ids[index]}: {self.files[number]}: {err}; {REMEDY}") from err
        if not np.isfinite(c2w_V44).all():
            raise DataError(f"object {self.object_ids[index]}: {self.files[number]}: a camera is not finite; {REMEDY}")
        return StoredOrbit(rgba_VHW4, c2w_V44, self.fovs[number])

    def __getstate__(self) -> dict[str, Any]:
        # open files cannot be sent to loader processes
        return {**self.__dict__, "_open": {}}


def _fault_in(header: Any, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> str | None:
    """What is wrong with the header or the arrays of a shard, or None."""
    rgba, c2w = shapes["rgba_NVHW4"], shapes["c2w_NV44"]
    if len(rgba) != 5 or rgba[4] != 4 or min(rgba) < 1 or dtypes["rgba_NVHW4"] != "U8":
        return f"rgba_NVHW4 is {dtypes['rgba_NVHW4']} of shape {list(rgba)}"
    if c2w != (*rgba[:2], 4, 4) or dtypes["c2w_NV44"] != "F32":
        return f"c2w_NV44 is {dtypes['c2w_NV44']} of shape {list(c2w)}"
    if not isinstance(header, dict):
        return "its header is not a JSON object"
    for name, kinds in (("object_ids", (str,)), ("captions", (str, list)), ("attributes", (dict,))):
        values = header.get(name)
        if not isinstance(values, list) or len(values) != rgba[0] or not all(isinstance(one, kinds) for one in values):
            return f"{name} is not a list of {rgba[0]} entries of type {' or '.join(kind.__name__ for kind in kinds)}"
    if not all(isinstance(one, str) or wordings_of(one) for one in header["captions"]):
        return "captions contains a list that is empty or has entries without text"
    fov_deg = header.get("fov_deg")
    if isinstance(fov_deg, bool) or not isinstance(fov_deg, int | float) or not 0 < fov_deg < 180:
        return f"fov_deg={fov_deg} is not an angle between 0 and 180"
    return None
