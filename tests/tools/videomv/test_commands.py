"""The command `videomv`: its subcommands are the scripts, and its help is short and quick."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tools.videomv import commands
from tools.videomv.commands import COMMANDS, MORE_COMMANDS, help_text, main

SCRIPTS = {module: name for name, (module, _) in (COMMANDS | MORE_COMMANDS).items()}


def test_the_help_fits_a_terminal():
    lines = help_text().splitlines()
    assert len(lines) <= 23  # the next prompt needs a line too
    assert max(map(len, lines)) <= 80
    assert all(any(name in line.replace(",", " ").split() for line in lines) for name in COMMANDS | MORE_COMMANDS)


def test_the_help_does_not_wait_for_pytorch():
    code = "import sys, tools.videomv.commands as c\ntry: c.main(['--help'])\nfinally: print('torch' in sys.modules)"
    line = [sys.executable, "-c", code]
    printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("usage: videomv COMMAND")
    assert printed.endswith("False\n")


def test_every_script_has_a_subcommand():
    tools = {f"tools.{path.stem}" for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__"}
    assert tools | {"inference", "train_net", "utils.recenter_i2v"} == set(SCRIPTS)


@pytest.mark.parametrize("module", SCRIPTS)
def test_a_script_takes_its_arguments(module):
    # read, not imported: some take seconds, and some need optional packages
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert "def main(argv: " in text
    assert "__doc__" in text


def test_a_subcommand_is_the_script(monkeypatch, capsys):
    got = []
    monkeypatch.setattr(sys, "argv", ["videomv"])  # put back afterwards
    module = importlib.import_module("tools.random_weights")
    monkeypatch.setattr(module, "main", lambda argv: got.append((argv, sys.argv[0])) or 3)
    with pytest.raises(SystemExit) as end:
        main(["random-weights", "--cfg", "x y", "seed=3"])
    assert got == [(["--cfg", "x y", "seed=3"], "videomv random-weights")]
    assert end.value.code == 3


def test_a_training_on_several_devices_starts_its_processes_as_a_module(monkeypatch):
    import train_net

    started = []
    monkeypatch.setattr("pipelines.training.launch.processes_to_start", lambda cfg: 2)
    monkeypatch.setattr("pipelines.training.launch.run_processes", lambda *given: started.append(given) or 0)
    monkeypatch.setattr(sys, "argv", ["videomv train"])  # no file that could be run
    words = ["--cfg", str(ROOT / "configs" / "mini" / "t2v_train.yaml"), "seed=3"]
    assert train_net.main(words) == 0
    assert started == [(2, [sys.executable, "-m", "train_net", *words])]


def test_messages_name_the_subcommand_and_mistakes_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["videomv"])
    with pytest.raises(SystemExit) as end:
        main(["sample", "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: videomv sample [-h] --cfg CFG")
    with pytest.raises(SystemExit) as end:
        main(["sample", "--cfg", "mini/real_inver"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: --cfg mini/real_inver: no such file here, and no such configuration of the project; did you mean "
        "mini/real_infer?\n"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smaple", "; did you mean sample"),
        ("xyzzy", "; valid: sample, app, train"),
        ("render_orbit.py", "; render_orbit.py is `videomv render`"),
        ("tools/make_zoo.py", "; make_zoo.py is `videomv zoo`"),
    ],
)
def test_an_unknown_command_names_the_nearest(name, hint, capsys):
    with pytest.raises(SystemExit) as end:
        main([name])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: videomv has no command {name!r}{hint}")
    assert line.count("\n") == 1


def test_the_pages_use_subcommands_that_exist():
    pages = [page for folder in ("tools", "pipelines", "data", "configs") for page in (ROOT / folder).rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *pages])
    used = re.findall(r"^videomv (\S+)", text, flags=re.M)
    assert {"sample", "train"} <= set(used) <= {*COMMANDS, *MORE_COMMANDS, "--help"}


def test_the_prefix_is_empty_in_the_repository():
    assert commands.PREFIX == ""
    assert list(inspect.signature(main).parameters) == ["argv"]
