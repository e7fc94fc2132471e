"""tools/caption_objects.py: lists and captions files for training, and a captioning model."""

import json

import numpy as np
import pytest
import torch
import trimesh
from tokenizers import Tokenizer, models, pre_tokenizers

from tools import caption_objects, render_orbit
from utils.errors import ConfigError, DataError
from utils.registry import DATASETS


@pytest.fixture
def meshes(tmp_path):
    folder = tmp_path / "meshes"
    folder.mkdir()
    for name, rgba in (("round_table", (200, 30, 30, 255)), ("teapot", (40, 80, 210, 255))):
        mesh = trimesh.creation.icosphere(subdivisions=1)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, face_colors=np.tile(rgba, (len(mesh.faces), 1)))
        mesh.export(folder / f"{name}.ply")
    return folder


def caption(meshes, out, *more):
    return caption_objects.main([str(meshes), "--out", str(out), "--workers", "1", *more])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_names_and_colours_become_captions(meshes, tmp_path):
    assert caption(meshes, tmp_path / "list.jsonl") == 0
    table, teapot = lines_of(tmp_path / "list.jsonl")
    assert table["file"] == "round_table.ply"
    assert table["caption"] == table["captions"][0] == "a red round table"
    assert "a blue teapot" in teapot["captions"]
    assert teapot["colors"] == {"blue": 1.0}
    assert caption(meshes, tmp_path / "captions.json", "--dictionary", "mine", "--num", "2") == 0
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert captions["mine/teapot"] == ["a blue teapot", "a teapot in blue"]


def test_the_renderer_packs_all_captions(meshes, tmp_path):
    (tmp_path / "old.jsonl").write_text('{"file": "teapot.ply", "caption": "a green pot", "split": "val"}\n')
    assert caption(meshes, tmp_path / "new.jsonl", "--list", str(tmp_path / "old.jsonl")) == 0
    (line,) = lines_of(tmp_path / "new.jsonl")
    assert line["split"] == "val"
    assert line["captions"][0] == "a blue pot"
    size = ["--views", "2", "--size", "16", "--samples", "1", "--workers", "1", "--packed"]
    out = tmp_path / "packed"
    assert render_orbit.main([str(meshes), "--list", str(tmp_path / "new.jsonl"), "--out", str(out), *size]) == 0
    data = DATASETS.build({"type": "PackedOrbits", "data_dir_list": [str(out)], "num_views": 2, "caption_suffix": ""})
    assert list(data.prompts(0)) == line["captions"]


def test_broken_meshes_are_named_and_the_rest_is_written(meshes, tmp_path, capsys):
    (meshes / "broken.ply").write_text("ply")
    assert caption(meshes, tmp_path / "list.jsonl") == 1
    assert len(lines_of(tmp_path / "list.jsonl")) == 2
    assert "broken.ply" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.txt"], "must end in .jsonl"),
        (["--out", "nowhere/x.json"], "create nowhere"),
        (["--num", "0"], "--num must lie between 1 and 20"),
        (["--where", "a=b"], "add --list FILE"),
        (["--list", "list.jsonl"], "name another file"),
    ],
)
def test_wrong_options_are_refused(meshes, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        caption(meshes, "list.jsonl", *options)


def tiny_blip(folder):
    """A captioning model with random weights and a vocabulary of a few words."""
    # imported by the process that needs it: this takes two seconds
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "blue", "table", "pot", "with", "lid"]
    tokenizer = Tokenizer(models.WordPiece({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 64, "projection_dim": 8}
    text |= {"bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BlipConfig(text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    processor = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(processor, BertTokenizer(tokenizer_object=tokenizer)).save_pretrained(folder)


def tiny_llava(folder):
    """A model that chats about pictures, with random weights; a picture of 32 x 32 pixels is five tokens."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["[PAD]", "[UNK]", "</s>", "<image>", "USER", "a", "red", "blue", "table", "pot", "with", "lid", "object"]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**size, num_hidden_layers=2, image_size=32, patch_size=16)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = LlamaConfig(**size, num_hidden_layers=1, num_key_value_heads=2, vocab_size=len(words), **special)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = (
        "{% for m in messages %}USER {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)


@pytest.mark.parametrize("make", [tiny_blip, tiny_llava])
def test_a_captioning_model_adds_its_captions(meshes, tmp_path, make):
    torch.manual_seed(0)
    make(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--device", "cpu", "--num", "2"]
    assert caption(meshes / "teapot.ply", tmp_path / "list.jsonl", *options) == 0
    (line,) = lines_of(tmp_path / "list.jsonl")
    assert line["captions"][:2] == ["a blue teapot", "a teapot in blue"]
    assert len(line["captions"]) > 2
    assert not any(one.startswith(("USER", "<image>")) for one in line["captions"])  # the question is not repeated


def test_missing_files_of_the_model_are_one_line(meshes, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="name a folder with the files of a captioning model") as found:
        caption(meshes, tmp_path / "list.jsonl", "--model", str(tmp_path / "empty"))
    assert "\n" not in str(found.value)


def test_what_a_model_writes_is_tidied():
    from datasets.captions.captioner import tidied  # imports transformers

    assert tidied(" There is  a Red chair.\n") == "a Red chair"
    assert tidied("A 3D model of a TV") == "a TV"
