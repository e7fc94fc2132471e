"""Training with an encoder of texts that has no token numbers and is only in memory while it encodes."""

import pytest
import torch

from models.wan import text_encoder
from models.weights import read_weights
from pipelines.training.data.latent_cache import CachedLatents
from pipelines.training.trainer import train
from tests.tiny import AUTOENCODER, load
from tests.tiny_orbits import training_config, write_orbits
from tests.tiny_wan import NUM_TOKENS, WIDTH, write_wan
from utils.errors import ConfigError, DataError
from utils.registry import ENGINE

pytestmark = pytest.mark.usefixtures("one_thread")


def config(folder, **changes):
    changes = {"TASK_TYPE": "train_t2v_entrance", "num_steps": 1, **changes}
    return training_config(folder, embedder=write_wan(folder / "wan")["embedder"], **changes)


@pytest.fixture
def loads(monkeypatch):
    count, load_encoder = [], text_encoder.load_encoder
    monkeypatch.setattr(text_encoder, "load_encoder", lambda *args: count.append(1) or load_encoder(*args))
    return count


def test_captions_are_encoded_together_and_cut_in_the_cache(tmp_path, loads):
    write_orbits(tmp_path / "orbits", copies=1)
    batches = []
    for cached in (True, False):
        cfg = load(tmp_path, config(tmp_path, cache_latents=cached, p_zero=0.0))
        task = ENGINE.build({"type": cfg.TASK_TYPE}, cfg=cfg, device=torch.device("cpu"))
        batches.append(next(task.batches()))
    assert len(loads) == 2  # for the dropped and the negative prompt, and for all captions
    stored = CachedLatents(tmp_path / "latents").rows(torch.arange(4)).words_BLC
    assert stored.shape == (4, len("a blue square") + 2, WIDTH)
    assert stored[:, -1].abs().sum() > 0
    one, other = batches
    assert one.token_ids_BL is None
    assert one.words_BLC.shape == (4, NUM_TOKENS, WIDTH)
    torch.testing.assert_close(one.words_BLC, other.words_BLC, atol=2e-3, rtol=0)  # the cache has float16
    dropped = task.words(one, torch.tensor([True, False, False, False]))
    torch.testing.assert_close(dropped[0], task.embedder.encode_text([""])[0], atol=2e-3, rtol=0)
    assert torch.equal(dropped[1:], one.words_BLC[1:])


def test_it_trains_and_what_is_missing_stops_before_work(tmp_path):
    write_orbits(tmp_path / "orbits", copies=1)
    final = train(load(tmp_path, config(tmp_path, cache_latents=True)))
    assert read_weights(final, option="test").step == 1
    changes = config(tmp_path, log_dir=str(tmp_path / "other"))
    changes["embedder"] |= {"pretrained": str(tmp_path / "gone"), "cache_dir": str(tmp_path / "empty")}
    with pytest.raises(DataError, match=r"lacks 1 prompts \(first: ''\), and embedder.pretrained=\S+/gone: no such"):
        train(load(tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TASK_TYPE": "train_embedder_entrance"}, "cannot train embedder.type=UMT5TextEncoder"),
        (
            {"TASK_TYPE": "train_autoencoder_entrance", "auto_encoder": {"type": "WanAutoencoder"}},
            "cannot train auto_encoder.type=WanAutoencoder",
        ),
        (
            {"frame_lens": [1, 3], "img_dataset": {"type": "ImageDataset", "data_list": ["a"], "data_dir_list": ["b"]}},
            "UMT5TextEncoder cannot encode captions of images in every step",
        ),
    ],
)
def test_tasks_that_need_more_are_refused(tmp_path, changes, message):
    write_orbits(tmp_path / "orbits", copies=1)
    changes.setdefault("auto_encoder", {**AUTOENCODER, "scale_factor": 1.0})
    with pytest.raises(ConfigError, match=message):
        train(load(tmp_path, config(tmp_path, **changes)))
