"""Objects that training never saw, read from the folders that the tools write.

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
    """One object as it really looks.

    Attributes:
        object_id: `<dictionary id>/<instance id>`.
        start_view: which stored view is view 0 here.
        views_VCHW: in [0, 1], over the background that the model knows.
        masks_V1HW: coverage in [0, 1]; None where the pictures have no alpha.
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
    """The first objects of a folder, each read when it is asked for.

    Args:
        folder: packed orbits, or the G-Objaverse layout, with or without an index.json.
        cfg: says size, number of views and background.
        limit: objects at most.
        start_seed: let each orbit begin at a view drawn with this seed; images roll and cameras stay, as in the
            training of an image model. None: at view 0.
        scratch: a folder for the index of a data set that has none.
        option: what named the folder, for messages.
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
        """Of all objects, in order."""
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
    """The grey that a model's views lie on: that of its training data; white where no data set is named."""
    return float(cfg.vid_dataset.options.background) if cfg.vid_dataset else WHITE


def open_orbits(folder: Path, cfg: RunConfig, *, scratch: Path, option: str) -> OrbitData:
    """A data set of a folder, without captions.

    Raises:
        DataError: the folder holds neither packed orbits nor the G-Objaverse layout.
    """
    options = {**_common(cfg), "empty_captions": True}
    if is_packed(folder):
        return DATASETS.build({"type": "PackedOrbits", "data_dir_list": [str(folder)], **options}, where=option)
    index = folder / "index.json"
    if not index.is_file():
        found = list(find_objects(folder)) if folder.is_dir() else []
        if not found:
            raise DataError(f"{option} {folder}: holds no orbits; make some with tools/make_zoo.py or render_orbit.py")
        index = scratch / f"{option.strip('-')}_index.json"
        write_json(index, found)
    return DATASETS.build({"type": "VideoDataset", **_layout(folder, index), **options}, where=option)


def open_held_out(folder: Path, cfg: RunConfig) -> tuple[OrbitData, list[dict[str, Any]]]:
    """The data set of a folder that make_zoo.py wrote, packed or not, and the attributes of its objects.

    Raises:
        DataError: the folder holds neither.
    """
    if is_packed(folder):
        options = {"data_dir_list": [str(folder)], **_common(cfg)}
        dataset = DATASETS.build({"type": "PackedOrbits", **options}, where="held-out")
        return dataset, dataset.attributes
    if not (folder / "attributes.json").is_file():
        raise DataError(f"--held-out {folder}: no orbits_*.safetensors and no attributes.json; see tools/make_zoo.py")
    options = {**_layout(folder, folder / "index.json"), "caption_dir": str(folder / "captions.json"), **_common(cfg)}
    dataset = DATASETS.build({"type": "VideoDataset", **options}, where="held-out")
    attributes = read_json(folder / "attributes.json", option="--held-out")
    return dataset, [attributes[object_id] for object_id in dataset.object_ids]


def mean_image(orbits: TrueOrbits) -> Tensor:
    """The mean over all views of all objects: (3, H, W)."""
    return torch.stack([orbit.views_VCHW.mean(dim=0) for orbit in orbits]).mean(dim=0)


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed orbits."""
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
