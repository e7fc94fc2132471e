"""Renames the imports of this repository's own packages, for the installed package.

The packages `models`, `datasets`, `pipelines`, `utils` and `tools` have names that other projects use too. Installed
under these names, `datasets` would hide the library of Hugging Face. So they are installed inside `videomv`, and each
import of them gets this prefix.
"""

from __future__ import annotations

import ast
import re

PACKAGE = "videomv"
PACKAGES = ("datasets", "models", "pipelines", "tools", "utils")
SCRIPTS = ("inference", "train_net")
# Functions that import the module of a name; a name that is written out would have to be renamed too.
BY_NAME = ("import_module", "find_spec", "__import__", "run_module")


class ImportFault(ValueError):
    """An import cannot be renamed. The message has the line and the remedy."""


def is_own(module: str) -> bool:
    """Whether a module belongs to this repository."""
    return module.partition(".")[0] in (*PACKAGES, *SCRIPTS)


def with_renamed_imports(text: str, *, file: str) -> str:
    """Return a Python source whose imports of own packages have the prefix `videomv.`; all else stays as it is.

    Args:
        file: name for messages.

    Raises:
        ImportFault: `import models` and a later use of the name `models`, or an own module that is imported by its
            name in a string: with the prefix, they would mean something else.
        SyntaxError: the text is not Python.
    """
    tree = ast.parse(text, filename=file)
    lines = text.encode("utf-8").splitlines(keepends=True)  # columns of ast count bytes
    places: list[tuple[int, int]] = []
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module and is_own(node.module):
            line, column = node.lineno - 1, node.col_offset
            found = re.match(rb"from[ \t]+", lines[line][column:])
            if found is None:
                raise ImportFault(f"{file}, line {node.lineno}: write `from {node.module} import` in one line")
            places.append((line, column + found.end()))
        elif isinstance(node, ast.Import):
            for alias in (one for one in node.names if is_own(one.name)):
                places.append((alias.lineno - 1, alias.col_offset))
                bound |= set() if alias.asname else {alias.name.partition(".")[0]}
    _check_names(tree, bound, file=file)
    for line, column in sorted(places, reverse=True):
        lines[line] = lines[line][:column] + f"{PACKAGE}.".encode() + lines[line][column:]
    return b"".join(lines).decode("utf-8")


def _check_names(tree: ast.AST, bound: set[str], *, file: str) -> None:
    """Check that no name and no string refers to a module by its old name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in bound:
            raise ImportFault(
                f"{file}, line {node.lineno}: {node.id} comes from `import {node.id}`; write `from {node.id} import`"
            )
        if isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            value = getattr(node.args[0], "value", None)
            if called in BY_NAME and isinstance(value, str) and is_own(value):
                raise ImportFault(
                    f"{file}, line {node.lineno}: {called}({value!r}) names a module in a string; make the name from "
                    "__name__ or use an import statement"
                )


def own_imports(text: str) -> list[str]:
    """List the own modules that a source imports without the prefix."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.append(node.module)
    return [module for module in found if is_own(module)]
