"""Centre objects for the image model: `python -m utils.recenter_i2v DIR_OR_FILES... [--list data/test_images.txt]`.

Each object is cropped by its alpha, scaled to 200 pixels on its longer side, and centred on 256 x 256 pixels of white.
Results are written to ./data/images, as published. If a file fails, its error is printed in one line, the other files
are still processed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from utils.background import Remover, background_remover
from utils.errors import ConfigError, DataError, WriteError
from utils.files import atomic_path, check_text, read_lines, writable_folder
from utils.object_image import (
    PICTURE_SUFFIXES,
    PUBLISHED_OBJECT_SIZE,
    PUBLISHED_SIZE,
    cut_out,
    open_picture,
    recentre,
    tell_if_white,
)
from utils.script import run_script

log = logging.getLogger(__name__)

MAX_SIZE = 16384


def find_pictures(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """List the given files, and the pictures directly in the given folders.

    Returns:
        The files without repetition, and one error line for each folder without pictures.
    """
    files: dict[Path, None] = {}
    failures = []
    for path in map(Path, inputs):
        if not path.is_dir():
            files[path] = None
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
        files.update(dict.fromkeys(found))
        if not found:
            failures.append(
                f"{path}: contains no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}); name another folder, or files"
            )
    return list(files), failures


def recentre_files(
    files: Sequence[Path],
    *,
    out: Path,
    size: int,
    object_size: int,
    remove_background: Remover | None = None,
) -> tuple[list[Path], list[str]]:
    """Write `out/<name>.png` for each file.

    Returns:
        The files that were written, and one error line for each file that failed.
    """
    sources: dict[Path, Path] = {}
    failures = []
    for file in files:
        target = out / f"{file.stem}.png"
        try:
            if target in sources:
                raise DataError(f"{file}: {target} is already the result of {sources[target]}; rename one of them")
            if target.resolve() == file.resolve():
                raise DataError(f"{file}: would be overwritten by its own result; choose another folder with --out")
            rgba_HW4 = cut_out(open_picture(file), path=file, remove_background=remove_background)
            result_HW4 = recentre(rgba_HW4, size=size, object_size=object_size)
            tell_if_white(result_HW4[..., :3], path=file)
            with atomic_path(target) as part:
                Image.fromarray(result_HW4).save(part)
        except WriteError:  # of the disk, so the others cannot be written either
            raise
        except DataError as err:
            failures.append(str(err))
        else:
            sources[target] = file
    return list(sources), failures


def add_to_list(list_file: Path, results: Sequence[Path]) -> None:
    """Append paths to the list that inference reads; existing lines stay, and no path is listed twice.

    Raises:
        DataError: the list is not UTF-8 text, or a path cannot be written into it.
    """
    lines = read_lines(list_file, option="--list") if list_file.exists() else []
    present = set(lines)
    new = [check_text(str(result), name="--list: the path") for result in results]
    lines += [path for path in dict.fromkeys(new) if path not in present]
    with atomic_path(list_file) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    name = "python -m utils.recenter_i2v" if argv is None else None
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument(
        "inputs", nargs="+", metavar="DIR_OR_FILE", help="pictures with an alpha channel, or folders of such pictures"
    )
    parser.add_argument("--size", type=int, default=PUBLISHED_SIZE, help="width and height of the results in pixels")
    parser.add_argument(
        "--object-size", type=int, default=PUBLISHED_OBJECT_SIZE, help="longer side of the object in pixels"
    )
    parser.add_argument("--out", default="data/images", help="folder for the results")
    parser.add_argument("--list", metavar="FILE", help="also append the results to this list of inputs for inference")
    parser.add_argument(
        "--remove-background",
        action="store_true",
        help="cut objects out of photos, with a small network (needs a package)",
    )
    args = parser.parse_args(argv)
    if not 1 <= args.object_size <= args.size <= MAX_SIZE:
        raise ConfigError(
            f"--object-size must lie in [1, --size={args.size}], got {args.object_size}; --size in [1, {MAX_SIZE}]"
        )
    if args.list and Path(args.list).exists():
        read_lines(args.list, option="--list")  # before work starts
    remover = background_remover() if args.remove_background else None
    out = writable_folder(args.out, option="--out")
    files, failures = find_pictures(args.inputs)
    options = {"size": args.size, "object_size": args.object_size, "remove_background": remover}
    results, failed = recentre_files(files, out=out, **options)
    if args.list and results:
        add_to_list(Path(args.list), results)
    for line in [*failures, *failed]:
        print(f"failed: {line}", file=sys.stderr)
    log.info("recentred %d of %d pictures into %s", len(results), len(files), out)
    if failures or failed:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
