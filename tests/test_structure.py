"""The layout of the code: no circles of imports, one direction, rooms that one sees at a glance."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

LAYERS = {"utils": 0, "datasets": 1, "models": 1, "pipelines": 2, "tools": 3}
MAX_FILES = 16
MAX_COMMANDS = 20  # tools/ is a list of commands


def source_files() -> list[Path]:
    return sorted(path for package in LAYERS for path in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in source_files()}


def imports_of(path: Path) -> set[str]:
    """Modules of the project that a file imports anywhere, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
    return {name for name in found if name in MODULES}


@cache
def graph() -> dict[str, set[str]]:
    return {name: imports_of(path) for name, path in MODULES.items()}


def test_no_file_imports_itself_by_way_of_others():
    state: dict[str, str] = {}

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name in state:
            return
        for other in sorted(graph()[name]):
            visit(other, (*way, name))
        state[name] = "done"

    for name in graph():
        visit(name, ())


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_one_way(package):
    for name, found in graph().items():
        if name.split(".")[0] == package:
            above = {other for other in found if LAYERS[other.split(".")[0]] > LAYERS[package]}
            assert not above, (name, above)


def test_rooms_are_seen_at_a_glance():
    files = Counter(path.parent for path in source_files() if path.name != "__init__.py")
    most = {ROOT / "tools": MAX_COMMANDS}
    crowded = {str(folder): number for folder, number in files.items() if number > most.get(folder, MAX_FILES)}
    assert not crowded


def test_every_tool_is_found_as_a_file_from_anywhere_and_says_its_mistakes_in_one_line():
    """tests/tools/test_data_tools.py starts one of them so."""
    start = "if not __package__:\n    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))\n"
    end = 'if __name__ == "__main__":\n    run_script(main)\n'
    tools = [path for path in sorted((ROOT / "tools").glob("*.py")) if path.name != "__init__.py"]
    for path in (*tools, ROOT / "utils" / "recenter_i2v.py", ROOT / "inference.py", ROOT / "train_net.py"):
        text = path.read_text()
        assert text.endswith(end), path
        first = re.search(rf"^(from|import) ({'|'.join(LAYERS)})\b", text, flags=re.M)
        assert path not in tools or start in text[: first.start()], path


def test_parts_are_not_asked_what_they_are_by_their_attributes():
    """A contract answers instead. What is left asks objects of other packages, or a dataclass by its own field."""
    asking = {str(path.relative_to(ROOT)) for path in source_files() if "hasattr(" in path.read_text()}
    assert asking == {
        "datasets/meshes/loading.py",  # trimesh's materials
        "models/fused/head.py",  # levels without a change of size, as published
        "models/gaussians/lgm.py",
        "pipelines/training/data/reading.py",  # functions that some systems lack
        "pipelines/training/parallel.py",  # torch's tensors that are divided among processes
    }
