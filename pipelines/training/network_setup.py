"""Prepare a network for training: compile or fuse it, and choose how processes average gradients."""

from __future__ import annotations

import logging

from accelerate import Accelerator

from models.fused.graphs import graph_for_training
from models.fused.training import fuse_for_training
from pipelines.training.objectives.base import Objective
from utils.processes import on_one_machine
from utils.settings.run import RunConfig
from utils.torch_settings import compile_parts

log = logging.getLogger(__name__)


def exchanges_afterwards(cfg: RunConfig, objective: Objective, accelerator: Accelerator) -> bool:
    """Whether gradients are averaged after the backward pass (pipelines/training/parallel.py), not by DDP or FSDP.

    `use_ddp` decides. With null, this is true if the passes can be CUDA graphs and all GPUs are in one machine.
    """
    if accelerator.num_processes == 1 or cfg.use_fsdp:
        return False
    if cfg.use_ddp is None:
        return on_one_machine() and _can_be_graphed(cfg, objective, accelerator)
    return not cfg.use_ddp


def prepare_network(cfg: RunConfig, objective: Objective, accelerator: Accelerator) -> None:
    """Compile or fuse the network in place, as set in the configuration; this must come before FSDP divides it."""
    if cfg.compile:
        compile_parts(objective.parts_to_compile(), only_forward=cfg.use_fsdp)
    elif cfg.fused:
        fuse_for_training(objective.parts_to_compile())
    # DDP and FSDP attach their gradient exchange to nodes of the backward pass, which a CUDA graph does not have.
    afterwards = exchanges_afterwards(cfg, objective, accelerator)
    if (afterwards or accelerator.num_processes == 1) and _can_be_graphed(cfg, objective, accelerator):
        graph_for_training(objective.network)
    if afterwards:
        log.info("gradients are exchanged after each pass; use_ddp=true exchanges them during it, without CUDA graphs")


def _can_be_graphed(cfg: RunConfig, objective: Objective, accelerator: Accelerator) -> bool:
    chosen = cfg.cuda_graph and cfg.fused and not cfg.compile
    half = accelerator.mixed_precision != "no" and accelerator.device.type == "cuda"
    # A second backward pass would overwrite the gradients of the first, and images have another shape than orbits.
    one_pass = cfg.grad_accumulation == 1 and not cfg.is_joint
    return chosen and half and one_pass and objective.can_be_graphed
