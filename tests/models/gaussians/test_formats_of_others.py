"""Files of other programs: .spz and glTF, hand-made and by round trip; .ply in all its forms."""

import dataclasses
import gzip
import json
import math
import struct

import numpy as np
import pytest
import torch

from datasets.meshes.scene import Y_UP_TO_Z_UP
from models.gaussians.files import (
    read_gaussians,
    read_gltf,
    read_ply,
    read_spz,
    write_gltf,
    write_ply,
    write_splat,
    write_spz,
)
from models.gaussians.harmonics import SH_C0
from models.gaussians.ply import PROPERTIES
from models.gaussians.scene import Gaussians, rotation_formula
from models.gaussians.spz import HEADER, MAGIC
from tests.models.gaussians.test_splatting import random_gaussians
from utils.errors import DataError


def with_harmonics(num: int, degree: int) -> Gaussians:
    generator = torch.Generator().manual_seed(3)
    rest = 0.4 * torch.rand(1, num, degree * (degree + 2), 3, generator=generator) - 0.2
    return dataclasses.replace(random_gaussians(num), harmonics_BNK3=rest if degree else None)


def close(found: Gaussians, wanted: Gaussians, **tolerances: float) -> None:
    for name in ("means_BN3", "opacities_BN1", "colors_BN3", "harmonics_BNK3"):
        if getattr(wanted, name) is None:
            assert getattr(found, name) is None
            continue
        atol = tolerances.get(name, 2e-6)
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=atol, rtol=0, msg=name)
    largest = float(wanted.covariances().abs().max())
    atol = tolerances.get("covariances", 1e-5) * largest
    torch.testing.assert_close(found.covariances(), wanted.covariances(), atol=atol, rtol=0)


# What the bytes of .spz can hold: 20 bits behind the point, 1/255 and 1/135 of a colour, 1/16 of a logarithm (3 % of a
# scale, 6 % of a variance), 1/511 of a quaternion's number, 1/128 of a coefficient; half of each by rounding. Turning
# the harmonics mixes the errors of a degree.
SPZ = {
    "means_BN3": 1e-6, "opacities_BN1": 0.51 / 255, "colors_BN3": 0.51 * SH_C0 / (0.15 * 255), "covariances": 0.08,
    "harmonics_BNK3": 0.012,
}  # fmt: skip


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("write", "read", "tolerances"),
    [(write_ply, read_ply, {}), (write_gltf, read_gltf, {}), (write_spz, read_spz, SPZ)],
)
def test_gaussians_come_back(tmp_path, write, read, tolerances, degree):
    gaussians = with_harmonics(300, degree)
    write(tmp_path / "a.any", gaussians)
    found = read(tmp_path / "a.any")
    close(found, gaussians, **tolerances)
    close(read_gaussians(tmp_path / "a.any"), found)


def spz(*, version: int, position: bytes, rotation: bytes, degree: int = 0, flags: int = 0, rest: bytes = b"") -> bytes:
    """One Gaussian: opacity 51/255, colour bytes 127.5 + 0.15 * 255 * x, scales exp(-5), exp(-4), exp(-3)."""
    head = struct.pack("<4sIIBBBB", b"NGSP", version, 1, degree, 12, flags, 0)
    return gzip.compress(head + position + bytes([51]) + bytes([204, 128, 51]) + bytes([80, 96, 112]) + rotation + rest)


