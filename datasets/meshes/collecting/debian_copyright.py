"""Reads Debian's copyright files: which licence and which authors belong to which file.

Source: the machine-readable copyright format, version 1.0, of the Debian Policy Manual.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

# Short names of licences in copyright files, and what SPDX calls them; a licence with a lower number is the freer one.
FREE = {
    "CC0": (0, "CC0-1.0"), "CC0-1.0": (0, "CC0-1.0"), "public-domain": (0, "public-domain"),
    "MIT": (1, "MIT"), "CC-BY-3.0": (2, "CC-BY-3.0"), "CC-BY-4.0": (3, "CC-BY-4.0"),
    "CC-BY-SA-3.0": (4, "CC-BY-SA-3.0"), "CC-BY-SA-4.0": (5, "CC-BY-SA-4.0"),
}  # fmt: skip


@dataclass(frozen=True)
class Paragraph:
    """What a copyright file says about some files."""

    patterns: tuple[str, ...]
    licence: str
    authors: tuple[str, ...]


def read_copyright(text: str) -> list[Paragraph]:
    """The paragraphs about files, in the order of the page."""
    found = []
    for block in re.split(r"\n[ \t]*\n", text):
        fields = {}
        for match in re.finditer(r"(?m)^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)", block):
            fields[match[1].lower()] = match[2]
        if "files" in fields and "license" in fields:
            licence = fields["license"].partition("\n")[0].strip()
            patterns = tuple(fields["files"].split())
            authors = (_author(line) for line in fields.get("copyright", "").splitlines())
            found.append(Paragraph(patterns, licence, tuple(author for author in authors if author)))
    return found


def _author(line: str) -> str:
    """A line of a copyright notice without years and addresses."""
    text = re.sub(r"<[^>]*>|\(c\)|©|[\d?]{4}(\s*[-,]\s*\d{2,4})*,?", "", line, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", text).strip(" ,.-")


def paragraph_of(paragraphs: list[Paragraph], path: str) -> Paragraph | None:
    """The paragraph about a file; of several, the last one counts."""
    for paragraph in reversed(paragraphs):
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in paragraph.patterns):
            return paragraph
    return None


def terms_of(paragraphs: list[Paragraph], paths: list[str]) -> tuple[str, tuple[str, ...]] | None:
    """Licence and authors of a work that is made of these files; None if one of them is not named, or not free."""
    found = [paragraph_of(paragraphs, path) for path in paths]
    known = [paragraph for paragraph in found if paragraph is not None]
    licence = free_licence([paragraph.licence for paragraph in known]) if len(known) == len(found) else None
    authors = tuple(dict.fromkeys(author for paragraph in known for author in paragraph.authors))
    return None if licence is None else (licence, authors)


def free_licence(names: list[str]) -> str | None:
    """The licence of a work that is made of parts under these licences; None if one of them is not free enough.

    Of `X or Y` the freer one is taken, of `X and Y` the stricter one. A work with a part under a share-alike licence
    is under it too; parts under version 3.0 may be used in a work under version 4.0.
    """
    ranks = []
    for name in names:
        choices = [_strictest(choice.split(" and ")) for choice in re.split(r" or ", name, flags=re.IGNORECASE)]
        known = [choice for choice in choices if choice is not None]
        if not known:
            return None
        ranks.append(min(known))
    return max(ranks)[1] if ranks else None


def _strictest(names: list[str]) -> tuple[int, str] | None:
    found = [FREE.get(name.strip()) for name in names]
    return None if None in found else max(rank for rank in found if rank is not None)
