"""The data class of 3D Gaussians with activated values, and the activation of a head's raw numbers.

Letters: B batch, N Gaussians, K coefficients of spherical harmonics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from scipy.spatial.transform import Rotation
from torch import Tensor

from models.gaussians.harmonics import DEGREES, turned
from utils.errors import DataError

# How the four rotation numbers are normalised. The published VideoMV weights were trained with a norm over the
# Gaussians (a wrong axis, but the weights depend on it); later LGM weights with the norm of each quaternion.
ROTATION_RULES = ("over_gaussians", "per_gaussian")
# The meaning of position and colour. none: absolute values, as published. pixels: offsets from the colour of the input
# pixel and from the point of its ray that is closest to the origin; a small head learns these faster.
ANCHORS = ("none", "pixels")
MAX_ANCHOR_COLOR = 0.98  # of the range [-1, 1]; closer to its end, an offset would need to be very large for a change
# The remedy in errors about Gaussians that cannot be used, from a run or from a file.
OTHER_GAUSSIANS = "try another seed, other weights or another file"
# A quaternion whose length is this close to one counts as normalised; float16 weights cause about this difference.
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """Gaussians of a batch of scenes.

    Attributes:
        means_BN3: centres, world units.
        opacities_BN1: in [0, 1].
        scales_BN3: standard deviations along the axes, positive.
        quats_BN4: rotations, w first, not normalised: their length need not be one.
        colors_BN3: RGB in [0, 1]; with harmonics any number, the constant part of the colour.
        harmonics_BNK3: coefficients of the view-dependent part, see models.gaussians.harmonics; None: there is none.
    """

    means_BN3: Tensor
    opacities_BN1: Tensor
    scales_BN3: Tensor
    quats_BN4: Tensor
    colors_BN3: Tensor
    harmonics_BNK3: Tensor | None = None

    def __post_init__(self) -> None:
        lead = self.means_BN3.shape[:2]
        for name, width in {
            "means_BN3": 3,
            "opacities_BN1": 1,
            "scales_BN3": 3,
            "quats_BN4": 4,
            "colors_BN3": 3,
        }.items():
            shape = tuple(getattr(self, name).shape)
            if shape != (*lead, width):
                raise ValueError(f"{name} has shape {shape}, expected {(*lead, width)}")
        if self.harmonics_BNK3 is not None:
            shape = tuple(self.harmonics_BNK3.shape)
            if shape not in {(*lead, number, 3) for number in DEGREES}:
                raise ValueError(f"harmonics_BNK3 has shape {shape}, expected {tuple(lead)} + (K, 3), K 3, 8 or 15")

    @property
    def degree(self) -> int:
        """Degree of the spherical harmonics; 0: the colour is the same from all sides."""
        return 0 if self.harmonics_BNK3 is None else DEGREES[self.harmonics_BNK3.shape[2]]

    @property
    def packed_BN14(self) -> Tensor:
        """Position 3, opacity 1, scale 3, rotation 4 and constant colour 3 in one tensor."""
        return torch.cat([self.means_BN3, self.opacities_BN1, self.scales_BN3, self.quats_BN4, self.colors_BN3], dim=-1)

    def scene(self, index: int) -> Gaussians:
        """One scene as a batch of one, detached and in float32, for writing files."""
        return self._each(lambda values: values[index : index + 1].detach().float())

    def scenes(self, pick: slice) -> Gaussians:
        """The scenes of the batch with these indices."""
        return self._each(lambda values: values[pick])

    def to(self, device: torch.device | str) -> Gaussians:
        """Move to a device."""
        return self._each(lambda values: values.to(device))

    def only(self, keep_N: Tensor) -> Gaussians:
        """Choose Gaussians by a mask or by indices, the same in every scene."""
        return self._each(lambda values: values[:, keep_N])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Gaussians:
        return Gaussians(**{name: change(values) for name, values in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The values that are there, by the name of their attribute."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: tensor for name, tensor in values.items() if tensor is not None}

    def check_values(self, *, name: str, remedy: str = OTHER_GAUSSIANS) -> None:
        """Check that a rasteriser can draw the values.

        Args:
            name: name of these Gaussians in the error message.
            remedy: advice in the error message.

        Raises:
            DataError: values are not finite, opacities or colours are outside [0, 1], or scales are not positive.
        """
        for what, values in self.tensors().items():
            if not bool(values.isfinite().all()):
                raise DataError(f"{name}: {what.rpartition('_')[0]} are not finite; {remedy}")
        bounded = [(self.opacities_BN1, "opacities")]
        bounded += [(self.colors_BN3, "colors")] if self.harmonics_BNK3 is None else []
        for values, what in bounded:
            if values.numel() and not 0 <= float(values.min()) <= float(values.max()) <= 1:
                span = f"[{float(values.min()):.3g}, {float(values.max()):.3g}]"
                raise DataError(f"{name}: {what} are in {span}, but must be in [0, 1]; {remedy}")
        if self.scales_BN3.numel() and float(self.scales_BN3.min()) <= 0:
            smallest = float(self.scales_BN3.min())
            raise DataError(f"{name}: the smallest scale is {smallest:.3g}, but scales must be positive; {remedy}")

    def for_file(self, name: str | Path) -> Gaussians:
        """Return the one scene of this batch on the CPU, checked, and with true rotations.

        Args:
            name: name of the file in error messages.

        Raises:
            ValueError: there is more than one scene.
            DataError: values that no rasteriser can draw.
        """
        if len(self.means_BN3) != 1:
            raise ValueError(f"a file contains one scene, got {len(self.means_BN3)}; choose one with scene(index)")
        scene = self.scene(0).to("cpu")
        scene.check_values(name=str(name))
        return scene.with_unit_quats()

    def with_unit_quats(self) -> Gaussians:
        """The same Gaussians with true rotations (quaternions of length one).

        Only the covariance has a meaning. Quaternions of length one are not changed. For the others, R in R S is not a
        rotation, so R S is decomposed: its left singular vectors are the axes of the covariance R S S R^T, and its
        singular values are their standard deviations.
        """
        lengths_BN = self.quats_BN4.norm(dim=-1)
        finite_BN = (lengths_BN + self.scales_BN3.sum(-1)).isfinite()  # `check_values` reports the others
        bent_BN = ((lengths_BN - 1).abs() > UNIT_TOLERANCE) & finite_BN
        scales_BN3 = self.scales_BN3.clone()
        quats_BN4 = functional.normalize(self.quats_BN4, dim=-1)
        if bool(bent_BN.any()):
            R_M33 = rotation_formula(self.quats_BN4[bent_BN].double())
            axes_M33, deviations_M3, _ = torch.linalg.svd(R_M33 * self.scales_BN3[bent_BN].double()[:, None, :])
            axes_M33 = axes_M33 * axes_M33.det().sign()[:, None, None]  # a mirrored frame has the same covariance
            quats = Rotation.from_matrix(axes_M33.detach().cpu().numpy()).as_quat(scalar_first=True)
            quats_BN4[bent_BN] = torch.from_numpy(quats).to(quats_BN4)
            scales_BN3[bent_BN] = deviations_M3.to(scales_BN3)
        return dataclasses.replace(self, scales_BN3=scales_BN3, quats_BN4=quats_BN4)

    def moved(self, transform_44: Tensor) -> Gaussians:
        """Transform the Gaussians to another frame; the result has true rotations.

        Args:
            transform_44: rotation and shift from the current frame, (4, 4).
        """
        unit = self.with_unit_quats()
        turn_33 = transform_44[:3, :3].to(self.means_BN3)
        quat = Rotation.from_matrix(transform_44[:3, :3].detach().cpu().double().numpy()).as_quat(scalar_first=True)
        return dataclasses.replace(
            unit,
            means_BN3=(self.means_BN3[..., None, :] * turn_33).sum(-1) + transform_44[:3, 3].to(self.means_BN3),
            quats_BN4=quaternion_product(torch.from_numpy(quat).to(self.quats_BN4), unit.quats_BN4),
            harmonics_BNK3=None if self.harmonics_BNK3 is None else turned(self.harmonics_BNK3, turn_33),
        )

    def covariances(self) -> Tensor:
        """R S S R^T, with R from the quaternions without normalisation: (B, N, 3, 3)."""
        axes_BN33 = rotation_formula(self.quats_BN4) * self.scales_BN3[..., None, :]
        # Sums instead of matrix products, because training may reduce the precision of products.
        return (axes_BN33[..., :, None, :] * axes_BN33[..., None, :, :]).sum(-1)


def activate(raw_BN14: Tensor, *, rotation: str, pixels_BN9: Tensor | None = None) -> Gaussians:
    """Convert the raw output of the head to Gaussians (arXiv:2402.05054, with the published constants).

    Args:
        rotation: one of ROTATION_RULES.
        pixels_BN9: colours in [0, 1] and Plücker rays of the Gaussians' pixels; raw numbers are then offsets from
            these.
    """
    position, opacity, scale, quaternion, color = raw_BN14.split([3, 1, 3, 4, 3], dim=-1)
    if pixels_BN9 is not None:
        position = _along_rays(position, pixels_BN9[..., 3:])
        color = color + (2 * pixels_BN9[..., :3] - 1).clamp(-MAX_ANCHOR_COLOR, MAX_ANCHOR_COLOR).atanh()
    return Gaussians(
        means_BN3=position.clamp(-1, 1),
        opacities_BN1=opacity.sigmoid(),
        scales_BN3=0.1 * functional.softplus(scale),
        quats_BN4=functional.normalize(quaternion, dim=1 if rotation == "over_gaussians" else -1),
        colors_BN3=0.5 * color.tanh() + 0.5,
    )


def _along_rays(steps_BN3: Tensor, rays_BN6: Tensor) -> Tensor:
    """Move from each ray's point closest to the origin: along the ray, then horizontally and vertically across it."""
    moment, direction = rays_BN6.split(3, dim=-1)
    direction = functional.normalize(direction, dim=-1)
    level = torch.linalg.cross(direction, torch.tensor([0.0, 1.0, 0.0]).to(direction).expand_as(direction))
    level = functional.normalize(level, dim=-1)
    upright = torch.linalg.cross(level, direction)
    forward, across, up = steps_BN3.split(1, dim=-1)
    return torch.linalg.cross(direction, moment) + forward * direction + across * level + up * upright


