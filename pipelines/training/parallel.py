"""Training on several processes: sharding with FSDP2 (`use_fsdp`), and averaging gradients without DDP.

With FSDP2 each process stores a slice of every parameter, its gradient, its optimizer state and its moving average. The
weights of a block are complete only while it runs. Files contain complete tensors, so a training can continue with or
without FSDP, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from utils.errors import ConfigError
from utils.processes import is_main, num_processes, take_from_main
from utils.settings.run import RunConfig

# FSDP2 is imported only where it is used, because the import takes two seconds.
if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def check_sharding(cfg: RunConfig, entrance: str, *, can_be_sharded: bool) -> None:
    """Check that `use_fsdp` fits the other settings.

    Raises:
        ConfigError: it does not.
    """
    if not cfg.use_fsdp:
        return
    if not can_be_sharded:
        raise ConfigError(f"use_fsdp=true supports only UNet training, but TASK_TYPE={entrance}; set use_fsdp=false")
    if cfg.precision == "float16":
        raise ConfigError("use_fsdp=true does not support precision=float16; set precision=bfloat16")


def shard(network: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Shard a network over all processes, in place; nothing changes with one process.

    This replaces the parameters, so optimizers and averages must be made afterwards.

    Args:
        network: the network on its device, with a forward pass as a whole. All processes get the main process's
            weights.
        blocks: parts of the network; the weights of each are gathered together for its forward pass.
    """
    if num_processes() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP supports no other memory format
    take_from_main(network)
    mesh = init_device_mesh(next(network.parameters()).device.type, (num_processes(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # The rest of the network is also resharded after each pass, because files and averages need slices.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def is_sharded(network: nn.Module) -> bool:
    """Whether the network is sharded."""
    return any(_is_divided(parameter) for parameter in network.parameters())


def _is_divided(value: Any) -> TypeGuard[DTensor]:
    return hasattr(value, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """Return this process's slice of a sharded tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if _is_divided(tensor) else tensor


def put_together(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Replace sharded tensors in a dict (of dicts) with complete tensors on the CPU.

    All processes must call this with the same keys in the same order. Only the main process gets the result; the others
    get an empty dict.
    """
    whole = {key: _whole(value) for key, value in content.items()}
    return whole if is_main() else {}


def _whole(value: Any) -> Any:
    if _is_divided(value):
        gathered = value.full_tensor()
        return gathered.cpu() if is_main() else None
    return put_together(value) if isinstance(value, Mapping) else value


def like(whole: Tensor, target: Tensor) -> Tensor:
    """Place and shard a complete tensor, equal on all processes, like `target`.

    The memory format is also that of `target`, because AdamW's kernels need moments in the format of their parameters.
    """
    if _is_divided(target):
        from torch.distributed.tensor import distribute_tensor

        whole = whole.to(target.device).contiguous()  # the memory format of FSDP
        return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
    return torch.empty_like(target, dtype=whole.dtype).copy_(whole)


BUCKET = 32 << 20  # minimum number of elements that are exchanged together


def check_exchange(cfg: RunConfig) -> None:
    """Check that `use_ddp=false` is possible: all processes must have gradients of the same parameters.

    Raises:
        ConfigError: they do not.
    """
    if cfg.is_joint and cfg.use_ddp is False:
        raise ConfigError(
            f"use_ddp=false does not support frame_lens={list(cfg.frame_lens)}, because images do not use the layers "
            "over views; set use_ddp=null"
        )


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes; all processes must have the same set of gradients."""
    before = None
    for bucket in _buckets([_as_stored(parameter.grad) for parameter in parameters if parameter.grad is not None]):
        joined = torch.cat(bucket)
        work = distributed.all_reduce(joined, async_op=True)
        if before:  # copy the previous bucket while this one is exchanged
            _spread(*before)
        before = work, joined, bucket
    if before:
        _spread(*before)


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket, size = [], 0
    for gradient in gradients:
        bucket.append(gradient)
        size += len(gradient)
        if size >= BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def _spread(work: distributed.Work, joined: Tensor, bucket: list[Tensor]) -> None:
    work.wait()
    joined /= num_processes()
    torch._foreach_copy_(bucket, list(joined.split([len(gradient) for gradient in bucket])))


def _as_stored(gradient: Tensor) -> Tensor:
    """View a gradient as one dimension in the order of its memory, without a copy."""
    by_stride = sorted(range(gradient.dim()), key=gradient.stride, reverse=True)
    return gradient.permute(by_stride).view(-1)
