"""Measure the Gaussian head with true views, or with sampled views, of held-out objects.

Its Gaussians are rendered from the cameras of the views that are not its input, and their mesh is compared with the
true mesh. Definitions: pipelines/evaluation/README.md.

Letters: O objects, V views, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.meshes.companions import Companions
from datasets.meshes.listing import MeshFile, collect_meshes
from datasets.meshes.loading import load_mesh, read_mesh
from datasets.meshes.scene import RenderMesh, normalise
from datasets.shapes import redraw_shape
from datasets.zoo import redraw
from models.gaussians.lgm import evenly_spaced
from models.gaussians.rendering import render
from models.perceptual import Lpips, find_lpips
from pipelines.assets.mesh import write_glb
from pipelines.evaluation.head_report import Measured, one_sheet, row_figures
from pipelines.evaluation.held_out import TrueOrbit, TrueOrbits, background_of, open_held_out
from pipelines.evaluation.image_metrics import score_views
from pipelines.evaluation.mesh_metrics import surface_distance
from pipelines.evaluation.samples import read_views, sample_folders, views_folders
from pipelines.placement import Placement
from pipelines.reconstruction.feed_forward import FeedForward
from pipelines.reconstruction.loading import build_reconstruction, check_reconstruction, load_network_of
from pipelines.sampling.inputs import slug_of
from utils.cameras import intrinsics
from utils.devices import pick_device, pick_dtype
from utils.errors import ConfigError, DataError
from utils.files import read_json, writable_folder, write_json
from utils.images import save_png
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

TRUE_ROW = "true views"


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Options of the measurement.

    Attributes:
        held_out: folder of true orbits; true meshes are known if tools/make_zoo.py wrote it, or from `meshes`.
        runs: folders of samples that evaluate.py made of these objects; each kind of result is a row.
        num_objects: maximum number of objects.
        out: output folder.
        inputs: numbers of true views; each is a row. They are evenly spaced among the views with even numbers, and the
            others are unseen in every row. Empty: the configured input views.
        meshes: see `true_meshes`.
    """

    held_out: Path
    runs: Sequence[Path]
    num_objects: int
    out: Path
    inputs: Sequence[int] = ()
    meshes: Path | None = None


def evaluate_head(cfg: RunConfig, options: HeadOptions) -> dict[str, Any]:
    """Reconstruct, compare, and write head.json, and a sheet and meshes per row; returns the content of head.json.

    Raises:
        ConfigError, DataError: a setting or a folder does not fit.
    """
    device = pick_device(cfg.device)
    if not cfg.reconstruction:
        raise ConfigError("--measure head needs a section reconstruction; copy it from configs/mini/base.yaml")
    num_views = cfg.cameras.num_views
    given = inputs_of_rows(cfg, options.inputs)
    if given:
        cfg = dataclasses.replace(
            cfg, reconstruction=cfg.reconstruction.changed(input_views=next(iter(given.values())))
        )
    check_reconstruction(cfg, device, needed=True)
    out = writable_folder(options.out, option="--out")
    orbits = TrueOrbits(options.held_out, cfg, limit=options.num_objects, scratch=out, option="--held-out")
    every_orbit = dict.fromkeys(range(len(orbits)))
    rows = {TRUE_ROW: every_orbit} | sampled_views(options.runs, orbits)
    meshes = {}
    if cfg.assets.glb:
        meshes = true_meshes(options.held_out, cfg, object_ids=orbits.object_ids, sources=options.meshes)
    reconstruction = load_head_alone(cfg, device)
    inputs = reconstruction.config.views_of(num_views)
    unseen = [view for view in range(num_views) if view not in inputs]
    if given:
        rows, unseen = {name: every_orbit for name in given}, list(range(1, num_views, 2))
    measure = Measure(cfg, reconstruction, lpips=find_lpips(device=device))
    figures = {}
    for name, folders in rows.items():
        if given:
            reconstruction.config = dataclasses.replace(reconstruction.config, input_views=given[name])
        row_out = writable_folder(out / "head" / slug_of(name), option="--out")
        measured = {}
        for number, folder in tqdm(folders.items(), unit="object", desc=name[-40:]):
            views_VCHW = orbits[number].views_VCHW if folder is None else read_views(folder)
            glb = row_out / f"{number:04d}.glb"
            measured[number] = measure(views_VCHW, orbits[number], true_mesh=meshes.get(number), glb=glb)
        figures[name] = row_figures([(orbits.object_ids[n], one) for n, one in measured.items()], unseen)
        number = next(iter(measured))
        save_png(row_out / "sheet.png", one_sheet(orbits[number], measured[number], unseen))
    result = {
        "held_out": str(options.held_out),
        "reconstruction": cfg.reconstruction.given,
        "inputs": inputs,
        "unseen": unseen,
        "rows": figures,
    }
    write_json(out / "head.json", result)
    return result


