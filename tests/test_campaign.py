"""Bad inputs end in one line or give the right result, see tests/campaign."""

from __future__ import annotations

import pytest

from tests.campaign import AREAS, cases, fault


@pytest.mark.parametrize("area", AREAS)
def test_every_bad_input_holds(area, tmp_path):
    found = {case.name: fault(case) for case in cases(area, tmp_path)}
    assert found
    assert not {name: text for name, text in found.items() if text}
