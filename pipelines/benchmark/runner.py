"""Run the measures for all models and settings, in one process on one device."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from pipelines.benchmark.case import Bench, Case, can_encode, has_files
from pipelines.benchmark.ceiling import measure_ceiling
from pipelines.benchmark.decoding import measure_decode, measure_refine
from pipelines.benchmark.diffusers_unet import measure_diffusers
from pipelines.benchmark.machine import machine_facts
from pipelines.benchmark.objects import measure_files, measure_fits
from pipelines.benchmark.orbits import measure_cold, measure_orbit
from pipelines.benchmark.sizes import measure_sizes
from pipelines.benchmark.solvers import SETTINGS, measure_solvers
from pipelines.benchmark.steps import measure_step
from pipelines.benchmark.table import Row, text_table, write_tables
from pipelines.benchmark.training import measure_train
from utils.config import load_config
from utils.devices import pick_device
from utils.errors import ConfigError
from utils.files import writable_folder
from utils.registry import ENGINE

log = logging.getLogger(__name__)

PRECISIONS = ("precision=float32", "precision=bfloat16", "precision=float16")
COMPILED = "precision=bfloat16 compile=true"
SAVING = "precision=bfloat16 low_memory=true"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """
    Attributes:
        rows: function that measures one case.
        settings: default settings on a GPU.
        cpu_settings: default settings on a CPU.
        trains: whether it needs a training configuration; if false, it needs an inference configuration.
        by_default: devices on which it is measured by default.
    """

    rows: Callable[[Bench, Case], list[Row]]
    settings: tuple[str, ...] = (PRECISIONS[1], COMPILED)
    cpu_settings: tuple[str, ...] = ("",)
    trains: bool = False
    by_default: tuple[str, ...] = ("cuda", "cpu")


# Measures with the Gaussian head come last, so that a pipeline is built at most twice.
MEASURES = {
    "step": Measure(rows=measure_step, settings=(*PRECISIONS, COMPILED)),
    "decode": Measure(rows=measure_decode),
    "sizes": Measure(rows=measure_sizes, settings=(PRECISIONS[1], SAVING), by_default=("cuda",)),
    "orbit": Measure(rows=measure_orbit),
    "refine": Measure(rows=measure_refine),
    "files": Measure(rows=measure_files, settings=(PRECISIONS[1],), by_default=()),
    "fits": Measure(rows=measure_fits, settings=("",), by_default=()),
    "diffusers": Measure(rows=measure_diffusers, settings=(PRECISIONS[1], COMPILED)),
    "cold": Measure(rows=measure_cold, by_default=("cuda",)),
    "solvers": Measure(rows=measure_solvers, settings=SETTINGS, cpu_settings=SETTINGS, by_default=()),
    "train": Measure(rows=measure_train, settings=("", "compile=true"), trains=True),
}
CEILING = "ceiling"


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `tools/benchmark.py`.

    Attributes:
        cfgs: configuration files.
        measures: names in MEASURES, or `ceiling`; empty: all that fit the device and the files.
        settings: overrides of each row, separated by blanks; empty: the default settings of each measure.
        overrides: overrides for every row.
        repeats: maximum number of calls for a median.
        num_samples: maximum number of inputs for the comparison of solvers.
        out: output folder.
    """

    cfgs: Sequence[str]
    measures: Sequence[str] = ()
    settings: Sequence[str] = ()
    overrides: Sequence[str] = ()
    repeats: int = 10
    num_samples: int = 4
    out: Path = field(default_factory=lambda: Path("workspace/benchmark"))


def run_benchmark(options: BenchOptions) -> str:
    """Measure, and write benchmark.json and benchmark.md after each row; returns the tables as text.

    Raises:
        ConfigError: a setting or a measure does not fit; raised before anything is measured.
    """
    device, jobs = plan(options)
    out = writable_folder(options.out, option="--out")
    log_what_is_random(jobs)
    bench = Bench(device=device, out=out, repeats=options.repeats, num_samples=options.num_samples)
    facts = {**machine_facts(device), "command": " ".join(sys.argv)}
    tables: dict[str, list[Row]] = {CEILING: measure_ceiling(bench)}
    tables |= {name: [] for name, _ in jobs}
    with tqdm(jobs, unit="row", file=sys.stderr) as bar:
        for name, case in bar:
            bar.set_description(f"{name}, {case.model}, {case.setting or 'as configured'}")
            tables[name] += _rows_or_failure(bench, name, case)
            write_tables(out, facts, tables)
    write_tables(out, facts, tables)
    log.info("wrote %s and %s", out / "benchmark.md", out / "benchmark.json")
    return "\n\n".join(text_table(name, rows) for name, rows in tables.items() if rows)


def plan(options: BenchOptions) -> tuple[torch.device, list[tuple[str, Case]]]:
    """Return the device and the ordered jobs: by model, then by setting, so that each pipeline is built once.

    Raises:
        ConfigError: see `run_benchmark`.
    """
    for name, number in {"--repeats": options.repeats, "--samples": options.num_samples}.items():
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, got {number}")
    plain = {Path(path): load_config(path, options.overrides) for path in options.cfgs}
    devices = {pick_device(cfg.device) for cfg in plain.values()}
    if len(devices) != 1:
        raise ConfigError("--cfg: all configurations must have the same device; set device=cuda or device=cpu")
    (device,) = devices
    wanted = options.measures or [name for name, one in MEASURES.items() if device.type in one.by_default]
    jobs = []
    for path, plain_cfg in plain.items():
        trains = plain_cfg.TASK_TYPE in ENGINE.names()
        names = [name for name in MEASURES if name in wanted and MEASURES[name].trains == trains]
        settings = dict.fromkeys(setting for name in names for setting in _settings(options, name, device))
        model = "/".join(path.with_suffix("").parts[-2:]).removeprefix("configs/")
        for setting in settings:
            cfg = load_config(path, [*options.overrides, *setting.split()])
            case = Case(model=model, setting=setting, cfg=cfg, plain_cfg=plain_cfg)
            jobs += [(name, case) for name in names if setting in _settings(options, name, device)]
    unmet = [name for name in options.measures if name != CEILING and name not in {job[0] for job in jobs}]
    if unmet:
        kind = "a training" if MEASURES[unmet[0]].trains else "an inference"
        raise ConfigError(f"--measure {unmet[0]} needs {kind} configuration; add one with --cfg")
    return device, jobs


def log_what_is_random(jobs: Sequence[tuple[str, Case]]) -> None:
    """Log one line for each model whose weight files are missing, before it is measured."""
    sampled = {(case.model, has_files(case.cfg)): case.cfg for name, case in jobs if not MEASURES[name].trains}
    for (model, complete), cfg in sampled.items():
        if not complete:
            what = "weights" if can_encode(cfg) else "weights, and random words in the place of the text encoder"
            log.info("%s: weight files are missing; it is measured with random %s", model, what)


def _settings(options: BenchOptions, name: str, device: torch.device) -> Sequence[str]:
    by_device = MEASURES[name].settings if device.type == "cuda" else MEASURES[name].cpu_settings
    return options.settings or by_device


def _rows_or_failure(bench: Bench, name: str, case: Case) -> list[Row]:
    """The rows; if the device runs out of memory, a row that reports it, so that the other rows are kept."""
    try:
        return MEASURES[name].rows(bench, case)
    except torch.cuda.OutOfMemoryError:
        log.warning("%s, %s: out of memory", name, case.setting)
    bench.clear()
    return [{**case.row, "failed": "out of memory"}]


def names() -> list[str]:
    """List all measures."""
    return [CEILING, *MEASURES]
