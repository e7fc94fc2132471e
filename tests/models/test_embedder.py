import logging

import pytest
import torch

from models.clip import ShortTokenizer
from models.weights import save_safetensors
from tests.reference_cases import assert_matches, case_input, fill_by_recipe, load_case
from utils.errors import ConfigError, DataError
from utils.registry import EMBEDDER

TYPE = "FrozenOpenCLIPTtxtVisualEmbedder"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 2},
}


def build(**options):
    return EMBEDDER.build({"type": TYPE, "model_cfg": TINY, "num_merges": 100, **options})


def test_reference_case():
    spec, stored = load_case("embedder")
    embedder = EMBEDDER.build({"type": TYPE, **spec["config"]})
    fill_by_recipe(embedder.model)
    image = case_input("embedder", "image", spec["inputs"]["image"])
    with torch.no_grad():
        embeddings = embedder(image=image, text=spec["inputs"]["prompts"])
    assert embeddings.words.shape == (3, 77, 512)
    assert_matches(embeddings.words[..., :16], stored["words"])
    assert_matches(embeddings.text, stored["text"])
    assert_matches(embeddings.image, stored["image"])


def test_the_small_vocabulary_encodes_any_text():
    tokenizer = ShortTokenizer(num_merges=300, context_length=64)
    assert tokenizer.vocab_size == 512 + 300 + 2
    for text in ("a red mug", "naïve 椅子 🪑", "#!%_"):
        tokens = tokenizer.encode(text)
        assert max(tokens) < tokenizer.sot_token_id
        assert tokenizer.decode(tokens).replace(" ", "") == text.lower().replace(" ", "")


def test_all_merges_give_the_published_tokens():
    prompts = ["Futuristic space helmet, 3d asset", ""]
    tokenizer = ShortTokenizer(num_merges=None, context_length=77)
    assert torch.equal(tokenizer.ids(prompts), tokenizer(prompts))
    assert tokenizer.eot_token_id == 49407


def test_a_long_prompt_is_cut_with_a_warning_that_names_it(caplog):
    embedder = build()
    with caplog.at_level(logging.WARNING):
        ids = embedder.tokenize(["chair " * 400, "mug"])
    assert ids.shape == (2, 12)
    assert ids[0, -1] == embedder.tokenizer.eot_token_id
    assert len(caplog.records) == 1
    assert "chair chair" in caplog.text


def test_last_layer_runs_one_block_more():
    penultimate, last = build(), build(layer="last")
    last.load_state_dict(penultimate.state_dict())
    words = penultimate.encode_text(["a mug"])
    tokens = last.tokenize(["a mug"])
    features = last.model.encode_text(tokens)
    torch.testing.assert_close(last(text=["a mug"]).text, features)
    assert not torch.allclose(words, last.encode_text(["a mug"]))


def test_images_are_resized_and_normalised():
    embedder = build()
    grey = torch.full((1, 3, 64, 48), 0.5)
    prepared = embedder.preprocess(grey)
    assert prepared.shape == (1, 3, 32, 32)
    expected = (0.5 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(prepared[0, :, 5, 5], expected)
    torch.testing.assert_close(embedder.encode_image(grey), embedder(image=prepared).image)


def test_weights_load_strictly(tmp_path):
    embedder = build()
    save_safetensors(tmp_path / "clip.safetensors", embedder.model.state_dict(), dtype=torch.float32)
    again = build(pretrained=str(tmp_path / "clip.safetensors"))
    torch.testing.assert_close(again.encode_text(["a cup"]), embedder.encode_text(["a cup"]), atol=0, rtol=0)
    with pytest.raises(DataError, match=r"embedder\.pretrained=.*misshapen"):
        build(num_merges=50, pretrained=str(tmp_path / "clip.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "ViT-H14"}, "did you mean ViT-H-14"),
        ({"layer": "first"}, "layer=first"),
        ({"num_merges": 10}, "set model_cfg"),
        ({"model_cfg": {"embed_dim": 4}}, "model_cfg has no text_cfg, vision_cfg"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EMBEDDER.resolve({"type": TYPE, **options})


def test_the_retired_key_is_accepted():
    EMBEDDER.resolve({"type": TYPE, "vit_resolution": [224, 224]})


def test_text_is_the_same_without_the_image_encoder():
    embedder = build()
    before, size = embedder.encode_text(["a red mug"]), sum(p.numel() for p in embedder.parameters())
    embedder.forget_images()
    assert torch.equal(embedder.encode_text(["a red mug"]), before)
    assert embedder.image_width
    assert sum(p.numel() for p in embedder.parameters()) < size
    with pytest.raises(RuntimeError, match="embeds only text"):
        embedder.model.visual(torch.zeros(1, 3, 32, 32))
