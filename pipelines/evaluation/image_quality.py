"""Measure an image model: sample held-out objects from one or more of their views, and compare with the true views.

Letters: O objects, V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.perceptual import Lpips, find_lpips
from pipelines.evaluation.denoising import examine, fixed_timesteps
from pipelines.evaluation.held_out import TrueOrbit, TrueOrbits, mean_image
from pipelines.evaluation.image_metrics import ViewScores, join, pooled_psnr, score_views
from pipelines.evaluation.quality_report import (
    FIRST_STEP,
    MODEL_ROW,
    REPEATED,
    plot_curves,
    quality_sheet,
    spread_by_psnr,
    summary,
    unseen_views,
)
from pipelines.evaluation.samples import given_views, read_views, sample_orbits, views_folders
from pipelines.sampling.inference import sample_settings
from pipelines.sampling.known_views import relative_azimuths
from pipelines.sampling.pipeline import ViewsPipeline
from utils.errors import ConfigError
from utils.files import writable_folder, write_json
from utils.images import save_png
from utils.settings.run import RunConfig

CEILING = "autoencoder (ceiling)"
NUM_MEAN_OBJECTS = 1000  # number of training objects for the mean image
GROUPS = ("source", "style")  # attributes that get rows of their own where the objects have them


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """Options of the measurement.

    Attributes:
        held_out: folder of objects that are not in the training data.
        train: folder of training objects, for the mean image.
        num_objects: maximum number of objects.
        known: numbers of given views, each for one more run in addition to the run with only view 0.
        start_seed: see `TrueOrbits`.
        num_sheet: number of objects on the contact sheet.
        num_seeds: number of samples of each object, with the seeds `seed`, `seed` + 1, ...
        by: attributes of the objects, each with a table for each of its values; None: those of `GROUPS` that differ.
        out: output folder of samples and results.
    """

    held_out: Path
    train: Path | None
    num_objects: int
    known: Sequence[int]
    start_seed: int | None
    num_sheet: int
    out: Path
    num_seeds: int = 1
    by: Sequence[str] | None = None


def evaluate_quality(cfg: RunConfig, options: QualityOptions) -> dict[str, Any]:
    """Make missing samples, measure, and write metrics.json, azimuth.png and sheet.png; returns metrics.json's content.

    Raises:
        ConfigError, DataError: a setting or a folder does not fit.
    """
    if not cfg.takes_images:
        raise ConfigError(f"UNet.type={cfg.UNet.type} has no true views to compare with; use an image model")
    out = writable_folder(options.out, option="--out")
    given_by_run = {num: given_views(num, cfg.cameras.num_views) for num in dict.fromkeys((1, *options.known))}
    shared = {"scratch": out, "start_seed": options.start_seed}
    orbits = TrueOrbits(options.held_out, cfg, limit=options.num_objects, option="--held-out", **shared)
    means = MeanImages(orbits, cfg, options)
    groups = groups_of(orbits, options.by)
    pipeline = ViewsPipeline.from_config(cfg)
    samples = {
        num: [
            sample_orbits(pipeline, orbits, given=given, out=out / f"given_{num}", seed=cfg.seed + number)
            for number in range(options.num_seeds)
        ]
        for num, given in given_by_run.items()
    }
    unseen = unseen_views(given_by_run, cfg.cameras.num_views)
    scores, losses_OT, lpips_network = _measure(pipeline, orbits, samples, means=means, unseen=unseen)
    timesteps = fixed_timesteps(pipeline.diffusion.num_timesteps)
    result = {
        "held_out": str(options.held_out),
        "start_seed": options.start_seed,
        "seed": cfg.seed,
        "num_seeds": options.num_seeds,
        "lpips_network": lpips_network,
        "settings": sample_settings(cfg),
        **summary(scores, orbits.object_ids, given_by_run, groups=groups, losses_OT=losses_OT, timesteps=timesteps),
    }
    _write_pictures(options, result, orbits, samples[1][0])
    write_json(out / "metrics.json", result)
    return result


def groups_of(orbits: TrueOrbits, by: Sequence[str] | None) -> dict[str, dict[str, list[int]]]:
    """Return the indices of the objects by the value of each attribute.

    Args:
        by: the attributes; None: those of `GROUPS` that have several values.

    Raises:
        ConfigError: no object has an attribute of `by`.
    """
    records = list(orbits.dataset.attributes)[: len(orbits)]
    known = sorted({name for record in records for name in record})
    for name in by or ():
        if name not in known:
            raise ConfigError(f"--by {name}: no object has this attribute; use one of: {', '.join(known) or 'none'}")
    groups: dict[str, dict[str, list[int]]] = {}
    for name in [name for name in GROUPS if name in known] if by is None else by:
        places: dict[str, list[int]] = {}
        for index, record in enumerate(records):
            places.setdefault(str(record.get(name, "unknown")), []).append(index)
        if by is not None or len(places) > 1:
            groups[name] = {value: places[value] for value in sorted(places)}
    return groups


def _measure(
    pipeline: ViewsPipeline,
    orbits: TrueOrbits,
    samples: Mapping[int, Sequence[Sequence[Path]]],
    *,
    means: MeanImages,
    unseen: Sequence[int],
) -> tuple[dict[str, ViewScores], Tensor, str | None]:
    """Return the scores of all rows, the losses at fixed timesteps (O, T), and the name of the LPIPS network.

    Rows of several seeds have the scores of all objects for each seed in turn.

    Args:
        samples: folders of all objects, by seed, by the number of given views.
        unseen: the views by which the best seed is chosen.
    """
    device = next(pipeline.autoencoder.parameters()).device
    lpips = find_lpips(device=device)
    of_seeds: dict[str, list[list[ViewScores]]] = {}
    scores: dict[str, list[ViewScores]] = {}
    losses = []
    predictions = examine(pipeline, orbits, seed=pipeline.cfg.seed)
    for index, orbit in enumerate(tqdm(orbits, total=len(orbits), unit="object", desc="measuring")):
        for number in range(len(samples[1])):
            rows = sampled_rows({num: folders[number][index] for num, folders in samples.items()})
            for name, views_VCHW in rows.items():
                by_seed = of_seeds.setdefault(name, [[] for _ in samples[1]])
                by_seed[number].append(_score(views_VCHW, orbit, lpips=lpips, device=device))
        prediction = next(predictions)
        losses.append(prediction.loss_T)
        rows = {FIRST_STEP: prediction.first_VCHW, REPEATED: orbit.views_VCHW[:1].expand_as(orbit.views_VCHW)}
        if means.name:
            rows[means.name] = means(index).expand_as(orbit.views_VCHW)
        rows[CEILING] = through_autoencoder(pipeline, orbit, seed=pipeline.cfg.seed)
        for name, views_VCHW in rows.items():
            scores.setdefault(name, []).append(_score(views_VCHW, orbit, lpips=lpips, device=device))
    joined = {name: join([one for row in by_seed for one in row]) for name, by_seed in of_seeds.items()}
    if len(samples[1]) > 1:
        best = f", best of {len(samples[1])} seeds"
        joined |= {name + best: join(best_of(by_seed, unseen)) for name, by_seed in of_seeds.items()}
    joined |= {name: join(values) for name, values in scores.items()}
    return joined, torch.stack(losses), lpips and lpips.network


def best_of(by_seed: Sequence[Sequence[ViewScores]], views: Sequence[int]) -> list[ViewScores]:
    """Return the scores of each object's best sample, by the PSNR over some views.

    Args:
        by_seed: scores of single objects, in the same order for each seed.
    """
    pick = list(views)
    return [
        max(one, key=lambda scores: pooled_psnr(scores.psnr_OV[:, pick]).item()) for one in zip(*by_seed, strict=True)
    ]


class MeanImages:
    """The mean image of the training objects, if there is a folder, else of the other held-out objects.

    Attributes:
        name: name of the row; empty if there are no other objects.
    """

    def __init__(self, orbits: TrueOrbits, cfg: RunConfig, options: QualityOptions) -> None:
        self.means_O3HW: Tensor | None = None
        if options.train:
            train = TrueOrbits(options.train, cfg, limit=NUM_MEAN_OBJECTS, scratch=options.out, option="--train")
            self.mean_3HW, self.name = mean_image(train), f"mean image of {len(train)} training objects (floor)"
            return
        self.name = "mean image of the other held-out objects (floor)" if len(orbits) > 1 else ""
        self.means_O3HW = torch.stack([orbit.views_VCHW.mean(dim=0) for orbit in orbits])
        self.mean_3HW = self.means_O3HW.mean(dim=0)

    def __call__(self, index: int) -> Tensor:
        """Return the mean image for held-out object `index`: (3, H, W)."""
        if self.means_O3HW is None:
            return self.mean_3HW
        num = len(self.means_O3HW)
        return (self.mean_3HW * num - self.means_O3HW[index]) / (num - 1)


def sampled_rows(samples: dict[int, Path]) -> dict[str, Tensor]:
    """Return the views by the name of the row, for each number of given views and each kind of result."""
    rows = {}
    for num, folder in samples.items():
        for views in views_folders(folder):
            name = MODEL_ROW if num == 1 else f"{MODEL_ROW}, {num} given views"
            rows[name if views == "views" else f"{name} ({views})"] = read_views(folder / views)
    return rows


@torch.no_grad()
def through_autoencoder(pipeline: ViewsPipeline, orbit: TrueOrbit, *, seed: int) -> Tensor:
    """Encode and decode the true views, which is the result of a perfect latent model: (V, 3, H, W)."""
    pipeline.placement.bring(pipeline.autoencoder)
    parameter = next(pipeline.autoencoder.parameters())
    views_1VCHW = orbit.views_VCHW[None].to(parameter.device, parameter.dtype)
    generator = torch.Generator().manual_seed(seed)
    latents = pipeline.autoencoder.encode_views(views_1VCHW, generator=generator, chunk=pipeline.cfg.chunk_size)
    return pipeline.decode(latents)[0].float().cpu()


def _score(views_VCHW: Tensor, orbit: TrueOrbit, *, lpips: Lpips | None, device: torch.device) -> ViewScores:
    masks = None if orbit.masks_V1HW is None else orbit.masks_V1HW.to(device)
    return score_views(views_VCHW.to(device), orbit.views_VCHW.to(device), masks_V1HW=masks, lpips=lpips)


def _write_pictures(options: QualityOptions, result: dict[str, Any], orbits: TrueOrbits, samples: list[Path]) -> None:
    plot_curves(options.out / "azimuth.png", result, azimuths_deg=relative_azimuths(orbits[0].c2w_V44).tolist())
    shown = spread_by_psnr(result, count=options.num_sheet)
    pairs = [(orbits[index].views_VCHW, read_views(samples[index] / "views")) for index in shown]
    save_png(options.out / "sheet.png", quality_sheet(pairs))
    result["sheet"] = [result["psnr_by_object"][index] for index in shown]
