"""Measure a text model: how often are kind and colour of held-out prompts recognised in the generated views?

    python tools/make_zoo.py workspace/zoo_held_out --num 100 --packed --split held_out
    python tools/evaluate.py --cfg configs/mini/t2v_infer.yaml --held-out workspace/zoo_held_out --num 64

samples the captions of the held-out objects and names the views by a classifier that the generator never saw, next to
the same figure for the true renders (ceiling) and for prompts exchanged among the objects (floor). `--runs FOLDER`
measures a folder that inference.py wrote. Figures go to `--out`/recognition.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from pipelines.recognition import labels_of, recognise, recognition_table
from pipelines.views_pipeline import pick_device
from pipelines.visual import RESULT_FILE
from utils.config import load_config
from utils.errors import DataError
from utils.files import read_json, writable_folder, write_json
from utils.registry import DATASETS, INFER_ENGINE, MODEL
from utils.run_config import RunConfig
from utils.script import config_arguments, run_script

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """An object that training never saw.

    Attributes:
        prompt: its caption, without the suffix.
        attributes: what is true of it, at least kind and color.
        number: its place in the data set.
    """

    prompt: str
    attributes: dict[str, Any]
    number: int


def open_held_out(folder: Path, cfg: RunConfig) -> tuple[Any, list[dict[str, Any]]]:
    """The data set of a folder that make_zoo.py wrote, packed or not, and the attributes of its objects.

    Raises:
        DataError: the folder holds neither.
    """
    common = {
        "resolution": list(cfg.resolution),
        "num_views": cfg.cameras.num_views,
        "background": cfg.vid_dataset.get("background", 1.0),
        "caption_suffix": "",
    }
    if sorted(folder.glob("orbits_*.safetensors")):
        dataset = DATASETS.build({"type": "PackedOrbits", "data_dir_list": [str(folder)], **common}, where="held-out")
        return dataset, dataset.attributes
    if not (folder / "attributes.json").is_file():
        raise DataError(f"--held-out {folder}: no orbits_*.safetensors and no attributes.json; see tools/make_zoo.py")
    options = {"data_list": [str(folder / "index.json")], "data_dir_list": [str(folder)], "get_first_frame": False}
    options["caption_dir"] = str(folder / "captions.json")
    dataset = DATASETS.build({"type": "VideoDataset", **options, **common}, where="held-out")
    attributes = read_json(folder / "attributes.json", option="--held-out")
    return dataset, [attributes[object_id] for _, object_id in dataset.entries]


def held_out_objects(dataset: Any, attributes: list[dict[str, Any]], *, limit: int) -> list[HeldOut]:
    """The first `limit` objects whose captions differ."""
    objects: dict[str, HeldOut] = {}
    for number, record in enumerate(attributes):
        prompt = (
            dataset.prompt(number) if hasattr(dataset, "prompt") else dataset.caption_of(dataset.entries[number][1])
        )
        objects.setdefault(prompt, HeldOut(prompt=prompt, attributes=record, number=number))
    return list(objects.values())[:limit]


def read_runs(folders: list[Path], *, suffix: str) -> dict[str, Path]:
    """Prompt without suffix -> folder of a sample."""
    results = {folder: read_json(folder / RESULT_FILE, option="--runs") for folder in folders}
    return {result["prompt"].removesuffix(suffix): folder for folder, result in results.items()}


def read_views(folder: Path) -> Tensor:
    """The views of a sample: (V, 3, H, W) in [0, 1].

    Raises:
        DataError: there are none, or one cannot be read.
    """
    files = sorted((folder / "views").glob("*.png"))
    if not files:
        raise DataError(f"{folder}/views holds no pictures; sample this prompt again")
    try:
        views = [np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255 for file in files]
    except OSError as err:
        raise DataError(f"{folder}/views: {err}; sample this prompt again") from err
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


def evaluate(cfg: RunConfig, *, held_out: Path, runs: Path | None, classifier: str, limit: int, out: Path) -> dict:
    """Sample where needed, measure, write recognition.json; returns its content."""
    out = writable_folder(out, option="--out")
    dataset, attributes = open_held_out(held_out, cfg)
    network = MODEL.build({"type": "ViewClassifier", **cfg.classifier, "pretrained": classifier}, where="classifier")
    network = network.to(pick_device(cfg.device)).eval()
    objects = held_out_objects(dataset, attributes, limit=limit)
    if runs is None:
        sampling = dataclasses.replace(cfg, prompts=[one.prompt for one in objects], round=1, log_dir=str(out / "runs"))
        folders = INFER_ENGINE.build({"type": cfg.TASK_TYPE}, where="TASK_TYPE", cfg=sampling).run()
    else:
        folders = sorted(path.parent for path in runs.glob(f"*/{RESULT_FILE}"))
    samples = read_runs(folders, suffix=cfg.prompt_suffix)
    objects = [one for one in objects if one.prompt in samples]
    if not objects:
        raise DataError(f"--runs {runs}: no sample is of a prompt of {held_out}; leave --runs out to sample them")
    true = labels_of(network, [one.attributes for one in objects])
    generated = recognise(network, (read_views(samples[one.prompt]) for one in objects))
    rendered = recognise(network, (dataset[one.number]["views_VCHW"] for one in objects))
    result = {
        "num_prompts": len(objects),
        "rates": recognition_table(generated=generated, rendered=rendered, true=true),
        "samples": [
            {"prompt": one.prompt, "kind": network.kinds[kind], "color": network.colors[color]}
            for one, kind, color in zip(objects, generated.kind.tolist(), generated.color.tolist(), strict=True)
        ],
    }
    write_json(out / "recognition.json", result)
    return result


def table_text(result: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        f"{result['num_prompts']} held-out prompts",
        f"{'':8}{'generated':>11}{'ceiling':>9}{'floor':>8}{'of ceiling':>12}",
    ]
    for name, rates in result["rates"].items():
        lines.append(
            f"{name:8}{rates['generated']:>11.1%}{rates['ceiling']:>9.1%}{rates['floor']:>8.1%}{rates['of_ceiling']:>12.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = config_arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--held-out", type=Path, required=True, help="folder of tools/make_zoo.py --split held_out")
    parser.add_argument("--runs", type=Path, help="measure these samples of inference.py instead of sampling")
    parser.add_argument(
        "--classifier", default="data/mini/classifier.safetensors", help="from configs/mini/classifier.yaml"
    )
    parser.add_argument("--num", type=int, default=64, help="prompts at most")
    parser.add_argument("--out", type=Path, default=Path("workspace/evaluation"), help="where results go")
    args = parser.parse_intermixed_args()
    cfg = load_config(args.cfg, args.overrides)
    result = evaluate(
        cfg, held_out=args.held_out, runs=args.runs, classifier=args.classifier, limit=args.num, out=args.out
    )
    print(table_text(result))


if __name__ == "__main__":
    run_script(main)
