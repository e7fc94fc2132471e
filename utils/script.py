"""Arguments, messages and exit codes of the scripts."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import select
import sys
from collections.abc import Callable
from typing import Any

from utils.errors import ConfigError, DataError
from utils.files import is_full_disk, no_room_for

# What a user's folder or machine can cause, at any place. Other errors of the system are faults of the program.
USER_ERRNOS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
    errno.EMFILE, errno.ENFILE, errno.ESTALE,
}  # fmt: skip
CLOSED_PIPE = 128 + 13  # as a shell reports a process that the signal SIGPIPE has ended


def config_arguments(description: str) -> argparse.ArgumentParser:
    """A parser for `--cfg FILE key=value ...`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cfg", required=True, help="configuration file, e.g. configs/mini/t2v_infer.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that replace those of the file, e.g. seed=3 UNet.dim=64",
    )
    return parser


def run_script(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its result.

    Errors of the user, of a full disk and of file names are one line on stderr and exit code 2. Ctrl-C is code 130. If
    the reader of the output has ended, as `| head` does, the script ends quietly with code 141. All other errors are
    faults of the program and give a traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "matplotlib", "PIL", "imageio_ffmpeg"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may have bytes that are no text
    try:
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except Exception as err:
        if isinstance(err, BrokenPipeError) and (_is_closed(sys.stdout) or _is_closed(sys.stderr)):
            _discard_output()
            sys.exit(CLOSED_PIPE)
        line = user_error(err)
        if line is None:
            raise
        _discard_output()
        sys.stderr.write(f"error: {line}\n")  # a single write, so that lines of several processes do not mix
        sys.exit(2)


def user_error(err: Exception) -> str | None:
    """The line about an error that a user can mend; None for a fault of the program."""
    if isinstance(err, ConfigError | DataError):
        return str(err)
    if isinstance(err, OSError):
        names = " and ".join(str(name) for name in (err.filename, err.filename2) if name is not None)
        if is_full_disk(err):
            return no_room_for(names or "the output", err)
        return f"{names or 'a file'}: {err.strerror}; check the path" if err.errno in USER_ERRNOS else None
    if isinstance(err, UnicodeEncodeError) and any("\ud800" <= letter <= "\udfff" for letter in err.object):
        return f"{err.object!a} has bytes that are not UTF-8; rename the file or folder, or correct the text"
    return None


def _is_closed(stream: Any) -> bool:
    """Whether the reader of a pipe has ended."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll on this system; no file, or a closed one
        return False


def _discard_output() -> None:
    """Discard what cannot be written; Python would try it once more at the end, and fail with another error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
