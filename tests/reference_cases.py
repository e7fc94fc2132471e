"""Reference cases: recorded outputs of the published modules (see tests/reference/cases.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.reference.recipe import draw, weight

REFERENCE = Path(__file__).parent / "reference"


def load_case(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the stored outputs of one case."""
    spec = json.loads((REFERENCE / "cases.json").read_text())[name]
    with np.load(REFERENCE / f"{name}.npz") as stored:
        return spec, {key: stored[key] for key in stored}


def fill_by_recipe(module: nn.Module) -> nn.Module:
    """Give every parameter its recorded value and put the module in eval mode."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    module.load_state_dict({key: torch.from_numpy(np.asarray(weight(key, shape))) for key, shape in shapes.items()})
    return module.eval()


def case_input(case: str, name: str, shape: list[int], scale: float = 1.0) -> torch.Tensor:
    """A recorded input, drawn by name."""
    return torch.from_numpy(draw(f"{case}/{name}", tuple(shape), scale))


def assert_matches(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Within 1e-4 of the largest absolute output, the bound that the cases state."""
    reference = torch.from_numpy(np.asarray(expected)).to(actual.dtype)
    torch.testing.assert_close(actual.detach(), reference, atol=1e-4 * float(reference.abs().max()), rtol=0)
