"""The command that reconstructs objects from folders of views."""

import json
from dataclasses import replace

import pytest
import torch
import trimesh

from models.gaussians.files import read_ply
from pipelines.reconstruction.fitting.storage import read_field
from tests.tiny_views import edit, sphere_views, write_transforms
from tools import reconstruct
from utils.errors import ConfigError, DataError

RADIUS = 0.5
MESH = ["--grid", "24", "--texture", "64", "--faces", "400"]
GS = ["--method", "gs", "num_gaussians=200", "num_steps=20", "hull_grid=24", *MESH]
NEUS = [
    "--method", "neus", "num_steps=40", "hull_grid=24", "rays_per_step=256", "samples_per_ray=8",
    "resolutions=[8,24]", "distance_resolutions=[8,24]", "channels=2", "hidden=16", *MESH,
]  # fmt: skip
FEW = ["--without", "turntable", "html"]


@pytest.fixture(scope="module", autouse=True)
def _small_pictures():
    """The command has no options for the pictures of the mesh and of the turntable, which are large."""
    small = {"mesh_views": 12, "mesh_view_size": 96, "turntable_frames": 6, "turntable_size": 64}
    assets_of = reconstruct.assets_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruct, "assets_of", lambda options: replace(assets_of(options), **small))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_transforms(
        tmp_path_factory.mktemp("views") / "ball", sphere_views(num_views=8, size=32, radius=RADIUS)
    )


@pytest.fixture(scope="module")
def splats(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("gs")
    assert reconstruct.main([str(folder), "--out", str(out), *GS]) == 0
    return out / "ball"


def test_gaussians_and_a_mesh_of_a_ball(splats):
    assert {path.name for path in splats.iterdir()} == {
        "gaussians.ply", "gaussians.splat", "viewer.html", "mesh.glb", "turntable.mp4", "fit.png", "result.json",
    }  # fmt: skip
    radii = read_ply(splats / "gaussians.ply").means_BN3[0].norm(dim=-1)
    assert float(radii.mean()) == pytest.approx(RADIUS, abs=0.06)
    mesh = trimesh.load(splats / "mesh.glb", force="mesh")
    assert mesh.bounds[1].max() == pytest.approx(RADIUS, abs=0.08)
    result = json.loads((splats / "result.json").read_text())
    assert result["method"]["type"] == "gs"
    assert result["method"]["num_steps"] == 20
    assert len(result["views"]) == 8
    assert result["scale"] == 1


def test_finished_folders_are_kept_and_others_are_made_again(folder, tmp_path, capsys):
    command = [
        str(folder),
        "--out",
        str(tmp_path),
        *[word for word in GS if word != "num_steps=20"],
        "num_steps=2",
        *FEW,
        "glb",
    ]
    assert reconstruct.main(command) == 0
    written = tmp_path / "ball" / "gaussians.ply"
    before = written.stat().st_mtime_ns
    assert reconstruct.main(command) == 0
    assert "finished before, kept" in capsys.readouterr().out
    assert written.stat().st_mtime_ns == before
    (tmp_path / "ball" / "gaussians.splat").unlink()
    assert reconstruct.main(command) == 0
    assert (tmp_path / "ball" / "gaussians.splat").is_file()


def test_a_field_can_be_rendered_again(folder, tmp_path):
    assert reconstruct.main([str(folder), "--out", str(tmp_path), *NEUS, *FEW]) == 0
    model, move = read_field(tmp_path / "ball" / "field.safetensors")
    views = sphere_views(num_views=8, size=32, radius=RADIUS)
    drawn = model.render(views.c2w_V44, views.K_V33, size=views.size, background=1.0)
    error = (drawn.colors_BV3HW[0] - views.over(1.0)).square().mean()
    assert -10 * float(error.log10()) > 20
    assert move.scale == 1
    mesh = trimesh.load(tmp_path / "ball" / "mesh.glb", force="mesh")
    assert mesh.bounds[1].max() == pytest.approx(RADIUS, abs=0.08)


def test_the_result_is_in_the_world_of_the_views(tmp_path):
    """A scene that is ten times as large, and elsewhere, gives Gaussians there."""
    folder = write_transforms(tmp_path / "far", sphere_views(num_views=8, size=32, radius=RADIUS))

    def enlarge(content):
        for frame in content["frames"]:
            for row, shift in zip(frame["transform_matrix"], (3.0, -4.0, 5.0), strict=False):
                row[3] = 10 * row[3] + shift

    edit(folder, enlarge)
    assert reconstruct.main([str(folder), "--out", str(tmp_path / "out"), *GS, *FEW]) == 0
    means = read_ply(tmp_path / "out" / "far" / "gaussians.ply").means_BN3[0]
    middle = torch.tensor([3.0, -4.0, 5.0])
    assert torch.allclose((means.amax(0) + means.amin(0)) / 2, middle, atol=0.8)
    assert float((means - middle).norm(dim=-1).mean()) == pytest.approx(10 * RADIUS, abs=0.6)
    bounds = trimesh.load(tmp_path / "out" / "far" / "mesh.glb", force="mesh").bounds
    assert bounds.mean(axis=0) == pytest.approx([-4.0, 5.0, 3.0], abs=0.8)  # y up, front along +z: (y, z, x)


def test_a_broken_folder_does_not_stop_the_others(folder, tmp_path, capsys):
    broken = edit(
        write_transforms(tmp_path / "broken"), lambda content: content["frames"][0].update(transform_matrix=[[1]])
    )
    few = ["--method", "gs", "num_gaussians=200", "num_steps=2", "hull_grid=24", *FEW, "glb"]
    code = reconstruct.main([str(broken), str(folder), "--out", str(tmp_path / "out"), *few])
    printed = capsys.readouterr()
    assert code == 1
    assert printed.err.count("error: ") == 1
    assert "broken" in printed.err
    assert "1 reconstructed, 1 failed" in printed.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_step=3"], r"num_step is unknown to gs; did you mean num_steps"),
        (["num_steps=0"], r"num_steps must be at least 1"),
        (["hull_tolerance=0.7"], r"hull_tolerance must lie in \[0, 0.5\)"),
        (["--background", "2"], r"background"),
    ],
)
def test_wrong_options_are_one_line(folder, tmp_path, words, message):
    with pytest.raises((ConfigError, DataError), match=message):
        reconstruct.main([str(folder), "--out", str(tmp_path), "--method", "gs", *words])
    assert not list(tmp_path.iterdir())


def test_a_folder_must_be_given(tmp_path):
    with pytest.raises(ConfigError, match="no folder of views"):
        reconstruct.main(["num_steps=3", "--method", "gs", "--out", str(tmp_path)])


def test_inputs_of_one_name_stay_apart(tmp_path):
    names = reconstruct.names_of([tmp_path / "a" / "views", tmp_path / "b" / "views"])
    assert list(names) == ["a_views", "b_views"]
    with pytest.raises(DataError, match="two inputs would be written to"):
        reconstruct.names_of([tmp_path / "a" / "x", tmp_path / "a" / "x"])
