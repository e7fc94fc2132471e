"""What the nodes use of ComfyUI. Its versions differ in what they have.

Letters: B items of a batch, N Gaussians or points, F faces, K coefficients of spherical harmonics.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)


@dataclass
class Splat:
    """Gaussians for versions of ComfyUI that have no class of their own, with the names of its SPLAT."""

    positions: Tensor
    scales: Tensor
    rotations: Tensor
    opacities: Tensor
    sh: Tensor
    counts: Tensor | None = None


@dataclass
class Mesh:
    """A mesh for versions of ComfyUI that have no class of their own, with the names of its MESH."""

    vertices: Tensor
    faces: Tensor


def splat_of(tensors: dict[str, Tensor]) -> Any:
    """Make a SPLAT.

    Args:
        tensors: positions (B, N, 3), scales (B, N, 3), rotations (B, N, 4) with w first, opacities (B, N, 1), sh
            (B, N, K, 3).
    """
    return _class_or("SPLAT", Splat)(**tensors)


def mesh_of(vertices_1N3: Tensor, faces_1F3: Tensor, colors_1N3: Tensor) -> Any:
    """Make a MESH, y up; the colours are linear and contain the light, so they are shown as they are.

    A version of ComfyUI whose MESH has no colours gets the shape only.
    """
    kind = _class_or("MESH", Mesh)
    extra = {"vertex_colors": colors_1N3, "unlit": True}
    known = inspect.signature(kind).parameters
    if ignored := extra.keys() - known.keys():
        log.warning(
            "VideoMV: the MESH of this ComfyUI has no %s, so the mesh is grey", " and no ".join(sorted(ignored))
        )
    return kind(vertices_1N3, faces_1F3, **{name: value for name, value in extra.items() if name in known})


def _class_or(name: str, own: type) -> type:
    """The class of this ComfyUI with that name, else our own, which is logged."""
    try:
        from comfy_api.latest import Types

        return getattr(Types, name)
    except (ImportError, AttributeError):
        pass
    if name == "MESH":  # its place before Types had it
        try:
            from comfy_extras.nodes_hunyuan3d import MESH

            return MESH
        except ImportError:
            pass
    log.warning("VideoMV: this ComfyUI has no type %s; other nodes for it need a newer one", name)
    return own


def blocker(message: str) -> Any:
    """An output that is not there: nodes that need it are not run, and the message says why."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(message)


def progress_bar() -> Callable[[int, int], None]:
    """A function that shows `step` of `num_steps` at the running node."""
    from comfy.utils import ProgressBar

    bars: dict[int, Any] = {}

    def show(step: int, num_steps: int) -> None:
        if num_steps not in bars:
            bars[num_steps] = ProgressBar(num_steps)
        bars[num_steps].update_absolute(step, num_steps)

    return show


def raise_if_stopped() -> None:
    """Raise ComfyUI's exception if the user has pressed its stop button."""
    from comfy.model_management import throw_exception_if_processing_interrupted

    throw_exception_if_processing_interrupted()
