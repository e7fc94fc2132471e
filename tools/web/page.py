"""The page: three tabs of inputs and results, and the events between them. The work is in `service`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.reconstruction.fitting.loop import ready_methods
from tools.web import show
from tools.web.jobs import Job
from tools.web.models import Model
from tools.web.panel import PRIVATE, PageSession, ResultPanel, Updates
from tools.web.requests import (
    FIT_STEPS,
    MOST_PICTURES,
    MOST_VIEWS,
    PATHS,
    QUALITIES,
    FitRequest,
    OrbitRequest,
    guide_scale_of,
    steps_of,
)
from tools.web.results import data_url
from tools.web.service import Service
from tools.web.uploads import cut_outs, store_pictures
from tools.web.visits import Visit
from utils.errors import ConfigError, DataError

METHODS = {"gs": "3D Gaussians", "nerf": "radiance field", "neus": "surface", "dense": "3D Gaussians at once"}


def build_page(app: gr.Blocks, service: Service) -> None:
    """Add the page to an app, whose context is open."""
    session = PageSession(service)
    gr.HTML(
        '<div class="title"><h1>VideoMV</h1><p>From a sentence or a few pictures to an orbit of views and a 3D object'
        "</p></div>",
        js_on_load=None,
    )
    with gr.Tabs():
        with gr.Tab("Make", id="make"):
            make = MakeTab(session)
        with gr.Tab("Reconstruct", id="reconstruct"):
            reconstruct = ReconstructTab()
        with gr.Tab("Compare", id="compare"):
            compare = CompareTab()
    session.choices = [make.panel.earlier, reconstruct.panel.earlier, compare.one, compare.two]
    for tab in (make, reconstruct, compare):
        tab.connect(session)

    def arrive(request: gr.Request) -> None:
        service.visits.of(request.session_hash, is_page=True)

    def leave(request: gr.Request) -> None:
        service.visits.leave(request.session_hash)

    app.load(arrive, **PRIVATE)
    app.unload(leave)


class MakeTab:
    """Makes an orbit of a sentence, of pictures, or of both."""

    def __init__(self, session: PageSession) -> None:
        models = session.service.models
        default = models[0]
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                names = [one.name for one in models]
                self.model = gr.Radio(names, value=default.name, label="Model", visible=len(models) > 1)
                self.prompt = gr.Textbox(
                    label="Sentence", placeholder="a wooden chair", lines=2, max_lines=4,
                    visible=default.takes_sentences,
                )  # fmt: skip
                self.files = gr.File(
                    label=f"Pictures (1 to {MOST_PICTURES})", file_count="multiple", type="filepath",
                    height=170, file_types=[".png", ".jpg", ".jpeg", ".webp"], visible=default.takes_pictures,
                )  # fmt: skip
                with gr.Row(visible=False) as self.azimuth_row:
                    self.azimuths = [
                        gr.Number(90 * number, label=f"Picture {number + 1}: azimuth (°)", min_width=120, visible=False)
                        for number in range(1, MOST_PICTURES)
                    ]
                self.cut = gr.HTML(js_on_load=None)
                self.quality = gr.Radio(quality_choices(default), value="normal", label="Quality, time on this machine")
                self._camera(default)
                self.panel = ResultPanel(start="Make")
            with gr.Column(scale=3, min_width=300):
                self.panel.results()

    def _camera(self, default: Model) -> None:
        cameras = default.cfg.cameras
        with gr.Accordion("Camera, seed and 3D", open=False):
            self.estimate = gr.Checkbox(
                default.estimates_elevation, label="Estimate the elevation from the picture",
                visible=default.estimates_elevation,
            )  # fmt: skip
            self.elevation = gr.Number(cameras.elevation_deg, label="Elevation (°), if it is not estimated")
            self.path = gr.Radio(list(PATHS), value=PATHS[0], label="Path of the camera")
            self.views = gr.Slider(4, MOST_VIEWS, value=cameras.num_views, step=1, label="Number of views")
            self.seed = gr.Number(default.cfg.seed, label="Seed", precision=0)
            self.refine = gr.Checkbox(
                default.cfg.refine, label="3D-aware sampling: slower, all views show one object",
                visible=default.has_head,
            )  # fmt: skip

    def connect(self, session: PageSession) -> None:
        """Connect the events."""
        self.panel.connect(session)
        pictures = [self.model, self.files, *self.azimuths]
        more = [self.prompt, self.estimate, self.elevation, self.path, self.views, self.seed, self.quality, self.refine]

        async def on_make(request: gr.Request, *values: Any) -> AsyncIterator[Updates]:
            visit = session.visit(request)
            async for updates in self.panel.follow(session, visit, lambda: self._queue(session.service, visit, values)):
                yield updates

        async def look(request: gr.Request, *values: Any) -> Updates:
            return self._look(session.service, session.visit(request), *values)

        gr.on(
            [self.panel.start.click, self.prompt.submit], on_make, [*pictures, *more],
            [*self.panel.outputs, *session.choices], **PRIVATE,
        )  # fmt: skip
        events = [self.files.change, *(azimuth.input for azimuth in self.azimuths)]
        gr.on(events, look, pictures, [self.cut, self.azimuth_row, *self.azimuths], **PRIVATE)
        switched = [self.prompt, self.files, self.estimate, self.elevation, self.views, self.seed]
        self.model.change(
            lambda name: self._switched(session.service.model(name)), self.model,
            [*switched, self.quality, self.refine], **PRIVATE,
        )  # fmt: skip

    @staticmethod
    def _queue(service: Service, visit: Visit, values: tuple[Any, ...]) -> Job:
        name, files, *rest = values
        azimuths, rest = rest[: MOST_PICTURES - 1], rest[MOST_PICTURES - 1 :]
        prompt, estimate, elevation, path, views, seed, quality, refine = rest
        model = service.model(name)

        def request(folder: Path) -> OrbitRequest:
            pictures = store_pictures(files or [], [0, *azimuths], folder, model=model)
            return OrbitRequest(
                prompt=prompt, pictures=pictures, elevation_deg=elevation, estimate_elevation=estimate,
                num_views=views, path=path, seed=seed, quality=quality, refine=refine,
            )  # fmt: skip

        return service.make_orbit(visit, model, request)

    def _look(self, service: Service, visit: Visit, name: str, files: list[str] | None, *azimuths: float) -> Updates:
        """Check pictures as soon as they are there, and show what the network will receive."""
        files = files or []
        updates: Updates = {one: gr.update(visible=place < len(files)) for place, one in enumerate(self.azimuths, 1)}
        updates[self.azimuth_row] = gr.update(visible=len(files) > 1)
        try:
            with visit.scratch() as folder:
                model = service.model(name)
                pictures = store_pictures(files, [0, *azimuths], folder, model=model)
                urls = [data_url(view) for view in cut_outs(pictures, model=model)]
        except (ConfigError, DataError) as err:
            return updates | {self.cut: show.message(str(err))}
        told = show.notes([picture.note for picture in pictures if picture.note])
        names, places = [one.name for one in pictures], [one.azimuth_deg for one in pictures]
        return updates | {self.cut: told + show.cut_out_pictures(urls, names, places)}

    def _switched(self, model: Model) -> Updates:
        """Show the inputs of another model with its defaults."""
        return {
            self.prompt: gr.update(visible=model.takes_sentences),
            self.files: gr.update(visible=model.takes_pictures),
            self.estimate: gr.update(visible=model.estimates_elevation, value=model.estimates_elevation),
            self.elevation: model.cfg.cameras.elevation_deg,
            self.views: model.cfg.cameras.num_views,
            self.seed: model.cfg.seed,
            self.quality: gr.update(choices=quality_choices(model)),
            self.refine: gr.update(visible=model.has_head, value=model.cfg.refine),
        }


class ReconstructTab:
    """Fits an object to views that the visitor has."""

    def __init__(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.files = gr.File(
                    label="Views", file_count="multiple",
                    type="filepath", height=170, file_types=[".zip", ".json", ".png", ".jpg", ".jpeg", ".webp"],
                )  # fmt: skip
                gr.HTML(
                    '<p class="stage">A .zip with transforms.json and the pictures that it names, or these files. The '
                    "views.zip of an orbit is such a file.</p>",
                    js_on_load=None,
                )
                methods = [(METHODS.get(name, name), name) for name in ready_methods()]
                self.method = gr.Radio(methods, value="gs", label="What is fitted")
                self.quality = gr.Radio(list(FIT_STEPS), value="normal", label="Quality")
                self.seed = gr.Number(0, label="Seed", precision=0)
                self.panel = ResultPanel(start="Reconstruct")
            with gr.Column(scale=3, min_width=300):
                self.panel.results()

    def connect(self, session: PageSession) -> None:
        """Connect the events."""
        self.panel.connect(session)

        async def on_reconstruct(
            request: gr.Request, files: list[str] | None, method: str, quality: str, seed: float
        ) -> AsyncIterator[Updates]:
            visit = session.visit(request)
            asked = FitRequest(method=method, quality=quality, seed=seed)
            queue = lambda: session.service.reconstruct(visit, files or [], asked)  # noqa: E731
            async for updates in self.panel.follow(session, visit, queue):
                yield updates

        inputs = [self.files, self.method, self.quality, self.seed]
        self.panel.start.click(on_reconstruct, inputs, [*self.panel.outputs, *session.choices], **PRIVATE)


class CompareTab:
    """Shows two results of the visit from the same side."""

    def __init__(self) -> None:
        with gr.Row():
            self.one = gr.Dropdown([], label="Left", interactive=True, min_width=160)
            self.two = gr.Dropdown([], label="Right", interactive=True, min_width=160)
        self.sides = gr.HTML(show.comparison(None, None), js_on_load=show.SCRIPT)

    def connect(self, session: PageSession) -> None:
        """Connect the events."""

        def compare(one: int | None, two: int | None, request: gr.Request) -> str:
            visit = session.visit(request)
            return show.comparison(visit.result(one), visit.result(two))

        gr.on([self.one.input, self.two.input], compare, [self.one, self.two], self.sides, **PRIVATE)


def quality_choices(model: Model) -> list[tuple[str, str]]:
    """The qualities of a model, with the measured time of each on this machine."""
    num_views, choices = len(model.cfg.cameras.c2w()), []
    for quality in QUALITIES:
        steps = steps_of(model, quality)
        times = {}
        for kind, possible in (("sentence", model.takes_sentences), ("picture", model.takes_pictures)):
            if possible:
                scale = guide_scale_of(model, sentence=kind == "sentence", picture=kind == "picture")
                seconds = model.seconds(num_steps=steps, guided=scale != 1, num_views=num_views)
                times[kind] = show.in_words(seconds)
        told = ", ".join(f"{kind} {value}" for kind, value in times.items())
        told = next(iter(times.values())) if len(set(times.values())) == 1 else told
        choices.append((f"{quality}: {steps} steps, {told}", quality))
    return choices
