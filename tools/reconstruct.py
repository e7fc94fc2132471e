"""Reconstruct an object from views with known cameras: 3D Gaussians, a radiance field or a surface, and a mesh.

    python tools/reconstruct.py --method gs workspace/chair --out workspace/chair_gs
    python tools/reconstruct.py --method neus my_views other_views --out objects num_steps=1500

reads folders with a transforms.json (of this project, nerfstudio or Blender), a COLMAP text model, or the layout of
G-Objaverse (datasets/views/README.md), and writes one folder for each. Further arguments are options of the method, as
pipelines/reconstruction/fitting/README.md describes them. A stopped command continues when it is run again, and
finished folders are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pipelines  # noqa: F401 - registers
from datasets.views.folder import UPS, background_color
from pipelines.reconstruction.fitting.folder import ReadingOptions, fit_folder
from pipelines.reconstruction.fitting.loop import check_start
from utils.cameras import CONVENTIONS
from utils.config import override_values
from utils.devices import pick_device
from utils.errors import ConfigError, DataError, WriteError
from utils.files import writable_folder
from utils.jobs import check_disk
from utils.registry import FITS, Section
from utils.script import run_script
from utils.settings.assets import AssetOptions

# Without remedies against views that disagree, for comparisons.
PLAIN = {"charbonnier": 0.0, "affine_color": False, "reweight_at": [], "hull_tolerance": 0.0}
FILES = ("ply", "splat", "glb", "html", "turntable")
MORE_FILES = ("spz", "gltf")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="FOLDER|key=value", help="folders of views; options of the method")
    parser.add_argument("--method", choices=FITS.names(), required=True, help="what is fitted")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, one subfolder per input")
    parser.add_argument("--plain", action="store_true", help="trust all views equally (see the page of the methods)")
    parser.add_argument("--seed", type=int, default=0, help="seed of start values and order of pixels (default 0)")
    parser.add_argument("--views", type=int, help="use at most this number of views, evenly chosen (default all)")
    parser.add_argument("--background", type=float, nargs="+", help="grey or R G B in [0, 1] behind the object")
    parser.add_argument("--up", choices=UPS, help="the input's axis that points up (default z; for COLMAP auto)")
    parser.add_argument("--from", dest="convention", choices=CONVENTIONS, help="convention of the cameras' matrices")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    for name in ("faces", "grid", "texture"):
        default = getattr(AssetOptions, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"of the mesh (default {default})")
    parser.add_argument("--without", nargs="+", choices=FILES, default=[], help="files that are not written")
    parser.add_argument("--also", nargs="+", choices=MORE_FILES, default=[], help="files that are written in addition")
    return parser.parse_intermixed_args(argv)


def sections_and_folders(options: argparse.Namespace) -> tuple[Section, list[Path]]:
    """Separate options of the method from folders, and check the options.

    Raises:
        ConfigError: an option is unknown or out of range, or there is no folder.
    """
    values = override_values([item for item in options.inputs if "=" in item and not Path(item).exists()])
    folders = [Path(item) for item in options.inputs if "=" not in item or Path(item).exists()]
    if not folders:
        raise ConfigError("no folder of views is given; name one, e.g. workspace/chair")
    plain = PLAIN if options.plain else {}
    return FITS.section({"type": options.method, **plain, **values}, where=f"--method {options.method}"), folders


def names_of(folders: list[Path]) -> dict[str, Path]:
    """Return a name for each folder; equal names also have their parents' names.

    Raises:
        DataError: two results would have one name.
    """
    own = [folder.resolve() for folder in folders]
    counts = Counter(folder.name for folder in own)
    names = [folder.name if counts[folder.name] == 1 else f"{folder.parent.name}_{folder.name}" for folder in own]
    if len(set(names)) < len(names):
        twice = next(name for name, number in Counter(names).items() if number > 1)
        raise DataError(f"two inputs would be written to {twice}; give each folder once, or run them separately")
    return dict(zip(names, folders, strict=True))


def background_of(options: argparse.Namespace) -> float | list[float] | None:
    """Return the grey value or the colour of --background."""
    given = options.background
    return given[0] if given and len(given) == 1 else given


def assets_of(options: argparse.Namespace) -> AssetOptions:
    """Return which files are written, and how.

    Raises:
        ConfigError: a value is out of range.
    """
    return AssetOptions(
        **{kind: kind not in options.without for kind in FILES},
        **{kind: kind in options.also for kind in MORE_FILES},
        **{name: getattr(options, name) for name in ("faces", "grid", "texture")},
    )


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    section, folders = sections_and_folders(options)
    check_start(section)
    background_color(background_of(options))  # raises ConfigError
    reading = ReadingOptions(
        background=background_of(options), num_views=options.views, up=options.up, convention=options.convention
    )
    assets = assets_of(options)
    device = pick_device(options.device)
    names = names_of(folders)
    out = writable_folder(options.out, option="--out")
    num_failed = 0
    for name, folder in names.items():
        try:
            print(
                fit_folder(
                    folder, out / name, section, seed=options.seed, device=device, assets=assets, reading=reading
                )
            )
        except WriteError:
            raise
        except (ConfigError, DataError) as err:
            num_failed += 1
            print(f"error: {err}", file=sys.stderr)
        except Exception as err:  # one folder must not end the others
            check_disk(err, out)
            num_failed += 1
            print(f"error: {folder}: cannot be reconstructed ({type(err).__name__}: {err})", file=sys.stderr)
    print(f"{len(names) - num_failed} reconstructed, {num_failed} failed: {out}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    run_script(main)
