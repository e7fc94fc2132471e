"""The nodes in a host that behaves like ComfyUI: loading by a link, requests and answers, refusals, the stop button."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import types
from functools import partial

import pytest
import torch

from tests.conftest import ROOT
from tests.tiny import write_config, write_family, write_head, write_image_family
from tests.tiny_views import FOV_DEG, sphere_views
from tests.tools.comfyui.comfy_host import ExecutionBlocker, Host, Stopped
from tools.comfyui.messages import read_message, write_message
from tools.comfyui.work import Work
from tools.comfyui.worker import serve
from utils.settings.assets import AssetOptions

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = ROOT / "tools" / "comfyui"
CAMERAS = {
    "elevation_deg": 20.0,
    "distance": 2.0,
    "azimuth_start_deg": 0.0,
    "azimuth_span_deg": 360.0,
    "fov_deg": FOV_DEG,
}


class ServedHere:
    """In place of the worker's process: its loop in a thread, over real pipes."""

    def __init__(self, command, *, stdin, stdout, cwd):
        assert command[1:] == ["-m", "tools.comfyui.worker"]
        assert cwd == ROOT
        requests, answers = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(requests[1], "wb"), os.fdopen(answers[0], "rb")
        streams = os.fdopen(requests[0], "rb"), os.fdopen(answers[1], "wb")
        self.thread = threading.Thread(target=self._serve, args=streams, daemon=True)
        self.thread.start()
        self.killed = False

    @staticmethod
    def _serve(requests, answers):
        with requests, answers:
            serve(requests, answers, Work())

    def poll(self):
        return -9 if self.killed else None

    def kill(self):
        self.killed = True
        self.stdin.close()

    def wait(self):
        return -9


@pytest.fixture
def host(monkeypatch):
    return Host(monkeypatch)


@pytest.fixture
def nodes(tmp_path, monkeypatch, host):
    """The nodes as ComfyUI has them after the folder was linked, with the worker in this process."""
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "video.mv").symlink_to(FOLDER)
    nodes = host.load(tmp_path / "custom_nodes" / "video.mv")
    process = sys.modules[nodes.Worker.__module__]
    monkeypatch.setattr(process.subprocess, "Popen", ServedHere)
    yield nodes
    nodes.WORKER.stop()


def node(kind, **inputs):
    return {"class_type": f"VideoMV{kind}", "inputs": inputs}


def text_node(file, **changes):
    inputs = {"prompt": "a red mug", "config": str(file), "seed": 3, "num_views": 8, "elevation_deg": 15.0}
    return node("TextToOrbit", **inputs | {"steps": 1, "refine": "off", "settings": ""} | changes)


def image_node(config, **changes):
    inputs = {"config": str(config), "seed": 3, "num_views": 4, "azimuths_deg": "0", "input_elevation_deg": "15"}
    inputs |= {"mask_shows": "object", "steps": 1, "refine": "off"}
    return node("ImagesToOrbit", **inputs | changes)


@pytest.fixture
def text_config(tmp_path):
    return write_config(tmp_path / "run.yaml", write_family(tmp_path) | write_head(tmp_path) | {"guide_scale": 1.0})


def test_a_sentence_becomes_views_with_masks_and_cameras(host, nodes, text_config):
    [outputs] = host.run({"1": text_node(text_config, settings='sampler.type=DDIM # "comment"')}).values()
    views, masks, cameras = outputs
    assert views.shape == (8, 32, 32, 3)
    assert masks.shape == (8, 32, 32)
    assert 0 <= float(views.min()) <= float(views.max()) <= 1
    assert cameras["c2w_V44"].shape == (8, 4, 4)
    assert host.steps == [(1, 1)]
    [again] = host.run({"1": text_node(text_config)}).values()
    assert torch.equal(again[0], views)  # a seed gives the same orbit
    [other] = host.run({"1": text_node(text_config, seed=4)}).values()
    assert not torch.equal(other[0], views)


def test_3d_aware_sampling_can_be_switched_on(host, nodes, text_config):
    prompt = {name: text_node(text_config, steps=3, refine=name) for name in ("on", "off")}
    outputs = host.run(prompt)
    assert not torch.equal(outputs["on"][0], outputs["off"][0])


