"""Where a run goes on: by the setting `resume`, and only if what lies in its log_dir is the same run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from pipelines.training.state import latest
from utils.errors import DataError
from utils.processes import largest
from utils.settings.original import with_present_names
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

# Settings that make a training what it is: with others, what is in log_dir is another run. The rest (how long, how
# often, where, on what) may change between two starts.
IDENTITY = (
    "TASK_TYPE", "seed", "UNet", "refine", "auto_encoder", "embedder", "classifier", "Diffusion", "reconstruction",
    "vid_dataset", "Pretrain", "objective", "lora", "frame_lens", "batch_sizes", "resolution", "p_zero", "lr",
    "weight_decay", "betas", "eps", "warmup_steps", "decay_mode", "decay_over", "grad_clip", "use_ema", "ema_decay",
    "cache_latents", "test_model",
)  # fmt: skip
FREE_OPTIONS = {"UNet": ("attention", "use_checkpoint", "checkpoint_level", "checkpoint_places")}


def settings_of(cfg: RunConfig) -> dict[str, Any]:
    """The settings that two starts of one run have in common, as plain values."""
    content = {name: value for name, value in cfg.as_dict().items() if name in IDENTITY}
    if cfg.is_joint:
        content["img_dataset"] = cfg.img_dataset.given
    for section, free in FREE_OPTIONS.items():
        content[section] = {name: value for name, value in content[section].items() if name not in free}
    return json.loads(json.dumps(content, sort_keys=True))


def find_state(cfg: RunConfig, log_dir: Path) -> Path | None:
    """The state that a run goes on from, by its setting `resume`; None: it begins.

    A state in log_dir comes first, so that a run that began from a given path goes on by the same command.

    Raises:
        DataError: there is none at the given path, or log_dir holds the state of a run with other settings.
    """
    if cfg.resume == "never":
        return None
    found = latest(log_dir / "state")
    if found is not None:
        # A state of an earlier version lacks the settings that came later; their defaults do not change it.
        before = {**settings_of(RunConfig()), **with_present_names(_numbers_in(found)["settings"])}
        changes = differences(before, settings_of(cfg))
        if changes:
            shown = "; ".join(changes[:3]) + (f"; {len(changes) - 3} more" if len(changes) > 3 else "")
            raise DataError(
                f"log_dir={log_dir} holds the state of another run ({shown}); set resume=never to begin anew there, or "
                f"choose another log_dir, with resume={found} to go on from here with these settings"
            )
        return found
    if cfg.resume == "auto":
        return None
    path = Path(cfg.resume)
    found = path if (path / "state.json").is_file() else latest(path) or latest(path / "state")
    if found is None:
        raise DataError(f"resume={path}: no state there; give a folder step_XXXXXXXX, or the log_dir of a run")
    return found


def check_agreement(state: Path | None, log_dir: Path) -> None:
    """Refuse to begin when processes go on from different steps: each looks for itself. All of them call together.

    Raises:
        DataError: log_dir is not the same folder on all machines.
    """
    step = _numbers_in(state)["step"] if state else -1
    most, least = largest(step, -step)
    if most != -least:
        found = "none" if least == 1 else f"the one of step {-least:.0f}"
        raise DataError(
            f"log_dir={log_dir}: some processes find the state of step {most:.0f} there, others {found}; put it on a "
            "disk that all machines share"
        )


def note_other_batch(before: int, now: int) -> None:
    """Say what a global batch of another size changes; 0: the state does not say which it had."""
    if before not in (0, now):
        log.info(
            "the global batch is %d now, %d in the state: data go on about where they were, with other random numbers",
            now,
            before,
        )


def differences(found: dict[str, Any], wanted: dict[str, Any], *, where: str = "") -> list[str]:
    """`name: value there, value now` for every setting that differs."""
    lines = []
    for name in sorted({*found, *wanted}):
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, where=f"{where}{name}.")
        elif old != new:
            lines.append(f"{where}{name} is {old} there, {new} here")
    return lines


def clean_up(log_dir: Path, *, afresh: bool) -> None:
    """Remove what a killed run left half-written; with `afresh`, put its states aside."""
    for left in (*log_dir.glob("**/.*.part"), *log_dir.glob("**/.*.part.*")):
        log.info("removing %s, left by a stopped run", left)
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    states = log_dir / "state"
    if afresh and latest(states):
        number = 1
        while (aside := log_dir / f"state_before_{number}").exists():
            number += 1
        states.rename(aside)
        log.info("resume=never: the states of the run before are now in %s", aside)


def _numbers_in(folder: Path) -> dict[str, Any]:
    try:
        numbers = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return {name: numbers[name] for name in ("step", "settings")}
    except (OSError, KeyError, TypeError, ValueError) as err:
        raise DataError(f"resume: {folder}/state.json cannot be read ({err}); delete the folder {folder.name}") from err
