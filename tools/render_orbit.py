"""Render meshes to orbits in the G-Objaverse layout.

    python tools/render_orbit.py chair.glb meshes/ --out data/orbits

writes data/orbits/meshes/chair/campos_512_v4/00000/00000.{png,json} and 00000_nd.exr, and so on. Meshes are scaled
into the unit cube. Finished objects are skipped, so if you start a stopped run again, it continues.

    python tools/render_orbit.py objects/ --list objects.jsonl --where split=train cut_out=false \\
        --elevation 0 40 --packed --out workspace/objects_packed

writes a few large files (see datasets/README.md), which the mini models train on. A list has one line of JSON for each
mesh, with `file` (the end of the mesh's path), `caption` and any other attributes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from datasets.meshes.loading import UP_BY_SUFFIX, load_mesh
from datasets.meshes.render_options import add_camera_options, check_camera_options, hold_settings
from datasets.meshes.renderer import Rendering, render_views
from datasets.meshes.scene import RenderMesh, normalise
from datasets.orbits.layout import is_complete, write_orbit
from datasets.orbits.packed import PackedShard, shard_file, write_shard
from utils.cameras import orbit_cameras
from utils.errors import ConfigError, DataError
from utils.files import writable_folder
from utils.jobs import run_jobs
from utils.script import run_script

HELD = ("views", "size", "elevation", "azimuth", "distance", "fov", "samples", "up", "no_nd")
RANGES = ("elevation", "azimuth")


def view_mesh(
    mesh_file: Path, c2w_V44: np.ndarray, options: argparse.Namespace, *, normal_depth: bool
) -> tuple[RenderMesh, Rendering]:
    """Load one mesh, scaled into the unit cube, and render it.

    Raises:
        DataError: the file is not a mesh.
    """
    mesh = load_mesh(mesh_file, up=options.up)
    try:
        mesh = normalise(mesh)
    except DataError as err:
        raise DataError(f"{mesh_file}: {err}; repair the mesh and export it again") from err
    views = render_views(
        mesh, c2w_V44, fov_deg=options.fov, size=options.size, samples=options.samples, normal_depth=normal_depth
    )
    return mesh, views


def render_mesh(mesh_file: Path, object_dir: Path, c2w_V44: np.ndarray, options: argparse.Namespace) -> None:
    """Render one mesh to the G-Objaverse layout.

    Raises:
        DataError: the file is not a mesh.
    """
    mesh, views = view_mesh(mesh_file, c2w_V44, options, normal_depth=not options.no_nd)
    write_orbit(
        object_dir,
        rgba_VHW4=views.rgba_VHW4,
        c2w_V44=c2w_V44,
        fov_deg=options.fov,
        bounds_23=mesh.bounds_23,
        normals_VHW3=views.normals_VHW3,
        depth_VHW=views.depth_VHW,
    )


def render_shard(
    path: Path, meshes: dict[str, Path], known: dict[str, dict[str, Any]], options: argparse.Namespace
) -> list[str]:
    """Render many meshes into one file; returns one error message for each file that is not a mesh."""
    made: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    errors = []
    for name, file in meshes.items():
        c2w_V44 = cameras_of(name, options)
        try:
            made[name] = view_mesh(file, c2w_V44, options, normal_depth=False)[1].rgba_VHW4, c2w_V44
        except DataError as err:
            errors.append(str(err))
    if made:
        rgba, cameras = zip(*made.values(), strict=True)
        write_shard(
            path,
            PackedShard(
                rgba_NVHW4=np.stack(rgba),
                c2w_NV44=np.stack(cameras),
                fov_deg=options.fov,
                object_ids=[f"{options.dictionary}/{name}" for name in made],
                captions=[str(known.get(name, {}).get("caption", "")) for name in made],
                attributes=[known.get(name, {}) for name in made],
            ),
        )
    return errors


def cameras_of(name: str, options: argparse.Namespace) -> np.ndarray:
    """Return c2w_V44 of one mesh; elevation and azimuth are fixed, or drawn from their ranges by name and seed."""
    digest = hashlib.sha256(f"{options.seed} {name}".encode()).digest()
    generator = np.random.default_rng(list(digest[:8]))
    elevation, azimuth = (
        float(generator.uniform(ends[0], ends[-1])) if len(ends) > 1 else ends[0]
        for ends in (options.elevation, options.azimuth)
    )
    return orbit_cameras(
        num_views=options.views, elevation_deg=elevation, radius=options.distance, azimuth_start_deg=azimuth
    ).numpy()


def held_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that must not change when a run continues."""
    settings = {name: getattr(options, name) for name in HELD}
    drawn = [name for name in RANGES if len(settings[name]) > 1]
    fixed = {name: settings[name][0] for name in RANGES if name not in drawn}
    return settings | fixed | ({"seed": options.seed} if drawn else {})


