"""Train the classifier of evaluation, which recognises kind and colour in single views.

Letters: B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.training.data.orbits_in_memory import OrbitPixels, load_orbits
from pipelines.training.objectives.base import Objective
from utils.errors import ConfigError, DataError
from utils.registry import ENGINE, MODEL
from utils.settings.run import RunConfig


@ENGINE.register(name="train_classifier_entrance")
class NameViews(Objective):
    """Cross-entropy of kind and colour on augmented views, so that small flaws of a generator do not matter."""

    stem = "classifier"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            zoom: maximum factor by which a view is made smaller or larger.
            noise: maximum standard deviation of the noise that is added to pixels.
        """

        zoom: float = 1.25
        noise: float = 0.05

        def __post_init__(self) -> None:
            if self.zoom < 1 or self.noise < 0:
                raise ConfigError(f"zoom must be >= 1 and noise >= 0, got {self.zoom} and {self.noise}")

    @classmethod
    def weight_files(cls, options: Config, cfg: RunConfig) -> dict[str, str | None]:
        return super().weight_files(options, cfg) | {"classifier.pretrained": cfg.classifier.pretrained}

    def __init__(self, config: Config, *, cfg: RunConfig, device: torch.device) -> None:
        super().__init__(cfg, device=device, num_views=1)
        self.config = config
        self.orbits = load_orbits(cfg.vid_dataset.build(), device=device)
        names = {key: sorted({_attribute(record, key) for record in self.orbits.attributes}) for key in LABELS}
        options = {"kinds": names["kind"], "colors": names["color"], **cfg.classifier.given}
        self.network = MODEL.build(options, where="classifier")
        self.kind_N = self._labels("kind", self.network.kinds)
        self.color_N = self._labels("color", self.network.colors)

    def _labels(self, key: str, names: list[str]) -> Tensor:
        unknown = sorted({record[key] for record in self.orbits.attributes} - set(names))
        if unknown:
            raise ConfigError(
                f"classifier does not list the {key} {unknown[0]}, but the data set has it; add it, or remove the list"
            )
        return torch.tensor([names.index(record[key]) for record in self.orbits.attributes], device=self.device)

    @property
    def sample_source(self) -> OrbitPixels:
        return self.orbits

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for orbits_B, views_B in self.global_batch.single_views(
            self.orbits.num_orbits, self.orbits.num_views, start=start
        ):
            images_B3HW, _ = self.orbits.views(orbits_B, views_B)
            yield (
                self.disturb(images_B3HW),
                self.kind_N[orbits_B.to(self.device)],
                self.color_N[orbits_B.to(self.device)],
            )

    def disturb(self, images_B3HW: Tensor) -> Tensor:
        """Zoom, mirror, blur and add noise, at random for each image; pixels outside repeat the border."""
        B, *_, side = images_B3HW.shape
        random_B4 = self.global_batch.rand(B, 4)
        zoom_B = self.config.zoom ** (2 * random_B4[:, 0] - 1)
        mirror_B = torch.where(random_B4[:, 1] < 0.5, -1.0, 1.0)
        theta_B23 = images_B3HW.new_zeros(B, 2, 3)
        theta_B23[:, 0, 0], theta_B23[:, 1, 1] = zoom_B * mirror_B, zoom_B
        grid = functional.affine_grid(theta_B23, list(images_B3HW.shape), align_corners=False)
        images_B3HW = functional.grid_sample(images_B3HW, grid, padding_mode="border", align_corners=False)
        small = functional.interpolate(images_B3HW, size=side // 2, mode="bilinear", antialias=True)
        soft = functional.interpolate(small, size=images_B3HW.shape[-2:], mode="bilinear")
        images_B3HW = torch.lerp(images_B3HW, soft, random_B4[:, 2, None, None, None])
        noise = self.global_batch.randn(*images_B3HW.shape)
        return (images_B3HW + self.config.noise * random_B4[:, 3, None, None, None] * noise).clamp(0, 1)

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images_B3HW, kind_B, color_B = batch
        logits = self.network(images_B3HW)
        loss = functional.cross_entropy(logits.kind.float(), kind_B)
        loss = loss + functional.cross_entropy(logits.color.float(), color_B)
        right = {"kind": (logits.kind.argmax(1) == kind_B), "color": (logits.color.argmax(1) == color_B)}
        return loss, {name: value.float().mean() for name, value in right.items()}

    def metadata(self) -> dict[str, str]:
        return self.network.metadata()


LABELS = ("kind", "color")


def _attribute(record: dict[str, str], key: str) -> str:
    if key not in record:
        raise DataError(f"vid_dataset has objects without the attribute {key}; make it with tools/make_zoo.py --packed")
    return record[key]
