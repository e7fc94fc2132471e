"""What the page shows and measures of a model with packed views."""

from __future__ import annotations

import io
from base64 import b64decode
from types import SimpleNamespace

import pytest
from PIL import Image

from pipelines import ViewsPipeline
from tests.pipelines.sampling.test_packed_orbits import sampling_config
from tests.tiny import load
from tests.tiny_orbits import SIZE
from tools.web.models import measure
from tools.web.service import PREVIEW_VIEWS, OrbitWatch, PartMemory

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_preview_shows_views_of_the_whole_orbit_and_costs_are_those_of_a_view(tmp_path, monkeypatch):
    pipeline = ViewsPipeline.from_config(load(tmp_path, sampling_config(tmp_path)))
    told, decoded, decode = {}, [], pipeline.decode

    def noted(*given, **options):
        decoded.append(options.get("views"))
        return decode(*given, **options)

    monkeypatch.setattr(pipeline, "decode", noted)
    watch = OrbitWatch(SimpleNamespace(tell=told.update), tmp_path, PartMemory(), files_s=1.0)
    watch.started -= 1000  # so that there is time for a preview
    pipeline("a red mug", seeds=1, on_x0=lambda x0: watch.preview(pipeline, x0))
    assert decoded[0] == [0, 1, 2, 4, 5, 6]
    with Image.open(io.BytesIO(b64decode(told["preview"].split(",")[1]))) as sheet:
        assert sheet.size[0] >= PREVIEW_VIEWS * SIZE
    seconds = iter([0, 1, 0, 1, 0, 1, 0, 1, 0, 4])  # of five calls; the last one decodes two frames
    monkeypatch.setattr("tools.web.models.DECODED_AT_ONCE", 2)
    monkeypatch.setattr("tools.web.models.time.perf_counter", lambda: next(seconds))
    assert measure(pipeline).view_s == 1  # of four views
