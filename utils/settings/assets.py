"""The section `assets` of a configuration: the 3D files that a run writes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from utils.errors import ConfigError
from utils.settings.typed import NEWER

# No view of this project resolves a larger texture.
MAX_TEXTURE = 4096


@dataclass(frozen=True, kw_only=True)
class AssetOptions:
    """Options of the 3D files of a sample.

    Attributes:
        ply: write gaussians.ply, all Gaussians in the format of 3D Gaussian viewers.
        splat: write gaussians.splat, the format of web viewers with 32 bytes per Gaussian.
        spz: write gaussians.spz, a compressed format, about 18 bytes per Gaussian.
        gltf: write gaussians.glb, the Gaussians as glTF with KHR_gaussian_splatting.
        glb: write mesh.glb, a coloured triangle mesh.
        html: write viewer.html, which a browser can open from disk.
        turntable: write turntable.mp4, a video of the Gaussians.
        faces: maximum number of triangles in the mesh.
        grid: number of voxels along the longest side of the object, for extracting the surface.
        mesh_views: number of cameras around the object, for the depth and the colours of the mesh.
        mesh_lowest_deg: lowest height angle of these cameras in degrees. A head invents the parts that the orbit does
            not show. Cameras further down would look through a missing bottom into the object. Points that no camera
            sees count as solid.
        mesh_view_size: height and width of these views in pixels.
        texture: side of the mesh's texture in pixels; 0 colours the vertices instead.
        unlit: mark the material in the .glb as unlit, because the colours already contain the light of the views.
        turntable_frames: number of frames in one turn.
        turntable_size: height and width in pixels, even.
        turntable_elevation_deg: height angle of the camera.
        turntable_distance: distance of the camera to the origin; null: the distance of the first view.
        turntable_fps: frames per second.
        background: grey value of the turntable and of the viewer's first page, from 0 (black) to 1 (white).
    """

    ply: bool = True
    splat: bool = True
    spz: bool = field(default=False, metadata=NEWER)
    gltf: bool = field(default=False, metadata=NEWER)
    glb: bool = True
    html: bool = True
    turntable: bool = True
    faces: int = 10000
    grid: int = 128
    mesh_views: int = 32
    mesh_lowest_deg: float = -30.0
    mesh_view_size: int = 256
    texture: int = 1024
    unlit: bool = True
    turntable_frames: int = 48
    turntable_size: int = 256
    turntable_elevation_deg: float = 20.0
    turntable_distance: float | None = None
    turntable_fps: int = 16
    background: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("faces", 4, 10**7),
            ("grid", 16, 512),
            ("mesh_views", 4, 1000),
            ("mesh_lowest_deg", -89, 80),
            ("mesh_view_size", 32, 2048),
            ("turntable_frames", 1, 10000),
            ("turntable_size", 16, 4096),
            ("turntable_fps", 1, 240),
            ("background", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"assets.{name} must lie in [{low}, {high}], got {value}")
        if self.texture and not 64 <= self.texture <= MAX_TEXTURE:
            raise ConfigError(f"assets.texture must be 0 or lie in [64, {MAX_TEXTURE}], got {self.texture}")
        if self.turntable_size % 2:
            raise ConfigError(f"assets.turntable_size must be even for the video codec, got {self.turntable_size}")
        if not -90 < self.turntable_elevation_deg < 90:
            raise ConfigError(
                f"assets.turntable_elevation_deg must lie in (-90, 90), got {self.turntable_elevation_deg}"
            )
        if self.turntable_distance is not None and not 0 < self.turntable_distance < math.inf:
            raise ConfigError(f"assets.turntable_distance must be positive, got {self.turntable_distance}")


# For samples of which only the views are used.
NO_FILES = AssetOptions(ply=False, splat=False, spz=False, gltf=False, glb=False, html=False, turntable=False)
