"""Renders a mesh by casting rays on the CPU (Embree): no display, no GPU.

Light is fixed in the world and diffuse (lighting.py). It therefore does not depend on the view and is computed once per
corner and interpolated.

A ray goes on behind a surface that lets light through (blended, or cut out by its texture), so that what is behind is
seen. Meshes without such surfaces need one ray per sample.

Letters: V views, H W pixels, F faces, S samples that hit the mesh.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datasets.meshes.lighting import FIXED, Light, irradiance
from datasets.meshes.scene import CLAMP, MIRROR, REPEAT, RenderMesh, Texture, linear_to_srgb, srgb_to_linear

_SRGB_DECODE = srgb_to_linear(np.arange(256) / 255.0)
_ENCODE_STEPS = 8192
_SRGB_ENCODE = np.round(linear_to_srgb(np.arange(_ENCODE_STEPS + 1) / _ENCODE_STEPS) * 255).astype(np.uint8)

MAX_LAYERS = 64  # surfaces that one ray goes through
STEP = 2e-5  # relative distance behind a surface at which a ray goes on; float32 is exact to 1e-7
OPAQUE_ENOUGH = 1 / 512  # what a ray can still add is less than a step of 8 bits


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


def render_views(
    mesh: RenderMesh,
    c2w_V44: np.ndarray,
    *,
    fov_deg: float,
    size: int,
    samples: int = 3,
    normal_depth: bool = True,
    light: Light = FIXED,
) -> Rendering:
    """Render a mesh from every camera.

    Args:
        mesh: triangles, z-up, in world units.
        c2w_V44: camera to world; camera x right, y down, z forward.
        fov_deg: field of view over the image's side, in degrees.
        size: H = W in pixels; pixel centres lie at +0.5.
        samples: n x n rays per pixel.
        normal_depth: also return normals and depth (means over the samples that hit).
        light: the light.

    Returns:
        The views. Colours are averaged in linear light and weighted by coverage.
    """
    tracer = _Tracer(mesh, fov_deg=fov_deg, size=size, samples=samples, light=light)
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

    def __init__(self, mesh: RenderMesh, *, fov_deg: float, size: int, samples: int, light: Light) -> None:
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
        outside, inside = irradiance(mesh.normals_F33, light), irradiance(-mesh.normals_F33, light)
        if mesh.lit_F is not None:
            outside[~mesh.lit_F], inside[~mesh.lit_F] = 1.0, 1.0
        self.lit = np.concatenate([mesh.colors_F33 * outside, mesh.colors_F33 * inside]).astype(np.float32)
        self.textures = [self._shrunk(texture) for texture in mesh.textures]

    def _shrunk(self, texture: Texture) -> Texture:
        """Shrink a texture to the resolution of the samples, so that fine patterns do not flicker."""
        import cv2

        pixels_HWC = texture.pixels_HWC
        height, width, channels = pixels_HWC.shape
        scale = 2 * self.size * self.samples / max(height, width)
        if scale >= 1:
            return texture
        smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
        if channels == 3:
            return replace(texture, pixels_HWC=cv2.resize(pixels_HWC, smaller, interpolation=cv2.INTER_AREA))
        # The colour of transparent texels is often black and must not darken what is beside them.
        alpha_HW1 = pixels_HWC[..., 3:].astype(np.float32)
        color_HW3 = cv2.resize(pixels_HWC[..., :3] * alpha_HW1, smaller, interpolation=cv2.INTER_AREA)
        alpha_HW = cv2.resize(alpha_HW1, smaller, interpolation=cv2.INTER_AREA).reshape(smaller[::-1])
        color_HW3 = color_HW3.reshape(*smaller[::-1], 3) / np.maximum(alpha_HW, 1e-3)[..., None]
        return replace(texture, pixels_HWC=np.dstack([color_HW3, alpha_HW]).round().clip(0, 255).astype(np.uint8))

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
        hits_N = self.scene.run(origins, directions, query="INTERSECT", output=1)
        sample = np.flatnonzero(hits_N["primID"] >= 0)
        directions = directions[sample]
        layer = self._layer(hits_N, sample, directions)
        del origins, hits_N  # large; their memory is used again below, which is measurably faster
        if self.mesh.opacities_F3 is None:
            del directions
            seen = _Seen(layer=layer, linear_S3=self._colors(layer)[0], opacity_S=None)
        else:
            seen = self._through(layer, origin, directions)
            sample, seen = sample[seen.opacity_S > 0], seen.only(seen.opacity_S > 0)
        num_columns = columns.stop - columns.start
        return _Hits(
            mesh=self.mesh,
            seen=seen,
            pixel_S=(sample // (len(x) * n)) * num_columns + (sample % len(x)) // n,
            num_pixels=(rows.stop - rows.start) * num_columns,
        )

    def _layer(self, hits: dict[str, np.ndarray], sample: np.ndarray, directions_S3: np.ndarray) -> _Layer:
        """The surfaces that these samples hit."""
        u, v = hits["u"][sample], hits["v"][sample]
        return _Layer(
            face_S=hits["primID"][sample],
            inside_S=np.einsum("ij,ij->i", directions_S3, hits["Ng"][sample]) > 0,
            weights_S3=np.stack([1 - u - v, u, v], axis=1),
            depth_S=hits["tfar"][sample],
        )

    def _colors(self, layer: _Layer) -> tuple[np.ndarray, np.ndarray | None]:
        """The linear colour (S, 3) of surfaces in the light, and their textures' alpha; None if all is opaque."""
        mesh, face_S = self.mesh, layer.face_S
        linear_S3 = layer.interpolated(self.lit[face_S + len(mesh.points_F33) * layer.inside_S])
        alpha_S = self._apply_textures(linear_S3, layer, mesh.texture_F, mesh.uvs_F32)
        if mesh.glow_F33 is not None:
            glow_S3 = layer.interpolated(mesh.glow_F33[face_S])
            self._apply_textures(glow_S3, layer, mesh.glow_texture_F, mesh.glow_uvs_F32)
            linear_S3 += glow_S3
        return linear_S3, alpha_S

    def _apply_textures(
        self, linear_S3: np.ndarray, layer: _Layer, texture_F: np.ndarray | None, uvs_F32: np.ndarray | None
    ) -> np.ndarray | None:
        """Multiply colours with the textures; return the textures' alpha (S,), None if it is one everywhere."""
        alpha_S = None
        if texture_F is None or uvs_F32 is None:
            return None
        texture_S = texture_F[layer.face_S]
        for index, texture in enumerate(self.textures):
            chosen = np.flatnonzero(texture_S == index)
            if len(chosen) == 0:
                continue
            uv = np.einsum("sk,skc->sc", layer.weights_S3[chosen], uvs_F32[layer.face_S[chosen]])
            texels = sample_texture(texture.pixels_HWC, uv, wrap=texture.wrap)
            linear_S3[chosen] *= texels[:, :3]
            if texels.shape[1] == 4:
                alpha_S = np.ones(len(linear_S3), dtype=np.float32) if alpha_S is None else alpha_S
                alpha_S[chosen] = texels[:, 3]
        return alpha_S

    def _opacity(self, layer: _Layer, alpha_S: np.ndarray | None) -> np.ndarray:
        """How much of the light behind each surface it stops, in [0, 1]."""
        opacity_S = np.einsum("sk,sk->s", layer.weights_S3, self.mesh.opacities_F3[layer.face_S])
        if alpha_S is not None:
            opacity_S *= alpha_S
        cutoff_S = self.mesh.cutoff_F[layer.face_S]
        # An opaque face has cutoff 0 and opacity 1, up to the rounding of the weights.
        return np.where(cutoff_S > 0, opacity_S >= cutoff_S - 1e-6, np.where(opacity_S > 0.9999, 1.0, opacity_S))

    def _through(self, layer: _Layer, origin: np.ndarray, directions_S3: np.ndarray) -> _Seen:
        """Follow rays through surfaces that let light through. The layer that is kept is the one that adds most."""
        active = np.arange(len(directions_S3))
        linear_S3 = np.zeros((len(active), 3), dtype=np.float32)
        left_S, most_S = np.ones(len(active), dtype=np.float32), np.zeros(len(active), dtype=np.float32)
        kept = layer
        for _ in range(MAX_LAYERS):
            colors_S3, alpha_S = self._colors(layer)
            opacity_S = self._opacity(layer, alpha_S)
            added_S = left_S[active] * opacity_S
            linear_S3[active] += added_S[:, None] * colors_S3
            left_S[active] *= 1 - opacity_S
            stronger = added_S > most_S[active]
            kept = kept.replaced(active[stronger], layer.only(stronger))
            most_S[active[stronger]] = added_S[stronger]
            goes_on = left_S[active] > OPAQUE_ENOUGH
            active = active[goes_on]
            if not len(active):
                break
            reached_S = layer.depth_S[goes_on] * (1 + STEP)
            ways_S3 = np.ascontiguousarray(directions_S3[active])
            hits = self.scene.run(origin + ways_S3 * reached_S[:, None], ways_S3, query="INTERSECT", output=1)
            again = np.flatnonzero(hits["primID"] >= 0)
            active = active[again]
            layer = self._layer(hits, again, ways_S3[again])
            layer = replace(layer, depth_S=layer.depth_S + reached_S[again])
        return _Seen(layer=kept, linear_S3=linear_S3, opacity_S=1 - left_S)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Surfaces that rays hit: face, side, place within the face, and distance along the camera's z."""

    face_S: np.ndarray
    inside_S: np.ndarray
    weights_S3: np.ndarray
    depth_S: np.ndarray

    def interpolated(self, corners_S3C: np.ndarray) -> np.ndarray:
        w = self.weights_S3
        return corners_S3C[:, 0] * w[:, :1] + corners_S3C[:, 1] * w[:, 1:2] + corners_S3C[:, 2] * w[:, 2:]

    def only(self, chosen: np.ndarray) -> _Layer:
        return _Layer(**{name: values[chosen] for name, values in vars(self).items()})

    def replaced(self, rows: np.ndarray, other: _Layer) -> _Layer:
        """The same with other surfaces in these rows."""
        out = {name: values.copy() for name, values in vars(self).items()}
        for name, values in out.items():
            values[rows] = vars(other)[name]
        return _Layer(**out)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What samples see: the surface, the linear colour times opacity, and the opacity (None: one everywhere)."""

    layer: _Layer
    linear_S3: np.ndarray
    opacity_S: np.ndarray | None

    def only(self, chosen: np.ndarray) -> _Seen:
        return _Seen(layer=self.layer.only(chosen), linear_S3=self.linear_S3[chosen], opacity_S=self.opacity_S[chosen])


@dataclass(frozen=True, kw_only=True)
class _Hits:
    """Samples that hit the mesh in one window of one view."""

    mesh: RenderMesh
    seen: _Seen
    pixel_S: np.ndarray
    num_pixels: int

    def _summed(self, values_S: np.ndarray) -> np.ndarray:
        # without samples, bincount gives integers
        return np.bincount(self.pixel_S, weights=values_S, minlength=self.num_pixels).astype(np.float64, copy=False)

    def _counts(self) -> np.ndarray:
        return np.bincount(self.pixel_S, minlength=self.num_pixels)

    def rgba(self, samples: int) -> np.ndarray:
        """Straight-alpha uint8 sRGB (num_pixels, 4)."""
        linear_S3, opacity_S = self.seen.linear_S3, self.seen.opacity_S
        counts = self._counts() if opacity_S is None else self._summed(opacity_S)
        out = np.zeros((self.num_pixels, 4), dtype=np.uint8)
        covered = np.maximum(counts, 1 if opacity_S is None else 1e-6)
        for channel in range(3):
            mean = self._summed(linear_S3[:, channel]) / covered
            out[:, channel] = _SRGB_ENCODE[np.minimum(mean * _ENCODE_STEPS + 0.5, _ENCODE_STEPS).astype(np.int32)]
        out[:, 3] = np.round(counts * (255.0 / samples**2))
        return out

    def normals_and_depth(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit world normals towards the camera (num_pixels, 3) and depth (num_pixels,), 0 without a hit."""
        layer = self.seen.layer
        normals_S3 = layer.interpolated(self.mesh.normals_F33[layer.face_S])
        normals_S3 = np.where(layer.inside_S[:, None], -normals_S3, normals_S3)
        normals = np.stack([self._summed(normals_S3[:, k]) for k in range(3)], axis=1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        depth = self._summed(layer.depth_S) / np.maximum(self._counts(), 1)
        return normals.astype(np.float32), depth.astype(np.float32)


def sample_texture(image_HWC: np.ndarray, uv_S2: np.ndarray, *, wrap: tuple[str, str] = (REPEAT, REPEAT)) -> np.ndarray:
    """Look up a texture with bilinear weights, in linear light.

    Args:
        image_HWC: uint8 sRGB, with straight alpha if it has four channels; its first row is the top.
        uv_S2: coordinates with the origin at the image's lower left corner, as in .obj files.
        wrap: what lies beyond the edges along u and v: `repeat`, `clamp` or `mirror`.

    Returns:
        float32 in [0, 1]: linear RGB (S, 3), and alpha as the fourth channel if the image has it. Colours are weighted
        by alpha, so that the colour of transparent texels does not matter.
    """
    height, width, channels = image_HWC.shape
    x = _wrapped(uv_S2[:, 0], wrap[0]) * width - 0.5
    y = _wrapped(1.0 - uv_S2[:, 1], wrap[1]) * height - 0.5
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - x0)[:, None].astype(np.float32), (y - y0)[:, None].astype(np.float32)
    columns, rows = _neighbours(x0, width, wrap[0]), _neighbours(y0, height, wrap[1])
    if channels == 3:
        top = (
            _SRGB_DECODE[image_HWC[rows[0], columns[0]]] * (1 - fx) + _SRGB_DECODE[image_HWC[rows[0], columns[1]]] * fx
        )
        low = (
            _SRGB_DECODE[image_HWC[rows[1], columns[0]]] * (1 - fx) + _SRGB_DECODE[image_HWC[rows[1], columns[1]]] * fx
        )
        return top * (1 - fy) + low * fy
    out = np.zeros((len(x), 4), dtype=np.float32)
    for row, row_weight in zip(rows, (1 - fy, fy), strict=True):
        for column, column_weight in zip(columns, (1 - fx, fx), strict=True):
            texels = image_HWC[row, column]
            alpha = texels[:, 3:] * (row_weight * column_weight) / 255.0
            out[:, :3] += _SRGB_DECODE[texels[:, :3]] * alpha
            out[:, 3:] += alpha
    out[:, :3] /= np.maximum(out[:, 3:], 1e-6)
    return out


def _wrapped(coordinates: np.ndarray, wrap: str) -> np.ndarray:
    """Bring coordinates into [0, 1]."""
    if wrap == CLAMP:
        return np.clip(coordinates, 0.0, 1.0)
    if wrap == MIRROR:
        return 1.0 - np.abs(coordinates % 2.0 - 1.0)
    return coordinates % 1.0


def _neighbours(first: np.ndarray, size: int, wrap: str) -> tuple[np.ndarray, np.ndarray]:
    """The two texels that a coordinate lies between; beyond the edge, those of the other side only where it repeats."""
    # coordinates lie in [0, 1], so the first texel is at least -1 and the second at most `size`
    if wrap == REPEAT:
        return np.where(first < 0, size - 1, first), np.where(first + 1 < size, first + 1, 0)
    return np.clip(first, 0, size - 1), np.clip(first + 1, 0, size - 1)
