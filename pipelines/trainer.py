"""The training loop, one for everything that can be trained.

An objective brings network, data and loss; the loop owns steps, precision, learning rate, moving average, checkpoints
and the log. Devices go through accelerate: on several of them `prepare` wraps the objective, and nothing else changes.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from models.weights import save_published, save_safetensors
from pipelines.loading import pick_device
from pipelines.objectives.base import Objective
from pipelines.optimization import MovingAverage, lr_factor, parameter_groups
from utils.compilation import compile_parts
from utils.config import save_config
from utils.errors import ConfigError, DataError
from utils.files import writable_folder
from utils.registry import ENGINE, PRETRAIN, nearest
from utils.run_config import RunConfig

log = logging.getLogger(__name__)

MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def train(cfg: RunConfig) -> Path:
    """Train what `cfg.TASK_TYPE` names.

    Returns:
        The final weight file.

    Raises:
        ConfigError, DataError: a setting, the data or a weight file does not fit; said before the first step.
    """
    if cfg.TASK_TYPE not in ENGINE.names():
        raise ConfigError(f"TASK_TYPE={cfg.TASK_TYPE} is no training{nearest(cfg.TASK_TYPE, ENGINE.names())}")
    entrance = {"type": entrance_of(cfg), **cfg.objective}
    ENGINE.resolve(entrance, where="objective")
    device = pick_device(cfg.device)
    folder = writable_folder(cfg.log_dir, option="log_dir")
    save_config(cfg, folder / "config.yaml")
    torch.manual_seed(cfg.seed)
    torch.set_float32_matmul_precision("high")
    return Trainer(cfg, ENGINE.build(entrance, where="objective", cfg=cfg, device=device), folder=folder).run()


def entrance_of(cfg: RunConfig) -> str:
    """What trains: a generator's entrance tunes the Gaussian head with `UNet.use_lgm_refine`, as in the original."""
    tuning = cfg.TASK_TYPE.replace("train_", "tune_", 1)
    return tuning if cfg.UNet.get("use_lgm_refine") and tuning in ENGINE.names() else cfg.TASK_TYPE


