"""Collecting free meshes: from packages, folders and repositories, with captions, licences, and no object twice."""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from datasets.meshes.collecting.download import DebianPackage, GitRepositories
from datasets.meshes.collecting.objects import split_of
from datasets.meshes.collecting.readers import Terms, mesh_files
from datasets.meshes.loading import load_mesh
from datasets.meshes.scene import srgb_to_linear
from datasets.meshes.sources import LICENCE_TEXTS, SOURCES
from tests.conftest import ROOT
from tests.tiny_meshes import Glb, box_glb, card
from tests.tiny_sources import box_obj, build_deb, collect, errors, listed, pmd, sides, write_game, write_library
from tools import collect_meshes
from utils.errors import ConfigError, DataError
from utils.script import run_script

pytest.importorskip("trimesh")  # before the processes are forked, so that they need not import it

CHAIR = {"file": "chair", "name": "Wooden chair", "category": "Office", "creator": "Ann", "obj": box_obj((2, 4, 1))}
BED = {"file": "bed", "name": "Bed 140x190", "category": "Bedroom", "creator": "Bob & Cy", "obj": box_obj((4, 1, 3))}
GREEN_MTL = "newmtl skin\nKd 0 1 0\n"


def furniture(tmp_path, *objects, **more):
    """A folder with one library, as --from takes it."""
    write_library(tmp_path / "package" / "Tiny.sh3f", list(objects) or [CHAIR, BED], **more)
    return f"sweethome3d={tmp_path / 'package'}"


def collect_furniture(tmp_path, *more) -> int:
    return collect(tmp_path / "out", "--sources", "sweethome3d", "--from", f"sweethome3d={tmp_path / 'package'}", *more)


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
    assert "| `sweethome3d` | 2 | [CC-BY-3.0](https://creativecommons.org/licenses/by/3.0/) |" in page
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


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_damaged_package_is_one_line(tmp_path, capsys):
    (tmp_path / "bad.deb").write_text("no package")
    assert collect(tmp_path / "out", "--sources", "sweethome3d", "--from", f"sweethome3d={tmp_path / 'bad.deb'}") == 1
    [line] = errors(capsys.readouterr().err)
    assert line.startswith("error: sweethome3d: dpkg-deb --extract failed (")
    assert line.endswith("bad.deb may be damaged; download it again")


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
        (["out", "--from", "0ad="], "--from 0ad= must be NAME=PATH"),
        (["out", "--from", "0ad=.", "0ad=.."], "0ad has two paths, . and .."),
        (["out", "--downloads", "out/kaykit"], "--downloads out/kaykit is in the folder of the objects, out; choose"),
        (["out", "--from", "0ad=gone"], "gone is neither a folder nor a .deb file"),
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


def test_the_command_exits_with_2_for_a_wrong_option(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collect_meshes.py", "out", "--limit", "0"])
    with pytest.raises(SystemExit) as end:
        run_script(collect_meshes.main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: --limit must be at least 1, got 0\n"


def test_two_runs_cannot_use_the_same_downloads(tmp_path):
    furniture(tmp_path)
    (tmp_path / "out_downloads").mkdir()
    script = "import sys, time; from utils.files import sole_use; from pathlib import Path"
    script += "\nwith sole_use(Path(sys.argv[1]), option='x'): print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", script, tmp_path / "out_downloads"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            with pytest.raises(DataError, match=r"--downloads=.*out_downloads is used by another run"):
                collect_furniture(tmp_path)
        finally:
            other.kill()


@pytest.mark.parametrize(
    ("name", "said"), [("sweethome3d", "no furniture catalogue"), ("0ad", "neither public.zip nor a folder")]
)
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


@pytest.mark.parametrize(
    ("source", "file", "piece", "caption"),
    [
        ("kaykit", "KayKit-X/addons/x/Assets/gltf/table_round_A.gltf", "wall_half.gltf", "a round table"),
        ("kaykit", "KayKit-X/addons/x/Assets/gltf/bottle_C_green.gltf.glb", "floor_dirt.gltf.glb", "a green bottle"),
        ("quaternius", "showcase/public/glb/crops_pack/Tomato_1.glb", "Platform_2x.glb", "a tomato"),
        ("kenney", "Free/Kenny NL Assets/Kit (1.0)/Models/OBJ format/chair.obj", "road_bend.obj", "a chair"),
        ("kenney", "Free/Kenny NL Assets/Kit (1.0)/Models/GLTF format/key.glb", "blockHalf.glb", "a key"),
        ("market", "market-assets/files/models/grapes/model.gltf", "../model-wall.gltf", "grapes"),
        ("mmmm", "mmmm/collada/obj_cart1.dae", "obj_sidewalk2.dae", "a cart"),
    ],
)
def test_repositories_are_read_in_their_layouts(source, file, piece, caption, tmp_path):
    for path in (tmp_path / file, (tmp_path / file).parent / piece):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    [entry] = SOURCES[source].reader(tmp_path, tmp_path, SOURCES[source].terms)
    assert (entry.caption, entry.origin) == (caption, str(tmp_path / file))
    assert (entry.licence, entry.author) == (SOURCES[source].terms.licence, SOURCES[source].terms.author)


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


def test_obj_colours_are_those_of_the_source(tmp_path):
    furniture(tmp_path, {**CHAIR, "mtl": "newmtl skin\nKd 0.5 0.25 0.75\n"})
    assert collect_furniture(tmp_path) == 0
    mesh = load_mesh(tmp_path / "out/sweethome3d/sh3d_chair.glb")
    np.testing.assert_allclose(mesh.colors_F33[0, 0], srgb_to_linear(np.array([0.5, 0.25, 0.75])), atol=1e-4)


def test_the_table_of_sources_is_whole(capsys):
    assert len({source.terms.prefix for source in SOURCES.values()}) == len(SOURCES)
    assert all(source.credit and source.terms.licence in LICENCE_TEXTS for source in SOURCES.values())
    assert collect_meshes.main(["--list"]) == 0
    assert capsys.readouterr().out.count("\n") == len(SOURCES)
