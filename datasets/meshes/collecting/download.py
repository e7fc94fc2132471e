"""Downloads sources with the ordinary clients: apt-get and dpkg-deb for Debian packages, git for repositories."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from utils.errors import DataError, WriteError
from utils.files import atomic_folder

TICK_SECONDS = 0.5
LAST_LINES = 3


class Origin(Protocol):
    """Where a source comes from."""

    def described(self) -> str:
        """Name the origin in words."""
        ...

    def fetch(self, folder: Path) -> list[str]:
        """Put the content of the source into `folder`; each part completely or not at all.

        Returns:
            An error message for each part that is missing.

        Raises:
            DataError: a client is missing, or nothing could be downloaded.
            WriteError: the disk is full.
        """
        ...


class DebianPackage:
    """A package of Debian's archive. It is downloaded and unpacked, not installed; no rights of root are needed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def described(self) -> str:
        return f"Debian package {self.package}"

    def fetch(self, folder: Path) -> list[str]:
        remedy = f"download the package {self.package} by hand, and name it or its unpacked folder by --from"
        for client in ("apt-get", "dpkg-deb"):
            if shutil.which(client) is None:
                raise DataError(f"{client} is not on this machine; {remedy}")
        listed = _output(["apt-get", "--print-uris", "download", self.package])
        if listed is None:
            raise DataError(
                f"apt-get does not know the package {self.package}; run `apt-get update` with the `main` component of "
                f"Debian or `universe` of Ubuntu, or {remedy}"
            )
        _, filename, size, *_ = listed.split()
        kept = folder.with_name(f"{folder.name}.deb")  # apt-get keeps what it has if it is stopped
        kept.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", self.package], watched=kept, total=int(size), title=self.package, cwd=kept)
        unpack_deb(kept / filename, folder)
        shutil.rmtree(kept)
        return []


class GitRepositories:
    """Repositories of which the newest state is cloned."""

    def __init__(self, *urls: str) -> None:
        self.urls = urls

    def described(self) -> str:
        return "git " + (self.urls[0] if len(self.urls) == 1 else f"{self.urls[0]} and {len(self.urls) - 1} more")

    def fetch(self, folder: Path) -> list[str]:
        if shutil.which("git") is None:
            raise DataError("git is not on this machine; install it, or clone by hand and name the folder by --from")
        folder.mkdir(parents=True, exist_ok=True)
        failed = []
        for url in self.urls:
            name = url.rstrip("/").rpartition("/")[2].removesuffix(".git")
            if (folder / name).is_dir():
                continue
            try:
                with atomic_folder(folder / name) as part:
                    command = ["git", "clone", "--quiet", "--depth", "1", "--", url, str(part)]
                    _run(command, watched=part, total=None, title=name)
                    shutil.rmtree(part / ".git", ignore_errors=True)
            except WriteError:
                raise
            except DataError as err:
                failed.append(f"{name}: {err}")
        if len(failed) == len(self.urls):
            raise DataError(f"none of its repositories can be cloned; {failed[0]}")
        return failed


def unpack_deb(package: Path, folder: Path) -> None:
    """Unpack a .deb file.

    Raises:
        DataError: dpkg-deb is missing, or the file is broken.
        WriteError: the disk is full.
    """
    if shutil.which("dpkg-deb") is None:
        raise DataError("dpkg-deb is not on this machine; unpack the package by hand and name the folder by --from")
    kilobytes = _output(["dpkg-deb", "--field", str(package), "Installed-Size"])
    total = int(kilobytes) * 1024 if kilobytes and kilobytes.strip().isdigit() else None
    with atomic_folder(folder) as part:
        command = ["dpkg-deb", "--extract", str(package), str(part)]
        remedy = f"{package} may be damaged; download it again"
        _run(command, watched=part, total=total, title=f"unpacking {package.name}", remedy=remedy)


def _environment() -> dict[str, str]:
    """Clients answer in English and never ask for a password."""
    return os.environ | {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true"}


def _output(command: list[str]) -> str | None:
    """What a short command prints; None if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), errors="replace", check=False)
    return done.stdout if done.returncode == 0 and done.stdout.strip() else None


def _run(
    command: list[str],
    *,
    watched: Path,
    total: int | None,
    title: str,
    cwd: Path | None = None,
    remedy: str = "check the network, and run again",
) -> None:
    """Run a client, and show how a folder grows meanwhile.

    Args:
        total: final size of the folder in bytes, None if unknown.

    Raises:
        DataError: the client failed.
        WriteError: it failed because the disk is full.
    """
    client = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=_environment(),
        cwd=cwd,
    )  # fmt: skip
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc=title, mininterval=TICK_SECONDS, smoothing=0.1) as bar:
            while True:
                try:
                    _, errors = client.communicate(timeout=TICK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    bar.update(_size(watched) - bar.n)
            bar.update(_size(watched) - bar.n)
    finally:
        if client.poll() is None:
            client.terminate()
            client.wait()
    if client.returncode:
        lines = [line.strip() for line in errors.splitlines() if line.strip() and not line.startswith("W:")]
        reason = " / ".join(lines[-LAST_LINES:]) or f"exit code {client.returncode}"
        if "No space left" in errors or "enough free space" in errors:
            raise WriteError(f"{watched.parent} cannot be written ({reason}); free some space, or choose --downloads")
        raise DataError(f"{' '.join(command[:2])} failed ({reason}); {remedy}")


def _size(folder: Path) -> int:
    """The bytes of all files below a folder that a client is writing to."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # a temporary file that has just been renamed
                continue
    return total


def elapsed(start: float) -> str:
    """The time since `start` (of time.monotonic) in words."""
    seconds = time.monotonic() - start
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
