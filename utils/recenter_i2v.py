"""Centre objects for the image model: `python -m utils.recenter_i2v DIR_OR_FILES... [--list data/test_images.txt]`.

Each object is cropped by its alpha, its longer side scaled to 200 pixels, and centred on 256 x 256; the results are
over white and go to ./data/images, as published. A file that cannot be done is said in one line, the others are done
all the same, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from utils.errors import ConfigError, DataError, first_line
from utils.files import atomic_path, writable_folder
from utils.object_image import PUBLISHED_OBJECT_SIZE, PUBLISHED_SIZE, cut_out, open_picture, recentre
from utils.script import run_script

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".webp", ".gif", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".tga", ".avif", ".jp2"}
FAINTEST_ALPHA = 16  # of an estimated mask: what is fainter is no part of the object, and would widen its box


def find_pictures(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files as they are, folders as the pictures directly in them.

    Returns:
        The files, each once, and one line for each input that gives none.
    """
    files: dict[Path, None] = {}
    failures = []
    for path in map(Path, inputs):
        if not path.is_dir():
            files[path] = None
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        files.update(dict.fromkeys(found))
        if not found:
            failures.append(f"{path}: holds no pictures ({', '.join(sorted(SUFFIXES))}); give another folder, or files")
    return list(files), failures


def recentre_files(
    files: Sequence[Path],
    *,
    out: Path,
    size: int,
    object_size: int,
    remove_background: Callable[[Image.Image], Image.Image] | None = None,
) -> tuple[list[Path], list[str]]:
    """Write `out/<name>.png` for each file.

    Returns:
        The files that were written, and one line for each that could not be done.
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
            with atomic_path(target) as part:
                Image.fromarray(recentre(rgba_HW4, size=size, object_size=object_size)).save(part)
        except DataError as err:
            failures.append(str(err))
        else:
            sources[target] = file
    return list(sources), failures


def add_to_list(list_file: Path, results: Sequence[Path]) -> None:
    """Append paths to the list that inference reads; what is there stays and nothing comes twice.

    Raises:
        DataError: the list is no UTF-8 text.
    """
    try:
        text = list_file.read_text(encoding="utf-8") if list_file.is_file() else ""
    except UnicodeDecodeError as err:
        raise DataError(f"--list {list_file} is no UTF-8 text ({err.reason}); give a text file") from err
    lines = text.splitlines()
    lines += [str(result) for result in results if str(result) not in lines]
    with atomic_path(list_file) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def background_remover() -> Callable[[Image.Image], Image.Image]:
    """rembg's default model as a function from RGB to RGBA.

    Raises:
        DataError: rembg is not installed, or (when called) it cannot fetch its weights.
    """
    try:
        import rembg
    except (ImportError, SystemExit) as err:  # rembg leaves the program when its onnxruntime is missing
        raise DataError(
            "--remove-background needs rembg; install it with `python -m pip install 'rembg[cpu]'` "
            "(it fetches its weights, about 170 MB, at the first use)"
        ) from err
    session = None

    def remove(image: Image.Image) -> Image.Image:
        nonlocal session
        try:
            session = session or rembg.new_session()
            mask = rembg.remove(image, session=session, only_mask=True).convert("L")
        except (OSError, ValueError) as err:  # no network; a download whose checksum is wrong
            raise DataError(
                "--remove-background: rembg could not fetch or read its weights "
                f"({first_line(err)}); run once where it can reach the network, "
                "or put u2net.onnx into the folder that U2NET_HOME names"
            ) from err
        cut = image.copy()
        cut.putalpha(mask.point(lambda value: value if value >= FAINTEST_ALPHA else 0))
        return cut

    return remove


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.recenter_i2v", description=__doc__)
    parser.add_argument("inputs", nargs="+", metavar="DIR_OR_FILE", help="pictures with alpha, or folders of them")
    parser.add_argument("--size", type=int, default=PUBLISHED_SIZE, help="side of the results in pixels")
    parser.add_argument("--object-size", type=int, default=PUBLISHED_OBJECT_SIZE, help="longer side of the object")
    parser.add_argument("--out", default="data/images", help="folder of the results")
    parser.add_argument("--list", metavar="FILE", help="also add the results to this list, which inference reads")
    parser.add_argument(
        "--remove-background", action="store_true", help="cut out objects of pictures without alpha (needs rembg)"
    )
    args = parser.parse_args()
    if not 1 <= args.object_size <= args.size:
        raise ConfigError(f"--object-size must lie in [1, --size], got {args.object_size} and {args.size}")
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
