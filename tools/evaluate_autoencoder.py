"""Measure how well an autoencoder restores views that are not in its training data.

    python tools/evaluate_autoencoder.py --cfg configs/mini/autoencoder.yaml \\
        auto_encoder.pretrained=data/mini/autoencoder.safetensors --data workspace/real_val --by source

encodes and decodes all views of packed orbits and prints a table. PSNR is computed from an object's mean squared error
over its views and averaged over the objects, as in the row "autoencoder (ceiling)" of tools/evaluate.py. Other columns
are the mean PSNR of single views, PSNR near the object, SSIM, and the error of the object's mean colour on a scale of
0 to 255. `--by` adds a row for each value of an attribute.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.files import write_json
from utils.script import config_arguments, run_script

NUM_SHEET = 8


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = config_arguments(__doc__)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="folders of packed orbits")
    parser.add_argument("--by", default="", metavar="ATTRIBUTE", help="add a row for each value of this attribute")
    parser.add_argument("--json", type=Path, help="also write the metrics to this file")
    parser.add_argument("--sheet", type=Path, help="write an image of some objects, true views above restored views")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    import datasets  # noqa: F401 - registers
    import models  # noqa: F401 - registers
    from pipelines.evaluation.networks.restoring import measure_restoring, restored_sheet, table
    from utils.config import load_config
    from utils.images import save_png

    cfg = load_config(args.cfg, args.overrides)
    found = measure_restoring(cfg, args.data)
    rows = found.rows(by=args.by)
    print(table(rows))
    if args.json:
        write_json(args.json, rows)
    if args.sheet:
        save_png(args.sheet, restored_sheet(found, count=NUM_SHEET))
    return 0


if __name__ == "__main__":
    run_script(main)
