"""Measure fits: methods x {true, generated views} x {clean, 4 damaged views}, on held-out objects with true meshes.

Every fit is one unit of work with its own result.json, which is kept; a stopped command continues. Definitions:
pipelines/evaluation/README.md.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datasets.meshes.loading import load_mesh
from datasets.meshes.scene import RenderMesh
from datasets.views.folder import read_views
from datasets.views.posed_views import PosedViews
from datasets.views.rendered import true_views
from pipelines.evaluation.fits.damage import damaged, damaged_numbers
from pipelines.evaluation.fits.methods import HEAD, HULL, Made, make_object, make_with_head
from pipelines.evaluation.fits.report import markdown_table, mesh_sheet
from pipelines.evaluation.head_quality import load_head_alone, true_meshes
from pipelines.evaluation.held_out import TrueOrbit, TrueOrbits, background_of
from pipelines.evaluation.image_metrics import score_views
from pipelines.evaluation.mesh_metrics import is_closed, surface_distance, volume_iou
from pipelines.evaluation.samples import orbit_samples, sample_orbits
from pipelines.reconstruction.base import Reconstructor
from pipelines.sampling.finished import weights_of
from pipelines.sampling.pipeline import ViewsPipeline
from utils.cameras import camera_distance, cameras_at
from utils.devices import pick_device
from utils.errors import ConfigError, DataError
from utils.files import atomic_path, read_json, writable_folder, write_json
from utils.images import save_png
from utils.registry import Section
from utils.settings.run import RunConfig
from utils.settings.typed import identifying

log = logging.getLogger(__name__)

TRUE, GENERATED = "true", "generated"
CLEAN, DAMAGED = "clean", "4 damaged"
NUM_UNSEEN = 16
UNSEEN_DEG = 5.0  # unseen cameras lie up to this much above and below the orbit
WHITE = 1.0
SAME_LIGHT = 0.02  # largest mean difference of the stored views and renders of the true mesh
RESULT_FILE, MESH_FILE, STATE_FILE = "result.json", "mesh.glb", "unfinished.safetensors"


@dataclass(frozen=True, kw_only=True)
class FitsOptions:
    """Options of the measurement.

    Attributes:
        held_out: folder that tools/make_zoo.py wrote, whose meshes can be made again, or any with `meshes`.
        sections: the options of each method; the hull uses those of `gs`. `head` has none.
        views: which views are fitted, of TRUE and GENERATED.
        num_objects: maximum number of objects, at least 2: each is damaged with a view of the next.
        out: output folder.
        num_points: samples of each surface for the distances.
        meshes: folder of the meshes that tools/render_orbit.py rendered.
        part: (k, n): fit only every n-th object, beginning with the k-th; several processes share the work so. The
            results stay in `out`, and a run without it reads them and writes the table.
    """

    held_out: Path
    sections: Mapping[str, Section | None]
    views: Sequence[str]
    num_objects: int
    out: Path
    num_points: int = 100_000
    meshes: Path | None = None
    part: tuple[int, int] = (1, 1)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A held-out object: its views by kind, and the truth."""

    object_id: str
    views: dict[str, PosedViews]
    unseen: PosedViews
    mesh: RenderMesh

    @functools.cached_property
    def closed(self) -> bool:
        """Whether the true mesh encloses a volume; many meshes of games do not."""
        return is_closed(self.mesh)


def evaluate_fits(cfg: RunConfig, options: FitsOptions) -> dict[str, Any]:
    """Fit, measure, and write fits.json, fits.md and a sheet of meshes per object; returns the content of fits.json.

    A part writes only its fits, and returns the table of its objects.

    Raises:
        ConfigError, DataError: a setting or a folder does not fit.
    """
    device = pick_device(cfg.device)
    out = writable_folder(options.out, option="--out")
    orbits = TrueOrbits(options.held_out, cfg, limit=options.num_objects, scratch=out, option="--held-out")
    meshes = true_meshes(options.held_out, cfg, object_ids=orbits.object_ids, sources=options.meshes)
    if len(meshes) < len(orbits):
        raise DataError(
            f"--held-out {options.held_out}: has no true meshes; make it with tools/make_zoo.py, or name the folder of "
            "the meshes with --meshes"
        )
    if len(orbits) < 2:
        raise ConfigError(f"--measure fits needs at least 2 objects, got {len(orbits)}; raise --num, or add objects")
    if GENERATED in options.views and not cfg.takes_images:
        raise ConfigError("--fit-views-of generated needs an image model, e.g. --cfg configs/mini/i2v_infer.yaml")
    head = load_head_alone(cfg, device) if HEAD in options.sections else None
    part, num_parts = options.part
    numbers = range(part - 1, len(orbits), num_parts)
    samples = _generated(cfg, orbits, out, complete=num_parts == 1) if GENERATED in options.views else {}
    objects = {
        number: _held_out(orbits[number], meshes[number], samples.get(number), cfg, options)
        for number in sorted({*numbers, *((number + 1) % len(orbits) for number in numbers)})
    }
    measure = Measurement(cfg, options, objects, head=head, device=device)
    units = [
        (kind, state, method, number)
        for kind in options.views
        for state in (CLEAN, DAMAGED)
        for method in options.sections
        for number in numbers
    ]
    found = {unit: measure(*unit) for unit in tqdm(units, unit="fit", desc="fits")}
    rows = []
    for kind, state, method in dict.fromkeys(unit[:3] for unit in units):
        results = [found[kind, state, method, number] for number in numbers]
        rows.append({"views": kind, "state": state, "method": method, **row_of(results)})
    result = {
        "held_out": str(options.held_out),
        "objects": [orbits.object_ids[number] for number in numbers],
        "device": str(device),
        "damaged_views": damaged_numbers(cfg.cameras.num_views),
        "rows": rows,
    }
    if num_parts > 1:
        return result
    write_json(out / "fits.json", result)
    with atomic_path(out / "fits.md") as part:
        part.write_text(markdown_table(result), encoding="utf-8")
    for number, one in objects.items():
        named = {" ".join(unit[:3]): measure.folder(*unit) / MESH_FILE for unit in units if unit[3] == number}
        save_png(out / f"meshes_{number:04d}.png", mesh_sheet(one.mesh, named))
    return result


