"""Material words of mesh files."""

import json

import numpy as np
import pytest
import trimesh

from datasets.captions.materials import material_word, word_in
from datasets.meshes.companions import Companions


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Wood_Dark.001", "wooden"),
        ("OakPlanks", "wooden"),
        ("M_BrushedSteel", "metal"),
        ("Gold", "golden"),
        ("Woodpecker", ""),
        ("Material.003", ""),
    ],
)
def test_words_in_names(name, word):
    assert word_in(name) == word


def box(path, **material):
    mesh = trimesh.creation.box()
    visual = trimesh.visual.TextureVisuals(
        uv=np.zeros((len(mesh.vertices), 2)), material=trimesh.visual.material.PBRMaterial(**material)
    )
    trimesh.Trimesh(mesh.vertices, mesh.faces, visual=visual).export(path)
    return Companions(path)


def test_gltf_says_it_by_name_or_by_metalness(tmp_path):
    assert material_word(box(tmp_path / "a.glb", name="old_wood")) == "wooden"
    assert material_word(box(tmp_path / "b.glb", name="x", metallicFactor=1.0)) == "metal"
    assert material_word(box(tmp_path / "c.glb", name="x", metallicFactor=0.0)) == ""


def test_obj_counts_faces(tmp_path):
    path = tmp_path / "chair.obj"
    path.write_text("usemtl Leather\nf 1 2 3\nf 1 2 3\nusemtl Steel\nf 1 2 3\n")
    assert material_word(Companions(path)) == "leather"
    path.write_text("usemtl Leather\nf 1 2 3\nusemtl x\nf 1 2 3\nusemtl y\nf 1 2 3\n")
    assert material_word(Companions(path)) == ""


def test_other_and_broken_files_have_none(tmp_path):
    for name, content in (("a.stl", b"solid"), ("a.glb", b"glTF"), ("b.gltf", json.dumps([]).encode())):
        (tmp_path / name).write_bytes(content)
        assert material_word(Companions(tmp_path / name)) == ""
    assert material_word(Companions(tmp_path / "missing.obj")) == ""
