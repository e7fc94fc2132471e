"""Bad prompts, pictures, results and settings of sampling, and what reads them: recentring, checking, evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.campaign import Case
from tests.odd_pictures import absurd, square
from tests.tiny import write_config, write_family, write_image_family
from tests.tiny_images import sample, write_list, write_shards, write_tar
from tests.tiny_orbits import write_files, write_orbits, write_turning_orbits

QUICK = {"sampler": {"type": "DDIM", "num_steps": 1}, "cameras": {"num_views": 1}, "guide_scale": 1.0}

# Files that are not text in UTF-8, and what is said about them.
NO_TEXTS = {
    "Latin-1": (b"a red mug\nune tasse bleut\xe9e\n", r"byte 0xe9 in line 2.*save it as UTF-8"),
    "UTF-16": ("a red mug\n".encode("utf-16"), "not UTF-8 text but UTF-16"),
    "UTF-16, the other order": (b"\xfe\xff" + "a red mug".encode("utf-16-be"), "but UTF-16"),
    "UTF-16 without a mark": ("a red mug\n".encode("utf-16-le"), "encoding may be UTF-16"),
    "UTF-32": ("a red mug\n".encode("utf-32"), "but UTF-32"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "byte 0x89 in line 1"),
    "zero bytes": (b"a red\0mug\n", "zero bytes"),
    "half a character": (b"a \xed\xa0\x80 mug\n", "byte 0xed in line 1"),
    "an overlong slash": (b"ok\nok\n\xc0\xaf\n", "byte 0xc0 in line 3"),
    "a cut character": (b"a red mug\xe2\x82", "byte 0xe2"),
}
NO_INPUT = {
    "blank lines": b"\n \n\t\r\n",
    "comments": b"# a\n  # b\n",
    "a mark and a comment": b"\xef\xbb\xbf# my prompts\r\n",
}


def cases(folder: Path) -> Iterator[Case]:
    """Write the inputs below `folder`."""
    text = write_config(folder / "text.yaml", write_family(folder) | QUICK | {"log_dir": str(folder / "out")})
    image = write_config(folder / "image.yaml", write_image_family(folder) | QUICK | {"log_dir": str(folder / "out")})
    yield from _lists(folder, text, image)
    yield from _settings(folder, text, image)
    yield from _pictures(folder, image)
    yield from _recentring(folder)
    yield from _results(folder, text)
    yield from _image_data(folder)
    yield from _evaluation(folder, text, image)


def _lists(folder: Path, text: Path, image: Path) -> Iterator[Case]:
    for number, (name, (content, says)) in enumerate(NO_TEXTS.items()):
        file = folder / f"list{number}.txt"
        file.write_bytes(content)
        command = ("inference", "--cfg", str(image if number else text), f"test_list_path={file}")
        if number > 2:  # one reader for all lists, and no configuration to read here
            command = ("utils.recenter_i2v", str(folder / "disc.png"), "--list", str(file), "--out", str(folder))
        yield Case(name=f"a list: {name}", command=command, code=2, says=rf"list{number}\.txt .*{says}")
    for number, (name, content) in enumerate(NO_INPUT.items()):
        file = folder / f"empty{number}.txt"
        file.write_bytes(content)
        command = ("inference", "--cfg", str(text), f"test_list_path={file}")
        yield Case(name=f"a list with {name}", command=command, code=2, says="contains no prompt; write one per line")
    for name, path in {"missing": "nowhere.txt", "a folder": str(folder)}.items():
        command = ("inference", "--cfg", str(text), f"test_list_path={path}")
        yield Case(name=f"a list that is {name}", command=command, code=2, says="test_list_path=.*no such file")
    (folder / "mark.txt").write_bytes(b"\xef\xbb\xbf# my prompts\r\na red mug\r\n\xef\xbb\xbfa red\xc2\x85mug\r\n")

    def prompts() -> None:
        found = [json.loads(file.read_text())["prompt"] for file in sorted((folder / "marked").glob("*/result.json"))]
        assert sorted(found) == ["a red mug", "a red\x85mug"], found

    command = ("inference", "--cfg", str(text), f"test_list_path={folder / 'mark.txt'}", f"log_dir={folder / 'marked'}")
    yield Case(name="a list with marks and Windows line ends", command=command, code=0, check=prompts)
    for name, prompt in {"a byte": "a\udcffb", "half a character": "\ud83d"}.items():
        command = ("inference", "--cfg", str(text), "--prompt", "a red mug", "--prompt", prompt)
        yield Case(name=f"a prompt that is no text: {name}", command=command, code=2, says="is not valid UTF-8")


SETTINGS = {
    "visual_inference.columns=0": "visual_inference.columns must be at least 1",
    "visual_inference.columns=-3": "visual_inference.columns must be at least 1",
    "cameras.num_views=1000000000": r"cameras.num_views must lie in \[1, 1000\]",
    "cameras.fov_deg=180": r"cameras.fov_deg must lie in",
    "cameras.fov_deg=0": r"cameras.fov_deg must lie in",
    "cameras.fov_deg=.nan": r"cameras.fov_deg",
    "target_fps=1000000": "target_fps must lie in",
    "round=1000000000": r"round must lie in \[1, 1000000\]",
    "seed=18446744073709551616": "seed",
    "seed=-9223372036854775809": "seed",
    "resolution=[1048576,1048576]": r"resolution must lie in \[8, 8192\]",
    "sampler.num_steps=1001": "sampler.num_steps must lie in",
    "sampler.eta=0.5 sampler.type=UniPC": "sampler.eta",
    "sampler.type=UniPC sampler.spacing=leading sampler.num_steps=1000": "sampler.spacing=leading uses timesteps twice",
    "sampler.type=DPMSolver++ sampler.spacing=linspace sampler.num_steps=1000": "=linspace uses timesteps twice",
    "images=[a.png]": "only for image models",
    "log_dir={folder}/text.yaml": "log_dir=.* cannot be written",
    "log_dir={folder}/text.yaml/out": "log_dir=.* cannot be written",
    "log_dir=/proc/nowhere": "log_dir=/proc/nowhere cannot be written",
}
OF_IMAGES = {
    "prompts=[a]": "only for text models",
    "images=[{folder}/disc.png] known_views=[{image: {folder}/disc.png, azimuth_deg: 17}]": "no view of the orbit has",
    "known_views=[{image: nowhere.png, azimuth_deg: 0}]": "nowhere.png: no such file",
}


def _settings(folder: Path, text: Path, image: Path) -> Iterator[Case]:
    for config, table in ((text, SETTINGS), (image, OF_IMAGES)):
        for setting, says in table.items():
            given = setting.replace("{folder}", str(folder))
            overrides = tuple(re.split(r" (?=[\w.]+=)", given))
            yield Case(name=setting, command=("inference", "--cfg", str(config), *overrides), code=2, says=says)


def _grey(**changes: Any) -> np.ndarray:
    rgba_HW4 = np.full((40, 40, 4), (120, 130, 140, 255), dtype=np.uint8)
    rgba_HW4[10:30, 10:30, :3] = (200, 40, 40)
    for place, alpha in changes.get("alpha", {}).items():
        rgba_HW4[(*place, 3)] = alpha
    return rgba_HW4


def _saved(rgba_HW4: np.ndarray, mode: str = "RGBA", **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(rgba_HW4).convert(mode).save(path, **options)


def _cut(share: float, suffix: str = "PNG") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (40, 40, 4), dtype=np.uint8)
        Image.fromarray(noise).save(path, format=suffix)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


ALL = (...,)
PICTURES = {
    "missing.png": (lambda path: None, "no such file"),
    "text.png": (lambda path: path.write_text("no picture"), "cannot be read as an image"),
    "nothing.png": (lambda path: path.write_bytes(b""), "cannot be read as an image"),
    "zeros.png": (lambda path: path.write_bytes(bytes(5000)), "cannot be read as an image"),
    "cut.png": (_cut(0.5), "cannot be read as an image"),
    "header.png": (_cut(0.005), "cannot be read as an image"),
    "cut.webp": (_cut(0.5, "WEBP"), "cannot be read as an image"),
    "cut.gif": (_cut(0.1, "GIF"), "cannot be read as an image"),
    "cut.tif": (_cut(0.3, "TIFF"), "cannot be read as an image"),
    "svg.svg": (lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "cannot be read as an"),
    "no_alpha.jpg": (_saved(_grey(), "RGB"), "has no alpha channel"),
    "grey.png": (_saved(_grey(), "L"), "has no alpha channel"),
    "palette.png": (lambda path: Image.new("P", (9, 9)).save(path), "has no alpha channel"),
    "opaque.png": (_saved(_grey()), "is opaque everywhere"),
    "one.png": (_saved(_grey(alpha={(0, 0): 0})), "is not cut out"),
    "nearly.png": (_saved(_grey(alpha={(0, 0): 254})), "is not cut out"),
    "corners.png": (_saved(_grey(alpha={(0, 0): 0, (0, 39): 0, (39, 0): 0, (39, 39): 0})), "is not cut out"),
    "veil.png": (_saved(_grey(alpha={ALL: 240})), "is not cut out"),
    "empty.png": (_saved(_grey(alpha={ALL: 0})), "transparent everywhere"),
    "faint.png": (_saved(_grey(alpha={ALL: 3})), "transparent everywhere"),
    "absurd.png": (absurd, "too many pixels to read safely"),
    "bomb.png": (
        lambda path: Image.new("1", (12000, 9000)).save(path, compress_level=1),
        "too many pixels to read safely",
    ),
    "float.tif": (lambda path: Image.fromarray(np.ones((8, 8), np.float32)).save(path), "has no alpha channel"),
}
OF_INFERENCE = ("missing.png", "text.png", "no_alpha.jpg", "one.png", "faint.png", "absurd.png")


def _pictures(folder: Path, image: Path) -> Iterator[Case]:
    for name, (write, says) in PICTURES.items():
        write(folder / name)
        if name in OF_INFERENCE:
            command = ("inference", "--cfg", str(image), "--image", str(folder / name))
            yield Case(name=f"a picture: {name}", command=command, code=2, says=rf"{name}: .*{says}")
        command = ("utils.recenter_i2v", str(folder / name), "--out", str(folder / "recentred"))
        yield Case(name=f"recentre: {name}", command=command, code=1, says=rf"failed: .*{name}: .*{says}")
    paths = [str(folder / name) for name in ("disc.png", "text.png", "opaque.png")]
    command = ("inference", "--cfg", str(image), *(part for path in paths for part in ("--image", path)))
    yield Case(name="two bad pictures of three", command=command, code=2, says=r"text.png: .*1 other images: .*opaque")
    command = ("inference", "--cfg", str(image), "--image", str(folder / "a\udcff.png"))
    yield Case(name="a picture whose name is no text", command=command, code=2, says="is not valid UTF-8")
    command = ("inference", "--cfg", str(image), "--image", str(folder / "float.tif"), "recenter=false")
    yield Case(name="pixels of unknown meaning", command=command, code=2, says=r"unusual kind \(F\)")


def _recentring(folder: Path) -> Iterator[Case]:
    good = folder / "good"
    good.mkdir()
    Image.fromarray(square(256, 256, left=60, top=40, side=90)).save(good / "plain.png")
    speck = square(256, 256, left=60, top=40, side=90)
    speck[250, 250] = (1, 2, 3, 2)
    speck[5, 250] = (1, 2, 3, 255)
    Image.fromarray(speck).save(good / "speck.png")
    (folder / "marked_list.txt").write_bytes(b"\xef\xbb\xbf# mine\r\n")
    done = folder / "recentred"

    def same() -> None:
        plain, found = (np.asarray(Image.open(done / name)) for name in ("plain.png", "speck.png"))
        assert np.array_equal(plain, found)
        assert (folder / "marked_list.txt").read_text().startswith("# mine\n")

    command = ("utils.recenter_i2v", str(good), "--out", str(done), "--list", str(folder / "marked_list.txt"))
    yield Case(name="recentre: faint pixels and specks", command=command, code=0, check=same)
    for name in ("text.png", "missing.png"):
        says = rf"failed: .*{name}: .*{PICTURES[name][1]}"
        command = ("utils.recenter_i2v", str(folder / name), str(good), "--out", str(done))
        yield Case(name=f"recentre: {name} beside good ones", command=command, code=1, says=says)
    options = {
        "--size 0": "--object-size must lie in",
        "--size 1000000": "--size in",
        "--object-size 0": "--object-size must lie in",
        "--object-size 300": "--object-size must lie in",
        f"--out {folder / 'text.yaml'}": "--out=.* cannot be written",
        f"--list {folder / 'list1.txt'}": "--list=.*but UTF-16",
        f"--list {folder}": "--list=.* is a folder",
    }
    for option, says in options.items():
        command = ("utils.recenter_i2v", str(good), "--out", str(done), *option.split())
        yield Case(name=f"recentre: {option.replace(str(folder), '')}", command=command, code=2, says=says)
    (folder / "none").mkdir()
    command = ("utils.recenter_i2v", str(folder / "none"), "--out", str(done))
    yield Case(name="recentre: a folder without pictures", command=command, code=1, says="contains no pictures")
    command = ("utils.recenter_i2v", str(good / "plain.png"), "--out", str(good))
    yield Case(name="recentre: onto itself", command=command, code=1, says="overwritten by its own result")


RESULTS: dict[str, Callable[[Path], object]] = {
    "a list": lambda sample: (sample / "result.json").write_text("[]"),
    "null": lambda sample: (sample / "result.json").write_text("null"),
    "no UTF-8": lambda sample: (sample / "result.json").write_bytes(b'{"\xff'),
    "nested": lambda sample: (sample / "result.json").write_text("[" * 50_000),
    "no settings": lambda sample: (sample / "result.json").write_text(
        '{"prompt": "no settings", "seed": 11, "settings": null}'
    ),
    "no video": lambda sample: (sample / "orbit.mp4").unlink(),
    "an empty view": lambda sample: (sample / "views" / "000.png").write_bytes(b""),
}


def _results(folder: Path, text: Path) -> Iterator[Case]:
    """Samples that are damaged are made again; a user's own file in them stays."""
    out = folder / "results"
    prompts = [part for name in RESULTS for part in ("--prompt", name)]

    def whole() -> None:
        found = {json.loads(file.read_text())["prompt"] for file in out.glob("*/result.json")}
        assert found == set(RESULTS), found
        assert all((file.parent / "orbit.mp4").stat().st_size for file in out.glob("*/result.json"))

    command = ("inference", "--cfg", str(text), f"log_dir={out}", *prompts, "batch_size=8")
    yield Case(name="a list of samples", command=command, code=0, check=whole)
    for name, damage in RESULTS.items():
        sample = out / f"{name.lower().replace(' ', '-')}_seed11"
        damage(sample)
        (sample / "mine.txt").write_text("mine")

    def mended() -> None:
        whole()
        assert len(list(out.glob("*/mine.txt"))) == len(RESULTS)
        assert not [path for path in out.iterdir() if path.name.startswith(".")]

    yield Case(name="a list of damaged samples", command=command, code=0, check=mended)


