"""Orbits in the G-Objaverse layout as training samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.orbits.layout import REMEDY, read_camera, read_rgba, view_file
from datasets.orbits.sample import OrbitOptions, orbit_sample, resize_views, write_prompt
from utils.errors import ConfigError, DataError
from utils.files import read_json
from utils.registry import DATASETS

# Cameras of one orbit agree in their field of view; published files carry six digits.
FOV_TOLERANCE_DEG = 1e-3


@DATASETS.register
@DATASETS.register(name="Video_I2V_Dataset", background=1.0, empty_captions=True, random_start_view=True)
class VideoDataset(Dataset):
    """Views 0..num_views-1 of each object, in order, with its caption.

    Under its second name it has the published settings of the image model.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(OrbitOptions):
        """Published options beside those of all data sets of orbits.

        data_list: index files, JSON lists of `<dictionary id>/<instance id>`; data_dir_list: the folder of each.
        caption_dir: JSON object from object id to sentence (the published key, though it is a file); or several files.
        vit_resolution: [width, height] of the image encoder's copy of view 0.
        get_first_frame: add that copy as `first_frame_CHW`.
        prepare_lgm: add the views as stored, `full_rgba_V4HW`, straight alpha: targets of the Gaussian head.
        """

        data_list: list[str] = field(default_factory=list)
        caption_dir: Any = ""  # one file, or a list of them
        resolution: list[int] = field(default_factory=lambda: [256, 256])
        vit_resolution: list[int] = field(default_factory=lambda: [224, 224])
        get_first_frame: bool = True
        prepare_lgm: bool = False
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
                    "give each index file its folder"
                )

        @property
        def caption_files(self) -> list[str]:
            """Those that `caption_dir` names."""
            return list(self.caption_dir) if isinstance(self.caption_dir, list) else [self.caption_dir]

    def __init__(self, config: Config) -> None:
        """Read the index and captions.

        Raises:
            DataError: an index or captions file is missing or malformed, a folder is missing, or nothing is listed.
        """
        self.config = config
        self.entries: list[tuple[Path, str]] = []
        for index_file, folder in zip(config.data_list, config.data_dir_list, strict=True):
            index = read_json(index_file, option="data_list")
            if not isinstance(index, list) or not all(isinstance(entry, str) for entry in index):
                raise DataError(
                    f"data_list={index_file}: not a JSON list of object ids; make it with "
                    f"tools/index_dataset.py {folder}"
                )
            if not Path(folder).is_dir():
                raise DataError(f"data_dir_list={folder}: no such folder; give the one that holds <dictionary id>/")
            self.entries += [(Path(folder), entry.strip("/")) for entry in index]
        if not self.entries:
            raise DataError(
                f"data_list={list(config.data_list)} lists no objects; make an index with "
                "tools/index_dataset.py, or data with tools/make_zoo.py"
            )
        self.object_ids = [object_id for _, object_id in self.entries]
        self.captions: dict[str, str] = {} if config.empty_captions else read_captions(config.caption_files)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, see `datasets.orbits.sample.orbit_sample`, and what the options add.

        Raises:
            DataError: a file of the sample is missing or broken, or it has no caption; names the object.
        """
        folder, object_id = self.entries[index]
        try:
            rgba_VHW4, c2w_V44, fov_deg = read_orbit(folder / object_id, num_views=self.config.num_views)
            caption = self.caption_of(object_id)
        except DataError as err:
            raise DataError(f"object {object_id}: {err}") from err
        rgba_VHW4 = self.config.scaled(rgba_VHW4, object_id)
        start_view = self.config.draw_start_view()
        sample = orbit_sample(
            rgba_VHW4,
            c2w_V44,
            fov_deg=fov_deg,
            caption=caption,
            object_id=object_id,
            resolution=tuple(self.config.resolution),
            background=self.config.background,
            start_view=start_view,
        )
        if self.config.get_first_frame:
            view_HWC = sample["views_VCHW"][:1].permute(0, 2, 3, 1).numpy()
            resized_HWC = resize_views(view_HWC, tuple(self.config.vit_resolution))[0]
            sample["first_frame_CHW"] = torch.from_numpy(np.ascontiguousarray(resized_HWC.transpose(2, 0, 1)))
        if self.config.prepare_lgm:
            full = np.ascontiguousarray(np.roll(rgba_VHW4, -start_view, axis=0).transpose(0, 3, 1, 2))
            sample["full_rgba_V4HW"] = torch.from_numpy(full).float() / 255.0
        return sample

    def picture_files(self) -> Iterator[Path]:
        """View 0 of each object, whose change tells that its pictures were made anew."""
        return (view_file(folder / object_id, 0) for folder, object_id in self.entries)

    def caption_of(self, object_id: str) -> str:
        """The sentence with its suffix.

        Raises:
            DataError: there is none.
        """
        if self.config.empty_captions:
            return ""
        caption = self.captions.get(object_id)
        if not isinstance(caption, str) or not caption.strip():
            files = ", ".join(self.config.caption_files)
            raise DataError(f"no caption in {files}; add one, or take the object out of the index")
        return write_prompt(caption, suffix=self.config.caption_suffix, max_words=self.config.max_words)


def read_captions(files: list[str]) -> dict[str, str]:
    """Sentences by object id, of all files.

    Raises:
        DataError: a file is missing or malformed, or two say different things of one object.
    """
    captions: dict[str, str] = {}
    for file in files:
        found = read_json(file, option="caption_dir")
        if not isinstance(found, dict):
            raise DataError(f"caption_dir={file}: not a JSON object from object id to sentence")
        other = next((name for name in found.keys() & captions.keys() if found[name] != captions[name]), None)
        if other is not None:
            raise DataError(f"caption_dir={file}: {other} has another caption in a file before; name each object once")
        captions |= found
    return captions


def read_orbit(object_dir: Path, *, num_views: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Views and cameras of one object.

    Returns:
        rgba_VHW4 (uint8, straight alpha), c2w_V44 (float32), fov_deg.

    Raises:
        DataError: a file is missing or broken, or the views do not fit together.
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
    return np.stack(views), np.stack([camera.c2w_44 for camera in cameras]), cameras[0].fov_deg
