"""Finds the files that a mesh names (buffers, materials, textures), and keeps account of them.

A mesh may name a file by a path of another machine, with backslashes, percent-encoded, or in other letters' case. Only
files below the mesh's own folder, or below the folder that the user gave, are read.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from utils.errors import DataError, first_line

# Pictures of other formats are recognised, so that the message can name them.
_OTHER_FORMATS = {
    b"\xabKTX 2": "a KTX2",
    b"\xabKTX 1": "a KTX",
    b"<svg": "an SVG",
    b"version https://git-lfs": "a Git LFS",
}
MAX_PIXELS = 1 << 28


@dataclass
class Companions:
    """The files that belong to one mesh file.

    Attributes:
        path: the mesh file.
        root: files below this folder may be read too, besides those below the mesh's own folder.
        read: what was read besides the mesh.
        missing: the names that were not found.
        notes: what is ignored, missing or replaced, in words.
        beside: other folders in which its files may be, relative to its own folder.
    """

    path: Path
    root: Path | None = None
    read: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    beside: tuple[str, ...] = ()

    def note(self, text: str) -> None:
        """Keep what the user must be told, once."""
        if text not in self.notes:
            self.notes.append(text)

    def find(self, name: str) -> Path | None:
        """Find the file that the mesh calls `name`; if there is none, it is added to `missing`.

        The name as written comes first, then ever shorter ends of its path, looked for beside the mesh.
        """
        for text in dict.fromkeys((name.strip(), unquote(name.strip()))):
            text = re.sub(r"^file:/*(?=/|[A-Za-z]:)", "", text).replace("\\", "/").strip('"')
            absolute = text.startswith("/") or re.match(r"[A-Za-z]:", text) is not None
            parts = [part for part in text.split("/") if part not in ("", ".")]
            folder = Path("/") if text.startswith("/") else self.path.parent
            tries = [] if absolute and not text.startswith("/") else [(folder, parts)]
            inner = [part for part in parts if part != ".." and not re.fullmatch(r"[A-Za-z]:", part)]
            tries += [(self.path.parent, inner[start:]) for start in range(len(inner))]
            tries += [(self.path.parent / other, inner[-1:]) for other in self.beside]
            for start, names in tries:
                found = _walk(start, names) if names and self._allowed(start.joinpath(*names)) else None
                if found is not None:
                    if found not in self.read:
                        self.read.append(found)
                    return found
        if name not in self.missing:
            self.missing.append(name)
        return None

    def why_missing(self, name: str) -> str:
        """Say in words why `find` found nothing."""
        if re.match(r"(https?|ftp):", name):
            return f"{name} is on the network and is not fetched"
        path = self.path.parent / name.replace("\\", "/")
        if not self._allowed(path) and path.is_file():
            return f"{name} lies outside the folder that was given and is not read"
        return f"{name} is not found"

    def content(self, name: str) -> bytes | None:
        """Read what a name or a `data:` URI stands for; None if it is not found or cannot be read."""
        if name.lstrip().startswith("data:"):
            return data_uri(name)
        path = self.find(name)
        if path is None:
            return None
        try:
            return path.read_bytes()
        except OSError:
            self.missing.append(name)
            return None

    def picture(self, name: str, *, content: bytes | None = None) -> np.ndarray | None:
        """Read a texture; what cannot be read is noted, and the result is None.

        Args:
            name: the file's name or `data:` URI; for embedded pictures only how the note calls it.
            content: the bytes of an embedded picture.

        Returns:
            uint8 sRGB (height, width, 3), or (height, width, 4) with straight alpha.
        """
        shown = "a data URI" if name.lstrip().startswith("data:") else name
        try:
            content = self.content(name) if content is None else content
            if content is None:
                self.note(f"texture {self.why_missing(name)}")
                return None
            return decode_picture(content)
        except DataError as err:
            self.note(f"texture {shown} {err}")
            return None

    def _allowed(self, path: Path) -> bool:
        # Links are not followed here: what a user links into a folder may be read.
        lexical = Path(os.path.abspath(path))
        roots = [self.path.parent] + ([self.root] if self.root is not None else [])
        return any(lexical.is_relative_to(os.path.abspath(root)) for root in roots)


def _walk(folder: Path, names: list[str]) -> Path | None:
    """Follow names from a folder; where a name is not there, one that differs in case or in Unicode form is taken."""
    path = folder
    for name in names:
        step = path / name
        try:
            if name != ".." and not step.exists():
                wanted = _folded(name)
                step = next((other for other in sorted(path.iterdir()) if _folded(other.name) == wanted), None)
        except (OSError, ValueError):  # no folder, or a name that no file can have
            return None
        if step is None:
            return None
        path = step
    return Path(os.path.normpath(path)) if path.is_file() else None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def data_uri(uri: str) -> bytes:
    """The bytes of a `data:` URI.

    Raises:
        DataError: it has no comma, or its base64 is broken.
    """
    head, comma, body = uri.strip().partition(",")
    if not comma:
        raise DataError("is a data URI without content")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        body = re.sub(r"\s+", "", unquote(body))
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as err:
        raise DataError(f"is a data URI with broken base64 ({first_line(err)})") from err


def decode_picture(content: bytes) -> np.ndarray:
    """Decode a picture by its content; 16-bit pictures are rounded to 8 bits.

    Returns:
        uint8 sRGB (height, width, 3), or (height, width, 4) with straight alpha.

    Raises:
        DataError: it is no picture, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    for start, kind in _OTHER_FORMATS.items():
        if content.startswith(start):
            raise DataError(f"is {kind} file, which is not read here; use PNG or JPEG")
    if not content:
        raise DataError("is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"has {image.width} x {image.height} pixels, which is too many")
            if image.mode.startswith(("I", "F")):
                return _from_wide(np.asarray(image, dtype=np.float64), floating=image.mode == "F")
            clear = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
            return np.asarray(image.convert("RGBA" if clear else "RGB"))
    except DataError:
        raise
    except UnidentifiedImageError as err:
        raise DataError("is broken or no picture") from err
    except Exception as err:  # the decoders of Pillow raise any exception
        raise DataError(f"is broken or no picture ({first_line(err)[:80]})") from err


def _from_wide(grey_HW: np.ndarray, *, floating: bool) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 (height, width, 3)."""
    top = 1.0 if floating and grey_HW.max() <= 1 else 255.0 if grey_HW.max() <= 255 and floating else 65535.0
    grey = np.round(np.clip(np.nan_to_num(grey_HW) / top, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
