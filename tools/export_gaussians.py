"""Convert files of Gaussians to formats that other tools open: .splat, .spz, .glb, a web page, a turntable video.

    python tools/export_gaussians.py workspace/*/gaussians.ply --out workspace/exported --glb --html
    python tools/export_gaussians.py chair.ply --out exported --turntable --turntable-elevation-deg 45

reads .ply files of Gaussian splatting (ascii, binary, compressed by SuperSplat) and .splat whose z axis points up, and
.spz and .glb with KHR_gaussian_splatting whose y axis points up. It writes one folder for each file. `--glb` is a mesh,
`--gltf` the Gaussians in a .glb. Without --ply, --splat, --spz, --gltf, --glb, --html or --turntable, all except the
.ply and the .glb of Gaussians are written. utils/settings/assets.py describes the options of the files.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

from models.gaussians.files import read_gaussians
from models.gaussians.rendering import RASTERIZERS, pick_rasterizer
from pipelines.assets.files import write_assets
from utils.cameras import DATA_FOV_DEG, cameras_at
from utils.devices import pick_device
from utils.errors import ConfigError, DataError, WriteError, first_line
from utils.files import writable_folder
from utils.jobs import check_disk
from utils.script import run_script
from utils.settings.assets import AssetOptions

KINDS = ("ply", "splat", "spz", "gltf", "glb", "html", "turntable")
ONLY_WHEN_NAMED = ("ply", "gltf")
NUMBERS = {"int": int, "float": float, "float | None": float}


@dataclass(frozen=True, kw_only=True)
class Camera:
    """The first view of an object, and what renders it."""

    c2w_44: torch.Tensor
    fov_deg: float
    device: torch.device
    rasterizer: str


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help=".ply, .splat, .spz or .glb files of Gaussians"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, one subfolder per file")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", action="store_true", help=f"write the {kind}")
    for field in dataclasses.fields(AssetOptions):
        flag = f"--{field.name.replace('_', '-')}"
        if field.type in NUMBERS:
            shown = f"(default {field.default})"
            parser.add_argument(flag, type=NUMBERS[field.type], default=field.default, help=shown)
    parser.add_argument("--lit", action="store_true", help="let viewers of the .glb add their own light")
    parser.add_argument("--elevation", type=float, default=15.0, help="degrees, first view of the page (default 15)")
    parser.add_argument("--distance", type=float, default=2.0, help="first camera to origin (default 2)")
    parser.add_argument("--fov", type=float, default=round(DATA_FOV_DEG, 4), help="degrees (default: as G-Objaverse)")
    parser.add_argument("--device", default="auto", help="device for rendering: auto, cpu, cuda (default auto)")
    parser.add_argument(
        "--rasterizer", choices=RASTERIZERS, default="auto", help="renderer of Gaussians (default auto)"
    )
    return parser.parse_args(argv)


def asset_options(options: argparse.Namespace) -> AssetOptions:
    """Return the options of the files from the command line.

    Raises:
        ConfigError: a value is out of range.
    """
    wanted = {kind: getattr(options, kind) for kind in KINDS}
    if not any(wanted.values()):
        wanted = {kind: kind not in ONLY_WHEN_NAMED for kind in KINDS}
    values = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(AssetOptions) if field.type in NUMBERS
    }
    return AssetOptions(**values, **wanted, unlit=not options.lit)


def folders_of(files: list[Path], out: Path) -> dict[Path, Path]:
    """Return a folder for each file, named after the file; files with equal names also after their own folder.

    Raises:
        DataError: two files would use the same folder.
    """
    stems = Counter(file.stem for file in files)
    names = {
        file: file.stem if stems[file.stem] == 1 else f"{file.resolve().parent.name}_{file.stem}" for file in files
    }
    twice = [name for name, number in Counter(names.values()).items() if number > 1]
    if twice or len(names) < len(files):
        raise DataError(
            f"two files would be written to one folder ({', '.join(twice) or files[0]}); name each file once"
        )
    return {file: out / name for file, name in names.items()}


def export(file: Path, folder: Path, *, assets: AssetOptions, camera: Camera) -> tuple[str, list[str]]:
    """Export one file: one line about what was written, and one message for each file that was not.

    Raises:
        DataError: the Gaussians cannot be read, or the disk is full.
    """
    gaussians = read_gaussians(file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        facts = write_assets(
            folder,
            gaussians.to(camera.device),
            options=assets,
            c2w_44=camera.c2w_44,
            fov_deg=camera.fov_deg,
            title=folder.name,
            rasterizer=camera.rasterizer,
        )
    except Exception as err:  # one file must not end the others, whatever is wrong with it
        check_disk(err, folder.parent)
        raise DataError(f"{file}: cannot be exported ({type(err).__name__}: {first_line(err)})") from err
    errors = [f"{file}: {name} was not written: {fact['error']}" for name, fact in facts.items() if "error" in fact]
    done = [f"{name} ({fact['seconds']} s)" for name, fact in facts.items() if "error" not in fact]
    return f"{folder}/: {', '.join(done) or 'nothing'}", errors


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    assets = asset_options(options)
    if not 0 < options.distance < math.inf or not 1 <= options.fov <= 150 or not -90 < options.elevation < 90:
        raise ConfigError(
            f"--distance must be positive, --fov must lie in [1, 150] and --elevation in (-90, 90); got "
            f"{options.distance}, {options.fov} and {options.elevation}"
        )
    device = pick_device(options.device)
    pick_rasterizer(options.rasterizer, device)  # raises ConfigError
    folders = folders_of(options.files, writable_folder(options.out, option="--out"))
    c2w_44 = cameras_at(torch.zeros(1), torch.tensor([options.elevation]), torch.tensor([options.distance]))[0]
    camera = Camera(c2w_44=c2w_44, fov_deg=options.fov, device=device, rasterizer=options.rasterizer)
    num_failed = 0
    for file, folder in tqdm(folders.items(), unit="file"):
        errors: list[str] = []
        try:
            line, errors = export(file, folder, assets=assets, camera=camera)
            # a name may have bytes that are no text
            tqdm.write(line.encode("utf-8", "replace").decode("utf-8"), file=sys.stdout)
        except WriteError:
            raise
        except DataError as err:
            errors = [str(err)]
        for error in errors:
            tqdm.write(f"error: {error}", file=sys.stderr)
        num_failed += bool(errors)
    print(f"{len(folders) - num_failed} exported, {num_failed} failed: {options.out}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    run_script(main)