class Trainer:
    """Trains one objective.

    Args:
        cfg: the run.
        objective: what is trained.
        folder: where weights, previews and the log go.
    """

    def __init__(self, cfg: RunConfig, objective: Objective, *, folder: Path) -> None:
        self.cfg, self.objective, self.folder = cfg, objective, folder
        self.pretrain = PRETRAIN.build(cfg.Pretrain, where="Pretrain") if cfg.Pretrain else None
        self.step = self.pretrain.apply(objective.pretrained_part) if self.pretrain else 0
        self.accelerator = make_accelerator(cfg, objective.device, folder=folder)
        objective.to(objective.device)
        objective.network.train()
        if cfg.compile:
            compile_parts(objective.parts_to_compile())
        optimizer = torch.optim.AdamW(
            parameter_groups(objective.network, cfg.weight_decay),
            lr=cfg.lr,
            betas=cfg.betas,
            eps=cfg.eps,
            fused=objective.device.type == "cuda",
        )
        self.average = MovingAverage(objective.network, cfg.ema_decay) if cfg.use_ema else None
        self.model, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.report = ProgressReport(cfg, views_per_step=objective.views_per_step, first_step=self.step)
        self.started = time.monotonic()

    def run(self) -> Path:
        """Train to the end, or until a signal; the weights are saved in both cases.

        Raises:
            DataError: the loss is no longer a number.
        """
        num_parameters = sum(p.numel() for p in self.objective.network.parameters() if p.requires_grad)
        log.info("training %s: %.2f M parameters, from step %d", self.objective.stem, num_parameters / 1e6, self.step)
        with watch_signals() as stop, self.report:
            for batch in self.objective.batches() if self.progress < 1 else ():
                self._train_step(batch)
                self._at_intervals()
                if self.progress >= 1 or stop:
                    break
        return self._finish(interrupted=bool(stop))

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps or by `max_minutes`, whichever is further."""
        share = self.step / self.cfg.num_steps
        if self.cfg.max_minutes > 0:
            share = max(share, (time.monotonic() - self.started) / 60 / self.cfg.max_minutes)
        return share

    def _train_step(self, batch: object) -> None:
        cfg = self.cfg
        factor = lr_factor(self.progress, self.step, warmup_steps=cfg.warmup_steps, decay_mode=cfg.decay_mode)
        for group in self.optimizer.param_groups:
            group["lr"] = cfg.lr * factor
        loss, figures = self.model(batch)
        self.accelerator.backward(loss)
        if self.pretrain:
            self.pretrain.after_backward()
        if cfg.grad_clip > 0:
            self.accelerator.clip_grad_norm_(self.objective.network.parameters(), cfg.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update()
        self.step += 1
        self.report.add({"loss": loss.detach(), **figures})

    def _at_intervals(self) -> None:
        cfg, last = self.cfg, self.progress >= 1
        if self.step % cfg.log_interval == 0 or last:
            figures = self.report.write(self.step, lr=self.optimizer.param_groups[0]["lr"], progress=self.progress)
            self.accelerator.log(figures, step=self.step)
            if figures["loss"] != figures["loss"]:
                raise DataError(
                    f"the loss became NaN before step {self.step}; lower lr or set precision=float32, and go on from "
                    f"the last file in {self.folder / 'checkpoints'} with Pretrain.resume_checkpoint"
                )
        if self.step % cfg.save_ckp_interval == 0 and not last:
            self.save_checkpoint()
        if self.step % cfg.viz_interval == 0 and not last:
            self._preview()

    def save_checkpoint(self) -> None:
        """Write `{stem}_{step}.pth` with the weights to sample with; with a moving average also the trained ones."""
        if not self.accelerator.is_main_process:
            return
        network, stem = self.objective.network, self.objective.stem
        name = f"{stem}_{self.step:08d}.pth"
        if self.average:
            save_published(self.folder / "checkpoints" / f"non_ema_{name}", network.state_dict(), self.step)
            with self.average.in_place():
                save_published(self.folder / "checkpoints" / name, network.state_dict(), self.step)
        else:
            save_published(self.folder / "checkpoints" / name, network.state_dict(), self.step)

    def _finish(self, *, interrupted: bool) -> Path:
        """Save; when training is complete, also finish the network and write the final file."""
        self.save_checkpoint()
        last = self.folder / "checkpoints" / f"{self.objective.stem}_{self.step:08d}.pth"
        final = self.folder / f"{self.objective.stem}.safetensors"
        if interrupted:
            log.info("stopped at step %d; go on with Pretrain.resume_checkpoint=%s", self.step, last)
        elif self.accelerator.is_main_process:
            if self.average:
                self.average.write()
            self.objective.network.eval()
            self.objective.finish()
            metadata = {"step": self.step, **self.objective.metadata()}
            save_safetensors(final, self.objective.final_state(), metadata=metadata)
            log.info("wrote %s (%.2f MB)", final, final.stat().st_size / 1e6)
            self._preview(averaged=False)
        self.accelerator.end_training()
        return last if interrupted else final

    def _preview(self, *, averaged: bool = True) -> None:
        if not self.accelerator.is_main_process:
            return
        network = self.objective.network.eval()
        # Compiling again for sampling would take longer than the preview.
        with torch.compiler.set_stance("force_eager"):
            if self.average and averaged:
                with self.average.in_place():
                    self.objective.preview(self.folder / "previews", self.step)
            else:
                self.objective.preview(self.folder / "previews", self.step)
        network.train()


class ProgressReport:
    """One line at intervals, and a bar on a terminal."""

    def __init__(self, cfg: RunConfig, *, views_per_step: int, first_step: int) -> None:
        self.views_per_step = views_per_step
        self.bar = tqdm(total=cfg.num_steps, initial=first_step, unit="step", disable=not sys.stderr.isatty())
        self.sums: dict[str, Tensor] = {}
        self.num_added, self.since = 0, time.monotonic()
        self.started, self.first_progress = self.since, first_step / cfg.num_steps

    def __enter__(self) -> ProgressReport:
        return self

    def __exit__(self, *_error: object) -> None:
        self.bar.close()

    def add(self, figures: dict[str, Tensor]) -> None:
        """Count one step; nothing waits for the device."""
        for name, value in figures.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.num_added += 1
        self.bar.update()

    def write(self, step: int, *, lr: float, progress: float) -> dict[str, float]:
        """Log the means since the last call and return them."""
        figures = {name: float(total) / self.num_added for name, total in self.sums.items()}
        now = time.monotonic()
        speed = self.views_per_step * self.num_added / (now - self.since)
        done = progress - self.first_progress
        eta = timedelta(seconds=round((now - self.started) * max(0.0, 1 - progress) / done)) if done > 0 else "?"
        shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.bar.clear()
        log.info("step %d: %s, lr %.2e, %.0f views/s, ETA %s", step, shown, lr, speed, eta)
        self.bar.refresh()
        self.sums, self.num_added, self.since = {}, 0, now
        return {**figures, "lr": lr, "views_per_second": speed}


def make_accelerator(cfg: RunConfig, device: torch.device, *, folder: Path) -> Accelerator:
    """Accelerate's view of the run: device, precision, tracker."""
    precision = cfg.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=MIXED_PRECISION[precision],
        log_with=None if cfg.tracker == "none" else cfg.tracker,
        project_dir=folder,
    )
    if cfg.tracker != "none":
        accelerator.init_trackers("log")
    return accelerator


@contextmanager
def watch_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM fill the list instead of ending the program; a second one ends it at once."""
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        log.info("stopping after this step")
        received.append(number)
        signal.signal(number, handlers[number])

    for number in handlers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
