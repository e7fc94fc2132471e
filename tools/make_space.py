"""Write a folder that is a Space of Hugging Face as it is: the web app with a small model, on two CPU cores.

    python tools/make_space.py workspace/space
    python tools/make_space.py workspace/space --cfg mini/t2v_infer --title "Toys from sentences"

The folder has README.md (its first lines are the settings of the Space), requirements.txt, app.py, the package
`videomv` and the weights that the configurations use. To publish it, push its content to an empty Space:
https://huggingface.co/docs/hub/spaces-overview. To try it here, run `python app.py` in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pipelines  # noqa: F401 - registers
from tools.videomv.contents import package_files
from tools.videomv.imports import PACKAGE
from tools.videomv.wheel import requirements
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.files import atomic_folder, check_text
from utils.script import run_script
from utils.settings.paths import ROOT

DEFAULT = "mini/real_infer"  # also that of the app
WEIGHTS = ".safetensors"
# Files of more than 10 MB are refused by the hub unless git-lfs keeps them.
ATTRIBUTES = f"*{WEIGHTS} filter=lfs diff=lfs merge=lfs -text\n"
APP = '''"""The web app of VideoMV as a Space; the hub may set the address and the port in the environment."""

import os
from functools import partial

from videomv.tools.app import main
from videomv.utils.script import run_script

if __name__ == "__main__":
    host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    run_script(partial(main, ["--host", host, "--port", port, *{arguments}]))
'''
PAGE = """# {title}

From a sentence or pictures to consistent views of an object, and to the object itself: the small models of VideoMV
([arXiv:2403.12010](https://arxiv.org/abs/2403.12010)) on a CPU. This folder was written by `tools/make_space.py`.

Licences: the code is under MIT ([LICENSE](videomv/LICENSE)). Some weights were trained on free meshes and are under CC
BY-SA 4.0 ([their attribution](videomv/data/mini/ATTRIBUTION.md)).
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder, which must not exist")
    parser.add_argument(
        "--cfg", action="append", default=[], help="configuration of the app; may be repeated (default mini/real_infer)"
    )
    parser.add_argument("--title", default="VideoMV", help="name of the Space on its page (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_args(argv)
    if options.out.exists():
        raise ConfigError(f"{options.out} exists already; remove it, or name another folder")
    check_text(options.title, name="--title")
    gradio, weights = _gradio_version(), {name for cfg in options.cfg or [DEFAULT] for name in shipped_weights(cfg)}
    with atomic_folder(options.out) as part:
        for name, content in space_files(options.cfg, title=options.title, gradio=gradio, weights=weights):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"wrote {options.out}/ ({size / 1e6:.0f} MB); to try it: cd {options.out} && python app.py")
    return 0


def space_files(cfgs: Sequence[str], *, title: str, gradio: str, weights: set[str]) -> Iterator[tuple[str, bytes]]:
    """List the files of a Space with their content.

    Args:
        cfgs: configurations of the app; none for its own default.
        title: name of the Space.
        gradio: version of gradio with which the hub runs the app.
        weights: names in `data/mini` of the weights that the Space needs; the others are left out.
    """
    arguments = [word for cfg in cfgs for word in ("--cfg", cfg)]
    front = {
        "title": title,
        "emoji": "\U0001fa91",
        "colorFrom": "yellow",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": gradio,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "license": "cc-by-sa-4.0",
    }
    lines = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in front.items())
    yield "README.md", f"---\n{lines}---\n\n{PAGE.format(title=title)}".encode()
    yield "app.py", APP.format(arguments=json.dumps(arguments)).encode()
    yield "requirements.txt", "".join(f"{line}\n" for line in [*requirements(ROOT), f"gradio=={gradio}"]).encode()
    yield ".gitattributes", ATTRIBUTES.encode()
    for one in package_files(ROOT):
        if one.source.suffix != WEIGHTS or one.source.name in weights:
            yield f"{PACKAGE}/{one.name}", one.content()


def shipped_weights(cfg: str) -> set[str]:
    """Return the names of the weight files of a configuration.

    Raises:
        DataError: some do not come with the project, and a Space would not find them.
    """
    files = {Path(name) for name in _texts(load_config(cfg).as_dict()) if Path(name).suffix in (WEIGHTS, ".pth", ".pt")}
    shipped = {path.name for path in (ROOT / "data" / "mini").glob(f"*{WEIGHTS}")}
    missing = sorted(str(file) for file in files if file.parent.name != "mini" or file.name not in shipped)
    if missing or not files:
        raise DataError(
            f"--cfg {cfg}: {', '.join(missing) or 'its weights'} do not come with the project, so a Space cannot have "
            "them; use a configuration of the small models, such as mini/real_infer"
        )
    return {file.name for file in files}


def _texts(values: Any) -> Iterator[str]:
    """All texts in nested settings."""
    if isinstance(values, str):
        yield values
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _texts(value)


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError as err:
        raise ConfigError(
            "the Space gets the version of gradio that is installed here, but none is; python -m pip install gradio"
        ) from err


if __name__ == "__main__":
    run_script(main)
