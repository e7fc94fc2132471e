"""The running app: its endpoints through the real clients, and its page in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import filecmp
import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import socket
import threading
import time
import zipfile
from pathlib import Path

import pytest
import trimesh
from PIL import Image

from models.gaussians.files import read_ply
from tests.conftest import ROOT
from tests.test_readme import blocks
from tests.tiny import write_config, write_head, write_image_family
from tests.tiny_views import sphere_views, write_transforms
from tools import app as command
from tools.web.jobs import Job
from tools.web.requests import FitRequest
from utils.errors import ConfigError
from utils.script import run_script
from utils.settings.assets import AssetOptions

# Gradio takes two seconds to import, which only the process that runs these tests needs to spend.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None,
    reason='needs the optional extra app: pip install "gradio[mcp]>=6.31,<7"',
)
PAGE = ROOT / "tools" / "web" / "README.md"


SMALL = {"mesh_views": 4, "mesh_view_size": 32, "grid": 16, "texture": 64, "faces": 100}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def mcp_fits() -> bool:
    """Gradio 6 needs version 1 of the package mcp."""
    try:
        return importlib.metadata.version("mcp").startswith("1.")
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    family = {**write_image_family(folder), **write_head(folder)}
    changes = {"takes_prompts": True, "test_list_path": "", "guide_scale": 1.0}
    changes |= {"assets": SMALL}
    return str(write_config(folder / "tiny.yaml", family | changes))


def small_section(request: FitRequest, *, of=FitRequest.section):
    """A fit of few Gaussians: what the app does with its result does not depend on their number."""
    return of(request).changed(num_gaussians=300, hull_grid=24) if request.method == "gs" else of(request)


@pytest.fixture(scope="module")
def served(config, tmp_path_factory):
    """The address of a running app, and the folder of its visits."""
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.web.service.FIT_ASSETS", AssetOptions(**SMALL, splat=False, turntable=False, spz=True))
        patch.setattr("tools.web.requests.FIT_STEPS", {"quick": 0.02, "normal": 0.03, "full": 1.0})
        patch.setattr(FitRequest, "section", small_section)
        patch.setattr("atexit.register", lambda call, *args: ends.append((call, args)))
        ends: list = []
        app, launch = command.build_app([config], folder=folder)
        port = free_port()
        app.launch(server_port=port, prevent_thread_lock=True, mcp_server=mcp_fits(), **launch)
        yield f"http://127.0.0.1:{port}", next(folder.iterdir())
        app.close()
        for call, args in ends:
            call(*args)
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def client(served):
    from gradio_client import Client

    with contextlib.closing(Client(served[0], verbose=False)) as one:
        yield one


@pytest.fixture(scope="module")
def made(client):
    return client.predict("a red mug", seed=4, num_views=8, quality="quick", api_name="/text_to_orbit")


def named(files) -> dict[str, Path]:
    return {Path(file).name: Path(file) for file in files}


def test_the_endpoints_are_named_and_typed(client):
    info = client.view_api(return_format="dict")["named_endpoints"]
    assert set(info) == {"/text_to_orbit", "/image_to_orbit", "/reconstruct"}
    types = {one["parameter_name"]: one["type"] for one in info["/text_to_orbit"]["parameters"]}
    assert types["prompt"] == {"type": "string"}
    assert types["num_views"] == {"type": "integer"}
    assert types["quality"] == {"enum": ["quick", "normal", "full"]}


def test_a_sentence_becomes_files_that_others_open(made):
    sheet, files, facts = made
    assert Image.open(sheet).size == (6 * 34 - 2, 2 * 34 - 2)
    found = named(files)
    assert set(found) == {
        "orbit.mp4", "mesh.glb", "gaussians.ply", "gaussians.spz", "transforms.json", "views.zip", "sheet.png",
    }  # fmt: skip
    assert len(trimesh.load(found["mesh.glb"], force="mesh").faces) > 3
    assert read_ply(found["gaussians.ply"]).means_BN3.shape[1] == 4 * 16 * 16
    with zipfile.ZipFile(found["views.zip"]) as archive:
        assert archive.namelist() == ["transforms.json", *(f"views/{view:03d}.png" for view in range(8))]
    assert set(facts) >= {"seed", "denoising", "decoding and Gaussians", "files", "in all", "command", "notes"}
    assert re.fullmatch(r"\d+\.\d s, \d+ MiB", facts["denoising"])


def test_the_command_repeats_the_pictures(made, tmp_path, monkeypatch):
    _, files, facts = made
    words = shlex.split(facts["command"])
    assert words[:2] == ["python", "inference.py"]
    import inference

    monkeypatch.setattr("sys.argv", [*words[1:], f"log_dir={tmp_path / 'again'}"])
    assert inference.main() == 0
    [sample] = (tmp_path / "again").glob("*_seed4")
    with zipfile.ZipFile(named(files)["views.zip"]) as archive:
        archive.extractall(tmp_path / "zip")
    names = [f"views/{view:03d}.png" for view in range(8)]
    assert filecmp.cmpfiles(tmp_path / "zip", sample, names, shallow=False) == (names, [], [])
    assert filecmp.cmp(named(files)["gaussians.ply"], sample / "gaussians.ply", shallow=False)


def test_a_picture_becomes_an_orbit_and_is_among_the_files(client, config, served):
    from gradio_client import handle_file

    picture = Path(config).parent / "square.png"
    given = {"num_views": 8, "estimate_elevation": False, "quality": "quick"}
    _, files, facts = client.predict(handle_file(picture), **given, api_name="/image_to_orbit")
    assert named(files)["picture_0.png"].read_bytes() == picture.read_bytes()
    assert "--image picture_0.png" in facts["command"]
    assert not list((served[1] / "visits").rglob("scratch_*"))


@pytest.mark.parametrize(
    ("endpoint", "given", "message"),
    [
        ("text_to_orbit", {"prompt": ""}, "there is nothing to make yet: write a sentence or add a picture"),
        ("text_to_orbit", {"prompt": "a mug", "num_views": "; ls"}, "number of views: '; ls' is not a number"),
        ("text_to_orbit", {"prompt": "a mug", "model": "../x"}, "model: '../x' is unknown; use tiny"),
        ("image_to_orbit", {"image": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}, "passwd"),
        ("reconstruct", {"views": None}, "a file is missing"),
    ],
)
def test_mistakes_of_programs_are_answered(client, endpoint, given, message):
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        client.predict(**given, api_name=f"/{endpoint}")
    assert "Traceback" not in str(caught.value)


def test_views_are_reconstructed(client, tmp_path):
    from gradio_client import handle_file

    folder = write_transforms(tmp_path / "ball", sphere_views(num_views=6, size=32))
    archive = shutil.make_archive(str(tmp_path / "ball"), "zip", folder)
    sheet, files, facts = client.predict(handle_file(archive), quality="quick", api_name="/reconstruct")
    assert Image.open(sheet).height > 32
    assert {"mesh.glb", "gaussians.ply", "gaussians.spz"} <= set(named(files))
    assert facts["PSNR on the given views"].endswith(" dB")
    assert facts["command"].startswith("python tools/reconstruct.py --method gs views --out reconstructed num_steps=8")


def test_eight_requests_at_once_all_get_their_own_orbit(client):
    given = {"num_views": 3, "quality": "quick", "api_name": "/text_to_orbit"}
    jobs = [client.submit("a red mug", seed=seed, **given) for seed in range(8)]
    commands = [job.result()[2]["command"] for job in jobs]
    assert [f"seed={seed} " in line for seed, line in enumerate(commands)] == [True] * 8


@pytest.mark.skipif(not mcp_fits(), reason="needs the package mcp in version 1, as gradio[mcp] installs it")
def test_an_agent_lists_the_tools_and_gets_an_orbit(served, monkeypatch):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    from tools.web.panel import POLL_S

    told, step = [], Job.step

    def slow_step(job, done, total):
        step(job, done, total)
        time.sleep(3 * POLL_S)  # so that each step is seen

    monkeypatch.setattr(Job, "step", slow_step)

    async def note(progress, total, text):
        told.append(text)

    async def visit():
        async with streamablehttp_client(f"{served[0]}/gradio_api/mcp/") as (reads, writes, _):
            async with ClientSession(reads, writes) as session:
                await session.initialize()
                tools = (await session.list_tools()).tools
                given = {"prompt": "a red mug", "num_views": 8, "quality": "quick"}
                answer = await session.call_tool("text_to_orbit", given, progress_callback=note)
                refusal = await session.call_tool("text_to_orbit", {"prompt": ""})
                return tools, answer, refusal

    tools, answer, refusal = asyncio.run(visit())
    assert {tool.name for tool in tools} == {"text_to_orbit", "image_to_orbit", "reconstruct"}
    assert all(tool.description for tool in tools)
    assert not answer.isError
    assert answer.content[0].type == "image"
    assert "mesh.glb" in answer.content[2].text
    assert any("Step" in text for text in told if text)
    assert "there is nothing to make yet" in refusal.content[0].text


def test_the_code_of_the_page_runs(served, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(config).parent / "square.png", "chair.png")
    shutil.make_archive("views", "zip", write_transforms(tmp_path / "ball", sphere_views(num_views=6, size=32)))
    python = [block for block in blocks(PAGE, "python") if "gradio_client" in block]
    assert len(python) == 3
    for code in python:
        assert code.count("\n") <= 4
        exec(code.replace("http://127.0.0.1:7860", served[0]), {})


def test_the_files_of_one_visitor_have_names_that_nobody_guesses(served, made):
    folders = [folder.name for folder in (served[1] / "visits").iterdir()]
    assert folders
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in folders)


# The command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--share"], "--share makes the app public; add --password"),
        (["--mcp", "--password", "x"], "--mcp has no login of its own"),
        (["--port", "0"], "--port must lie in"),
        (["--host", "; rm"], "--host ; rm is not an address"),
        (["--keep-minutes", "0"], "--keep-minutes must lie in"),
        (["--cfg", "configs/mini/t2v_train.yaml"], "TASK_TYPE=train_t2v_entrance does not sample"),
        (["--cfg", "a/x.yaml", "--cfg", "b/x.yaml"], "two files are named x"),
        (["--cfg", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tools.web.models.ViewsPipeline.from_config", lambda cfg: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        command.main([*words, "--folder", str(tmp_path)])
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: command.main([]))
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {command.NEEDED}\n"


# The page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if BROWSER is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield one
        one.close()


@contextlib.contextmanager
def page_of(browser, address: str, *, width: int = 1280):
    page = browser.new_page(viewport={"width": width, "height": 850})
    page.goto(address)
    page.get_by_label("Sentence", exact=True).wait_for()
    yield page
    page.close()


def ask_for(page, sentence: str) -> None:
    page.get_by_label("Sentence", exact=True).fill(sentence)
    page.get_by_role("button", name="Make", exact=True).click()


def drawn(frame) -> bool:
    """Whether the page in a frame has drawn its object."""
    # the first drawing of a browser compiles shaders, on a CPU without a GPU
    frame.content_frame.locator("body[data-state=drawn]").wait_for(timeout=90_000)
    return True


def files_of(page, folder: Path) -> set[str]:
    """Download every file that the page offers; returns their names."""
    page.get_by_role("tab", name="Files", exact=True).first.click()
    links = page.locator("a[download]:visible")
    links.first.wait_for()
    names = set()
    for number in range(links.count()):
        with page.expect_download() as started:
            links.nth(number).click()
        names.add(started.value.suggested_filename)
        started.value.save_as(folder / started.value.suggested_filename)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
def test_a_visitor_makes_turns_and_compares(browser, served, width, tmp_path):
    with page_of(browser, served[0], width=width) as page:
        ask_for(page, "a red mug")
        page.locator("iframe.viewer").first.wait_for(state="attached")
        orbit, slider = page.locator(".orbit").first, page.locator(".turn input").first
        before = orbit.get_attribute("style")
        assert drawn(page.locator("iframe.viewer").first)
        slider.fill("2")
        assert orbit.get_attribute("style") != before
        assert page.locator(".turn output").first.inner_text() == "90°"
        page.get_by_role("tab", name="Mesh", exact=True).first.click()
        assert drawn(page.locator("iframe.viewer:visible").first)
        assert files_of(page, tmp_path) == {
            "orbit.mp4", "mesh.glb", "gaussians.ply", "gaussians.spz", "transforms.json", "views.zip", "sheet.png",
        }  # fmt: skip
        assert len(trimesh.load(tmp_path / "mesh.glb", force="mesh").faces) > 3
        page.get_by_role("tab", name="Compare", exact=True).click()
        for label in ("Left", "Right"):
            page.get_by_label(label, exact=True).click()
            page.get_by_role("option").first.click()
        frames = page.locator(".sides iframe")
        frames.nth(1).wait_for()
        assert drawn(frames.nth(0))
        assert drawn(frames.nth(1))
        page.locator(".turn input:visible").fill("180")
        assert [frames.nth(side).get_attribute("src").split("#")[1] for side in (0, 1)] == ["panel=0&azimuth=180"] * 2
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_mistakes_of_visitors_are_told_on_the_page(browser, served, tmp_path):
    (tmp_path / "notes.png").write_text("hello")
    image = Image.new("RGBA", (5000, 4000))
    image.paste((10, 120, 30, 255), (1000, 1000, 4000, 3000))
    image.save(tmp_path / "photo.png", compress_level=1)
    with page_of(browser, served[0]) as page:
        ask_for(page, "")
        page.get_by_text("There is nothing to make yet").wait_for()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.png")
        page.get_by_text("Notes.png is not a picture that can be read").wait_for()
    with page_of(browser, served[0]) as page:
        page.locator("input[type=file]").first.set_input_files(tmp_path / "photo.png")
        page.get_by_text("Photo.png has 20.0 megapixels and was reduced to 2048 x 1638").wait_for()
        page.locator(".cutouts img").wait_for()
    with page_of(browser, served[0]) as page:
        page.on("dialog", lambda dialog: pytest.fail("a script of a visitor ran"))
        ask_for(page, "<img src=x onerror=alert(1)> {{this}} ${alert(2)}")
        page.locator("iframe.viewer").first.wait_for(state="attached")
        assert page.locator("img[src=x]").count() == 0


@pytest.mark.slow
def test_two_visitors_and_a_stop(browser, served, monkeypatch):
    """The first is stopped within a step while the second waits, and the second gets its own result."""
    go = threading.Event()
    original = __import__("tools.web.service", fromlist=["x"]).OrbitWatch.step

    def slow_step(self, done, total):
        go.wait(20)
        original(self, done, total)

    monkeypatch.setattr("tools.web.service.OrbitWatch.step", slow_step)
    with page_of(browser, served[0]) as one, page_of(browser, served[0]) as two:
        ask_for(one, "a red mug")
        one.locator(".progress").wait_for()
        ask_for(two, "a blue mug")
        two.get_by_text("1 request is before yours").wait_for()
        one.get_by_role("button", name="Stop", exact=True).first.click()
        one.get_by_text("Stopping after this step").wait_for()
        go.set()
        one.get_by_text("Stopped.").wait_for()
        two.locator("iframe.viewer").first.wait_for(state="attached")
        assert "a-blue-mug" in two.locator("iframe.viewer").first.get_attribute("src")
        assert one.locator("iframe.viewer").count() == 0


@pytest.mark.slow
def test_a_closed_page_leaves_nothing(browser, served):
    visits = served[1] / "visits"
    before = set(visits.iterdir())
    with page_of(browser, served[0]) as page:
        ask_for(page, "a red mug")
        page.locator("iframe.viewer").first.wait_for(state="attached")
        assert len(set(visits.iterdir()) - before) == 1
    end = time.monotonic() + 30
    while set(visits.iterdir()) - before:
        assert time.monotonic() < end, "the folder of the visit stays"
        time.sleep(0.2)
