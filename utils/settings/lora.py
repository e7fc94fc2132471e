"""Low-rank additions to the UNet, in training and in sampling: the section `lora` of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """What is added to the weights of the UNet.

    Attributes:
        rank: training: inner width of the factors, which then are all that trains; 0 trains the weights themselves.
        alpha: training: the product of the factors is multiplied by alpha / rank; 0 stands for rank.
        targets: training: ends of the names of the linear layers and 2D convolutions that get factors.
        path: sampling: the file that a training left.
        weight: sampling: by which the addition is multiplied; 1 is as trained, 0 leaves it out.
    """

    rank: int = 0
    alpha: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    path: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 0:
                raise ConfigError(f"lora.{name} must not be negative, got {getattr(self, name)}")
        if self.rank and not self.targets:
            raise ConfigError("lora.targets is empty; name layers, e.g. [to_q, to_k, to_v, to_out.0]")
