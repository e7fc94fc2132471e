"""A lock on a folder, so that two trainings do not write into it at once."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from utils.errors import DataError
from utils.files import writable_folder

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextmanager
def folder_lock(folder: str | Path, *, option: str) -> Iterator[None]:
    """Hold a lock on a folder. The system releases it when the process ends, however that happens.

    It is a record lock: processes that are forked later, such as those that read data, do not hold it.

    Args:
        option: the setting that names the folder, for the error message.

    Raises:
        DataError: another process holds the lock, or the folder cannot be written.
    """
    path = writable_folder(folder, option=option) / LOCK_FILE
    file = None if fcntl is None else _locked(path, folder, option)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()


def _locked(path: Path, folder: str | Path, option: str) -> TextIO:
    """Open and lock a file; it stays locked until it is closed."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as err:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise DataError(
                f"{option}={folder} is in use by {holder}; wait until it ends, or use another {option}"
            ) from err
        except OSError as err:  # a disk without locks
            log.warning("%s=%s cannot be locked (%s); start no second training there", option, folder, err.strerror)
        if path.is_file() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()  # the last holder has removed this file in between
    with suppress(OSError):  # a full disk, which saving reports
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    return file
