"""What the worker does for each node: cameras, sampling, reconstruction.

Letters: B images, V views, C channels, H W pixels, N Gaussians or points of a mesh, F faces, K coefficients of
spherical harmonics. Images are as ComfyUI has them: channels last, in [0, 1].
"""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from datasets.meshes.loading import load_mesh
from datasets.meshes.scene import Y_UP_TO_Z_UP
from datasets.views.masks import cut_from_plain
from datasets.views.posed_views import PosedViews
from models.gaussians.harmonics import SH_C0
from models.gaussians.scene import Gaussians
from pipelines.assets import MESH_FILE
from pipelines.assets.mesh import write_glb
from pipelines.parts import Parts, check_fit, load_parts
from pipelines.reconstruction.fitting.loop import fit_object
from pipelines.reconstruction.fitting.storage import in_world, write_fit
from pipelines.reconstruction.loading import check_reconstruction, usable
from pipelines.sampling.inference import check_sampling
from pipelines.sampling.inputs import known_view_files
from pipelines.sampling.pipeline import ViewsPipeline
from utils.cameras import orbit_cameras
from utils.config import load_config, override_values
from utils.devices import pick_device, pick_dtype, resting_place
from utils.errors import ConfigError, DataError
from utils.registry import FITS
from utils.settings.assets import AssetOptions
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

HEAD = "head"  # the method that needs no fit
# ComfyUI's Gaussians have the frame of files of Gaussian splatting: y down, z away from the front of the object.
Y_UP_TO_Y_DOWN = np.diag([1.0, -1.0, -1.0])
Answer = tuple[dict[str, Any], dict[str, Tensor]]
Progress = Callable[[int, int], None]


