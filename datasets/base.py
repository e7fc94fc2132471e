"""What training and evaluation ask of a data set.

A data set of orbits is a subclass of `OrbitData` with a nested `Config`, a subclass of `OrbitData.Config`, registered
in `DATASETS`. It must have `object_ids`, `stored` and `caption`; everything else has a default. A data set of single
images is a subclass of `ImageData`.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.images.sample import ImageOptions
from datasets.orbits.sample import OrbitOptions, orbit_sample, write_prompt


class StoredOrbit(NamedTuple):
    """One object as it was rendered.

    Attributes:
        rgba_VHW4: uint8 sRGB with straight alpha.
        c2w_V44: float32, camera to world, in the convention of utils.cameras.
        fov_deg: field of view of the images' width.
    """

    rgba_VHW4: np.ndarray
    c2w_V44: np.ndarray
    fov_deg: float


class TrainingData(Dataset, ABC):
    """Samples by number. A broken sample raises DataError with its name; others then take its place."""

    def instead_of(self, index: int) -> int:
        """The sample that takes the place of a broken one."""
        return (index + 1) % len(self)

    def take_problems(self) -> list[str]:
        """A line for each broken sample that was met on the way to others, and is not reported yet."""
        return []


class OrbitData(TrainingData):
    """Rendered objects.

    Attributes:
        config: the options.
        object_ids: a name of each object, unique.
        attributes: what is known of each object, e.g. its kind and colour; empty when nothing is.
        fovs: fields of view that occur, in degrees, where they are known without reading every object.
        in_memory: whether all orbits have one size, so that a training may hold them together in memory as bytes.
    """

    Config = OrbitOptions

    config: OrbitOptions
    object_ids: Sequence[str]
    attributes: Sequence[Mapping[str, Any]] = ()
    fovs: Sequence[float] = ()
    in_memory: bool = False

    def __init__(self, config: OrbitOptions) -> None:
        self.config = config

    @abstractmethod
    def stored(self, index: int) -> StoredOrbit:
        """The first `config.num_views` views of an object.

        Raises:
            DataError: a file is missing or broken; names the object.
        """

    @abstractmethod
    def caption(self, index: int) -> str:
        """The sentence of an object, without a suffix.

        Raises:
            DataError: there is none; names the object.
        """

    def source_files(self) -> Iterable[Path]:
        """Files whose size or time changes when pictures are made anew, so that cached latents are made anew too."""
        return ()

    def identity(self, index: int) -> Any:
        """Plain values that name an object and its caption, for the cache of latents."""
        return self.object_ids[index], self.prompt(index)

    def prompt(self, index: int) -> str:
        """The caption as the text encoder gets it: cut, with its suffix; "" with `empty_captions`."""
        if self.config.empty_captions:
            return ""
        return write_prompt(self.caption(index), suffix=self.config.caption_suffix, max_words=self.config.max_words)

    def __len__(self) -> int:
        return len(self.object_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, see `datasets.orbits.sample.orbit_sample`.

        With `prepare_lgm` it also has the views as stored, `full_rgba_V4HW`: float32 in [0, 1] with straight alpha.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        orbit, object_id = self.stored(index), self.object_ids[index]
        rgba_VHW4, start_view = self.config.scaled(orbit.rgba_VHW4, object_id), self.config.draw_start_view()
        sample = orbit_sample(
            rgba_VHW4,
            orbit.c2w_V44,
            fov_deg=orbit.fov_deg,
            caption=self.prompt(index),
            object_id=object_id,
            resolution=tuple(self.config.resolution),
            background=self.config.background,
            start_view=start_view,
        )
        if self.config.prepare_lgm:
            full_V4HW = np.ascontiguousarray(np.roll(rgba_VHW4, -start_view, axis=0).transpose(0, 3, 1, 2))
            sample["full_rgba_V4HW"] = torch.from_numpy(full_V4HW).float() / 255.0
        return sample


class ImageData(TrainingData):
    """Single images with captions; samples as of `datasets.images.sample.image_sample`.

    Attributes:
        config: the options.
        endless: whether samples have no end and an order of their own.
    """

    Config = ImageOptions

    config: ImageOptions
    endless: bool = False

    def __init__(self, config: ImageOptions) -> None:
        self.config = config

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @abstractmethod
    def name_of(self, index: int) -> str:
        """How messages call a sample."""
