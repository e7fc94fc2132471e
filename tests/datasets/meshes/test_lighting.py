"""Fixed light is that of published figures; varied light is diverse, and never too bright or too dark."""

import numpy as np

from datasets.meshes.lighting import BRIGHTEST, FIXED, draw_light, irradiance
from datasets.meshes.renderer import render_views
from datasets.meshes.scene import RenderMesh
from utils.cameras import DATA_FOV_DEG, orbit_cameras

UP, DOWN = np.eye(3)[2], -np.eye(3)[2]


def test_fixed_light_is_as_it_was():
    """Written out from the formula of earlier versions."""
    up = np.array([0.36, 0.38, 0.41])
    for towards, color, wrap in (
        ([0.55, 0.50, 0.95], [0.68, 0.65, 0.60], 0.25),
        ([0.45, -0.95, 0.35], [0.17, 0.19, 0.22], 0.30),
        ([-1.00, -0.10, 0.45], [0.20, 0.21, 0.23], 0.30),
    ):
        up = up + np.array(color) * (towards[2] / np.linalg.norm(towards) + wrap) / (1 + wrap)
    np.testing.assert_allclose(irradiance(UP), up, rtol=1e-6)
    np.testing.assert_allclose(irradiance(DOWN), [0.20, 0.19, 0.18], rtol=1e-6)


def test_varied_lights_differ_within_bounds():
    lights = [draw_light(np.random.default_rng(seed)) for seed in range(60)]
    normals_N3 = np.random.default_rng(0).normal(size=(400, 3))
    normals_N3 /= np.linalg.norm(normals_N3, axis=1, keepdims=True)
    seen = np.stack([irradiance(normals_N3, light) for light in lights])
    assert seen.min() > 0.03
    brightest = seen.max(axis=(1, 2))
    assert BRIGHTEST[0] * 0.95 < brightest.min() < brightest.max() < BRIGHTEST[1] * 1.03
    warm = [float(np.divide(*light.lamps[0].color_3[[0, 2]])) for light in lights]
    assert min(warm) < 0.9 < 1.4 < max(warm)  # FIXED: 1.13
    azimuth = np.array([np.degrees(np.arctan2(*light.lamps[0].towards_3[1::-1])) for light in lights])
    assert len(np.unique(azimuth // 60)) == 6  # from every side
    ratio = [float(light.sky_3.mean() / light.ground_3.mean()) for light in lights]
    assert min(ratio) < 1.2 < 3.0 < max(ratio)  # FIXED: 2.0


def test_one_generator_gives_one_light():
    first, second = (draw_light(np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(irradiance(UP, first), irradiance(UP, second))
    assert not np.allclose(irradiance(UP, first), irradiance(UP, FIXED))


def test_the_renderer_uses_the_light():
    points_F33 = np.array([[[0, -0.5, -0.5], [0, 0.5, -0.5], [0, 0, 0.5]]], np.float32)  # faces view 0
    normals_F33 = np.tile(np.float32([1, 0, 0]), (1, 3, 1))
    mesh = RenderMesh(points_F33=points_F33, normals_F33=normals_F33, colors_F33=np.full((1, 3, 3), 0.5, np.float32))
    c2w_V44 = orbit_cameras(num_views=1, elevation_deg=0, radius=2).numpy()
    pictures = [
        render_views(mesh, c2w_V44, fov_deg=DATA_FOV_DEG, size=16, samples=1, light=light).rgba_VHW4
        for light in (FIXED, draw_light(np.random.default_rng(1)))
    ]
    np.testing.assert_array_equal(pictures[0][..., 3], pictures[1][..., 3])
    assert not np.array_equal(pictures[0], pictures[1])
