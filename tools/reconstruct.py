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
import dataclasses
import logging
import resource
import sys
from collections import Counter
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import pipelines  # noqa: F401 - registers
from datasets.views.folder import UPS, background_color, read_views
from pipelines.reconstruction.fitting.loop import fit_object, identity_of
from pipelines.reconstruction.fitting.storage import write_fit
from utils.cameras import CONVENTIONS
from utils.config import override_values
from utils.devices import pick_device
from utils.errors import ConfigError, DataError, WriteError
from utils.files import read_json, writable_folder, write_json
from utils.jobs import check_disk
from utils.registry import FITS, Section
from utils.script import run_script
from utils.settings.assets import AssetOptions

log = logging.getLogger(__name__)

RESULT_FILE, STATE_FILE = "result.json", "unfinished.safetensors"
# Without remedies against views that disagree, for comparisons.
PLAIN = {"charbonnier": 0.0, "affine_color": False, "reweight_at": [], "hull_tolerance": 0.0}
FILES = ("ply", "splat", "glb", "html", "turntable")


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


def is_done(folder: Path, identity: str) -> bool:
    """Whether a folder has the whole result of these views and options."""
    try:
        result = read_json(folder / RESULT_FILE, option="--out", kind=dict)
        files = {name: fact for name, fact in result["files"].items() if "error" not in fact}
        return result["identity"] == identity and all(
            (folder / name).is_file() and (folder / name).stat().st_size == fact["bytes"]
            for name, fact in files.items()
        )
    except (DataError, KeyError, TypeError, AttributeError):
        return False


def background_of(options: argparse.Namespace) -> float | list[float] | None:
    """Return the grey value or the colour of --background."""
    given = options.background
    return given[0] if given and len(given) == 1 else given


def reconstruct(folder: Path, out: Path, section: Section, options: argparse.Namespace, device: torch.device) -> str:
    """Reconstruct one object; returns one line about it.

    Raises:
        DataError: the views cannot be used, or the fit fails.
    """
    views = read_views(
        folder, background=background_of(options), num_views=options.views, up=options.up, convention=options.convention
    )
    views, move = views.normalized()
    views = views.to(device)
    assets = AssetOptions(
        **{kind: kind not in options.without for kind in FILES},
        **{name: getattr(options, name) for name in ("faces", "grid", "texture")},
    )
    identity = identity_of(section, views, seed=options.seed, more=dataclasses.asdict(assets))
    if is_done(out, identity):
        return f"{out}: finished before, kept"
    out.mkdir(parents=True, exist_ok=True)
    fitted = fit_object(section, views, seed=options.seed, state=out / STATE_FILE)
    facts = write_fit(out, fitted, section, move=move, options=assets)
    result = {
        "input": str(folder),
        "identity": identity,
        "method": {"type": section.type, **dataclasses.asdict(section.options)},
        "seed": options.seed,
        "scale": move.scale,
        "center": move.center_3.tolist(),
        **fitted.record(),
        "peak_memory_mb": round(peak_memory(device) / 1e6),
        "files": facts,
    }
    write_json(out / RESULT_FILE, result)
    (out / STATE_FILE).unlink(missing_ok=True)
    wrong = [views.names[index] for index in fitted.disagreeing]
    told = f"; views that disagree with the others: {', '.join(wrong)}" if wrong else ""
    missing = [name for name, fact in facts.items() if "error" in fact]
    lacks = f"; not written: {', '.join(missing)}" if missing else ""
    return f"{out}: {result['psnr']} dB on the given views, {result['seconds']} s{told}{lacks}"


def peak_memory(device: torch.device) -> int:
    """Return the largest memory of the process in bytes, on a GPU that of the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    section, folders = sections_and_folders(options)
    background_color(background_of(options))  # raises ConfigError
    device = pick_device(options.device)
    names = names_of(folders)
    out = writable_folder(options.out, option="--out")
    num_failed = 0
    for name, folder in names.items():
        try:
            print(reconstruct(folder, out / name, section, options, device))
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
