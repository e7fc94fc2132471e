"""Run the campaign and print what did not hold."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.campaign import AREAS, cases, fault


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; default: all")
    areas = parser.parse_args().areas or AREAS
    tried = held = 0
    with tempfile.TemporaryDirectory() as folder:
        for area in areas:
            for case in cases(area, Path(folder) / area):
                tried += 1
                if found := fault(case):
                    print(f"{area}: {case.name}: {found}", flush=True)
                else:
                    held += 1
    print(f"{tried} inputs tried, {held} held")
    return int(held < tried)


if __name__ == "__main__":
    sys.exit(main())
