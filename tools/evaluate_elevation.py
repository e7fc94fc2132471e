"""Measure how well the elevation of a picture is estimated (input_elevation_deg: auto).

    python tools/evaluate_elevation.py --cfg configs/mini/elevation.yaml \\
        elevation.pretrained=data/mini/elevation.safetensors --data workspace/real_val --by source

estimates the elevation of every view of packed orbits and compares it with that of its camera: median and mean of the
absolute error in degrees, and the share of views with an error of at most 10 degrees. The views are read as they were
rendered, and centred as sampling prepares a picture. The last column is the median error of one constant angle, the
median of the true ones. `--by` adds a row for each value of an attribute. The orbits should have many elevations:
render them with `--elevation -10 45`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import ConfigError
from utils.files import write_json
from utils.script import config_arguments, run_script


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = config_arguments(__doc__)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="folders of packed orbits")
    parser.add_argument("--num", type=int, default=1000, help="largest number of objects of a folder (default 1000)")
    parser.add_argument("--by", default="", metavar="ATTRIBUTE", help="add a row for each value of this attribute")
    parser.add_argument("--json", type=Path, help="also write the metrics to this file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    import datasets  # noqa: F401 - registers
    import models  # noqa: F401 - registers
    from pipelines.evaluation.networks.elevation import elevation_table, measure_elevations
    from utils.config import load_config

    if args.num < 1:
        raise ConfigError(f"--num must be at least 1, got {args.num}")
    cfg = load_config(args.cfg, args.overrides)
    rows = measure_elevations(cfg, args.data, num_objects=args.num).rows(by=args.by)
    print(elevation_table(rows))
    if args.json:
        write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    run_script(main)