class Measurement:
    """Fits and measures, or reads what was measured before."""

    def __init__(
        self,
        cfg: RunConfig,
        options: FitsOptions,
        objects: Mapping[int, HeldOut],
        *,
        head: Reconstructor | None,
        device: torch.device,
    ) -> None:
        self.cfg, self.options, self.objects, self.head, self.device = cfg, options, objects, head, device
        # Vertex colours are enough: meshes are measured, and shown small.
        self.assets = dataclasses.replace(cfg.assets, texture=0)

    def folder(self, kind: str, state: str, method: str, number: int) -> Path:
        """The folder of one unit of work."""
        return self.options.out / "fits" / f"{kind}-{state.replace(' ', '-')}" / method / f"{number:04d}"

    def __call__(self, kind: str, state: str, method: str, number: int) -> dict[str, Any]:
        folder = self.folder(kind, state, method, number)
        one, views = self.objects[number], self.objects[number].views[kind]
        if state == DAMAGED:
            other = number + 1 if number + 1 in self.objects else 0
            views = damaged(views, self.objects[other].views[kind])
        identity = self._identity(method, views, one)
        known = _known(folder, identity)
        if known is not None:
            return known
        folder.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"identity": identity, "object": one.object_id}
        _reset_peak_memory(self.device)
        started = time.perf_counter()
        try:
            made = self._make(method, views.to(self.device), state=folder / STATE_FILE)
        except DataError as err:  # the other rows do not depend on it
            log.warning("%s: %s", folder, err)
            result["error"] = str(err)
        else:
            result["seconds"] = round(time.perf_counter() - started, 2)
            result |= self._against_truth(made, one, folder / MESH_FILE, wrong=self._wrong(state, len(views)))
            result["peak_memory_mb"] = _peak_memory_mb(self.device)
        write_json(folder / RESULT_FILE, result)
        (folder / STATE_FILE).unlink(missing_ok=True)
        return result

    def _make(self, method: str, views: PosedViews, *, state: Path) -> Made:
        if method == HEAD:
            background = background_of(self.cfg)
            return make_with_head(
                self.head, views, background=background, rasterizer=self.cfg.rasterizer, assets=self.assets
            )
        section = self.options.sections[method]
        return make_object(
            views, section, hull_only=method == HULL, seed=self.cfg.seed, assets=self.assets, state=state
        )

    def _wrong(self, state: str, num_views: int) -> list[int]:
        return sorted(damaged_numbers(num_views).values()) if state == DAMAGED else []

    def _against_truth(self, made: Made, one: HeldOut, glb: Path, *, wrong: list[int]) -> dict[str, Any]:
        unseen = one.unseen
        with torch.no_grad():
            drawn = made.draw(unseen.c2w_V44.to(self.device), unseen.K_V33.to(self.device), unseen.size, WHITE)
        scores = score_views(drawn.colors_BV3HW[0].cpu(), unseen.over(WHITE)).over(range(len(unseen)))
        found: dict[str, Any] = {"psnr": scores["psnr"], "ssim": scores["ssim"]}
        if made.disagreeing is not None:
            found["named"] = made.disagreeing
            found["named_right"] = made.disagreeing == wrong
        started = time.perf_counter()
        try:
            facts = made.write(glb)
            mesh = load_mesh(glb)
        except DataError as err:
            return {**found, "no_mesh": str(err)}
        seconds, num_points = time.perf_counter() - started, self.options.num_points
        return {
            **found,
            "mesh_seconds": round(seconds, 2),
            "watertight": facts["watertight"],
            "chamfer": surface_distance(mesh, one.mesh, num_points=num_points, outer=True).chamfer,
            "chamfer_all": surface_distance(mesh, one.mesh, num_points=num_points, outer=False).chamfer,
            "iou": volume_iou(mesh, one.mesh) if one.closed else None,
        }

    def _identity(self, method: str, views: PosedViews, one: HeldOut) -> str:
        """A digest of everything that determines a unit of work."""
        section = self.options.sections[method]
        facts = [method, self.options.num_points, self.cfg.seed, identifying(self.assets), str(self.device.type)]
        if section is None:
            digests = {path: weights["digest"] for path, weights in weights_of(self.cfg).items()}
            facts += [self.cfg.reconstruction.given, digests]
        else:
            facts.append(identifying(section.options))
        digest = hashlib.sha256(json.dumps(facts, default=str).encode())
        for values in (views.colors_V3HW, views.masks_V1HW, views.c2w_V44, one.unseen.colors_V3HW):
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()


