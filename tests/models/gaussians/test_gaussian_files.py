"""Gaussians on disk: what is written is what viewers expect, comes back, and broken files are refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from models.gaussians.files import read_ply, read_splat, write_ply, write_splat
from models.gaussians.harmonics import SH_C0
from models.gaussians.ply import PROPERTIES
from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians, rotation_formula
from tests.models.gaussians.test_splatting import random_gaussians
from utils.cameras import intrinsics, orbit_cameras
from utils.errors import DataError


def with_quats(gaussians: Gaussians, length: float, **changes) -> Gaussians:
    return dataclasses.replace(gaussians, quats_BN4=gaussians.quats_BN4 * length, **changes)


def table_of(path) -> np.ndarray:
    content = path.read_bytes()
    start = content.index(b"end_header\n") + len(b"end_header\n")
    return np.frombuffer(content[start:], dtype="<f4").reshape(-1, len(PROPERTIES))


def header_of(path) -> list[str]:
    return path.read_bytes().split(b"end_header\n")[0].decode().splitlines()


@pytest.mark.parametrize("length", [1.0, 0.6, 0.01, 1.7])
def test_a_ply_comes_back_with_the_same_covariance(tmp_path, length):
    gaussians = with_quats(random_gaussians(300), length)
    write_ply(tmp_path / "a.ply", gaussians)
    back = read_ply(tmp_path / "a.ply")
    for name in ("means_BN3", "opacities_BN1", "colors_BN3"):
        torch.testing.assert_close(getattr(back, name), getattr(gaussians, name), atol=2e-6, rtol=0)
    torch.testing.assert_close(back.quats_BN4.norm(dim=-1), torch.ones(1, 300), atol=1e-6, rtol=0)
    # float32 logarithms of the scales: about 1e-6 relative
    torch.testing.assert_close(back.covariances(), gaussians.covariances(), atol=1e-7, rtol=1e-4)


def test_true_rotations_are_kept_as_they_are():
    gaussians = random_gaussians(20)
    kept = gaussians.with_unit_quats()
    torch.testing.assert_close(kept.quats_BN4, gaussians.quats_BN4, atol=1e-6, rtol=0)
    assert torch.equal(kept.scales_BN3, gaussians.scales_BN3)


@pytest.mark.parametrize("length", [0.1, 0.7, 1.4])
def test_what_replaces_a_bent_frame_is_a_rotation(length):
    fixed = with_quats(random_gaussians(200), length).with_unit_quats()
    R_1N33 = rotation_formula(fixed.quats_BN4.double())
    torch.testing.assert_close(R_1N33.det(), torch.ones(1, 200).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(R_1N33 @ R_1N33.mT, torch.eye(3).double().expand(1, 200, 3, 3), atol=1e-5, rtol=0)


def test_an_odd_order_of_scales_mirrors_nothing():
    """Sorted by size, the axes of this one are a mirrored frame, of which no quaternion can be made."""
    scales = torch.tensor([[[0.1, 0.2, 0.05]]])
    one = dataclasses.replace(random_gaussians(1), quats_BN4=torch.tensor([[[0.7, 0.0, 0.0, 0.0]]]), scales_BN3=scales)
    fixed = one.with_unit_quats()
    torch.testing.assert_close(fixed.covariances(), torch.diag_embed(scales**2), atol=1e-8, rtol=1e-5)
    torch.testing.assert_close(fixed.quats_BN4.norm(), torch.tensor(1.0))


def test_the_ply_says_what_viewers_expect(tmp_path):
    one = Gaussians(
        means_BN3=torch.tensor([[[0.1, -0.2, 0.3]]]),
        opacities_BN1=torch.tensor([[[0.75]]]),
        scales_BN3=torch.tensor([[[0.01, 0.02, 0.5]]]),
        quats_BN4=torch.tensor([[[0.6, 0.8, 0.0, 0.0]]]),
        colors_BN3=torch.tensor([[[1.0, 0.5, 0.0]]]),
    )
    write_ply(tmp_path / "one.ply", one)
    lines = header_of(tmp_path / "one.ply")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "element vertex 1" in lines
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    assert [line for line in lines if line.startswith("property")] == [f"property float {name}" for name in names]
    edge = 0.5 / SH_C0
    logs = [math.log(0.01), math.log(0.02), math.log(0.5)]
    expected = [0.1, -0.2, 0.3, 0, 0, 0, edge, 0, -edge, math.log(3), *logs, 0.6, 0.8, 0, 0]
    np.testing.assert_allclose(table_of(tmp_path / "one.ply")[0], expected, atol=1e-6)


def test_opacities_of_zero_and_one_stay_finite(tmp_path):
    gaussians = random_gaussians(2)
    gaussians = dataclasses.replace(gaussians, opacities_BN1=torch.tensor([[[0.0], [1.0]]]))
    write_ply(tmp_path / "a.ply", gaussians)
    assert np.isfinite(table_of(tmp_path / "a.ply")).all()
    torch.testing.assert_close(read_ply(tmp_path / "a.ply").opacities_BN1, gaussians.opacities_BN1, atol=2e-6, rtol=0)


def test_a_splat_is_32_bytes_each_and_looks_the_same(tmp_path):
    gaussians = with_quats(random_gaussians(200, scale=0.1), 0.7)
    write_splat(tmp_path / "a.splat", gaussians)
    assert (tmp_path / "a.splat").stat().st_size == 32 * int(((gaussians.opacities_BN1 * 255).round() > 0).sum())
    back = read_splat(tmp_path / "a.splat")
    importance = back.scales_BN3.prod(-1) * back.opacities_BN1[..., 0]
    assert bool((importance.diff() <= 0.01 * importance.max()).all())  # opacities were rounded after sorting
    camera = {"size": (64, 64), "background": 0.5, "backend": "torch"}
    views = [
        render(scene, orbit_cameras(num_views=2, elevation_deg=20, radius=2.0)[None], intrinsics(39.6, 64), **camera)
        for scene in (gaussians, back)
    ]
    # Bytes: half a level of colour, and rotations to about half a degree.
    assert float((views[0].colors_BV3HW - views[1].colors_BV3HW).square().mean()) < 1e-5


def test_rotations_in_a_splat_have_a_positive_w(tmp_path):
    still = torch.tensor([-1.0, 0, 0, 0]).expand(1, 20, 4)
    write_splat(tmp_path / "a.splat", dataclasses.replace(random_gaussians(20), quats_BN4=still))
    rows = np.fromfile(tmp_path / "a.splat", dtype=np.uint8).reshape(-1, 32)
    assert (rows[:, 28:] == (255, 128, 128, 128)).all()


def test_what_cannot_be_seen_is_not_in_a_splat(tmp_path):
    gaussians = random_gaussians(3)
    opacities = torch.tensor([[[0.5], [0.001], [0.9]]])
    write_splat(tmp_path / "a.splat", dataclasses.replace(gaussians, opacities_BN1=opacities))
    assert (tmp_path / "a.splat").stat().st_size == 64
    with pytest.raises(DataError, match="every Gaussian is transparent"):
        write_splat(tmp_path / "b.splat", dataclasses.replace(gaussians, opacities_BN1=0 * opacities))
    assert not (tmp_path / "b.splat").exists()


def test_values_that_nothing_draws_are_not_written(tmp_path):
    good = random_gaussians(4)
    for name, value, message in (
        ("opacities_BN1", 1.3, r"opacities are in \[1.3, 1.3\], but must be in \[0, 1\]"),
        ("means_BN3", float("nan"), "means are not finite"),
        ("scales_BN3", 0.0, "the smallest scale is 0, but scales must be positive"),
    ):
        bad = dataclasses.replace(good, **{name: torch.full_like(getattr(good, name), value)})
        with pytest.raises(DataError, match=message):
            write_ply(tmp_path / "bad.ply", bad)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def good_ply(tmp_path):
    write_ply(tmp_path / "good.ply", random_gaussians(5))
    return tmp_path / "good.ply"


def refused(path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_ply(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_broken_files_are_refused(tmp_path, good_ply):
    content = good_ply.read_bytes()
    bad = tmp_path / "bad.ply"
    refused(bad, content[:-30], "truncated, it has only 4 of 5 Gaussians")
    refused(bad, content[:80], "truncated, its header has no end")
    refused(bad, b"x y z\n1 2 3\n", "not a .ply file")
    refused(bad, b"", "not a .ply file")
    refused(bad, content.replace(b"property float rot_3\n", b""), "property rot_3 is missing")
    refused(
        bad, content.replace(b"binary_little_endian", b"binary_middle_endian"), "its format is binary_middle_endian"
    )
    text = content.split(b"end_header\n")[0].replace(b"binary_little_endian", b"ascii") + b"end_header\n"
    refused(bad, text + 5 * b"1 2 3\n", "rows of element vertex have 3 numbers, but the header lists 17 properties")
    refused(bad, text + 4 * b"1 2 3\n", "truncated, it has only 4 of 5 Gaussians")
    refused(bad, text + 5 * b"one two\n", "a row of element vertex is not numbers")
    refused(bad, content.replace(b"vertex 5", b"vertex 0"), "contains no Gaussians")
    refused(bad, content.replace(b"float rot_3", b"list uchar int rot_3"), "is unknown")
    camera = b"element camera 1\nproperty float fov\n"
    refused(bad, content.replace(b"element vertex", camera + b"element vertex"), "only 4 of 5 Gaussians")
    refused(
        bad, content.replace(b"element vertex", b"element camera x\n" + b"element vertex"), "no number of rows of e"
    )
    elsewhere = content.replace(b"property float rot_3\n", camera + b"property float rot_3\n")
    refused(bad, elsewhere, "property rot_3 is missing")
    refused(bad, content.replace(b"vertex 5", b"vertex 99999999999999"), "truncated, it has only 5 of 99999999999999")
    for count in (b"", b" -5", b" 1_5", b" 9" + 5000 * b"9"):
        line = b"element vertex" + count + b"\n"
        refused(bad, content.replace(b"element vertex 5\n", line), r"no number of Gaussians \(element vertex\)")
    refused(bad, content.replace(b"element vertex 5\n", b""), "its header has no number of Gaussians")
    with pytest.raises(DataError, match="no such file"):
        read_ply(tmp_path / "missing.ply")


def test_a_mesh_is_refused(tmp_path):
    import trimesh

    trimesh.creation.box().export(tmp_path / "box.ply")
    refused(tmp_path / "box.ply", (tmp_path / "box.ply").read_bytes(), "a mesh or a point cloud")
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "points.ply")
    refused(tmp_path / "points.ply", (tmp_path / "points.ply").read_bytes(), "a mesh or a point cloud")


def test_values_out_of_range_are_refused(tmp_path, good_ply):
    content = good_ply.read_bytes()
    start = content.index(b"end_header\n") + len(b"end_header\n")
    for name, value, message in (
        ("opacity", 1e4, r"opacity=1e\+04 of Gaussian 2 is out of range .* before the sigmoid"),
        ("scale_1", 90.0, "scale_1=90 of Gaussian 2 is out of range .* before the exponential"),
        ("x", np.nan, "x of Gaussian 2 is not finite"),
        ("rot_0", np.inf, "rot_0 of Gaussian 2 is not finite"),
    ):
        table = table_of(good_ply).copy()
        table[2, PROPERTIES.index(name)] = value
        refused(tmp_path / "bad.ply", content[:start] + table.tobytes(), message)
    table = table_of(good_ply).copy()
    table[1, -4:] = 0
    refused(tmp_path / "bad.ply", content[:start] + table.tobytes(), "all zero")


def test_a_ply_that_seems_to_be_activated_already_is_warned_of(tmp_path, good_ply, caplog):
    content = good_ply.read_bytes()
    start = content.index(b"end_header\n") + len(b"end_header\n")
    table = table_of(good_ply).copy()
    for name in ("opacity", "scale_0", "scale_1", "scale_2"):
        column = table[:, PROPERTIES.index(name)]
        column[:] = 1 / (1 + np.exp(-column)) if name == "opacity" else np.exp(column)
    (tmp_path / "activated.ply").write_bytes(content[:start] + table.tobytes())
    read_ply(good_ply)
    assert not caplog.records
    read_ply(tmp_path / "activated.ply")
    [message] = [record.getMessage() for record in caplog.records]
    assert "activated.ply: opacities seem to be after the sigmoid" in message
    assert "\n" not in message


def test_a_ply_of_another_program_is_read(tmp_path, good_ply):
    """Other orders and types of properties, view-dependent colour, quaternions of any length."""
    names = [*reversed(PROPERTIES), "f_rest_0"]
    table = np.zeros(5, dtype=[(name, "<f8" if name == "x" else "<f4") for name in names])
    for index, name in enumerate(PROPERTIES):
        table[name] = table_of(good_ply)[:, index] * (3 if name.startswith("rot") else 1)
    lines = ["ply", "format binary_little_endian 1.0", "element vertex 5"]
    lines += [f"property {'double' if name == 'x' else 'float'} {name}" for name in names] + ["end_header", ""]
    (tmp_path / "other.ply").write_bytes("\n".join(lines).encode() + table.tobytes())
    ours, other = read_ply(good_ply), read_ply(tmp_path / "other.ply")
    assert other.tensors().keys() == ours.tensors().keys()
    for name, values in ours.tensors().items():
        torch.testing.assert_close(other.tensors()[name], values, atol=1e-6, rtol=1e-6)


def test_a_broken_splat_is_refused(tmp_path):
    (tmp_path / "a.splat").write_bytes(b"0" * 33)
    with pytest.raises(DataError, match="33 bytes are not a multiple of the 32 bytes"):
        read_splat(tmp_path / "a.splat")
    small = "the smallest scale is 0, but scales must be positive"
    for content, what in ((b"\xff" * 320, "means are not finite"), (bytes(320), small)):
        (tmp_path / "a.splat").write_bytes(content)
        with pytest.raises(DataError, match=f"a.splat: {what}; if it is a .splat file, copy or export it again"):
            read_splat(tmp_path / "a.splat")