HALF = math.sqrt(0.5)
# x = 1.5, y = -2, z = 0.25 with 12 bits behind the point: 6144, -8192, 1024
FIXED = (6144).to_bytes(3, "little") + (-8192).to_bytes(3, "little", signed=True) + (1024).to_bytes(3, "little")
HALFS = np.array([1.5, -2, 0.25], dtype="<f2").tobytes()
# a quarter turn about x: (x, y, z, w) = (HALF, 0, 0, HALF), w derived; as bytes 127.5 + 127.5 x
FIRST = bytes([round(127.5 + 127.5 * HALF), 128, 128])
# the largest is x, number 0; then y, z, w with ten bits each, w = HALF is 511
SMALLEST = (511).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("version", "position", "rotation"), [(1, HALFS, FIRST), (2, FIXED, FIRST), (3, FIXED, SMALLEST)]
)
def test_the_bytes_of_an_spz_mean_what_its_specification_says(tmp_path, version, position, rotation):
    (tmp_path / "one.spz").write_bytes(spz(version=version, position=position, rotation=rotation))
    one = read_spz(tmp_path / "one.spz")
    # from right, up, back to the world: front z is x, right x is y, up y is z
    torch.testing.assert_close(one.means_BN3, torch.tensor([[[0.25, 1.5, -2.0]]]))
    assert float(one.opacities_BN1) == pytest.approx(0.2)
    colors = [(byte / 255 - 0.5) / 0.15 * SH_C0 + 0.5 for byte in (204, 128, 51)]
    torch.testing.assert_close(one.colors_BN3[0, 0], torch.tensor(colors).clamp(0, 1))
    # a quarter turn about the file's x: its axes y and z are exchanged
    axes = torch.from_numpy(Y_UP_TO_Z_UP).float() @ torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    wanted = axes @ torch.diag(torch.tensor([-10.0, -8.0, -6.0]).exp()) @ axes.T
    torch.testing.assert_close(one.covariances()[0, 0], wanted, atol=0.02 * float(wanted.max()), rtol=0)


def test_an_spz_is_written_byte_by_byte_as_specified(tmp_path):
    turn = torch.from_numpy(Y_UP_TO_Z_UP).float()
    one = Gaussians(
        means_BN3=(turn @ torch.tensor([1.5, -2.0, 0.25]))[None, None],
        opacities_BN1=torch.tensor([[[0.2]]]),
        scales_BN3=torch.tensor([[[-5.0, -4.0, -3.0]]]).exp(),
        quats_BN4=torch.tensor([[[1.0, 0, 0, 0]]]),
        colors_BN3=torch.tensor([[[1.0, 0.5, 0.0]]]),
    )
    write_spz(tmp_path / "one.spz", one)
    content = gzip.decompress((tmp_path / "one.spz").read_bytes())
    magic, version, count, degree, bits, flags, reserved = HEADER.unpack(content[:16])
    assert (magic, version, count, degree, flags, reserved) == (MAGIC, 3, 1, 0, 0, 0)
    fixed = [int.from_bytes(content[16 + 3 * k : 19 + 3 * k], "little", signed=True) / 2**bits for k in range(3)]
    assert fixed == [1.5, -2.0, 0.25]
    assert content[25] == 51
    assert list(content[26:29]) == [round(255 * (0.15 * x / SH_C0 + 0.5)) for x in (0.5, 0.0001, -0.5)]
    assert list(content[29:32]) == [80, 96, 112]
    assert len(content) == 36


def test_an_spz_of_version_4_is_that_of_version_3_in_another_container(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    write_spz(tmp_path / "three.spz", with_harmonics(50, 1))
    content = gzip.decompress((tmp_path / "three.spz").read_bytes())
    degree, bits = content[12], content[13]
    arrays, start = [], HEADER.size
    for width in (9, 1, 3, 3, 4, 9):
        arrays.append(content[start : start + 50 * width])
        start += 50 * width
    packed = [zstandard.ZstdCompressor().compress(array) for array in arrays]
    head = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 50, degree, bits, 0, len(arrays), 40)
    table = b"".join(struct.pack("<QQ", len(part), len(array)) for part, array in zip(packed, arrays, strict=True))
    (tmp_path / "four.spz").write_bytes(head + bytes(8) + table + b"".join(packed))
    close(read_gaussians(tmp_path / "four.spz"), read_spz(tmp_path / "three.spz"))
    (tmp_path / "four.spz").write_bytes(head + bytes(8) + table + b"".join(packed)[:-9])
    with pytest.raises(DataError, match="truncated"):
        read_spz(tmp_path / "four.spz")