def _image_data(folder: Path) -> Iterator[Case]:
    shards = folder / "shards"
    odd = {
        "deep": sample(1) | {"json": b"[" * 50_000},
        "latin": sample(2) | {"txt": b"caf\xe9"},
        "wide": sample(3) | {"txt": "a mug".encode("utf-16")},
        "huge": sample(4) | {"json": b'{"width": 1' + b"0" * 400 + b', "height": 3}'},
        "word": sample(5, AESTHETIC_SCORE="good"),
        "mark": sample(6) | {"txt": b"\xef\xbb\xbfa mug"},
    }
    section = write_shards(shards, num=1)
    write_tar(shards / "00001.tar", odd)
    lists = write_list(folder / "images")

    def check(name: str, section: dict[str, Any], code: int, says: str, *options: str) -> Case:
        config = write_config(folder / f"images_{abs(hash(name)) % 10**8}.yaml", {"img_dataset": section})
        command = ("tools.check_images", "--cfg", str(config), "--workers", "1", *options)
        return Case(name=f"images: {name}", command=command, code=code, says=says)

    yield check("odd captions", section | {"data_list": ["{00000..00001}.tar"]}, 1, "7 images .* 5 broken", "--strict")
    for name, pattern, says in (
        ("a range backwards", "{00003..00001}.tar", "is empty or too long"),
        ("a range without end", "{0..99999999999}.tar", "is empty or too long"),
        ("a missing shard", "{00000..00005}.tar", "shards are missing"),
    ):
        yield check(name, section | {"data_list": [pattern]}, 2, says)
    for name in ("Latin-1", "UTF-16"):
        file = folder / f"image_list_{name}.txt"
        file.write_bytes(NO_TEXTS[name][0])
        yield check(f"a list: {name}", lists | {"data_list": [str(file)]}, 2, f"{NO_TEXTS[name][1]}")
    (folder / "no_images.txt").write_bytes(b"\xef\xbb\xbf\r\n")
    yield check("an empty list", lists | {"data_list": [str(folder / "no_images.txt")]}, 2, "lists no images")
    yield check("no processes", lists, 2, "--workers must lie in", "--workers", "0")
    absurd(folder / "images" / "0.jpg")
    yield check("too many pixels", lists, 1, r"0\.jpg cannot be decoded \(Image size", "--strict")


