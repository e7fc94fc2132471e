"""The transformer of a published folder: names, shapes, values, shards and refusals."""

import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from models.lora import add_lora, lora_state
from models.random_weights import fill_randomly
from models.wan.folder import part_folder, read_part, weight_files
from models.wan.random_folder import NOTE, write_random_transformer
from models.weights import save_safetensors
from tests.tiny_wan import UNET, write_wan
from utils.errors import DataError
from utils.registry import MODEL

WAN_5B = {"in_dim": 48, "num_heads": 24, "ffn_dim": 14336}
OPTIONS = {"option": "test_model"}


def build(section=UNET):
    return MODEL.build(section).eval()


def config_of(section):
    return MODEL.resolve(section)[1]


@pytest.mark.parametrize(
    ("sizes", "published"),
    [
        ({}, {"num_attention_heads": 12, "ffn_dim": 8960, "in_channels": 16, "out_channels": 16}),
        (WAN_5B, {"num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}),
    ],
    ids=["1.3B", "5B"],
)
def test_full_size_has_the_names_and_shapes_of_diffusers(sizes, published):
    with torch.device("meta"):
        network = build({"type": "WanOrbit", **sizes})
        theirs = WanTransformer3DModel(num_layers=30, text_dim=4096, attention_head_dim=128, **published)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert shapes.pop("ray_embedding.weight") == (128 * published["num_attention_heads"], 6 * 4)
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}


def test_a_folder_loads_strictly_with_new_parts_that_are_zero(tmp_path):
    write_wan(tmp_path / "wan")
    section = {**UNET, "camera_vector": True}
    with torch.device("meta"):
        network = build(section)
    part = tmp_path / "wan" / "transformer"
    for path in (tmp_path / "wan", part, part / "diffusion_pytorch_model.safetensors"):
        assert network.load_weights(path, **OPTIONS) is None
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "wan" / "transformer").state_dict()
    for name, value in network.state_dict().items():
        if name in theirs:
            assert torch.equal(value, theirs[name]), name
        else:
            assert name.startswith(("ray_embedding.", "camera_embedding."))
            assert value.count_nonzero() == 0
    trained = build(section)  # not on the meta device: training keeps the first values of the new parts
    before = trained.camera_embedding[0].weight.clone()
    trained.load_weights(tmp_path / "wan", **OPTIONS)
    assert torch.equal(trained.camera_embedding[0].weight, before)
    assert torch.equal(trained.patch_embedding.weight, theirs["patch_embedding.weight"])


def test_our_own_file_loads_and_shards_are_read_by_their_index(tmp_path):
    network = build()
    save_safetensors(tmp_path / "t2v_00000003.safetensors", network.state_dict(), dtype=torch.float32)
    again = build()
    assert again.load_weights(tmp_path / "t2v_00000003.safetensors", **OPTIONS) == 3
    assert torch.equal(again.blocks[0].ffn.net[2].weight, network.blocks[0].ffn.net[2].weight)
    write_random_transformer(tmp_path, config_of(UNET).diffusers_options(), seed=4, max_shard_bytes=8000)
    folder = tmp_path / "transformer"
    files = weight_files(folder, **OPTIONS)
    assert len(files) > 3
    state = read_part(folder, **OPTIONS)
    theirs = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16).state_dict()
    assert state.keys() == theirs.keys()
    again.load_weights(tmp_path, **OPTIONS)
    assert torch.equal(again.proj_out.weight, state["proj_out.weight"].float())
    files[1].unlink()
    with pytest.raises(DataError, match=rf"1 of {len(files)} shards are missing \(first: {files[1].name}\)"):
        again.load_weights(tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16},
            r"another model, Wan2.1-T2V-14B or Wan2.2-T2V-A14B \(num_attention_heads=40, in_channels=16, "
            r"num_layers=40\), but the configuration has UNet.num_heads=2, UNet.in_dim=4, UNet.num_layers=2; name the",
        ),
        (
            {"num_layers": 40, "num_attention_heads": 40, "in_channels": 36, "image_dim": 1280},
            r"another model, Wan2.1-I2V-14B or Wan2.2-I2V-A14B \(.*image_dim=1280\), but the configuration",
        ),
        ({"added_kv_proj_dim": 5120}, r"another model \(added_kv_proj_dim=5120\), but .* has added_kv_proj_dim=None"),
        ({"patch_size": [1, 4, 4]}, r"patch_size=\[1, 4, 4\]\), but .* has UNet.patch=\[1, 2, 2\]"),
        ({"_class_name": "WanVACETransformer3DModel"}, r"_class_name=WanVACETransformer3DModel"),
    ],
)
def test_the_folder_of_another_model_is_refused_by_name(tmp_path, changes, message):
    write_wan(tmp_path / "wan")
    file = tmp_path / "wan" / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(DataError, match=message):
        config_of(UNET).published_files(str(tmp_path / "wan"), **OPTIONS)


