"""What must hold on a CUDA device: the same numbers as on the CPU, and reduced precision close to them."""

from __future__ import annotations

import pytest
import torch

import datasets
import pipelines
from pipelines.views_pipeline import ViewsPipeline
from tests.models.test_unet import case_inputs
from tests.reference_cases import assert_matches, fill_by_recipe, load_case
from tests.tiny import write_config, write_family
from utils.compilation import compile_parts
from utils.config import load_config
from utils.registry import AUTO_ENCODER, MODEL

assert datasets
assert pipelines
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _full_float32():
    """TensorFloat-32 would hide errors of 1e-4."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def on_cuda(inputs):
    return {key: value.cuda() for key, value in inputs.items()}


@pytest.mark.parametrize("name", ["t2v_unet", "i2v_unet"])
@torch.no_grad()
def test_reference_unet(name):
    spec, expected = load_case(name)
    unet = fill_by_recipe(MODEL.build({"type": spec["kind"], **spec["config"]})).cuda()
    assert_matches(unet(**on_cuda(case_inputs(name))).cpu(), expected["out"])


@torch.no_grad()
def test_bfloat16_unet_is_close():
    spec, expected = load_case("t2v_unet")
    unet = fill_by_recipe(MODEL.build({"type": spec["kind"], **spec["config"]})).cuda().bfloat16()
    inputs = on_cuda(case_inputs("t2v_unet"))
    inputs = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    reference = torch.from_numpy(expected["out"])
    error = (unet(**inputs).float().cpu() - reference).norm() / reference.norm()
    assert error < 0.05  # bfloat16 rounds by up to 0.4 %, dozens of times in a row; 0.026 was measured on an H200


@torch.no_grad()
def test_compiled_unet_agrees():
    spec, _ = load_case("t2v_unet")
    unet = fill_by_recipe(MODEL.build({"type": spec["kind"], **spec["config"]})).cuda()
    inputs = on_cuda(case_inputs("t2v_unet"))
    eager = unet(**inputs)
    compile_parts(unet.parts_to_compile())
    torch.testing.assert_close(unet(**inputs), eager, atol=1e-3 * float(eager.abs().max()), rtol=0)


@torch.no_grad()
def test_reference_autoencoder():
    spec, expected = load_case("vae")
    autoencoder = fill_by_recipe(AUTO_ENCODER.build({"type": spec["kind"], **spec["config"]})).cuda()
    from tests.reference_cases import case_input

    latent = case_input("vae", "latent", spec["inputs"]["latent"]).cuda()
    assert_matches(autoencoder.decode(latent).cpu(), expected["image"])


def test_a_seed_gives_the_same_orbit_as_on_the_cpu(tmp_path):
    config = write_family(tmp_path)
    path = write_config(tmp_path / "run.yaml", config)
    latents = [
        ViewsPipeline.from_config(load_config(path, [f"device={device}", "precision=float32"]))(
            "a red mug"
        ).latents_BCVHW
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(latents[0], latents[1], atol=1e-3, rtol=0)