def test_a_head_makes_gaussians_in_the_frame_of_comfyui(host, nodes, text_config):
    """In the frame of SPLAT y points down and z away from the front, so world z is -y, and world x is -z."""
    reconstruct = {"views": ["1", 0], "cameras": ["1", 2], "method": "head", "config": str(text_config), "seed": 0}
    prompt = {"1": text_node(text_config), "2": node("Reconstruct", mesh=False, **reconstruct)}
    views, _, cameras = host.run(prompt)["1"]
    splat, mesh = host.run(prompt)["2"]
    number = splat.positions.shape[1]
    shapes = [tuple(getattr(splat, name).shape) for name in ("scales", "rotations", "opacities", "sh")]
    assert shapes == [(1, number, 3), (1, number, 4), (1, number, 1), (1, number, 1, 3)]
    torch.testing.assert_close(splat.rotations.norm(dim=-1), torch.ones(1, number))
    work = Work()
    gaussians, _ = work._by_head(str(text_config), [], {"views_VHW3": views, "c2w_V44": cameras["c2w_V44"]}, None)
    x, y, z = gaussians.with_unit_quats().means_BN3.unbind(-1)
    torch.testing.assert_close(splat.positions, torch.stack([y, -z, -x], dim=-1))
    torch.testing.assert_close(0.5 + 0.28209479177387814 * splat.sh[:, :, 0], gaussians.colors_BN3)
    assert isinstance(mesh, ExecutionBlocker)
    assert "switch `mesh`" in mesh.message


@pytest.fixture
def sphere(host, nodes):
    """A prompt's inputs of a sphere: its images over white, and cameras from the node."""
    true = sphere_views(num_views=6, size=24)
    cameras = {"num_views": 6, **CAMERAS, "elevation_deg": 15.0}
    [(placed,)] = host.run({"1": node("OrbitCameras", **cameras)}).values()
    torch.testing.assert_close(placed["c2w_V44"], true.c2w_V44)
    inputs = {"cameras": placed, "views": true.over(1.0).movedim(1, -1), "config": "", "seed": 0}
    return true, inputs


def reconstructed(nodes, **inputs):
    return nodes.Reconstruct().reconstruct(**inputs)


def test_a_fit_makes_gaussians_and_a_mesh(nodes, sphere, monkeypatch):
    small = {"mesh_views": 8, "mesh_view_size": 64, "grid": 32, "faces": 400}
    monkeypatch.setattr("tools.comfyui.work.AssetOptions", partial(AssetOptions, **small))
    true, inputs = sphere
    settings = "num_steps=30 hull_grid=24 num_gaussians=300"
    splat, mesh = reconstructed(nodes, **inputs, method="gs", mesh=True, settings=settings)
    opaque = splat.opacities[0, :, 0] > 0.5
    assert float(splat.positions[0, opaque].norm(dim=-1).mean()) == pytest.approx(0.5, abs=0.12)
    assert mesh.vertices.shape[0] == mesh.faces.shape[0] == 1
    assert mesh.faces.dtype == torch.int64
    assert int(mesh.faces.max()) < mesh.vertices.shape[1] == mesh.vertex_colors.shape[1]
    assert float(mesh.vertices[0].norm(dim=-1).median()) == pytest.approx(0.5, abs=0.1)
    assert mesh.unlit
    # the sphere is coloured by its normal: red grows along world x, which is z of a mesh (y up)
    red = mesh.vertex_colors[0, :, 0]
    assert torch.corrcoef(torch.stack([red, mesh.vertices[0, :, 2]]))[0, 1] > 0.6
    masked = reconstructed(nodes, **inputs, method="gs", mesh=False, settings=settings, masks=true.masks_V1HW[:, 0])[0]
    assert masked.positions.shape[-1] == 3


def test_a_method_without_gaussians_blocks_that_output(nodes, sphere):
    _, inputs = sphere
    settings = "num_steps=2 hull_grid=16 rays_per_step=64"
    splat, _ = reconstructed(nodes, **inputs, method="nerf", mesh=False, settings=settings)
    assert splat.message == "VideoMV: no Gaussians: method nerf has no Gaussians; use gs"


