"""The parts of the page that are HTML of our own. Every text of a visitor goes through `escaped`."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from tools.web.jobs import Job
from tools.web.results import Result, Strip

HERE = Path(__file__).parent
# `page.js` turns orbits by their slider; it runs for each block of HTML that holds orbits.
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
STYLE = (HERE / "page.css").read_text(encoding="utf-8")
# Gradio fills values into templates of JavaScript and Handlebars, so their signs are escaped too.
TEMPLATE_SIGNS = {ord(sign): f"&#{ord(sign)};" for sign in "{}$`\\"}


def escaped(text: str) -> str:
    """A text of a visitor, for the page."""
    return html.escape(str(text)).translate(TEMPLATE_SIGNS)


def address(path: Path) -> str:
    """The address of a file of a visit, relative to the page."""
    return f"gradio_api/file={quote(str(path))}"


def message(text: str, *, kind: str = "problem") -> str:
    """One line for the visitor: kind `problem`, `note` or `good`."""
    role = "alert" if kind == "problem" else "status"
    return f'<p class="message {kind}" role="{role}">{escaped(text[:1].upper() + text[1:])}</p>' if text else ""


def notes(texts: Sequence[str]) -> str:
    """Several notes."""
    return "".join(message(text, kind="note") for text in texts)


def progress(job: Job, *, ahead: tuple[int, float]) -> str:
    """What a job does now, with a bar, the step and the time that is left."""
    if job.is_over:
        ends = {"done": "", "stopped": message("Stopped.", kind="note"), "failed": message(job.error)}
        return ends[job.state]
    if job.is_stopping:
        text = "Stopping after this step"
    elif job.state == "waiting":
        number, seconds = ahead
        who = "1 request is" if number == 1 else f"{number} requests are"
        text = f"{who} before yours, about {in_words(seconds)}" if number else "Starting"
    else:
        left = job.left_s
        step = f" · step {job.done} of {job.total}" if 0 < job.done < job.total else ""
        eta = f" · about {in_words(left)} left" if left is not None and job.done < job.total else ""
        text = f"{job.stage[:1].upper()}{job.stage[1:]}{step}{eta}"
    share = 0.9 * job.done / job.total if job.total else 0.0
    share = 0.95 if job.total and job.done == job.total else share
    return (
        f'<div class="progress" role="progressbar" aria-valuenow="{100 * share:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><div style="width:{100 * share:.1f}%"></div></div><p class="stage">{escaped(text)}</p>'
    )


def preview(job: Job) -> str:
    """The orbit as far as it is clear."""
    if not job.preview or job.is_over or job.early is not None:
        return ""
    return f'<img class="preview" src="{job.preview}" alt="preview of the orbit">'


def in_words(seconds: float) -> str:
    """A time, short."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def turntable(strip: Strip | None) -> str:
    """One orbit with a slider over its views."""
    if strip is None:
        return ""
    last = len(strip.azimuths_deg) - 1
    return (
        f'<div class="turntables" data-by="view">{_orbit(strip)}<label class="turn"><span>Turn</span>'
        f'<input type="range" min="0" max="{last}" value="0" step="1" aria-label="view of the orbit">'
        f"<output>{strip.azimuths_deg[0]:.0f}°</output></label></div>"
    )


def _orbit(strip: Strip) -> str:
    width, height = strip.size
    style = (
        f"aspect-ratio:{width}/{height};background-image:url('{address(strip.path)}');"
        f"background-size:{100 * strip.columns}% {100 * strip.rows}%"
    )
    return (
        f'<div class="orbit" role="img" aria-label="view of the object" data-columns="{strip.columns}" '
        f'data-rows="{strip.rows}" data-azimuths="{json.dumps(strip.azimuths_deg)}" style="{style}"></div>'
    )


def viewer(page: Path | None, *, what: str) -> str:
    """A page of Gaussians or of a mesh in a frame, which can do nothing but draw.

    Args:
        what: what the page shows.
    """
    if page is None:
        return message(f"This result has no {what} to show.", kind="note")
    return (
        f'<iframe class="viewer" title="{what} in 3D" sandbox="allow-scripts" data-page="{address(page)}" '
        f'src="{address(page)}#panel=0"></iframe>'
    )


def comparison(one: Result | None, two: Result | None) -> str:
    """Two results side by side, with one slider for the azimuth of both cameras."""
    if one is None or two is None:
        return message("Choose two results of this visit.", kind="note")
    columns = "".join(f'<div class="side"><h3>{_titled(result)}</h3>{_side(result)}</div>' for result in (one, two))
    return (
        f'<div class="turntables" data-by="angle"><label class="turn"><span>Azimuth</span>'
        f'<input type="range" min="0" max="359" value="0" step="1" aria-label="azimuth of both cameras">'
        f'<output>0°</output></label><div class="sides">{columns}</div></div>'
    )


def _titled(result: Result) -> str:
    return f"{result.number}. {escaped(result.title[:80])}"


def _side(result: Result) -> str:
    orbit = _orbit(result.strip) if result.strip else ""
    page = result.viewer or result.mesh
    frame = viewer(page, what="object").replace("#panel=0", "#panel=0&amp;azimuth=0") if page else ""
    return orbit + frame or message("This result has nothing to turn.", kind="note")


def facts(result: Result) -> str:
    """Time and memory of each part, as a table."""
    rows = "".join(f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>" for name, value in result.facts)
    return f'<table class="facts">{rows}</table>'


def cut_out_pictures(urls: Sequence[str], names: Sequence[str], azimuths_deg: Sequence[float]) -> str:
    """The input pictures as the network receives them."""
    figures = "".join(
        f'<figure><img src="{url}" alt=""><figcaption>{escaped(name[:40])} · {azimuth:g}°</figcaption></figure>'
        for url, name, azimuth in zip(urls, names, azimuths_deg, strict=True)
    )
    return f'<p class="stage">As the model receives them:</p><div class="cutouts">{figures}</div>' if urls else ""
