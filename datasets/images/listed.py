"""Single images with captions from text files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.base import ImageData
from datasets.images.sample import ImageOptions, image_sample
from utils.errors import DataError
from utils.files import read_lines
from utils.registry import DATASETS

SEPARATOR = "|||"


@DATASETS.register
class ImageDataset(ImageData):
    """Images listed in text files with lines `FILE|||CAPTION`; FILE is relative to the folder of the list."""

    retired_keys = {"vit_resolution": "the embedder receives no images here"}

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageData.Config):
        """`data_list` contains paths of text files."""

    def __init__(self, config: Config) -> None:
        """Read the lists.

        Raises:
            DataError: a list or a folder is missing, or the lists are empty.
        """
        super().__init__(config)
        self.entries: list[tuple[Path, str]] = []
        for file, folder in zip(config.data_list, config.data_dir_list, strict=True):
            if not Path(folder).is_dir():
                raise DataError(f"img_dataset.data_dir_list={folder}: no such folder; name that of the images")
            if not Path(file).is_file():
                raise DataError(f"img_dataset.data_list={file}: cannot be read (no such file); name a text file")
            for line in filter(str.strip, read_lines(file, option="img_dataset.data_list")):
                name, _, caption = line.partition(SEPARATOR)
                self.entries.append((Path(folder) / name.strip(), caption))
        if not self.entries:
            raise DataError(
                f"img_dataset.data_list={list(config.data_list)} lists no images; write FILE|||CAPTION lines"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, see `datasets.images.sample.image_sample`.

        Raises:
            DataError: the file is missing or broken, or has no caption; the message names the file.
        """
        return listed_sample(*self.entries[index], options=self.config)

    def name_of(self, index: int) -> str:
        """Name of a sample in messages."""
        return str(self.entries[index][0])


def listed_sample(file: Path, caption: str, *, options: ImageOptions) -> dict[str, Any]:
    """The sample of one line of a list; raises DataError like `ImageDataset.__getitem__`."""
    try:
        raw = file.read_bytes()
    except OSError as err:
        raise DataError(f"image {file}: cannot be read ({err.strerror})") from err
    return image_sample(raw, caption, name=str(file), options=options)
