"""What visitors ask for and send: the same settings as the command line, and one friendly line for each mistake."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import IMAGE_UNET, UNET, write_config
from tests.tiny_views import sphere_views, write_transforms
from tools.web import show
from tools.web.jobs import Job
from tools.web.models import Costs, Model
from tools.web.requests import (
    FitRequest,
    OrbitRequest,
    Picture,
    checked,
    command_of,
    config_of,
    expected_seconds,
    guide_scale_of,
)
from tools.web.results import Result, write_mesh_page, write_strip, write_zip
from tools.web.service import check_run, without_paths
from tools.web.uploads import LARGEST_SIDE, cut_outs, store_picture, store_pictures, store_views
from utils.cameras import orbit_cameras
from utils.config import load_config
from utils.errors import ConfigError, DataError

SETTINGS = {
    "TASK_TYPE": "inference_i2vgen_entrance", "UNet": IMAGE_UNET, "takes_prompts": True, "guide_scale": 1.0,
    "Diffusion": {"type": "DiffusionDDIM"},
    "resolution": [32, 32], "cameras": {"num_views": 8}, "sampler": {"type": "DDIM", "num_steps": 10}, "seed": 3,
}  # fmt: skip
COSTS = Costs(step_s=1.0, guided_step_s=2.0, view_s=0.25)


class Head:
    reconstruction = None


def model_of(folder: Path, **changes) -> Model:
    path = write_config(folder / "run.yaml", SETTINGS | changes)
    return Model(path=str(path), cfg=load_config(path), pipeline=Head(), costs=COSTS)


@pytest.fixture
def model(tmp_path):
    return model_of(tmp_path)


def picture(folder: Path, name: str = "mug.png", size: int = 40) -> Path:
    image = Image.new("RGBA", (size, size))
    image.paste((200, 30, 30, 255), (size // 4, size // 4, size // 2, 3 * size // 4))
    image.save(folder / name)
    return folder / name


def arguments(command: str) -> tuple[str, list[str], dict[str, list[str]]]:
    """The parts of a command line, read as inference.py reads them."""
    words = shlex.split(command)
    assert words[:2] == ["python", "inference.py"]
    given = {"prompts": [], "images": []}
    overrides = []
    names = {"--prompt": "prompts", "--image": "images"}
    cfg, rest = words[words.index("--cfg") + 1], iter(words[4:])
    for word in rest:
        if word in names:
            given[names[word]].append(next(rest))
        elif word == "--remove-background":
            given["remove_background"] = True
        else:
            overrides.append(word)
    return cfg, overrides, {name: value for name, value in given.items() if value}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 5, "num_views": 12, "elevation_deg": -7.5, "quality": "full", "path": "full turn, clockwise"},
        {"path": "rising turn", "quality": "quick"},
        {"path": "half turn", "prompt": "a 'quoted' \"mug\" $HOME `id`; rm -rf / <b>\n{x: 1} seed=3"},
    ],
)
def test_the_command_gives_the_settings_of_the_page(model, tmp_path, monkeypatch, changes):
    request = checked(OrbitRequest(**{"prompt": "a red mug", **changes}), model)
    cfg, overrides, given = arguments(command_of(request, model))
    of_command, of_page = load_config(cfg, overrides, **given), config_of(request, model, log_dir=tmp_path)
    assert {**of_command.as_dict(), "log_dir": ""} == {**of_page.as_dict(), "log_dir": ""}
    assert of_page.prompts == [request.prompt]
    assert of_page.seed == request.seed
    assert len(of_page.cameras.c2w()) == request.num_views


def test_pictures_come_with_their_azimuths(model, tmp_path):
    files = [picture(tmp_path, "front.png"), picture(tmp_path, "back side.png")]
    folder = tmp_path / "visit"
    folder.mkdir()
    pictures = store_pictures(files, [0, 180], folder, model=model)
    request = checked(OrbitRequest(prompt="a mug", pictures=pictures, num_views=8), model)
    cfg = config_of(request, model, log_dir=folder)
    assert cfg.images == [str(folder / "picture_0.png")]
    assert cfg.known_views == [{"image": str(folder / "picture_1.png"), "azimuth_deg": 180.0}]
    assert (folder / "picture_1.png").read_bytes() == files[1].read_bytes()
    _, overrides, given = arguments(command_of(request, model))
    assert given == {"prompts": ["a mug"], "images": ["picture_0.png"]}
    assert 'known_views=[{"image": "picture_1.png", "azimuth_deg": 180.0}]' in overrides
    assert [view.shape for view in cut_outs(pictures, model=model)] == [(3, 32, 32)] * 2


def test_an_azimuth_without_a_view_is_told_before_the_queue(model, tmp_path):
    files = [picture(tmp_path, "a.png"), picture(tmp_path, "b.png")]
    (tmp_path / "visit").mkdir()
    for azimuth_deg in (45, 50):
        pictures = store_pictures(files, [0, azimuth_deg], tmp_path / "visit", model=model)
        request = checked(OrbitRequest(pictures=pictures, num_views=8), model)
        cfg = config_of(request, model, log_dir=tmp_path / "visit")
        if azimuth_deg == 45:
            check_run(cfg)
            continue
        with pytest.raises(ConfigError, match=r"^azimuth of picture 2: 50: no view of the orbit has this azimuth"):
            check_run(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "there is nothing to make yet: write a sentence or add a picture"),
        ({"prompt": "  \n "}, "there is nothing to make yet"),
        ({"prompt": "a" * 501}, "the sentence has 501 characters; use at most 500"),
        ({"prompt": "\ud800"}, "not valid UTF-8"),
        ({"seed": None}, "seed: 'None' is not a number; write one from 0 to"),
        ({"seed": -1}, "seed: -1 is out of range"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"seed": "1; rm"}, "seed: '1; rm' is not a number"),
        ({"elevation_deg": float("nan")}, "elevation: 'nan' is not a number"),
        ({"elevation_deg": 90}, "elevation: 90 is out of range; write a number from -60 to 60"),
        ({"num_views": 1000}, "number of views: 1000 is out of range"),
        ({"path": "/etc/passwd"}, "path: '/etc/passwd' is unknown; choose one of full turn"),
        ({"quality": "best"}, "quality: 'best' is unknown; choose one of quick, normal, full"),
        ({"refine": True}, "the model run has no 3D head"),
    ],
)
def test_mistakes_are_named_in_one_line(model, changes, message):
    with pytest.raises((ConfigError, DataError), match=r"^[^\n]*$") as caught:
        checked(OrbitRequest(**{"prompt": "a mug", **changes}), model)
    assert message in str(caught.value)


def test_a_model_of_one_kind_refuses_the_other(tmp_path):
    text = model_of(tmp_path, TASK_TYPE="inference_text2video_entrance", UNet=UNET, takes_prompts=False)
    with pytest.raises(ConfigError, match="takes no pictures; remove them"):
        checked(OrbitRequest(prompt="a mug", pictures=(Picture(path=tmp_path, name="a"),)), text)
    images = model_of(tmp_path, takes_prompts=False)
    with pytest.raises(ConfigError, match="takes no sentences; leave it empty"):
        checked(OrbitRequest(prompt="a mug"), images)
    assert (text.takes_sentences, text.takes_pictures) == (True, False)
    assert (images.takes_sentences, images.takes_pictures) == (False, True)


def test_sentences_get_guidance_and_their_time(model):
    assert guide_scale_of(model, sentence=True, picture=False) == 3.0
    assert guide_scale_of(model, sentence=True, picture=True) == 1.0
    given = {"quality": "full", "num_views": 8}
    assert expected_seconds(OrbitRequest(prompt="a mug", **given), model) == 10 * 2.0 + 8 * 0.25
    one = (Picture(path=Path("a"), name="a"),)
    assert expected_seconds(OrbitRequest(pictures=one, **given), model) == 10 * 1.0 + 8 * 0.25
    half = OrbitRequest(prompt="a mug", quality="normal", num_views=4)
    assert expected_seconds(half, model) == 0.5 * 5 * 2.0 + 4 * 0.25


def test_a_large_picture_is_reduced_and_the_visitor_is_told(model, tmp_path):
    image = Image.new("RGBA", (5000, 4000))
    image.paste((10, 120, 30, 255), (1000, 1000, 4000, 3000))
    image.save(tmp_path / "photo.png", compress_level=1)
    stored = store_picture(tmp_path / "photo.png", tmp_path / "picture_0", model=model, azimuth_deg=0.0)
    assert stored.note == f"photo.png has 20.0 megapixels and was reduced to {LARGEST_SIDE} x 1638 pixels"
    with Image.open(stored.path) as small:
        assert small.size == (LARGEST_SIDE, 1638)


def test_a_text_named_png_is_told_by_its_own_name(model, tmp_path):
    (tmp_path / "notes.png").write_text("hello")
    with pytest.raises(DataError, match=r"^notes\.png is not a picture that can be read; export it as PNG or JPEG$"):
        store_picture(tmp_path / "notes.png", tmp_path / "picture_0", model=model, azimuth_deg=0.0)


def test_a_background_is_removed_only_if_a_package_can(model, tmp_path, monkeypatch):
    Image.new("RGB", (40, 40), (200, 200, 200)).save(tmp_path / "photo.jpg")
    monkeypatch.setattr("tools.web.uploads.can_remove_backgrounds", lambda: False)
    with pytest.raises(DataError, match=r"photo\.jpg still has its background, and this server has no package"):
        store_picture(tmp_path / "photo.jpg", tmp_path / "picture_0", model=model, azimuth_deg=0.0)
    monkeypatch.setattr("tools.web.uploads.can_remove_backgrounds", lambda: True)
    stored = store_picture(tmp_path / "photo.jpg", tmp_path / "picture_0", model=model, azimuth_deg=0.0)
    assert stored.needs_removal
    assert stored.path.name == "picture_0.jpg"
    assert "--remove-background" in command_of(OrbitRequest(pictures=(stored,)), model)
    assert config_of(OrbitRequest(pictures=(stored,)), model, log_dir=tmp_path).remove_background


def test_too_many_pictures_are_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="there are 5 pictures; use at most 4"):
        store_pictures(["a"] * 5, [0] * 5, tmp_path, model=model)


# Views


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    return write_transforms(tmp_path_factory.mktemp("views") / "ball", sphere_views(num_views=4))


def names_in(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_an_archive_is_unpacked_wherever_its_cameras_are(views, tmp_path):
    with zipfile.ZipFile(tmp_path / "ball.zip", "w") as archive:
        for name in names_in(views):
            archive.write(views / name, f"some folder/{name}")
        archive.writestr("some folder/readme.txt", "hello")
        archive.writestr("__MACOSX/x.png", "hello")
    notes = store_views([tmp_path / "ball.zip"], tmp_path / "out")
    assert names_in(tmp_path / "out") == names_in(views)
    assert notes == ["2 files are not used: some folder/readme.txt, __MACOSX/x.png"]


def test_single_files_go_where_the_cameras_name_them(views, tmp_path):
    files = [views / name for name in names_in(views)]
    assert not store_views(files, tmp_path / "out")
    assert names_in(tmp_path / "out") == names_in(views)


def zipped(path: Path, **entries: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def cameras(file: str) -> str:
    return json.dumps({"frames": [{"file_path": file, "transform_matrix": np.eye(4).tolist()}]})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"../transforms.json": "{}"}, "leads out of the archive"),
        ({"/etc/transforms.json": "{}"}, "leads out of the archive"),
        ({"a/..\\..\\x.png": "", "transforms.json": "{}"}, "leads out of the archive"),
        ({"a.png": ""}, "a.zip has no transforms.json, so the cameras are unknown"),
        ({"transforms.json": cameras("/etc/passwd")}, "transforms.json: '/etc/passwd' is not below the folder"),
        ({"transforms.json": cameras("../../other/0.png")}, "is not below the folder"),
        ({"transforms.json": "{"}, "transforms.json: not valid JSON"),
        ({"transforms.json": "\x00", "a.png": "x"}, "is not UTF-8 text"),
        ({"transforms.json": cameras("a.png"), "a.png": "no picture"}, "a.png is not a picture that can be read"),
        ({"transforms.json": "{}", "big.png": "0" * 10_000_000}, "too large when unpacked"),
        ({"transforms.json": "{}", "n" * 200: ""}, "is too long a name"),
    ],
)
def test_archives_that_cannot_be_used_are_refused(tmp_path, monkeypatch, entries, message):
    monkeypatch.setattr("tools.web.uploads.LARGEST_ARCHIVE", 1_000_000)
    archive = zipped(tmp_path / "a.zip", **entries)
    with pytest.raises(DataError, match=r"^[^\n]*$") as caught:
        store_views([archive], tmp_path / "out" / "views")
    assert message in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "out" / "transforms.json").exists()


def test_too_many_pixels_are_refused_before_they_are_read(tmp_path, monkeypatch):
    content = io.BytesIO()
    Image.new("L", (600, 600)).save(content, format="PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("transforms.json", cameras("a.png"))
        archive.writestr("a.png", content.getvalue())
    monkeypatch.setattr("tools.web.uploads.LARGEST_PIXELS", 300_000)
    with pytest.raises(DataError, match="the views have 0 megapixels together; use at most 0"):
        store_views([tmp_path / "a.zip"], tmp_path / "out")


@pytest.mark.parametrize("files", [[], ["nothing.zip"], ["a.png", "b.png"]])
def test_files_without_cameras_are_refused(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"transforms\.json"):
        store_views([tmp_path / name for name in files], tmp_path / "out")


def test_a_fit_is_the_command_that_is_shown():
    request = FitRequest(method="neus", quality="quick", seed=4)
    assert request.section().options.num_steps == request.num_steps == 150
    assert f"num_steps={request.num_steps} --seed 4" in request.command()
    from tools import reconstruct

    options = reconstruct.parse_args(shlex.split(request.command())[2:])
    section, _ = reconstruct.sections_and_folders(options)
    assert section == request.section()
    with pytest.raises(ConfigError, match="method: 'x' is unknown; choose one of dense, gs, nerf, neus"):
        FitRequest(method="x").section()


def test_a_method_without_steps_keeps_none():
    request = FitRequest(method="dense", quality="full")
    assert request.section().options.num_steps == request.num_steps == 0


# What the page shows


def test_no_text_of_a_visitor_becomes_markup(tmp_path):
    text = "<img src=x onerror=alert(1)> ${alert(1)} {{this}} `x`"
    job = Job("job", lambda job: None, estimate_s=0.0)
    job.state, job.error = "failed", text
    nothing = dict.fromkeys(("strip", "sheet", "viewer", "mesh", "video"))
    one = Result(number=1, title=text, folder=tmp_path, downloads=(), facts=((text, text),), command="", **nothing)
    pages = [
        show.message(text), show.notes([text]), show.progress(job, ahead=(0, 0.0)), show.facts(one),
        show.comparison(one, one), show.cut_out_pictures(["data:"], [text], [0.0]),
    ]  # fmt: skip
    for page in pages:
        assert "onerror" in page.lower()
        assert "<img src=x" not in page.lower()
        assert not set("{}$`") & set(page)


def test_the_strip_has_every_view_in_its_place(tmp_path):
    num = 7
    views_VCHW = torch.linspace(0, 1, num)[:, None, None, None].expand(num, 3, 16, 16)
    c2w_V44 = orbit_cameras(num_views=num, elevation_deg=10.0, radius=2.0)
    strip = write_strip(tmp_path / "orbit.webp", views_VCHW, c2w_V44)
    assert (strip.columns, strip.rows, strip.size) == (3, 3, (16, 16))
    assert strip.azimuths_deg == pytest.approx([360 * view / num for view in range(num)], abs=0.01)
    pixels = np.asarray(Image.open(strip.path).convert("L"), dtype=float)
    for view in range(num):
        cell = pixels[16 * (view // 3) + 4 :, 16 * (view % 3) + 4 :][:8, :8]
        assert cell.mean() == pytest.approx(255 * view / (num - 1), abs=4)


def test_the_page_of_a_mesh_needs_nothing_else(tmp_path):
    assert write_mesh_page(tmp_path / "none.html", tmp_path / "mesh.glb") is None
    (tmp_path / "mesh.glb").write_bytes(b"glTF and more")
    text = write_mesh_page(tmp_path / "mesh.html", tmp_path / "mesh.glb").read_text()
    assert base64.b64decode(re.search(r'GLB = "([^"]*)"', text)[1]) == b"glTF and more"
    assert not re.findall(r"https?:|<link|src=|import |fetch\(|__GLB__", text)
    assert "default-src 'none'" in text


def test_an_archive_of_views_has_the_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("hello")
    write_zip(tmp_path / "views.zip", tmp_path / "a", ["x.txt"])
    with zipfile.ZipFile(tmp_path / "views.zip") as archive:
        assert archive.read("x.txt") == b"hello"


def test_messages_have_no_path_of_the_server(tmp_path):
    photo = Picture(path=tmp_path / "picture_0.png", name="photo.png")
    message = f"{photo.path}: no; {tmp_path}/views/transforms.json: no; log_dir={tmp_path} is used"
    assert (
        without_paths(message, tmp_path, (photo,)) == "photo.png: no; transforms.json: no; log_dir=the upload is used"
    )
