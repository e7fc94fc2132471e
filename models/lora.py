"""Low-rank additions to the linear layers of a network (LoRA, arXiv:2106.09685), with peft.

A file contains the two factors of each layer, `NAME.lora_A.weight` and `NAME.lora_B.weight`. Their product is added to
the weight; the scale of the training is already inside.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from models.weights import check_finite, check_tensors, read_weights
from utils.errors import ConfigError, DataError

# peft is imported only when factors are used, because it imports transformers, which takes seconds.
if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

log = logging.getLogger(__name__)

FACTORS = ("lora_A", "lora_B")
# No subclasses and no 1D convolutions, because the UNet uses the weights of those without calling the layers.
KINDS = (nn.Linear, nn.Conv2d)


def add_lora(network: nn.Module, *, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Add trainable factors to some layers, in place, and freeze everything else. At first the addition is 0.

    Args:
        rank: inner dimension of the factors.
        alpha: the product is multiplied by alpha / rank.
        targets: name endings of linear layers and 2D convolutions.

    Raises:
        ConfigError: no layer has one of the names.
    """
    from peft import inject_adapter_in_model

    layers = {name for name, module in network.named_modules() if type(module) in KINDS}
    chosen: set[str] = set()
    for target in targets:
        found = {name for name in layers if name == target or name.endswith(f".{target}")}
        if not found:
            raise ConfigError(
                f"lora.targets: no linear layer or 2D convolution of {type(network).__name__} is called {target}; "
                "use names such as to_q"
            )
        chosen |= found
    inject_adapter_in_model(_config(rank, sorted(chosen), alpha=alpha), network)


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """The factors, multiplied by the scale of the training."""
    from peft import get_peft_model_state_dict

    scales = {name: layer.scaling["default"] for name, layer in _layers(network)}
    state = get_peft_model_state_dict(network)
    return {
        key: value * scales[key.rpartition(".lora_B")[0]] if ".lora_B" in key else value for key, value in state.items()
    }


def merge_lora(network: nn.Module, path: str | Path, *, weight: float) -> int | None:
    """Add the product of the factors in a file to the weights of a network, in place.

    Args:
        weight: factor of the addition; 1 is the trained strength.

    Returns:
        The step of the file, if it is known.

    Raises:
        DataError: the file cannot be read, does not fit the network, or has values that are not finite.
    """
    from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    weights = read_weights(path, option="lora.path")
    layers = {key.rpartition(f".{factor}.")[0] for key in weights.state for factor in FACTORS if f".{factor}." in key}
    unknown = sorted(layers - {name for name, _ in network.named_modules()})
    if not layers or unknown:
        reason = f"the network has no layer {unknown[0]}" if unknown else "the file has no lora_A and lora_B"
        raise DataError(f"lora.path={path} does not fit {type(network).__name__}: {reason}")
    rank = len(next(value for key, value in weights.state.items() if ".lora_A." in key))
    inject_adapter_in_model(_config(rank, sorted(layers), alpha=rank), network)
    wanted = get_peft_model_state_dict(network)
    check_tensors(weights.state, wanted, source=f"lora.path={path}", owner=type(network).__name__)
    check_finite(weights.state, source=f"lora.path={path}")
    set_peft_model_state_dict(network, {key: value.to(wanted[key]) for key, value in weights.state.items()})
    for name, layer in _layers(network):
        layer.scale_layer(weight)
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer.get_base_layer())
    network.requires_grad_(True)
    return weights.step


def _layers(network: nn.Module) -> list[tuple[str, LoraLayer]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]


def _config(rank: int, targets: Sequence[str], *, alpha: float) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
