"""The output folder of a sample, for people and for other tools."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.views.transforms_json import nerf_transforms
from pipelines.assets import ASSET_FILES
from pipelines.reconstruction.fitting import FIT_FILES
from pipelines.sampling.pipeline import Orbits
from utils.errors import ConfigError, DataError
from utils.files import atomic_folder, meanwhile, read_json, write_json
from utils.images import contact_sheet, save_png, save_video
from utils.registry import VISUAL
from utils.settings.assets import AssetOptions

RESULT_FILE = "result.json"
NUM_BESIDE = 4  # views beside the input
FIT_FOLDER = "fit"  # of the files of pipelines.reconstruction.fitting, if the run has a section fit
# What a run writes into a sample; everything else there belongs to the user.
OURS = re.compile(
    r"input\.png|beside\.png|orbit(_gs)?\.mp4|sheet(_gs)?\.png|views(_gs)?/\d{3,}\.png|transforms\.json|result\.json|"
    + "|".join(map(re.escape, (*ASSET_FILES, *(f"{FIT_FOLDER}/{name}" for name in FIT_FILES))))
)


@VISUAL.register
class VisualGeneratedVideos:
    """Writes one folder per sample: orbit.mp4, sheet.png, views/, transforms.json and result.json.

    A folder is written completely or not at all. If there are results without and with 3D-aware sampling, those with it
    are orbit_gs.mp4, sheet_gs.png and views_gs/.

    A sample of an image also gets input.png, the image as the network received it (cut out and centred), and
    beside.png, with the input at the left of some views.

    A sample with Gaussians also gets the files of pipelines.assets.files. If the object has no such file, result.json
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

        def __post_init__(self) -> None:
            if self.columns < 1:
                raise ConfigError(f"visual_inference.columns must be at least 1, got {self.columns}")

    def __init__(self, config: Config, *, assets: AssetOptions | None = None, rasterizer: str = "auto") -> None:
        self.config, self.assets, self.rasterizer = config, assets or AssetOptions(), rasterizer

    def write(
        self,
        folder: Path,
        orbits: Orbits,
        index: int,
        *,
        fps: int,
        record: dict[str, Any],
        on_file: Callable[[str], None] | None = None,
    ) -> None:
        """Write sample `index` of a batch to `folder`. An older sample is replaced, but a user's own files are kept.

        Args:
            fps: frame rate of the video.
            record: input and settings of the sample, the first entries of result.json.
            on_file: see `pipelines.assets.files.write_assets`.

        Raises:
            WriteError: a file cannot be written, for example because the disk is full.
        """
        results = {"": orbits.views_BVCHW}
        if orbits.refined_views_BVCHW is not None:
            results["_gs"] = orbits.refined_views_BVCHW
        with atomic_folder(folder, is_ours=ours_in(folder)) as part:
            with meanwhile(*self._pictures(part, orbits, results, index, fps=fps)):
                title = record.get("prompt", folder.name)
                objects = self._write_object(part, orbits, index, title=title, on_file=on_file)
            size = orbits.views_BVCHW.shape[-2:]
            transforms = nerf_transforms(orbits.c2w_V44, orbits.fov_deg, size)
            if orbits.gaussians_fov_deg not in (None, orbits.fov_deg):  # the head has its own field of view
                own = nerf_transforms(orbits.c2w_V44, orbits.gaussians_fov_deg, size)
                transforms["gaussians"] = {name: own[name] for name in ("camera_angle_x", "fl_x", "fl_y")}
            write_json(part / "transforms.json", transforms)
            write_json(part / RESULT_FILE, {**self._result(orbits, record), **objects, "files": sizes_in(part)})

    def _pictures(
        self, part: Path, orbits: Orbits, results: dict[str, Tensor], index: int, *, fps: int
    ) -> Iterator[Callable[[], None]]:
        """Yield a function per file (video, sheet, view) that writes it; they run in parallel: compression is slow."""
        if orbits.input_views_B3HW is not None:
            seen_3HW = orbits.input_views_B3HW[index]
            yield partial(save_png, part / "input.png", seen_3HW)
            yield partial(save_png, part / "beside.png", beside_input(seen_3HW, orbits.best_views_BVCHW[index]))
        for suffix, views_BVCHW in results.items():
            views_VCHW = views_BVCHW[index]
            sheet = contact_sheet(views_VCHW, columns=self.config.columns)
            yield partial(save_video, part / f"orbit{suffix}.mp4", views_VCHW, fps=fps)
            yield partial(save_png, part / f"sheet{suffix}.png", sheet)
            for number, view in enumerate(views_VCHW):
                yield partial(save_png, part / f"views{suffix}" / f"{number:03d}.png", view)

    def _write_object(
        self, folder: Path, orbits: Orbits, index: int, *, title: str, on_file: Callable[[str], None] | None
    ) -> dict[str, Any]:
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
            on_file=on_file,
        )
        return {"assets": facts}

    def _result(self, orbits: Orbits, record: dict[str, Any]) -> dict[str, Any]:
        return {
            **record,
            "fov_deg": orbits.fov_deg,
            "camera_convention": "c2w, camera to world, OpenCV axes (x right, y down, z forward), world z up",
            "c2w": orbits.c2w_V44.tolist(),
        }


