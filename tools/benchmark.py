r"""Measure the speed of this machine. Each measure is one table; all figures of a run come from one process.

    python tools/benchmark.py --cfg configs/mini/t2v_infer.yaml
    python tools/benchmark.py --cfg configs/t2v_infer.yaml --cfg configs/i2vgen_xl_infer.yaml --measure step \
        --set "precision=bfloat16" --set "precision=bfloat16 compile=true"
    python tools/benchmark.py --cfg configs/t2v_train.yaml --measure train --set "precision=bfloat16"

Each `--set` is a row of the tables: overrides of the configuration, separated by blanks. Other `key=value` arguments
apply to every row. Missing weight files are replaced by random weights, made on the device; the tables report this.

The measures:
  ceiling    large matrix products and copies
  step       denoising steps, with errors against float32
  decode     decoding of all views of an orbit
  refine     one x0 through the Gaussian head
  orbit      prompt to files, with a warm model
  files      each 3D file of a sample, which are made at the same time, and all of them
  fits       gs, nerf, neus and dense with their default options: 24 true views of 256 x 256, and their files
  cold       load, compile, first orbit
  sizes      other numbers of views and pixels
  diffusers  the UNet of diffusers with the same size
  solvers    PSNR against DDIM in 200 steps, for any --set; needs trained weights
  train      a training step; needs a training configuration

Tables are printed, and written to `--out` as benchmark.json and benchmark.md. pipelines/benchmark/README.md explains
the columns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pipelines  # noqa: F401 - registers
from pipelines.benchmark.runner import BenchOptions, names, run_benchmark
from utils.script import run_script


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cfg", action="append", required=True, help="configuration file; may be repeated")
    add("overrides", nargs="*", metavar="key=value", help="settings that apply to every row")
    add(
        "--measure",
        action="append",
        default=[],
        choices=names(),
        help="may be repeated; default: all that fit the configuration",
    )
    add("--set", action="append", default=[], metavar="OVERRIDES", help="settings of a row; may be repeated")
    add("--repeats", type=int, default=10, help="largest number of calls for a median (default %(default)s)")
    add("--samples", type=int, default=4, help="number of inputs of `solvers` (default %(default)s)")
    add("--out", type=Path, default=Path("workspace/benchmark"), help="folder for the tables (default %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments().parse_intermixed_args(argv)
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
