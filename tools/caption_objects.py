"""Write several captions for each mesh: noun, colours, the colour of a part, material.

    python tools/caption_objects.py objects/ --list objects/objects.jsonl --out objects/captioned.jsonl
    python tools/render_orbit.py objects/ --list objects/captioned.jsonl --packed --out workspace/objects_packed

The noun comes from the list's `caption`, or from the name of the file; the colours are seen in small renders without
light; a material is named if the file names it. The new list has the lines of the old one with `captions`, of which
`caption` is the first. With --out FILE.json it is a captions file for the G-Objaverse layout instead.

    python tools/caption_objects.py objects/ --out captioned.jsonl --model Salesforce/blip-image-captioning-base

adds two captions that a model of the library transformers writes about lit pictures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from datasets.captions.looks import look_of
from datasets.captions.materials import material_word
from datasets.captions.wording import captions_of
from datasets.meshes.collecting.captions import caption_of_file
from datasets.meshes.companions import Companions
from datasets.meshes.listing import MeshFile, collect_meshes, read_list
from datasets.meshes.loading import read_mesh
from datasets.meshes.renderer import render_views
from datasets.meshes.scene import RenderMesh, normalise
from utils.cameras import DATA_FOV_DEG, orbit_cameras
from utils.devices import pick_device
from utils.errors import ConfigError, DataError, first_line
from utils.files import atomic_path, write_json
from utils.images import over_background
from utils.jobs import run_jobs
from utils.script import run_script

PICTURE_SIZE, PICTURE_AZIMUTHS = 384, (30.0, 150.0)  # for the captioning model


def describe(
    name: str, file: MeshFile, row: dict[str, Any], options: argparse.Namespace
) -> tuple[str, dict[str, Any], np.ndarray | None]:
    """Describe one mesh: its name, its line of the list, and pictures (2, H, W, 3) for the captioning model.

    Raises:
        DataError: the file is not a mesh, or nothing of it is seen.
    """
    files = Companions(file.path, file.root)
    try:
        mesh = normalise(read_mesh(files, up=options.up))
        look, material = look_of(mesh), material_word(files)
    except (DataError, OSError):
        raise
    except Exception as err:  # a mesh that nobody thought of must not end the batch
        raise DataError(f"{file.path}: cannot be described ({type(err).__name__}: {first_line(err)})") from err
    if look is None:
        raise DataError(f"{file.path}: nothing of it is seen; repair the mesh and export it again")
    noun = str(row.get("caption") or "") or caption_of_file(file.path.stem) or "an object"
    captions = captions_of(noun, look, material=material, most=options.num)
    line = {"file": file.path.relative_to(file.root).as_posix()} | row
    line |= {"caption": captions[0], "captions": captions, "colors": look.shares, "material": material}
    return name, line, picture_of(mesh) if options.model else None


def picture_of(mesh: RenderMesh) -> np.ndarray:
    """Lit pictures (2, H, W, 3) of a mesh on white."""
    cameras = [
        orbit_cameras(num_views=1, elevation_deg=15.0, radius=2.0, azimuth_start_deg=azimuth).numpy()
        for azimuth in PICTURE_AZIMUTHS
    ]
    views = render_views(mesh, np.concatenate(cameras), fov_deg=DATA_FOV_DEG, size=PICTURE_SIZE, normal_depth=False)
    rgba = views.rgba_VHW4.astype(np.float32) / 255
    return np.round(over_background(rgba[..., :3], rgba[..., 3:], 1.0) * 255).astype(np.uint8)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", nargs="+", type=Path, help="mesh files, or folders of mesh files")
    parser.add_argument("--out", type=Path, required=True, help="list (.jsonl) or captions file (.json) to write")
    parser.add_argument("--list", type=Path, help="JSON lines with file, caption, ...; other meshes are left out")
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="use only lines of the list with these values"
    )
    parser.add_argument(
        "--num", type=int, default=6, help="captions per object at most, without the model's (default 6)"
    )
    parser.add_argument("--dictionary", default="meshes", help="dictionary id in a captions file (default meshes)")
    parser.add_argument(
        "--up", choices=("auto", "y", "z"), default="auto", help="up axis of the files; auto: z for .stl, else y"
    )
    parser.add_argument("--model", default="", help="folder or Hub name of a captioning model of transformers")
    parser.add_argument("--device", default="auto", help="device of the captioning model (default auto)")
    parser.add_argument(
        "--workers", type=int, default=multiprocessing.cpu_count(), help="processes (default: all cores)"
    )
    options = parser.parse_args(argv)
    if options.out.suffix not in (".jsonl", ".json"):
        raise ConfigError(f"--out={options.out} must end in .jsonl (a list) or .json (a captions file)")
    if options.out.is_dir() or not options.out.absolute().parent.is_dir():
        raise ConfigError(f"--out={options.out} must be a file in a folder that exists; create {options.out.parent}")
    if options.list and options.list.resolve() == options.out.resolve():
        raise ConfigError(f"--out={options.out} is the file of --list; name another file")
    for name, high in (("num", 20), ("workers", 1024)):
        if not 1 <= getattr(options, name) <= high:
            raise ConfigError(f"--{name} must lie between 1 and {high}, got {getattr(options, name)}")
    if options.where and not options.list:
        raise ConfigError("--where selects lines of a list; add --list FILE")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    captioner = None
    if options.model:
        from datasets.captions.captioner import Captioner  # slow to import, and rarely needed

        captioner = Captioner(options.model, device=pick_device(options.device))
    known = read_list(options.list, options.where) if options.list else {}
    meshes = collect_meshes(options.meshes)
    chosen = {name: file for name, file in meshes.items() if name in known or not options.list}
    if not chosen:
        raise DataError(f"--list={options.list} contains none of the meshes; correct --list or --where")
    jobs = [(name, file, known.get(name, {}), options) for name, file in sorted(chosen.items())]
    lines: dict[str, dict[str, Any]] = {}
    num_failed = 0
    for result, error in run_jobs(describe, jobs, workers=options.workers, total=len(jobs), unit="mesh"):
        if error is not None:
            num_failed += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
            continue
        name, line, pictures_BHW3 = result
        if captioner is not None:
            line["captions"] = list(dict.fromkeys([*line["captions"], *filter(None, captioner(pictures_BHW3))]))
        lines[name] = line
    write_captions(options.out, lines, dictionary=options.dictionary)
    print(f"{len(lines)} described, {num_failed} failed: {os.fspath(options.out)}")
    return 1 if num_failed else 0


def write_captions(out: Path, lines: dict[str, dict[str, Any]], *, dictionary: str) -> None:
    """Write a list for render_orbit.py, or a captions file."""
    if out.suffix == ".json":
        write_json(out, {f"{dictionary}/{name}": line["captions"] for name, line in sorted(lines.items())})
        return
    with atomic_path(out) as part:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for _, line in sorted(lines.items()))
        part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
