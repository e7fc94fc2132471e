"""Start one training process per device, unless a launcher has done it; handle signals and set up accelerate."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.tracking import get_available_trackers

from pipelines.training.objectives.base import Objective
from utils.devices import DTYPES, fast_dtype, pick_device
from utils.errors import ConfigError
from utils.processes import is_main
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

MIXED_PRECISION = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
STARTED_HERE = "VIDEOMV_STARTED_HERE"
BY_A_LAUNCHER = ("RANK", "LOCAL_RANK")
BY_ACCELERATE = "ACCELERATE_DYNAMO_BACKEND"  # set only by `accelerate launch`, also for a single process
ENGINES_OF_ACCELERATE = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
# The main process writes files and samples previews while the others wait.
PATIENCE = timedelta(hours=12)
BACKENDS = "cpu:gloo,cuda:nccl"  # processes exchange decisions on the CPU, so that none waits for a GPU
TURN_S = 0.5  # time for other threads to get the interpreter
REPEAT_S = 2.0  # the same signal within this time counts once
GRACE_S = 5.0  # time between the first failure and killing the other processes


def processes_to_start(cfg: RunConfig) -> int:
    """Return the number of processes that this command must start; 1: it trains itself, e.g. under a launcher.

    Raises:
        ConfigError: `num_processes` and `device` do not fit each other or the machine, or accelerate is set to divide
            the model, which the files written here do not support.
    """
    engines = [name for name in ENGINES_OF_ACCELERATE if os.environ.get(name, "").lower() in ("1", "true", "yes")]
    if engines:
        raise ConfigError(f"accelerate launch has set {engines[0]}; launch without it and set use_fsdp=true instead")
    if any(name in os.environ for name in BY_A_LAUNCHER):
        return 1
    if BY_ACCELERATE in os.environ and not cfg.num_processes:
        return 1
    on_cpu = pick_device(cfg.device).type == "cpu"
    num_devices = torch.cuda.device_count() if cfg.device in ("auto", "cuda") and not on_cpu else 1
    if cfg.num_processes > num_devices and not on_cpu:
        raise ConfigError(
            f"num_processes={cfg.num_processes}, but device={cfg.device} has only {num_devices} here; set "
            "num_processes=0 for one process per device"
        )
    return cfg.num_processes or num_devices


def run_processes(num: int, command: Sequence[str]) -> int:
    """Run the command `num` times as one group, and wait.

    torch.distributed.run is not used, because it kills its processes on the first signal. Here each process finishes
    its step and saves.

    Each signal is passed on once. When one process fails, the others are stopped. When this process is killed, all of
    them end.

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
            stdin=subprocess.PIPE,  # end of file tells the process that this one has ended
            start_new_session=True,  # otherwise Ctrl-C would arrive twice
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
    """Join the group of training processes, if there are several, and return the device of this process.

    Raises:
        ConfigError: the device does not exist.
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
    """End this process when its parent has ended, which closes standard input."""
    while os.read(0, 1):  # sys.stdin would hold its lock when this process ends
        pass
    os._exit(1)


def check_tracker(cfg: RunConfig) -> None:
    """Check that the package of the tracker is installed, because accelerate would silently train without it.

    Raises:
        ConfigError: it is not installed.
    """
    if cfg.tracker != "none" and cfg.tracker not in [str(tracker.value) for tracker in get_available_trackers()]:
        raise ConfigError(
            f"tracker={cfg.tracker} is not installed; run `pip install {cfg.tracker}`, or use tensorboard or none"
        )


def make_accelerator(cfg: RunConfig, objective: Objective, *, folder: Path) -> Accelerator:
    """Set up accelerate with the device, precision and tracker of the run."""
    dtype = fast_dtype(objective.device) if cfg.precision == "auto" else DTYPES[cfg.precision]
    if dtype == torch.float16 and cfg.use_fsdp:
        raise ConfigError("use_fsdp=true needs bfloat16, which this GPU does not compute; set precision=float32")
    exchange = DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=not objective.reaches_all
    )
    accelerator = Accelerator(
        cpu=objective.device.type == "cpu",
        mixed_precision=MIXED_PRECISION[dtype],
        log_with=None if cfg.tracker == "none" else cfg.tracker,
        project_dir=folder,
        kwargs_handlers=[exchange],
    )
    if cfg.tracker != "none":
        # for TensorBoard the name is a folder in log_dir, for other trackers it is a project
        accelerator.init_trackers("log" if cfg.tracker == "tensorboard" else folder.resolve().name)
    return accelerator


def leave_processes(accelerator: Accelerator) -> None:
    """End the group of processes. The caller must first delete its references to the wrapped model.

    Gloo's threads need the interpreter to release their last task (torch 2.10). Destroying the group holds the
    interpreter and waits for these threads, which is a deadlock. Therefore no wrapped model may be the last owner of
    the group, and the sleep gives the threads time.
    """
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        accelerator.free_memory()
        time.sleep(TURN_S)
    accelerator.end_training()


@contextmanager
def watch_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list instead of ending the program; a second signal ends it at once.

    The same signal again within REPEAT_S is ignored, because it can arrive twice: Slurm sends it to all processes, and
    a launcher passes it on.
    """
    received: list[int] = []
    since: dict[int, float] = {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        now = time.monotonic()
        if number not in since:
            received.append(number)
            since[number] = now
            # Not through logging: the signal can arrive while a line is being logged. The stream then refuses another
            # line with an error, which logging hides, and the signal would be lost.
            with suppress(OSError):
                os.write(2, b"stopping after this step\n")
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