class Work:
    """Answers requests; the networks of the last configuration stay loaded."""

    def __init__(self) -> None:
        self._key: Any = None
        self._parts: Parts | None = None

    def cameras(
        self,
        *,
        num_views: int,
        elevation_deg: float,
        distance: float,
        azimuth_start_deg: float,
        azimuth_span_deg: float,
        tensors: dict[str, Tensor],
        progress: Progress,
    ) -> Answer:
        """Cameras of an orbit: c2w_V44."""
        options = {"azimuth_start_deg": azimuth_start_deg, "azimuth_span_deg": azimuth_span_deg}
        return {}, {
            "c2w_V44": orbit_cameras(num_views=num_views, elevation_deg=elevation_deg, radius=distance, **options)
        }

    def sample(
        self,
        *,
        config: str,
        settings: Sequence[str],
        prompt: str,
        seed: int,
        azimuths_deg: Sequence[float] = (),
        tensors: dict[str, Tensor],
        progress: Progress,
    ) -> Answer:
        """Sample an orbit from a sentence, pictures or both.

        Args:
            config, settings: configuration file and `key=value` settings, as on the command line.
            azimuths_deg: direction of each picture, relative to the first one.
            tensors: rgba_BHW4, the pictures; or nothing.

        Returns:
            views_VHW3, masks_VHW and c2w_V44; `fov_deg` and `notes` in the header.

        Raises:
            ConfigError, DataError: as on the command line.
        """
        with tempfile.TemporaryDirectory(prefix="videomv_") as folder:
            files = _written(tensors.get("rgba_BHW4"), Path(folder))
            if len(azimuths_deg) != len(files):
                raise ConfigError(
                    f"azimuths_deg has {len(azimuths_deg)} angles for {len(files)} images; give each one, e.g. 0, 90"
                )
            if files and azimuths_deg[0] != 0:
                raise ConfigError(f"azimuths_deg begins with {azimuths_deg[0]:g}; the first image is view 0, at 0")
            known = [
                {"image": file, "azimuth_deg": angle} for file, angle in zip(files[1:], azimuths_deg[1:], strict=True)
            ]
            cfg = load_config(config, settings)
            if known:
                cfg = dataclasses.replace(cfg, known_views=known)
            check_sampling(cfg)
            known_files = known_view_files(cfg, cfg.cameras.c2w())
            pipeline = self.pipeline(cfg)
            steps = iter(range(1, 1 + pipeline.steps_per_call))
            orbits = pipeline(
                files[:1] or None,
                prompts=[prompt] if prompt else None,
                seeds=[seed],
                known_views={view: [file] for view, file in known_files.items()},
                on_step=lambda: progress(next(steps), pipeline.steps_per_call),
            )
        views_VHW3 = orbits.best_views_BVCHW[0].movedim(1, -1).contiguous()
        masks_VHW, notes = masks_of(views_VHW3)
        return (
            {"fov_deg": orbits.fov_deg, "notes": notes},
            {"views_VHW3": views_VHW3, "masks_VHW": masks_VHW, "c2w_V44": orbits.c2w_V44},
        )

    def reconstruct(
        self,
        *,
        method: str,
        config: str,
        settings: Sequence[str],
        seed: int,
        fov_deg: float,
        with_mesh: bool,
        tensors: dict[str, Tensor],
        progress: Progress,
    ) -> Answer:
        """Make Gaussians and a mesh from views.

        Args:
            method: `head`, the feed-forward network of `config`, or a fit of the registry FITS.
            settings: of the configuration for `head`, else options of the method.
            fov_deg: horizontal field of view.
            tensors: views_VHW3, c2w_V44 and, if there are masks, masks_VHW.

        Returns:
            What there is of: the Gaussians (see `splat_tensors`), and points_N3, faces_F3 and colors_N3 (linear) of the
            mesh, y up. `missing` in the header says why a part is not there.

        Raises:
            ConfigError, DataError: the views or the settings cannot be used.
        """
        if method != HEAD and method not in FITS.names():
            raise ConfigError(f"method={method} is unknown; valid: {', '.join([HEAD, *FITS.names()])}")
        if len(tensors["views_VHW3"]) != len(tensors["c2w_V44"]):
            raise ConfigError(
                f"there are {len(tensors['views_VHW3'])} images for {len(tensors['c2w_V44'])} cameras; give one image "
                "for each camera, in their order"
            )
        with tempfile.TemporaryDirectory(prefix="videomv_") as folder:
            path = Path(folder) / MESH_FILE
            if method == HEAD:
                gaussians, missing = self._by_head(config, settings, tensors, path if with_mesh else None)
            else:
                section = FITS.section({"type": method, **_values(settings)}, where=f"method {method}")
                gaussians, missing = _by_fit(
                    section, tensors, fov_deg=fov_deg, seed=seed, path=path if with_mesh else None
                )
            mesh = mesh_tensors(path) if path.exists() else {}
        return {"missing": missing}, {**(splat_tensors(gaussians) if gaussians else {}), **mesh}

    def pipeline(self, cfg: RunConfig) -> ViewsPipeline:
        """A pipeline with these settings. Networks are loaded again only when a setting of theirs changes."""
        device = pick_device(cfg.device)
        check_fit(cfg, device)
        names = ("UNet", "auto_encoder", "embedder", "reconstruction", "test_model", "lora", "refine", "low_memory")
        shape = (len(cfg.cameras.c2w()), tuple(cfg.resolution), cfg.compile, cfg.channels_last, cfg.fused)
        key = (*(repr(getattr(cfg, name)) for name in names), shape, str(resting_place(cfg)), pick_dtype(cfg))
        if key != self._key:
            self._key = self._parts = None  # frees the memory before the next networks come
            self._parts = load_parts(cfg, device=resting_place(cfg), dtype=pick_dtype(cfg))
            self._key = key
        return ViewsPipeline.from_parts(cfg, self._parts)

    def _by_head(
        self, config: str, settings: Sequence[str], tensors: dict[str, Tensor], path: Path | None
    ) -> tuple[Gaussians, dict[str, str]]:
        views_VCHW, c2w_V44 = tensors["views_VHW3"].movedim(-1, 1), tensors["c2w_V44"]
        height, width = views_VCHW.shape[-2:]
        cfg = load_config(config, [*settings, f"cameras.num_views={len(c2w_V44)}", f"resolution=[{width},{height}]"])
        check_reconstruction(cfg, pick_device(cfg.device), needed=True)
        pipeline = self.pipeline(cfg)
        if pipeline.reconstruction is None:
            raise ConfigError(
                f"config={config} has no Gaussian head; use configs/mini/t2v_infer.yaml, or another method"
            )
        head = usable(pipeline.reconstruction, num_views=len(c2w_V44), resolution=(width, height), needed=True)
        with torch.no_grad():
            gaussians = head.world_gaussians(views_VCHW[None], c2w_V44).scene(0)
        missing = {}
        if path:
            try:
                write_glb(path, gaussians, AssetOptions(texture=0), rasterizer=cfg.rasterizer)
            except DataError as err:
                missing["mesh"] = str(err)
        return gaussians, missing


def _by_fit(
    section: Any, tensors: dict[str, Tensor], *, fov_deg: float, seed: int, path: Path | None
) -> tuple[Gaussians | None, dict[str, str]]:
    views, move = posed_views(tensors, fov_deg=fov_deg).normalized()
    fitted = fit_object(section, views.to(pick_device("auto")), seed=seed)
    gaussians, missing = fitted.model.gaussians(), {}
    if gaussians is None:
        missing["splat"] = f"method {section.type} has no Gaussians; use gs"
    if path:
        files = dict.fromkeys(("ply", "splat", "spz", "gltf", "html", "turntable"), False)
        facts = write_fit(path.parent, fitted, section, move=move, options=AssetOptions(texture=0, **files))
        if "error" in facts[MESH_FILE]:
            missing["mesh"] = facts[MESH_FILE]["error"]
    return gaussians and in_world(gaussians, move).scene(0), missing


