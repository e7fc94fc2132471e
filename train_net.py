"""Train: `python train_net.py --cfg configs/mini/t2v_train.yaml [key=value ...]`, on every visible GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from utils.script import config_arguments, run_script


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = config_arguments(__doc__).parse_args(argv)

    import datasets  # noqa: F401 - registers
    import models  # noqa: F401 - registers
    from pipelines.training.launch import processes_to_start, run_processes
    from pipelines.training.trainer import train
    from utils.config import changes_text, load_config

    cfg = load_config(args.cfg, args.overrides)
    num = processes_to_start(cfg)
    if num > 1:
        this = [__file__] if __name__ == "__main__" else ["-m", __name__]
        return run_processes(num, [sys.executable, *this, *argv])
    if os.environ.get("RANK", "0") == "0":
        print(changes_text(cfg))
    train(cfg)
    return 0


if __name__ == "__main__":
    run_script(main)
