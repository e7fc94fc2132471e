"""Compare settings with the same seeds and the same prompts or objects: quality and consistency of views.

Letters: O objects.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.evaluation.consistency import ConsistencyOptions, evaluate_consistency
from pipelines.evaluation.consistency_orbits import CEILING, FLOOR
from pipelines.evaluation.image_quality import QualityOptions, evaluate_quality
from pipelines.evaluation.quality_report import MODEL_ROW, gain
from pipelines.evaluation.recognition import evaluate_recognition
from pipelines.reconstruction.gaussian_fit import FitOptions
from pipelines.sampling.inference import sample_settings
from pipelines.sampling.inputs import slug_of
from utils.errors import ConfigError
from utils.files import writable_folder, write_json
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

PLAIN, REFINED = "plain", "3D-aware"
HEADINGS = {
    "kind": "kind", "color": "colour", "psnr": "PSNR", "back": "back", "ssim": "SSIM",
    "refit": "refit", "gain": "over plain", "error": "s.e.", "self": "self", "chamfer": "Chamfer",
}  # fmt: skip
SHARES = ("kind", "color")
REFINING = {"reconstruction", "results", "assets"}  # settings that do not change plain samples
PLACES = {"ssim": 4, "chamfer": 4}


@dataclass(frozen=True, kw_only=True)
class SettingsOptions:
    """Options of the measurement.

    Attributes:
        held_out: folder of objects that are not in the training data.
        classifier: weights of the classifier of kind and colour, for text models.
        num_objects: maximum number of objects per setting.
        fit: options of the fit.
        batch_size: number of objects that are fitted at once.
        out: output folder of samples and results.
    """

    held_out: Path
    classifier: str
    num_objects: int
    fit: FitOptions
    batch_size: int
    out: Path


def evaluate_settings(cfgs: Mapping[str, RunConfig], options: SettingsOptions) -> dict[str, Any]:
    """Sample and measure with each setting in order; settings.json is written after each of them.

    Args:
        cfgs: configurations by the text of their setting; at least one.

    Raises:
        ConfigError, DataError: a setting or a folder does not fit.
    """
    if options.batch_size < 1:
        raise ConfigError(f"--fit-batch must be at least 1, got {options.batch_size}")
    out = writable_folder(options.out, option="--out")
    result: dict[str, Any] = {"held_out": str(options.held_out), "settings": [], "bounds": {}}
    plain_O: dict[str, torch.Tensor] = {}
    for setting, cfg in cfgs.items():
        folder = out / f"{slug_of(setting or 'as configured')}-{hashlib.sha256(setting.encode()).hexdigest()[:6]}"
        image = cfg.takes_images
        runs, quality = (_quality_of_images if image else _recognition)(cfg, options, folder)
        consistency = evaluate_consistency(
            cfg,
            ConsistencyOptions(
                held_out=options.held_out,
                runs=[runs],
                num_objects=options.num_objects,
                fit=options.fit,
                batch_size=options.batch_size,
                out=out,  # the same folder for all settings, so that true and mixed views are fitted only once
            ),
        )
        rows = consistency["rows"]
        result["bounds"] = {name: figures_of(rows.pop(name)) for name in (CEILING, FLOOR) if name in rows}
        alone = REFINED if cfg.results == "refined" and cfg.refine else PLAIN
        names = {str(runs): alone, f"{runs} (views_gs)": REFINED}
        found = {names[run]: quality[names[run]] | figures_of(row) for run, row in rows.items()}
        psnr_O = {name: torch.tensor(row["refit_by_object"]) for name, row in found.items()}
        if PLAIN in found:
            plain_O[without_refining(cfg)] = psnr_O[PLAIN]
        if REFINED in found and without_refining(cfg) in plain_O:
            over = gain(psnr_O[REFINED], plain_O[without_refining(cfg)])
            found[REFINED] |= {"gain": over["mean_db"], "error": over["standard_error_db"]}
        result["settings"].append({"setting": setting, "results": found})
        write_json(out / "settings.json", result)
        log.info("%s", settings_table({**result, "settings": result["settings"][-1:]}))
    return result


def without_refining(cfg: RunConfig) -> str:
    """Return the settings that change plain samples as a string; plain samples are equal if this string is equal."""
    settings = sample_settings(cfg)
    return json.dumps({name: value for name, value in settings.items() if name not in REFINING}, sort_keys=True)


def figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert one row of consistency.json to the names in this table."""
    return {
        "num_objects": row["num_objects"],
        "refit": row["held_out"]["psnr"],
        "refit_by_object": row["held_out"]["psnr_by_object"],
        "self": row["self"]["psnr"],
        "chamfer": row["self"]["chamfer"],
    }


def _recognition(
    cfg: RunConfig, options: SettingsOptions, folder: Path
) -> tuple[Path, dict[str, dict[str, float | None]]]:
    """Return the folder of samples, and the fractions of recognised kinds and colours in each kind of result."""
    result = evaluate_recognition(
        cfg,
        held_out=options.held_out,
        runs=None,
        classifier=options.classifier,
        num_objects=options.num_objects,
        out=folder,
    )
    first = {name: result["rates"][name]["generated"] for name in SHARES}
    others = result["rates_of_other_results"]
    both = {name: others["views_gs"][name]["generated"] for name in SHARES} if others else first
    return folder / "runs", {PLAIN: first, REFINED: both}


def _quality_of_images(
    cfg: RunConfig, options: SettingsOptions, folder: Path
) -> tuple[Path, dict[str, dict[str, float | None]]]:
    """Return the folder of samples, and PSNR and SSIM of each kind of result against the true views."""
    result = evaluate_quality(
        cfg,
        QualityOptions(
            held_out=options.held_out,
            train=None,
            num_objects=options.num_objects,
            known=(),
            start_seed=None,
            num_sheet=5,
            out=folder,
        ),
    )
    rows = {
        name: {"psnr": row["unseen"]["psnr"], "back": row["back"]["psnr"], "ssim": row["unseen"]["ssim"]}
        for name, row in result["rows"].items()
    }
    return folder / "given_1", {PLAIN: rows[MODEL_ROW], REFINED: rows.get(f"{MODEL_ROW} (views_gs)", rows[MODEL_ROW])}


def settings_table(result: Mapping[str, Any]) -> str:
    """Format the figures as text; empty columns are left out."""
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    for one in result["settings"]:
        rows += [(one["setting"] or "as configured", name, row) for name, row in one["results"].items()]
    rows += [("", name, row) for name, row in result["bounds"].items()]
    names = [name for name in HEADINGS if any(row.get(name) is not None for _, _, row in rows)]
    widths = [max(len(texts[column]) for texts in rows) + 2 for column in (0, 1)]
    lines = [" " * sum(widths) + "".join(f"{HEADINGS[name]:>12}" for name in names) + f"{'objects':>9}"]
    for setting, result_name, row in rows:
        cells = "".join(_cell(row.get(name), name) for name in names)
        lines.append(f"{setting:<{widths[0]}}{result_name:<{widths[1]}}{cells}{row['num_objects']:>9}")
    return "\n".join(lines)


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return f"{'':>12}"
    return f"{value:>12.1%}" if name in SHARES else f"{value:>12.{PLACES.get(name, 2)}f}"


def settings_of(texts: Sequence[str]) -> list[str]:
    """Return the given settings without duplicates.

    Raises:
        ConfigError: there is no setting.
    """
    if not texts:
        raise ConfigError('--measure settings needs at least one --set "OVERRIDES"; --set "" is the configuration')
    return list(dict.fromkeys(texts))
