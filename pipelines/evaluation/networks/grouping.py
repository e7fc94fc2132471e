"""Groups measured objects by folder, and within a folder by an attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def grouped(folders: Sequence[str], attributes: Sequence[Mapping[str, Any]], *, by: str = "") -> dict[str, list[int]]:
    """Return the indices of the objects of each folder, and of its objects with each value of the attribute `by`.

    Args:
        folders: folder of each object.
        attributes: known attributes of each object.
        by: name of an attribute; empty: only folders.
    """
    places: dict[str, list[int]] = {}
    for index, (folder, known) in enumerate(zip(folders, attributes, strict=True)):
        places.setdefault(folder, []).append(index)
        if by:
            places.setdefault(f"{folder}, {by} {known.get(by, 'unknown')}", []).append(index)
    return dict(sorted(places.items()))
