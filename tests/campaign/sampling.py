"""Bad sampling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.campaign import Case


def cases(folder: Path) -> Iterator[Case]:
    """Write the inputs below `folder`."""
    yield from ()
