"""One process for each device, started by the command itself where no launcher did; signals and precision of each."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.tracking import get_available_trackers

from pipelines.training.objectives.base import Objective
from utils.devices import pick_device
from utils.errors import ConfigError
from utils.processes import is_main
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
STARTED_HERE = "VIDEOMV_STARTED_HERE"
BY_A_LAUNCHER = ("RANK", "LOCAL_RANK")
BY_ACCELERATE = "ACCELERATE_DYNAMO_BACKEND"  # set by `accelerate launch` only, also where it starts a single process
ENGINES_OF_ACCELERATE = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
# The main process writes files and samples previews while the others wait.
PATIENCE = timedelta(hours=12)
BACKENDS = "cpu:gloo,cuda:nccl"  # decisions are taken together on the CPU, so that none waits for a GPU
TURN_S = 0.5  # for threads that want the interpreter
REPEAT_S = 2.0  # in which a signal may come twice
GRACE_S = 5.0  # between the first failure and the end of the other processes


def processes_to_start(cfg: RunConfig) -> int:
    """How many processes this command has to start; 1 when it trains by itself, as a launcher's process does.

    Raises:
        ConfigError: `num_processes` and `device` do not fit each other or the machine, or accelerate was told to divide
            the model, which would not reach the files that are written here.
    """
    engines = [name for name in ENGINES_OF_ACCELERATE if os.environ.get(name, "").lower() in ("1", "true", "yes")]
    if engines:
        raise ConfigError(f"accelerate launch has set {engines[0]}; launch without it and set use_fsdp=true here")
    if any(name in os.environ for name in BY_A_LAUNCHER):
        return 1
    if BY_ACCELERATE in os.environ and not cfg.num_processes:
        return 1
    on_cpu = pick_device(cfg.device).type == "cpu"
    num_devices = torch.cuda.device_count() if cfg.device in ("auto", "cuda") and not on_cpu else 1
    if cfg.num_processes > num_devices and not on_cpu:
        raise ConfigError(
            f"num_processes={cfg.num_processes}, but device={cfg.device} has {num_devices}; set it to 0 for all of them"
        )
    return cfg.num_processes or num_devices


def run_processes(num: int, command: Sequence[str]) -> int:
    """Run the command `num` times as one group, and wait.

    By hand, because torch.distributed.run kills its processes on the first signal: here each of them ends its step and
    saves, and all of them end when this one is killed.

    Signals are passed on once each. When a process fails, the others end too; when this one is killed, all do.

    Returns:
        The exit code of the first process that failed, else 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), STARTED_HERE: "1"}
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,  # its end tells the process that this one is gone
            start_new_session=True,  # else Ctrl-C would come twice
        )
        for rank in range(num)
    ]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: [one.send_signal(received) for one in processes])
    failed_at, code = None, 0
    while any(one.poll() is None for one in processes):
        time.sleep(0.1)
        failures = [one.returncode for one in processes if one.returncode]
        if failures and failed_at is None:
            failed_at, code = time.monotonic(), failures[0]
        if failed_at is not None and time.monotonic() - failed_at > GRACE_S:
            for one in processes:
                one.kill()
    return code or next((one.returncode for one in processes if one.returncode), 0)


def join_processes(cfg: RunConfig) -> torch.device:
    """Become one of the processes that train together, if there are several; the device of this one.

    Raises:
        ConfigError: the device does not exist here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return pick_device(cfg.device)
    if STARTED_HERE in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    on_cpu = pick_device(cfg.device).type == "cpu"
    device = PartialState(cpu=on_cpu, timeout=PATIENCE, **({} if on_cpu else {"backend": BACKENDS})).device
    if not is_main():
        logging.getLogger().setLevel(logging.WARNING)
    return device


def _end_with_parent() -> None:
    """Standard input ends with the process that started this one."""
    while os.read(0, 1):  # not through sys.stdin, whose lock would be held when this process ends
        pass
    os._exit(1)


def check_tracker(cfg: RunConfig) -> None:
    """Refuse a tracker whose package is not there; accelerate would train without it.

    Raises:
        ConfigError: see above.
    """
    if cfg.tracker != "none" and cfg.tracker not in [str(tracker.value) for tracker in get_available_trackers()]:
        raise ConfigError(
            f"tracker={cfg.tracker} is not installed here; run `pip install {cfg.tracker}`, or use tensorboard or none"
        )


def make_accelerator(cfg: RunConfig, objective: Objective, *, folder: Path) -> Accelerator:
    """Accelerate's view of the run: device, precision, tracker."""
    precision = cfg.precision
    if precision == "auto":
        precision = "bfloat16" if objective.device.type == "cuda" else "float32"
    exchange = DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=not objective.reaches_all
    )
    accelerator = Accelerator(
        cpu=objective.device.type == "cpu",
        mixed_precision=MIXED_PRECISION[precision],
        log_with=None if cfg.tracker == "none" else cfg.tracker,
        project_dir=folder,
        kwargs_handlers=[exchange],
    )
    if cfg.tracker != "none":
        # TensorBoard's is a folder in the run's, the others' a project
        accelerator.init_trackers("log" if cfg.tracker == "tensorboard" else folder.resolve().name)
    return accelerator


def leave_processes(accelerator: Accelerator) -> None:
    """End the group of processes; whoever holds a wrapped model lets go of it before.

    Gloo's threads need the interpreter to let go of their last task (torch 2.10). Whoever takes the group apart holds
    the interpreter and waits for them: so no wrapped model may be the last owner of the group, and they get their turn.
    """
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        accelerator.free_memory()
        time.sleep(TURN_S)
    accelerator.end_training()


@contextmanager
def watch_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM fill the list instead of ending the program; a second one ends it at once.

    The same signal again within REPEAT_S is the first one: a launcher passes on what Slurm sends to all processes.
    """
    received: list[int] = []
    since: dict[int, float] = {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        now = time.monotonic()
        if number not in since:
            log.info("stopping after this step")
            received.append(number)
            since[number] = now
        elif now - since[number] > REPEAT_S:
            signal.signal(number, handlers[number])
            signal.raise_signal(number)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
