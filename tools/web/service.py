"""What the app does for a visitor, behind the page and the endpoints: checks requests, queues jobs, keeps results.

Letters: B batch, V views, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipelines.assets import MESH_FILE, PLY_FILE, SPZ_FILE, VIEWER_FILE
from pipelines.reconstruction.fitting import FIELD_FILE, SHEET_FILE
from pipelines.reconstruction.fitting.folder import fit_folder
from pipelines.sampling.conditioner import texts_of
from pipelines.sampling.inference import RunWatch, check_sampling
from pipelines.sampling.inputs import known_view_files
from pipelines.sampling.pipeline import Orbits, ViewsPipeline
from pipelines.sampling.sample_folder import RESULT_FILE
from tools.web.jobs import Job, Worker
from tools.web.models import Model
from tools.web.requests import (
    FitRequest,
    OrbitRequest,
    Picture,
    checked,
    command_of,
    config_of,
    expected_seconds,
)
from tools.web.results import Result, data_url, write_mesh_page, write_strip, write_zip
from tools.web.uploads import CAMERAS, cut_outs, store_views
from tools.web.visits import Visit, Visits
from utils.devices import pick_device
from utils.errors import ConfigError, DataError
from utils.files import read_json
from utils.images import contact_sheet
from utils.registry import INFER_ENGINE
from utils.settings.assets import AssetOptions
from utils.settings.run import RunConfig

PREVIEW_VIEWS = 6
PREVIEW_SHARE = 0.08  # of the time of a job, at most
FIRST_FILES_S = 8.0  # a guess for 3D files, until the first were written
FIRST_FIT_STEP_S = 0.2  # a guess for a step of a fit, for visitors in the queue
FIT_ASSETS = AssetOptions(splat=False, turntable=False, spz=True)  # as FitRequest.command


class Service:
    """Everything behind the page.

    Args:
        models: at least one; the first is the default.
        visits: folders of the visitors.
        worker: does the jobs.
    """

    def __init__(self, models: list[Model], *, visits: Visits, worker: Worker) -> None:
        self.models, self.visits, self.worker = models, visits, worker
        self._files_s = FIRST_FILES_S
        self._fit_step_s = FIRST_FIT_STEP_S

    def model(self, name: str | None) -> Model:
        """Find a model by its name; the default for an empty name.

        Raises:
            ConfigError: there is none.
        """
        if not name:
            return self.models[0]
        found = next((model for model in self.models if model.name == name), None)
        if found is None:
            raise ConfigError(f"model: {name[:40]!r} is unknown; use {', '.join(one.name for one in self.models)}")
        return found

    def make_orbit(self, visit: Visit, model: Model, build: Callable[[Path], OrbitRequest]) -> Job:
        """Check a request and queue it.

        Args:
            build: makes the request; it gets the folder into which pictures of the visitor go.

        Raises:
            ConfigError, DataError: it cannot be done; one line for the visitor.
        """
        number, folder = visit.new_folder()
        with kept_if_queued(folder):
            request = checked(build(folder), model)
            cut_outs(request.pictures, model=model)
            check_run(config_of(request, model, log_dir=folder))
            work = partial(self._orbit, request=request, model=model, folder=folder, number=number)
            estimate_s = expected_seconds(request, model) + self._files_s
            return self._submit(visit, work, folder, title="orbit", estimate_s=estimate_s)

    def reconstruct(self, visit: Visit, files: list[str], request: FitRequest) -> Job:
        """Check views and queue their reconstruction.

        Raises:
            ConfigError, DataError: it cannot be done; one line for the visitor.
        """
        number, folder = visit.new_folder()
        with kept_if_queued(folder):
            request.section()
            notes = store_views(files, folder / "views")
            title = f"{request.method} of {Path(files[0]).name if len(files) == 1 else f'{len(files)} files'}"
            more = {"folder": folder, "number": number, "notes": tuple(notes), "title": title}
            work = partial(self._fit, request=request, **more)
            estimate_s = request.num_steps * self._fit_step_s
            return self._submit(visit, work, folder, title=request.method, estimate_s=estimate_s)

    def _submit(
        self, visit: Visit, work: Callable[[Job], Result], folder: Path, *, title: str, estimate_s: float
    ) -> Job:
        def finished(job: Job) -> None:
            if job.result is None:
                shutil.rmtree(folder, ignore_errors=True)
            self.visits.finished(visit, job)

        job = Job(title, work, estimate_s=estimate_s, on_over=finished)
        visit.jobs.append(job)
        try:
            return self.worker.submit(job)
        except ConfigError:
            visit.jobs.remove(job)
            raise

    def _orbit(self, job: Job, *, request: OrbitRequest, model: Model, folder: Path, number: int) -> Result:
        memory, started = PartMemory(), time.monotonic()
        watch = OrbitWatch(job, folder, memory, files_s=self._files_s if model.has_head else 1.0)
        cfg = config_of(request, model, log_dir=folder)
        engine = INFER_ENGINE.build({"type": cfg.TASK_TYPE}, where="TASK_TYPE", cfg=cfg)
        job.tell(stage="preparing")
        try:
            [sample] = engine.run(pipeline=model.pipeline, watch=watch.calls)
        except DataError as err:
            raise DataError(without_paths(str(err), folder, request.pictures)) from err
        memory.note("files")
        files_s = time.monotonic() - watch.sampled
        self._files_s = files_s if model.has_head else self._files_s
        seconds = {**watch.seconds, "files": files_s, "in all": time.monotonic() - started}
        return orbit_result(request, model, watch, sample, number=number, folder=folder, facts=memory.facts(seconds))

    def _fit(
        self, job: Job, *, request: FitRequest, folder: Path, number: int, notes: tuple[str, ...], title: str
    ) -> Result:
        memory, started = PartMemory(), time.monotonic()

        def step(done: int, total: int) -> None:
            memory.note("fit")
            job.step(done, total)
            if done == total:
                job.tell(stage="writing the mesh and the other files")

        job.tell(stage=f"fitting {request.method}")
        out = folder / "fit"
        try:
            fit_folder(
                folder / "views", out, request.section(), seed=request.seed, assets=FIT_ASSETS, on_step=step,
                device=pick_device(self.models[0].cfg.device),
            )  # fmt: skip
        except DataError as err:
            raise DataError(without_paths(str(err), folder, ())) from err
        memory.note("files")
        facts = read_json(out / RESULT_FILE, option=RESULT_FILE, kind=dict)
        in_all = time.monotonic() - started
        self._fit_step_s = facts["seconds"] / request.num_steps
        seconds = {"fit": facts["seconds"], "files": in_all - facts["seconds"], "in all": in_all}
        wrong = [view["view"] for view in facts["views"] if view["disagrees"]]
        notes += (f"views that disagree with the others: {', '.join(wrong)}",) if wrong else ()
        notes += missing_notes(facts["files"])
        return Result(
            number=number, title=title, folder=folder, strip=None, video=None,
            sheet=out / SHEET_FILE, viewer=existing(out / VIEWER_FILE),
            mesh=write_mesh_page(folder / "mesh.html", out / MESH_FILE),
            downloads=all_existing(out, (MESH_FILE, PLY_FILE, SPZ_FILE, FIELD_FILE)),
            facts=(("PSNR on the given views", f"{facts['psnr']:.2f} dB"), *memory.facts(seconds)),
            command=request.command(), notes=notes,
        )  # fmt: skip


def check_run(cfg: RunConfig) -> None:
    """Check what a run would refuse, before it waits in the queue.

    Raises:
        ConfigError, DataError: the run cannot be done; one line for the visitor.
    """
    check_sampling(cfg)
    if cfg.embedder and cfg.prompts:
        cfg.embedder.options.check_prompts(texts_of(cfg, cfg.prompts))
    try:
        known_view_files(cfg, cfg.cameras.c2w())
    except ConfigError as err:
        named = re.sub(
            r"known_views\[(\d+)\]\.azimuth_deg=", lambda at: f"azimuth of picture {int(at[1]) + 2}: ", str(err)
        )
        raise ConfigError(named) from err


@contextmanager
def kept_if_queued(folder: Path) -> Iterator[None]:
    """Remove the folder of a request that is refused."""
    try:
        yield
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class OrbitWatch:
    """Tells a job what its sampling run does, and makes previews of the orbit.

    Args:
        job: is told.
        folder: gets the views as one picture.
        memory: notes the memory of each part.
        files_s: expected time of the files.
    """

    def __init__(self, job: Job, folder: Path, memory: PartMemory, *, files_s: float) -> None:
        self.job, self.folder, self.memory, self.files_s = job, folder, memory, files_s
        self.seconds: dict[str, float] = {}
        self.strip = None
        self.no_gaussians = False
        self.sampled = self.started = time.monotonic()
        self._previewed_s = 0.0
        self.calls = RunWatch(on_step=self.step, on_x0=self.preview, on_orbits=self.orbits, on_file=self.file)

    def step(self, done: int, total: int) -> None:
        self.memory.note("denoising")
        stage = "decoding the views" if done == total else "denoising"
        self.job.tell(stage=stage, after_s=self.files_s)
        self.job.step(done, total)

    def preview(self, pipeline: ViewsPipeline, x0_BCVHW: Tensor) -> None:
        """Decode some views of x0, if previews have not taken too much of the time yet."""
        if pipeline.placement.one_at_a_time:  # decoding would move the other networks out
            return
        now = time.monotonic()
        if self._previewed_s > PREVIEW_SHARE * (now - self.started):
            return
        num_views = pipeline.autoencoder.layout.num_views(x0_BCVHW.shape[2])
        picked = [place * num_views // PREVIEW_VIEWS for place in range(min(PREVIEW_VIEWS, num_views))]
        views_VCHW = pipeline.decode(x0_BCVHW[:1], views=picked)[0].float().cpu()
        self.job.tell(preview=data_url(contact_sheet(views_VCHW, columns=PREVIEW_VIEWS)))
        self._previewed_s += time.monotonic() - now

    def orbits(self, orbits: Orbits) -> None:
        self.memory.note("decoding and Gaussians")
        seconds = dict(orbits.seconds)
        self.seconds = {"denoising": seconds["denoise"]}
        self.seconds["decoding and Gaussians"] = seconds["decode"] + seconds.get("reconstruct", 0.0)
        self.strip = write_strip(self.folder / "orbit.webp", orbits.best_views_BVCHW[0], orbits.c2w_V44)
        self.no_gaussians = orbits.gaussians is None
        self.sampled = time.monotonic()
        self.job.tell(stage="writing files", early=self.strip)

    def file(self, name: str) -> None:
        self.memory.note("files")
        self.job.tell(stage=f"writing {name}")


def orbit_result(
    request: OrbitRequest,
    model: Model,
    watch: OrbitWatch,
    sample: Path,
    *,
    number: int,
    folder: Path,
    facts: tuple[tuple[str, str], ...],
) -> Result:
    """Collect the files and facts of a finished sample."""
    record = read_json(sample / RESULT_FILE, option=RESULT_FILE, kind=dict)
    views = "views_gs" if (sample / "views_gs").is_dir() else "views"
    sheet = "sheet_gs.png" if views == "views_gs" else "sheet.png"
    names = sorted(f"{views}/{file.name}" for file in (sample / views).iterdir())
    write_zip(folder / "views.zip", sample, [CAMERAS, *names])
    own = [picture.path for picture in request.pictures]
    notes = [picture.note for picture in request.pictures if picture.note]
    notes += missing_notes(record.get("assets", {}))
    if model.has_head and watch.no_gaussians:
        notes.append(
            "no 3D files: the model's head needs other views; use the full turn and the model's number of views"
        )
    if "input_elevation_deg" in record:
        facts = (("elevation, estimated", f"{record['input_elevation_deg']:.1f} degrees"), *facts)
    videos = ("orbit_gs.mp4", "orbit.mp4")
    return Result(
        number=number,
        title=request.title,
        folder=folder,
        strip=watch.strip,
        sheet=existing(sample / sheet),
        viewer=existing(sample / VIEWER_FILE),
        mesh=write_mesh_page(folder / "mesh.html", sample / MESH_FILE),
        video=next((found for name in videos if (found := existing(sample / name))), None),
        downloads=(
            *all_existing(sample, (MESH_FILE, PLY_FILE, SPZ_FILE, CAMERAS)),
            folder / "views.zip",
            *all_existing(sample, (videos[0], videos[1], sheet)),
            *own,
        ),
        facts=(("seed", str(request.seed)), *facts),
        command=command_of(request, model),
        notes=tuple(notes),
    )


class PartMemory:
    """The largest memory of each part, where it was noted: of the process, on a GPU that of the device."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def note(self, part: str) -> None:
        """Note the memory now."""
        self.bytes[part] = max(self.bytes.get(part, 0), memory_now())

    def facts(self, seconds: dict[str, float]) -> tuple[tuple[str, str], ...]:
        """Name, time and memory of each part, for the table of a result."""
        return tuple(
            (part, f"{spent:.1f} s" + (f", {self.bytes[part] / 2**20:.0f} MiB" if part in self.bytes else ""))
            for part, spent in seconds.items()
        )


def memory_now() -> int:
    """Bytes that the process uses, on a GPU those of the GPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.memory_allocated()
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # another system
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def existing(path: Path) -> Path | None:
    """The path, if there is such a file."""
    return path if path.is_file() else None


def all_existing(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of these names that are there."""
    return tuple(folder / name for name in names if (folder / name).is_file())


def missing_notes(facts: dict[str, dict[str, object]]) -> tuple[str, ...]:
    """One line for each 3D file that the object does not have."""
    return tuple(f"no {name}: {fact['error']}" for name, fact in facts.items() if "error" in fact)


def without_paths(message: str, folder: Path, pictures: tuple[Picture, ...]) -> str:
    """A message with the visitor's names instead of paths of the server."""
    for picture in pictures:
        message = message.replace(str(picture.path), picture.name)
    return message.replace(f"{folder}/views/", "").replace(f"{folder}/", "").replace(str(folder), "the upload")
