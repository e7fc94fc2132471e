import pytest
import torch

import models  # noqa: F401 - registers
from models.elevation import median_deg
from models.weights import load_strict, save_safetensors
from utils.errors import ConfigError, DataError
from utils.registry import MODEL


def build(**options):
    return MODEL.build({"type": "ElevationNetwork", **options}, where="elevation")


def test_median_in_closed_form():
    angles_deg = torch.tensor([0.0, 10.0, 20.0])
    shares = torch.tensor(
        [[1.0, 0, 0], [0, 0, 1.0], [0.5, 0, 0.5], [0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0, 0.75, 0.25]]
    )
    # each share is spread over 5 degrees to both sides of its angle
    expected = torch.tensor([0.0, 20.0, 5.0, 10.0, 15 + 10 / 6, 5 + 10 * 2 / 3])
    torch.testing.assert_close(median_deg(shares, angles_deg), expected)


def test_estimates_lie_in_the_range_and_follow_the_logits():
    network = build(width=8, size=32)
    with torch.no_grad():
        network.angles.weight.zero_()
        network.angles.bias.zero_()
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(network.estimate(images), torch.full((2,), 17.5))  # the middle of -10 to 45
        network.angles.bias[0] = 100.0  # at -20 degrees, below the range
        assert network.estimate(images).tolist() == [-10.0, -10.0]
        network.angles.bias[-1] = 200.0
        assert network.estimate(images).tolist() == [45.0, 45.0]


def test_it_is_small():
    state = build().state_dict()
    assert 0.2e6 < sum(value.numel() for value in state.values()) < 1e6
    assert 2 * sum(value.numel() for value in state.values()) < 1.5e6  # bytes in half precision


def test_a_file_gives_the_same_estimates(tmp_path):
    network, path = build(width=8, size=32), tmp_path / "elevation.safetensors"
    torch.nn.init.normal_(network.angles.weight)
    save_safetensors(path, network.state_dict(), dtype=torch.float32)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(build(width=8, size=32, pretrained=str(path)).estimate(images), network.estimate(images))
    with pytest.raises(DataError, match=r"an estimator of elevations, which belong in elevation\.pretrained"):
        load_strict(torch.nn.Linear(2, 2), str(path), option="test_model")


def test_faults_are_refused():
    with pytest.raises(ConfigError, match="width must be a multiple of 8, got 12"):
        build(width=12)
    with pytest.raises(ConfigError, match="must be an increasing range"):
        build(lowest_deg=20.0, highest_deg=10.0)
    with pytest.raises(ConfigError, match="size must be >= 32, got 16"):
        build(size=16)
    with pytest.raises(ValueError, match="reads 32 x 32 pixels"):
        build(width=8, size=32).estimate(torch.rand(1, 3, 64, 64))
