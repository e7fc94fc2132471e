"""Renders a mesh by casting rays on the CPU (Embree): no display, no GPU.

Light is fixed in the world: a hemisphere of sky and ground, a warm key light, a cool fill light and a light from
behind, all diffuse. It therefore does not depend on the view and is computed once per corner and interpolated.

Letters: V views, H W pixels, F faces, S samples that hit the mesh.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.meshes.scene import RenderMesh, linear_to_srgb, srgb_to_linear

_SRGB_DECODE = srgb_to_linear(np.arange(256) / 255.0)
_ENCODE_STEPS = 8192
_SRGB_ENCODE = np.round(linear_to_srgb(np.arange(_ENCODE_STEPS + 1) / _ENCODE_STEPS) * 255).astype(np.uint8)

# Chosen by eye: a white object (albedo 0.8) has 45 % to 95 % sRGB, so that it differs from a white background.
SKY = np.array([0.36, 0.38, 0.41], dtype=np.float32)
GROUND = np.array([0.20, 0.19, 0.18], dtype=np.float32)
# direction towards the light, colour, how far the light wraps past the terminator
LIGHTS = (
    (np.array([0.55, 0.50, 0.95]), np.array([0.68, 0.65, 0.60]), 0.25),
    (np.array([0.45, -0.95, 0.35]), np.array([0.17, 0.19, 0.22]), 0.30),
    (np.array([-1.00, -0.10, 0.45]), np.array([0.20, 0.21, 0.23]), 0.30),
)


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """The rendered views.

    rgba_VHW4: uint8 sRGB with straight alpha.
    normals_VHW3: float32 world normals towards the camera, 0 where there is no object; None without `normal_depth`.
    depth_VHW: float32 distance along the camera's z axis, 0 where there is no object; None without `normal_depth`.
    """

    rgba_VHW4: np.ndarray
    normals_VHW3: np.ndarray | None = None
    depth_VHW: np.ndarray | None = None


def irradiance(normals: np.ndarray) -> np.ndarray:
    """Light (linear RGB) that falls on surfaces with these unit normals (..., 3)."""
    up = (normals[..., 2:] * 0.5 + 0.5).astype(np.float32)
    light = SKY * up + GROUND * (1 - up)
    for direction, color, wrap in LIGHTS:
        cosine = np.einsum("...i,i->...", normals, (direction / np.linalg.norm(direction)).astype(np.float32))
        light = light + np.maximum((cosine + wrap) / (1 + wrap), 0)[..., None] * color.astype(np.float32)
    return light.astype(np.float32)


def render_views(
    mesh: RenderMesh,
    c2w_V44: np.ndarray,
    *,
    fov_deg: float,
    size: int,
    samples: int = 3,
    normal_depth: bool = True,
) -> Rendering:
    """Render a mesh from every camera.

    Args:
        mesh: triangles, z-up, in world units.
        c2w_V44: camera to world; camera x right, y down, z forward.
        fov_deg: field of view over the image's side, in degrees.
        size: H = W in pixels; pixel centres lie at +0.5.
        samples: n x n rays per pixel.
        normal_depth: also return normals and depth (means over the samples that hit).

    Returns:
        The views. Colours are averaged in linear light and weighted by coverage.
    """
    tracer = _Tracer(mesh, fov_deg=fov_deg, size=size, samples=samples)
    num_views = len(c2w_V44)
    rgba_VHW4 = np.zeros((num_views, size, size, 4), dtype=np.uint8)
    normals_VHW3 = np.zeros((num_views, size, size, 3), dtype=np.float32) if normal_depth else None
    depth_VHW = np.zeros((num_views, size, size), dtype=np.float32) if normal_depth else None
    for view, c2w_44 in enumerate(np.asarray(c2w_V44, dtype=np.float64)):
        window = tracer.window(c2w_44)
        if window is None:
            continue
        rows, columns = window
        hits = tracer.trace(c2w_44, rows, columns)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        rgba_VHW4[view, rows, columns] = hits.rgba(samples).reshape(*shape, 4)
        if normal_depth:
            normals, depth = hits.normals_and_depth()
            normals_VHW3[view, rows, columns] = normals.reshape(*shape, 3)
            depth_VHW[view, rows, columns] = depth.reshape(shape)
    return Rendering(rgba_VHW4=rgba_VHW4, normals_VHW3=normals_VHW3, depth_VHW=depth_VHW)


class _Tracer:
    """A mesh with its lit colours, inside an Embree scene."""

    def __init__(self, mesh: RenderMesh, *, fov_deg: float, size: int, samples: int) -> None:
        from embreex.mesh_construction import TriangleMesh  # not needed by training machines
        from embreex.rtcore_scene import EmbreeScene

        self.mesh, self.size, self.samples = mesh, size, samples
        self.focal = size / 2 / np.tan(np.radians(fov_deg) / 2)
        points_F33 = np.ascontiguousarray(mesh.points_F33, dtype=np.float32)
        self.points_N3 = np.unique(points_F33.reshape(-1, 3), axis=0)
        self.scene = EmbreeScene()
        faces_F3 = np.arange(3 * len(points_F33), dtype=np.int32).reshape(-1, 3)
        self._geometry = TriangleMesh(self.scene, points_F33.reshape(-1, 3), faces_F3)
        # Row f has the lit corners of face f seen from outside, row F + f those seen from inside.
        front = mesh.colors_F33 * irradiance(mesh.normals_F33)
        back = mesh.colors_F33 * irradiance(-mesh.normals_F33)
        self.lit = np.concatenate([front, back]).astype(np.float32)
        self.textures = [self._shrunk(texture) for texture in mesh.textures]

    def _shrunk(self, texture: np.ndarray) -> np.ndarray:
        """Shrink a texture to the resolution of the samples, so that fine patterns do not flicker."""
        import cv2

        height, width = texture.shape[:2]
        scale = 2 * self.size * self.samples / max(height, width)
        if scale >= 1:
            return texture
        smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cv2.resize(texture, smaller, interpolation=cv2.INTER_AREA)

    def window(self, c2w_44: np.ndarray) -> tuple[slice, slice] | None:
        """Rows and columns of the pixels that the mesh can cover; None if it is outside the picture."""
        # einsum instead of @, because threads of BLAS would slow down the other rendering processes
        camera_N3 = np.einsum("ni,ij->nj", self.points_N3 - c2w_44[:3, 3].astype(np.float32), c2w_44[:3, :3])
        if camera_N3[:, 2].min() <= 1e-3:  # a point is beside or behind the camera, so there is no bound
            return slice(0, self.size), slice(0, self.size)
        pixels_N2 = camera_N3[:, :2] / camera_N3[:, 2:] * self.focal + self.size / 2
        low = np.clip(np.floor(pixels_N2.min(axis=0)).astype(int), 0, self.size)
        high = np.clip(np.ceil(pixels_N2.max(axis=0)).astype(int), 0, self.size)
        if (low >= high).any():
            return None
        return slice(low[1], high[1]), slice(low[0], high[0])

    def trace(self, c2w_44: np.ndarray, rows: slice, columns: slice) -> _Hits:
        """Cast samples x samples rays through every pixel of the window."""
        n = self.samples
        sub = (np.arange(n) + 0.5) / n
        y = ((np.arange(rows.start, rows.stop)[:, None] + sub).ravel() - self.size / 2) / self.focal
        x = ((np.arange(columns.start, columns.stop)[:, None] + sub).ravel() - self.size / 2) / self.focal
        right, down, forward, origin = (c2w_44[:3, k].astype(np.float32) for k in range(4))
        # Directions keep camera z = 1, so that the hit distance is the depth along z.
        along_row = x[:, None].astype(np.float32) * right + forward
        directions = (along_row[None] + (y[:, None].astype(np.float32) * down)[:, None]).reshape(-1, 3)
        origins = np.empty_like(directions)
        origins[:] = origin
        found = self.scene.run(origins, directions, query="INTERSECT", output=1)
        sample = np.flatnonzero(found["primID"] >= 0)
        num_columns = columns.stop - columns.start
        pixel = (sample // (len(x) * n)) * num_columns + (sample % len(x)) // n
        face, u, v = found["primID"][sample], found["u"][sample], found["v"][sample]
        inside = np.einsum("ij,ij->i", directions[sample], found["Ng"][sample]) > 0
        weights_S3 = np.stack([1 - u - v, u, v], axis=1)
        return _Hits(
            tracer=self,
            face_S=face,
            inside_S=inside,
            weights_S3=weights_S3,
            depth_S=found["tfar"][sample],
            pixel_S=pixel,
            num_pixels=(rows.stop - rows.start) * num_columns,
        )


@dataclass(frozen=True, kw_only=True)
class _Hits:
    """Samples that hit the mesh in one window of one view."""

    tracer: _Tracer
    face_S: np.ndarray
    inside_S: np.ndarray
    weights_S3: np.ndarray
    depth_S: np.ndarray
    pixel_S: np.ndarray
    num_pixels: int

    def _summed(self, values_S: np.ndarray) -> np.ndarray:
        return np.bincount(self.pixel_S, weights=values_S, minlength=self.num_pixels)

    def _counts(self) -> np.ndarray:
        return np.bincount(self.pixel_S, minlength=self.num_pixels)

    def _interpolated(self, corners_S3C: np.ndarray) -> np.ndarray:
        w = self.weights_S3
        return corners_S3C[:, 0] * w[:, :1] + corners_S3C[:, 1] * w[:, 1:2] + corners_S3C[:, 2] * w[:, 2:]

    def rgba(self, samples: int) -> np.ndarray:
        """Straight-alpha uint8 sRGB (num_pixels, 4)."""
        num_faces = len(self.tracer.mesh.points_F33)
        linear_S3 = self._interpolated(self.tracer.lit[self.face_S + num_faces * self.inside_S])
        self._apply_textures(linear_S3)
        counts = self._counts()
        out = np.zeros((self.num_pixels, 4), dtype=np.uint8)
        covered = np.maximum(counts, 1)
        for channel in range(3):
            mean = self._summed(linear_S3[:, channel]) / covered
            out[:, channel] = _SRGB_ENCODE[np.minimum(mean * _ENCODE_STEPS + 0.5, _ENCODE_STEPS).astype(np.int32)]
        out[:, 3] = np.round(counts * (255.0 / samples**2))
        return out

    def _apply_textures(self, linear_S3: np.ndarray) -> None:
        mesh = self.tracer.mesh
        if mesh.texture_F is None:
            return
        texture_S = mesh.texture_F[self.face_S]
        for index, image in enumerate(self.tracer.textures):
            chosen = np.flatnonzero(texture_S == index)
            if len(chosen) == 0:
                continue
            w = self.weights_S3[chosen]
            uv = np.einsum("sk,skc->sc", w, mesh.uvs_F32[self.face_S[chosen]])
            linear_S3[chosen] *= sample_texture(image, uv)

    def normals_and_depth(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit world normals towards the camera (num_pixels, 3) and depth (num_pixels,), 0 without a hit."""
        normals_S3 = self._interpolated(self.tracer.mesh.normals_F33[self.face_S])
        normals_S3 = np.where(self.inside_S[:, None], -normals_S3, normals_S3)
        normals = np.stack([self._summed(normals_S3[:, k]) for k in range(3)], axis=1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        depth = self._summed(self.depth_S) / np.maximum(self._counts(), 1)
        return normals.astype(np.float32), depth.astype(np.float32)


def sample_texture(image_HW3: np.ndarray, uv_S2: np.ndarray) -> np.ndarray:
    """Look up a repeating texture with bilinear weights, in linear light.

    Args:
        image_HW3: uint8 sRGB; its first row is the top.
        uv_S2: coordinates with the origin at the image's lower left corner, as in .obj files.

    Returns:
        linear_S3: float32 in [0, 1].
    """
    height, width = image_HW3.shape[:2]
    x = (uv_S2[:, 0] % 1.0) * width - 0.5
    y = ((1.0 - uv_S2[:, 1]) % 1.0) * height - 0.5
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - x0)[:, None].astype(np.float32), (y - y0)[:, None].astype(np.float32)
    columns, rows = (x0 % width, (x0 + 1) % width), (y0 % height, (y0 + 1) % height)
    top = _SRGB_DECODE[image_HW3[rows[0], columns[0]]] * (1 - fx) + _SRGB_DECODE[image_HW3[rows[0], columns[1]]] * fx
    low = _SRGB_DECODE[image_HW3[rows[1], columns[0]]] * (1 - fx) + _SRGB_DECODE[image_HW3[rows[1], columns[1]]] * fx
    return top * (1 - fy) + low * fy