def test_a_part_in_the_place_of_another_is_named(tmp_path):
    write_wan(tmp_path / "wan")
    for part, kind in {"text_encoder": "an encoder of texts", "vae": "an autoencoder"}.items():
        file = next((tmp_path / "wan" / part).glob("*.safetensors"))  # of the folder of another part
        with pytest.raises(DataError, match=rf"it contains the weights of {kind}.*, which belong in"):
            build().load_weights(file, **OPTIONS)


def test_missing_folders_and_parts_are_named(tmp_path):
    with pytest.raises(DataError, match=r"test_model=\S+/gone: no such folder; download it with `hf download Wan-AI/"):
        part_folder(tmp_path / "gone", "transformer", **OPTIONS)
    with pytest.raises(DataError, match=r"test_model=\S+ has no folder transformer/; name a folder in the layout"):
        part_folder(tmp_path, "transformer", **OPTIONS)


def test_a_hub_name_is_asked_for_one_part(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options["allow_patterns"], options["local_files_only"]))
        return write_wan(tmp_path / "wan")["test_model"]

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert part_folder("Some-One/Wan", "vae", **OPTIONS) == tmp_path / "wan" / "vae"
    assert asked == [("Some-One/Wan", ["vae/*"], False)]

    def offline(name, **options):
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError, match=r"test_model=Some-One/Wan: .* does not give it \(no route\); download it else"):
        part_folder("Some-One/Wan", "vae", **OPTIONS)


def test_random_folders_say_so_and_replace_nothing_else(tmp_path):
    write_wan(tmp_path / "wan")
    for name in ("model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json"):
        assert json.loads((tmp_path / "wan" / name).read_text())["_comment"] == NOTE
    (tmp_path / "wan" / "transformer" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="is there and does not hold random weights; choose another folder"):
        config_of(UNET).write_random(tmp_path / "wan", seed=0)


def test_factors_of_our_training_load_into_the_class_of_diffusers(tmp_path):
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ray_embedding"]
    network = build()
    add_lora(network, rank=3, alpha=6, targets=targets)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_" in name:
                nn.init.normal_(value)
    state = lora_state(network)
    save_safetensors(tmp_path / "lora.safetensors", state, dtype=torch.float32)
    known = {name: value for name, value in state.items() if not name.startswith("ray_embedding")}
    assert len(state) - len(known) == 2
    theirs = WanTransformer3DModel(**config_of(UNET).diffusers_options())
    fill_randomly(theirs, seed=0, device=torch.device("cpu"), dtype=torch.float32)
    before = theirs.blocks[1].attn1.to_q.weight.clone()
    theirs.load_lora_adapter(known, prefix=None)
    theirs.fuse_lora()
    added = known["blocks.1.attn1.to_q.lora_B.weight"] @ known["blocks.1.attn1.to_q.lora_A.weight"]
    torch.testing.assert_close(theirs.blocks[1].attn1.to_q.base_layer.weight, before + added, atol=1e-5, rtol=1e-5)
