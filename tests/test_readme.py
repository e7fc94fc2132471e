"""What the pages say, runs: their commands parse, their code works, their tables are those of the code."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import datasets  # noqa: F401 - registers
import models  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from datasets.zoo import COLORS, KINDS, is_held_out
from models.weights import read_metadata
from pipelines.benchmark.runner import plan
from pipelines.parts import check_fit
from tests.conftest import ROOT
from tests.reference_cases import REFERENCE
from tests.tiny import write_config, write_family
from tools import convert_cameras, reconstruct
from utils import registry
from utils.config import load_config
from utils.registry import ENGINE, INFER_ENGINE, Section
from utils.settings.original import BASE_KEYS, REPLACED_KEYS, RETIRED_KEYS

FOLDERS = ("configs", "data", "datasets", "models", "pipelines", "tests", "tools", "utils")
PAGES = [ROOT / "README.md", *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def command_lines() -> list[str]:
    """Every single command of the pages; `A && B` counts as two."""
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return list(dict.fromkeys(part.strip() for line in lines for part in line.split("&&")))


def commands(*names: str) -> list[str]:
    return [line for line in command_lines() if line.startswith(tuple(f"python {name}" for name in names))]


def arguments(line: str) -> list[str]:
    """What follows `python script.py`."""
    return shlex.split(line)[2:]


def section(page: Path, heading: str) -> str:
    """The text under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert found, f"{page.name} has no heading {heading}"
    return found[1]


