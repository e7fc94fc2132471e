"""Find the state from which a run continues, and check that it belongs to the same run."""

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

# If one of these settings differs, the state in log_dir belongs to another run. All other settings (duration,
# intervals, paths, devices) may change between two starts.
IDENTITY = (
    "TASK_TYPE", "seed", "UNet", "refine", "auto_encoder", "embedder", "classifier", "Diffusion", "reconstruction",
    "vid_dataset", "Pretrain", "objective", "lora", "frame_lens", "batch_sizes", "resolution", "p_zero", "lr",
    "weight_decay", "betas", "eps", "warmup_steps", "decay_mode", "decay_over", "grad_clip", "use_ema", "ema_decay",
    "cache_latents", "test_model",
)  # fmt: skip
FREE_OPTIONS = {"UNet": ("attention", "use_checkpoint", "checkpoint_level", "checkpoint_places")}


def settings_of(cfg: RunConfig) -> dict[str, Any]:
    """Return the settings that must be equal in two starts of one run, as plain values."""
    content = {name: value for name, value in cfg.as_dict().items() if name in IDENTITY}
    if cfg.is_joint:
        content["img_dataset"] = cfg.img_dataset.given
    for section, free in FREE_OPTIONS.items():
        content[section] = {name: value for name, value in content[section].items() if name not in free}
    return json.loads(json.dumps(content, sort_keys=True))


def find_state(cfg: RunConfig, log_dir: Path) -> Path | None:
    """Find the state from which a run continues, according to `resume`; None: it starts from the beginning.

    A state in log_dir has priority, so that a run that started from a path in `resume` continues with the same command.

    Raises:
        DataError: there is no state at the given path, or log_dir contains the state of a run with other settings.
    """
    if cfg.resume == "never":
        return None
    found = latest(log_dir / "state")
    if found is not None:
        # The state of an earlier version lacks newer settings; their defaults do not change the run.
        before = {**settings_of(RunConfig()), **with_present_names(_numbers_in(found)["settings"])}
        changes = differences(before, settings_of(cfg))
        if changes:
            shown = "; ".join(changes[:3]) + (f"; {len(changes) - 3} more" if len(changes) > 3 else "")
            raise DataError(
                f"log_dir={log_dir} contains the state of another run ({shown}); set resume=never to start again "
                f"there, or use another log_dir, with resume={found} to continue with the new settings"
            )
        return found
    if cfg.resume == "auto":
        return None
    path = Path(cfg.resume)
    found = path if (path / "state.json").is_file() else latest(path) or latest(path / "state")
    if found is None:
        raise DataError(f"resume={path} contains no state; use a folder step_XXXXXXXX, or the log_dir of a run")
    return found


def check_agreement(state: Path | None, log_dir: Path) -> None:
    """Check that all processes have found the same state; all of them must call this together.

    Raises:
        DataError: they have not, because log_dir is not the same folder on all machines.
    """
    step = _numbers_in(state)["step"] if state else -1
    most, least = largest(step, -step)
    if most != -least:
        found = "none" if least == 1 else f"the one of step {-least:.0f}"
        raise DataError(
            f"log_dir={log_dir}: some processes find the state of step {most:.0f}, others {found}; use a log_dir on a "
            "disk that all machines share"
        )


def note_other_batch(before: int, now: int) -> None:
    """Log a change of the global batch size; `before` is 0 if the state does not contain it."""
    if before not in (0, now):
        log.info(
            "the global batch size is now %d, but was %d in the state: the position in the data is kept approximately, "
            "and random numbers change",
            now,
            before,
        )


def differences(found: dict[str, Any], wanted: dict[str, Any], *, where: str = "") -> list[str]:
    """Return one text per setting that differs, with the value in the state and the value in this run."""
    lines = []
    for name in sorted({*found, *wanted}):
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, where=f"{where}{name}.")
        elif old != new:
            lines.append(f"{where}{name} is {old} in the state, {new} now")
    return lines


def clean_up(log_dir: Path, *, afresh: bool) -> None:
    """Remove incomplete files of an interrupted run; with `afresh`, rename the folder of its states."""
    for left in (*log_dir.glob("**/.*.part"), *log_dir.glob("**/.*.part.*")):
        log.info("removing %s, an incomplete file of an interrupted run", left)
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    states = log_dir / "state"
    if afresh and latest(states):
        number = 1
        while (aside := log_dir / f"state_before_{number}").exists():
            number += 1
        states.rename(aside)
        log.info("resume=never: the states of the earlier run are now in %s", aside)


def _numbers_in(folder: Path) -> dict[str, Any]:
    try:
        numbers = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return {name: numbers[name] for name in ("step", "settings")}
    except (OSError, KeyError, TypeError, ValueError) as err:
        raise DataError(f"resume: {folder}/state.json cannot be read ({err}); delete the folder {folder.name}") from err
