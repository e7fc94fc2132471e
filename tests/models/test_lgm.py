"""The Gaussian head against its recorded case and the published parameter list."""

import json

import pytest
import torch

import models  # noqa: F401
from models.gaussians import Gaussians, activate, rotation_formula
from tests.reference_cases import REFERENCE, assert_matches, case_input, fill_by_recipe, load_case
from utils.errors import ConfigError
from utils.registry import MODEL


@torch.no_grad()
def test_reference():
    spec, expected = load_case("lgm")
    head = fill_by_recipe(MODEL.build({"type": spec["kind"], **spec["config"]}))
    packed = head(case_input("lgm", "views", spec["inputs"]["views"])).packed_BN14
    assert_matches(packed[:, torch.from_numpy(expected["rows"])], expected["gaussians"])


def test_published_names_and_shapes():
    published = json.loads((REFERENCE / "checkpoints" / "lgm_big.json").read_text())
    with torch.device("meta"):
        head = MODEL.build({"type": "LGM"})
    assert {key: list(value.shape) for key, value in head.state_dict().items()} == published


def test_rotation_rules_normalise_different_axes():
    raw = torch.randn(1, 50, 14)
    per_gaussian = activate(raw, rotation="per_gaussian").quats_BN4
    over_gaussians = activate(raw, rotation="over_gaussians").quats_BN4
    torch.testing.assert_close(per_gaussian.norm(dim=-1), torch.ones(1, 50))
    torch.testing.assert_close(over_gaussians.norm(dim=1), torch.ones(1, 4))


def test_rotation_formula_of_a_quarter_turn():
    half = 0.5**0.5
    matrix = rotation_formula(torch.tensor([half, 0.0, 0.0, half]))  # 90 degrees around z
    torch.testing.assert_close(matrix @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


def test_refuses():
    with pytest.raises(ConfigError, match="rotation=both"):
        MODEL.build({"type": "LGM", "rotation": "both"})
    with pytest.raises(ConfigError, match="splat_size"):
        MODEL.build({"type": "LGM", "splat_size": 64})
    with pytest.raises(ValueError, match="scales_BN3"):
        Gaussians(
            means_BN3=torch.zeros(1, 2, 3),
            opacities_BN1=torch.zeros(1, 2, 1),
            scales_BN3=torch.zeros(1, 2, 4),
            quats_BN4=torch.zeros(1, 2, 4),
            colors_BN3=torch.zeros(1, 2, 3),
        )
