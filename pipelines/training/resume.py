"""Find the state from which a run continues, and check that it belongs to the same run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from pipelines.training.state import latest, read_numbers, read_state, set_aside, state_path, states_in, step_of
from utils.errors import DataError
from utils.processes import is_main, largest
from utils.settings.original import with_present_names
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

# If one of these settings differs, the state in log_dir belongs to another run. All other settings (duration,
# intervals, paths, devices, the division of the global batch) may change between two starts.
IDENTITY = (
    "TASK_TYPE", "seed", "UNet", "refine", "auto_encoder", "embedder", "classifier", "elevation", "Diffusion",
    "reconstruction", "vid_dataset", "Pretrain", "objective", "lora", "frame_lens", "resolution", "p_zero", "lr",
    "weight_decay", "betas", "eps", "warmup_steps", "decay_mode", "decay_over", "grad_clip", "use_ema", "ema_decay",
    "cache_latents", "test_model",
)  # fmt: skip
FREE_OPTIONS = {
    "UNet": ("attention", "use_checkpoint", "checkpoint_level", "checkpoint_places"),
    "embedder": ("cache_dir", "device"),
}


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
    A damaged state is named and set aside, and the one before it is taken. All processes must call this together.

    Raises:
        DataError: there is no state at the given path, all states are damaged, or log_dir contains the state of a run
            with other settings.
    """
    if cfg.resume == "never":
        return None
    found, damaged = newest_whole(log_dir / "state")
    if found is not None:
        # The state of an earlier version lacks newer settings; their defaults do not change the run.
        before = {**settings_of(RunConfig()), **with_present_names(read_numbers(found)["settings"])}
        before = {name: value for name, value in before.items() if name != "batch_sizes"}  # earlier versions have it
        changes = differences(before, settings_of(cfg))
        if changes:
            shown = "; ".join(changes[:3]) + (f"; {len(changes) - 3} more" if len(changes) > 3 else "")
            raise DataError(
                f"log_dir={log_dir} contains the state of another run ({shown}); set resume=never to start again "
                f"there, or use another log_dir, with resume={found} to continue with the new settings"
            )
        for folder in damaged if is_main() else ():
            log.warning("the damaged state is now %s", set_aside(folder))
        return found
    if cfg.resume == "auto":
        return None
    path = Path(cfg.resume)
    if (path / "state.json").is_file():
        if is_main():
            read_state(path)
        return path
    found = newest_whole(path)[0] or newest_whole(path / "state")[0]
    if found is None:
        raise DataError(f"resume={path} contains no state; use a folder step_XXXXXXXX, or the log_dir of a run")
    return found


def newest_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """Find the newest state that can be read and has not changed; all processes must call this together.

    Only the main process reads the states. The others take the state of the same step, or if the main process has none,
    the newest that they see, so that `check_agreement` finds out.

    Returns:
        (the state or None, the damaged states that are newer).

    Raises:
        DataError: there are states, but all are damaged.
    """
    found, damaged, problem = None, [], None
    for state in states_in(folder) if is_main() else ():
        try:
            read_state(state)
        except DataError as err:
            log.warning("%s is damaged: %s", state.name, err)
            damaged.append(state)
            problem = problem or err
        else:
            found = state
            break
    step, failed = largest(step_of(found) if found else -1, bool(damaged) and found is None)
    if failed:
        raise problem or DataError(f"{folder}: all states are damaged; see the error message of the main process")
    if found:
        if damaged:
            log.warning("training goes on from the state before, %s", found.name)
        return found, damaged
    if step < 0 or is_main():
        return latest(folder) if not is_main() else None, []
    same = state_path(folder, int(step))
    return same if same.is_dir() else None, []


def check_agreement(state: Path | None, log_dir: Path) -> None:
    """Check that all processes have found the same state; all of them must call this together.

    Raises:
        DataError: they have not, because log_dir is not the same folder on all machines.
    """
    step = read_numbers(state)["step"] if state else -1
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
