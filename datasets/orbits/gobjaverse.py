"""The data set of orbits in the G-Objaverse layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.base import OrbitData, StoredOrbit
from datasets.orbits.layout import REMEDY, read_camera, read_rgba, view_file
from datasets.orbits.sample import resize_views
from utils.errors import ConfigError, DataError
from utils.files import read_json
from utils.prompts import wordings_of
from utils.registry import DATASETS

# All cameras of an orbit have one field of view; published files have six digits.
FOV_TOLERANCE_DEG = 1e-3


@DATASETS.register
@DATASETS.register(name="Video_I2V_Dataset", background=1.0, empty_captions=True, random_start_view=True)
class VideoDataset(OrbitData):
    """Views 0..num_views-1 of each object, in order, with its caption.

    It is registered a second time with the published settings of the image model.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(OrbitData.Config):
        """Published options, in addition to those of all data sets of orbits.

        data_list: index files, JSON lists of `<dictionary id>/<instance id>`; data_dir_list: one folder for each.
        caption_dir: file (not a folder, despite the published name) with a JSON object from object id to sentence or
            list of sentences; or a list of such files.
        vit_resolution: [width, height] of the copy of view 0 for the image encoder.
        get_first_frame: add that copy as `first_frame_CHW`.
        """

        data_list: list[str] = field(default_factory=list)
        caption_dir: Any = ""  # one file, or a list of them
        vit_resolution: list[int] = field(default_factory=lambda: [224, 224])
        get_first_frame: bool = True
        background: float = 128 / 255

        def __post_init__(self) -> None:
            super().__post_init__()
            if not all(isinstance(file, str) for file in self.caption_files):
                raise ConfigError(f"caption_dir must be a file or a list of files, got {self.caption_dir}")
            if len(self.vit_resolution) != 2 or min(self.vit_resolution) < 1:
                raise ConfigError(f"vit_resolution must be [width, height] in pixels, got {list(self.vit_resolution)}")
            if len(self.data_list) != len(self.data_dir_list):
                raise ConfigError(
                    f"data_list has {len(self.data_list)} entries and data_dir_list {len(self.data_dir_list)}; "
                    "list one folder for each index file"
                )

        @property
        def caption_files(self) -> list[str]:
            """The files of `caption_dir`, as a list."""
            return list(self.caption_dir) if isinstance(self.caption_dir, list) else [self.caption_dir]

    def __init__(self, config: Config) -> None:
        """Read the index and captions.

        Raises:
            DataError: an index or captions file is missing or malformed, a folder is missing, or the index is empty.
        """
        super().__init__(config)
        self.entries: list[tuple[Path, str]] = []
        for index_file, folder in zip(config.data_list, config.data_dir_list, strict=True):
            index = read_json(index_file, option="data_list")
            if not isinstance(index, list) or not all(isinstance(entry, str) for entry in index):
                raise DataError(
                    f"data_list={index_file}: not a JSON list of object ids; write it with "
                    f"tools/index_dataset.py {folder}"
                )
            if not Path(folder).is_dir():
                raise DataError(f"data_dir_list={folder}: no such folder; name the one that contains <dictionary id>/")
            self.entries += [(Path(folder), entry.strip("/")) for entry in index]
        if not self.entries:
            raise DataError(
                f"data_list={list(config.data_list)} lists no objects; write an index with "
                "tools/index_dataset.py, or make data with tools/make_zoo.py"
            )
        self.object_ids = [object_id for _, object_id in self.entries]
        self.captions: dict[str, Any] = {} if config.empty_captions else read_captions(config.caption_files)

    def stored(self, index: int) -> StoredOrbit:
        folder, object_id = self.entries[index]
        with _naming(object_id):
            return read_orbit(folder / object_id, num_views=self.config.num_views)

    def caption(self, index: int) -> str:
        return self.wordings(index)[0]

    def wordings(self, index: int) -> tuple[str, ...]:
        object_id = self.object_ids[index]
        found = wordings_of(self.captions.get(object_id))
        if not found:
            files = ", ".join(self.config.caption_files)
            raise DataError(f"object {object_id}: no caption in {files}; add one, or remove the object from the index")
        return found

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As OrbitData does; with `get_first_frame` also `first_frame_CHW`, which is view 0 at `vit_resolution`."""
        sample = super().__getitem__(index)
        if self.config.get_first_frame:
            view_HWC = sample["views_VCHW"][:1].permute(0, 2, 3, 1).numpy()
            resized_HWC = resize_views(view_HWC, tuple(self.config.vit_resolution))[0]
            sample["first_frame_CHW"] = torch.from_numpy(np.ascontiguousarray(resized_HWC.transpose(2, 0, 1)))
        return sample

    def source_files(self) -> Iterator[Path]:
        """View 0 of each object."""
        return (view_file(folder / object_id, 0) for folder, object_id in self.entries)

    def identity(self, index: int) -> Any:
        """Reads no files; a missing caption is reported when the sample is read."""
        folder, object_id = self.entries[index]
        return str(folder), object_id, self.captions.get(object_id)


@contextmanager
def _naming(object_id: str) -> Iterator[None]:
    """Put the object id at the start of errors."""
    try:
        yield
    except DataError as err:
        raise DataError(f"object {object_id}: {err}") from err


def read_captions(files: list[str]) -> dict[str, Any]:
    """Captions by object id, from all files: one, or a list of them.

    Raises:
        DataError: a file is missing or malformed, or two files have different captions for one object.
    """
    captions: dict[str, Any] = {}
    for file in files:
        found = read_json(file, option="caption_dir")
        if not isinstance(found, dict):
            raise DataError(f"caption_dir={file}: not a JSON object from object id to caption")
        other = next((name for name in found.keys() & captions.keys() if found[name] != captions[name]), None)
        if other is not None:
            raise DataError(f"caption_dir={file}: {other} has another caption in an earlier file; keep only one")
        captions |= found
    return captions


def read_orbit(object_dir: Path, *, num_views: int) -> StoredOrbit:
    """Views and cameras of one object.

    Raises:
        DataError: a file is missing or broken, or the views differ in size or field of view.
    """
    views = [read_rgba(view_file(object_dir, view)) for view in range(num_views)]
    cameras = [read_camera(view_file(object_dir, view, ".json")) for view in range(num_views)]
    for view, image in enumerate(views):
        if image.shape != views[0].shape:
            raise DataError(
                f"{view_file(object_dir, view)}: {image.shape[1]} x {image.shape[0]} pixels, but view 0 has "
                f"{views[0].shape[1]} x {views[0].shape[0]}; {REMEDY}"
            )
        if abs(cameras[view].fov_deg - cameras[0].fov_deg) > FOV_TOLERANCE_DEG:
            raise DataError(
                f"{view_file(object_dir, view, '.json')}: field of view {cameras[view].fov_deg:.3f}, but "
                f"view 0 has {cameras[0].fov_deg:.3f} degrees; {REMEDY}"
            )
    return StoredOrbit(np.stack(views), np.stack([camera.c2w_44 for camera in cameras]), cameras[0].fov_deg)
