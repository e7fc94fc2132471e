"""Collecting free meshes: from packages, folders and repositories, with captions, licences, and no object twice."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from datasets.meshes.collecting.captions import caption_of_file, caption_of_title
from datasets.meshes.collecting.download import DebianPackage, GitRepositories
from datasets.meshes.collecting.glb import write_glb
from datasets.meshes.collecting.objects import split_of
from datasets.meshes.collecting.pyrogenesis import PLAYERS, caption_of_actor, open_mod
from datasets.meshes.collecting.readers import Terms, mesh_files
from datasets.meshes.loading import load_mesh
from datasets.meshes.scene import CLAMP, srgb_to_linear
from datasets.meshes.sources import SOURCES, Source
from tests.conftest import ROOT
from tests.tiny_meshes import BLUE, RED, Glb, box, box_glb, card, png, textured_box
from tests.tiny_sources import box_obj, build_deb, pmd, write_game, write_library
from tools import collect_meshes
from utils.errors import ConfigError, DataError

pytest.importorskip("trimesh")  # before the processes are forked, so that they need not import it

CHAIR = {"file": "chair", "name": "Wooden chair", "category": "Office", "creator": "Ann", "obj": box_obj((2, 4, 1))}
BED = {"file": "bed", "name": "Bed 140x190", "category": "Bedroom", "creator": "Bob & Cy", "obj": box_obj((4, 1, 3))}
GREEN_MTL = "newmtl skin\nKd 0 1 0\n"


def collect(out, *more) -> int:
    return collect_meshes.main([str(out), "--workers", "1", *map(str, more)])


def furniture(tmp_path, *objects, **more):
    """A folder with one library, as --from takes it."""
    write_library(tmp_path / "package" / "Tiny.sh3f", list(objects) or [CHAIR, BED], **more)
    return f"sweethome3d={tmp_path / 'package'}"


def collect_furniture(tmp_path, *more) -> int:
    return collect(tmp_path / "out", "--sources", "sweethome3d", "--from", f"sweethome3d={tmp_path / 'package'}", *more)


def listed(out) -> dict[str, dict]:
    rows = [json.loads(line) for line in (out / "objects.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["id"].partition("/")[2]: row for row in rows}


def errors(text: str) -> list[str]:
    return [line for line in text.replace("\r", "\n").splitlines() if line.startswith("error: ")]


def sides(path) -> list[float]:
    return np.ptp(load_mesh(path).points_F33.reshape(-1, 3), axis=0).round(4).tolist()


def middle(path) -> list[float]:
    low, high = load_mesh(path).bounds_23
    return ((low + high) / 2).round(5).tolist()


def test_a_library_becomes_objects_with_captions_and_licences(tmp_path, capsys):
    furniture(tmp_path)
    assert collect_furniture(tmp_path) == 0
    rows = listed(tmp_path / "out")
    assert {name: row["caption"] for name, row in rows.items()} == {"sh3d_bed": "a bed", "sh3d_chair": "a wooden chair"}
    chair = rows["sh3d_chair"]
    assert chair["file"] == "sweethome3d/sh3d_chair.glb"
    assert (chair["licence"], chair["author"], chair["source"]) == ("CC-BY-3.0", "Ann", "sweethome3d")
    assert chair["split"] == split_of(chair["group"])
    path = tmp_path / "out" / chair["file"]
    assert sides(path) == [0.25, 0.5, 1.0]  # z up: depth, width, height
    assert middle(path) == [0, 0, 0]
    np.testing.assert_allclose(load_mesh(path).colors_F33, np.broadcast_to([1, 0, 0], (12, 3, 3)), atol=1e-4)
    page = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert "| `sweethome3d` | 2 | CC-BY-3.0 |" in page
    assert "Ann, Bob & Cy." in page
    out, _ = capsys.readouterr()
    assert out.startswith(f"2 objects in {tmp_path / 'out' / 'objects.jsonl'} (0 MB), 2 read now in ")
    assert "; left out: none; failed: 0; " in out


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_debian_package_is_unpacked_once(tmp_path, capsys):
    write_library(tmp_path / "content" / "usr/share/furniture/Tiny.sh3f", [CHAIR, BED])
    deb = build_deb(tmp_path, tmp_path / "content")
    args = (tmp_path / "out", "--sources", "sweethome3d", "--from", f"sweethome3d={deb}")
    assert collect(*args) == 0
    assert f"sweethome3d: {deb} -> {tmp_path / 'out_downloads' / 'sweethome3d'}" in capsys.readouterr().err
    assert len(listed(tmp_path / "out")) == 2
    assert collect(*args) == 0
    out, err = capsys.readouterr()
    assert " -> " not in err
    assert "2 objects, 2 already there" in err
    assert ", 0 read now in " in out


def client(folder, name: str, script: str) -> None:
    """A program of this name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_package_is_downloaded_and_the_archive_removed(tmp_path, monkeypatch):
    write_library(tmp_path / "content" / "Tiny.sh3f", [CHAIR])
    deb = build_deb(tmp_path, tmp_path / "content")
    script = f'case "$1" in --print-uris) echo "\'http://x/y\' tiny.deb 123 SHA512:0";; download) cp {deb} .;; esac'
    client(tmp_path / "bin", "apt-get", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert collect(tmp_path / "out", "--sources", "sweethome3d") == 0
    assert list(listed(tmp_path / "out")) == ["sh3d_chair"]
    assert not (tmp_path / "out_downloads" / "sweethome3d.deb").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 100", "apt-get does not know the package sweethome3d-furniture; run `apt-get update`"),
        (
            'test "$1" = --print-uris && echo "\'http://x/y\' tiny.deb 123 S" && exit; echo E: no route >&2; exit 100',
            "apt-get download failed (E: no route); check the network, and run again",
        ),
    ],
)
def test_a_source_that_cannot_be_downloaded_is_one_line_and_the_next_is_read(
    script, said, tmp_path, monkeypatch, capsys
):
    client(tmp_path / "bin", "apt-get", script)
    client(tmp_path / "bin", "dpkg-deb", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    game = write_game(tmp_path / "game", {"fauna/bear_brown.xml": {}}, {"box.dae": pmd((1, 2, 3))})
    assert collect(tmp_path / "out", "--sources", "sweethome3d", "0ad", "--from", f"0ad={game}") == 1
    out, err = capsys.readouterr()
    [line] = errors(err)
    assert line.startswith("error: sweethome3d: ")
    assert said in line
    assert "failed: 0 and 1 sources not complete" in out
    assert list(listed(tmp_path / "out")) == ["oad_fauna_bear_brown"]


def test_without_a_client_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for origin, name in ((DebianPackage("tiny"), "apt-get"), (GitRepositories("https://x.org/tiny"), "git")):
        with pytest.raises(DataError, match=f"{name} is not on this machine; .* --from"):
            origin.fetch(tmp_path / "content")


def test_the_rotation_of_the_catalogue_is_applied(tmp_path):
    turned = {**CHAIR, "modelRotation": "1 0 0 0 0 -1 0 1 0"}  # y becomes z: it lies on its back
    furniture(tmp_path, turned)
    assert collect_furniture(tmp_path) == 0
    assert sides(tmp_path / "out" / "sweethome3d" / "sh3d_chair.glb") == [1.0, 0.5, 0.25]


def test_duplicates_are_dropped_and_variants_share_a_split(tmp_path, capsys):
    copy = {**CHAIR, "file": "copy", "obj": box_obj((20, 40, 10))}  # ten times as large
    green = {**CHAIR, "file": "green", "mtl": GREEN_MTL}
    furniture(tmp_path, CHAIR, copy, green)
    assert collect_furniture(tmp_path) == 0
    rows = listed(tmp_path / "out")
    assert list(rows) == ["sh3d_chair", "sh3d_green"]
    assert rows["sh3d_chair"]["group"] == rows["sh3d_green"]["group"]
    assert not (tmp_path / "out/sweethome3d/sh3d_copy.glb").exists()
    assert "left out: 1 duplicate;" in capsys.readouterr().out
    assert collect_furniture(tmp_path, "--variants", "1") == 0
    assert list(listed(tmp_path / "out")) == ["sh3d_chair"]
    assert collect_furniture(tmp_path) == 0
    assert list(listed(tmp_path / "out")) == ["sh3d_chair", "sh3d_green"]


def test_what_is_no_object_is_left_out_and_named(tmp_path, capsys):
    objects = [
        CHAIR,
        {**CHAIR, "file": "rug", "obj": box_obj((2, 0.03, 1))},
        {**CHAIR, "file": "ghost", "mtl": "newmtl skin\nKd 1 0 0\nd 0.05\n"},
        {**CHAIR, "file": "nothing", "obj": "mtllib m.mtl\nv 0 0 0\n"},
        {**CHAIR, "file": "unseen", "mtl": "newmtl skin\nKd 1 0 0\nd 0\n"},
    ]
    furniture(tmp_path, *objects)
    assert collect_furniture(tmp_path) == 0
    assert list(listed(tmp_path / "out")) == ["sh3d_chair"]
    out, err = capsys.readouterr()
    assert "left out: 1 thin, 1 transparent, 2 empty; failed: 0;" in out
    assert not errors(err)
    assert [path.name for path in (tmp_path / "out/sweethome3d").glob("*.glb")] == ["sh3d_chair.glb"]
    assert collect_furniture(tmp_path) == 0
    assert ", 0 read now in " in capsys.readouterr().out


def test_a_tilted_card_is_thin(tmp_path):
    glb = Glb()
    glb.node(glb.mesh(card(), glb.material((1, 0, 0))), rotation=[0.27, 0.27, 0.0, 0.92])
    (tmp_path / "in").mkdir()
    glb.write(tmp_path / "in" / "card.glb")
    [entry] = mesh_files(tmp_path / "in", tmp_path, Terms("x", "CC0-1.0", "Ann"), patterns=("*.glb",))
    record, _ = collect_meshes.make_object(entry.origin, entry, tmp_path, max_texture=64)
    assert record["left_out"] == "thin"


def test_a_bad_file_is_one_line_and_tried_again(tmp_path, capsys):
    furniture(tmp_path, {**CHAIR, "obj": "v 0 0 0\nf 0 0 0\n"}, BED)
    assert collect_furniture(tmp_path) == 1
    out, err = capsys.readouterr()
    [line] = errors(err)
    assert "chair.obj: a face names vertex 0" in line
    assert "1 objects in " in out
    assert "failed: 1;" in out
    furniture(tmp_path, CHAIR, BED)
    assert collect_furniture(tmp_path) == 0
    assert len(listed(tmp_path / "out")) == 2
    assert ", 1 read now in " in capsys.readouterr().out


def test_what_is_missing_is_a_warning(tmp_path, capsys):
    furniture(tmp_path, {**CHAIR, "mtl": "newmtl skin\nmap_Kd gone.png\n"})
    assert collect_furniture(tmp_path) == 0
    out, err = capsys.readouterr()
    assert (
        len([line for line in err.replace("\r", "\n").splitlines() if "warning: " in line and "gone.png" in line]) == 1
    )
    assert "1 read now (1 with a warning)" in out


def test_a_stopped_run_says_what_is_there_and_continues(tmp_path, capsys, monkeypatch):
    furniture(tmp_path)

    def stopping(*args, **more):
        rows = iter(list(run(*args, **more)))
        yield next(rows)
        raise KeyboardInterrupt

    run = collect_meshes.run_jobs
    monkeypatch.setattr(collect_meshes, "run_jobs", stopping)
    with pytest.raises(KeyboardInterrupt):
        collect_furniture(tmp_path)
    assert capsys.readouterr().out.startswith("1 objects in ")
    monkeypatch.setattr(collect_meshes, "run_jobs", run)
    [name] = listed(tmp_path / "out")
    first = tmp_path / "out" / "sweethome3d" / f"{name}.glb"
    before = first.stat().st_mtime_ns
    with (tmp_path / "out/sweethome3d/records.jsonl").open("a") as file:
        file.write('{"name": "sh3d_b')  # as a killed process leaves it
    assert collect_furniture(tmp_path) == 0
    assert capsys.readouterr().out.startswith("2 objects in ")
    assert first.stat().st_mtime_ns == before
    assert len(listed(tmp_path / "out")) == 2


def test_a_file_that_was_deleted_and_other_textures_are_made_again(tmp_path, capsys):
    furniture(tmp_path)
    assert collect_furniture(tmp_path) == 0
    (tmp_path / "out/sweethome3d/sh3d_bed.glb").unlink()
    assert collect_furniture(tmp_path) == 0
    assert len(listed(tmp_path / "out")) == 2
    capsys.readouterr()
    assert collect_furniture(tmp_path, "--texture", "64") == 0
    assert ", 2 read now in " in capsys.readouterr().out


def test_gpl_is_left_out_unless_it_is_asked_for(tmp_path, capsys):
    furniture(tmp_path, CHAIR, licence="GNU GPL")
    assert collect_furniture(tmp_path) == 0
    assert "sweethome3d: 1 objects are left out, see --gpl" in capsys.readouterr().err
    assert listed(tmp_path / "out") == {}
    assert collect_furniture(tmp_path, "--gpl") == 0
    assert listed(tmp_path / "out")["sh3d_chair"]["licence"] == "GPL-2.0-or-later"
    names = [source.name for source in collect_meshes.parse_args([str(tmp_path)]).sources]
    assert names == [name for name in SOURCES if name != "sweethome3d_default"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "name the folder to write"),
        (["out", "--sources", "ikea"], "--sources: ikea unknown; valid: sweethome3d, "),
        (["out", "--from", "ikea=."], "--from: ikea unknown"),
        (["out", "--from", "0ad"], "--from 0ad must be NAME=PATH"),
        (["out", "--from", "0ad=gone"], "gone is no folder and no .deb file"),
        (["out", "--sources", "kenney", "--from", "0ad=."], "0ad is not among --sources"),
        (["out", "--sources", "sweethome3d_default"], "is under the GPL.*add --gpl"),
        (["out", "--texture", "8"], "--texture must lie between 16 and 8192, got 8"),
        (["out", "--variants", "0"], "--variants must lie between"),
        (["out", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        collect_meshes.main(args)
    assert not list(tmp_path.iterdir())


def test_the_command_exits_with_2_for_a_wrong_option(tmp_path):
    command = [sys.executable, ROOT / "tools/collect_meshes.py", "out", "--limit", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --limit must be at least 1, got 0\n"


@pytest.mark.parametrize(("name", "said"), [("sweethome3d", "no furniture catalogue"), ("0ad", "no public.zip")])
def test_a_folder_without_the_source_is_one_line(name, said, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert collect(tmp_path / "out", "--sources", name, "--from", f"{name}={tmp_path / 'empty'}") == 1
    [line] = errors(capsys.readouterr().err)
    assert said in line
    (tmp_path / "empty" / "public.zip").write_text("no zip")
    (tmp_path / "empty" / "a.sh3f").write_text("no zip")
    assert collect(tmp_path / "out", "--sources", name, "--from", f"{name}={tmp_path / 'empty'}") == 1
    assert "download it again" in errors(capsys.readouterr().err)[0]


def test_a_missing_package_of_python_is_one_line(tmp_path, monkeypatch, capsys):
    source = replace(SOURCES["kaykit"], needs=("no_such_module", "no-such-package"))
    monkeypatch.setitem(collect_meshes.SOURCES, "kaykit", source)
    (tmp_path / "in").mkdir()
    assert collect(tmp_path / "out", "--sources", "kaykit", "--from", f"kaykit={tmp_path / 'in'}") == 1
    [line] = errors(capsys.readouterr().err)
    assert line.endswith("pip install no-such-package")


def test_a_library_cannot_write_outside_its_folder(tmp_path):
    path = write_library(tmp_path / "package" / "Tiny.sh3f", [CHAIR])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped.obj", "v 0 0 0\n")
        archive.writestr("/escaped.obj", "v 0 0 0\n")
    assert collect_furniture(tmp_path) == 0
    assert [found for found in tmp_path.rglob("escaped.obj") if "Tiny" not in found.parts] == []


# Repositories


@pytest.fixture
def repository(tmp_path):
    """A repository with two objects and a piece of a wall."""
    folder = tmp_path / "origin"
    (folder / "Assets" / "gltf").mkdir(parents=True)
    for name, color in (("mug_red", (1, 0, 0)), ("table_long_broken", (0, 1, 0)), ("wall_corner", (0, 0, 1))):
        box_glb(color).write(folder / "Assets" / "gltf" / f"{name}.glb")
    run = partial(subprocess.run, cwd=folder, check=True, capture_output=True)
    run(["git", "init", "-q"])
    run(["git", "add", "."])
    run(["git", "-c", "user.name=a", "-c", "user.email=a@b.org", "commit", "-qm", "x"])
    return folder


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_repository_is_cloned_once(tmp_path, repository, monkeypatch, capsys):
    source = replace(SOURCES["kaykit"], origin=GitRepositories(repository.as_uri()))
    monkeypatch.setitem(collect_meshes.SOURCES, "kaykit", source)
    assert collect(tmp_path / "out", "--sources", "kaykit", "--variants", "9") == 0
    captions = {name: row["caption"] for name, row in listed(tmp_path / "out").items()}
    assert captions == {"kk_origin_mug_red": "a red mug", "kk_origin_table_long_broken": "a broken long table"}
    assert {row["author"] for row in listed(tmp_path / "out").values()} == {"Kay Lousberg"}
    shutil.rmtree(repository)
    assert collect(tmp_path / "out", "--sources", "kaykit") == 0
    assert ", 0 read now in " in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_repository_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    source = replace(SOURCES["kaykit"], origin=GitRepositories((tmp_path / "gone").as_uri()))
    monkeypatch.setitem(collect_meshes.SOURCES, "kaykit", source)
    assert collect(tmp_path / "out", "--sources", "kaykit") == 1
    [line] = errors(capsys.readouterr().err)
    assert line.startswith("error: kaykit: none of its repositories can be cloned; gone: git clone failed (")
    assert not (tmp_path / "out_downloads" / "kaykit" / "gone").exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_one_of_two_repositories_is_used_and_the_other_named_and_tried_again(tmp_path, repository, monkeypatch, capsys):
    later = tmp_path / "later"
    source = replace(SOURCES["kaykit"], origin=GitRepositories(later.as_uri(), repository.as_uri()))
    monkeypatch.setitem(collect_meshes.SOURCES, "kaykit", source)
    assert collect(tmp_path / "out", "--sources", "kaykit") == 1
    out, err = capsys.readouterr()
    [line] = errors(err)
    assert line.startswith("error: kaykit: later: git clone failed (")
    assert out.startswith("2 objects in ")
    shutil.copytree(repository, later)
    assert collect(tmp_path / "out", "--sources", "kaykit") == 0
    assert "2 duplicate" in capsys.readouterr().out


def test_folders_name_what_files_do_not(tmp_path):
    for name in ("files/models/palm-long/model.glb", "Castle Kit/Models/OBJ format/tower_A.gltf.glb", "building_B.glb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        box_glb().write(tmp_path / name)
    drop = frozenset(("building",))
    entries = mesh_files(tmp_path, tmp_path, Terms("x", "CC0-1.0", "Ann"), patterns=("*.glb",), drop=drop)
    assert {entry.name: (entry.category, entry.caption) for entry in entries} == {
        "x_palm_long": ("", "a long palm"),
        "x_castle_kit_tower_a": ("Castle Kit", "a tower"),
        "x_building_b": ("", "a building"),
    }


# 0 A.D.


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
        (b"PNG", "is no PMD file"),
        (b"PSMD" + bytes([9, 0, 0, 0]) + bytes(8), "is PMD version 9"),
        (pmd((1, 1, 1))[:900], "is truncated"),
        (pmd((1, 1, 1)).replace(bytes([2, 0, 1, 0, 0, 0]), bytes([99, 0, 1, 0, 0, 0]), 1), "vertex that is not there"),
    ],
)
def test_a_broken_pmd_is_one_line(content, said, tmp_path, capsys):
    game = write_game(tmp_path / "game", {"fauna/bear.xml": {}}, {"box.dae": content})
    assert collect(tmp_path / "out", "--sources", "0ad", "--from", f"0ad={game}") == 1
    [line] = errors(capsys.readouterr().err)
    assert said in line
    assert "fauna/bear.xml" in line


# The written files


def rewritten(tmp_path, glb: Glb, **more):
    """A mesh as it was, and as it is after it was written."""
    before = load_mesh(glb.write(tmp_path / "before.glb"))
    write_glb(tmp_path / "after.glb", before, max_texture=more.get("max_texture", 512))
    return before, load_mesh(tmp_path / "after.glb")


def corners(mesh, values) -> np.ndarray:
    """Values at corners, sorted by corner: the order of faces may differ."""
    rows = np.concatenate([mesh.points_F33, mesh.normals_F33, values], axis=-1).reshape(-1, 6 + values.shape[-1])
    rows = rows.round(3) + 0.0
    return rows[np.lexsort(rows.T[::-1])]


def test_colours_positions_and_normals_survive(tmp_path):
    glb = box_glb((0.2, 0.4, 0.6))
    before, after = rewritten(tmp_path, glb)
    np.testing.assert_allclose(corners(after, after.colors_F33), corners(before, before.colors_F33), atol=2e-3)
    shape = box()
    shape["COLOR_0"] = np.linspace(0, 1, 24 * 3, dtype=np.float32).reshape(24, 3)
    glb = Glb()
    glb.node(glb.mesh(shape, glb.material()))
    before, after = rewritten(tmp_path, glb)
    np.testing.assert_allclose(corners(after, after.colors_F33), corners(before, before.colors_F33), atol=2e-3)


def test_normals_that_smooth_an_edge_survive(tmp_path):
    shape = box()
    shape["NORMAL"] = (shape["POSITION"] / np.linalg.norm(shape["POSITION"], axis=1, keepdims=True)).astype(np.float32)
    glb = Glb()
    glb.node(glb.mesh(shape, glb.material((1, 0, 0))))
    before, after = rewritten(tmp_path, glb)
    np.testing.assert_allclose(corners(after, after.colors_F33), corners(before, before.colors_F33), atol=2e-3)


def test_textures_survive_with_their_wrap_and_smaller(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = RED, BLUE
    glb = textured_box(png(pixels), texture={"sampler": 0})
    glb.row("samplers", {"wrapS": 33071, "wrapT": 10497})
    before, after = rewritten(tmp_path, glb, max_texture=32)
    assert after.textures[0].pixels_HWC.shape == (32, 32, 3)
    assert after.textures[0].wrap == before.textures[0].wrap == (CLAMP, "repeat")
    np.testing.assert_array_equal(after.textures[0].pixels_HWC[5, [3, 28]], [RED, BLUE])
    np.testing.assert_allclose(corners(after, after.uvs_F32), corners(before, before.uvs_F32), atol=2e-3)


def test_holes_glass_glow_and_flat_colours_survive(tmp_path):
    glb = Glb()
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 1], pixels[:4, :, 3] = 255, 200
    holed = glb.texture(png(pixels))
    looks = [
        glb.material(texture=holed, alphaMode="MASK", alphaCutoff=0.25),
        glb.material((1, 0, 0, 0.5), alphaMode="BLEND"),
        glb.material((0, 0, 1), emissiveFactor=[0.5, 0.25, 0], emissiveTexture={"index": holed}),
        glb.material((1, 1, 0), extensions={"KHR_materials_unlit": {}}),
    ]
    for number, look in enumerate(looks):
        glb.node(glb.mesh(box(), look), translation=[2 * number, 0, 0])
    glb.json["extensionsUsed"] = ["KHR_materials_unlit"]
    before, after = rewritten(tmp_path, glb)
    for name in ("colors_F33", "glow_F33"):
        np.testing.assert_allclose(
            corners(after, vars(after)[name]), corners(before, vars(before)[name]), atol=2e-3, err_msg=name
        )
    for name in ("cutoff_F", "lit_F"):
        expected, found = (corners(m, np.repeat(vars(m)[name][:, None, None], 3, axis=1)) for m in (before, after))
        np.testing.assert_allclose(found, expected, atol=2e-3, err_msg=name)
    opacities = [corners(mesh, mesh.opacities_F3[..., None]) for mesh in (before, after)]
    np.testing.assert_allclose(opacities[1], opacities[0], atol=2e-3)
    assert sorted(texture.pixels_HWC.shape[2] for texture in after.textures) == [3, 4]


def test_obj_colours_are_those_of_the_source(tmp_path):
    furniture(tmp_path, {**CHAIR, "mtl": "newmtl skin\nKd 0.5 0.25 0.75\n"})
    assert collect_furniture(tmp_path) == 0
    mesh = load_mesh(tmp_path / "out/sweethome3d/sh3d_chair.glb")
    np.testing.assert_allclose(mesh.colors_F33[0, 0], srgb_to_linear(np.array([0.5, 0.25, 0.75])), atol=1e-4)


# Captions


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("bed_double_A", "a double bed"),
        ("coatRackStanding", "a standing coat rack"),
        ("table_long_broken", "a broken long table"),
        ("Apple_2", "an apple"),
        ("stairs", "stairs"),
        ("grass01", "grass"),
        ("unicorn", "a unicorn"),
        ("01", ""),
    ],
)
def test_names_of_files_become_noun_phrases(name, caption):
    assert caption_of_file(name) == caption


@pytest.mark.parametrize(
    ("title", "caption"),
    [
        ("Double French window 3 panes", "a double French window"),
        ("Bed 140x190", "a bed"),
        ("TV", "a TV"),
        ("SUV", "an SUV"),
        ("MP3 base", "an MP3 base"),
        ("Ford Focus", "a Ford Focus"),
        ("Bowl with fruits", "a bowl with fruits"),
        ("Air conditioning - External unit", "an air conditioning"),
        ("Scissors", "scissors"),
        ("Sitting male", "a sitting man"),
    ],
)
def test_titles_of_catalogues_become_noun_phrases(title, caption):
    assert caption_of_title(title) == caption


@pytest.mark.parametrize(
    ("actor", "noun", "caption"),
    [
        ("fauna/horse_celtic.xml", "", "a Celtic horse"),
        ("fauna/arctic_wolf.xml", "", "an arctic wolf"),
        ("flora/trees/palm_date_2.xml", "tree", "a date palm tree"),
        ("structures/athenians/siege_ram.xml", "", "an Athenian siege ram"),
        ("geology/stonemine_granite_greek.xml", "", "a granite rock"),
        ("props/special/eyecandy/hay_cart.xml", "", "a hay cart"),
    ],
)
def test_actors_become_noun_phrases(actor, noun, caption):
    assert caption_of_actor(actor, noun=noun) == caption


def test_the_table_of_sources_is_whole(capsys):
    assert {source.terms.prefix for source in SOURCES.values()} == set(
        dict.fromkeys(source.terms.prefix for source in SOURCES.values())
    )
    assert len({source.terms.prefix for source in SOURCES.values()}) == len(SOURCES)
    assert all(isinstance(source, Source) and source.credit for source in SOURCES.values())
    assert collect_meshes.main(["--list"]) == 0
    assert capsys.readouterr().out.count("\n") == len(SOURCES)