def collect_meshes(paths: list[Path]) -> dict[str, Path]:
    """Collect mesh files by name; for a folder, all mesh files in it and in its subfolders.

    Raises:
        DataError: there is no mesh, or two files have the same name.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(p for p in path.rglob("*") if p.suffix.lower() in UP_BY_SUFFIX) if path.is_dir() else [path]
    if not files:
        raise DataError(f"no mesh ({', '.join(UP_BY_SUFFIX)}) in {', '.join(map(str, paths))}; name mesh files")
    named: dict[str, Path] = {}
    for file in files:
        if file.stem in named:
            raise DataError(f"{named[file.stem]} and {file} would be written to one folder; rename one of them")
        named[file.stem] = file
    return named


def read_list(path: Path, where: list[str]) -> dict[str, dict[str, Any]]:
    """Read the lines of a list for which every KEY=VALUE of `where` is true, by the names of the meshes.

    Raises:
        ConfigError: a condition has no `=`.
        DataError: the file is missing, or a line is not a JSON object with a `file`.
    """
    bad = [text for text in where if "=" not in text]
    if bad:
        raise ConfigError(f"--where {' '.join(bad)} must be KEY=VALUE, for example split=train")
    if not path.is_file():
        raise DataError(f"--list={path}: no such file; correct the path")
    conditions = [text.split("=", 1) for text in where]
    known = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            name = Path(row["file"]).stem
        except (json.JSONDecodeError, KeyError, TypeError) as err:
            raise DataError(
                f"--list={path}: line {number} is not a JSON object with a `file` ({err}); correct this line"
            ) from err
        if all(_written(row.get(key)) == value for key, value in conditions):
            known[name] = row
    return known


def _written(value: Any) -> str:
    """Write a value as in JSON, but without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", nargs="+", type=Path, help="mesh files, or folders of mesh files")
    parser.add_argument("--out", type=Path, required=True, help="folder for <dictionary>/<mesh name>/")
    parser.add_argument("--dictionary", default="meshes", help="dictionary id (default meshes)")
    parser.add_argument(
        "--elevation", type=float, nargs="+", default=[15.0], help="degrees; two numbers give a range (default 15)"
    )
    parser.add_argument(
        "--azimuth", type=float, nargs="+", default=[0.0], help="degrees of view 0; two give a range (default 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for values from the ranges (default 0)")
    parser.add_argument(
        "--up", choices=("auto", "y", "z"), default="auto", help="up axis of the files; auto: z for .stl, else y"
    )
    parser.add_argument("--list", type=Path, help="JSON lines with file, caption, ...; other meshes are left out")
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="use only lines of the list with these values"
    )
    parser.add_argument("--packed", action="store_true", help="write a few large files instead of folders of PNG files")
    parser.add_argument("--shard", type=int, default=32, help="number of meshes per packed file (default 32)")
    add_camera_options(parser, size=None, size_text="512, packed 128")
    options = parser.parse_args(argv)
    if options.size is None:
        options.size = 128 if options.packed else 512
    check_camera_options(options)
    for name, limit in zip(RANGES, (90, 1e6), strict=True):
        ends = getattr(options, name)
        if len(ends) > 2 or not -limit < ends[0] <= ends[-1] < limit:
            raise ConfigError(f"--{name} must be one angle, or a range with the smaller angle first, got {ends}")
    if options.shard < 1 or options.seed < 0:
        raise ConfigError("--shard must be at least 1, and --seed at least 0")
    if options.where and not options.list:
        raise ConfigError("--where selects lines of a list; add --list FILE")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    known = read_list(options.list, options.where) if options.list else {}
    meshes = collect_meshes(options.meshes)
    if options.list:
        meshes = {name: file for name, file in meshes.items() if name in known}
        if not meshes:
            raise DataError(
                f"--list={options.list} contains none of the meshes with --where {' '.join(options.where)}; change one"
            )
    out = writable_folder(options.out, option="--out")
    if options.packed:
        return pack_meshes(meshes, known, out, options)
    hold_settings(out, held_settings(options))
    folders = {name: out / options.dictionary / name for name in meshes}
    todo = [
        (meshes[name], folder, cameras_of(name, options), options)
        for name, folder in folders.items()
        if not is_complete(folder, num_views=options.views, normal_depth=not options.no_nd)
    ]
    failures = [
        error
        for _, error in run_jobs(render_mesh, todo, workers=options.workers, total=len(todo), unit="mesh")
        if error is not None
    ]
    return _report(failures, num_done=len(todo), num_there=len(meshes) - len(todo), out=out)


def pack_meshes(
    meshes: dict[str, Path], known: dict[str, dict[str, Any]], out: Path, options: argparse.Namespace
) -> int:
    """Render meshes to shards in several processes."""
    # the content of a shard depends on the order of all meshes
    names = sorted(meshes)
    packed = {name: getattr(options, name) for name in ("packed", "shard", "dictionary")}
    packed["meshes"] = hashlib.sha256("\n".join(names).encode()).hexdigest()
    hold_settings(out, held_settings(options) | packed)
    groups = [names[k : k + options.shard] for k in range(0, len(names), options.shard)]
    todo = [(shard_file(out, k), group) for k, group in enumerate(groups) if not shard_file(out, k).is_file()]
    jobs = ((path, {name: meshes[name] for name in group}, known, options) for path, group in todo)
    failures: list[str] = []
    for errors, error in run_jobs(render_shard, jobs, workers=options.workers, total=len(todo), unit="shard"):
        failures += errors or [] if error is None else [error]
    num_done = sum(len(group) for _, group in todo)
    return _report(failures, num_done=num_done, num_there=len(meshes) - num_done, out=out)


def _report(failures: list[str], *, num_done: int, num_there: int, out: Path) -> int:
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print(f"{num_done - len(failures)} rendered, {num_there} already there, {len(failures)} failed: {out}")
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