def beside_input(input_3HW: Tensor, views_VCHW: Tensor) -> Tensor:
    """Return one row with the input and up to NUM_BESIDE views, evenly spaced around the orbit."""
    num = min(NUM_BESIDE, len(views_VCHW))
    picked = views_VCHW[[place * len(views_VCHW) // num for place in range(num)]]
    return contact_sheet(torch.cat([input_3HW[None].to(picked), picked]), columns=1 + num)


def sizes_in(folder: Path) -> dict[str, int]:
    """Return the sizes in bytes of all files in a folder, by their name relative to it."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }


def missing_file(folder: Path, result: dict[str, Any]) -> str:
    """Say which file of a sample is missing, is not whole or was never written; "" if all are there.

    Args:
        result: result.json. Those of earlier versions have no sizes; then the files must be there and not be empty.
    """
    assets, files = result.get("assets", {}), result.get("files")
    if not isinstance(assets, dict) or not all(isinstance(fact, dict) for fact in assets.values()):
        return f"has a {RESULT_FILE} that cannot be understood"
    for name, fact in assets.items():
        if "error" in fact and not fact.get("permanent"):
            return f"has no {name} ({fact['error']})"
    if not isinstance(files, dict):
        files = dict.fromkeys(_names_of_earlier_versions(folder))
        files |= {name: fact.get("bytes") for name, fact in assets.items() if "error" not in fact}
    for name, num_bytes in files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"has no {name}"
        if found != (found or 1 if num_bytes is None else num_bytes):
            return f"has a {name} that is not as it was written"
    return ""


def _names_of_earlier_versions(folder: Path) -> list[str]:
    """List the files that a sample without a list of its files must have."""
    names = ["transforms.json"]
    for suffix in ("", "_gs"):
        pair = [f"orbit{suffix}.mp4", f"sheet{suffix}.png"]
        of_a_run = any((folder / name).exists() for name in pair)  # the samples of an evaluation have only views
        names += pair if of_a_run else []
        present = [path.relative_to(folder).as_posix() for path in folder.glob(f"views{suffix}/*.png")]
        names += [*present, f"views{suffix}/000.png"] if of_a_run or present or not suffix else []
    return names


def ours_in(folder: Path) -> Callable[[Path], bool]:
    """Return a function that says whether a run wrote a file of a sample, and nobody changed it since."""
    try:
        files = read_json(folder / RESULT_FILE, option=RESULT_FILE, kind=dict).get("files", {})
    except DataError:
        files = {}

    def ours(name: Path) -> bool:
        written = files.get(name.as_posix()) if isinstance(files, dict) else None
        now = (folder / name).lstat().st_size
        return now in (0, written) if written is not None else OURS.fullmatch(name.as_posix()) is not None

    return ours
