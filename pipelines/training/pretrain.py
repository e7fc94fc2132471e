"""Fine-tuning from a checkpoint, with special treatment of weights from an image model ("SD keys")."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from models.backbone import Backbone
from models.weights import load_strict
from pipelines.training.parallel import local
from utils.errors import ConfigError
from utils.registry import PRETRAIN

log = logging.getLogger(__name__)

BLOCKS = ("input_blocks", "middle_block", "output_blocks")
SPATIAL_LAYERS = ("in_layers", "emb_layers", "out_layers", "skip_connection", "conv", "op")


def is_sd_key(name: str) -> bool:
    """Whether a parameter of the UNet comes from its image model (Stable Diffusion 2.1).

    These parameters are the first convolution, the spatial parts of residual blocks, up- and downsampling, spatial
    transformers and the output head. Temporal layers, the embeddings of timestep and camera, and the image condition
    are not among them.
    """
    top, *parts = name.split(".")
    if top == "out":
        return True
    if top not in BLOCKS or "temopral_conv" in parts:
        return False
    if top != "middle_block":
        block, *parts = parts
        if top == "input_blocks" and block == "0":  # the first convolution; the transformer in this block is temporal
            return parts[0] == "0"
    if parts[0] in SPATIAL_LAYERS:
        return True
    # Within a block: 0 residual, 1 spatial transformer (or upsampling), 2 temporal transformer, then the rest.
    return parts[1] in SPATIAL_LAYERS or parts[0] == "1"


@PRETRAIN.register(name="pretrain_specific_strategies")
class SpatialWeights:
    """Starts from a checkpoint, and slows down or stops the training of SD keys."""

    retired_keys = {"sd_keys_path": "the architecture determines the names"}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            resume_checkpoint: weight file for the start; its step count continues. null: random weights.
            fix_weight: freeze SD keys.
            grad_scale: factor for the gradients of SD keys.
            new_parts: modules that may be missing in the checkpoint; VideoMV started from a text-to-video model without
                cameras.
        """

        resume_checkpoint: str | None = None
        fix_weight: bool = False
        grad_scale: float = 1.0
        new_parts: list[str] = field(default_factory=lambda: ["camera_embedding"])

        def __post_init__(self) -> None:
            if self.grad_scale < 0:
                raise ConfigError(f"grad_scale must not be negative, got {self.grad_scale}")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._network: nn.Module | None = None

    def apply(self, network: nn.Module) -> int:
        """Load the checkpoint, and freeze SD keys with `fix_weight`.

        Returns:
            The step of the checkpoint, at which training continues; 0 without one.

        Raises:
            DataError: the checkpoint is missing or does not fit.
        """
        step = None
        if self.config.resume_checkpoint:
            options = {"option": "Pretrain.resume_checkpoint", "new_parts": self.config.new_parts}
            if isinstance(network, Backbone):
                step = network.load_weights(self.config.resume_checkpoint, **options)
            else:
                step = load_strict(network, self.config.resume_checkpoint, **options)
            log.info("Pretrain: %s%s", self.config.resume_checkpoint, "" if step is None else f", step {step}")
        spatial = [parameter for name, parameter in network.named_parameters() if is_sd_key(name)]
        if not spatial and (self.config.fix_weight or self.config.grad_scale != 1):
            log.warning(
                "Pretrain.fix_weight and Pretrain.grad_scale have no effect: %s has no weights of an image model",
                type(network).__name__,
            )
        if self.config.fix_weight:
            for parameter in spatial:
                parameter.requires_grad_(False)
        elif self.config.grad_scale != 1:
            self._network = network
        return step or 0

    def after_backward(self) -> None:
        """Scale the gradients of SD keys with `grad_scale`."""
        grads = [local(parameter.grad) for parameter in self._slowed if parameter.grad is not None]
        if grads:
            torch._foreach_mul_(grads, self.config.grad_scale)

    @cached_property
    def _slowed(self) -> list[nn.Parameter]:
        """The slowed parameters, found after the first backward pass because FSDP replaces parameters."""
        named = self._network.named_parameters() if self._network else ()
        return [parameter for name, parameter in named if is_sd_key(name)]
