"""Sample: `python inference.py --cfg configs/mini/t2v_infer.yaml [--prompt TEXT] [--image FILE] [key=value ...]`."""

from __future__ import annotations

from collections.abc import Sequence

from utils.script import config_arguments, run_script


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_arguments(__doc__)
    parser.add_argument(
        "--prompt",
        action="append",
        help="prompt, instead of the list in test_list_path; may be repeated; with --image: one for all, or one each",
    )
    parser.add_argument("--image", action="append", help="input picture, instead of the list; may be repeated")
    parser.add_argument(
        "--remove-background", action="store_true", default=None, help="cut objects out of photos (remove_background)"
    )
    args = parser.parse_intermixed_args(argv)

    import datasets  # noqa: F401 - registers
    import models  # noqa: F401 - registers
    import pipelines  # noqa: F401 - registers
    from utils.config import changes_text, load_config
    from utils.registry import INFER_ENGINE

    cfg = load_config(
        args.cfg, args.overrides, prompts=args.prompt, images=args.image, remove_background=args.remove_background
    )
    print(changes_text(cfg))
    engine = INFER_ENGINE.build({"type": cfg.TASK_TYPE}, where="TASK_TYPE", cfg=cfg)
    engine.run()
    return 1 if engine.failures else 0


if __name__ == "__main__":
    run_script(main)
