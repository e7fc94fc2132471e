"""Pictures of odd kinds: one and the same red square in each of the good ones, and files that hold no object."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
from PIL import Image


def square(width=60, height=40, *, left=5, top=4, side=16, rgb=(200, 40, 40)):
    """A square on nothing: (height, width, 4) uint8."""
    rgba = np.zeros((height, width, 4), dtype=np.uint8)
    rgba[top : top + side, left : left + side] = (*rgb, 255)
    return rgba


def palette(path):
    image = Image.fromarray(square()).convert("RGB").quantize(4)
    image.save(path, transparency=image.getpixel((0, 0)))


def palette_of_alphas(path):
    image = Image.fromarray(square()).convert("RGB").quantize(4)
    alphas = bytearray(b"\xff" * 4)
    alphas[image.getpixel((0, 0))] = 0
    image.save(path, transparency=bytes(alphas))


def animated(path):
    frames = [Image.fromarray(square(left=left)) for left in (5, 25)]
    frames[0].save(path, save_all=True, append_images=frames[1:], disposal=2)


def sixteen(path):
    cv2.imwrite(str(path), square()[..., [2, 1, 0, 3]].astype(np.uint16) * 257)


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    Image.fromarray(np.ascontiguousarray(np.rot90(square()))).save(path, exif=exif)


def wide(path):
    Image.fromarray(square(20000, 4, left=10, top=1, side=2)).save(path)


GOOD = {
    "palette.png": palette,
    "palette_of_alphas.png": palette_of_alphas,
    "sixteen.png": sixteen,
    "sixteen.tif": sixteen,
    "grey_alpha.png": lambda path: Image.fromarray(square()).convert("LA").save(path),
    "animated.webp": animated,
    "animated.gif": animated,
    "animated.png": animated,
    "turned.png": turned,
    "wide.png": wide,
}

BAD = {
    "cmyk.jpg": (lambda path: Image.new("CMYK", (20, 20)).save(path), "no alpha channel (CMYK)"),
    "cmyk.tif": (lambda path: Image.new("CMYK", (20, 20)).save(path), "no alpha channel (CMYK)"),
    "plain.jpg": (lambda path: Image.new("RGB", (20, 20)).save(path), "no alpha channel (RGB)"),
    "palette.png": (lambda path: Image.new("P", (20, 20)).save(path), "no alpha channel (P)"),
    "one_bit.png": (lambda path: Image.new("1", (20, 20)).save(path), "no alpha channel (1)"),
    "float.tif": (lambda path: Image.new("F", (20, 20)).save(path), "no alpha channel (F)"),
    "grey16.png": (
        lambda path: cv2.imwrite(str(path), np.full((9, 9), 999, dtype=np.uint16)),
        "no alpha channel (I;16",
    ),
    "rgb16.png": (
        lambda path: cv2.imwrite(str(path), np.full((9, 9, 3), 999, dtype=np.uint16)),
        "no alpha channel (RGB)",
    ),
    "opaque.png": (lambda path: Image.new("RGBA", (20, 20), "red").save(path), "opaque everywhere"),
    "opaque_wide.png": (lambda path: Image.new("RGB", (20000, 3)).save(path), "no alpha channel (RGB)"),
    "empty.png": (lambda path: Image.new("RGBA", (20, 20)).save(path), "transparent everywhere"),
    "text.png": (lambda path: path.write_text("no picture"), "cannot be read as an image"),
    "nothing.png": (lambda path: path.write_bytes(b""), "cannot be read as an image"),
    "folder.png": (lambda path: path.mkdir(), "no such file"),
    "missing.png": (lambda path: None, "no such file"),
}


def absurd(path):
    """A PNG whose header claims 60000 x 60000 pixels."""
    size = (60000).to_bytes(4, "big")
    header = b"IHDR" + size + size + bytes([8, 6, 0, 0, 0])
    parts = [header, b"IDAT" + zlib.compress(bytes(100)), b"IEND"]
    chunks = [(len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
