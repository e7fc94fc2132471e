"""What the installed package contains: the code with renamed imports, the configurations and the small models.

The folders are those of the repository, inside `videomv/`, so that the code finds its files in the same way in both
(`utils.settings.paths.ROOT`). An installed package lists itself in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.videomv.imports import PACKAGES, SCRIPTS, with_renamed_imports

# What else a package needs: files, and folders with all files in them.
DATA = ("configs", "data/mini", "data/examples", "data/test_images.txt", "data/test_prompts.txt", "requirements.txt",
        "LICENSE")  # fmt: skip
# Files with a second name: the front of the package, and `python -m videomv`.
SECOND_NAMES = {"__init__.py": "tools/videomv/front.py", "__main__.py": "tools/videomv/__main__.py"}
LEFT_OUT = (".md", ".ipynb", ".pyc")  # the pages are for readers of the repository
KEPT = ("ATTRIBUTION.md",)  # the licence of some weights asks for it


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """One file of the package.

    Attributes:
        name: its path inside the package, with slashes.
        source: the file that it is made of.
    """

    name: str
    source: Path

    def content(self) -> bytes:
        """Return the content; the imports of a Python file are renamed.

        Raises:
            ImportFault: an import cannot be renamed.
        """
        raw = self.source.read_bytes()
        if self.source.suffix != ".py":
            return raw
        return with_renamed_imports(raw.decode("utf-8"), file=str(self.source)).encode("utf-8")


def package_files(root: Path) -> Iterator[PackageFile]:
    """List the files of the package, sorted by their names.

    Args:
        root: the repository, or an installed package.

    Raises:
        FileNotFoundError: something that belongs to the package is missing; the message has its name.
    """
    names = dict(SECOND_NAMES)
    for name in (*PACKAGES, *(f"{script}.py" for script in SCRIPTS), *DATA):
        names |= {one: one for one in _files_in(root, name)}
    for name, source in sorted(names.items()):
        yield PackageFile(name=name, source=root / source)


def _files_in(root: Path, name: str) -> Iterator[str]:
    """Names relative to `root` of a file, or of the files of a folder."""
    top = root / name
    if not top.exists():
        raise FileNotFoundError(f"{top} is missing, but belongs to the package; restore it")
    for path in [top] if top.is_file() else top.rglob("*"):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden and (path.suffix not in LEFT_OUT or path.name in KEPT):
            yield "/".join(parts)
