"""The campaign of bad inputs: each must be refused in one line, or give the right result.

Each file beside this one has `cases(folder)`, which writes small inputs below `folder` and yields what to do with them.
`python -m tests.campaign [AREA ...]` runs them and prints what did not hold. The suite runs `every_fourth` of them, and
all with `--slow`.
"""

from __future__ import annotations

import importlib
import io
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from utils.script import run_script

AREAS = ("meshes", "sampling", "settings", "training", "views")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input and what must happen.

    Attributes:
        name: a few words, distinct within the area.
        command: the script's module and its arguments, such as `("tools.render_orbit", "box.obj", "--out", "o")`.
        code: the exit code that is expected: 2 for what is refused, 1 where other inputs of a list were done, 0 else.
        says: a regular expression that the output must have; for what is refused, in the last line of stderr.
        check: raises AssertionError when the result is wrong; needed where `code` is 0.
    """

    name: str
    command: tuple[str, ...]
    code: int
    says: str = ""
    check: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if self.code == 0 and self.check is None:
            raise TypeError(f"{self.name}: code 0 needs a check of the result")
        if self.code and not self.says:
            raise TypeError(f"{self.name}: a refusal needs the words that it must say")


def run_command(*command: str) -> tuple[int, str, str]:
    """Run a script's `main` in this process as the command line would: (exit code, stdout, stderr).

    Errors that the scripts do not turn into a line come out as they are.
    """
    module, *arguments = command
    main = importlib.import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(err)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", [module, *arguments]):
            try:
                run_script(main)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return code, out.getvalue(), err.getvalue()


def fault(case: Case) -> str | None:
    """Run a case; what went wrong, or None."""
    try:
        code, out, err = run_command(*case.command)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"traceback: {type(error).__name__}: {error}"
    if code != case.code:
        return f"exit code {code} instead of {case.code}: {(err or out).strip()[-300:]}"
    if "Traceback (most recent call last)" in out + err:
        return "a traceback in the output"
    lines = err.strip().splitlines() or [""]
    said = lines[-1] if code == 2 else out + err
    if not re.search(case.says, said):
        return f"does not say {case.says!r}: {said[-300:]}"
    if code == 2 and len(lines[-1]) > 1500:
        return f"its message has {len(lines[-1])} characters"
    if case.check is not None:
        try:
            case.check()
        except AssertionError as error:
            return f"wrong result: {error}"
    return None


def cases(area: str, folder: Path) -> Iterator[Case]:
    """The cases of one area; their inputs are written below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    yield from importlib.import_module(f"tests.campaign.{area}").cases(folder)


def every_fourth(all_cases: Iterable[Case]) -> Iterator[Case]:
    """The first, fifth, ninth ... refusal of each command, and every input that is not refused as a whole.

    Of what those leave, later inputs are made. The same inputs come out in every run, of every command at least one.
    """
    seen: Counter[str] = Counter()
    for case in all_cases:
        refused = case.code == 2
        if not refused or seen[case.command[0]] % 4 == 0:
            yield case
        seen[case.command[0]] += refused
