"""The notebook: it is valid, holds no results, and runs from top to bottom."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tools.videomv.contents import package_files

NOTEBOOK = json.loads((ROOT / "tools" / "quickstart.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SMALL = "steps, views, fit_steps = 4, 8, 3\n"
# What a notebook does with a cell; its display is a stand-in, because Jupyter is not needed otherwise.
RUN = """
import ast, json, sys, types

display = types.ModuleType("IPython.display")
display.Video = lambda name, embed: open(name, "rb").read()
sys.modules |= {"IPython": types.ModuleType("IPython"), "IPython.display": display}
names = {"__name__": "__main__"}
for source in json.load(sys.stdin):
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last:
        print(type(eval(compile(ast.Expression(last.value), "cell", "eval"), names)).__name__)
"""


def test_the_notebook_is_valid_and_holds_no_results():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        assert set(cell) - {"outputs", "execution_count"} == {"cell_type", "id", "metadata", "source"}
        assert "".join(cell["source"]).strip()
    for cell in CODE:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        ast.parse("".join(cell["source"]))
    assert [cell["metadata"].get("tags") for cell in CODE].count(["parameters"]) == 1


def test_the_small_form_sets_what_the_notebook_sets():
    [parameters] = [cell for cell in CODE if cell["metadata"].get("tags") == ["parameters"]]
    names = [ast.unparse(ast.parse(text).body[-1].targets[0]) for text in ("".join(parameters["source"]), SMALL)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    for one in package_files(ROOT):
        file = tmp_path / "installed" / "videomv" / one.name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".py":
            file.write_bytes(one.content())
        else:
            file.symlink_to(one.source)
    cells = []
    for cell in CODE:
        cells.append("".join(cell["source"]))
        if cell["metadata"].get("tags") == ["parameters"]:
            cells.append(SMALL)
    home = tmp_path / "home"
    home.mkdir()
    variables = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"}
    line = [sys.executable, "-c", RUN]
    done = subprocess.run(line, cwd=home, env=variables, input=json.dumps(cells), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [text for text in done.stdout.splitlines() if text in ("dict", "Image", "list", "bytes", "PngImageFile")]
    assert results == ["dict", "Image", "list", "bytes", "PngImageFile", "PngImageFile"]
    assert {path.name for path in (home / "quickstart").iterdir()} == {"chair", "picture", "fits"}
    assert (home / "quickstart" / "fits" / "picture" / "mesh.glb").is_file()
