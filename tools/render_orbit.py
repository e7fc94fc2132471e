"""Render meshes to orbits in the G-Objaverse layout.

    python tools/render_orbit.py chair.glb meshes/ --out data/orbits

writes data/orbits/meshes/chair/campos_512_v4/00000/00000.{png,json} and 00000_nd.exr, and so on. Meshes are scaled
into the unit cube. Finished objects are skipped, so if you start a stopped run again, it continues; an object whose
mesh or textures changed is rendered again. What a mesh loses (a texture that is missing, lines, ...) is named in one
line. Textures are read below the folder that is given here, or below the folder of a single mesh.

    python tools/render_orbit.py objects/ --list objects.jsonl --where split=train cut_out=false \\
        --elevation 0 40 --packed --out workspace/objects_packed

writes a few large files (see datasets/README.md), which the mini models train on. A list has one line of JSON for each
mesh, with `file` (the end of the mesh's path), `caption` (or several `captions`) and any other attributes.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

from datasets.meshes.companions import Companions
from datasets.meshes.listing import MeshFile, collect_meshes, read_list
from datasets.meshes.loading import read_mesh
from datasets.meshes.records import SOURCE_FILE, is_current, same_source, source_record
from datasets.meshes.render_options import (
    add_camera_options,
    check_camera_options,
    generator_of,
    hold_settings,
    light_of,
    light_settings,
)
from datasets.meshes.renderer import Rendering, render_views
from datasets.meshes.scene import RenderMesh, normalise, stretched
from datasets.orbits.layout import is_complete, view_file, write_orbit
from datasets.orbits.packed import PackedShard, shard_file, write_shard
from utils.cameras import cameras_at, orbit_cameras
from utils.errors import ConfigError, DataError, first_line
from utils.files import writable_folder, write_json
from utils.jobs import run_jobs
from utils.prompts import wordings_of
from utils.script import run_script

STRETCH = 1.25  # with --shape varied, an axis is at most this much longer or shorter than before
FLAT = 1e-3  # thickness, relative to the longest side, of what cannot be seen from its edge
HELD = ("views", "size", "elevation", "azimuth", "distance", "fov", "samples", "up", "no_nd")
RANGES = ("elevation", "azimuth")


@dataclass(frozen=True)
class Viewed:
    """A mesh that was rendered, and one line about what is ignored or missing ("" if nothing)."""

    mesh: RenderMesh
    views: Rendering
    note: str


def view_mesh(files: Companions, c2w_V44: np.ndarray, options: argparse.Namespace, *, normal_depth: bool) -> Viewed:
    """Load one mesh, scaled into the unit cube, and render it.

    Args:
        files: the mesh; what belongs to it is added.

    Raises:
        DataError: the file is not a mesh, or nothing of it can be seen.
    """
    try:
        os.fspath(files.path).encode("utf-8")
    except UnicodeEncodeError as err:
        raise DataError(f"{os.fspath(files.path)!a}: its name is not UTF-8; rename it") from err
    try:
        mesh = read_mesh(files, up=options.up)
        try:
            mesh = normalise(stretched(mesh, shape_of(files.path.stem, options)))
        except DataError as err:
            raise DataError(f"{files.path}: {err}; repair the mesh and export it again") from err
        views = render_views(
            mesh,
            c2w_V44,
            fov_deg=options.fov,
            size=options.size,
            samples=options.samples,
            normal_depth=normal_depth,
            light=light_of(files.path.stem, options),
        )
        notes = [*files.notes, *empty_views(files.path, mesh, views.rgba_VHW4, c2w_V44)]
    except (DataError, OSError):
        raise
    except Exception as err:  # a mesh that nobody thought of must not end the batch
        raise DataError(f"{files.path}: cannot be rendered ({type(err).__name__}: {first_line(err)})") from err
    return Viewed(mesh, views, f"{files.path}: {'; '.join(notes)}" if notes else "")


def empty_views(path: Path, mesh: RenderMesh, rgba_VHW4: np.ndarray, c2w_V44: np.ndarray) -> list[str]:
    """Check that every view shows something; views that look at the edge of a flat object are noted.

    Raises:
        DataError: a view is empty for another reason.
    """
    empty = np.flatnonzero(rgba_VHW4[..., 3].max(axis=(1, 2)) == 0)
    if not len(empty):
        return []
    points_N3 = mesh.points_F33.reshape(-1, 3)
    centre_3 = points_N3.mean(axis=0)
    across_3 = np.linalg.eigh(np.cov((points_N3 - centre_3).T))[1][:, 0]
    flat = np.ptp(points_N3 @ across_3) < FLAT
    # the sine of the angle between the object's plane and the direction to the camera
    eyes_E3 = c2w_V44[empty, :3, 3] - centre_3
    height_E = np.abs(eyes_E3 @ across_3) / np.linalg.norm(eyes_E3, axis=1)
    listed = ", ".join(map(str, empty[:8])) + (", ..." if len(empty) > 8 else "")
    if flat and (height_E < 0.1).all() and len(empty) < len(rgba_VHW4):
        return [f"views {listed} look at the edge of a flat object and are empty"]
    raise DataError(
        f"{path}: nothing of it is seen in view {listed}: it is transparent, smaller than a pixel (because a part lies "
        "far away), or too thin; repair it, or raise --size or --samples"
    )


def render_mesh(file: MeshFile, object_dir: Path, c2w_V44: np.ndarray, options: argparse.Namespace) -> str:
    """Render one mesh to the G-Objaverse layout; returns what must be said about it.

    Raises:
        DataError: the file is not a mesh, or nothing of it can be seen.
    """
    files = Companions(file.path, file.root)
    viewed = view_mesh(files, c2w_V44, options, normal_depth=not options.no_nd)
    write_orbit(
        object_dir,
        rgba_VHW4=viewed.views.rgba_VHW4,
        c2w_V44=c2w_V44,
        fov_deg=options.fov,
        bounds_23=viewed.mesh.bounds_23,
        normals_VHW3=viewed.views.normals_VHW3,
        depth_VHW=viewed.views.depth_VHW,
    )
    # After the views: a run that is killed in between leaves the old record, and the mesh is rendered again.
    write_json(object_dir / SOURCE_FILE, source_record(files))
    return viewed.note


def render_shard(
    path: Path, meshes: dict[str, MeshFile], known: dict[str, dict[str, Any]], options: argparse.Namespace
) -> tuple[list[str], list[str]]:
    """Render many meshes into one file; returns one error message for each that failed, and the notes of the others."""
    made: dict[str, tuple[Viewed, np.ndarray]] = {}
    sources: dict[str, dict[str, Any]] = {}
    for name, file in meshes.items():
        c2w_V44, files, error = cameras_of(name, options), Companions(file.path, file.root), None
        try:
            made[name] = view_mesh(files, c2w_V44, options, normal_depth=False), c2w_V44
        except DataError as err:
            error = str(err)
        sources[name] = (source_record(files) if file.path.is_file() else {}) | {"error": error}
    if made:
        write_shard(
            path,
            PackedShard(
                rgba_NVHW4=np.stack([viewed.views.rgba_VHW4 for viewed, _ in made.values()]),
                c2w_NV44=np.stack([c2w_V44 for _, c2w_V44 in made.values()]),
                fov_deg=options.fov,
                object_ids=[f"{options.dictionary}/{name}" for name in made],
                captions=[captions_in(known.get(name, {})) for name in made],
                attributes=[known.get(name, {}) for name in made],
            ),
        )
        write_json(shard_record(path), sources)
    errors = [row["error"] for row in sources.values() if row["error"] is not None]
    return errors, [viewed.note for viewed, _ in made.values() if viewed.note]


def captions_in(row: dict[str, Any]) -> str | list[str]:
    """The captions in a line of a list: all `captions`, or its only `caption`."""
    return list(wordings_of(row.get("captions"))) or str(row.get("caption", ""))


def shard_record(path: Path) -> Path:
    """The file beside a packed file that says what it was made of."""
    return path.with_suffix(".sources.json")


def errors_of_shard(path: Path, meshes: dict[str, MeshFile]) -> list[str] | None:
    """The errors of a packed file that has its meshes as they are now; None if it must be made (again).

    A packed file without a record is of an older version and is only compared by time.
    """
    if not path.is_file():
        return None
    try:
        stored = json.loads(shard_record(path).read_text(encoding="utf-8"))
        if not all(same_source(stored[name], file.path, file.root) for name, file in meshes.items()):
            return None
        return [stored[name]["error"] for name in meshes if stored[name]["error"] is not None]
    except FileNotFoundError:
        made = path.stat().st_mtime_ns
        same = all(file.path.is_file() and file.path.stat().st_mtime_ns <= made for file in meshes.values())
        return [] if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def cameras_of(name: str, options: argparse.Namespace) -> np.ndarray:
    """Return c2w_V44 of one mesh; elevation and azimuth are fixed, or drawn from their ranges by name and seed.

    With --scattered, each view draws its own elevation.
    """
    generator = generator_of(f"{options.seed} {name}")
    elevation, azimuth = (
        float(generator.uniform(ends[0], ends[-1])) if len(ends) > 1 else ends[0]
        for ends in (options.elevation, options.azimuth)
    )
    if options.scattered:
        azimuth_V = azimuth + 360 * np.arange(options.views) / options.views
        elevation_V = generator.uniform(options.elevation[0], options.elevation[-1], options.views)
        angles = (torch.from_numpy(azimuth_V), torch.from_numpy(elevation_V))
        return cameras_at(*angles, torch.full((options.views,), options.distance)).numpy()
    return orbit_cameras(
        num_views=options.views, elevation_deg=elevation, radius=options.distance, azimuth_start_deg=azimuth
    ).numpy()


def shape_of(name: str, options: argparse.Namespace) -> np.ndarray:
    """The factors of the axes of one mesh; with --shape varied they are drawn, and half of the meshes are mirrored."""
    if options.shape == "true":
        return np.ones(3)
    generator = generator_of(f"shape {options.seed} {name}")
    factors_3 = STRETCH ** generator.uniform(-1, 1, 3)
    factors_3[0] *= generator.choice((-1, 1))
    return factors_3


def held_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that must not change when a run continues."""
    settings = {name: getattr(options, name) for name in HELD}
    drawn = [name for name in RANGES if len(settings[name]) > 1]
    fixed = {name: settings[name][0] for name in RANGES if name not in drawn}
    # None without them, because folders of earlier versions do not have them
    others = {
        "scattered": True if options.scattered else None,
        "shape": f"varied, seed {options.seed}" if options.shape == "varied" else None,
    }
    return settings | fixed | ({"seed": options.seed} if drawn else {}) | others | light_settings(options)


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
    parser.add_argument(
        "--scattered", action="store_true", help="each view has its own elevation, from the range of --elevation"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed for values from the ranges, for light and shape (default 0)"
    )
    parser.add_argument(
        "--up", choices=("auto", "y", "z"), default="auto", help="up axis of the files; auto: z for .stl, else y"
    )
    parser.add_argument(
        "--shape",
        choices=("true", "varied"),
        default="true",
        help="varied: each axis is stretched by another factor, and half of the meshes are mirrored (default true)",
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
    if options.dictionary in ("", ".", "..") or re.search(r"[/\\\0\ud800-\udfff]", options.dictionary):
        raise ConfigError(f"--dictionary={options.dictionary} must be the name of one folder below --out")
    if options.scattered and len(options.elevation) < 2:
        raise ConfigError("--scattered draws an elevation for each view; give --elevation two angles")
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
        if not (
            is_complete(folder, num_views=options.views, normal_depth=not options.no_nd)
            and is_current(folder, meshes[name].path, meshes[name].root, made=view_file(folder, 0))
        )
    ]
    jobs = run_jobs(render_mesh, todo, workers=options.workers, total=len(todo), unit="mesh", out=out)
    rows = (([] if error is None else [error], [note] if note else []) for note, error in jobs)
    return _report(rows, num_todo=len(todo), num_there=len(meshes) - len(todo), out=out)


