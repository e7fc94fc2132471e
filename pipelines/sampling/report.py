"""The page of a run: index.html beside its samples, a gallery that a browser opens from disk without a network."""

from __future__ import annotations

import html
import logging
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.sampling.finished import read_result
from pipelines.sampling.sample_folder import FIT_FOLDER, RESULT_FILE
from utils.config import changes_text
from utils.errors import DataError
from utils.files import atomic_path, read_json
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

REPORT_FILE = "index.html"
TEMPLATE = Path(__file__).with_suffix(".html")
MARK = b'name="generator" content="VideoMV"'  # of our own pages; another index.html belongs to the user
MOST_SHOWN = 500
GAP = 2  # pixels between the views of a contact sheet
SHEETS = ("sheet_gs.png", "sheet.png")  # the better result first
# Links of a card, in this order, if the sample has the file. All other files are in its folder.
LINKS = {
    "viewer.html": "viewer", "orbit_gs.mp4": "video", "orbit.mp4": "video", "turntable.mp4": "turntable",
    "mesh.glb": "mesh.glb", "gaussians.ply": "gaussians.ply", "gaussians.splat": "gaussians.splat",
    "gaussians.spz": "gaussians.spz", "gaussians.glb": "gaussians.glb", "transforms.json": "transforms.json",
    "result.json": "result.json",
}  # fmt: skip
FIT_LINKS = ("viewer.html", "mesh.glb", "gaussians.ply")


def write_report(out: Path, folders: Sequence[Path], cfg: RunConfig, *, failures: Sequence[str]) -> Path | None:
    """Write the page of a run, whole or not at all. It replaces that of an earlier run.

    Args:
        out: folder of the run.
        folders: samples of this run. Other samples in `out` come after them.
        failures: one line for each sample that could not be made.

    Returns:
        The page; None if there is an index.html that is not of this program, which is kept.

    Raises:
        WriteError: the disk is full.
    """
    path = out / REPORT_FILE
    if path.exists() and MARK not in path.read_bytes()[:2000]:
        log.warning("%s was not written by this program and is kept, so this run has no page", path)
        return None
    folders = [folder for folder in folders if (folder / RESULT_FILE).is_file()]
    earlier = sorted({file.parent for file in out.glob(f"*/{RESULT_FILE}")} - set(folders))
    others = f", {len(earlier)} of earlier runs" if earlier else ""
    lines = [f'<p class="bad">not made: {html.escape(line)}</p>' for line in failures]
    filled = {
        "__TITLE__": html.escape(_clean(out.resolve().name)),
        "__HEAD__": f"<p>{_counted(len(folders))} of this run{others}</p>{''.join(lines)}",
        "__GALLERY__": _gallery(folders[:MOST_SHOWN]) + _earlier(earlier, room=MOST_SHOWN - len(folders)),
        "__SETTINGS__": html.escape(_clean(changes_text(cfg))),
    }
    # all at once: a prompt may contain the name of another place
    page = re.sub("|".join(filled), lambda match: filled[match[0]], TEMPLATE.read_text(encoding="utf-8"))
    with atomic_path(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def _counted(number: int) -> str:
    return "1 sample" if number == 1 else f"{number} samples"


def _earlier(folders: Sequence[Path], *, room: int) -> str:
    """The samples of earlier runs, as many as there is room for."""
    shown, left = folders[: max(room, 0)], len(folders) - max(room, 0)
    more = f'<p class="note">{_counted(left)} more in this folder</p>' if left > 0 else ""
    return (f"<h2>Earlier runs in this folder</h2>{_gallery(shown)}" if shown else "") + more


def _gallery(folders: Sequence[Path]) -> str:
    return f"<main>\n{''.join(map(_card, folders))}</main>"


def _card(folder: Path) -> str:
    """One sample; "" if its result.json is damaged."""
    result = read_result(folder)
    if result is None:
        return ""
    name = " + ".join(_clean(str(result[key])) for key in ("image", "prompt") if isinstance(result.get(key), str))
    return (
        f'<article>{_orbit(folder, result)}<div class="text"><h3>{html.escape(name or folder.name)}</h3>\n'
        f'<p class="facts">{html.escape(" · ".join(_facts(folder, result)))}</p>\n'
        f'<p class="files">{"".join(_links(folder))}</p></div></article>\n'
    )


def _orbit(folder: Path, result: Mapping[str, Any]) -> str:
    """The contact sheet as a picture of which the page shows one view."""
    settings, num_views = _dict(result, "settings"), len(result["c2w"]) if isinstance(result.get("c2w"), list) else 0
    sheet = next((folder / name for name in SHEETS if (folder / name).is_file()), None)
    try:
        W, H = (int(side) for side in settings["resolution"])
        width, height = _png_size(sheet)
        columns, rows = (width + GAP) // (W + GAP), (height + GAP) // (H + GAP)
        whole = (width, height) == (columns * (W + GAP) - GAP, rows * (H + GAP) - GAP) and columns * rows >= num_views
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OSError,
        ZeroDivisionError,
        struct.error,
    ):  # a result of another program
        whole = False
    if not whole or not num_views:
        return ""
    # CSS places a background by percent of what is left over, which is nothing for a single row or column
    step_x, step_y = (100 * (one + GAP) / (side - one) if side > one else 0 for one, side in ((W, width), (H, height)))
    # A style is read as HTML first, then as CSS. The address is quoted so that neither finds anything of its own in it.
    style = f"aspect-ratio:{W}/{H};background-size:{100 * width / W}% {100 * height / H}%;background-position:0 0;"
    style += f"background-image:url('{_address(sheet, folder)}')"
    fps = settings.get("target_fps")
    data = {"views": num_views, "columns": columns, "step-x": step_x, "step-y": step_y}
    data["fps"] = max(fps, 1) if isinstance(fps, int) else 8
    attributes = " ".join(f'data-{key}="{value}"' for key, value in data.items())
    given = folder / "input.png"
    seen = f'<img src="{_address(given, folder)}" alt="input" loading="lazy">' if given.is_file() else ""
    slider = f'tabindex="0" role="slider" aria-label="view" aria-valuemin="0" aria-valuemax="{num_views - 1}"'
    return f'<div class="orbit" {slider} aria-valuenow="0" {attributes} style="{style}">{seen}</div>'