def row_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average the results of several objects; a metric that an object does not have is left out of its mean."""
    row: dict[str, Any] = {"num_objects": len(results)}
    for name in ("psnr", "ssim", "chamfer", "chamfer_all", "iou", "seconds", "mesh_seconds"):
        values = [one[name] for one in results if one.get(name) is not None]
        row[name] = sum(values) / len(values) if values else None
    memory = [one["peak_memory_mb"] for one in results if one.get("peak_memory_mb")]
    row["peak_memory_mb"] = max(memory) if memory else None
    named = [one["named_right"] for one in results if "named_right" in one]
    row["named_right"] = sum(named) if named else None
    row["num_failed"] = sum("error" in one or "no_mesh" in one for one in results)
    row["by_object"] = [dict(one) for one in results]
    return row


def _held_out(orbit: TrueOrbit, mesh: RenderMesh, sample: Path | None, cfg: RunConfig, options: FitsOptions) -> HeldOut:
    size = orbit.views_VCHW.shape[-1]
    distance = float(camera_distance(orbit.c2w_V44).mean())
    elevation_deg = float(torch.rad2deg((orbit.c2w_V44[0, 2, 3] / distance).asin()))
    generator = torch.Generator().manual_seed(1)
    azimuth_deg_V, more_V = torch.rand(2, NUM_UNSEEN, generator=generator)
    around_deg_V = (elevation_deg + UNSEEN_DEG * (2 * more_V - 1)).clamp(-85, 85)
    c2w_V44 = cameras_at(360 * azimuth_deg_V, around_deg_V, torch.full((NUM_UNSEEN,), distance))
    true = true_views(mesh, orbit.c2w_V44, fov_deg=orbit.fov_deg, size=size)
    difference = float((true.over(background_of(cfg)) - orbit.views_VCHW).abs().mean())
    if difference > SAME_LIGHT:
        raise DataError(
            f"--held-out {options.held_out}: {orbit.object_id} differs by {difference:.3f} from a render of its mesh "
            "in the fixed light; make it with tools/make_zoo.py without options of the light"
        )
    views = {TRUE: true}
    if sample is not None:
        views[GENERATED] = read_views(sample)
    return HeldOut(
        object_id=orbit.object_id,
        views={kind: views[kind] for kind in options.views},
        unseen=true_views(mesh, c2w_V44, fov_deg=orbit.fov_deg, size=size),
        mesh=mesh,
    )


def _generated(cfg: RunConfig, orbits: TrueOrbits, out: Path, *, complete: bool) -> dict[int, Path]:
    """Return a sample of each object from its view 0.

    Args:
        complete: make those that are missing.

    Raises:
        DataError: one is missing.
    """
    where = {"given": (0,), "out": out / "given_1", "seed": cfg.seed}
    folders, missing = orbit_samples(cfg, orbits, **where)
    if missing and not complete:
        raise DataError(
            f"--part needs the generated views, but {folders[missing[0]]} is not there; several processes would sample "
            "it; run once without --part, e.g. with --method hull"
        )
    if missing:
        sample_orbits(ViewsPipeline.from_config(cfg), orbits, **where)
    return dict(enumerate(folders))


def _known(folder: Path, identity: str) -> dict[str, Any] | None:
    """The result of an earlier run, if it is of the same views and options and has its mesh."""
    try:
        result = read_json(folder / RESULT_FILE, option="--out", kind=dict)
    except DataError:
        return None
    whole = "chamfer" not in result or (folder / MESH_FILE).is_file()
    return result if result.get("identity") == identity and whole else None


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the largest resident size begins anew
    except OSError:
        log.info("the peak memory is that of the whole run, because this system cannot measure parts of it")


def _peak_memory_mb(device: torch.device) -> int:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3)
    except (OSError, StopIteration):
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
