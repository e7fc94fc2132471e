"""The training loop, which is the same for all objectives.

An objective defines network, data and loss. The loop is responsible for steps, precision, learning rate, moving
average, checkpoints and the log. It uses accelerate: with several devices, `prepare` wraps the objective, and nothing
else changes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from pipelines.parts import check_weights
from pipelines.training.checkpoints import (
    MainProcessWriter,
    checkpoint_path,
    final_path,
    make_room,
    save_checkpoint,
    save_final,
    saving,
)
from pipelines.training.launch import check_tracker, join_processes, leave_processes, make_accelerator, watch_signals
from pipelines.training.network_setup import exchanges_afterwards, prepare_network
from pipelines.training.objectives.base import Objective
from pipelines.training.optimization import MovingAverage, learning_rate, parameter_groups
from pipelines.training.parallel import average_gradients, check_exchange, check_sharding, is_sharded, shard
from pipelines.training.progress import LossWatch, ProgressReport
from pipelines.training.resume import check_agreement, clean_up, find_state, note_other_batch, settings_of
from pipelines.training.state import TrainingState, latest, read_state, restore, save_state, snapshot, state_path
from utils.config import save_config
from utils.errors import ConfigError, DataError, WriteError, first_line
from utils.files import sole_use, tidy, writable_folder
from utils.processes import is_main, largest, main_first, take_from_main
from utils.registry import Section
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)


def train(cfg: RunConfig) -> Path:
    """Run the training task `cfg.TASK_TYPE`.

    Returns:
        The final weight file.

    Raises:
        ConfigError, DataError: a setting, the data or a weight file does not fit; raised before the first step.
    """
    training = cfg.training
    check_tracker(cfg)
    check_sharding(cfg, training.type, can_be_sharded=training.cls.can_be_sharded)
    check_exchange(cfg)
    check_weights(cfg, training.cls.weight_files(training.options, cfg), config="configs/mini/t2v_train.yaml")
    device = join_processes(cfg)
    with ExitStack() as held:
        with main_first():
            if is_main():
                held.enter_context(sole_use(writable_folder(cfg.log_dir, option="log_dir"), option="log_dir"))
                tidy(Path(cfg.log_dir) / "state")  # a state that was moved aside when its run was killed comes back
        return _train(cfg, training, device)


def _train(cfg: RunConfig, training: Section, device: torch.device) -> Path:
    """Train in a folder that no other training uses."""
    folder = Path(cfg.log_dir)
    state = find_state(cfg, folder)
    check_agreement(state, folder)
    with main_first():
        if is_main():
            clean_up(folder, afresh=cfg.resume == "never")
            with saving(folder, "config.yaml"):
                save_config(cfg, folder / "config.yaml")
    torch.manual_seed(cfg.seed)
    torch.set_float32_matmul_precision("high")
    objective = training.build(cfg=cfg, device=device)
    return Trainer(cfg, objective, folder=folder, state=state).run()


class Trainer:
    """Trains one objective.

    Args:
        cfg: the run's configuration.
        objective: network, data and loss.
        folder: output folder of weights, states, previews and the log.
        state: folder of the state from which training continues; None: it starts from the beginning.

    Attributes:
        step: number of completed steps, including those of the checkpoint.
        first_step: number of steps of the checkpoint.
        exchanges: whether gradients are averaged here, not by DDP or FSDP.
        num_samples: number of samples used since training began, which is the position in the data.
    """

    def __init__(self, cfg: RunConfig, objective: Objective, *, folder: Path, state: Path | None = None) -> None:
        self.cfg, self.objective, self.folder = cfg, objective, folder
        self.num_samples, self.elapsed_s = 0, 0.0
        self._load_checkpoint(begins=state is None)
        self._set_up_network()
        optimizer = self._make_optimizer()
        saved = None if state is None else self._restore(state, optimizer)
        self._join_processes(optimizer, saved)
        views_per_batch = objective.views_per_step * self.accelerator.num_processes
        self.report = ProgressReport(
            cfg, views_per_batch=views_per_batch, first_step=self.step, first_progress=self.progress
        )
        self.watch = LossWatch(self.accelerator)
        self.started = time.monotonic() - self.elapsed_s

    def _load_checkpoint(self, *, begins: bool) -> None:
        """Load the weights of the section Pretrain, continue their step count, then call `objective.adapt`.

        The order matters, because LoRA and the head are added to the loaded weights.
        """
        cfg, objective = self.cfg, self.objective
        self.pretrain = cfg.Pretrain.build() if cfg.Pretrain else None
        self.first_step = self.step = self.pretrain.apply(objective.pretrained_part) if self.pretrain else 0
        if begins and self.first_step >= cfg.num_steps:
            raise ConfigError(
                f"num_steps={cfg.num_steps}, but the step count continues from {self.first_step} of "
                f"Pretrain.resume_checkpoint={cfg.checkpoint}; set num_steps to a larger number"
            )
        objective.adapt()

    def _set_up_network(self) -> None:
        """Move the network to the device, then compile or fuse it, then shard it, because FSDP wraps compiled parts."""
        cfg, objective = self.cfg, self.objective
        self.accelerator = make_accelerator(cfg, objective, folder=self.folder)
        objective.to(objective.device)
        objective.network.train()
        prepare_network(cfg, objective, self.accelerator)
        if cfg.use_fsdp:
            shard(objective.network, objective.parts_to_compile())
        self.sharded = is_sharded(objective.network)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Make AdamW and the moving average; this must come after FSDP, which replaces parameters."""
        cfg, network = self.cfg, self.objective.network
        self.average = MovingAverage(network, cfg.ema_decay) if cfg.use_ema else None
        return torch.optim.AdamW(
            parameter_groups(network, cfg.weight_decay),
            lr=cfg.lr,
            betas=cfg.betas,
            eps=cfg.eps,
            fused=self.objective.device.type == "cuda",
        )

    def _restore(self, state: Path, optimizer: torch.optim.Optimizer) -> TrainingState:
        """Load a state, which replaces the weights of the checkpoint."""
        saved = read_state(state, verify=False)  # the main process has verified it
        restore(saved, self.objective.network, optimizer, self.average, source=f"resume: {state}")
        self.step, self.num_samples, self.elapsed_s = saved.step, saved.num_samples, saved.elapsed_s
        note_other_batch(saved.per_step, self.objective.global_batch.per_step)
        return saved

    def _join_processes(self, optimizer: torch.optim.Optimizer, saved: TrainingState | None) -> None:
        """Connect all processes; this must come last, because DDP copies the main process's weights when it wraps."""
        accelerator, network = self.accelerator, self.objective.network
        self.exchanges = exchanges_afterwards(self.cfg, self.objective, accelerator)
        if self.exchanges:
            take_from_main(network)
        # Without `evaluation_mode`, accelerate would wrap the network with DDP and copy it to every process.
        self.model = accelerator.prepare_model(self.objective, evaluation_mode=self.sharded or self.exchanges)
        self.optimizer = accelerator.prepare(optimizer)
        if saved is not None and accelerator.scaler and saved.scaler:
            accelerator.scaler.load_state_dict(saved.scaler)

    def run(self) -> Path:
        """Train to the end or until a signal; weights and state are saved in both cases.

        Raises:
            DataError: the loss is NaN or infinite, too many samples are broken, or the disk is full.
        """
        num_parameters = sum(p.numel() for p in self.objective.network.parameters() if p.requires_grad)
        log.info("training %s: %.2f M parameters, from step %d", self.objective.stem, num_parameters / 1e6, self.step)
        stopped = False
        with watch_signals() as signals:
            with self.report:
                batches = self.objective.batches(self.number) if self.progress < 1 else iter(())
                while self.progress < 1 and not stopped:
                    self.train_step(batches)
                    # all processes must agree on the time and on when to stop
                    self.elapsed_s, stopped = largest(time.monotonic() - self.started, bool(signals))
                    self._at_intervals()
            return self._finish(interrupted=bool(stopped) and self.progress < 1)

    @property
    def number(self) -> int:
        """Number of the next global batch."""
        return self.num_samples // self.objective.global_batch.per_step

    @property
    def progress(self) -> float:
        """Completed fraction of the training, by steps or by `max_minutes`, whichever is larger."""
        return max(self.step / self.cfg.num_steps, self.time_share)

    @property
    def time_share(self) -> float:
        """Elapsed fraction of `max_minutes`; 0 without this limit."""
        return self.elapsed_s / 60 / self.cfg.max_minutes if self.cfg.max_minutes > 0 else 0.0

    def train_step(self, batches: Iterator[Any]) -> None:
        """Update the weights once, with the next `grad_accumulation` batches."""
        cfg, parts = self.cfg, self.cfg.grad_accumulation
        lr = learning_rate(
            cfg, own_step=self.step - self.first_step, first_step=self.first_step, time_share=self.time_share
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for part in range(parts):
            self._backward(batches, part, last=part == parts - 1)
        if self.pretrain:
            self.pretrain.after_backward()
        if cfg.grad_clip > 0:
            self.accelerator.clip_grad_norm_(self.objective.network.parameters(), cfg.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update()
        self.step += 1
        self.num_samples += self.objective.global_batch.per_step

    def _backward(self, batches: Iterator[Any], part: int, *, last: bool) -> None:
        """Add the gradients of one part of a step; processes exchange gradients after the last part."""
        self.objective.global_batch.begin(self.number, part)
        batch = next(batches)
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            loss, figures = self.model(batch)
            self.accelerator.backward(loss / self.cfg.grad_accumulation)
        if self.exchanges and last:
            average_gradients(self.objective.network.parameters())
        self.watch.add(loss, step=self.step + 1, number=self.number, part=part)
        self.report.add({"loss": loss.detach(), **figures}, step_ends=last)

    def _at_intervals(self) -> None:
        cfg, last = self.cfg, self.progress >= 1
        if self.step % cfg.log_interval == 0 or last:
            self._check_losses()
            figures = self.report.write(
                self.step,
                lr=self.optimizer.param_groups[0]["lr"],
                progress=self.progress,
                summary=self.objective.summary,
            )
            with saving(self.folder, "the log", only_files=True):
                self.accelerator.log(figures, step=self.step)
        if self.step % cfg.save_ckp_interval == 0 and not last:
            self.save()
        if self.step % cfg.viz_interval == 0 and not last:
            self._preview()

    def _check_losses(self) -> None:
        """Raise an error after a NaN or infinite loss, before training continues or saves."""
        bad = self.watch.check()
        if bad is None:
            return
        names = self.objective.sample_names(bad.number, bad.part, bad.rank)
        raise DataError(bad.message(names, last_state=latest(self.folder / "state")))

    def save(self) -> None:
        """Write weights and the full state, unless a loss was NaN or infinite."""
        self._check_losses()
        writer = MainProcessWriter(self.folder, f"step {self.step}")
        if self.takes_part:
            save_checkpoint(self.folder, self.objective, self.average, self.step, writer=writer)
            state = snapshot(
                self.objective.network,
                self.optimizer,
                self.average,
                scaler=self.accelerator.scaler,
                step=self.step,
                num_samples=self.num_samples,
                elapsed_s=self.elapsed_s,
                settings=settings_of(self.cfg),
                per_step=self.objective.global_batch.per_step,
            )
            writer(lambda: save_state(self.folder / "state", state))
            keep = {"keep": self.cfg.keep_states, "every": self.cfg.keep_every}
            writer(lambda: make_room(self.folder, self.objective, **keep))
        writer.raise_if_failed()
        if is_main():
            weights = checkpoint_path(self.folder, self.objective, self.step)
            log.info("saved step %d: %s, %s", self.step, weights, state_path(self.folder / "state", self.step))

    @property
    def takes_part(self) -> bool:
        """Whether this process takes part in saving and sampling: the main process, or with FSDP all processes."""
        return self.sharded or is_main()

    def _finish(self, *, interrupted: bool) -> Path:
        """Save; if training is complete, also finish the network and write the final file."""
        self.save()
        writer = MainProcessWriter(self.folder, "the finished network")
        last = final_path(self.folder, self.objective)
        if interrupted:
            last = checkpoint_path(self.folder, self.objective, self.step)
            log.info("stopped at step %d; run the same command again to continue", self.step)
        elif self.takes_part:
            if self.average:
                self.average.write()
            self.objective.network.eval()
            self.objective.finish()
            save_final(self.folder, self.objective, self.step, writer=writer)
        writer.raise_if_failed()
        if not interrupted:
            self._preview(averaged=False)
        self.model = None
        leave_processes(self.accelerator)
        return last

    def _preview(self, *, averaged: bool = True) -> None:
        if not self.takes_part:
            return
        network = self.objective.network.eval()
        weights = self.average.in_place() if self.average and averaged else nullcontext()
        try:
            # Recompiling for sampling would take longer than the preview.
            with torch.compiler.set_stance("force_eager"), weights:
                self.objective.preview(self.folder / "previews", self.step)
        except (OSError, WriteError) as err:  # a picture less is no reason to stop a training
            cause = err.__cause__ if isinstance(err, WriteError) and err.__cause__ else err
            log.warning("previews of step %d were not written (%s); training goes on", self.step, first_line(cause))
        network.train()
