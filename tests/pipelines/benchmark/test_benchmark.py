"""The benchmark on tiny models: what the tables hold, and what they are compared with."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.benchmark import objects
from pipelines.benchmark.case import Bench, build_pipeline
from pipelines.benchmark.diffusers_unet import diffusers_unet
from pipelines.benchmark.runner import BenchOptions, log_what_is_random, plan, run_benchmark
from pipelines.benchmark.sheet import LABEL_WIDTH, SheetLine, write_sheet
from pipelines.benchmark.steps import step_flops
from pipelines.benchmark.timing import Marks, median_ms
from pipelines.training.trainer import Trainer
from tests.conftest import ROOT
from tests.tiny import write_config, write_family, write_head, write_image_family
from tests.tiny_wan import AUTOENCODER, TEXT, UNET
from tools.benchmark import main
from utils.config import load_config
from utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _small_ceiling(monkeypatch):
    monkeypatch.setattr("pipelines.benchmark.ceiling.CPU_SIZE", 64)
    # a search for garbage takes half a second in a process of tests, and these networks are small
    monkeypatch.setattr("pipelines.benchmark.case.free_memory", lambda device: None)
    monkeypatch.setattr("pipelines.benchmark.ceiling.CPU_COPY_BYTES", 2**16)


def tables_of(tmp_path, config, *measures, **options):
    path = write_config(tmp_path / "run.yaml", config)
    options = {"repeats": 1, **options}
    text = run_benchmark(BenchOptions(cfgs=[str(path)], measures=measures, out=tmp_path / "bench", **options))
    return json.loads((tmp_path / "bench" / "benchmark.json").read_text())["tables"], text


@pytest.mark.usefixtures("kept_networks")
def test_a_text_model_is_measured(tmp_path):
    config = write_family(tmp_path) | write_head(tmp_path)
    config |= {"sampler": {"type": "DDIM", "num_steps": 3}, "cameras": {"num_views": 4}}
    tables, text = tables_of(tmp_path, config, "step", "decode", "orbit", "refine", "cold", "diffusers")
    (step,) = tables["step"]
    assert step["weights"] == "files"
    assert step["error_1"] == step["error_end"] == 0  # the configuration is the reference
    assert 0 < step["share"] < 10
    assert [row["what"] for row in tables["orbit"]] == [
        "plain orbit.mp4",
        "plain and 3D-aware orbit.mp4, gaussians.ply",
    ]
    for row in tables["orbit"]:
        parts = [row.get(f"{name}_ms", 0) for name in ("conditions", "denoise", "refine", "decode", "reconstruct")]
        assert sum(parts) + row["files_ms"] + row["other_ms"] == pytest.approx(1000 * row["seconds"])
    assert parts[2] > 0  # 3D-aware sampling
    (cold,) = tables["cold"]
    assert cold["start_s"] == pytest.approx(cold["load_s"] + cold["first_s"] - cold["second_s"])
    assert all(tables[name][0][f"{name}_ms"] > 0 for name in ("decode", "refine"))
    assert tables["diffusers"][0]["step_ms"] > 0
    assert "of ceiling" in text
    assert "| model |" in (tmp_path / "bench" / "benchmark.md").read_text()


@pytest.mark.usefixtures("kept_networks")
def test_settings_are_rows_and_errors_are_against_float32(tmp_path):
    config = write_image_family(tmp_path) | {"test_model": "nowhere.pth"}
    settings = ["precision=bfloat16", "sampler.num_steps=4"]
    tables, _ = tables_of(tmp_path, config, "step", settings=settings, overrides=["seed=3"])
    half, longer = tables["step"]
    assert [row["setting"] for row in (half, longer)] == settings
    assert half["weights"] == "random"
    assert 1e-4 < half["error_1"] < 0.3  # bfloat16 keeps 8 bits
    assert (longer["error_1"], longer["steps"]) == (0, 4)
    assert longer["error_end"] > 0
    tables, _ = tables_of(tmp_path, config, "sizes")
    sizes = [(row["views"], row["pixels"]) for row in tables["sizes"]]
    assert sizes == [(1, "32 x 32"), (3, "32 x 32"), (6, "32 x 32"), (3, "64 x 64")]


@pytest.mark.slow
def test_settings_are_compared_with_many_steps_and_with_their_own_sampler(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.benchmark.solvers.REFERENCE_STEPS", 4)
    sheets = []
    monkeypatch.setattr("pipelines.benchmark.solvers.write_sheet", lambda path, lines: sheets.append(list(lines)))
    steps = "precision=float32 sampler.type=DDIM sampler.num_steps="
    settings = [f"{steps}4", f"{steps}2", f"{steps}3 sampler.reuse_steps=3", "reconstruction.guidance=before"]
    config = write_family(tmp_path) | write_head(tmp_path) | {"cameras": {"num_views": 4}}
    tables, _ = tables_of(tmp_path, config, "solvers", settings=settings, num_samples=1)
    same, short, reusing, refined = tables["solvers"]
    assert (same["psnr_db"], same["samples"], short["steps"]) == (60, 1, 2)
    assert max(short["psnr_db"], reusing["psnr_db"], reusing["psnr_same_db"], refined["psnr_same_db"]) < 60
    assert "psnr_same_db" not in {name for row in (same, short) for name, value in row.items() if value is not None}
    labels = [line.label for line in sheets[-1]]
    reference = "4 steps of DDIM in float32"
    assert [label for label in labels if label[0] == reference] == [(reference,), (reference, "with 3D-aware sampling")]
    assert len(labels) == 2 + len(settings)
    assert labels[-1][0] == "reconstruction.guidance=before"
    assert labels[-1][-1] == f"{refined['psnr_same_db']:.1f} dB to the same in float32"
    with pytest.raises(ConfigError, match="needs trained weights"):
        tables_of(tmp_path, write_family(tmp_path) | {"test_model": "nowhere.pth"}, "solvers")


def test_a_sheet_has_a_label_beside_each_line(tmp_path):
    grey = torch.full((12, 3, 32, 32), 0.5)
    write_sheet(tmp_path / "sheet.jpg", [SheetLine(label=("one",) * 4, views_VCHW=grey)] * 2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.jpg").convert("L"))
    assert sheet.shape[0] > 2 * 4 * 12  # labels are higher than these views
    labels, views = sheet[:, :LABEL_WIDTH], sheet[: len(sheet) // 2, LABEL_WIDTH:]
    assert labels.min() < 80
    assert (np.abs(views.astype(int) - 128) < 8).sum() == pytest.approx(6 * 32 * 32, rel=0.1)


def test_rows_that_differ_in_sampling_share_their_parts(tmp_path):
    path = write_config(tmp_path / "run.yaml", write_family(tmp_path))
    bench = Bench(device=torch.device("cpu"), out=tmp_path)

    def shared(*overrides: str, role: str = "row"):
        return bench.shared_pipeline(load_config(path, overrides), role=role)

    first, longer = shared(), shared("sampler.num_steps=5", "guide_range=[0,0.5]")
    assert longer.unet is first.unet
    assert (longer.sampler.config.num_steps, longer.cfg.guide_range) == (5, (0, 0.5))
    assert first.sampler.config.num_steps == 3
    other = shared("precision=bfloat16")
    assert other.unet is not first.unet
    assert shared(role="reference").unet is not first.unet
    assert shared("precision=bfloat16").unet is other.unet  # each role keeps its own


def test_a_training_step_is_measured(tmp_path, monkeypatch):
    steps, train_step = [], Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda trainer, batches: steps.append(train_step(trainer, batches)))
    monkeypatch.setattr("pipelines.benchmark.training.BUDGET_S", 0.0)
    config = write_family(tmp_path) | {
        "TASK_TYPE": "train_t2v_entrance", "batch_sizes": {"4": 2}, "frame_lens": [4], "objective": {},
        "Pretrain": {"type": "pretrain_specific_strategies", "grad_scale": 0.5, "resume_checkpoint": "nowhere.pth"},
    }  # fmt: skip
    settings = ["precision=bfloat16", "lora.rank=2"]
    rows = tables_of(tmp_path, config, "train", settings=settings, repeats=3)[0]["train"]
    assert len(steps) == 2 * (5 + 3)  # without time left, three steps are measured instead of six
    assert [row["setting"] for row in rows] == ["precision=bfloat16", "lora.rank=2"]
    for row in rows:
        assert (row["batch"], row["views"], row["weights"]) == (2, 4, "random")
        assert row["train_ms"] > 0


def test_random_weights_are_those_of_float32_in_any_precision(tmp_path):
    config = write_family(tmp_path) | {"test_model": "nowhere.pth"}
    path = write_config(tmp_path / "run.yaml", config)
    full, half = (build_pipeline(load_config(path, [f"precision={name}"])) for name in ("float32", "bfloat16"))
    for name in ("unet", "autoencoder"):
        for one, other in zip(getattr(full, name).parameters(), getattr(half, name).parameters(), strict=True):
            assert torch.equal(one.bfloat16(), other)
            assert one.abs().max() > 0


@pytest.mark.parametrize(("changes", "logged"), [({}, 0), ({"test_model": "nowhere.pth"}, 1)])
def test_random_weights_are_named_only_if_a_file_is_missing(tmp_path, caplog, changes, logged):
    path = write_config(tmp_path / "run.yaml", write_family(tmp_path) | changes)
    _, jobs = plan(BenchOptions(cfgs=[str(path)], measures=["step", "decode"], settings=["seed=1", "seed=2"]))
    with caplog.at_level("INFO", logger="pipelines.benchmark"):
        log_what_is_random(jobs)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("pipelines.benchmark")]
    assert len(lines) == logged
    assert all(line.endswith("weight files are missing; it is measured with random weights") for line in lines)


def test_one_pipeline_is_held(tmp_path):
    cfg = load_config(write_config(tmp_path / "run.yaml", write_family(tmp_path) | write_head(tmp_path)))
    bench = Bench(device=torch.device("cpu"), out=tmp_path)
    plain = bench.pipeline(cfg)
    assert bench.pipeline(cfg) is plain
    assert plain.reconstruction is None
    assert bench.pipeline(cfg, head=True).reconstruction is not None


@pytest.mark.parametrize(("name", "tflop"), [("t2v_infer", 14.67), ("i2vgen_xl_infer", 14.67)])
def test_the_published_size_is_counted(name, tflop):
    """Twice 7.336 TFLOP were counted in the original, which computes keys and values of the context for each view."""
    assert step_flops(load_config(ROOT / "configs" / f"{name}.yaml")) / 1e12 == pytest.approx(tflop, rel=0.02)


def test_diffusers_network_has_the_size_of_ours():
    cfg = load_config(ROOT / "configs" / "t2v_infer.yaml")
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in network.parameters()) for network in (diffusers_unet(cfg), cfg.UNet.build())]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_marks_measure_time():
    device = torch.device("cpu")
    marks = Marks(device)
    for _ in range(3):
        marks.mark()
    assert len(marks.intervals_ms()) == 2
    calls = []
    assert median_ms(lambda: calls.append(1), device=device, repeats=5) < 1
    assert len(calls) == 3 + 5
    median_ms(lambda: calls.append(1), device=device, repeats=5, budget_s=0.0)
    assert len(calls) == 3 + 5 + 3 + 3


@pytest.mark.usefixtures("kept_networks")
def test_the_command_measures_a_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "small").mkdir()
    cfg = write_config(tmp_path / "small" / "infer.yaml", write_family(tmp_path))
    line = ["benchmark.py", "--cfg", str(cfg), "--measure", "step", "--out", str(tmp_path / "bench")]
    monkeypatch.setattr(sys, "argv", [*line, "cameras.num_views=1", "sampler.num_steps=3", "device=cpu"])
    main()
    printed = capsys.readouterr().out
    assert "small/infer" in printed
    assert "matrix product of 64, bfloat16" in printed


@pytest.mark.usefixtures("kept_networks")
def test_files_and_fits_are_measured(tmp_path, monkeypatch):
    fit = objects.fit_object
    small = {"num_steps": 2, "hull_grid": 16, "num_gaussians": 64}
    monkeypatch.setattr(objects, "FIT_VIEWS", 4)
    monkeypatch.setattr(objects, "FIT_SIZE", 24)
    monkeypatch.setattr(objects.FITS, "names", lambda: ["gs"])
    monkeypatch.setattr(
        objects, "fit_object", lambda section, *args, **named: fit(section.changed(**small), *args, **named)
    )
    files = {"ply": True, "glb": False, "html": False, "turntable": True, "turntable_frames": 2, "turntable_size": 16}
    config = (
        write_family(tmp_path) | write_head(tmp_path) | {"assets": files, "sampler": {"type": "DDIM", "num_steps": 2}}
    )
    tables, _ = tables_of(tmp_path, config, "files", "fits")
    assert [row["what"].split(",")[0] for row in tables["files"]] == [
        "gaussians.ply", "gaussians.splat", "turntable.mp4", "turntable.mp4", "all files at once",
    ]  # fmt: skip
    assert all(0 <= row["seconds"] <= tables["files"][-1]["seconds"] + 0.01 for row in tables["files"])
    assert [row["what"] for row in tables["fits"]] == ["gs", "gs, files"]
    assert tables["fits"][0]["psnr_db"] > 5


@pytest.mark.gpu
def test_everything_is_measured_on_a_gpu(tmp_path):
    config = write_image_family(tmp_path) | write_head(tmp_path) | {"test_model": "nowhere.pth", "device": "cuda"}
    measures = ("step", "decode", "sizes", "orbit", "refine", "cold")
    settings = ["precision=bfloat16", "precision=float16 low_memory=true"]
    tables, _ = tables_of(tmp_path, config, *measures, settings=settings)
    for name in measures:
        assert all(row["weights"] == "random" and row["peak_gib"] > 0 for row in tables[name])
    assert {row["setting"] for row in tables["step"]} == set(settings)
    assert all(1e-4 < row["error_1"] < 0.3 for row in tables["step"])
    ceilings = {row["what"].split(", ")[-1]: row.get("tflops") for row in tables["ceiling"]}
    assert ceilings["bfloat16"] > ceilings["float32"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["train"]}, "--measure train needs a training configuration"),
        ({"repeats": 0}, "--repeats must be at least 1"),
        ({"settings": ["precision=bfloat61"]}, "precision=bfloat61"),
        ({"measures": ["step"], "settings": ["precison=float32"]}, "did you mean precision"),
    ],
)
def test_refuses(tmp_path, options, message):
    path = write_config(tmp_path / "run.yaml", write_family(tmp_path))
    with pytest.raises(ConfigError, match=message):
        plan(BenchOptions(cfgs=[str(path)], **options))


def test_a_transformer_with_packed_views_is_measured_without_its_files(tmp_path, caplog):
    """Steps, decoding and training: three frames of latents instead of eight."""
    train = {
        "TASK_TYPE": "train_t2v_entrance", "UNet": {**UNET, "packed": "${auto_encoder.packed}"},
        "auto_encoder": {**AUTOENCODER, "packed": False}, "embedder": {**TEXT, "cache_dir": str(tmp_path / "words")},
        "Diffusion": {"type": "FlowMatching"}, "sampler": {"type": "UniPC", "num_steps": 3, "spacing": "trailing"},
        "vid_dataset": {"type": "PackedOrbits", "data_dir_list": ["unused"], "num_views": 8, "resolution": [32, 32]},
        "frame_lens": [8], "batch_sizes": {"8": 2}, "cameras": {"num_views": 8}, "resolution": [32, 32],
        "device": "cpu", "guide_scale": 3.0,
    }  # fmt: skip
    files = {"train": train, "infer": {"base": "train.yaml", "TASK_TYPE": "inference_text2video_entrance"}}
    for name in tuple(files):
        files[f"packed_{name}"] = {"base": f"{name}.yaml", "auto_encoder": {"packed": True}}
    cfgs = [str(write_config(tmp_path / f"{name}.yaml", values)) for name, values in files.items()]
    measures = ["step", "decode", "train"]
    with caplog.at_level("INFO", logger="pipelines.benchmark"):
        run_benchmark(BenchOptions(cfgs=cfgs, measures=measures, repeats=1, out=tmp_path / "bench"))
    random = "weight files are missing; it is measured with random weights, and random words in the place of"
    logged = [record.getMessage().split("/")[-1] for record in caplog.records if "random" in record.getMessage()]
    assert logged == [f"{model}: {random} the text encoder" for model in ("infer", "packed_infer")]  # each once
    tables = json.loads((tmp_path / "bench" / "benchmark.json").read_text())["tables"]
    single, packed = tables["step"]
    assert single["weights"] == packed["weights"] == "random"
    assert 0.3 < packed["tflop"] / single["tflop"] < 0.45  # 3 / 8 of the tokens, and the same words
    assert packed["error_1"] == packed["error_end"] == 0  # the configuration is the reference
    assert [row["views"] for row in tables["decode"]] == [8, 8]
    assert [row["batch"] for row in tables["train"]] == [2, 2]