def test_large_scenes_have_fewer_bits_behind_the_point(tmp_path):
    far = dataclasses.replace(random_gaussians(20), means_BN3=3000 * random_gaussians(20).means_BN3)
    write_spz(tmp_path / "far.spz", far)
    torch.testing.assert_close(read_spz(tmp_path / "far.spz").means_BN3, far.means_BN3, atol=3e-4, rtol=0)
    with pytest.raises(DataError, match=r"a position of .* does not fit the format"):
        write_spz(tmp_path / "b.spz", dataclasses.replace(far, means_BN3=1e5 * far.means_BN3))


def test_broken_spz_files_are_refused(tmp_path, caplog):
    path = tmp_path / "bad.spz"
    good = spz(version=3, position=FIXED, rotation=SMALLEST)
    short = gzip.compress(gzip.decompress(good)[:-3])
    newer = struct.pack("<4sII", MAGIC, 4, 1) + bytes(40)
    head = gzip.decompress(good)
    for content, message in (
        (short, "truncated, it has only 0 of 1 Gaussians"),
        (good[: len(good) // 2], "truncated|damaged"),
        (newer, "version 4 needs the package zstandard|truncated, it has only 0 of 1"),
        (newer[:4] + struct.pack("<I", 5) + newer[8:], "a .spz of version 5; versions 1 to 4 are read"),
        (newer[:20], "truncated, its header has no end"),
        (gzip.compress(head[:4] + struct.pack("<I", 9) + head[8:]), "version 9; versions 1 to 3 are read"),
        (gzip.compress(head[:8] + bytes(4) + head[12:]), r"its header is wrong \(0 Gaussians"),
        (gzip.compress(b"hello, this is a text"), "not a .spz file"),
        (b"\x1f\x8bjunk", "not a .spz file, or damaged"),
        (b"", "not a .spz file"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_spz(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        read_spz(tmp_path / "none.spz")
    caplog.set_level("INFO")
    path.write_bytes(spz(version=3, position=FIXED, rotation=SMALLEST, degree=4, flags=3, rest=bytes([130] * 72)))
    assert read_spz(path).degree == 3
    for part in ("degree 4 are left out", "made for antialiased rendering", "extensions of the format are not used"):
        assert part in caplog.text


def document_of(path) -> dict:
    content = path.read_bytes()
    return json.loads(content[20 : 20 + struct.unpack("<I", content[12:16])[0]])


def test_a_gltf_is_as_khronos_specifies(tmp_path):
    one = dataclasses.replace(with_harmonics(1, 1), colors_BN3=torch.full((1, 1, 3), 0.5))
    write_gltf(tmp_path / "a.glb", one)
    content, document = (tmp_path / "a.glb").read_bytes(), document_of(tmp_path / "a.glb")
    assert content[:4] == b"glTF"
    assert struct.unpack("<II", content[4:12]) == (2, len(content))
    [primitive] = document["meshes"][0]["primitives"]
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert primitive["mode"] == 0
    assert primitive["extensions"] == {
        "KHR_gaussian_splatting": {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    }
    kinds = {name: document["accessors"][index] for name, index in primitive["attributes"].items()}
    prefix = "KHR_gaussian_splatting:"
    assert {name: kind["type"] for name, kind in kinds.items()} == {
        "POSITION": "VEC3", "COLOR_0": "VEC4", f"{prefix}ROTATION": "VEC4", f"{prefix}SCALE": "VEC3",
        f"{prefix}OPACITY": "SCALAR", f"{prefix}SH_DEGREE_0_COEF_0": "VEC3",
        **{f"{prefix}SH_DEGREE_1_COEF_{order}": "VEC3" for order in range(3)},
    }  # fmt: skip
    body = content[28 + struct.unpack("<I", content[12:16])[0] :]

    def row(name: str, kind: str = "<f4") -> np.ndarray:
        view = document["bufferViews"][kinds[name]["bufferView"]]
        return np.frombuffer(body[view["byteOffset"] :][: view["byteLength"]], kind)

    np.testing.assert_allclose(row("POSITION"), Y_UP_TO_Z_UP.T @ one.means_BN3[0, 0].numpy(), atol=1e-6)
    np.testing.assert_allclose(row(f"{prefix}SCALE"), one.scales_BN3[0, 0], rtol=1e-6)
    np.testing.assert_allclose(row(f"{prefix}OPACITY"), one.opacities_BN1[0, 0], rtol=1e-6)
    np.testing.assert_allclose(row(f"{prefix}SH_DEGREE_0_COEF_0"), 0, atol=1e-6)
    assert list(row("COLOR_0", "u1")[:3]) == [55, 55, 55]  # 0.5 of sRGB is 0.214 of linear light
    x, y, z, w = torch.from_numpy(row(f"{prefix}ROTATION").copy())
    turned = torch.from_numpy(Y_UP_TO_Z_UP.T).float() @ rotation_formula(one.quats_BN4[0, 0])
    torch.testing.assert_close(rotation_formula(torch.stack([w, x, y, z])), turned, atol=1e-5, rtol=0)


def changed_gltf(path, change) -> None:
    content = path.read_bytes()
    length = struct.unpack("<I", content[12:16])[0]
    document = document_of(path)
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = struct.pack("<I4s", len(text), b"JSON") + text + content[20 + length :]
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(rest)) + rest)


def test_nodes_of_a_gltf_place_its_gaussians(tmp_path):
    gaussians = with_harmonics(30, 1)
    write_gltf(tmp_path / "a.glb", gaussians)
    turn = {"rotation": [0, HALF, 0, HALF], "scale": [2, 2, 2], "translation": [0, 1, 0]}
    changed_gltf(tmp_path / "a.glb", lambda document: document["nodes"][0].update(turn))
    found = read_gltf(tmp_path / "a.glb")
    # a quarter turn about the up axis, twice as large, one unit higher
    about_z = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(found.means_BN3[0], 2 * gaussians.means_BN3[0] @ about_z.T + torch.tensor([0, 0, 1.0]))
    wanted = 4 * about_z @ gaussians.covariances() @ about_z.T
    torch.testing.assert_close(found.covariances(), wanted, atol=1e-6, rtol=1e-4)


def test_gltf_files_that_are_not_read_are_refused(tmp_path):
    def extension(document):
        return document["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"]

    for change, message in (
        (lambda d: extension(d).update(kernel="round"), "have kernel round, but ellipse is read"),
        (lambda d: extension(d).update(colorSpace="lin_rec709_display"), "colorSpace lin_rec709_display"),
        (lambda d: extension(d).update(extensions={"KHR_x_spz": {}}), "need the extension KHR_x_spz"),
        (lambda d: d["nodes"][0].update(scale=[1, 2, 1]), "unequal or negative scales"),
        (lambda d: d["nodes"][0].update(children=[0]), "below each other"),
        (lambda d: d["meshes"][0]["primitives"][0].pop("extensions"), "it contains no Gaussians"),
        (lambda d: d["meshes"][0]["primitives"][0]["attributes"].pop("POSITION"), "no attribute POSITION"),
    ):
        write_gltf(tmp_path / "a.glb", random_gaussians(3))
        changed_gltf(tmp_path / "a.glb", change)
        with pytest.raises(DataError, match=message) as caught:
            read_gltf(tmp_path / "a.glb")
        assert str(tmp_path / "a.glb") in str(caught.value)


def as_text(rows: np.ndarray) -> bytes:
    return "".join(" ".join(repr(float(value)) for value in row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("form", ["ascii", "binary_big_endian"])
def test_every_form_of_ply_is_read(tmp_path, form, caplog):
    caplog.set_level("INFO")
    write_ply(tmp_path / "a.ply", with_harmonics(20, 1))
    head, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    rows = np.frombuffer(body, "<f4").reshape(20, -1)
    # another program may add an element, and a property
    head = head.replace(b"binary_little_endian", form.encode())
    head = head.replace(b"element vertex", b"element camera 1\nproperty float fov\nelement vertex")
    head += b"property float confidence\nend_header\n"
    rows, camera = np.concatenate([rows, np.ones((20, 1), "<f4")], axis=1), np.full((1, 1), 40.0)
    make = as_text if form == "ascii" else lambda values: values.astype(">f4").tobytes()
    (tmp_path / "b.ply").write_bytes(head + make(camera) + make(rows))
    close(read_ply(tmp_path / "b.ply"), read_ply(tmp_path / "a.ply"), covariances=1e-6)
    assert "b.ply: properties that are not used: confidence" in caplog.text


def test_endless_logits_are_opacities_of_zero_and_one(tmp_path):
    write_ply(tmp_path / "a.ply", random_gaussians(3))
    head, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    rows = np.frombuffer(body, "<f4").reshape(3, -1).copy()
    rows[:2, PROPERTIES.index("opacity")] = np.inf, -np.inf
    (tmp_path / "a.ply").write_bytes(head + b"end_header\n" + rows.tobytes())
    assert read_ply(tmp_path / "a.ply").opacities_BN1[0, :2, 0].tolist() == pytest.approx([1.0, 0.0])
    rows[0, PROPERTIES.index("opacity")] = np.nan
    (tmp_path / "a.ply").write_bytes(head + b"end_header\n" + rows.tobytes())
    with pytest.raises(DataError, match="opacity of Gaussian 0 is not finite"):
        read_ply(tmp_path / "a.ply")


def test_harmonics_that_are_all_zero_or_no_degree_are_left_out(tmp_path, caplog):
    flat = with_harmonics(5, 2)
    write_ply(tmp_path / "a.ply", dataclasses.replace(flat, harmonics_BNK3=0 * flat.harmonics_BNK3))
    assert read_ply(tmp_path / "a.ply").harmonics_BNK3 is None
    write_ply(tmp_path / "b.ply", flat)
    content = (tmp_path / "b.ply").read_bytes().replace(b"float f_rest_23", b"float whatever1")
    (tmp_path / "b.ply").write_bytes(content)
    assert read_ply(tmp_path / "b.ply").harmonics_BNK3 is None
    assert "23 properties f_rest_* are no degree (9, 24 or 45 are)" in caplog.text
    (tmp_path / "b.ply").write_bytes(content.replace(b"float whatever1", b"float f_rest_99"))
    with pytest.raises(DataError, match="property f_rest_23 is missing"):
        read_ply(tmp_path / "b.ply")


def test_a_splat_has_no_harmonics(tmp_path, caplog):
    caplog.set_level("INFO")
    bright = dataclasses.replace(with_harmonics(9, 1), colors_BN3=torch.full((1, 9, 3), 1.2))
    write_splat(tmp_path / "a.splat", bright)
    assert read_gaussians(tmp_path / "a.splat").harmonics_BNK3 is None
    assert "no place for the harmonics of degree 1" in caplog.text


BOUNDS = [f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"]
BOUNDS += [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]


def compressed_ply(*, colors: bool, rest: bool) -> bytes:
    """300 Gaussians in two chunks: the first at the low end of everything, the last at the high end."""
    names = BOUNDS + ([f"{end}_{channel}" for end in ("min", "max") for channel in "rgb"] if colors else [])
    lines = ["ply", "format binary_little_endian 1.0", "comment Generated by SuperSplat", "element chunk 2"]
    lines += [f"property float {name}" for name in names] + ["element vertex 300"]
    lines += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
    lines += ["element sh 300", *(f"property uchar f_rest_{k}" for k in range(9))] if rest else []
    ends = {"x": (-1, 1), "y": (-2, 2), "z": (0, 4), "scale": (-5, -1), "r": (0.1, 0.9), "g": (0, 1), "b": (0.5, 0.7)}
    row = [ends[name.split("_")[1]][name.startswith("max")] for name in names]
    words = np.zeros((300, 4), "<u4")
    words[:, 1] = (0 << 30) | (512 << 20) | (512 << 10) | 512
    words[1, 1] = (1 << 30) | (1023 << 20) | (512 << 10) | 512  # x = w = HALF: a quarter turn about x
    words[-1, (0, 2, 3)] = 0xFFFFFFFF
    words[1, 0] = 0b11111111111 << 21  # x at its high end alone
    words[2, 0] = 0b1111111111 << 11  # y
    extra = np.full((300, 9), 255, np.uint8).tobytes() if rest else b""
    content = np.array([row, row], "<f4").tobytes() + words.tobytes() + extra
    return "\n".join([*lines, "end_header", ""]).encode() + content


@pytest.mark.parametrize("colors", [False, True])
def test_a_compressed_ply_of_supersplat_is_read(tmp_path, colors):
    (tmp_path / "c.ply").write_bytes(compressed_ply(colors=colors, rest=False))
    found = read_ply(tmp_path / "c.ply")
    assert found.means_BN3.shape == (1, 300, 3)
    for index, position in ((0, (-1, -2, 0)), (1, (1, -2, 0)), (2, (-1, 2, 0)), (299, (1, 2, 4))):
        torch.testing.assert_close(found.means_BN3[0, index], torch.tensor(position).float())
    torch.testing.assert_close(found.scales_BN3[0, 0], torch.full((3,), math.exp(-5)))
    torch.testing.assert_close(found.scales_BN3[0, 299], torch.full((3,), math.exp(-1)))
    low, high = ((0.1, 0.0, 0.5), (0.9, 1.0, 0.7)) if colors else ((0.0, 0, 0), (1.0, 1, 1))
    torch.testing.assert_close(found.colors_BN3[0, 0], torch.tensor(low))
    torch.testing.assert_close(found.colors_BN3[0, 299], torch.tensor(high))
    assert float(found.opacities_BN1[0, 0]) < 1e-5
    assert float(found.opacities_BN1[0, 299]) > 1 - 1e-5
    torch.testing.assert_close(found.quats_BN4[0, 0], torch.tensor([1.0, 0, 0, 0]), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.quats_BN4[0, 1], torch.tensor([HALF, HALF, 0, 0]), atol=2e-3, rtol=0)


def test_a_compressed_ply_may_have_harmonics_and_must_be_whole(tmp_path):
    content = compressed_ply(colors=True, rest=True)
    (tmp_path / "c.ply").write_bytes(content)
    torch.testing.assert_close(read_ply(tmp_path / "c.ply").harmonics_BNK3, torch.full((1, 300, 3, 3), 4.0))
    for bad, message in (
        (content[:-1], "truncated, it has only 299 of 300 rows of element sh"),
        (content.replace(b"min_x", b"min_u"), "property min_x of the chunks is missing"),
        (content.replace(b"element chunk 2", b"element chunk 1"), "1 chunks are too few for 300 Gaussians"),
        (content.replace(b"uint packed_color", b"uint packed_paint"), "property packed_color is missing"),
    ):
        (tmp_path / "c.ply").write_bytes(bad)
        with pytest.raises(DataError, match=message):
            read_ply(tmp_path / "c.ply")


def test_the_content_decides(tmp_path):
    for write in (write_ply, write_spz, write_gltf):
        write(tmp_path / "renamed.splat", random_gaussians(len(PROPERTIES)))
        assert read_gaussians(tmp_path / "renamed.splat").means_BN3.shape == (1, len(PROPERTIES), 3)
