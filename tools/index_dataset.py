"""List the objects of a folder in the G-Objaverse layout, and report incomplete, broken and useless ones.

    python tools/index_dataset.py data/orbits --captions data/captions.json --strict

writes data/orbits/index.json with the good objects; `--all` also lists the others. Not good are: missing or broken
files, views without an object or without alpha, pictures or cameras that come twice, cameras at the origin, and a
missing caption. If no object is good, nothing is written and the exit code is 2.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from datasets.orbits.check import COVERED_GAP, problems_of, uncovered_deg
from datasets.orbits.gobjaverse import read_orbit
from datasets.orbits.layout import count_views, find_objects, has_alpha, read_camera, view_file
from utils.errors import ConfigError, DataError
from utils.files import read_json, write_json
from utils.jobs import run_jobs
from utils.prompts import wordings_of
from utils.script import run_script

MOST_VIEWS, MOST_WORKERS = 1000, 1024


def check_object(object_id: str, root: Path, num_views: int, quick: bool) -> tuple[str, list[str]]:
    """Find the problems of one object; one message each.

    quick: check that files exist and are not empty, and decode only the first view.
    """
    problems = []
    folder = root / object_id
    for view in range(num_views):
        for suffix in (".png", ".json"):
            file = view_file(folder, view, suffix)
            if not file.is_file():
                problems.append(f"object {object_id}: {file}: the file is missing")
            elif file.stat().st_size == 0:
                problems.append(f"object {object_id}: {file}: the file is empty (zero bytes)")
    if problems:
        return object_id, problems
    views = 1 if quick else num_views
    try:
        orbit = read_orbit(folder, num_views=views)
        with_alpha = [has_alpha(view_file(folder, view)) for view in range(views)]
    except (DataError, OSError, MemoryError) as err:
        return object_id, [f"object {object_id}: {' '.join(str(err).split())}"]
    return object_id, [f"object {object_id}: {problem}" for problem in problems_of(orbit, with_alpha=with_alpha)]


def note_views(ids: list[str], root: Path, num_views: int) -> None:
    """Print a note if the number of views on disk shows that --views is meant otherwise."""
    counts = Counter(count_views(root / object_id) for object_id in ids)
    usual = counts.most_common(1)[0][0]
    if 0 < usual < num_views:
        print(f"note: {counts[usual]} of {len(ids)} objects have {usual} views; for these use --views {usual}")
        return
    first = next((object_id for object_id in ids if count_views(root / object_id) >= num_views), None)
    if first is None or usual == num_views or num_views < 2:
        return
    try:
        cameras = [read_camera(view_file(root / first, view, ".json")).c2w_44 for view in range(num_views)]
    except DataError:  # reported with its object
        return
    gap_deg = uncovered_deg(np.stack(cameras))
    if gap_deg > COVERED_GAP * 360 / num_views:
        print(
            f"note: {usual} views are on disk, and the first {num_views} of object {first} leave {gap_deg:.0f} degrees "
            f"of the orbit out; is --views {usual} meant?"
        )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder that contains <dictionary id>/<instance id>/")
    parser.add_argument("--out", type=Path, help="index file (default FOLDER/index.json)")
    parser.add_argument("--captions", type=Path, help="captions file; objects without a caption are reported")
    parser.add_argument("--views", type=int, default=24, help="number of views that an object must have (default 24)")
    parser.add_argument("--quick", action="store_true", help="decode only the first view of each object")
    parser.add_argument("--all", action="store_true", help="also list broken objects")
    parser.add_argument("--strict", action="store_true", help="exit with code 1 if an object is broken")
    parser.add_argument("--workers", type=int, default=4, help="number of processes (default 4)")
    return parser.parse_args(argv)


def check_options(options: argparse.Namespace) -> Path:
    """Check the options and return the path of the index.

    Raises:
        ConfigError, DataError: an option is out of range, or a path does not fit.
    """
    if not 1 <= options.views <= MOST_VIEWS:
        raise ConfigError(f"--views must lie in [1, {MOST_VIEWS}], got {options.views}")
    if not 1 <= options.workers <= MOST_WORKERS:
        raise ConfigError(f"--workers must lie in [1, {MOST_WORKERS}], got {options.workers}")
    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: no such folder; name the one that contains <dictionary id>/<instance id>/")
    out = options.out or options.folder / "index.json"
    if out.is_dir():
        raise DataError(f"--out={out} is a folder; name a file, e.g. {out / 'index.json'}")
    if options.captions and out.resolve() == options.captions.resolve():
        raise DataError(f"--out={out} is the file of --captions; name another file")
    if out.is_file() and not isinstance(read_json(out, option="--out"), list):
        raise DataError(f"--out={out} exists and is not an index (a JSON list of object ids); name another file")
    return out


def read_captions_of(path: Path | None) -> dict[str, object] | None:
    """Read a captions file; None without one.

    Raises:
        DataError: it is missing or is not a JSON object.
    """
    captions = read_json(path, option="--captions") if path else None
    if captions is not None and not isinstance(captions, dict):
        raise DataError(f"--captions={path}: not a JSON object from object id to caption")
    return captions


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    out = check_options(options)
    captions = read_captions_of(options.captions)
    ids = list(find_objects(options.folder))
    if not ids:
        raise DataError(f"{options.folder}: contains no object; expected <dictionary id>/<instance id>/campos_512_v4/")
    jobs = [(object_id, options.folder, options.views, options.quick) for object_id in ids]
    problems: dict[str, list[str]] = {}
    for result, error in run_jobs(check_object, jobs, workers=options.workers, total=len(jobs), unit="object"):
        if error is not None:
            raise DataError(f"{options.folder}: cannot be checked: {error}")
        object_id, lines = result
        caption = None if captions is None else captions.get(object_id)
        if captions is not None and not wordings_of(caption):
            lines = [*lines, f"object {object_id}: no caption in {options.captions}; add one"]
        if lines:
            problems[object_id] = lines
    for object_id in sorted(problems):
        print("\n".join(problems[object_id]))
    note_views(ids, options.folder, options.views)
    listed = ids if options.all else [object_id for object_id in ids if object_id not in problems]
    summary = f"{len(ids)} objects, {len(problems)} incomplete or broken, {len(listed)} listed"
    if not listed:
        kept = f"; {out} stays as it is" if out.exists() else ""
        raise DataError(f"{summary}: nothing to write{kept}; see the lines above, or use --all")
    write_json(out, listed)
    print(f"{summary} in {out}")
    return 1 if options.strict and problems else 0


if __name__ == "__main__":
    run_script(main)
