"""The top level of a run's configuration: the settings of training, added to those of utils/settings/sampling.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from utils.errors import ConfigError
from utils.registry import ENGINE, Section, nearest
from utils.settings.sampling import SamplingConfig, SectionField, one_of, section, within

# Trackers of accelerate that need only a name. All except tensorboard need their own package.
TRACKERS = ("none", "tensorboard", "wandb", "mlflow", "aim", "comet_ml", "clearml", "dvclive", "swanlab", "trackio")

# Far beyond what is useful, so that a slip of the keyboard is found before work starts.
MOST_STEPS, MOST_WORKERS, MOST_SAMPLES, LARGEST_LR = 10**10, 1024, 10**6, 100.0


@dataclass(frozen=True, kw_only=True)
class RunConfig(SamplingConfig):
    """All settings of a run; configs/base.yaml explains them. Only training reads the fields of this class."""

    img_dataset: SectionField = section("DATASETS")
    Pretrain: SectionField = section("PRETRAIN")
    visual_train: SectionField = section("VISUAL")
    frame_lens: list[int] = field(default_factory=lambda: [24])
    batch_sizes: dict[str, int] = field(default_factory=dict)
    num_workers: int = 4
    prefetch_factor: int = 2
    num_steps: int = 600000
    lr: float = 5e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_steps: int = 10
    decay_mode: str = "cosine"
    decay_over: str = "num_steps"
    grad_clip: float = 0.0
    max_minutes: float = 0.0
    p_zero: float = 0.1
    cache_latents: bool = False
    cache_dir: str = "workspace/latents"
    cache_memory_gb: float = 8.0
    use_ema: bool = False
    ema_decay: float = 0.9999
    num_processes: int = 0
    use_ddp: bool | None = None
    use_fsdp: bool = False
    grad_accumulation: int = 1
    max_bad_samples: int = 10
    resume: str = "auto"
    keep_states: int = 2
    keep_every: int = 0
    save_ckp_interval: int = 1000
    viz_interval: int = 1000
    log_interval: int = 100
    tracker: str = "none"
    objective: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        intervals = ("save_ckp_interval", "viz_interval", "log_interval")
        for name in ("num_steps", *intervals, "grad_accumulation", "keep_states"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        not_negative = ("num_processes", "max_bad_samples", "keep_every", "cache_memory_gb", "num_workers")
        for name in (*not_negative, "weight_decay", "eps", "grad_clip", "max_minutes", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        within("num_steps", self.num_steps, 1, MOST_STEPS)
        within("num_workers", self.num_workers, 0, MOST_WORKERS)
        within("prefetch_factor", self.prefetch_factor, 1, MOST_WORKERS)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must lie in [0, 1), got {list(self.betas)}")
        for key, size in self.batch_sizes.items():
            if not key.isdecimal() or not 1 <= size <= MOST_SAMPLES:
                raise ConfigError(
                    f"batch_sizes.{key}={size} must be a number of views and a number of samples in "
                    f"[1, {MOST_SAMPLES}], e.g. batch_sizes={{24: 8}}"
                )
        if not self.resume:
            raise ConfigError("resume is empty; set it to auto, never or the folder of a state")
        if not 0 < self.lr <= LARGEST_LR:
            raise ConfigError(f"lr must be positive and at most {LARGEST_LR:g}, got {self.lr}")
        for name in ("p_zero", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        self._check_frame_lens()
        one_of("tracker", self.tracker, TRACKERS)
        one_of("decay_mode", self.decay_mode, ("cosine", "linear", "constant"))
        one_of("decay_over", self.decay_over, ("num_steps", "own_steps"))

    @property
    def is_joint(self) -> bool:
        """Whether training uses both single images and orbits."""
        return len(set(self.frame_lens)) == 2

    @property
    def checkpoint(self) -> str | None:
        """The weight file with which training starts."""
        return self.Pretrain.options.resume_checkpoint if self.Pretrain else None

    @cached_property
    def training(self) -> Section:
        """The training task and its options, from TASK_TYPE and `objective`.

        With `refine`, a task that trains a generator tunes the Gaussian head instead, as in the original code.

        Raises:
            ConfigError: TASK_TYPE is not a training task, or `objective` has an option that the task does not know.
        """
        if self.TASK_TYPE not in ENGINE.names():
            raise ConfigError(
                f"TASK_TYPE={self.TASK_TYPE} is not a training task{nearest(self.TASK_TYPE, ENGINE.names())}"
            )
        tuning = self.TASK_TYPE.replace("train_", "tune_", 1)
        entrance = tuning if self.refine and tuning in ENGINE.names() else self.TASK_TYPE
        return ENGINE.section({"type": entrance, **self.objective}, where="objective")

    def _check_frame_lens(self) -> None:
        kinds = set(self.frame_lens)
        if not kinds or min(kinds) < 1 or len(kinds) > 2 or (len(kinds) == 2 and 1 not in kinds):
            raise ConfigError(
                f"frame_lens={list(self.frame_lens)} is not valid; use one number of views, plus 1 for processes that "
                "train on images, e.g. [1, 24, 24, 24]"
            )
        if self.is_joint and not self.img_dataset:
            raise ConfigError(
                f"frame_lens={list(self.frame_lens)} has a 1 for images, but img_dataset is empty; add this section"
            )
