"""Arguments, messages and exit codes of the scripts."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable

from utils.errors import ConfigError, DataError


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
    """Run `main` and exit with its result; user errors are one line on stderr and exit code 2, Ctrl-C is code 130."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "matplotlib", "PIL", "imageio_ffmpeg"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        sys.exit(main())
    except (ConfigError, DataError, PermissionError) as err:
        sys.stderr.write(f"error: {err}\n")  # a single write, so that lines of several processes do not mix
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