def quaternion_product(left_N4: Tensor, right_N4: Tensor) -> Tensor:
    """The rotation `right` followed by `left`, w first: (..., 4)."""
    w, x, y, z = left_N4.unbind(-1)
    a, b, c, d = right_N4.unbind(-1)
    parts = [
        w * a - x * b - y * c - z * d,
        w * b + x * a + y * d - z * c,
        w * c - x * d + y * a + z * b,
        w * d + x * c - y * b + z * a,
    ]
    return torch.stack(parts, dim=-1)


def quaternions_of(rotations_N33: Tensor) -> Tensor:
    """Quaternions of rotation matrices, w first, of length one: (..., 4); w may be negative."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotations_N33.unbind(-2))
    # Four times the products of each two of the quaternion's numbers; the row with the largest square is exact.
    products_N44 = torch.stack(
        [
            torch.stack([1 + a + e + i, h - f, c - g, d - b], dim=-1),
            torch.stack([h - f, 1 + a - e - i, b + d, c + g], dim=-1),
            torch.stack([c - g, b + d, 1 - a + e - i, f + h], dim=-1),
            torch.stack([d - b, c + g, f + h, 1 - a - e + i], dim=-1),
        ],
        dim=-2,
    )
    best_N = products_N44.diagonal(dim1=-2, dim2=-1).argmax(-1)
    best_N14 = best_N[..., None, None].expand(*best_N.shape, 1, 4)
    return functional.normalize(products_N44.gather(-2, best_N14)[..., 0, :], dim=-1)


def rotation_formula(quats_N4: Tensor) -> Tensor:
    """The matrix of an unnormalised quaternion (w, x, y, z): (..., 3, 3). It is a rotation if the length is one."""
    w, x, y, z = quats_N4.unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)
