"""The page of a run: it shows every sample, opens from disk, and nothing that a user typed becomes part of it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

import pipelines  # noqa: F401 - registers
from pipelines.sampling import report
from pipelines.sampling.report import write_report
from tests.tiny import load, run, write_family

pytestmark = pytest.mark.usefixtures("one_thread")

TYPED = "<script>alert(1)</script> & a \"red\" 'mug' __SETTINGS__"


class Page(HTMLParser):
    """What a browser finds in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def found(self, tag, **having):
        return [attributes for name, attributes in self.tags if name == tag and having.items() <= attributes.items()]


@pytest.fixture
def family(tmp_path):
    return write_family(tmp_path) | {"cameras": {"num_views": 8}, "visual_inference": {"columns": 3}}


def page_of(tmp_path):
    return Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))


def test_a_run_writes_a_page_of_its_samples(tmp_path, family, caplog):
    caplog.set_level("INFO")
    folders = run(load(tmp_path, {**family, "prompts": ["a red mug", TYPED]}))
    assert f"all samples on one page: {tmp_path}/out/index.html" in caplog.text
    page = page_of(tmp_path)
    orbits = page.found("div", role="slider")
    # 8 views of 32 x 32 in rows of 3, with 2 pixels between them: 100 x 100
    steps = {"data-views": "8", "data-columns": "3", "data-step-x": "50.0", "data-step-y": "50.0", "data-fps": "8"}
    assert [{key: one[key] for key in steps} for one in orbits] == [steps] * 2
    for orbit, folder in zip(orbits, folders, strict=True):
        assert f"background-image:url('{folder.name}/sheet.png')" in orbit["style"]
        assert "background-size:312.5% 312.5%" in orbit["style"]
    links = [unquote(one["href"]) for one in page.found("a")]
    assert {f"{folder.name}/{file}" for folder in folders for file in ("", "orbit.mp4", "transforms.json")} <= {*links}
    assert all((tmp_path / "out" / link).exists() for link in links)
    facts = next(text for text in page.texts if text.startswith("seed 11"))
    cost = json.loads((folders[0] / "result.json").read_text())["cost"]
    assert facts == f"seed 11 · 8 views · {cost['seconds']:.1f} s · {cost['peak_memory_mb'] / 1000:.1f} GB"
    assert cost["seconds"] == pytest.approx(sum(cost["parts"].values()), abs=0.01)
    assert any("num_views: 8" in text for text in page.texts)


def test_nothing_typed_becomes_part_of_the_page_and_no_network_is_needed(tmp_path, family):
    run(load(tmp_path, {**family, "prompts": [TYPED]}))
    page = page_of(tmp_path)
    assert TYPED in page.texts
    assert len(page.found("script")) == 1
    text = (tmp_path / "out" / "index.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert not [one for _, one in page.tags if "src" in one or "onload" in one]


def test_a_resumed_run_and_another_one_keep_all_samples_on_the_page(tmp_path, family):
    first = load(tmp_path, {**family, "prompts": ["a red mug"]})
    run(first)
    made = (tmp_path / "out" / "index.html").read_bytes()
    (tmp_path / "out" / "index.html").unlink()
    run(first)  # nothing to make
    assert (tmp_path / "out" / "index.html").read_bytes() == made
    run(load(tmp_path, {**family, "prompts": ["a blue cat"]}))
    page = page_of(tmp_path)
    assert [text for text in page.texts if text in ("a red mug", "a blue cat")] == ["a blue cat", "a red mug"]
    assert "1 sample of this run, 1 of earlier runs" in page.texts


def test_a_page_of_the_user_is_kept_and_a_setting_leaves_it_out(tmp_path, family, caplog):
    cfg = load(tmp_path, {**family, "prompts": ["a red mug"], "report": False})
    run(cfg)
    assert not (tmp_path / "out" / "index.html").exists()
    (tmp_path / "out" / "index.html").write_text("mine")
    run(load(tmp_path, {**family, "prompts": ["a red mug"]}))
    assert (tmp_path / "out" / "index.html").read_text() == "mine"
    assert "index.html was not written by this program and is kept" in caplog.text


def write_sample(folder, **result):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"prompt": folder.name, "seed": 1, **result}))
    return folder


def test_odd_samples_and_failures_do_not_end_a_page(tmp_path, family, monkeypatch):
    cfg, out = load(tmp_path, family), tmp_path / "out"
    fitted = write_sample(out / "fitted", c2w=[0] * 3, settings={"resolution": [32, 32]}, input_elevation_deg=7.2)
    (fitted / "fit").mkdir()
    (fitted / "fit" / "result.json").write_text('{"psnr": 31.234}')
    (fitted / "fit" / "mesh.glb").write_text("")
    (fitted / "sheet.png").write_text("no picture")
    odd = write_sample(out / "odd", c2w=3, settings="none", cost=[], assets={"mesh.glb": {"error": "no surface"}})
    cut = write_sample(out / "cut")
    (cut / "result.json").write_text("{")
    write_report(out, [fitted, odd, cut, out / "gone"], cfg, failures=["gone: <b>not finite</b>"])
    page = page_of(tmp_path)
    assert "seed 1 · 3 views · elevation 7° · fit 31.23 dB" in page.texts
    assert "seed 1 · without mesh.glb" in page.texts
    assert {"href": "fitted/fit/mesh.glb"} in page.found("a")
    assert "not made: gone: <b>not finite</b>" in page.texts
    assert page.found("div", role="slider") == []
    monkeypatch.setattr(report, "MOST_SHOWN", 2)
    write_report(out, [fitted], cfg, failures=[])
    assert "1 sample more in this folder" in page_of(tmp_path).texts
