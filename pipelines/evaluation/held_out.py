"""Objects that are not in the training data, read from folders that the tools write.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.base import OrbitData
from datasets.orbits.layout import find_objects
from utils.errors import DataError
from utils.files import read_json, write_json
from utils.registry import DATASETS
from utils.settings.run import RunConfig

WHITE = 1.0


@dataclass(frozen=True, kw_only=True)
class TrueOrbit:
    """The true views of one object.

    Attributes:
        object_id: `<dictionary id>/<instance id>`.
        start_view: index of the stored view that is view 0 here.
        views_VCHW: images in [0, 1], over the background of the training data.
        masks_V1HW: coverage in [0, 1]; None if the images have no alpha.
        c2w_V44: cameras.
        fov_deg: field of view.
    """

    object_id: str
    start_view: int
    views_VCHW: Tensor
    masks_V1HW: Tensor | None
    c2w_V44: Tensor
    fov_deg: float


class TrueOrbits:
    """The first objects of a folder; each is read when it is needed.

    Args:
        folder: packed orbits, or the G-Objaverse layout, with or without an index.json.
        cfg: the run's configuration, with size, number of views and background.
        limit: maximum number of objects.
        start_seed: seed for a random start view of each orbit; images are rolled, but cameras do not change, as in the
            training of an image model. None: start at view 0.
        scratch: a folder for the index of a data set without one.
        option: the option with the folder, for messages.
    """

    def __init__(
        self, folder: Path, cfg: RunConfig, *, limit: int, scratch: Path, option: str, start_seed: int | None = None
    ) -> None:
        self.dataset = open_orbits(folder, cfg, scratch=scratch, option=option)
        self.num_objects = min(limit, len(self.dataset))
        self.starts = [0] * self.num_objects
        if start_seed is not None:
            generator = torch.Generator().manual_seed(start_seed)
            self.starts = torch.randint(cfg.cameras.num_views, (self.num_objects,), generator=generator).tolist()

    def __len__(self) -> int:
        return self.num_objects

    @property
    def object_ids(self) -> list[str]:
        """Ids of all objects, in order."""
        return list(self.dataset.object_ids[: len(self)])

    def __getitem__(self, index: int) -> TrueOrbit:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample, start = self.dataset[index], self.starts[index]
        masks_V1HW = sample["masks_V1HW"].roll(-start, dims=0)
        return TrueOrbit(
            object_id=sample["object_id"],
            start_view=start,
            views_VCHW=sample["views_VCHW"].clamp(0, 1).roll(-start, dims=0),
            masks_V1HW=masks_V1HW if bool((masks_V1HW < 1).any()) else None,
            c2w_V44=sample["c2w_V44"],
            fov_deg=sample["fov_deg"],
        )

    def __iter__(self) -> Iterator[TrueOrbit]:
        return (self[index] for index in range(len(self)))


def background_of(cfg: RunConfig) -> float:
    """Return the grey background of the training data, or white without a data set."""
    return float(cfg.vid_dataset.options.background) if cfg.vid_dataset else WHITE


def open_orbits(folder: Path, cfg: RunConfig, *, scratch: Path, option: str) -> OrbitData:
    """Open a folder as a data set without captions.

    Raises:
        DataError: the folder contains neither packed orbits nor the G-Objaverse layout.
    """
    options = {**_common(cfg), "empty_captions": True}
    if is_packed(folder):
        return DATASETS.build({"type": "PackedOrbits", "data_dir_list": [str(folder)], **options}, where=option)
    index = folder / "index.json"
    if not index.is_file():
        found = list(find_objects(folder)) if folder.is_dir() else []
        if not found:
            raise DataError(
                f"{option} {folder}: contains no orbits; make them with tools/make_zoo.py or render_orbit.py"
            )
        index = scratch / f"{option.strip('-')}_index.json"
        write_json(index, found)
    return DATASETS.build({"type": "VideoDataset", **_layout(folder, index), **options}, where=option)


def open_held_out(folder: Path, cfg: RunConfig) -> tuple[OrbitData, list[dict[str, Any]]]:
    """Open a folder of tools/make_zoo.py, packed or not; returns the data set and the attributes of its objects.

    Raises:
        DataError: the folder contains no such data.
    """
    if is_packed(folder):
        options = {"data_dir_list": [str(folder)], **_common(cfg)}
        dataset = DATASETS.build({"type": "PackedOrbits", **options}, where="held-out")
        return dataset, dataset.attributes
    if not (folder / "attributes.json").is_file():
        raise DataError(
            f"--held-out {folder}: no orbits_*.safetensors and no attributes.json; make it with tools/make_zoo.py"
        )
    options = {**_layout(folder, folder / "index.json"), "caption_dir": str(folder / "captions.json"), **_common(cfg)}
    dataset = DATASETS.build({"type": "VideoDataset", **options}, where="held-out")
    attributes = read_json(folder / "attributes.json", option="--held-out", kind=dict)
    missing = [object_id for object_id in dataset.object_ids if not isinstance(attributes.get(object_id), dict)]
    if missing:
        raise DataError(f"--held-out {folder / 'attributes.json'}: no attributes of {missing[0]}; make the data again")
    return dataset, [attributes[object_id] for object_id in dataset.object_ids]


def mean_image(orbits: TrueOrbits) -> Tensor:
    """Compute the mean over all views of all objects: (3, H, W)."""
    return torch.stack([orbit.views_VCHW.mean(dim=0) for orbit in orbits]).mean(dim=0)


def is_packed(folder: Path) -> bool:
    """Whether a folder contains packed orbits."""
    return any(folder.glob("orbits_*.safetensors"))


def _common(cfg: RunConfig) -> dict[str, Any]:
    return {
        "resolution": list(cfg.resolution),
        "num_views": cfg.cameras.num_views,
        "background": background_of(cfg),
        "caption_suffix": "",
    }


def _layout(folder: Path, index: Path) -> dict[str, Any]:
    return {"data_list": [str(index)], "data_dir_list": [str(folder)], "get_first_frame": False}
