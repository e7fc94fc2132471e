"""Views to Gaussians, and back to views that agree with each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from models.lgm import LGM
from utils.cameras import DATA_FOV_DEG
from utils.errors import ConfigError
from utils.registry import MODEL, RECONSTRUCTORS

GUIDANCE_ORDERS = ("after", "before")


@RECONSTRUCTORS.register
class GaussianReconstruction:
    """Reconstruct, render, encode: another x0 whose views show one object (arXiv:2403.12010, section 3.3)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            head: sizes of the Gaussian head, see models.lgm.
            pretrained: its weights; null takes those that `test_model` holds under `lgm_big.`.
            input_views: which views it sees; empty: evenly spaced, beginning with view 0.
            refine_at: shares of the denoising steps at which x0 is refined; published: steps 20, 30 and 40 of 50.
            guidance: `after` refines both branches and then mixes them, as published; `before` mixes them and refines
                once, at half the cost.
            render_size: pixels of a render's side, brought to the size of the views then.
            background: grey behind renders.
            fov_deg: field of view that the head was trained with; null: that of the data.
            published_sampling_axes: see utils.cameras.head_cameras.
        """

        head: dict[str, Any] = field(default_factory=dict)
        pretrained: str | None = None
        input_views: list[int] = field(default_factory=list)
        refine_at: list[float] = field(default_factory=lambda: [0.4, 0.6, 0.8])
        guidance: str = "after"
        render_size: int = 512
        background: float = 0.5
        fov_deg: float | None = None
        published_sampling_axes: bool = False

        def __post_init__(self) -> None:
            if self.guidance not in GUIDANCE_ORDERS:
                raise ConfigError(f"guidance={self.guidance} is unknown; valid: {', '.join(GUIDANCE_ORDERS)}")
            if not all(0 <= fraction < 1 for fraction in self.refine_at):
                raise ConfigError(f"refine_at must lie in [0, 1), got {list(self.refine_at)}")
            if self.render_size < 8 or not 0 <= self.background <= 1:
                raise ConfigError(
                    f"render_size must be >= 8 and background lie in [0, 1], got {self.render_size}, {self.background}"
                )
            if self.fov_deg is not None and not 0 < self.fov_deg < 180:
                raise ConfigError(f"fov_deg must lie in (0, 180), got {self.fov_deg}")
            wanted = self.head_config.num_input_views
            if self.input_views and len(self.input_views) != wanted:
                raise ConfigError(f"input_views={list(self.input_views)}, but the head takes {wanted} views")

        @property
        def head_config(self) -> LGM.Config:
            """The checked sizes of the head."""
            return MODEL.resolve({"type": "LGM", **self.head}, where="reconstruction.head")[1]

        @property
        def fov(self) -> float:
            """Field of view in degrees."""
            return DATA_FOV_DEG if self.fov_deg is None else self.fov_deg