def pack_meshes(
    meshes: dict[str, MeshFile], known: dict[str, dict[str, Any]], out: Path, options: argparse.Namespace
) -> int:
    """Render meshes to shards in several processes."""
    # the content of a shard depends on the order of all meshes
    names = sorted(meshes)
    packed = {name: getattr(options, name) for name in ("packed", "shard", "dictionary")}
    packed["meshes"] = hashlib.sha256("\n".join(names).encode()).hexdigest()
    hold_settings(out, held_settings(options) | packed)
    groups = [names[k : k + options.shard] for k in range(0, len(names), options.shard)]
    shards = {shard_file(out, k): {name: meshes[name] for name in group} for k, group in enumerate(groups)}
    before = {path: errors_of_shard(path, group) for path, group in shards.items()}
    todo = [(path, group, known, options) for path, group in shards.items() if before[path] is None]
    old = [(errors, []) for errors in before.values() if errors]
    jobs = run_jobs(render_shard, todo, workers=options.workers, total=len(todo), unit="shard", out=out)
    new = (result if error is None else ([error], []) for result, error in jobs)
    num_todo = sum(len(group) for _, group, *_ in todo) + sum(len(errors) for errors, _ in old)
    return _report(itertools.chain(old, new), num_todo=num_todo, num_there=len(meshes) - num_todo, out=out)


def _report(rows: Iterable[tuple[list[str], list[str]]], *, num_todo: int, num_there: int, out: Path) -> int:
    """Print errors and notes as they come, and the summary."""
    num_failed = num_noted = 0
    for errors, notes in rows:
        num_failed, num_noted = num_failed + len(errors), num_noted + len(notes)
        for line in [f"error: {error}" for error in errors] + [f"warning: {note}" for note in notes]:
            tqdm.write(line, file=sys.stderr)
    noted = f" ({num_noted} with a warning)" if num_noted else ""
    print(f"{num_todo - num_failed} rendered{noted}, {num_there} already there, {num_failed} failed: {out}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    run_script(main)
