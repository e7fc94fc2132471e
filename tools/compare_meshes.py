"""Compute Chamfer distance and F-score between a mesh and the true mesh.

    python tools/compare_meshes.py workspace/duck/mesh.glb meshes/duck.glb --normalise-true

The meshes are compared without alignment, in the z-up world of the project. The unit of distances is the longest side
of the true mesh's bounding box. pipelines/evaluation/mesh_metrics.py has the definitions.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from datasets.meshes.loading import load_mesh
from datasets.meshes.scene import RenderMesh, normalise
from pipelines.evaluation.mesh_metrics import THRESHOLDS, surface_distance
from utils.errors import ConfigError, DataError
from utils.files import writable_folder, write_json
from utils.jobs import check_disk
from utils.script import run_script

log = logging.getLogger(__name__)

# Beyond these limits the metrics depend on the placement of the meshes, not on their shape.
MAX_RATIO = 1.5  # ratio of the longest sides of the boxes
MAX_POINTS, MAX_SEED = 10_000_000, 2**32
MAX_SHIFT = 0.25  # distance of the boxes' centres, relative to the longest side of the true box


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("made", type=Path, help="mesh to measure, e.g. mesh.glb of a run")
    parser.add_argument("true", type=Path, help="true mesh: .glb, .obj, .ply, .stl, ...")
    parser.add_argument(
        "--normalise-true",
        action="store_true",
        help="first scale the true mesh into the unit cube, as in the data sets",
    )
    parser.add_argument("--normalise-made", action="store_true", help="first scale the other mesh into the unit cube")
    parser.add_argument(
        "--up-made", choices=("auto", "y", "z"), default="auto", help="up axis of the mesh; auto: z for .stl, else y"
    )
    parser.add_argument(
        "--up-true", choices=("auto", "y", "z"), default="auto", help="up axis of the true mesh, in the same way"
    )
    parser.add_argument(
        "--outer", action="store_true", help="leave out the parts of the true mesh that are not visible from outside"
    )
    parser.add_argument(
        "--points", type=int, default=100_000, help="number of samples of each surface (default 100000)"
    )
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        default=list(THRESHOLDS),
        help="distances of the F-score (default 0.01 0.02 0.05)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    parser.add_argument("--json", type=Path, help="also write the metrics to this file")
    return parser.parse_args(argv)


def check_options(options: argparse.Namespace) -> None:
    """Check the options before the meshes are read.

    Raises:
        ConfigError: a value is out of range, or --json cannot be written.
    """
    if not 100 <= options.points <= MAX_POINTS:
        raise ConfigError(f"--points must lie between 100 and {MAX_POINTS}, got {options.points}")
    bad = [value for value in options.thresholds if not 0 < value < math.inf]
    if bad:
        raise ConfigError(f"--thresholds must be positive numbers, got {bad[0]}")
    if not 0 <= options.seed <= MAX_SEED:
        raise ConfigError(f"--seed must lie between 0 and {MAX_SEED}, got {options.seed}")
    if options.json is not None:
        if options.json.is_dir():
            raise ConfigError(f"--json={options.json} is a folder; name a file")
        writable_folder(options.json.parent, option="--json")


def read(path: Path, *, up: str, scaled: bool) -> RenderMesh:
    """Read a mesh into the z-up world of the project.

    Raises:
        DataError: it is no mesh, or has no area.
    """
    mesh = load_mesh(path, up=up)
    try:
        mesh = normalise(mesh) if scaled else mesh
    except DataError as err:
        raise DataError(f"{path}: {err}; repair the mesh and export it again") from err
    sides = np.diff(mesh.points_F33.astype(np.float64), axis=1)
    if not np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1).sum() > 0:
        raise DataError(f"{path}: the mesh has no area, because all its triangles are degenerate; repair it")
    return mesh


def warn_of_places(made: RenderMesh, true: RenderMesh, *, remedy: str) -> None:
    """Warn if the meshes have clearly different scales or positions."""
    made_side, true_side = (float(np.ptp(mesh.bounds_23, axis=0).max()) for mesh in (made, true))
    shift = float(np.linalg.norm(made.bounds_23.mean(axis=0) - true.bounds_23.mean(axis=0)))
    ratio = max(made_side, true_side) / max(min(made_side, true_side), 1e-12)
    if ratio > MAX_RATIO or shift > MAX_SHIFT * true_side:
        log.warning(
            "the meshes have different scales or positions (longest sides %.3g and %.3g, centres %.3g apart), so the "
            "metrics say little about their shapes; try %s",
            made_side,
            true_side,
            shift,
            remedy,
        )


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    check_options(options)
    made = read(options.made, up=options.up_made, scaled=options.normalise_made)
    true = read(options.true, up=options.up_true, scaled=options.normalise_true)
    warn_of_places(made, true, remedy="--normalise-made" if options.normalise_true else "--normalise-true")
    found = surface_distance(
        made,
        true,
        num_points=options.points,
        thresholds=tuple(options.thresholds),
        seed=options.seed,
        outer=options.outer,
    )
    parts = f"accuracy {found.accuracy:.5f}, completeness {found.completeness:.5f}"
    print(f"Chamfer {found.chamfer:.5f} ({parts}, floor of the sampling {found.floor:.5f})")
    for threshold, score in found.f_scores.items():
        print(f"F-score at {threshold:g}: {score:.4f}")
    if options.json:
        try:
            write_json(options.json, dataclasses.asdict(found))
        except OSError as err:
            check_disk(err, options.json.parent)
            raise DataError(f"--json={options.json} cannot be written ({err.strerror}); name another file") from err
    return 0


if __name__ == "__main__":
    run_script(main)
