"""Shared pieces of the tests: the recorded reference cases and a small config."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

# Workers of pytest-xdist share the cores; threads inside each would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# The collector of garbage looks again and again at the many objects of large libraries, for a fifth of the time of
# their import. With these numbers it still collects objects in circles, but less often.
gc.set_threshold(200_000, 20, 100)


@pytest.fixture
def one_thread():
    """Tiny work is slower on several threads, and much slower where others want them too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def kept_weight_files(monkeypatch):
    """The same weight file is unpickled once in a process, and each load gets a copy."""
    if "pipelines.parts" in sys.modules:
        from tests.kept_networks import kept_files

        kept_files(monkeypatch)


@pytest.fixture
def kept_networks(monkeypatch):
    """Sampling pipelines of this test share loaded networks with those of other tests."""
    from tests.kept_networks import keeping

    with keeping(monkeypatch):
        yield


@pytest.fixture(autouse=True)
def no_search_for_garbage(monkeypatch):
    """A search for what an encoder leaves takes a tenth of a second in a process of tests, whose encoders are small."""
    if "models.wan.text_encoder" in sys.modules:
        monkeypatch.setattr("models.wan.text_encoder.gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(autouse=True)
def float32_on_every_cpu(monkeypatch):
    """Tolerances of the tests are those of float32, which `precision: auto` does not choose on every CPU."""
    monkeypatch.setattr("utils.devices.cpu_instructions", frozenset)


@pytest.fixture(autouse=True)
def fresh_accelerate(request):
    """On a GPU, accelerate keeps the precision of the first training in a process."""
    if "gpu" in request.keywords:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


_seen_modules = 0


def pytest_runtest_teardown():
    """The collector of garbage need not look at modules again and again; it takes half a second a time."""
    global _seen_modules
    if len(sys.modules) > _seen_modules + 100:
        _seen_modules = len(sys.modules)
        gc.collect(1)  # what is new; a search of everything takes longer
        gc.freeze()


def pytest_configure(config):
    """Where Python may not write compiled files, every process that a test starts would compile PyTorch again."""
    if "PYTHONDONTWRITEBYTECODE" in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        del os.environ["PYTHONDONTWRITEBYTECODE"]
        folder = tempfile.TemporaryDirectory(prefix="compiled_")
        os.environ["PYTHONPYCACHEPREFIX"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also the long form of tests that have one")
    parser.addoption("--kills", type=int, help="how often tests/pipelines/training/test_kill_storm.py kills")


def pytest_collection_modifyitems(config, items):
    """Tests with the marker `gpu` need a CUDA device; without one they are skipped, and say so. So are slow ones."""
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="--slow"))
    import torch  # here, because the process that only hands out tests needs no PyTorch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
