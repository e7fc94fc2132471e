"""The interface of a data set, as training and evaluation use it.

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
    """The stored renders of one object.

    Attributes:
        rgba_VHW4: uint8 sRGB with straight alpha.
        c2w_V44: float32, camera to world, in the convention of utils.cameras.
        fov_deg: horizontal field of view.
    """

    rgba_VHW4: np.ndarray
    c2w_V44: np.ndarray
    fov_deg: float


class TrainingData(Dataset, ABC):
    """Samples with an index. A broken sample raises DataError with its name, and another sample replaces it."""

    def instead_of(self, index: int) -> int:
        """Return the index of the sample that replaces a broken one."""
        return (index + 1) % len(self)

    def take_problems(self) -> list[str]:
        """Return one line for each broken sample that was skipped since the last call."""
        return []


class OrbitData(TrainingData):
    """Rendered objects.

    Attributes:
        config: the options.
        object_ids: the unique name of each object.
        attributes: known attributes of each object, e.g. its kind and colour; empty when there are none.
        fovs: all fields of view in degrees; empty when finding them would need to read every object.
        in_memory: whether all orbits have the same size, so that training may keep them in memory as bytes.
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
        """Read the first `config.num_views` views of an object.

        Raises:
            DataError: a file is missing or broken; the message names the object.
        """

    @abstractmethod
    def caption(self, index: int) -> str:
        """Return the caption of an object, or the first of several, without a suffix.

        Raises:
            DataError: there is no caption; the message names the object.
        """

    def wordings(self, index: int) -> Sequence[str]:
        """Return all captions of an object, `caption` first; training draws one of them for each sample of a step."""
        return (self.caption(index),)

    def source_files(self) -> Iterable[Path]:
        """List the files whose size or time changes with the images; a change makes cached latents invalid."""
        return ()

    def identity(self, index: int) -> Any:
        """Return plain values that identify an object and its captions, for the cache of latents."""
        return self.object_ids[index], *self.prompts(index)

    def prompt(self, index: int) -> str:
        """Return the first of `prompts`."""
        return self.prompts(index)[0]

    def prompts(self, index: int) -> tuple[str, ...]:
        """Return the captions for the text encoder: cut to `max_words`, with the suffix; "" with `empty_captions`.

        Captions that become equal are returned once.
        """
        if self.config.empty_captions:
            return ("",)
        suffix, max_words = self.config.caption_suffix, self.config.max_words
        written = (write_prompt(one, suffix=suffix, max_words=max_words) for one in self.wordings(index))
        return tuple(dict.fromkeys(written))

    def __len__(self) -> int:
        return len(self.object_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample, see `datasets.orbits.sample.orbit_sample`.

        Its caption is the first one. With `prepare_lgm` it also has the stored views, `full_rgba_V4HW`: float32 in
        [0, 1] with straight alpha.
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
    """Single images with captions; the samples are those of `datasets.images.sample.image_sample`.

    Attributes:
        config: the options.
        endless: whether the data set is an endless stream with a fixed order.
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
        """Return the name of a sample for messages."""
