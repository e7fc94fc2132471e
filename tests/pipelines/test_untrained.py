"""Networks without a weight file are named, and missing files come together."""

from __future__ import annotations

import pytest

from pipelines.parts import note_untrained
from tests.tiny import load, run, write_family
from utils.config import load_config
from utils.errors import DataError


def test_networks_without_weights_are_named(tmp_path, caplog):
    family = write_family(tmp_path)
    family["auto_encoder"] = {**family["auto_encoder"], "pretrained": None}
    run(load(tmp_path, family, "sampler.num_steps=1", "cameras.num_views=1", "guide_scale=1"))
    said = [record.getMessage() for record in caplog.records if "untrained" in record.getMessage()]
    assert said == ["auto_encoder.pretrained is empty, so its network is untrained and its results mean nothing"]


def test_all_missing_weight_files_come_in_one_message(tmp_path):
    family = write_family(tmp_path)
    for name in ("autoencoder.pth", "t2v_00000007.pth"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"test_model=.*, auto_encoder.pretrained=.*: no such files"):
        run(load(tmp_path, family))


def test_an_encoder_that_reads_words_from_a_cache_is_not_called_untrained(caplog):
    cfg = load_config("configs/wan/t2v_1.3b_infer.yaml", ["embedder.pretrained=null", "auto_encoder.pretrained=null"])
    note_untrained(cfg, "auto_encoder", "embedder")
    assert [record.args for record in caplog.records if "untrained" in record.msg] == [("auto_encoder",)]