def _values(settings: Sequence[str]) -> dict[str, Any]:
    return override_values(list(settings))


def _written(rgba_BHW4: Tensor | None, folder: Path) -> list[str]:
    """Write pictures as files, so that they are checked and cut out as those of the command line."""
    files = []
    for number, rgba_HW4 in enumerate(() if rgba_BHW4 is None else rgba_BHW4):
        pixels = (rgba_HW4.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        opaque = bool((pixels[..., 3] == 255).all())
        path = folder / f"image_{number}.png"
        Image.fromarray(pixels[..., :3] if opaque else pixels).save(path)
        files.append(str(path))
    return files


def masks_of(views_VHW3: Tensor) -> tuple[Tensor, list[str]]:
    """Cut sampled views from their plain background.

    Returns:
        masks_VHW, and a line for each view whose background is not plain; its mask is 1 everywhere.
    """
    masks, notes = [], []
    for number, view_HW3 in enumerate(views_VHW3):
        try:
            masks.append(torch.from_numpy(cut_from_plain(view_HW3.numpy(), name=f"view {number}").mask_HW))
        except DataError as err:
            masks.append(torch.ones(view_HW3.shape[:2]))
            notes.append(f"MASK is 1 everywhere in view {number}: {err}")
    return torch.stack(masks), notes


def posed_views(tensors: dict[str, Tensor], *, fov_deg: float) -> PosedViews:
    """Views for a fit. Without masks, the object is cut out by the plain background.

    Raises:
        DataError: there are no masks and a background is not plain; the masks have another size or number.
        ConfigError: the field of view is out of range.
    """
    if not 0 < fov_deg < 180:
        raise ConfigError(f"fov_deg must lie in (0, 180), got {fov_deg:g}")
    views_VHW3 = tensors["views_VHW3"].float().clamp(0, 1)
    num_views, height, width, _ = views_VHW3.shape
    masks_VHW = tensors.get("masks_VHW")
    if masks_VHW is None:
        cuts = [cut_from_plain(view.numpy(), name=f"image {number}") for number, view in enumerate(views_VHW3)]
        views_VHW3 = torch.from_numpy(np.stack([cut.colors_HW3 for cut in cuts]))
        masks_VHW = torch.from_numpy(np.stack([cut.mask_HW for cut in cuts]))
    if masks_VHW.shape != (num_views, height, width):
        raise DataError(
            f"the masks have the shape {tuple(masks_VHW.shape)}, but the images need {(num_views, height, width)}; "
            "scale the masks, and give one for each image"
        )
    focal = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    K_33 = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return PosedViews(
        colors_V3HW=views_VHW3.movedim(-1, 1).contiguous(),
        masks_V1HW=masks_VHW[:, None].float().clamp(0, 1),
        c2w_V44=tensors["c2w_V44"],
        K_V33=K_33.repeat(num_views, 1, 1),
        names=tuple(f"image {number}" for number in range(num_views)),
    )


def splat_tensors(gaussians: Gaussians) -> dict[str, Tensor]:
    """One scene as ComfyUI's SPLAT: positions_1N3, scales_1N3, rotations_1N4 (w first), opacities_1N1, sh_1NK3.

    The frame is that of files of Gaussian splatting, y down, in which ComfyUI's viewers show an object upright. The
    first coefficient is the constant colour.
    """
    to_y_down = torch.eye(4, dtype=torch.float64)
    to_y_down[:3, :3] = torch.from_numpy(Y_UP_TO_Y_DOWN @ Y_UP_TO_Z_UP.T)
    scene = gaussians.for_file("the Gaussians").moved(to_y_down)
    sh_BNK3 = ((scene.colors_BN3 - 0.5) / SH_C0)[:, :, None]
    if scene.harmonics_BNK3 is not None:
        sh_BNK3 = torch.cat([sh_BNK3, scene.harmonics_BNK3], dim=2)
    return {
        "positions": scene.means_BN3,
        "scales": scene.scales_BN3,
        "rotations": scene.quats_BN4,
        "opacities": scene.opacities_BN1,
        "sh": sh_BNK3,
    }


def mesh_tensors(path: Path) -> dict[str, Tensor]:
    """Read a mesh with coloured points: points_N3 (y up), faces_F3 (int64) and colors_N3, linear as in glTF."""
    mesh = load_mesh(path, up="z")  # that is, without turning it
    corners = np.concatenate([mesh.points_F33.reshape(-1, 3), mesh.colors_F33.reshape(-1, 3)], axis=1)
    points_N6, faces = np.unique(corners.astype(np.float32), axis=0, return_inverse=True)
    return {
        "points_N3": torch.from_numpy(points_N6[:, :3].copy()),
        "faces_F3": torch.from_numpy(faces.reshape(-1, 3).astype(np.int64)),
        "colors_N3": torch.from_numpy(points_N6[:, 3:].copy()),
    }
