"""The section `lora` of a configuration: low-rank updates of the UNet, in training and in sampling."""

from __future__ import annotations

from dataclasses import dataclass, field

from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Options of the low-rank update that is added to the weights of the UNet.

    Attributes:
        rank: for training: inner width of the factors, which are then the only trained weights; 0 trains all weights
            of the UNet without LoRA.
        alpha: for training: the product of the factors is multiplied by alpha / rank; 0 means alpha = rank.
        targets: for training: endings of the names of the linear layers and 2D convolutions that get factors.
        path: for sampling: a LoRA file that a training has written.
        weight: for sampling: scale of the update; 1 is the update as trained, 0 is no update.
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
            raise ConfigError("lora.targets is empty; list layer names, e.g. [to_q, to_k, to_v, to_out.0]")
