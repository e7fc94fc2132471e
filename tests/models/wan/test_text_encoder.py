import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanPipeline
from transformers import AutoTokenizer, UMT5EncoderModel

from models.wan import text_encoder
from models.wan.text_encoder import cleaned
from tests.tiny_wan import NUM_TOKENS, WIDTH, write_wan
from utils.errors import ConfigError, DataError
from utils.registry import EMBEDDER

PROMPTS = ["a red  mug &amp; a cat", "", "x" * 60]


@pytest.fixture
def section(tmp_path):
    return write_wan(tmp_path / "wan")["embedder"]


@pytest.fixture
def loads(monkeypatch):
    """Counts how often the encoder is loaded."""
    count, load = [], text_encoder.load_encoder
    monkeypatch.setattr(text_encoder, "load_encoder", lambda *args: count.append(1) or load(*args))
    return count


def test_words_are_those_of_diffusers_pipeline(section, tmp_path):
    words = EMBEDDER.build(section).encode_text(PROMPTS)
    part = tmp_path / "wan"
    pipeline = SimpleNamespace(
        text_encoder=UMT5EncoderModel.from_pretrained(part / "text_encoder", dtype=torch.float32).eval(),
        tokenizer=AutoTokenizer.from_pretrained(part / "tokenizer"),
        _execution_device=torch.device("cpu"),
    )
    with torch.no_grad():
        expected = WanPipeline._get_t5_prompt_embeds(pipeline, list(PROMPTS), max_sequence_length=NUM_TOKENS)
    assert words.shape == (3, NUM_TOKENS, WIDTH)
    torch.testing.assert_close(words, expected, atol=1e-5, rtol=1e-5)
    assert (words.abs().sum(-1) > 0).sum(-1).tolist() == [19, 1, NUM_TOKENS]  # zeros after the end


def test_the_encoder_is_loaded_once_for_new_prompts_and_is_freed(section, loads):
    embedder = EMBEDDER.build(section)
    assert embedder.prepare(["a mug", "a green chair"]) == len("a green chair") + 2  # a first space, and the end
    assert not [module for module in embedder.modules() if module is not embedder]
    first = embedder.encode_text(["a mug", "a  mug ", "a green chair"])
    assert loads == [1]
    assert torch.equal(first[0], first[1])
    assert torch.equal(EMBEDDER.build(section).encode_text(["a mug"])[0], first[0])  # from disk
    assert loads == [1]
    embedder.encode_text(["a cup"])
    assert loads == [1, 1]


def test_without_the_encoder_the_cache_serves_and_what_it_lacks_is_named(section, tmp_path):
    before = EMBEDDER.build(section).encode_text(["a mug"])
    shutil.rmtree(tmp_path / "wan" / "text_encoder")
    for pretrained in (section["pretrained"], None):
        embedder = EMBEDDER.build({**section, "pretrained": pretrained})
        assert torch.equal(embedder.encode_text(["a mug"]), before)
        embedder.config.check_prompts(["a mug"])
        for refuse in (embedder.config.check_prompts, embedder.encode_text):
            with pytest.raises(
                DataError, match=r"embedder.cache_dir=\S+ lacks 1 prompts \(first: 'a cup'\), and embedd"
            ):
                refuse(["a mug", "a cup"])


def test_words_of_another_encoder_are_not_used(section, tmp_path, loads):
    first = EMBEDDER.build(section)
    words = first.encode_text(["a mug"])
    shutil.rmtree(tmp_path / "wan" / "text_encoder")
    first.config.write_random(tmp_path / "new", seed=7)
    (tmp_path / "new" / "text_encoder").rename(tmp_path / "wan" / "text_encoder")
    again = EMBEDDER.build(section)
    assert again.identity(with_images=False) != first.identity(with_images=False)
    assert not torch.equal(again.encode_text(["a mug"]), words)
    assert loads == [1, 1]
    shutil.rmtree(tmp_path / "wan" / "text_encoder")
    with pytest.raises(DataError, match=r"has words of 2 encoders"):
        EMBEDDER.build(section).identity(with_images=False)


@pytest.mark.gpu
def test_a_gpu_encodes_the_same_words_and_is_empty_afterwards(section):
    expected = EMBEDDER.build(section).encode_text(["a mug"])
    embedder = EMBEDDER.build({**section, "cache_dir": section["cache_dir"] + "_gpu"}).cuda()
    embedder.encode_text(["a cup"])  # the first products take a workspace that stays
    before = torch.cuda.memory_allocated()
    words = embedder.encode_text(["a mug"])
    assert words.device.type == "cuda"
    torch.testing.assert_close(words.cpu(), expected, atol=2e-2, rtol=2e-2)  # products may be TensorFloat-32
    assert torch.cuda.memory_allocated() - before <= 512 * -(-words.nbytes // 512)


def test_a_long_prompt_is_cut_with_a_warning_that_names_it(section, caplog):
    with caplog.at_level(logging.WARNING):
        EMBEDDER.build(section).encode_text(["chair " * 9])
    assert "prompt 'chair chair" in caplog.text
    assert f"only the first {NUM_TOKENS} are used" in caplog.text


def test_it_embeds_no_images(section):
    embedder = EMBEDDER.build(section)
    embedder.forget_images()
    assert embedder.image_width is None
    with pytest.raises(ConfigError, match=r"embedder.type=UMT5TextEncoder embeds no images"):
        embedder.encode_image(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"embedder.type=UMT5TextEncoder has no token numbers"):
        embedder.tokenize(["a mug"])


def test_cut_words_are_completed_with_zeros(section):
    embedder = EMBEDDER.build(section)
    words = embedder.encode_text(["a mug", "a green chair"])
    longest = embedder.prepare(["a mug", "a green chair"])
    assert torch.equal(embedder.padded(words[:, :longest]), words)
    assert words[:, longest - 1].abs().sum() > 0


def test_a_folder_of_another_width_is_refused(section):
    with pytest.raises(DataError, match=rf"has {WIDTH} channels \(d_model\), but embedder.width=32"):
        EMBEDDER.build({**section, "width": 32}).encode_text(["a mug"])


def test_prompts_are_cleaned():
    assert cleaned(" caf&amp;eacute;\n\t schÃ¶n ") == "café schön"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "embedder.precision=float16"),
        ({"device": "cuda:1"}, "embedder.device=cuda:1"),
        ({"num_tokens": 0}, "embedder.num_tokens must be >= 1"),
        ({"cache_dir": ""}, "embedder.cache_dir is empty"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EMBEDDER.resolve({"type": "UMT5TextEncoder", **options})
