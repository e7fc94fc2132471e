"""The orbits whose consistency is measured: samples, true views, and mixed views of different objects.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from pipelines.evaluation.held_out import TrueOrbit, TrueOrbits, background_of
from pipelines.evaluation.samples import read_cameras, read_views, sample_folders, views_folders
from pipelines.sampling.inputs import slug_of
from utils.errors import ConfigError, DataError
from utils.settings.run import RunConfig

CEILING, FLOOR = "true views (ceiling)", "views of different objects mixed (floor)"
MIN_VIEWS = 4  # two views per half


@dataclass(frozen=True, kw_only=True)
class OrbitViews:
    """Views that should show one object.

    Attributes:
        views_VCHW: images in [0, 1].
        c2w_V44: cameras.
        fov_deg: field of view.
        background: grey value behind the object.
    """

    views_VCHW: Tensor
    c2w_V44: Tensor
    fov_deg: float
    background: float

    @cached_property
    def digest(self) -> str:
        """Digest of all inputs of a fit; views have 8 bits per channel, as in their files."""
        content = self.views_VCHW.mul(255).round().to(torch.uint8).numpy().tobytes() + self.c2w_V44.numpy().tobytes()
        return hashlib.sha256(content + f"{self.fov_deg:.6f} {self.background:.6f}".encode()).hexdigest()


class Row(Sequence[OrbitViews]):
    """One row of the result: orbits with equal sizes, which are read when they are needed.

    Args:
        name: name of the row.
        readers: one function per object.
    """

    def __init__(self, name: str, readers: Sequence[Callable[[], OrbitViews]]) -> None:
        self.name, self.readers = name, list(readers)
        self._kind: tuple[int, int, float] | None = None

    @property
    def slug(self) -> str:
        """A unique folder name."""
        return f"{slug_of(self.name)}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"

    def __len__(self) -> int:
        return len(self.readers)

    def __getitem__(self, index: int) -> OrbitViews:
        """Read orbit `index`.

        Raises:
            DataError: it has too few views, or its number of views, size or field of view differs from the others.
        """
        orbit = self.readers[index]()
        if len(orbit.views_VCHW) < MIN_VIEWS or orbit.views_VCHW.shape[-1] != orbit.views_VCHW.shape[-2]:
            shape = tuple(orbit.views_VCHW.shape)
            raise DataError(f"{self.name}: object {index} has views of shape {shape}; use {MIN_VIEWS} or more, square")
        kind = (len(orbit.views_VCHW), orbit.views_VCHW.shape[-1], round(orbit.fov_deg, 3))
        self._kind = self._kind or kind
        if kind != self._kind:
            raise DataError(
                f"{self.name}: (number of views, size in pixels, field of view) of object {index} is {kind}, but "
                f"that of others is {self._kind}; use a folder of one run"
            )
        return orbit


def rows_of(cfg: RunConfig, *, held_out: Path, runs: Sequence[Path], num_objects: int, scratch: Path) -> list[Row]:
    """Make a row for each kind of result of each run, then ceiling and floor.

    Raises:
        ConfigError: a run is given twice.
        DataError: a folder has no samples or no orbits.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError(f"--runs has the same folder twice: {', '.join(map(str, runs))}; remove one")
    background = background_of(cfg)
    rows = []
    for run in runs:
        samples = sample_folders(run)[:num_objects]
        for views in sorted({name for sample in samples for name in views_folders(sample)}):
            readers = [partial(read_sample, sample, views, background=background) for sample in samples]
            rows.append(Row(str(run) if views == "views" else f"{run} ({views})", readers))
    true = TrueOrbits(held_out, cfg, limit=num_objects, scratch=scratch, option="--held-out")
    rows.append(Row(CEILING, [partial(_of_truth, true, index, background) for index in range(len(true))]))
    if len(true) > 1:
        rows.append(Row(FLOOR, [partial(mixed, true, index, background) for index in range(len(true))]))
    return rows


def read_sample(folder: Path, views: str, *, background: float) -> OrbitViews:
    """Read one result of a sample.

    Raises:
        DataError: images or cameras are missing, or their numbers differ.
    """
    views_VCHW = read_views(folder / views)
    c2w_V44, fov_deg = read_cameras(folder)
    if len(c2w_V44) != len(views_VCHW):
        raise DataError(f"{folder}: {len(views_VCHW)} images in {views}, but {len(c2w_V44)} cameras; sample again")
    return OrbitViews(views_VCHW=views_VCHW, c2w_V44=c2w_V44, fov_deg=fov_deg, background=background)


def mixed(true: Sequence[TrueOrbit] | TrueOrbits, index: int, background: float) -> OrbitViews:
    """Mix views: each view comes from a random object, with its own camera, so that they show no single object."""
    num_views = len(true[0].views_VCHW)
    drawn = torch.randint(len(true), (num_views,), generator=torch.Generator().manual_seed(index))
    orbits = [true[number] for number in drawn.tolist()]
    return OrbitViews(
        views_VCHW=torch.stack([orbit.views_VCHW[view] for view, orbit in enumerate(orbits)]),
        c2w_V44=torch.stack([orbit.c2w_V44[view] for view, orbit in enumerate(orbits)]),
        fov_deg=orbits[0].fov_deg,
        background=background,
    )


def _of_truth(true: TrueOrbits, index: int, background: float) -> OrbitViews:
    orbit = true[index]
    return OrbitViews(views_VCHW=orbit.views_VCHW, c2w_V44=orbit.c2w_V44, fov_deg=orbit.fov_deg, background=background)
