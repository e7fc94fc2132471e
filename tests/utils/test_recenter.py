"""Recentring: the recorded picture to the bit, every odd kind of file, and what a folder of them ends with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.campaign import run_command
from tests.odd_pictures import BAD, GOOD, square
from tests.reference_cases import REFERENCE, load_case
from utils import object_image
from utils.errors import DataError
from utils.object_image import cut_out, fit, input_view, is_centred, object_box, open_picture, over_white, recentre
from utils.recenter_i2v import add_to_list, find_pictures, recentre_files


def command(*arguments):
    """Run the command in this process and folder: (exit code, stdout, stderr)."""
    return run_command("utils.recenter_i2v", *map(str, arguments))


def test_agrees_with_the_recorded_picture():
    spec, outputs = load_case("recenter")
    rgba_HW4 = np.asarray(Image.open(REFERENCE / spec["inputs"]["image"]))
    sizes = {"size": spec["inputs"]["image_size"], "object_size": spec["inputs"]["crop_size"]}
    assert np.array_equal(recentre(rgba_HW4, **sizes), outputs["image"])


@pytest.mark.parametrize(("size", "object_size"), [(256, 200), (128, 64), (100, 100), (64, 1)])
def test_the_longer_side_and_the_middle_are_as_asked(size, object_size):
    result = recentre(square(side=30, height=50), size=size, object_size=object_size)
    left, top, right, bottom = object_box(result)
    assert result.shape == (size, size, 4)
    assert (right - left + 1, bottom - top + 1) == (object_size, object_size)
    assert abs(left + right + 1 - size) <= 1
    corner = [255, 255, 255, 0] if object_size < size else [199, 39, 39, 255]  # truncated, as published
    assert result[0, 0].tolist() == corner


def test_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[1, size=64\]"):
        recentre(square(), size=64, object_size=65)


def test_what_recentring_made_is_left_alone():
    rgba_HW4 = square()
    rgba_HW4[3, 5:21] = (200, 40, 40, 100)  # a soft edge
    once = recentre(rgba_HW4)
    assert is_centred(once, object_share=200 / 256)
    assert not is_centred(rgba_HW4, object_share=200 / 256)
    assert np.array_equal(over_white(once), once[..., :3])
    straight = over_white(rgba_HW4)
    assert straight[3, 6].tolist() == [round(c * 100 / 255 + 155) for c in (200, 40, 40)]
    assert straight[0, 0].tolist() == [255, 255, 255]


def test_a_colour_may_be_one_darker_than_the_white_that_shows_through():
    rgba_HW4 = np.full((2, 2, 4), (100, 120, 140, 154), dtype=np.uint8)
    assert np.array_equal(over_white(rgba_HW4), rgba_HW4[..., :3])
    rgba_HW4[0, 0, 0] = 99
    assert over_white(rgba_HW4)[1, 1, 0] > 100


def test_a_picture_fits_whole_into_another_shape():
    black_HW3 = np.zeros((40, 60, 3), dtype=np.uint8)
    rows_HW3 = fit(black_HW3, (60, 60))
    assert np.array_equal(rows_HW3[:, 30, 0], [255] * 10 + [0] * 40 + [255] * 10)
    assert rows_HW3[30].max() == 0
    assert np.array_equal(fit(black_HW3, (30, 40))[:, 15, 0], [255] * 10 + [0] * 20 + [255] * 10)


def test_inference_sees_the_same_as_after_the_tool(tmp_path):
    rgba_HW4 = square(rgb=(10, 120, 60))
    Image.fromarray(rgba_HW4).save(tmp_path / "raw.png")
    Image.fromarray(recentre(rgba_HW4)).save(tmp_path / "done.png")
    options = {"resolution": (256, 256), "object_share": 200 / 256}
    raw, done = (input_view(tmp_path / name, recenter=True, **options) for name in ("raw.png", "done.png"))
    assert raw.equal(done)
    assert raw.shape == (3, 256, 256)
    whole = input_view(tmp_path / "raw.png", recenter=False, resolution=(64, 32), object_share=0.5)
    assert whole[:, :, 0].min() == 1  # 60 x 40 into 64 x 32: white left and right
    assert abs(whole[1, 7, 18] - 120 / 255) < 0.02


@pytest.mark.parametrize("name", GOOD)
def test_odd_kinds_of_pictures_are_done(tmp_path, name, caplog):
    caplog.set_level("INFO")
    GOOD[name](tmp_path / name)
    results, failures = recentre_files([tmp_path / name], out=tmp_path / "out", size=64, object_size=32)
    assert (failures, [result.name for result in results]) == ([], [f"{name.split('.')[0]}.png"])
    result = np.asarray(Image.open(results[0]))
    left, top, right, bottom = object_box(result)
    assert (max(right - left, bottom - top) + 1, result.shape) == (32, (64, 64, 4))
    if "grey" not in name:
        assert np.abs(result[32, 32, :3].astype(int) - (200, 40, 40)).max() <= 8  # webp is lossy
    assert ("animated" in caplog.text) == ("animated" in name)


@pytest.mark.parametrize("name", sorted(set(GOOD) - {"wide.png"}))
def test_odd_kinds_of_pictures_are_seen_as_plain_ones(tmp_path, name):
    Image.fromarray(square()).save(tmp_path / "plain.png")
    GOOD[name](tmp_path / name)
    options = {"resolution": (64, 64), "recenter": True, "object_share": 0.5}
    plain, odd = (input_view(tmp_path / file, **options) for file in ("plain.png", name))
    if "grey" in name:
        plain = (plain * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0).expand(3, -1, -1)
    assert (plain - odd).abs().max() <= (0.04 if "webp" in name else 0.01)  # webp is lossy


def test_a_line_20000_pixels_wide_becomes_a_line(tmp_path):
    rgba_HW4 = np.full((6, 20000, 4), 255, dtype=np.uint8)
    rgba_HW4[:2, :, 3] = 0
    _, top, _, bottom = object_box(recentre(rgba_HW4))
    assert bottom == top
    Image.fromarray(rgba_HW4).save(tmp_path / "line.png")
    view = input_view(tmp_path / "line.png", resolution=(128, 128), recenter=False, object_share=0.5)
    assert view.shape == (3, 128, 128)


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_named_in_one_line(tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(DataError) as caught:
        input_view(tmp_path / name, resolution=(64, 64), recenter=True, object_share=0.8)
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_file_is_read_or_refused(tmp_path):
    rgba_HW4 = square() + np.random.default_rng(0).integers(0, 20, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(rgba_HW4).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    refused = 0
    for length in range(0, len(content), 97):
        (tmp_path / "cut.png").write_bytes(content[:length])
        try:
            open_picture(tmp_path / "cut.png")
        except DataError:
            refused += 1
    assert refused >= len(content) // 97


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    Image.fromarray(square()).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="too many pixels to read safely"):
        open_picture(tmp_path / "large.png")


def test_many_pixels_are_read_without_a_word(tmp_path, monkeypatch, recwarn):
    Image.fromarray(square()).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 - 1)  # Pillow warns from here to twice as many
    assert open_picture(tmp_path / "large.png").size == (60, 40)
    assert not recwarn.list


def test_a_folder_with_broken_files_still_does_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(square()).save(folder / name)
    Image.fromarray(square()).save(folder / "b.webp")
    (folder / "broken.png").write_text("text")
    (folder / "notes.txt").write_text("not looked at")
    code, _, stderr = command("in", "gone.png", "--list", "list.txt")
    assert code == 1
    failures = [line for line in stderr.splitlines() if line.startswith("failed: ")]
    assert all(any(name in line for line in failures) for name in ("in/broken.png", "in/b.webp", "gone.png"))
    assert len(failures) == 3
    assert "Traceback" not in stderr
    assert sorted(path.name for path in (tmp_path / "data" / "images").iterdir()) == ["a.png", "b.png"]
    assert (tmp_path / "list.txt").read_text().split() == ["data/images/a.png", "data/images/b.png"]
    line = ("in/a.png", "--out", "data/images", "--list", "list.txt", "--size", 64, "--object-size", 40)
    code, _, stderr = command(*line)
    assert code == 0, stderr
    assert Image.open(tmp_path / "data" / "images" / "a.png").size == (64, 64)
    assert len((tmp_path / "list.txt").read_text().split()) == 2


def test_wrong_options_end_with_2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    code, _, err = command("x.png", "--object-size", "300")
    assert (code, "--object-size must lie" in err) == (2, True)


def test_a_picture_is_never_overwritten_by_its_result(tmp_path):
    Image.fromarray(square()).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    _, failures = recentre_files([tmp_path / "a.png"], out=tmp_path, size=64, object_size=32)
    assert "choose another folder" in failures[0]
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_folder_without_pictures_is_a_failure(tmp_path):
    files, failures = find_pictures([str(tmp_path)])
    assert (files, len(failures)) == ([], 1)


def test_the_list_keeps_its_lines(tmp_path):
    (tmp_path / "list.txt").write_text("# mine\nx.png")
    add_to_list(tmp_path / "list.txt", [tmp_path / "y.png"])
    assert (tmp_path / "list.txt").read_text() == f"# mine\nx.png\n{tmp_path / 'y.png'}\n"


def view_of(tmp_path, rgba_HW4, name="x.png", *, recenter=True):
    Image.fromarray(rgba_HW4).save(tmp_path / name)
    return input_view(tmp_path / name, resolution=(64, 64), recenter=recenter, object_share=0.7)


def large(**changes):
    return square(256, 256, left=40, top=60, side=100, **changes)


def left_by_removers():
    """What background removers leave: single faint pixels, a faint veil, a speck."""
    one, veil, speck, all_of_it = (large() for _ in range(4))
    one[250, 3, 3] = 2
    veil[veil[..., 3] == 0] = (90, 90, 90, 3)
    speck[250:252, 3:5] = (10, 10, 10, 255)
    all_of_it[all_of_it[..., 3] == 0] = (90, 90, 90, 1)
    all_of_it[3, 250] = 255
    return {"one faint pixel": one, "a faint veil": veil, "a speck": speck, "a veil and a speck": all_of_it}


@pytest.mark.parametrize("name", left_by_removers())
def test_what_a_remover_left_is_not_the_object(tmp_path, name):
    found, plain = view_of(tmp_path, left_by_removers()[name]), view_of(tmp_path, large(), "plain.png")
    assert torch.equal(found, plain)
    columns = np.flatnonzero((found < 1).any(dim=0).any(dim=0).numpy())
    assert (columns[0], columns[-1]) == (9, 53)  # 45 of 64 pixels, in the middle


def test_parts_of_the_object_count(tmp_path):
    rgba_HW4 = large()
    rgba_HW4[200:220, 200:220] = (10, 200, 10, 120)  # a part of its own, half transparent
    Image.fromarray(rgba_HW4).save(tmp_path / "x.png")
    rgba_HW4 = cut_out(open_picture(tmp_path / "x.png"), path="x.png")
    assert object_box(rgba_HW4) == (40, 60, 219, 219)


def not_cut_out(kind):
    rgba_HW4 = np.full((200, 200, 4), (120, 130, 140, 255), dtype=np.uint8)
    rgba_HW4[60:120, 60:120, :3] = (200, 40, 40)
    y, x = np.mgrid[:200, :200]
    corner = np.minimum(x, 199 - x) + np.minimum(y, 199 - y)
    if kind == "one transparent pixel":
        rgba_HW4[0, 0, 3] = 0
    elif kind == "one pixel that is nearly opaque":
        rgba_HW4[0, 0, 3] = 254
    elif kind == "cut corners":
        rgba_HW4[corner < 8, 3] = 0
    elif kind == "a veil everywhere":
        rgba_HW4[..., 3] = 250
    elif kind == "a frame of one pixel at one side":
        rgba_HW4[:, 0, 3] = 0
    return rgba_HW4


@pytest.mark.parametrize(
    "kind",
    ["one transparent pixel", "one pixel that is nearly opaque", "cut corners", "a veil everywhere",
     "a frame of one pixel at one side"],
)  # fmt: skip
def test_a_background_that_was_left_is_refused(tmp_path, kind):
    with pytest.raises(DataError, match=r"x\.png: is not cut out \(only \d+ of 40000 .*--remove-background"):
        view_of(tmp_path, not_cut_out(kind))
    remove = lambda image: Image.fromarray(square(200, 200, side=50))  # noqa: E731
    rgba_HW4 = cut_out(Image.fromarray(not_cut_out(kind)), path="x.png", remove_background=remove)
    assert object_box(rgba_HW4) == (5, 4, 54, 53)


def test_an_object_that_fills_the_frame_is_told_once(tmp_path, caplog):
    rgba_HW4 = not_cut_out("")
    y, x = np.mgrid[:200, :200]
    rgba_HW4[np.minimum(x, 199 - x) + np.minimum(y, 199 - y) < 20, 3] = 0  # 2 % of the pixels
    for _ in range(2):
        view_of(tmp_path, rgba_HW4)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"{tmp_path / 'x.png'}: the object fills 98% of the frame"
    ]


@pytest.mark.parametrize("rgb", [(255, 255, 255), (120, 130, 140)])
def test_an_inverted_mask_is_told(tmp_path, rgb, caplog):
    rgba_HW4 = large()
    rgba_HW4[..., 3] = 255 - rgba_HW4[..., 3]
    rgba_HW4[rgba_HW4[..., 3] == 255, :3] = rgb
    view = view_of(tmp_path, rgba_HW4)
    assert "the border is opaque and the middle transparent; if the alpha channel is inverted" in caplog.text
    assert ("the picture is empty, white everywhere, over white" in caplog.text) == (bool(view.min() > 0.99))
    assert ("is empty" in caplog.text) == (rgb == (255, 255, 255))


def test_an_ordinary_object_is_not_talked_about(tmp_path, caplog):
    view_of(tmp_path, large())
    view_of(tmp_path, square(60, 60, left=0, top=0, side=55), "tight.png")
    view_of(tmp_path, large(rgb=(255, 255, 250)), "pale.png")
    assert not caplog.records


def test_a_small_file_with_many_pixels_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    Image.new("1", (10_001, 10_000)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"large.png: 10001 x 10000 are too many pixels to read safely"):
        open_picture(tmp_path / "large.png")
    monkeypatch.setattr(object_image, "free_memory", lambda: 10**8)
    Image.new("1", (4_000, 4_000)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(DataError, match=r"4000 x 4000 pixels need about 0.3 GiB of memory, but 0.1 GiB are free"):
        open_picture(tmp_path / "large.png")


def test_pixels_of_unknown_meaning_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x.tif: has pixels of an unusual kind \(F\)"):
        input_view(tmp_path / "x.tif", resolution=(16, 16), recenter=False, object_share=0.5)


def test_a_list_is_read_as_users_save_it(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf# mine\r\nx.png\r\n")
    add_to_list(tmp_path / "list.txt", [tmp_path / "y.png", tmp_path / "y.png"])
    assert (tmp_path / "list.txt").read_text() == f"# mine\nx.png\n{tmp_path / 'y.png'}\n"
