"""Measure how well an autoencoder restores the views of each object.

Letters: O objects, V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.encoders import Autoencoder
from pipelines.evaluation.held_out import background_of
from pipelines.evaluation.image_metrics import ViewScores, join, score_views
from pipelines.evaluation.networks.grouping import grouped
from utils.devices import pick_device
from utils.errors import ConfigError
from utils.registry import DATASETS
from utils.settings.run import RunConfig

FIGURES = ("psnr", "psnr_of_views", "masked_psnr", "ssim")


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The results of O objects.

    Attributes:
        folders: folder of each object.
        attributes: known attributes of each object.
        scores: scores of all views of each object, with O = 1.
        color_shift_O: error of the mean colour over the object's pixels, from 0 to 255, a mean over views and channels.
        first_pairs: view 0 of each object, true and restored, (3, H, W).
    """

    folders: list[str]
    attributes: list[dict[str, Any]]
    scores: list[ViewScores]
    color_shift_O: list[float]
    first_pairs: list[tuple[Tensor, Tensor]]

    def rows(self, *, by: str = "") -> dict[str, dict[str, float]]:
        """Compute the figures of each folder, and of its objects with each value of the attribute `by`."""
        return {name: self._row(places) for name, places in grouped(self.folders, self.attributes, by=by).items()}

    def _row(self, places: Sequence[int]) -> dict[str, float]:
        scores = join([self.scores[index] for index in places])
        figures = scores.over(range(scores.psnr_OV.shape[1]))
        shift = sum(self.color_shift_O[index] for index in places) / len(places)
        return {"objects": len(places), **{name: figures[name] for name in FIGURES}, "color_shift": shift}


@torch.no_grad()
def measure_restoring(cfg: RunConfig, folders: Sequence[Path]) -> Restored:
    """Encode and decode every view of packed orbits, in float32.

    Args:
        cfg: `auto_encoder` with its weights, `resolution`, `cameras.num_views`, and `vid_dataset` with the background.

    Raises:
        ConfigError, DataError: the weights are not set, or a folder does not fit.
    """
    if not cfg.auto_encoder.pretrained:
        raise ConfigError("auto_encoder.pretrained is empty; set it to the weights to measure")
    device = pick_device(cfg.device)
    autoencoder = cfg.auto_encoder.build().to(device).eval()
    found = Restored(folders=[], attributes=[], scores=[], color_shift_O=[], first_pairs=[])
    for folder in folders:
        orbits = DATASETS.build(
            {
                "type": "PackedOrbits",
                "data_dir_list": [str(folder)],
                "resolution": list(cfg.resolution),
                "background": background_of(cfg),
                "num_views": cfg.cameras.num_views,
                "empty_captions": True,
            },
            where="--data",
        )
        for number, attributes in enumerate(orbits.attributes):
            sample = orbits[number]
            true_VCHW, masks_V1HW = sample["views_VCHW"].clamp(0, 1).to(device), sample["masks_V1HW"].to(device)
            restored_VCHW = _restored(autoencoder, true_VCHW, chunk=cfg.decoder_bs)
            found.folders.append(folder.name)
            found.attributes.append(attributes)
            found.scores.append(score_views(restored_VCHW, true_VCHW, masks_V1HW=masks_V1HW))
            found.color_shift_O.append(color_shift(restored_VCHW, true_VCHW, masks_V1HW))
            found.first_pairs.append((true_VCHW[0].cpu(), restored_VCHW[0].cpu()))
    return found


def _restored(autoencoder: Autoencoder, views_VCHW: Tensor, *, chunk: int) -> Tensor:
    """Decode the posterior's mean, which is the result of a perfect generator."""
    mean_BCVHW, _ = autoencoder.view_posteriors(views_VCHW[None], chunk=chunk)
    return autoencoder.decode_views(mean_BCVHW, chunk=chunk)[0]


def color_shift(views_VCHW: Tensor, true_VCHW: Tensor, masks_V1HW: Tensor) -> float:
    """Compute the error of the mean colour over the object's pixels, from 0 to 255: a mean over channels and views."""
    solid_V1HW = (masks_V1HW > 0.5).float()
    pixels_V1 = solid_V1HW.sum(dim=(1, 2, 3))[:, None]
    shift_VC = ((views_VCHW - true_VCHW) * solid_V1HW).sum(dim=(2, 3)) / pixels_V1.clamp_min(1)
    seen_V = pixels_V1[:, 0] > 0
    return float(255 * shift_VC[seen_V].abs().mean()) if bool(seen_V.any()) else 0.0


def table(rows: dict[str, dict[str, float]]) -> str:
    """Format the figures as text."""
    width = max(map(len, rows), default=0)
    head = f"{'':{width}} objects   PSNR  of views  near object   SSIM  colour shift"
    lines = [
        f"{name:{width}} {row['objects']:7} {row['psnr']:6.2f}  {row['psnr_of_views']:8.2f}  "
        f"{row['masked_psnr']:11.2f} {row['ssim']:6.4f}  {row['color_shift']:12.2f}"
        for name, row in rows.items()
    ]
    return "\n".join([head, *lines])


def restored_sheet(found: Restored, *, count: int) -> Tensor:
    """Make a sheet of view 0 of some objects, true above restored: (3, 2 H, count W)."""
    step = max(1, len(found.first_pairs) // count)
    pairs = found.first_pairs[::step][:count]
    return torch.cat([torch.cat(list(images), dim=2) for images in zip(*pairs, strict=True)], dim=1)
