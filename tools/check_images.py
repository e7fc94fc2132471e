"""Check all images that a configuration trains on in addition to orbits, and report broken ones.

    python tools/check_images.py --cfg configs/t2v_train_laion.yaml

reads the section img_dataset: all images of its lists, or all images of its shards that pass the filters.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.images.laion import LAIONImageDataset
from datasets.images.listed import ImageDataset, listed_sample
from datasets.images.sample import image_sample
from datasets.images.shard import read_shard
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.jobs import run_jobs
from utils.script import config_arguments, run_script

LISTED_TOGETHER = 500  # images of a list per job


def check_shard(file: Path, config: LAIONImageDataset.Config) -> tuple[int, int, list[str]]:
    """Return the numbers of good and of filtered images, and one message per broken image."""
    shard = read_shard(file, keeps=config.keeps)
    problems = list(shard.problems)
    with file.open("rb") as raw:
        for image in shard.images:
            raw.seek(image.offset)
            try:
                image_sample(raw.read(image.num_bytes), image.caption, name=f"{file}/{image.name}", options=config)
            except DataError as err:
                problems.append(str(err))
    num_whole = len(shard.images) - (len(problems) - len(shard.problems))
    return num_whole, shard.num_left_out, problems


def check_listed(entries: list[tuple[Path, str]], config: ImageDataset.Config) -> tuple[int, int, list[str]]:
    """Check lines of a list, which have no filters; the result is that of `check_shard`."""
    problems = []
    for file, caption in entries:
        try:
            listed_sample(file, caption, options=config)
        except DataError as err:
            problems.append(str(err))
    return len(entries) - len(problems), 0, problems


def check(dataset: Any, *, workers: int) -> Iterator[tuple[int, int, list[str]]]:
    """Yield results of `check_shard` or `check_listed` for each part of a data set."""
    if isinstance(dataset, LAIONImageDataset):
        work, jobs = check_shard, [(file, dataset.config) for file in dataset.files]
    else:
        starts = range(0, len(dataset), LISTED_TOGETHER)
        jobs = [(dataset.entries[start : start + LISTED_TOGETHER], dataset.config) for start in starts]
        work = check_listed
    for result, error in run_jobs(work, jobs, workers=workers, total=len(jobs), unit="part"):
        if error is not None:
            raise DataError(f"img_dataset cannot be checked: {error}")
        yield result


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = config_arguments(__doc__.splitlines()[0])
    parser.add_argument("--strict", action="store_true", help="exit with code 1 if an image is broken")
    parser.add_argument("--workers", type=int, default=4, help="processes (default 4)")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    if not 1 <= options.workers <= 1024:
        raise ConfigError(f"--workers must lie in [1, 1024], got {options.workers}")

    import models  # noqa: F401 - registers
    import pipelines  # noqa: F401 - registers

    cfg = load_config(options.cfg, options.overrides)
    if not cfg.img_dataset:
        raise ConfigError(
            f"--cfg {options.cfg} has no section img_dataset; add one, as in configs/t2v_train_laion.yaml"
        )
    num_whole = num_left_out = num_problems = 0
    for whole, left_out, problems in check(cfg.img_dataset.build(), workers=options.workers):
        print("\n".join(problems), end="\n" if problems else "")
        num_whole, num_left_out = num_whole + whole, num_left_out + left_out
        num_problems += len(problems)
    print(f"{num_whole} images to train on, {num_left_out} left out by the filters, {num_problems} broken")
    return 1 if options.strict and num_problems else 0


if __name__ == "__main__":
    run_script(main)
