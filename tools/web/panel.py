"""What the tabs share: a visitor's session, and the components that show progress and a result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr

from tools.web import show
from tools.web.jobs import Job
from tools.web.results import Result
from tools.web.service import Service
from tools.web.visits import Visit
from utils.errors import ConfigError, DataError

POLL_S, REFRESH_S = 0.2, 1.0
# The worker has the queue, so Gradio needs no limit of its own.
PRIVATE = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
Updates = dict[Any, Any]


class PageSession:
    """What all tabs share: the service, and the lists of earlier results, which every finished job extends."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.choices: list[gr.Dropdown] = []

    def visit(self, request: gr.Request) -> Visit:
        """The visit of a page."""
        return self.service.visits.of(request.session_hash, is_page=True)

    def choice_updates(self, visit: Visit) -> Updates:
        """Updates of the lists of earlier results."""
        entries = [(f"{one.number}. {one.title[:60]}", one.number) for one in reversed(visit.results)]
        return {choice: gr.update(choices=entries) for choice in self.choices}

    def stop(self, request: gr.Request) -> None:
        """Stop all jobs of a page."""
        for job in list(self.visit(request).jobs):
            self.service.worker.stop(job)


class ResultPanel:
    """The components of a tab that show its progress and its result.

    Args:
        start: the button that starts a job.
    """

    def __init__(self, *, start: str) -> None:
        with gr.Row():
            self.start = gr.Button(start, variant="primary", scale=3, min_width=120)
            self.stop = gr.Button("Stop", scale=1, min_width=90, interactive=False)
        self.progress = gr.HTML()
        self.preview = gr.HTML()

    def results(self) -> None:
        """Add the components of the result."""
        self.orbit = gr.HTML(js_on_load=show.SCRIPT)
        with gr.Tabs():
            with gr.Tab("3D"):
                self.viewer = gr.HTML(show.message("Results are shown here.", kind="note"), js_on_load=None)
            with gr.Tab("Mesh"):
                self.mesh = gr.HTML(js_on_load=None)
            with gr.Tab("Views"):
                self.sheet = gr.Image(
                    label="all views", show_label=False, interactive=False, buttons=["download", "fullscreen"]
                )
            with gr.Tab("Files"):
                self.files = gr.File(label="downloads", file_count="multiple", interactive=False)
            with gr.Tab("Info"):
                self.facts = gr.HTML()
                self.command = gr.Textbox(label="Command that repeats it", lines=3, interactive=False, buttons=["copy"])
        self.earlier = gr.Dropdown([], label="Earlier results of this visit", interactive=True)

    def connect(self, session: PageSession) -> None:
        """Connect the events that both tabs have."""

        def again(number: int | None, request: gr.Request) -> Updates:
            result = session.visit(request).result(number)
            if result is None:
                return {self.progress: show.message("This result was removed.", kind="note") if number else ""}
            return self.shown(result) | {self.progress: show.notes(result.notes)}

        self.earlier.input(again, self.earlier, self.outputs, **PRIVATE)
        self.stop.click(session.stop, queue=False, **PRIVATE)

    @property
    def outputs(self) -> list[Any]:
        """All components that a job changes."""
        own = [self.start, self.stop, self.progress, self.preview, self.orbit, self.viewer, self.mesh, self.sheet]
        return [*own, self.files, self.facts, self.command]

    def shown(self, result: Result) -> Updates:
        """Updates that show a result."""
        return {
            self.orbit: show.turntable(result.strip),
            self.viewer: show.viewer(result.viewer, what="Gaussians"),
            self.mesh: show.viewer(result.mesh, what="mesh"),
            self.sheet: gr.update(value=text_of(result.sheet)),
            self.files: gr.update(value=[str(file) for file in result.downloads]),
            self.facts: show.notes(result.notes) + show.facts(result),
            self.command: result.command,
        }

    async def follow(self, session: PageSession, visit: Visit, queue: Callable[[], Job]) -> AsyncIterator[Updates]:
        """Queue a job and yield updates until it is over; a page that goes away stops it."""
        yield {self.start: gr.update(interactive=False), self.stop: gr.update(interactive=True), self.progress: ""}
        try:
            job = await asyncio.to_thread(queue)
        except (ConfigError, DataError) as err:
            yield {self.progress: show.message(str(err)), **self._idle()}
            return
        try:
            async for updates in self._while_it_works(session, job):
                yield updates
        finally:
            if not job.is_over:
                session.service.worker.stop(job)
        ended = {self.progress: show.progress(job, ahead=(0, 0.0)), self.preview: "", **self._idle()}
        if job.result is not None:
            notes = show.notes(job.result.notes)
            ended |= self.shown(job.result) | {self.progress: notes} | session.choice_updates(visit)
        yield ended

    async def _while_it_works(self, session: PageSession, job: Job) -> AsyncIterator[Updates]:
        version, told, pictured, early = -1, 0.0, "", None
        while not job.is_over:
            if job.version != version or time.monotonic() - told > REFRESH_S:
                version, told = job.version, time.monotonic()
                updates = {self.progress: show.progress(job, ahead=session.service.worker.ahead(job))}
                if (picture := show.preview(job)) != pictured:
                    updates[self.preview] = pictured = picture
                if job.early is not early:
                    early = job.early
                    updates[self.orbit] = show.turntable(early)
                yield updates
            await asyncio.sleep(POLL_S)

    def _idle(self) -> Updates:
        return {self.start: gr.update(interactive=True), self.stop: gr.update(interactive=False)}


def text_of(path: Path | None) -> str | None:
    """A path as text, or None."""
    return None if path is None else str(path)
