"""Builds the installable package: the build backend that pyproject.toml names (PEP 517), for `pip install .`.

A wheel is a zip file of the package with three small files about it (PEP 427, PEP 621). It is written here and not by
setuptools, because each import is renamed on the way, and so that building needs no other package and no network. An
editable installation is not possible, because the files in the repository have other imports.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.videomv.contents import package_files
from tools.videomv.imports import PACKAGE
from utils.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
TAG = "py3-none-any"
SAME_TIME = (1980, 1, 1, 0, 0, 0)  # so that the same files make the same wheel
OF_THE_SOURCE = ("pyproject.toml", "README.md")
COMPRESSED = (".safetensors", ".png")  # compressing them again takes long and gains nothing


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Write the wheel and return its name (PEP 517)."""
    facts = project_facts(ROOT)
    name = f"{PACKAGE}-{facts['version']}"
    with atomic_path(Path(wheel_directory) / f"{name}-{TAG}.whl") as part, zipfile.ZipFile(part, "w") as wheel:
        rows = [_add(wheel, f"{PACKAGE}/{one.name}", one.content()) for one in package_files(ROOT)]
        about = {
            "METADATA": metadata_text(facts, ROOT),
            "WHEEL": f"Wheel-Version: 1.0\nGenerator: {PACKAGE}\nRoot-Is-Purelib: true\nTag: {TAG}\n",
            "entry_points.txt": entry_points_text(facts),
            "licenses/LICENSE": (ROOT / "LICENSE").read_text(encoding="utf-8"),
        }
        rows += [_add(wheel, f"{name}.dist-info/{file}", text.encode()) for file, text in about.items()]
        record = f"{name}.dist-info/RECORD"
        _add(wheel, record, "".join([*rows, f"{record},,\n"]).encode())
    return f"{name}-{TAG}.whl"


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """Write an archive from which the wheel can be built, and return its name (PEP 517)."""
    facts = project_facts(ROOT)
    name = f"{PACKAGE}-{facts['version']}"
    sources = {one.source for one in package_files(ROOT)} | {ROOT / file for file in OF_THE_SOURCE}
    with (
        atomic_path(Path(sdist_directory) / f"{name}.tar.gz") as part,
        tarfile.open(part, "w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(sources):
            archive.add(path, f"{name}/{path.relative_to(ROOT).as_posix()}")
        about = metadata_text(facts, ROOT).encode()
        entry = tarfile.TarInfo(f"{name}/PKG-INFO")
        entry.size = len(about)
        archive.addfile(entry, io.BytesIO(about))
    return f"{name}.tar.gz"


def project_facts(root: Path) -> dict[str, Any]:
    """Return the table `project` of pyproject.toml, with the dependencies of requirements.txt."""
    facts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {**facts, "dependencies": requirements(root)}


def requirements(root: Path) -> list[str]:
    """List the lines of requirements.txt without comments."""
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


def metadata_text(facts: dict[str, Any], root: Path) -> str:
    """Return the metadata of the package in the format that pip reads (version 2.1)."""
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {facts['name']}",
        f"Version: {facts['version']}",
        f"Summary: {facts['description']}",
        f"License: {facts['license']['text']}",
        f"Requires-Python: {facts['requires-python']}",
        "Description-Content-Type: text/markdown",
        *(f"Requires-Dist: {line}" for line in facts["dependencies"]),
        *_extras(facts.get("optional-dependencies", {})),
    ]
    return "\n".join(lines) + "\n\n" + (root / "README.md").read_text(encoding="utf-8")


def _extras(extras: dict[str, list[str]]) -> Iterator[str]:
    for extra, lines in extras.items():
        yield f"Provides-Extra: {extra}"
        for line in lines:
            package, _, marker = (part.strip() for part in line.partition(";"))
            condition = f'({marker}) and extra == "{extra}"' if marker else f'extra == "{extra}"'
            yield f"Requires-Dist: {package} ; {condition}"


def entry_points_text(facts: dict[str, Any]) -> str:
    """Return the file that makes pip write the console commands."""
    return "[console_scripts]\n" + "".join(f"{name} = {place}\n" for name, place in facts["scripts"].items())


def _add(wheel: zipfile.ZipFile, name: str, content: bytes) -> str:
    """Add a file and return its line for RECORD."""
    entry = zipfile.ZipInfo(name, date_time=SAME_TIME)
    entry.external_attr = 0o644 << 16
    packed = zipfile.ZIP_STORED if name.endswith(COMPRESSED) else zipfile.ZIP_DEFLATED
    wheel.writestr(entry, content, compress_type=packed)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"
