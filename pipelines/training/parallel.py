"""One network divided among the processes that train it: FSDP2, chosen by `use_fsdp`.

Each process keeps a slice of every parameter, of its gradient, of what the optimizer keeps of it and of its moving
average; a block's weights are whole only while it works. Files hold whole tensors, so a training can go on with or
without division, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from utils.errors import ConfigError
from utils.processes import is_main, num_processes, take_from_main
from utils.settings.run import RunConfig

# Elsewhere FSDP2 waits until it is asked for: importing it takes two seconds.
if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def check_sharding(cfg: RunConfig, entrance: str, *, can_be_sharded: bool) -> None:
    """Refuse `use_fsdp` where it does not go.

    Raises:
        ConfigError: see above.
    """
    if not cfg.use_fsdp:
        return
    if not can_be_sharded:
        raise ConfigError(f"use_fsdp=true supports only UNet training, but TASK_TYPE={entrance}; set use_fsdp=false")
    if cfg.precision == "float16":
        raise ConfigError("use_fsdp=true does not go with precision=float16; set precision=bfloat16")


def shard(network: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Divide a network among all processes, in place; one process keeps it whole.

    Parameters are new objects then: whoever holds the old ones (an optimizer, an average) is to be made afterwards.

    Args:
        network: is called as a whole; on its device. What the main process has counts.
        blocks: parts of it whose weights are gathered together, each called by itself.
    """
    if num_processes() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no other memory format
    take_from_main(network)
    mesh = init_device_mesh(next(network.parameters()).device.type, (num_processes(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # The rest of the network too gives its memory back between the passes: files and averages read slices then.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def is_sharded(network: nn.Module) -> bool:
    """Whether the network is divided."""
    return any(_is_divided(parameter) for parameter in network.parameters())


def _is_divided(value: Any) -> TypeGuard[DTensor]:
    return hasattr(value, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This process's slice; of a tensor that is not divided, the tensor."""
    return tensor.to_local() if _is_divided(tensor) else tensor


def put_together(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Replace divided tensors in a dict (of dicts) by whole ones on the CPU.

    All processes call it with the same keys in the same order; only the main one keeps what comes out.
    """
    whole = {key: _whole(value) for key, value in content.items()}
    return whole if is_main() else {}


def _whole(value: Any) -> Any:
    if _is_divided(value):
        gathered = value.full_tensor()
        return gathered.cpu() if is_main() else None
    return put_together(value) if isinstance(value, Mapping) else value


def like(whole: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, the same on all processes, placed and divided as `target` is.

    Its numbers also lie in the same order: AdamW's kernels refuse moments that lie otherwise than their parameters.
    """
    if _is_divided(target):
        from torch.distributed.tensor import distribute_tensor

        whole = whole.to(target.device).contiguous()  # as FSDP keeps them
        return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
    return torch.empty_like(target, dtype=whole.dtype).copy_(whole)


BUCKET = 32 << 20  # elements that travel together, at least


def check_exchange(cfg: RunConfig) -> None:
    """Refuse `use_ddp=false` where processes may have gradients of other parameters.

    Raises:
        ConfigError: see above.
    """
    if cfg.is_joint and cfg.use_ddp is False:
        raise ConfigError(
            f"use_ddp=false does not go with frame_lens={list(cfg.frame_lens)}: images leave layers over views out; "
            "set use_ddp=null"
        )


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, in place; all have gradients of the same parameters."""
    before = None
    for bucket in _buckets([_as_stored(parameter.grad) for parameter in parameters if parameter.grad is not None]):
        joined = torch.cat(bucket)
        work = distributed.all_reduce(joined, async_op=True)
        if before:  # is spread while this one travels
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
    """The same memory as one row of numbers, in the order in which they lie there."""
    by_stride = sorted(range(gradient.dim()), key=gradient.stride, reverse=True)
    return gradient.permute(by_stride).view(-1)
