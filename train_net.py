"""Train: `python train_net.py --cfg configs/mini/t2v_train.yaml [key=value ...]`."""

from __future__ import annotations

from utils.script import config_arguments, run_script


def main() -> None:
    args = config_arguments(__doc__).parse_args()

    import datasets  # noqa: F401 - registers
    import models  # noqa: F401 - registers
    from pipelines.trainer import train
    from utils.config import config_text, load_config

    cfg = load_config(args.cfg, args.overrides)
    print(config_text(cfg))
    train(cfg)


if __name__ == "__main__":
    run_script(main)
