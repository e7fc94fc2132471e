"""The folder of a Space: its settings, the weights that it needs, and that it starts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import yaml

from tests.conftest import ROOT
from tools import make_space
from utils.errors import ConfigError, DataError

NEEDED = {"autoencoder_real", "embedder_real", "unet_real", "elevation"}


def test_a_space_has_its_settings_the_app_and_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = make_space.shipped_weights("mini/real_infer")
    assert weights == {f"{name}.safetensors" for name in NEEDED}
    listed = make_space.package_files(ROOT)
    some = [one for one in listed if one.name in ("__init__.py", "LICENSE") or one.name.startswith("data/mini/")]
    monkeypatch.setattr(make_space, "package_files", lambda root: some)  # renaming all imports takes a second
    title = 'A "title": ---'
    files = dict(make_space.space_files(["mini/t2v_infer"], title=title, gradio="6.0", weights=weights))
    front = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (front["sdk"], front["sdk_version"], front["app_file"], front["title"]) == ("gradio", "6.0", "app.py", title)
    assert {name for name in files if name.endswith(".safetensors")} == {f"videomv/data/mini/{one}" for one in weights}
    assert "videomv/data/mini/ATTRIBUTION.md" in files
    assert "filter=lfs" in files[".gitattributes"].decode()
    assert {"torch==2.10.0", "gradio==6.0"} <= set(files["requirements.txt"].decode().splitlines())
    assert '*["--cfg", "mini/t2v_infer"]]' in files["app.py"].decode()
    compile(files["app.py"], "app.py", "exec")


def test_mistakes_stop_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(make_space, "_gradio_version", lambda: "6.0")
    with pytest.raises(ConfigError, match="exists already; remove it, or name another folder"):
        make_space.main([str(tmp_path)])
    out = tmp_path / "space"
    with pytest.raises(DataError, match=r"--cfg t2v_infer: pretrained_models/.* do not come with the project"):
        make_space.main([str(out), "--cfg", "t2v_infer"])
    assert not out.exists()


@pytest.mark.slow
def test_a_space_starts_without_the_repository(tmp_path):
    Client = pytest.importorskip("gradio_client", reason="the app is an optional extra").Client
    out = tmp_path / "space"
    assert make_space.main([str(out)]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        **os.environ,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    variables.pop("PYTHONPATH", None)
    with (tmp_path / "log.txt").open("w") as log:
        app = subprocess.Popen([sys.executable, "app.py"], cwd=out, env=variables, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/"
    try:
        page = _page(address, app)
        options = {"num_views": 4, "quality": "quick", "api_name": "/text_to_orbit"}
        sheet, files, _ = Client(address, verbose=False).predict("a wooden chair", **options) if page else ("", [], {})
    finally:
        app.terminate()
        app.wait(30)
    log = (tmp_path / "log.txt").read_text()
    assert "gradio" in page, log
    assert sheet.endswith("sheet.png"), log
    assert any(file.endswith(".glb") for file in files)
    shutil.rmtree(out)


def _page(address: str, app: subprocess.Popen) -> str:
    """The page, once the app answers; "" if it ended before."""
    end = time.monotonic() + 900  # a busy machine
    while time.monotonic() < end:
        if app.poll() is not None:
            return ""
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(1)
    return ""
