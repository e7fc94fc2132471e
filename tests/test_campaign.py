"""Bad inputs end in one line or give the right result: a quarter of tests/campaign, with `--slow` all of it."""

from __future__ import annotations

import pytest

from tests.campaign import AREAS, Case, cases, every_fourth, fault


@pytest.mark.parametrize("area", AREAS)
def test_every_bad_input_holds(area, tmp_path, request):
    chosen = cases(area, tmp_path)
    if not request.config.getoption("--slow"):
        chosen = every_fourth(chosen)
    found = {case.name: fault(case) for case in chosen}
    assert found
    assert not {name: text for name, text in found.items() if text}


def test_a_quarter_has_every_command_and_what_is_not_refused():
    kinds = [("inference", 2)] * 6 + [("inference", 0)] * 2 + [("train_net", 2), ("inference", 1), ("inference", 2)]
    made = [
        Case(name=str(number), command=(command,), code=code, says="x", check=None if code else print)
        for number, (command, code) in enumerate(kinds)
    ]
    assert [case.name for case in every_fourth(made)] == ["0", "4", "6", "7", "8", "9"]