def test_pictures_are_cut_out_by_alpha_or_mask(tmp_path, host, nodes):
    config = write_config(tmp_path / "run.yaml", write_image_family(tmp_path) | {"guide_scale": 1.0})
    rgba = torch.zeros(1, 40, 40, 4)
    rgba[:, 10:30, 10:30] = torch.tensor([0.8, 0.1, 0.1, 1.0])
    sample = {**image_node(config)["inputs"], "images": rgba}
    views, _, _ = nodes.ImagesToOrbit().sample(**sample)
    mask = rgba[..., 3]
    for shown, given in (("object", mask), ("background (LoadImage)", 1 - mask)):
        same = {**sample, "images": rgba[..., :3], "mask": given, "mask_shows": shown}
        assert torch.equal(nodes.ImagesToOrbit().sample(**same)[0], views)
    both = {**sample, "images": rgba.repeat(2, 1, 1, 1), "azimuths_deg": "0, 90"}
    assert not torch.equal(nodes.ImagesToOrbit().sample(**both)[0], views)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"settings": "guide_scal=3"}, "did you mean guide_scale"),
        ({"settings": "'guide_scale=3"}, "close the quote"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"settings": "resolution=[33,32]"}, "must be multiples of"),
    ],
)
def test_mistakes_of_a_sentence_are_one_line(host, nodes, text_config, changes, message):
    with pytest.raises(nodes.WorkerError, match=message) as caught:
        host.run({"1": text_node(text_config, **changes)})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.ones(1, 32, 32, 3)}, "has no alpha channel"),
        ({"azimuths_deg": "0 90"}, "azimuths_deg has 2 angles for 1 images"),
        ({"azimuths_deg": "90"}, "the first image is view 0"),
        ({"azimuths_deg": "left"}, "azimuths_deg=left is not a list of angles"),
        ({"mask": torch.ones(1, 64, 64)}, "disconnect it, or scale the mask"),
    ],
)
def test_mistakes_of_pictures_are_one_line(tmp_path, nodes, changes, message):
    config = write_config(tmp_path / "run.yaml", write_image_family(tmp_path))
    rgba = torch.zeros(1, 32, 32, 4)
    rgba[:, 8:24, 8:24] = 1
    with pytest.raises(nodes.WorkerError, match=message):
        nodes.ImagesToOrbit().sample(**{**image_node(config)["inputs"], "images": rgba, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": torch.ones(5, 24, 24, 3)}, "5 images for 6 cameras"),
        ({"views": torch.rand(6, 24, 24, 3)}, "the background is not plain"),
        ({"masks": torch.ones(6, 20, 24)}, "scale the masks"),
        ({"settings": "num_stpes=3"}, "did you mean num_steps"),
    ],
)
def test_mistakes_of_views_are_one_line(nodes, sphere, changes, message):
    _, inputs = sphere
    with pytest.raises(nodes.WorkerError, match=message):
        reconstructed(nodes, **{**inputs, "method": "gs", "mesh": False, **changes})


def test_the_stop_button_ends_the_worker_and_the_next_request_starts_it_again(host, nodes, text_config):
    host.run({"1": text_node(text_config)})
    first = nodes.WORKER._process
    host.stopped = True
    with pytest.raises(Stopped):
        host.run({"1": text_node(text_config)})
    assert first.killed
    host.stopped = False
    host.run({"1": text_node(text_config)})
    assert nodes.WORKER._process is not first


def test_a_worker_that_dies_is_one_line(host, nodes, monkeypatch):
    monkeypatch.setattr(Work, "cameras", lambda self, **options: (_ for _ in ()).throw(SystemExit(3)))
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with pytest.raises(nodes.WorkerError, match="the process of VideoMV ended with code -9"):
        host.run({"1": node("OrbitCameras", num_views=4, **CAMERAS)})


def test_a_fault_of_the_program_names_its_kind_and_the_worker_stays(host, nodes, monkeypatch, capsys):
    real, calls = Work.cameras, []

    def wrong_once(self, **options):
        calls.append(options)
        return real(self, **options) if len(calls) > 1 else {}["gone"]

    monkeypatch.setattr(Work, "cameras", wrong_once)
    with pytest.raises(nodes.WorkerError, match="KeyError: 'gone'; the log of ComfyUI has the details"):
        host.run({"1": node("OrbitCameras", num_views=4, **CAMERAS)})
    assert "Traceback" in capsys.readouterr().err
    assert host.run({"1": node("OrbitCameras", num_views=4, **CAMERAS)})


