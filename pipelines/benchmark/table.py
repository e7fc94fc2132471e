"""Format rows of figures as text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.files import atomic_path, write_json

# column -> (heading, format)
COLUMNS: dict[str, tuple[str, str]] = {
    "what": ("what", "s"),
    "model": ("model", "s"),
    "setting": ("setting", "s"),
    "weights": ("weights", "s"),
    "batch": ("batch", "d"),
    "views": ("views", "d"),
    "pixels": ("pixels", "s"),
    "samples": ("samples", "d"),
    "steps": ("steps", "d"),
    "tflops": ("TFLOP/s", ".3g"),
    "gb_per_s": ("GB/s", ".0f"),
    "seconds": ("s", ".2f"),
    "step_ms": ("step ms", ".1f"),
    "denoise_s": ("denoise s", ".2f"),
    "conditions_ms": ("conditions ms", ".1f"),
    "denoise_ms": ("denoise ms", ".0f"),
    "refine_ms": ("refine ms", ".1f"),
    "decode_ms": ("decode ms", ".1f"),
    "reconstruct_ms": ("Gaussians ms", ".1f"),
    "files_ms": ("files ms", ".1f"),
    "other_ms": ("other ms", ".1f"),
    "train_ms": ("step ms", ".0f"),
    "load_s": ("load s", ".1f"),
    "first_s": ("first orbit s", ".1f"),
    "second_s": ("second orbit s", ".2f"),
    "start_s": ("cold start s", ".1f"),
    "tflop": ("TFLOP", ".3f"),
    "share": ("of ceiling", ".1%"),
    "psnr_db": ("PSNR dB", ".2f"),
    "psnr_same_db": ("same sampler, dB", ".2f"),
    "held_gib": ("held GiB", ".2f"),
    "peak_gib": ("peak GiB", ".2f"),
    "error_1": ("error, 1 step", ".1e"),
    "error_end": ("error, end", ".1e"),
    "failed": ("failed", "s"),
}

Row = dict[str, Any]


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of all columns that are not empty."""
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    body = [[_cell(row.get(name), COLUMNS[name][1]) for name in shown] for row in rows]
    return [COLUMNS[name][0] for name in shown], body


def text_table(title: str, rows: Sequence[Row]) -> str:
    """Format aligned columns below a title."""
    heads, body = cells(rows)
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [heads, *body]]
    return "\n".join([title, *(line.rstrip() for line in lines)])


def markdown_table(title: str, rows: Sequence[Row]) -> str:
    """Format a Markdown table below a title."""
    heads, body = cells(rows)
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def write_tables(out: Path, facts: Row, tables: dict[str, list[Row]]) -> None:
    """Write benchmark.json and benchmark.md to a folder, each completely or not at all."""
    write_json(out / "benchmark.json", {"machine": facts, "tables": tables})
    parts = [machine_text(facts), *(markdown_table(name, rows) for name, rows in tables.items() if rows)]
    with atomic_path(out / "benchmark.md") as part:
        part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def machine_text(facts: Row) -> str:
    """Format the facts of the machine as one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
