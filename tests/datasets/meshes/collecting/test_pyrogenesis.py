"""Actors of 0 A.D. become objects with their textures and what is attached to them."""

import os
import shutil
import zipfile

import numpy as np
import pytest

from datasets.meshes.collecting.pyrogenesis import PLAYERS, open_mod
from datasets.meshes.loading import load_mesh
from tests.tiny_meshes import RED
from tests.tiny_sources import collect, errors, listed, pmd, sides, write_game

pytest.importorskip("trimesh")  # before the processes are forked, so that they need not import it


def test_processes_do_not_share_an_open_zip(tmp_path, monkeypatch):
    """They would move each other's place in the file."""
    with zipfile.ZipFile(tmp_path / "public.zip", "w") as archive:
        archive.writestr("art/a.xml", "<a/>")
    mod = open_mod(tmp_path / "public.zip")
    assert open_mod(tmp_path / "public.zip") is mod
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert open_mod(tmp_path / "public.zip") is not mod


def test_an_actor_has_its_mesh_texture_and_props(tmp_path, capsys):
    props = '<prop actor="props/pole_leaves.xml" attachpoint="top"/><prop actor="props/hand.xml" attachpoint="hand"/>'
    actors = {
        "structures/romans/market.xml": {"props": props},
        "props/pole_leaves.xml": {"mesh": "pole.dae"},
        "props/hand.xml": {"mesh": "pole.dae"},
        "structures/romans/flag_a.xml": {},
        "units/roman.xml": {},
    }
    points = {"top": ((0, 1, 0), 255), "hand": ((9, 9, 9), 0)}
    meshes = {"box.dae": pmd((4, 2, 1), points), "pole.dae": pmd((0.5, 4, 0.5))}
    game = write_game(tmp_path / "game", actors, meshes)
    assert collect(tmp_path / "out", "--sources", "0ad", "--from", f"0ad={game}") == 0
    [(name, row)] = listed(tmp_path / "out").items()
    assert (name, row["caption"], row["licence"]) == (
        "oad_structures_romans_market", "a Roman market", "CC-BY-SA-3.0"
    )  # fmt: skip
    path = tmp_path / "out" / row["file"]
    assert row["faces"] == 24  # the prop at a bone is left out
    # the pole's middle is at the top of the box (height 1): from -1 to 3 of a width of 4
    assert sides(path) == [0.25, 1.0, 1.0]
    mesh = load_mesh(path)
    assert mesh.textures[0].pixels_HWC[0, 0].tolist() == list(RED)
    cross_F3 = np.cross(mesh.points_F33[:, 1] - mesh.points_F33[:, 0], mesh.points_F33[:, 2] - mesh.points_F33[:, 0])
    assert (np.einsum("fc,fkc->fk", cross_F3, mesh.normals_F33) > 0).all()


def test_materials_decide_what_transparent_means(tmp_path, capsys):
    actors = {
        "fauna/horse.xml": {"material": "player.xml"},
        "fauna/pig.xml": {"material": "trans.xml"},
        "fauna/cow.xml": {"texture": "gone.png"},
        "fauna/goat.xml": {"mesh": "gone.dae"},
    }
    game = write_game(tmp_path / "game", actors, {"box.dae": pmd((4, 2, 1))})
    assert collect(tmp_path / "out", "--sources", "0ad", "--variants", "9", "--from", f"0ad={game}") == 0
    out, err = capsys.readouterr()
    assert "left out: 2 empty; failed: 0;" in out  # the pig's texture is transparent everywhere
    assert "fauna/cow.xml: texture gone.png is not found" in err
    pixels = load_mesh(tmp_path / "out/0ad/oad_fauna_horse.glb").textures[0].pixels_HWC
    assert tuple(pixels[0, 0].tolist()) in PLAYERS


def test_a_zip_and_a_folder_give_the_same_object(tmp_path):
    game = write_game(tmp_path / "game", {"fauna/bear.xml": {}}, {"box.dae": pmd((4, 2, 1))})
    (tmp_path / "zipped").mkdir()
    shutil.make_archive(str(tmp_path / "zipped" / "public"), "zip", game)
    for name, folder in (("a", game), ("b", tmp_path / "zipped")):
        assert collect(tmp_path / name, "--sources", "0ad", "--from", f"0ad={folder}") == 0
    file = "0ad/oad_fauna_bear.glb"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PNG", "is not a PMD file"),
        (b"PSMD" + bytes([9, 0, 0, 0]) + bytes(8), "is PMD version 9"),
        (pmd((1, 1, 1))[:900], "is truncated"),
        (pmd((1, 1, 1)).replace(bytes([2, 0, 1, 0, 0, 0]), bytes([99, 0, 1, 0, 0, 0]), 1), "does not exist"),
    ],
)
def test_a_broken_pmd_is_one_line(content, said, tmp_path, capsys):
    game = write_game(tmp_path / "game", {"fauna/bear.xml": {}}, {"box.dae": content})
    assert collect(tmp_path / "out", "--sources", "0ad", "--from", f"0ad={game}") == 1
    [line] = errors(capsys.readouterr().err)
    assert said in line
    assert "fauna/bear.xml" in line