def inputs_of_rows(cfg: RunConfig, numbers: Sequence[int]) -> dict[str, list[int]]:
    """Choose the input views of each row of `HeadOptions.inputs`.

    Raises:
        ConfigError: there are fewer views, or the head does not take so many.
    """
    rows, num_views = {}, cfg.cameras.num_views
    for number in numbers:
        if not 1 <= number <= num_views // 2:
            raise ConfigError(
                f"--inputs {number} must lie between 1 and {num_views // 2}, half of cameras.num_views={num_views}"
            )
        rows[f"{number} true views"] = [2 * view for view in evenly_spaced(num_views // 2, number)]
        _ = cfg.reconstruction.changed(input_views=rows[f"{number} true views"]).options  # raises ConfigError
    return rows


def load_head_alone(cfg: RunConfig, device: torch.device) -> FeedForward:
    """Load the head without a generator.

    Raises:
        ConfigError: the configuration has no head.
    """
    if not issubclass(cfg.reconstruction.cls, FeedForward):
        raise ConfigError(
            f"--measure head does not support reconstruction.type={cfg.reconstruction.type}; use "
            "GaussianReconstruction or DenseReconstruction"
        )
    head = load_network_of(cfg)
    if head is None:
        raise ConfigError("--measure head needs a Gaussian head; set reconstruction.pretrained to its weights")
    autoencoder = cfg.auto_encoder.build().to(device, pick_dtype(cfg)).eval()
    return build_reconstruction(cfg, head.to(device), autoencoder=autoencoder, placement=Placement(device))


def true_meshes(
    folder: Path, cfg: RunConfig, *, object_ids: Sequence[str], sources: Path | None = None
) -> dict[int, RenderMesh]:
    """Make the true meshes of the first objects in a folder.

    Args:
        object_ids: ids of these objects.
        sources: folder of the meshes that tools/render_orbit.py rendered. None: the objects of tools/make_zoo.py are
            generated again; nothing is returned for other data.

    Raises:
        DataError: a mesh is not there, or this version no longer generates these objects.
    """
    if sources is not None:
        files = collect_meshes([sources])
        return {number: read_true_mesh(files, name, sources) for number, name in enumerate(object_ids)}
    if not any(folder.glob("orbits_*.safetensors")) and not (folder / "attributes.json").is_file():
        log.info("no mesh figures: %s was not made by tools/make_zoo.py", folder)
        return {}
    attributes = open_held_out(folder, cfg)[1][: len(object_ids)]
    drawn = {
        number: redraw_shape(one) if "forms" in one else redraw(one)
        for number, one in enumerate(attributes)
        if "seed" in one
    }
    return {number: one.mesh for number, one in drawn.items()}


def read_true_mesh(files: Mapping[str, MeshFile], object_id: str, sources: Path) -> RenderMesh:
    """Read the mesh of an object as tools/render_orbit.py does.

    Raises:
        DataError: it is not there, or cannot be read.
    """
    file = files.get(object_id.rpartition("/")[2])
    if file is None:
        raise DataError(f"--meshes {sources}: no mesh of {object_id}; name the folder that render_orbit.py rendered")
    return normalise(read_mesh(Companions(file.path, file.root)))


def sampled_views(runs: Sequence[Path], orbits: TrueOrbits) -> dict[str, dict[int, Path]]:
    """Return the folders of sampled views, by the name of the row and the number of the object.

    Raises:
        DataError: a sample does not show one of these objects, or does not start at its view 0.
    """
    rows: dict[str, dict[int, Path]] = {}
    number_of = {object_id: number for number, object_id in enumerate(orbits.dataset.object_ids)}
    for run in runs:
        for sample in sample_folders(run):
            record = read_json(sample / "result.json", option="--runs", kind=dict)
            shown = record.get("object")
            if not isinstance(shown, str) or shown not in number_of or record.get("start_view"):
                raise DataError(
                    f"--runs {sample}: this sample does not show an object of --held-out from its view 0; use a folder "
                    "given_1 that evaluate.py wrote for this data without --random-start"
                )
            number = number_of[shown]
            if number < len(orbits):
                for views in views_folders(sample):
                    name = str(run) if views == "views" else f"{run} ({views})"
                    rows.setdefault(name, {})[number] = sample / views
    return rows


class Measure:
    """Reconstructs an object from some of its views, and compares it with the true object.

    Args:
        cfg: the run's configuration, with background and options of the mesh.
        reconstruction: the head.
        lpips: the LPIPS network; None: no LPIPS.
    """

    def __init__(self, cfg: RunConfig, reconstruction: FeedForward, *, lpips: Lpips | None) -> None:
        self.cfg, self.reconstruction, self.lpips = cfg, reconstruction, lpips
        self.background = background_of(cfg)
        # A texture is not needed, because only the surface is measured.
        self.mesh_options = dataclasses.replace(cfg.assets, texture=0)

    @torch.no_grad()
    def __call__(self, views_VCHW: Tensor, orbit: TrueOrbit, *, true_mesh: RenderMesh | None, glb: Path) -> Measured:
        """Measure one object.

        Args:
            views_VCHW: all views; some of them are the head's input.
            orbit: the true views and cameras.
            true_mesh: the true surface; None: no mesh is made.
            glb: output file of the mesh.
        """
        gaussians = self.reconstruction.world_gaussians(views_VCHW[None], orbit.c2w_V44)
        device, size = gaussians.means_BN3.device, tuple(orbit.views_VCHW.shape[-2:])
        drawn = render(
            gaussians,
            orbit.c2w_V44[None],
            intrinsics(self.reconstruction.config.fov, size[1]),
            size=size,
            background=self.background,
            backend=self.cfg.rasterizer,
        )
        renders_VCHW = drawn.colors_BV3HW[0].clamp(0, 1)
        masks = None if orbit.masks_V1HW is None else orbit.masks_V1HW.to(device)
        scores = score_views(renders_VCHW, orbit.views_VCHW.to(device), masks_V1HW=masks, lpips=self.lpips)
        surface = None
        if true_mesh is not None:
            try:
                gaussians.check_values(name="the Gaussians")
                write_glb(glb, gaussians, self.mesh_options, rasterizer=self.cfg.rasterizer)
                surface = surface_distance(load_mesh(glb), true_mesh, outer=True)
            except DataError as err:
                log.warning("object %s has no mesh: %s", orbit.object_id, err)
        return Measured(scores=scores, renders_VCHW=renders_VCHW.cpu(), surface=surface)
