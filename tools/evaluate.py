"""Measure a model on objects that training never saw.

    python tools/make_zoo.py workspace/zoo_held_out --num 100 --packed --split held_out
    python tools/evaluate.py --cfg configs/mini/t2v_infer.yaml --held-out workspace/zoo_held_out --num 64
    python tools/evaluate.py --cfg configs/mini/i2v_infer.yaml --held-out workspace/zoo_held_out --num 64 --known 2 4

A text model: how often kind and colour of the captions are recognised in the generated views, by a classifier that the
generator never saw, next to true renders (ceiling) and prompts exchanged among the objects (floor). `--runs FOLDER`
measures a folder that inference.py wrote. Figures go to recognition.json in `--out`.

An image model: PSNR, SSIM and LPIPS of the views that it makes from view 0 of an object, against the true ones, next to
the input repeated and a mean image (floors) and the true views through the autoencoder (ceiling). Figures go to
metrics.json, azimuth.png and sheet.png in `--out`. data/metrics.md defines every figure.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pipelines  # noqa: F401 - registers
from pipelines.evaluation.image_quality import QualityOptions, evaluate_quality
from pipelines.evaluation.quality_report import quality_table
from pipelines.evaluation.recognition import evaluate_recognition, recognition_text
from utils.config import load_config
from utils.errors import ConfigError
from utils.registry import MODEL
from utils.run_config import RunConfig
from utils.script import config_arguments, run_script


def evaluate(cfg: RunConfig, args: argparse.Namespace) -> str:
    """Measure what the model is for; returns the table."""
    of_images = MODEL.resolve(cfg.UNet, where="UNet")[1].image_condition
    if args.num < 1:
        raise ConfigError(f"--num must be at least 1, got {args.num}")
    if of_images:
        options = QualityOptions(
            held_out=args.held_out,
            train=args.train,
            num_objects=args.num,
            known=args.known,
            start_seed=args.random_start,
            num_sheet=args.sheet,
            out=args.out,
        )
        return quality_table(evaluate_quality(cfg, options))
    result = evaluate_recognition(
        cfg, held_out=args.held_out, runs=args.runs, classifier=args.classifier, num_objects=args.num, out=args.out
    )
    return recognition_text(result)


def main() -> None:
    parser = config_arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--held-out", type=Path, required=True, help="orbits: tools/make_zoo.py --split held_out, or render_orbit.py")
    add("--num", type=int, default=64, help="objects or prompts at most (default 64)")
    add("--out", type=Path, default=Path("workspace/evaluation"), help="where results go")
    text = parser.add_argument_group("text models")
    text.add_argument("--runs", type=Path, help="measure these samples of inference.py instead of sampling")
    text.add_argument(
        "--classifier", default="data/mini/classifier.safetensors", help="from configs/mini/classifier.yaml"
    )
    image = parser.add_argument_group("image models")
    image.add_argument("--train", type=Path, help="orbits whose mean image is a floor (else: of the other objects)")
    image.add_argument(
        "--known", type=int, nargs="+", default=[], metavar="N", help="sample from N given views too, evenly around"
    )
    image.add_argument("--random-start", type=int, metavar="SEED", help="begin each orbit at a random view")
    image.add_argument("--sheet", type=int, default=5, help="objects on the contact sheet (default 5)")
    args = parser.parse_intermixed_args()
    print(evaluate(load_config(args.cfg, args.overrides), args))


if __name__ == "__main__":
    run_script(main)
