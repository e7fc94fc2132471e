"""List the objects of a folder in the G-Objaverse layout, and report incomplete or broken ones.

    python tools/index_dataset.py data/orbits --captions data/captions.json --strict

writes data/orbits/index.json with the complete objects; `--all` also lists the others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.orbits.gobjaverse import read_orbit
from datasets.orbits.layout import find_objects, read_camera, read_rgba, view_file
from utils.errors import DataError
from utils.files import read_json, write_json
from utils.jobs import run_jobs
from utils.script import run_script


def check_object(object_id: str, root: Path, num_views: int, quick: bool) -> tuple[str, list[str]]:
    """Find the problems of one object; one message each.

    quick: check that files exist and are not empty, and decode only the first view.
    """
    problems = []
    for view in range(num_views):
        for suffix in (".png", ".json"):
            file = view_file(root / object_id, view, suffix)
            if not file.is_file():
                problems.append(f"object {object_id}: {file}: the file is missing")
            elif file.stat().st_size == 0:
                problems.append(f"object {object_id}: {file}: the file is empty (zero bytes)")
    if problems:
        return object_id, problems
    try:
        if quick:
            read_rgba(view_file(root / object_id, 0))
            read_camera(view_file(root / object_id, 0, ".json"))
        else:
            read_orbit(root / object_id, num_views=num_views)
    except DataError as err:
        problems.append(f"object {object_id}: {err}")
    return object_id, problems


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


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: no such folder; name the one that contains <dictionary id>/<instance id>/")
    captions = read_json(options.captions, option="--captions") if options.captions else None
    if captions is not None and not isinstance(captions, dict):
        raise DataError(f"--captions={options.captions}: not a JSON object from object id to caption")
    ids = list(find_objects(options.folder))
    if not ids:
        raise DataError(f"{options.folder}: contains no object; expected <dictionary id>/<instance id>/campos_512_v4/")
    jobs = [(object_id, options.folder, options.views, options.quick) for object_id in ids]
    problems: dict[str, list[str]] = {}
    for result, error in run_jobs(check_object, jobs, workers=options.workers, total=len(jobs), unit="object"):
        if error is not None:
            raise DataError(f"{options.folder}: cannot be checked: {error}")
        object_id, lines = result
        if captions is not None and not str(captions.get(object_id) or "").strip():
            lines = [*lines, f"object {object_id}: no caption in {options.captions}; add one"]
        if lines:
            problems[object_id] = lines
    for object_id in sorted(problems):
        print("\n".join(problems[object_id]))
    listed = ids if options.all else [object_id for object_id in ids if object_id not in problems]
    out = options.out or options.folder / "index.json"
    write_json(out, listed)
    print(f"{len(ids)} objects, {len(problems)} incomplete or broken, {len(listed)} listed in {out}")
    return 1 if options.strict and problems else 0


if __name__ == "__main__":
    run_script(main)
