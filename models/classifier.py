"""A small classifier that recognises kind and colour of the object in a view. Only evaluation uses it.

Letters: B batch, C channels, H W pixels, K kinds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from models.weights import load_strict, read_metadata
from utils.errors import ConfigError, DataError
from utils.registry import MODEL


class ViewLogits(NamedTuple):
    """Logits of kinds (B, number of kinds) and of colours (B, number of colours)."""

    kind: Tensor
    color: Tensor


@MODEL.register
class ViewClassifier(nn.Module):
    """Computes logits of kind and colour from views."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            kinds: names in the order of the logits; with `pretrained`, they come from the weight file.
            colors: names of colours, in the same way.
            width: channels after the first convolution; each of the three further levels adds this number.
            pretrained: safetensors file with the names in its header; null for untrained weights.
        """

        kinds: list[str] = field(default_factory=list)
        colors: list[str] = field(default_factory=list)
        width: int = 32
        pretrained: str | None = None

        def __post_init__(self) -> None:
            if self.width < 8 or self.width % 8:
                raise ConfigError(f"width must be a multiple of 8, got {self.width}")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.kinds, self.colors = list(config.kinds), list(config.colors)
        if config.pretrained:
            self.kinds, self.colors = read_labels(config.pretrained)
        if not self.kinds or not self.colors:
            raise ConfigError(
                "classifier.kinds or classifier.colors is empty; set both, or classifier.pretrained to a file with them"
            )
        widths = [config.width * level for level in (1, 2, 3, 4)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, stride=2, padding=2)]
        for before, after in zip(widths, [*widths[1:], widths[-1]], strict=True):
            layers += [nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, after, 3, stride=2, padding=1)]
        self.features = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU())
        self.kind = nn.Linear(widths[-1], len(self.kinds))
        self.color = nn.Linear(widths[-1], len(self.colors))
        if config.pretrained:
            load_strict(self, config.pretrained, option="classifier.pretrained")

    def forward(self, images_B3HW: Tensor) -> ViewLogits:
        """Classify images in [0, 1] that are at least 32 pixels wide."""
        features_BC = self.features(images_B3HW * 2 - 1).mean(dim=(2, 3))
        return ViewLogits(kind=self.kind(features_BC), color=self.color(features_BC))

    def metadata(self) -> dict[str, str]:
        """Names of kinds and colours, for the header of the weight file."""
        return {"kinds": json.dumps(self.kinds), "colors": json.dumps(self.colors)}


def read_labels(path: str | Path) -> tuple[list[str], list[str]]:
    """Names of kinds and colours from the header of a classifier's weight file.

    Raises:
        DataError: the file is missing or has no names.
    """
    header = read_metadata(path, option="classifier.pretrained")
    if "kinds" not in header or "colors" not in header:
        raise DataError(
            f"classifier.pretrained={path} is not a classifier, its header has no kinds and colors; "
            "name a file from configs/mini/classifier.yaml"
        )
    return json.loads(header["kinds"]), json.loads(header["colors"])
