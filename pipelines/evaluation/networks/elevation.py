"""Measure the estimated elevation of rendered views against that of their cameras.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.evaluation.networks.grouping import grouped
from pipelines.sampling.input_elevation import check_estimator
from utils.cameras import camera_elevations_deg
from utils.devices import pick_device
from utils.object_image import over_white, recentre
from utils.registry import DATASETS
from utils.settings.run import RunConfig

WAYS = ("rendered", "centred")  # the view as it is, and as sampling prepares a picture (recenter=true)


@dataclass(frozen=True, kw_only=True)
class ElevationErrors:
    """The results of all objects, one entry per object.

    Attributes:
        folders: folder of each object.
        attributes: known attributes of each object.
        true_deg: elevations of the cameras of its views.
        estimated_deg: estimates for its views, by the way in which they were prepared (`WAYS`).
    """

    folders: list[str]
    attributes: list[Mapping[str, Any]]
    true_deg: list[Tensor]
    estimated_deg: dict[str, list[Tensor]]

    def rows(self, *, by: str = "") -> dict[str, dict[str, float]]:
        """Compute the figures of each folder, and of its objects with each value of the attribute `by`."""
        return {name: self._row(places) for name, places in grouped(self.folders, self.attributes, by=by).items()}

    def _row(self, places: Sequence[int]) -> dict[str, float]:
        true_deg = torch.cat([self.true_deg[index] for index in places])
        row: dict[str, float] = {"objects": len(places), "views": len(true_deg)}
        for way, estimated_deg in self.estimated_deg.items():
            error_deg = (torch.cat([estimated_deg[index] for index in places]) - true_deg).abs()
            row[f"{way}_median_deg"] = float(error_deg.quantile(0.5))
            row[f"{way}_mean_deg"] = float(error_deg.mean())
            row[f"{way}_within_10_deg"] = float((error_deg <= 10).float().mean())
        row["constant_median_deg"] = float((true_deg - true_deg.quantile(0.5)).abs().quantile(0.5))
        return row


@torch.no_grad()
def measure_elevations(cfg: RunConfig, folders: Sequence[Path], *, num_objects: int) -> ElevationErrors:
    """Estimate the elevation of every view of packed orbits, in float32.

    Args:
        cfg: `elevation` with its weights, `object_share`, and `cameras.num_views`, the number of views
            of each orbit that are read.
        num_objects: largest number of objects of each folder.

    Raises:
        ConfigError, DataError: the weights are missing, or a folder does not fit.
    """
    check_estimator(cfg)
    device = pick_device(cfg.device)
    network = cfg.elevation.build().to(device).eval()
    size, share = network.config.size, cfg.object_share
    found = ElevationErrors(folders=[], attributes=[], true_deg=[], estimated_deg={way: [] for way in WAYS})
    for folder in folders:
        options = {"data_dir_list": [str(folder)], "resolution": [size, size], "empty_captions": True}
        options["num_views"] = cfg.cameras.num_views
        orbits = DATASETS.build({"type": "PackedOrbits", **options}, where="--data")
        for number in tqdm(range(min(num_objects, len(orbits))), unit="object", desc=folder.name):
            rgba_VHW4, c2w_V44, _ = orbits.stored(number)
            found.folders.append(folder.name)
            found.attributes.append(orbits.attributes[number])
            found.true_deg.append(camera_elevations_deg(torch.from_numpy(c2w_V44)).float())
            for way in WAYS:
                views_V3HW = prepared(rgba_VHW4, way=way, size=size, object_share=share).to(device)
                found.estimated_deg[way].append(network.estimate(views_V3HW).cpu())
    return found


def prepared(rgba_VHW4: np.ndarray, *, way: str, size: int, object_share: float) -> Tensor:
    """Return views over white, as rendered or centred as `utils.object_image.input_view` does: (V, 3, size, size).

    A view without any object stays as it is.
    """
    object_size = max(1, round(object_share * size))
    pictures = []
    for rgba_HW4 in rgba_VHW4:
        if way == "centred" and rgba_HW4[..., 3].any():
            rgba_HW4 = recentre(rgba_HW4, size=size, object_size=object_size)
        pictures.append(over_white(rgba_HW4))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def elevation_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Format the figures as text, in degrees."""
    width = max(map(len, rows), default=0)
    lines = [
        f"{'':{width}}                 as rendered               centred                   constant",
        f"{'':{width}} objects  views  median   mean  within 10  median   mean  within 10  median",
    ]
    for name, row in rows.items():
        cells = "".join(
            f"{row[f'{way}_median_deg']:8.1f}{row[f'{way}_mean_deg']:7.1f}{row[f'{way}_within_10_deg']:11.0%}"
            for way in WAYS
        )
        lines.append(f"{name:{width}} {row['objects']:7}{row['views']:7}{cells}{row['constant_median_deg']:8.1f}")
    return "\n".join(lines)
