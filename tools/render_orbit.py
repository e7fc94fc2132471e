"""Render meshes to orbits in the G-Objaverse layout.

    python tools/render_orbit.py chair.glb meshes/ --out data/orbits

writes data/orbits/meshes/chair/campos_512_v4/00000/00000.{png,json} and 00000_nd.exr, and so on. Meshes are scaled
into the unit cube. Finished objects are skipped, so if you start a stopped run again, it continues.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from datasets.meshes.render_options import add_camera_options, check_camera_options, hold_settings
from datasets.meshes.renderer import render_views
from datasets.meshes.scene import UP_BY_SUFFIX, load_mesh, normalise
from datasets.orbits.layout import is_complete, write_orbit
from utils.cameras import orbit_cameras
from utils.errors import DataError
from utils.files import writable_folder
from utils.jobs import run_jobs
from utils.script import run_script


def render_mesh(mesh_file: Path, object_dir: Path, c2w_V44: np.ndarray, options: argparse.Namespace) -> None:
    """Render one mesh file to its folder.

    Raises:
        DataError: the file is not a mesh.
    """
    mesh = load_mesh(mesh_file, up=options.up)
    try:
        mesh = normalise(mesh)
    except DataError as err:
        raise DataError(f"{mesh_file}: {err}; repair the mesh and export it again") from err
    views = render_views(
        mesh, c2w_V44, fov_deg=options.fov, size=options.size, samples=options.samples, normal_depth=not options.no_nd
    )
    write_orbit(
        object_dir,
        rgba_VHW4=views.rgba_VHW4,
        c2w_V44=c2w_V44,
        fov_deg=options.fov,
        bounds_23=mesh.bounds_23,
        normals_VHW3=views.normals_VHW3,
        depth_VHW=views.depth_VHW,
    )


def collect_meshes(paths: list[Path]) -> dict[str, Path]:
    """Mesh files by name; a folder stands for the mesh files directly in it.

    Raises:
        DataError: there is no mesh, or two files have the same name.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(p for p in path.iterdir() if p.suffix.lower() in UP_BY_SUFFIX) if path.is_dir() else [path]
    if not files:
        raise DataError(f"no mesh ({', '.join(UP_BY_SUFFIX)}) in {', '.join(map(str, paths))}; name mesh files")
    named: dict[str, Path] = {}
    for file in files:
        if file.stem in named:
            raise DataError(f"{named[file.stem]} and {file} would be written to one folder; rename one of them")
        named[file.stem] = file
    return named


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", nargs="+", type=Path, help="mesh files, or folders of mesh files")
    parser.add_argument("--out", type=Path, required=True, help="folder for <dictionary>/<mesh name>/")
    parser.add_argument("--dictionary", default="meshes", help="dictionary id (default meshes)")
    parser.add_argument("--elevation", type=float, default=15.0, help="elevation in degrees (default 15)")
    parser.add_argument("--azimuth", type=float, default=0.0, help="azimuth of view 0 in degrees (default 0)")
    parser.add_argument(
        "--up", choices=("auto", "y", "z"), default="auto", help="up axis of the files; auto: z for .stl, else y"
    )
    add_camera_options(parser, size=512)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    check_camera_options(options)
    meshes = collect_meshes(options.meshes)
    out = writable_folder(options.out, option="--out")
    c2w_V44 = orbit_cameras(
        num_views=options.views,
        elevation_deg=options.elevation,
        radius=options.distance,
        azimuth_start_deg=options.azimuth,
    ).numpy()
    held = ("views", "size", "elevation", "azimuth", "distance", "fov", "samples", "up", "no_nd")
    hold_settings(out, {name: getattr(options, name) for name in held})
    folders = {name: out / options.dictionary / name for name in meshes}
    todo = [
        (meshes[name], folder, c2w_V44, options)
        for name, folder in folders.items()
        if not is_complete(folder, num_views=options.views, normal_depth=not options.no_nd)
    ]
    failures = [
        error
        for _, error in run_jobs(render_mesh, todo, workers=options.workers, total=len(todo), unit="mesh")
        if error is not None
    ]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print(
        f"{len(todo) - len(failures)} rendered, {len(meshes) - len(todo)} already there, {len(failures)} failed: {out}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
