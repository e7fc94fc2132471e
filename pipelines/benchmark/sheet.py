"""An image with the views of each row of a table, labelled with settings and results.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from utils.files import atomic_path
from utils.images import contact_sheet, to_uint8

NUM_VIEWS = 6
LABEL_WIDTH, MARGIN = 212, 6
FONT_SIZE, LINE_HEIGHT = 12, 15
JPEG_QUALITY = 80  # a sheet of a dozen lines stays under 300 kB


@dataclass(frozen=True, kw_only=True)
class SheetLine:
    """One orbit.

    Attributes:
        label: lines of text.
        views_VCHW: all views in [0, 1]; `NUM_VIEWS` of them are shown.
    """

    label: tuple[str, ...]
    views_VCHW: Tensor


def write_sheet(path: Path, lines: Sequence[SheetLine]) -> None:
    """Write the lines below each other as a JPEG file, completely or not at all."""
    strips = [_strip(line) for line in lines]
    sheet = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    with atomic_path(path) as part:
        sheet.save(part, quality=JPEG_QUALITY, subsampling=0, optimize=True)


def _strip(line: SheetLine) -> Image.Image:
    """Draw label and views side by side."""
    every = max(1, len(line.views_VCHW) // NUM_VIEWS)
    views = Image.fromarray(to_uint8(contact_sheet(line.views_VCHW[::every][:NUM_VIEWS], columns=NUM_VIEWS)))
    height = max(views.height, LINE_HEIGHT * len(line.label) + MARGIN)
    strip = Image.new("RGB", (LABEL_WIDTH + views.width, height + 2), "white")
    strip.paste(views, (LABEL_WIDTH, 0))
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(FONT_SIZE)
    for number, text in enumerate(line.label):
        draw.text((MARGIN, MARGIN // 2 + number * LINE_HEIGHT), text, fill="black", font=font)
    return strip
