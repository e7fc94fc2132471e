"""The output folder of a sample, for people and for other tools."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.sampling.pipeline import Orbits
from utils.cameras import opencv_to_opengl
from utils.files import atomic_folder, meanwhile, write_json
from utils.images import contact_sheet, save_png, save_video
from utils.registry import VISUAL
from utils.settings.assets import AssetOptions

RESULT_FILE = "result.json"


@VISUAL.register
class VisualGeneratedVideos:
    """Writes one folder per sample: orbit.mp4, sheet.png, views/, transforms.json and result.json.

    A folder is written completely or not at all. If there are results without and with 3D-aware sampling, those with it
    are orbit_gs.mp4, sheet_gs.png and views_gs/.

    A sample with Gaussians also gets the files of pipelines.assets.files. If one of them cannot be made, result.json
    has the reason.

    Args:
        assets: options of these files.
        rasterizer: see models.gaussians.rendering.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options.

        Attributes:
            columns: number of views in a row of the contact sheet.
        """

        columns: int = 6

    def __init__(self, config: Config, *, assets: AssetOptions | None = None, rasterizer: str = "auto") -> None:
        self.config, self.assets, self.rasterizer = config, assets or AssetOptions(), rasterizer

    def write(self, folder: Path, orbits: Orbits, index: int, *, fps: int, record: dict[str, Any]) -> None:
        """Write sample `index` of a batch to `folder`; an older folder is replaced.

        Args:
            fps: frame rate of the video.
            record: input and settings of the sample, the first entries of result.json.
        """
        results = {"": orbits.views_BVCHW}
        if orbits.refined_views_BVCHW is not None:
            results["_gs"] = orbits.refined_views_BVCHW
        with atomic_folder(folder) as part:
            with meanwhile(*self._pictures(part, results, index, fps=fps)):
                objects = self._write_object(part, orbits, index, title=record.get("prompt", folder.name))
            size = orbits.views_BVCHW.shape[-2:]
            transforms = nerf_transforms(orbits.c2w_V44, orbits.fov_deg, size)
            if orbits.gaussians_fov_deg not in (None, orbits.fov_deg):  # the head has its own field of view
                own = nerf_transforms(orbits.c2w_V44, orbits.gaussians_fov_deg, size)
                transforms["gaussians"] = {name: own[name] for name in ("camera_angle_x", "fl_x", "fl_y")}
            write_json(part / "transforms.json", transforms)
            write_json(part / RESULT_FILE, {**self._result(orbits, record), **objects})

    def _pictures(
        self, part: Path, results: dict[str, Tensor], index: int, *, fps: int
    ) -> Iterator[Callable[[], None]]:
        """Yield a function per file (video, sheet, view) that writes it; they run in parallel: compression is slow."""
        for suffix, views_BVCHW in results.items():
            views_VCHW = views_BVCHW[index]
            sheet = contact_sheet(views_VCHW, columns=self.config.columns)
            yield partial(save_video, part / f"orbit{suffix}.mp4", views_VCHW, fps=fps)
            yield partial(save_png, part / f"sheet{suffix}.png", sheet)
            for number, view in enumerate(views_VCHW):
                yield partial(save_png, part / f"views{suffix}" / f"{number:03d}.png", view)

    def _write_object(self, folder: Path, orbits: Orbits, index: int, *, title: str) -> dict[str, Any]:
        if orbits.gaussians is None:
            return {}
        from pipelines.assets.files import write_assets  # imported here, because training does not need its packages

        facts = write_assets(
            folder,
            orbits.gaussians.scene(index),
            options=self.assets,
            c2w_44=orbits.c2w_V44[0],
            fov_deg=orbits.gaussians_fov_deg or orbits.fov_deg,
            title=title,
            rasterizer=self.rasterizer,
        )
        return {"assets": facts}

    def _result(self, orbits: Orbits, record: dict[str, Any]) -> dict[str, Any]:
        return {
            **record,
            "fov_deg": orbits.fov_deg,
            "camera_convention": "c2w, camera to world, OpenCV axes (x right, y down, z forward), world z up",
            "c2w": orbits.c2w_V44.tolist(),
        }


def nerf_transforms(c2w_V44: Tensor, fov_deg: float, size: tuple[int, int]) -> dict[str, Any]:
    """Return the `transforms.json` of NeRF and Gaussian-splatting tools: OpenGL camera-to-world, world z up.

    Args:
        fov_deg: horizontal field of view.
        size: height and width of the views in pixels.
    """
    height, width = size
    focal = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    frames = [
        {"file_path": f"views/{number:03d}.png", "transform_matrix": matrix}
        for number, matrix in enumerate(opencv_to_opengl(c2w_V44).tolist())
    ]
    return {
        "camera_model": "OPENCV",
        "camera_angle_x": math.radians(fov_deg),
        "w": width,
        "h": height,
        "fl_x": focal,
        "fl_y": focal,
        "cx": width / 2,
        "cy": height / 2,
        "frames": frames,
    }