def test_the_real_worker_answers_beside_a_package_of_the_host_with_our_name(tmp_path, monkeypatch, host):
    """ComfyUI has a package `utils`, and its working directory is another one."""
    foreign = types.ModuleType("utils")
    monkeypatch.setitem(sys.modules, "utils", foreign)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videomv").symlink_to(FOLDER)
    nodes = host.load(tmp_path / "videomv")
    assert sys.modules["utils"] is foreign
    [(cameras,)] = host.run({"1": node("OrbitCameras", num_views=4, **CAMERAS)}).values()
    assert cameras["c2w_V44"].shape == (4, 4, 4)
    nodes.WORKER.stop()


def test_a_copy_of_the_folder_says_that_it_must_be_linked(tmp_path, monkeypatch, host):
    shutil.copytree(FOLDER, tmp_path / "custom_nodes" / "videomv", ignore=shutil.ignore_patterns("__pycache__"))
    nodes = host.load(tmp_path / "custom_nodes" / "videomv")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(nodes.WorkerError, match=r"is a copy .*; link the folder tools/comfyui instead"):
        host.run({"1": node("OrbitCameras", num_views=4, **CAMERAS)})


def test_an_older_comfyui_gets_its_own_mesh_and_our_splat(monkeypatch, caplog):
    host = Host(monkeypatch, types_of_2026=False)
    extras = types.ModuleType("comfy_extras.nodes_hunyuan3d")
    extras.MESH = type("MESH", (), {"__init__": lambda self, vertices, faces: None})
    monkeypatch.setitem(sys.modules, extras.__name__, extras)
    nodes = host.load(FOLDER)
    points = torch.zeros(1, 3, 3)
    assert isinstance(nodes.host.mesh_of(points, torch.zeros(1, 1, 3), points), extras.MESH)
    assert "has no unlit and no vertex_colors, so the mesh is grey" in caplog.text
    names = ("positions", "scales", "rotations", "opacities", "sh")
    splat = nodes.host.splat_of(dict.fromkeys(names, points))
    assert splat.positions is points
    assert "has no type SPLAT" in caplog.text


def test_messages_keep_values_and_say_when_the_pipe_is_closed():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb") as target:
        tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.rand(2, dtype=torch.float64)}
        write_message(target, {"kind": "x", "text": "naïve 椅子"}, tensors)
        write_message(target, {})
        header, found = read_message(source)
        assert header == {"kind": "x", "text": "naïve 椅子"}
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
        assert read_message(source) == ({}, {})
        target.write(b"\x09")
        target.close()
        with pytest.raises(EOFError):
            read_message(source)


def test_the_example_workflow_fits_the_nodes(host):
    """A workflow of the page: links and widgets in the order in which ComfyUI's front end has them."""
    classes = host.load(FOLDER).NODE_CLASS_MAPPINGS
    flow = json.loads((FOLDER / "example_workflows" / "text_to_mesh.json").read_text())
    by_id = {one["id"]: one for one in flow["nodes"]}
    for number, source, output, target, place, kind in flow["links"]:
        assert number in by_id[source]["outputs"][output]["links"]
        assert by_id[target]["inputs"][place]["link"] == number
        assert by_id[source]["outputs"][output]["type"] == by_id[target]["inputs"][place]["type"] == kind
    prompt = {}
    for one in flow["nodes"]:
        if one["type"] not in classes:
            assert one["type"] in ("PreviewImage", "SaveGLB")  # of ComfyUI
            continue
        types_ = classes[one["type"]].INPUT_TYPES()
        inputs = {**types_["required"], **types_.get("optional", {})}
        sockets = [name for name, (kind, _) in inputs.items() if kind in ("IMAGE", "MASK", "VIDEOMV_CAMERAS")]
        assert [slot["name"] for slot in one["inputs"]] == sockets
        assert [slot["type"] for slot in one["outputs"]] == list(classes[one["type"]].RETURN_TYPES)
        values = iter(one["widgets_values"])
        given = {}
        for name, (_, options) in inputs.items():
            if name not in sockets:
                given[name] = next(values)
                if options.get("control_after_generate"):
                    assert next(values) in ("fixed", "randomize", "increment", "decrement")
        assert not list(values)
        linked = {slot["name"]: slot["link"] for slot in one["inputs"] if slot["link"] is not None}
        sources = {link[0]: [str(link[1]), link[2]] for link in flow["links"]}
        given |= {name: sources[link] for name, link in linked.items()}
        prompt[str(one["id"])] = {"class_type": one["type"], "inputs": given}
    host.check(prompt)
    assert len(prompt) == 2
