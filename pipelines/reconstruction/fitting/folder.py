"""Fit an object to a folder of views: read, fit, write, and keep what is finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from datasets.views.folder import read_views
from pipelines.reconstruction.fitting import RESULT_FILE, STATE_FILE
from pipelines.reconstruction.fitting.loop import FittedObject, fit_object, identity_of
from pipelines.reconstruction.fitting.storage import write_fit
from utils.devices import peak_memory
from utils.errors import DataError
from utils.files import read_json, write_json
from utils.registry import Section
from utils.settings.assets import AssetOptions
from utils.settings.typed import identifying


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How a folder of views is read, see `datasets.views.folder.read_views`."""

    background: float | Sequence[float] | None = None
    num_views: int | None = None
    up: str | None = None
    convention: str | None = None


def fit_folder(
    folder: Path,
    out: Path,
    section: Section,
    *,
    seed: int,
    device: torch.device,
    assets: AssetOptions,
    reading: ReadingOptions | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> str:
    """Fit an object to a folder of views and write its files to `out`.

    A finished result of the same views and options is kept; an unfinished fit continues.

    Args:
        section: the method and its options, from the registry FITS.
        assets: which files to write, and how.
        on_step: see `fit_object`.

    Returns:
        One line about the result.

    Raises:
        DataError: the views cannot be used, or the fit fails.
        WriteError: a file cannot be written, for example because the disk is full.
    """
    views = read_views(folder, **dataclasses.asdict(reading or ReadingOptions()))
    views, move = views.normalized()
    views = views.to(device)
    identity = identity_of(section, views, seed=seed, more=identifying(assets))
    if is_finished(out, identity):
        return f"{out}: finished before, kept"
    out.mkdir(parents=True, exist_ok=True)
    fitted = fit_object(section, views, seed=seed, state=out / STATE_FILE, on_step=on_step)
    facts = write_fit(out, fitted, section, move=move, options=assets)
    result = {
        "input": str(folder),
        "identity": identity,
        "method": {"type": section.type, **dataclasses.asdict(section.options)},
        "seed": seed,
        "scale": move.scale,
        "center": move.center_3.tolist(),
        **fitted.record(),
        "peak_memory_mb": round(peak_memory(device) / 1e6),
        "files": facts,
    }
    write_json(out / RESULT_FILE, result)
    (out / STATE_FILE).unlink(missing_ok=True)
    missing = [name for name, fact in facts.items() if "error" in fact]
    return f"{out}: {_described(fitted)}" + (f"; not written: {', '.join(missing)}" if missing else "")


def is_finished(folder: Path, identity: str) -> bool:
    """Whether a folder has the whole result of these views and options."""
    try:
        result = read_json(folder / RESULT_FILE, option="--out", kind=dict)
        files = {name: fact for name, fact in result["files"].items() if "error" not in fact}
        return result["identity"] == identity and all(
            (folder / name).is_file() and (folder / name).stat().st_size == fact["bytes"]
            for name, fact in files.items()
        )
    except (DataError, KeyError, TypeError, AttributeError):
        return False


def _described(fitted: FittedObject) -> str:
    wrong = [fitted.views.names[index] for index in fitted.disagreeing]
    told = f"; views that disagree with the others: {', '.join(wrong)}" if wrong else ""
    return f"{float(fitted.psnr_V.mean()):.2f} dB on the given views, {fitted.seconds:.1f} s{told}"
