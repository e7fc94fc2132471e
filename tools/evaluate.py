r"""Measure a model on objects that are not in the training data.

    python tools/make_zoo.py workspace/zoo_held_out --num 100 --packed --split held_out
    python tools/evaluate.py --cfg configs/mini/t2v_infer.yaml --held-out workspace/zoo_held_out --num 64
    python tools/evaluate.py --cfg configs/mini/i2v_infer.yaml --held-out workspace/zoo_held_out --num 64 --known 2

For a text model: how often a classifier that the generator never saw recognises kind and colour of the caption in the
generated views, compared with true renders (ceiling) and exchanged prompts (floor). `--runs FOLDER` measures a folder
that inference.py wrote. Results: recognition.json in `--out`.

For an image model: PSNR, SSIM and LPIPS of the views that it makes from view 0 of an object, against the true views.
They are compared with the repeated input and a mean image (floors) and with the true views through the autoencoder
(ceiling). `--seeds 4` samples each object with four seeds and adds the best of them. The loss of training at fixed
noise, the first denoising step alone, and rows by source need no option. `batch_size=16` is faster on a GPU.
Results: metrics.json, azimuth.png and sheet.png in `--out`.

    python tools/evaluate.py --measure consistency --cfg configs/mini/i2v_infer.yaml \
        --held-out workspace/zoo_held_out --runs workspace/visualization/mini_i2v --num 32

Consistency of the samples in `--runs` (may be repeated): do 3D Gaussians that are fitted to half of the views explain
the other half? Compared with true views (ceiling) and mixed views of different objects (floor). Results:
consistency.json.

    python tools/evaluate.py --measure head --cfg configs/mini/i2v_infer.yaml --held-out workspace/zoo_held_out --num 24

The Gaussian head by itself: it receives true views, and its renders from other cameras and its meshes are compared with
the truth. `--runs workspace/evaluation/given_1` adds the result for the views that an image model sampled. For a head
that takes any number of views, `--inputs 8` is a row for 8
of them and may be repeated. Results: head.json.

    python tools/evaluate.py --measure settings --cfg configs/mini/t2v_infer.yaml --held-out workspace/zoo_held_out \
        --num 24 refine=true --set "reconstruction.guidance=before" --set "reconstruction.guidance=after"

Settings side by side, with the same seeds: each `--set` is a row, overrides separated by blanks. Each row is sampled as
above; then recognition or quality, and consistency, of each of its results are measured (`results=both`: without and
with 3D-aware sampling). Results: settings.json, row by row.

    python tools/evaluate.py --measure fits --cfg configs/mini/i2v_infer.yaml --held-out workspace/zoo_held_out --num 3

Fits of objects (tools/reconstruct.py), the visual hull and the Gaussian head: each to true views and to views that the
image model generates, clean and with four damaged views. Novel views and meshes are compared with the truth. Results:
fits.md, fits.json and a picture of all meshes of an object, meshes_NNNN.png; what was measured before is kept. With
`--part 1/8` ... `--part 8/8`, eight processes share the fits; the command without it then reads them. Objects of
render_orbit.py need `--meshes objects`, the folder of their meshes.

    python tools/evaluate.py --measure likeness --cfg configs/mini/t2v_infer.yaml --held-out workspace/my_orbits \
        --among workspace/zoo_held_out --runs workspace/visualization/mini_t2v

Likeness of text samples: are they more similar to the objects of `--held-out` whose captions they were made from (for
example an object that a LoRA was trained on) than to any object of `--among`? Results: likeness.json.

    python tools/evaluate.py --measure retrieval --cfg configs/mini/t2v_infer.yaml --held-out workspace/real_val \
        --encoder workspace/mini/second_embedder/embedder.safetensors --num 48

Retrieval of prompts: does an image-text encoder that the generator was not conditioned on find the prompt of a sample
among 100 captions? Compared with true renders (ceiling) and chance (floor). Results: retrieval.json.

pipelines/evaluation/README.md defines every metric.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pipelines  # noqa: F401 - registers
from pipelines.evaluation.consistency import ConsistencyOptions, consistency_table, evaluate_consistency
from pipelines.evaluation.fits.measure import GENERATED, TRUE, FitsOptions, evaluate_fits
from pipelines.evaluation.fits.methods import HEAD, HULL, method_names
from pipelines.evaluation.fits.report import markdown_table
from pipelines.evaluation.head_quality import HeadOptions, evaluate_head
from pipelines.evaluation.head_report import head_table
from pipelines.evaluation.image_quality import QualityOptions, evaluate_quality
from pipelines.evaluation.likeness import LikenessOptions, evaluate_likeness, likeness_text
from pipelines.evaluation.quality_report import quality_table
from pipelines.evaluation.recognition import evaluate_recognition, recognition_text
from pipelines.evaluation.retrieval import evaluate_retrieval, retrieval_text
from pipelines.evaluation.settings_table import SettingsOptions, evaluate_settings, settings_of, settings_table
from pipelines.reconstruction.fitting.loop import ready_methods
from pipelines.reconstruction.gaussian_fit import FitOptions
from utils.config import load_config, override_values
from utils.errors import ConfigError
from utils.files import sole_use, writable_folder
from utils.registry import FITS
from utils.script import config_arguments, run_script
from utils.settings.run import RunConfig


def compare_settings(args: argparse.Namespace) -> str:
    """Measure each setting and return the table.

    Raises:
        ConfigError, DataError: an option, a setting or a folder is wrong.
    """
    cfgs = {text: load_config(args.cfg, [*args.overrides, *text.split()]) for text in settings_of(args.set)}
    options = SettingsOptions(
        held_out=args.held_out,
        classifier=args.classifier,
        num_objects=args.num,
        fit=_fit_options(args, next(iter(cfgs.values()))),
        batch_size=args.fit_batch,
        out=args.out,
    )
    return settings_table(evaluate_settings(cfgs, options))


def _fit_options(args: argparse.Namespace, cfg: RunConfig) -> FitOptions:
    sizes = {"num_gaussians": args.fit_gaussians, "num_steps": args.fit_steps, "views_per_step": args.fit_views}
    return FitOptions(**sizes, rasterizer=cfg.rasterizer)


def compare_fits(cfg: RunConfig, args: argparse.Namespace) -> str:
    """Measure fits and return the table.

    Raises:
        ConfigError, DataError: an option, a setting or a folder is wrong.
    """
    methods = list(dict.fromkeys(args.method)) or method_names(with_head=bool(cfg.reconstruction), fits=ready_methods())
    given: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for text in args.fit_option:
        method, _, option = text.partition(".")
        if method not in given or method in (HULL, HEAD) or "=" not in option:
            raise ConfigError(f"--fit-option {text}: write METHOD.option=value with a method that is measured")
        given[method] |= override_values([option])
    sections = {
        method: None
        if method == HEAD
        else FITS.section({"type": "gs" if method == HULL else method, **given[method]}, where=f"--method {method}")
        for method in methods
    }
    views = list(dict.fromkeys(args.fit_views_of)) or [TRUE, *([GENERATED] if cfg.takes_images else [])]
    options = FitsOptions(
        held_out=args.held_out,
        sections=sections,
        views=views,
        num_objects=args.num,
        out=args.out,
        meshes=args.meshes,
        part=part_of(args.part),
    )
    return markdown_table(evaluate_fits(cfg, options))


def part_of(text: str) -> tuple[int, int]:
    """Read K/N.

    Raises:
        ConfigError: it is something else, or K is not one of 1 to N.
    """
    found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise ConfigError(f"--part {text} must be K/N with K from 1 to N, e.g. 1/8")
    return part


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("num", "sheet", "seeds"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(args, name)}")


def evaluate(cfg: RunConfig, args: argparse.Namespace) -> str:
    """Run the measure of the options and return the table.

    Raises:
        ConfigError, DataError: an option, a setting or a folder is wrong.
    """
    _check_numbers(args)
    if args.measure in ("settings", "fits"):
        return compare_settings(args) if args.measure == "settings" else compare_fits(cfg, args)
    if args.measure == "consistency":
        if not args.runs:
            raise ConfigError(
                "--measure consistency needs --runs FOLDER; name a folder that inference.py or this command wrote"
            )
        options = ConsistencyOptions(
            held_out=args.held_out,
            runs=args.runs,
            num_objects=args.num,
            fit=_fit_options(args, cfg),
            batch_size=args.fit_batch,
            out=args.out,
        )
        return consistency_table(evaluate_consistency(cfg, options))
    if args.measure == "head":
        options = HeadOptions(
            held_out=args.held_out,
            runs=args.runs,
            num_objects=args.num,
            out=args.out,
            inputs=args.inputs,
            meshes=args.meshes,
        )
        return head_table(evaluate_head(cfg, options))
    if args.measure == "likeness":
        if len(args.runs) != 1:
            raise ConfigError("--measure likeness needs one --runs FOLDER; name a folder that inference.py wrote")
        options = LikenessOptions(
            held_out=args.held_out, among=args.among, runs=args.runs[0], num_objects=args.num, out=args.out
        )
        return likeness_text(evaluate_likeness(cfg, options))
    if args.measure == "retrieval":
        return _retrieval(cfg, args)
    if cfg.takes_images and args.measure != "recognition":
        if args.runs:
            raise ConfigError(
                "--runs does not apply to an image model, which is sampled from the true views; leave it out"
            )
        options = QualityOptions(
            held_out=args.held_out,
            train=args.train,
            num_objects=args.num,
            known=args.known,
            start_seed=args.random_start,
            num_sheet=args.sheet,
            out=args.out,
            num_seeds=args.seeds,
            by=args.by,
        )
        return quality_table(evaluate_quality(cfg, options))
    if len(args.runs) > 1:
        raise ConfigError(f"--runs: recognition measures one folder at a time, got {len(args.runs)}; name one")
    result = evaluate_recognition(
        cfg,
        held_out=args.held_out,
        runs=args.runs[0] if args.runs else None,
        classifier=args.classifier,
        num_objects=args.num,
        out=args.out,
    )
    return recognition_text(result)


def _retrieval(cfg: RunConfig, args: argparse.Namespace) -> str:
    if len(args.runs) > 1:
        raise ConfigError(f"--runs: retrieval measures one folder at a time, got {len(args.runs)}; name one")
    if args.captions < 2:
        raise ConfigError(f"--captions must be at least 2, got {args.captions}")
    result = evaluate_retrieval(
        cfg,
        held_out=args.held_out,
        encoder=args.encoder,
        runs=args.runs[0] if args.runs else None,
        num_objects=args.num,
        num_captions=args.captions,
        out=args.out,
    )
    return retrieval_text(result)


def arguments() -> argparse.ArgumentParser:
    parser = config_arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--held-out", type=Path, required=True, help="orbits from tools/make_zoo.py --split held_out or render_orbit.py"
    )
    kinds = ("auto", "consistency", "fits", "head", "likeness", "recognition", "retrieval", "settings")
    add(
        "--measure",
        choices=kinds,
        default="auto",
        help="auto: recognition for a text model, quality for an image model; recognition: prompts alone",
    )
    add("--meshes", type=Path, metavar="FOLDER", help="head, fits: true meshes that tools/render_orbit.py rendered")
    add("--num", type=int, default=64, help="largest number of objects or prompts (default 64)")
    add("--runs", type=Path, action="append", default=[], help="measure these samples; may be repeated")
    add("--out", type=Path, default=Path("workspace/evaluation"), help="folder for the results")
    add("--set", action="append", default=[], metavar="OVERRIDES", help="a row of --measure settings; may be repeated")
    add(
        "--inputs",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="head: a row for this number of true views, evenly chosen among views 0, 2, 4, ...; may be repeated",
    )
    text = parser.add_argument_group("recognition (text models)").add_argument
    text("--classifier", default="data/mini/classifier.safetensors", help="weights from configs/mini/classifier.yaml")
    text(
        "--encoder", default="", metavar="FILE", help="retrieval: weights for the section embedder, of another training"
    )
    text("--captions", type=int, default=100, help="retrieval: number of captions to choose from (default 100)")
    add("--among", type=Path, help="likeness: orbits of other objects to compare with")
    image = parser.add_argument_group("quality (image models)").add_argument
    image("--train", type=Path, help="orbits for the mean image (default: the other objects)")
    image(
        "--known",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="also sample from N given views; may be repeated",
    )
    image("--random-start", type=int, metavar="SEED", help="start each orbit at a random view")
    image("--seeds", type=int, default=1, metavar="N", help="samples of each object: mean and best (default 1)")
    image(
        "--by",
        action="append",
        metavar="ATTRIBUTE",
        help="a table for each value of this attribute; may be repeated (default: source and style, where they differ)",
    )
    image("--sheet", type=int, default=5, help="number of objects in sheet.png (default 5)")
    fit = parser.add_argument_group("consistency").add_argument
    default = FitOptions()
    fit("--fit-gaussians", type=int, default=default.num_gaussians, help="per fit (default %(default)s)")
    fit("--fit-steps", type=int, default=default.num_steps, help="per fit (default %(default)s; 100 on a CPU)")
    fit("--fit-views", type=int, default=default.views_per_step, help="views per step (default %(default)s)")
    fit("--fit-batch", type=int, default=8, help="objects fitted at once (default %(default)s)")
    table = parser.add_argument_group("fits").add_argument
    names = method_names(with_head=True)
    table("--method", action="append", default=[], choices=names, help="a row; may be repeated (default all)")
    kinds = (TRUE, GENERATED)
    table("--fit-views-of", action="append", default=[], choices=kinds, help="views that are fitted (default both)")
    table("--fit-option", action="append", default=[], metavar="METHOD.key=value", help="an option of a method")
    table("--part", default="1/1", metavar="K/N", help="only every N-th object from the K-th on, for N processes")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments().parse_intermixed_args(argv)
    cfg = load_config(args.cfg, args.overrides)
    # parts share a folder, and each has its own fits
    part, num_parts = part_of(args.part)
    if num_parts > 1 and args.measure != "fits":
        raise ConfigError(f"--part {args.part} applies to --measure fits, not to {args.measure}; leave it out")
    own = args.out / f"part_{part}_of_{num_parts}" if num_parts > 1 else args.out
    with sole_use(writable_folder(own, option="--out"), option="--out"):
        print(evaluate(cfg, args))


if __name__ == "__main__":
    run_script(main)
