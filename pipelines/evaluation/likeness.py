"""Measure whether samples look like the objects of their captions, e.g. an object that a LoRA was trained on.

Letters: N objects, V views, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.evaluation.held_out import TrueOrbits, background_of, is_packed
from pipelines.evaluation.image_metrics import score_views
from pipelines.evaluation.samples import read_cameras, read_views, sample_folders
from pipelines.sampling.sample_folder import RESULT_FILE
from utils.errors import DataError
from utils.files import read_json, writable_folder, write_json
from utils.prompts import wordings_of
from utils.settings.run import RunConfig

# A pixel shows the object if a channel differs more than this from the background; errors of an autoencoder are
# smaller.
VISIBLE = 0.1
SAME_CAMERA = 1e-4


@dataclass(frozen=True, kw_only=True)
class LikenessOptions:
    """Options of the measurement.

    Attributes:
        held_out: folder of true orbits with captions.
        among: folder of other objects with the same cameras, for comparison; None: no comparison.
        runs: folder of samples of the captions.
        num_objects: maximum number of objects per folder.
        out: output folder of likeness.json.
    """

    held_out: Path
    among: Path | None
    runs: Path
    num_objects: int
    out: Path


def silhouettes(views_VCHW: Tensor, *, background: float) -> Tensor:
    """Return where views show an object and not the background: (V, H, W), boolean."""
    return ((views_VCHW - background).abs() > VISIBLE).any(dim=1)


def overlap(mask_VHW: Tensor, true_VHW: Tensor) -> float:
    """Compute the intersection over union of silhouettes, as a mean over views; it is 1 for two empty silhouettes."""
    both = (mask_VHW & true_VHW).flatten(1).sum(dim=1)
    either = (mask_VHW | true_VHW).flatten(1).sum(dim=1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0).mean().item()


def evaluate_likeness(cfg: RunConfig, options: LikenessOptions) -> dict[str, Any]:
    """Compare, and write likeness.json; returns its content.

    Raises:
        DataError: there are no captions, no samples of them, or the cameras differ.
    """
    out = writable_folder(options.out, option="--out")
    background = background_of(cfg)
    open_folder = {"limit": options.num_objects, "scratch": out}
    objects = TrueOrbits(options.held_out, cfg, option="--held-out", **open_folder)
    captions = captions_of(options.held_out, objects)
    others = TrueOrbits(options.among, cfg, option="--among", **open_folder) if options.among else ()
    masks = [silhouettes(orbit.views_VCHW, background=background) for orbit in others]
    samples = _samples_by_prompt(options.runs, suffix=cfg.prompt_suffix)
    measured = []
    for orbit, caption in zip(objects, captions, strict=True):
        true_VHW = silhouettes(orbit.views_VCHW, background=background)
        for folder in samples.get(caption, ()):
            _check_cameras(folder, orbit.c2w_V44)
            views_VCHW = read_views(folder / "views")
            mask_VHW = silhouettes(views_VCHW, background=background)
            other = max((overlap(mask_VHW, one) for one in masks), default=None)
            own = overlap(mask_VHW, true_VHW)
            psnr = score_views(views_VCHW, orbit.views_VCHW).over(range(len(views_VCHW)))["psnr"]
            figures = {"psnr": psnr, "overlap": own, "overlap_other": other}
            if other is not None:
                figures["recognised"] = float(own > other)
            measured.append({"object": orbit.object_id, "prompt": caption, "sample": folder.name, **figures})
    if not measured:
        raise DataError(
            f"--runs {options.runs}: no sample has a caption of {options.held_out}; sample these captions first"
        )
    names = [name for name in ("psnr", "overlap", "overlap_other", "recognised") if measured[0].get(name) is not None]
    means = {name: sum(one[name] for one in measured) / len(measured) for name in names}
    result = {"num_samples": len(measured), "num_others": len(others), "means": means, "samples": measured}
    write_json(out / "likeness.json", result)
    return result


def likeness_text(result: dict[str, Any]) -> str:
    """Format the figures as a table with one line per sample."""
    shown = {"psnr": "PSNR, dB", "overlap": "overlap", "overlap_other": "with another", "recognised": "recognised"}
    names = list(result["means"])
    lines = [
        f"{result['num_samples']} samples, {result['num_others']} other objects",
        f"{'':40}" + "".join(f"{shown[name]:>14}" for name in names),
    ]
    for row in [*result["samples"], {"prompt": "mean", **result["means"]}]:
        lines.append(f"{row['prompt'][:40]:40}" + "".join(f"{row[name]:>14.3f}" for name in names))
    return "\n".join(lines)


def captions_of(folder: Path, orbits: TrueOrbits) -> list[str]:
    """Return the stored caption of each object, or the first of several.

    Raises:
        DataError: a caption is missing.
    """
    if is_packed(folder):
        return orbits.dataset.captions[: len(orbits)]
    captions = read_json(folder / "captions.json", option="--held-out", kind=dict)
    wordings = {object_id: wordings_of(captions.get(object_id)) for object_id in orbits.object_ids}
    missing = [object_id for object_id, found in wordings.items() if not found]
    if missing:
        raise DataError(f"{folder / 'captions.json'}: no caption of {missing[0]}; add one")
    return [wordings[object_id][0] for object_id in orbits.object_ids]


def _samples_by_prompt(runs: Path, *, suffix: str) -> dict[str, list[Path]]:
    samples: dict[str, list[Path]] = {}
    for folder in sample_folders(runs):
        prompt = read_json(folder / RESULT_FILE, option="--runs", kind=dict).get("prompt")
        if isinstance(prompt, str) and prompt:
            samples.setdefault(prompt.removesuffix(suffix), []).append(folder)
    return samples


def _check_cameras(sample: Path, true_V44: Tensor) -> None:
    c2w_V44, _ = read_cameras(sample)
    if c2w_V44.shape != true_V44.shape or (c2w_V44 - true_V44).abs().max() > SAME_CAMERA:
        raise DataError(f"{sample}: its cameras differ from those of the true orbits; use the same cameras for both")
