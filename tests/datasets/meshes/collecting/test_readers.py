"""Mesh files in folders become objects: which name counts, and where their textures may lie."""

import pytest

from datasets.meshes.collecting.readers import Terms, mesh_files
from tests.tiny_meshes import RED, box_glb, flat_png, obj_text

pytest.importorskip("trimesh")
TERMS = Terms("t", "CC0-1.0", "somebody")


@pytest.mark.parametrize(
    ("path", "caption"),
    [
        ("red_mug/meshes/mesh.glb", "a red mug"),
        ("006_mustard_bottle/google_16k/textured.glb", "a mustard bottle"),
        ("kit/Models/tree_pineTallA.glb", "a tall pine tree"),
        ("kit/Models/pine_tree.glb", "a pine tree"),
    ],
)
def test_the_first_name_that_says_something_counts(tmp_path, path, caption):
    (tmp_path / path).parent.mkdir(parents=True)
    box_glb().write(tmp_path / path)
    [entry] = mesh_files(tmp_path, tmp_path, TERMS, patterns=("*.glb",), noun_first="tree")
    assert entry.caption == caption


@pytest.mark.parametrize(("textures", "missing"), [((), True), (("../materials/textures",), False)])
def test_textures_may_lie_in_another_folder(tmp_path, textures, missing):
    meshes, pictures = tmp_path / "cup/meshes", tmp_path / "cup/materials/textures"
    meshes.mkdir(parents=True)
    pictures.mkdir(parents=True)
    (meshes / "cup.obj").write_text(obj_text())
    (meshes / "m.mtl").write_text("newmtl skin\nmap_Kd skin.png\n")
    (pictures / "skin.png").write_bytes(flat_png(RED))
    [entry] = mesh_files(tmp_path, tmp_path, TERMS, patterns=("*.obj",), textures=textures)
    mesh, notes = entry.read()
    assert (len(mesh.textures) == 0) is missing
    assert bool(notes) is missing
