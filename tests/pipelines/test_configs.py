"""The shipped configurations: they load, say what was published, and fit the budget of the repository."""

from __future__ import annotations

import json

import pytest
import torch

import datasets
import models
import pipelines
from tests.conftest import ROOT
from tests.reference_cases import REFERENCE
from utils.config import load_config
from utils.registry import AUTO_ENCODER, EMBEDDER, ENGINE, INFER_ENGINE, MODEL

assert datasets
assert models
assert pipelines

PUBLISHED = json.loads((REFERENCE / "published_settings.json").read_text())
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.name != "base.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_loads_and_names_its_entrance(path):
    cfg = load_config(path)
    if cfg.TASK_TYPE in ENGINE.names():
        ENGINE.resolve({"type": cfg.TASK_TYPE, **cfg.objective})
    else:
        INFER_ENGINE.resolve({"type": cfg.TASK_TYPE})


def test_the_text_model_trains_with_the_published_settings():
    cfg = load_config(ROOT / "configs" / "t2v_train.yaml")
    published = {**PUBLISHED["defaults"], **PUBLISHED["t2v_train"]}
    for key in ("lr", "weight_decay", "eps", "p_zero", "num_steps", "batch_sizes", "frame_lens", "warmup_steps",
                "decay_mode", "use_ema", "ema_decay", "save_ckp_interval", "seed", "negative_prompt"):  # fmt: skip
        assert getattr(cfg, key) == published[key], key
    for name in ("UNet", "Diffusion", "auto_encoder", "embedder"):
        section = getattr(cfg, name)
        expected = {**PUBLISHED["defaults"][name], **PUBLISHED["t2v_train"].get(name, {})}
        assert {key: section[key] for key in section if key in expected} == {
            key: expected[key] for key in section if key in expected
        }
    assert cfg.Pretrain["grad_scale"] == published["Pretrain"]["grad_scale"]
    assert cfg.Pretrain["fix_weight"] == published["Pretrain"]["fix_weight"]


def test_the_mini_text_family_stays_under_30_megabytes():
    cfg = load_config(ROOT / "configs" / "mini" / "t2v_train.yaml")
    with torch.device("meta"):
        parts = [MODEL.build(cfg.UNet), AUTO_ENCODER.build({**cfg.auto_encoder, "pretrained": None})]
    parts.append(EMBEDDER.build({**cfg.embedder, "pretrained": None}))
    num_bytes = sum(2 * parameter.numel() for part in parts for parameter in part.parameters())
    assert num_bytes < 29.7e6  # headers of the files come on top
