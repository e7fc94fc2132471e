"""The process that does the work of the nodes, with networks that stay loaded.

    python -m tools.comfyui.worker

reads requests from standard input and writes answers to standard output, see messages.py. It ends when its input is
closed. ComfyUI has modules of its own that are named like ours (`utils`), so our code cannot be imported there.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from torch import Tensor

from tools.comfyui.messages import read_message, write_message
from tools.comfyui.work import Work
from utils.errors import first_line
from utils.script import user_error


def serve(requests: BinaryIO, answers: BinaryIO, work: Work) -> None:
    """Answer requests until there are no more.

    Each request gets any number of messages {"kind": "progress", "step", "num_steps"} and then one
    {"kind": "answer", ...} or {"kind": "error", "message"}.
    """

    def progress(step: int, num_steps: int) -> None:
        write_message(answers, {"kind": "progress", "step": step, "num_steps": num_steps})

    kinds: dict[str, Callable[..., tuple[dict[str, Any], dict[str, Tensor]]]] = {
        "cameras": work.cameras,
        "sample": work.sample,
        "reconstruct": work.reconstruct,
    }
    while True:
        try:
            request, tensors = read_message(requests)
        except EOFError:
            return
        try:
            answer, results = kinds[request.pop("kind")](tensors=tensors, progress=progress, **request)
        except Exception as err:  # the process stays for the next request
            line = user_error(err) or (first_line(err) if isinstance(err, ValueError) else None)
            if line is None:
                traceback.print_exc()
                line = f"{type(err).__name__}: {first_line(err)}; the log of ComfyUI has the details"
            write_message(answers, {"kind": "error", "message": line})
        else:
            write_message(answers, {"kind": "answer", **answer}, results)


def main() -> None:
    """Serve standard input and output; what is printed goes to standard error instead."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    serve(sys.stdin.buffer, answers, Work())


if __name__ == "__main__":
    main()