def _png_size(path: Path) -> tuple[int, int]:
    """Width and height from the head of a PNG; Pillow refuses large sheets, although nothing is unpacked here."""
    with path.open("rb") as file:
        head = file.read(24)
    if not head.startswith(b"\x89PNG"):
        raise ValueError(f"{path} is no PNG")
    return struct.unpack(">II", head[16:])


def _facts(folder: Path, result: Mapping[str, Any]) -> Iterator[str]:
    """What is known of a sample: seed, time, memory, elevation, PSNR of a fit."""
    yield f"seed {result.get('seed')}"
    if isinstance(result.get("c2w"), list):
        yield f"{len(result['c2w'])} views"
    cost = _dict(result, "cost")
    if _is_number(cost.get("seconds")):
        yield f"{cost['seconds']:.1f} s"
    if _is_number(cost.get("peak_memory_mb")):
        yield f"{cost['peak_memory_mb'] / 1000:.1f} GB"
    if _is_number(result.get("input_elevation_deg")):
        yield f"elevation {result['input_elevation_deg']:.0f}°"
    fit = _fit(folder)
    if _is_number(fit.get("psnr")):
        yield f"fit {fit['psnr']:.2f} dB"
    missing = [name for name, fact in _dict(result, "assets").items() if isinstance(fact, dict) and "error" in fact]
    if missing:
        yield f"without {', '.join(map(_clean, missing))}"


def _links(folder: Path) -> Iterator[str]:
    """Links to the files that a sample has, and to its folder."""
    for name, text in LINKS.items():
        if (folder / name).is_file():
            yield f'<a href="{_address(folder / name, folder)}">{text}</a>'
    for name in FIT_LINKS:
        file = folder / FIT_FOLDER / name
        if file.is_file():
            yield f'<a href="{_address(file, folder)}">fit: {name}</a>'
    yield f'<a href="{_address(folder, folder)}/">folder</a>'


def _fit(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / FIT_FOLDER / RESULT_FILE, option="fit", kind=dict)
    except DataError:
        return {}


def _address(file: Path, folder: Path) -> str:
    """Return the address of a file in a sample's folder, relative to the page."""
    return quote(file.relative_to(folder.parent).as_posix().encode("utf-8", "surrogateescape"))


def _clean(text: str) -> str:
    """Return a text that can be written as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _dict(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
