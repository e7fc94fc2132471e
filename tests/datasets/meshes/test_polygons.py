"""Concave polygons of .obj files keep their notches and holes."""

import numpy as np
import pytest

from datasets.meshes.loading import load_mesh
from datasets.meshes.polygons import clip_ears, divide_concave_polygons

ARROW = [(0, 0), (2, 0), (1, 0.5), (2, 2)]  # area 0.75 + 0.25, with a notch
# A square of side 4 with a square hole of side 2; the edge between (0, 0) and (1, 1) is passed twice.
FRAME = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
COMB = [(0, 0), (6, 0), (6, 3), (5, 1), (4, 3), (3, 1), (2, 3), (1, 1), (0, 3)]


def in_space(points, z: float = 0.0) -> np.ndarray:
    return np.array([(x, y, z + 0.5 * x) for x, y in points], np.float64)


def signed_areas(points, triangles) -> np.ndarray:
    """Areas in the xy plane, positive where a triangle runs counter-clockwise."""
    a, b, c = (np.array(points, np.float64)[[triangle[k] for triangle in triangles]] for k in range(3))
    return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2


@pytest.mark.parametrize(("points", "area"), [(ARROW, 1.0), (FRAME, 12.0), (COMB, 12.0)])
@pytest.mark.parametrize("start", [0, 2, 3])
def test_triangles_cover_the_polygon_once(points, area, start):
    points = points[start:] + points[:start]
    areas = signed_areas(points, clip_ears(in_space(points)))
    assert (areas > 0).all()
    assert areas.sum() == pytest.approx(area)
    areas = signed_areas(points[::-1], clip_ears(in_space(points[::-1])))
    assert (areas < 0).all()  # its direction is kept


def test_corners_on_a_straight_line_and_polygons_without_area_do_not_loop():
    assert len(clip_ears(in_space([(0, 0), (1, 0), (2, 0), (2, 2)]))) == 1
    assert len(clip_ears(in_space([(0, 0), (1, 0), (2, 0), (3, 0)]))) == 1
    assert len(clip_ears(in_space([(0, 0), (2, 2), (2, 0), (0, 2)]))) >= 1  # crosses itself


def obj(points, faces: str) -> bytes:
    lines = [f"v {x} {y} {z}" for x, y, z in in_space(points)]
    return ("\n" + "\n".join(lines) + f"\n{faces}\n").encode()


def test_only_faces_of_which_fans_are_wrong_are_rewritten():
    arrow = obj(ARROW, "f 1 2 3 4")  # the fan from its first corner is right
    assert divide_concave_polygons(arrow) == arrow
    square = obj([(0, 0), (1, 0), (1, 1), (0, 1)], "f 1/1/1 2/2/2 3/3/3 4/4/4")
    assert divide_concave_polygons(square) == square
    content = divide_concave_polygons(obj(ARROW, "usemtl a\nf 2/6 3/7 4/8 1/5 # an arrow\nusemtl b\nf 1 2 3"))
    lines = [line for line in content.decode().split("\n") if line[:2] in ("f ", "us")]
    assert lines[0] == "usemtl a"
    assert lines[-2:] == ["usemtl b", "f 1 2 3"]
    faces = [line.split(" #")[0].split()[1:] for line in lines[1:-2]]
    assert faces in ([["3/7", "4/8", "1/5", "2/6"]], [["1/5", "2/6", "3/7", "4/8"]])


@pytest.mark.parametrize("faces", ["f 1 2 3 99", "f 1// 2// 3// 4//", "f 1 2 3 4\nv 0 0\n", "f / / / /"])
def test_what_cannot_be_read_is_left_to_the_parser(faces):
    content = obj([(0, 0), (1, 0), (1, 1), (0, 1)], faces)
    assert divide_concave_polygons(content) == content


def test_a_hole_stays_open_in_a_mesh(tmp_path):
    (tmp_path / "frame.obj").write_bytes(obj(FRAME, "f " + " ".join(str(k + 1) for k in range(len(FRAME)))))
    corners_F33 = load_mesh(tmp_path / "frame.obj").points_F33.astype(np.float64)
    cross_F3 = np.cross(corners_F33[:, 1] - corners_F33[:, 0], corners_F33[:, 2] - corners_F33[:, 0])
    assert np.linalg.norm(cross_F3, axis=1).sum() / 2 == pytest.approx(12 * 1.25**0.5, rel=1e-5)
