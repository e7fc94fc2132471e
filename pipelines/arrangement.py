"""How a network is arranged for training: compiled, fused, or as it is."""

from __future__ import annotations

from accelerate import Accelerator

from models.fused_training import fuse_for_training
from models.graphed_training import graph_for_training
from pipelines.gradient_exchange import exchanges_afterwards
from pipelines.objectives.base import Objective
from utils.compilation import compile_parts
from utils.run_config import RunConfig


def arrange(cfg: RunConfig, objective: Objective, accelerator: Accelerator) -> None:
    """Compile the network's parts, or let the UNet run fused, as the settings say; in place, before it is divided."""
    if cfg.compile:
        compile_parts(objective.parts_to_compile(), only_forward=cfg.use_fsdp)
    elif cfg.fused:
        fuse_for_training(objective.parts_to_compile())
        if cfg.cuda_graph and _can_be_graphed(cfg, objective, accelerator):
            graph_for_training(objective.network)


def _can_be_graphed(cfg: RunConfig, objective: Objective, accelerator: Accelerator) -> bool:
    half = accelerator.mixed_precision != "no" and accelerator.device.type == "cuda"
    # A second backward pass would overwrite the first one's gradients, and images have another shape than orbits.
    one_pass = cfg.grad_accumulation == 1 and not cfg.is_joint
    # DDP and FSDP hang their exchange of gradients on nodes of the backward pass, which a graph has not.
    free = accelerator.num_processes == 1 or exchanges_afterwards(cfg)
    return half and one_pass and free and getattr(objective.network, "can_be_graphed", False)
