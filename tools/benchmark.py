r"""How fast is this machine? One table a measure; all figures of a run come from one process.

    python tools/benchmark.py --cfg configs/mini/t2v_infer.yaml
    python tools/benchmark.py --cfg configs/t2v_infer.yaml --cfg configs/i2vgen_xl_infer.yaml --measure step \
        --set "precision=bfloat16" --set "precision=bfloat16 compile=true"
    python tools/benchmark.py --cfg configs/t2v_train.yaml --measure train --set "precision=bfloat16"

Each `--set` is a row: overrides of the configuration, separated by blanks; further `key=value` hold for every row. A
configuration whose weight files are not there is measured with random weights, made on the device; the tables say so.

ceiling: large matrix products and copies. step: denoising, with errors against float32. decode, refine: all views of an
orbit; one x0 through the Gaussian head. orbit: prompt to files, warm. cold: load, compile, first orbit. sizes: views
and pixels. diffusers: its UNet of the same size. solvers: PSNR against DDIM in 200 steps (also of any other --set);
takes trained weights. train: a training step; takes a training configuration.

Tables go to stdout, and as benchmark.json and benchmark.md to `--out`.
pipelines/benchmark/README.md explains the columns.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pipelines  # noqa: F401 - registers
from pipelines.benchmark.runner import BenchOptions, names, run_benchmark
from utils.script import run_script


def arguments() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cfg", action="append", required=True, help="YAML file; repeatable")
    add("overrides", nargs="*", metavar="key=value", help="replace values in every row")
    add("--measure", action="append", default=[], choices=names(), help="repeatable; default: all that fit")
    add("--set", action="append", default=[], metavar="OVERRIDES", help="a row; repeatable; default: by the measure")
    add("--repeats", type=int, default=10, help="calls that a median is taken of, at most (default %(default)s)")
    add("--samples", type=int, default=4, help="inputs that solvers are compared on (default %(default)s)")
    add("--out", type=Path, default=Path("workspace/benchmark"), help="folder for the tables (default %(default)s)")
    return parser


def main() -> None:
    args = arguments().parse_intermixed_args()
    options = BenchOptions(
        cfgs=args.cfg,
        measures=args.measure,
        settings=args.set,
        overrides=args.overrides,
        repeats=args.repeats,
        num_samples=args.samples,
        out=args.out,
    )
    print(run_benchmark(options))


if __name__ == "__main__":
    run_script(main)
