"""The command `videomv`: each subcommand is one of the scripts of the repository and gets its arguments unchanged.

Nothing else is imported before a subcommand is chosen, so that the help does not wait for PyTorch.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from functools import partial

# From the subcommand to its module and what it does. The first group is listed line by line.
COMMANDS = {
    "sample": ("inference", "views, Gaussians and meshes from sentences or pictures"),
    "app": ("tools.app", "the same in the browser"),
    "train": ("train_net", "train networks, on every visible GPU"),
    "reconstruct": ("tools.reconstruct", "Gaussians, a field or a surface from views with cameras"),
    "evaluate": ("tools.evaluate", "measure the quality of a model"),
    "benchmark": ("tools.benchmark", "measure the speed of this machine"),
    "render": ("tools.render_orbit", "render meshes to orbits for training"),
    "recenter": ("utils.recenter_i2v", "cut out and centre the objects of pictures"),
    "export": ("tools.export_gaussians", "convert files of Gaussians, or make a mesh and a page of them"),
    "convert": ("tools.convert_cameras", "convert views with cameras from layout to layout"),
    "compare": ("tools.compare_meshes", "measure the distance of a mesh from a true one"),
    "collect": ("tools.collect_meshes", "download free meshes with captions and licences"),
    "caption": ("tools.caption_objects", "write captions of meshes"),
    "index": ("tools.index_dataset", "list the complete objects of a data set"),
    "zoo": ("tools.make_zoo", "render the objects of the procedural zoo"),
    "space": ("tools.make_space", "write a folder that is a Hugging Face Space"),
}
MORE_COMMANDS = {
    "check-images": ("tools.check_images", "report broken lists of images"),
    "random-weights": ("tools.random_weights", "write untrained weights, to measure a machine"),
    "evaluate-autoencoder": ("tools.evaluate_autoencoder", "measure an autoencoder"),
    "evaluate-elevation": ("tools.evaluate_elevation", "measure the estimates of elevations"),
}
# "" in the repository, "videomv." in the installed package.
PREFIX = __name__.removesuffix("tools.videomv.commands")


def help_text() -> str:
    """Return the help, which fits a terminal of 24 lines and 80 columns."""
    lines = [f"  {name:<12} {does}" for name, (_, does) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: videomv COMMAND [ARGUMENTS]        videomv COMMAND --help",
            "",
            *lines,
            f"  also: {', '.join(MORE_COMMANDS)}",
            "",
            "Start: videomv sample --cfg mini/t2v_infer --prompt 'a green chair'",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand and exit with its code; 2 for an unknown one."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    run_script = importlib.import_module(f"{PREFIX}utils.script").run_script
    if name in ("--help", "-h", "help"):
        run_script(lambda: print(help_text()))
    if name == "--version":
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"videomv {version('videomv')}")
        except PackageNotFoundError:
            print("videomv, not installed (run from its repository)")
        sys.exit(0)
    known = COMMANDS | MORE_COMMANDS
    if name not in known:
        print(f"error: videomv has no command {name!r}{_nearest(name)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"videomv {name}", *arguments]  # the name that the script shows in its messages
    script = importlib.import_module(PREFIX + known[name][0])
    run_script(partial(script.main, arguments))


def _nearest(name: str) -> str:
    """Return the end of a message: the nearest names, or all."""
    names = [*COMMANDS, *MORE_COMMANDS]
    modules = {module.rpartition(".")[2]: command for command, (module, _) in (COMMANDS | MORE_COMMANDS).items()}
    meant = name.removesuffix(".py").rpartition("/")[2].replace("-", "_")
    if meant in modules:  # the name of the script
        return f"; {meant}.py is `videomv {modules[meant]}`"
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; valid: {', '.join(names)}"
