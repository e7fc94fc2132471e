"""Messages between the nodes and their worker: a JSON header and tensors, over two pipes.

A message is the length of the header in 8 bytes (little endian), the header as UTF-8 JSON, the length of the tensors in
8 bytes, and the tensors as a safetensors file. Nothing is unpickled, so that neither side can run code of the other.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from safetensors.torch import load, save
from torch import Tensor

LENGTH_BYTES = 8


def write_message(stream: BinaryIO, header: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
    """Write one message and flush.

    Args:
        header: JSON values.
        tensors: on any device; they arrive on the CPU.
    """
    values = {name: value.detach().cpu().contiguous() for name, value in (tensors or {}).items()}
    for part in (json.dumps(header).encode(), save(values)):
        stream.write(len(part).to_bytes(LENGTH_BYTES, "little"))
        stream.write(part)
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Wait for one message and return its header and its tensors.

    Raises:
        EOFError: the other side has closed the pipe.
    """
    header, tensors = (_read(stream, int.from_bytes(_read(stream, LENGTH_BYTES), "little")) for _ in range(2))
    return json.loads(header), load(tensors)


def _read(stream: BinaryIO, number: int) -> bytes:
    content = bytearray()
    while len(content) < number:
        part = stream.read(number - len(content))
        if not part:
            raise EOFError("the other process has ended")
        content += part
    return bytes(content)