def table(text: str, header: str) -> list[list[str]]:
    """Cells of the rows of the table whose first header cell is `header`."""
    found = re.search(rf"^\| {header} \|.*\n\|[ -|]+\n((?:\|.*\n?)+)", text, flags=re.M)
    assert found, f"no table {header}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_pages_hold_commands_of_every_entry():
    starts = {tuple(shlex.split(line)[:2]) for line in commands("")}
    scripts = {"inference.py", "train_net.py", *(f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py"))}
    scripts -= {"tools/__init__.py"}
    assert {script for _, script in starts} - {"-m"} == scripts


@pytest.mark.parametrize("line", command_lines())
def test_commands_name_files_that_exist(line):
    ours = re.compile(r"^(configs|tools|tests|datasets)(/|$)|^data/mini/|^[\w/]+\.(py|sh)$")
    for word in shlex.split(line):
        if ours.match(word):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("marker", ["first-line", "second-line"])
def test_the_check_finds_the_marked_lines(marker):
    script = f"sed -n '/<!-- {marker} -->/,/^```$/p' README.md | sed '1,2d;$d'"
    assert "/<!-- $1 -->/,/^\\`\\`\\`\\$/p" in (ROOT / ".ci" / "run").read_text()
    found = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.count("\n") == 1
    assert found.strip().endswith({"first-line": "configs/mini/t2v_infer.yaml", "second-line": "tests"}[marker])


@pytest.fixture
def started(monkeypatch):
    """Replaces the work of every script by a note of what it was asked to do."""
    notes = []

    class Nothing:
        failures = ()

        def run(self):
            return []

    def note(*args, **options):
        notes.append((args, options))
        return Nothing()

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(INFER_ENGINE, "build", note)
    monkeypatch.setattr("pipelines.training.trainer.train", note)
    monkeypatch.setattr("pipelines.training.launch.processes_to_start", lambda cfg: 1)
    monkeypatch.setattr("tools.evaluate.evaluate", lambda *args, **options: notes.append((args, options)))
    monkeypatch.setattr("tools.random_weights.write_random_weights", lambda *args: notes.append((args, {})) or [])
    monkeypatch.setattr("tools.random_weights.writable_folder", lambda path, option: path)
    return notes


def run_main(line: str, monkeypatch) -> None:
    script = shlex.split(line)[1]
    monkeypatch.setattr(sys, "argv", [script, *arguments(line)])
    importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()


@pytest.mark.parametrize(
    "line", commands("inference.py", "train_net.py", "tools/evaluate.py", "tools/random_weights.py")
)
def test_a_configured_command_is_accepted(line, started, monkeypatch):
    run_main(line, monkeypatch)
    [(args, options)] = started
    cfg = options["cfg"] if "cfg" in options else args[0]
    words = arguments(line)
    prompts = [words[place + 1] for place, word in enumerate(words) if word == "--prompt"]
    assert cfg.prompts == prompts
    cfg.cameras.c2w()
    if line.startswith("python inference.py"):
        check_fit(cfg, torch.device("cpu"))
    kinds = INFER_ENGINE if "infer" in words[words.index("--cfg") + 1] else ENGINE
    assert cfg.TASK_TYPE in kinds.names()


@pytest.mark.parametrize("line", commands("tools/benchmark.py"))
def test_a_benchmark_command_is_planned(line, monkeypatch):
    planned = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tools.benchmark.run_benchmark", lambda options: planned.append(plan(options)))
    run_main(line, monkeypatch)
    [(_, jobs)] = planned
    assert jobs


@pytest.mark.parametrize(
    "line",
    commands(
        "tools/make_zoo.py", "tools/render_orbit.py", "tools/index_dataset.py", "tools/check_images.py",
        "tools/collect_meshes.py", "tools/caption_objects.py",
    ),
)  # fmt: skip
def test_a_data_command_is_accepted(line):
    tool = importlib.import_module(shlex.split(line)[1].removesuffix(".py").replace("/", "."))
    options = vars(tool.parse_args(arguments(line)))
    given = {word.removeprefix("--").replace("-", "_") for word in arguments(line) if word.startswith("--")}
    assert given <= set(options)


@pytest.mark.parametrize("line", commands("tools/convert_cameras.py"))
def test_a_conversion_command_is_accepted(line):
    assert convert_cameras.parse_args(arguments(line)).to in line


@pytest.mark.parametrize("line", commands("tools/reconstruct.py"))
def test_a_reconstruction_command_is_accepted(line):
    section, folders = reconstruct.sections_and_folders(reconstruct.parse_args(arguments(line)))
    assert section.type in line
    assert folders


def test_a_wrong_command_would_be_noticed(started, monkeypatch):
    with pytest.raises(ValueError, match="did you mean guide_scale"):
        run_main("python inference.py --cfg configs/mini/t2v_infer.yaml guide_scal=3", monkeypatch)
    with pytest.raises(SystemExit):
        run_main("python train_net.py --config configs/t2v_train.yaml", monkeypatch)
    assert not started


def test_what_is_copied_is_what_training_writes():
    written = {}
    for line in commands("train_net.py"):
        words = arguments(line)
        cfg = load_config(ROOT / words[words.index("--cfg") + 1])
        stem = "i2v" if cfg.training.type.endswith("i2v_entrance") else cfg.training.cls.stem
        stem = "head" if cfg.TASK_TYPE.startswith("tune_") else stem  # the generator stays as it is
        written[f"{cfg.log_dir}/{stem}.safetensors"] = cfg
    copies = [shlex.split(line)[1:] for line in command_lines() if line.startswith("cp ")]
    assert len(copies) == 10  # nine files; a tuned head has another source
    assert {source for source, _ in copies} <= set(written)
    used = set()
    for name in ("t2v_infer", "i2v_infer", "real_infer"):
        infer = load_config(ROOT / "configs" / "mini" / f"{name}.yaml")
        parts = (infer.auto_encoder, infer.embedder, infer.reconstruction)
        used |= {infer.test_model, *(part.pretrained for part in parts if part.pretrained)}
    assert used < {target for _, target in copies}


def test_the_python_code_runs_in_a_fresh_interpreter(tmp_path):
    """Its imports also register what the mini configuration names."""
    [code] = [block for block in blocks(ROOT / "README.md", "python") if "ViewsPipeline" in block]
    assert code.count('"mini/t2v_infer"') == 1
    family = write_family(tmp_path) | {"sampler": {"type": "DDIM", "num_steps": 1}}
    family["vid_dataset"] = {"type": "PackedOrbits", "data_dir_list": ["nowhere"]}
    write_config(tmp_path / "run.yaml", family)
    code = code.replace("mini/t2v_infer", "run.yaml")
    code += "print(tuple(orbits.views_BVCHW.shape), orbits.seeds, pipeline.cfg.guide_scale)"
    # one thread: threads of tiny operations only wait for each other on a busy machine
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # searches for garbage take a fifth of the time of the imports
    line = [sys.executable, "-c", f"import gc\ngc.disable()\n{code}"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 3, 3, 32, 32) [3, 4] 5.0"
    assert (tmp_path / "mug.mp4").stat().st_size > 0


def test_shapes_in_the_python_code_are_those_of_the_mini_family():
    [code] = [block for block in blocks(ROOT / "README.md", "python") if "ViewsPipeline" in block]
    cfg = load_config(ROOT / "configs" / "mini" / "t2v_infer.yaml")
    num_views, (width, height) = len(cfg.cameras.c2w()), cfg.resolution
    reduction = cfg.auto_encoder.options.reduction
    latents = (2, cfg.auto_encoder.options.embed_dim, num_views, height // reduction, width // reduction)
    shown = [ast.literal_eval(shape) for shape in re.findall(r"# (\([\d, ]+\))", code)]
    assert shown == [(2, num_views, 3, height, width), latents, (num_views, 4, 4)]


def test_every_setting_that_the_page_names_exists():
    cfg = load_config(ROOT / "configs" / "t2v_infer.yaml")
    rows = table(section(ROOT / "README.md", "Sampling"), "setting")
    names = [name for cell, *_ in rows for name in names_in(cell)]
    assert len(names) > 12
    for name in names:
        head, _, tail = name.partition(".")
        value = getattr(cfg, head)
        value = value.options if isinstance(value, Section) else value
        assert not tail or tail == "type" or hasattr(value, tail), name


def test_keys_of_the_original_are_those_of_the_code():
    text = section(ROOT / "configs" / "README.md", "What changed")
    read_as, ignored = re.split(r"^Keys in this table are accepted", text, flags=re.M)
    listed = [name for cell, *_ in table(read_as, "key of the original") for name in names_in(cell)]
    assert sorted(listed) == sorted([*REPLACED_KEYS, *BASE_KEYS, "UNet.use_lgm_refine"])
    expected = set(RETIRED_KEYS)
    for name in ("UNet", "auto_encoder", "embedder", "Diffusion", "vid_dataset", "Pretrain", "visual_train"):
        cls = getattr(load_config(ROOT / "configs" / "t2v_train.yaml"), name).cls
        expected |= {f"{name}.{key}" for key in getattr(cls, "retired_keys", {})}
    expected -= {"UNet.use_lgm_refine"}  # a run reads it, as refine
    listed = [name for cell, *_ in table(ignored, "key of the original") for name in names_in(cell)]
    assert sorted(listed) == sorted(expected)


def test_every_configuration_is_listed_and_the_published_ones_are_named():
    rows = table(section(ROOT / "configs" / "README.md", "Configuration files"), "file")
    listed = [name for cell, *_ in rows for name in names_in(cell)]
    there = [str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")]
    assert sorted(listed) == sorted(there)
    published = json.loads((REFERENCE / "published_settings.json").read_text())
    intro = section(ROOT / "configs" / "README.md", "For users of the original").partition("hold the published")[0]
    assert {name for name in names_in(intro) if name.endswith(".yaml")} == {
        f"{name}.yaml" for name in published.keys() - {"defaults"}
    }


def test_type_names_of_the_original_that_stay_are_listed():
    text = section(ROOT / "configs" / "README.md", "What stays")
    listed = names_in(re.search(r"^- Type names: (.*?)^- ", text, flags=re.M | re.S)[1])
    known = {name for kind in vars(registry).values() if isinstance(kind, registry.Registry) for name in kind.names()}
    assert sorted(listed) == sorted(known & types_in(json.loads((REFERENCE / "published_settings.json").read_text())))


def types_in(tree: dict[str, object]) -> set[str]:
    """All types that a tree of settings names."""
    found = {value for key, value in tree.items() if key in ("type", "TASK_TYPE")}
    return found.union(*(types_in(value) for value in tree.values() if isinstance(value, dict)))


def test_paths_of_weights_and_data_are_those_of_the_configurations():
    train, infer = (load_config(ROOT / "configs" / f"t2v_{name}.yaml") for name in ("train", "infer"))
    for cells in table(section(ROOT / "configs" / "README.md", "Where weights and data go"), "setting"):
        [setting], [path] = names_in(cells[0]), names_in(cells[1])
        head, _, tail = setting.partition(".")
        for cfg in {"both": (train, infer), "`t2v_train.yaml`": (train,), "`t2v_infer.yaml`": (infer,)}[cells[2]]:
            value = getattr(getattr(cfg, head).options, tail) if tail else getattr(cfg, head)
            assert path in (value, *(value if tail.startswith("data_") else ())), setting


def test_the_zoo_is_described_as_it_is():
    text = section(ROOT / "datasets" / "README.md", "The zoo")
    described = {kind: tuple(parts.split(", ")) for kind, parts in table(text, "kind")}
    assert described == {name: kind.parts for name, kind in KINDS.items()}
    [colors] = re.findall(r"^Colours: (.*)\.$", text, flags=re.M)
    assert colors.split(", ") == list(COLORS)
    assert f"{len(KINDS)} kinds of objects and {len(COLORS)} colours" in (ROOT / "README.md").read_text()
    combinations = [
        (kind.name, color, part, part_color)
        for kind in KINDS.values()
        for part in kind.parts
        for color in COLORS
        for part_color in COLORS
        if color != part_color
    ]
    num_held_out = sum(is_held_out(*combination) for combination in combinations)
    assert f"Of the {len(combinations):,} combinations" in text
    assert f"a fixed tenth ({num_held_out:,})" in text


def test_sizes_and_steps_of_the_small_weights_are_true():
    folder = ROOT / "data" / "mini"
    rows = table((folder / "README.md").read_text(encoding="utf-8"), "file")
    assert sorted(f"`{path.name}`" for path in folder.glob("*.safetensors")) == sorted(row[0] for row in rows)
    for name, size, *_, steps in rows:
        file = folder / name.strip("`")
        assert file.stat().st_size / 1e6 == pytest.approx(float(size.removesuffix(" MB")), abs=0.006), name
        assert read_metadata(file, option="test")["step"] == steps.removesuffix(" steps").replace(",", ""), name


def test_the_readme_is_short_and_pictures_are_in_one_folder():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 2000
    figures = ROOT / "data" / "figures"
    shown = set()
    for page in PAGES:
        targets = re.findall(r"!?\[[^\]]*\]\(([^)]+\.(?:png|jpg))\)", page.read_text(encoding="utf-8"))
        shown |= {(page.parent / target).resolve() for target in targets}
    assert shown == {path.resolve() for path in figures.iterdir()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if path.startswith("https:"):
            continue
        file = (page.parent / path) if path else page
        assert file.is_file(), target
        if not anchor:
            continue
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.M)
        assert anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], target
