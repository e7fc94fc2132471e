"""Render the procedural zoo, or random shapes: orbits with captions, without a download.

    python tools/make_zoo.py data/zoo --num 6000
    python tools/make_zoo.py data/zoo_packed --num 6000 --packed
    python tools/make_zoo.py data/shapes_packed --num 6000 --packed --shapes

The first command writes the G-Objaverse layout with index.json, captions.json and attributes.json. The second writes
the same data as a few large files (see datasets/orbits/packed.py), which the small models train on. The third draws
random shapes instead of things with names. Finished files are skipped, so if you start a stopped run again, it
continues.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from datasets.meshes.render_options import (
    add_camera_options,
    check_camera_options,
    hold_settings,
    light_of,
    light_settings,
)
from datasets.meshes.renderer import Rendering, render_views
from datasets.orbits.layout import is_complete, write_orbit
from datasets.orbits.packed import PackedShard, shard_file, write_shard
from datasets.shapes import VERSION, RandomShape, sample_shape
from datasets.zoo import KINDS, ZooObject, sample_object
from utils.cameras import orbit_cameras
from utils.errors import ConfigError
from utils.files import writable_folder, write_json
from utils.jobs import run_jobs
from utils.script import run_script

# Objects per dictionary id, so that no folder becomes too large.
DICTIONARY_SIZE = 1000
MAX_OBJECTS, MAX_SEED = 10_000_000, 2**62
HELD = (
    "split",
    "seed",
    "kinds",
    "views",
    "size",
    "elevation",
    "distance",
    "fov",
    "samples",
    "no_nd",
    "packed",
    "shard",
)


def object_id(number: int) -> str:
    """Return `<dictionary id>/<instance id>` of object `number`."""
    return f"{number // DICTIONARY_SIZE}/{number}"


def elevation_of(number: int, options: argparse.Namespace) -> float:
    """Return the elevation of an object: fixed, or drawn from the range with its own seed."""
    low, high = options.elevation[0], options.elevation[-1]
    return float(np.random.default_rng([options.seed + number, 1]).uniform(low, high))


def draw_object(number: int, options: argparse.Namespace, *, with_mesh: bool = True) -> ZooObject | RandomShape:
    """Draw object `number`."""
    seed, split = options.seed + number, options.split
    if options.shapes:
        return sample_shape(seed, split, with_mesh=with_mesh)
    kinds = tuple(options.kinds) if options.kinds else None
    return sample_object(seed, split, kinds=kinds, with_mesh=with_mesh)


def render_object(
    number: int, c2w_V44: np.ndarray, options: argparse.Namespace
) -> tuple[ZooObject | RandomShape, Rendering]:
    """Draw and render object `number`."""
    drawn = draw_object(number, options)
    views = render_views(
        drawn.mesh,
        c2w_V44,
        fov_deg=options.fov,
        size=options.size,
        samples=options.samples,
        normal_depth=not (options.no_nd or options.packed),
        light=light_of(object_id(number), options),
    )
    return drawn, views


def make_folder(number: int, c2w_V44: np.ndarray, options: argparse.Namespace) -> None:
    """Write one object in the G-Objaverse layout."""
    drawn, views = render_object(number, c2w_V44, options)
    write_orbit(
        options.out / object_id(number),
        rgba_VHW4=views.rgba_VHW4,
        c2w_V44=c2w_V44,
        fov_deg=options.fov,
        bounds_23=drawn.mesh.bounds_23,
        normals_VHW3=views.normals_VHW3,
        depth_VHW=views.depth_VHW,
    )


def make_shard(shard: int, numbers: list[int], c2w_NV44: np.ndarray, options: argparse.Namespace) -> None:
    """Write many objects into one file."""
    made = [render_object(number, c2w_V44, options) for number, c2w_V44 in zip(numbers, c2w_NV44, strict=True)]
    write_shard(
        shard_file(options.out, shard),
        PackedShard(
            rgba_NVHW4=np.stack([views.rgba_VHW4 for _, views in made]),
            c2w_NV44=c2w_NV44,
            fov_deg=options.fov,
            object_ids=[object_id(number) for number in numbers],
            captions=[drawn.caption for drawn, _ in made],
            attributes=[drawn.attributes() for drawn, _ in made],
        ),
    )


def write_lists(options: argparse.Namespace) -> None:
    """Write index.json, captions.json and attributes.json of the G-Objaverse layout."""
    described = {object_id(n): draw_object(n, options, with_mesh=False) for n in range(options.num)}
    write_json(options.out / "index.json", list(described))
    write_json(options.out / "captions.json", {key: drawn.caption for key, drawn in described.items()})
    write_json(options.out / "attributes.json", {key: drawn.attributes() for key, drawn in described.items()})


def cameras_of(numbers: list[int], options: argparse.Namespace) -> np.ndarray:
    """Return the cameras c2w_NV44 of objects."""
    orbits = [
        orbit_cameras(num_views=options.views, elevation_deg=elevation_of(n, options), radius=options.distance).numpy()
        for n in numbers
    ]
    return np.stack(orbits)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--num", type=int, required=True, help="number of objects")
    parser.add_argument("--split", choices=("train", "held_out"), default="train")
    parser.add_argument("--seed", type=int, default=0, help="seed of object 0; object n has seed + n (default 0)")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="only these kinds (default: all)")
    parser.add_argument("--shapes", action="store_true", help="random shapes instead of the objects of the zoo")
    parser.add_argument(
        "--elevation", type=float, nargs="+", default=[15.0], help="degrees; two numbers are a range (default 15)"
    )
    parser.add_argument("--packed", action="store_true", help="write a few large files instead of folders of PNG")
    parser.add_argument("--shard", type=int, default=64, help="objects per packed file (default 64)")
    add_camera_options(parser, size=128)
    options = parser.parse_args(argv)
    check_camera_options(options)
    if options.num < 1 or options.shard < 1 or options.seed < 0:
        raise ConfigError(
            f"--num={options.num} and --shard={options.shard} must be at least 1, --seed={options.seed} at least 0"
        )
    if options.num > MAX_OBJECTS or options.seed > MAX_SEED:
        raise ConfigError(
            f"--num={options.num} must be at most {MAX_OBJECTS}, and --seed={options.seed} at most {MAX_SEED}"
        )
    if len(options.elevation) > 2 or not -90 < options.elevation[0] <= options.elevation[-1] < 90:
        raise ConfigError(f"--elevation must be one angle or an increasing range in (-90, 90), got {options.elevation}")
    if options.shapes and options.kinds:
        raise ConfigError("--kinds names objects of the zoo, but --shapes draws random shapes; leave out one of them")
    unknown = sorted(set(options.kinds or ()) - set(KINDS))
    if unknown:
        raise ConfigError(f"--kinds: {', '.join(unknown)} unknown; valid: {', '.join(sorted(KINDS))}")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    writable_folder(options.out, option="out")
    # the last packed file depends on --num; in the other layout, objects may be added later
    held = (*HELD, "num") if options.packed else HELD
    settings = {name: getattr(options, name) for name in held} | light_settings(options)
    # None, not False, because folders of earlier versions do not have it
    hold_settings(options.out, settings | {"shapes": VERSION if options.shapes else None})
    if options.packed:
        groups = [list(range(k, min(k + options.shard, options.num))) for k in range(0, options.num, options.shard)]
        todo = [(k, group) for k, group in enumerate(groups) if not shard_file(options.out, k).is_file()]
        jobs = ((k, group, cameras_of(group, options), options) for k, group in todo)
        finished = run_jobs(make_shard, jobs, workers=options.workers, total=len(todo), unit="shard", out=options.out)
    else:
        nd = not options.no_nd
        numbers = [
            n
            for n in range(options.num)
            if not is_complete(options.out / object_id(n), num_views=options.views, normal_depth=nd)
        ]
        jobs = ((n, cameras_of([n], options)[0], options) for n in numbers)
        finished = run_jobs(
            make_folder, jobs, workers=options.workers, total=len(numbers), unit="object", out=options.out
        )
    failures = [error for _, error in finished if error is not None]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if not options.packed and not failures:
        write_lists(options)
    print(f"{options.num} objects, {len(failures)} jobs failed: {os.fspath(options.out)}")
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