def _evaluation(folder: Path, text: Path, image: Path) -> Iterator[Case]:
    held_out = folder / "held_out"
    write_turning_orbits(held_out, elevations=(10.0,))
    base = ("tools.evaluate", "--cfg", str(image), "--held-out", str(held_out), "--out", str(folder / "evaluated"))
    consistency = (*base, "--measure", "consistency", "--fit-steps", "1", "--runs")
    for number, (name, content) in enumerate(
        {"a list": b"[]", "null": b"null", "no UTF-8": b'{"\xff', "nested": b"[" * 50_000, "no cameras": b"{}"}.items()
    ):
        run = folder / f"run{number}"
        (run / "one" / "views").mkdir(parents=True)
        (run / "one" / "result.json").write_bytes(content)
        Image.new("RGB", (8, 8)).save(run / "one" / "views" / "000.png")
        yield Case(name=f"evaluate: a result: {name}", command=(*consistency, str(run)), code=2, says="result.json")
    (folder / "run9").mkdir()
    yield Case(name="evaluate: no samples", command=(*consistency, str(folder / "run9")), code=2, says="no samples")
    for option, says in (("--num 0", "--num must be"), ("--known 3", "--known")):
        yield Case(name=f"evaluate: {option}", command=(*base, *option.split()), code=2, says=says)
    write_orbits(folder / "orbits", copies=1)
    likeness = ("tools.evaluate", "--cfg", str(text), "--measure", "likeness", "--runs", str(folder / "results"))
    for name, content in {"a list": "[]", "other objects": "{}", "no UTF-8": "\udcff"}.items():
        other = folder / f"captions {name}"
        write_files(other)
        (other / "captions.json").write_text(content, encoding="utf-8", errors="surrogateescape")
        command = (*likeness, "--held-out", str(other), "--out", str(folder / "evaluated"))
        yield Case(name=f"evaluate: captions: {name}", command=command, code=2, says="captions.json")
    command = (*base[:-1], str(folder / "text.yaml"))
    yield Case(name="evaluate: --out is a file", command=command, code=2, says="--out=.* cannot be written")
