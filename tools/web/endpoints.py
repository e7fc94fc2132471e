"""Named endpoints for programs, and for agents as MCP tools: the same work as the page, without a page.

Gradio reads the annotations as objects, so this file does not postpone them. It shows the docstrings as descriptions.
"""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio import FileData

from tools.web.jobs import Job
from tools.web.panel import POLL_S
from tools.web.requests import MOST_PICTURES, FitRequest, OrbitRequest
from tools.web.results import Result
from tools.web.service import Service
from tools.web.uploads import store_pictures
from utils.errors import ConfigError, DataError

Quality = Literal["quick", "normal", "full"]
CameraPath = Literal["full turn", "full turn, clockwise", "half turn", "rising turn"]
Facts = dict[str, Any]


Endpoint = Callable[..., Any]


def build_endpoints(service: Service) -> None:
    """Add the endpoints to the current `gr.Blocks`."""
    for build in (text_endpoint, image_endpoint, fit_endpoint):
        endpoint = build(service)
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None)


def text_endpoint(service: Service) -> Endpoint:
    """Return the endpoint for sentences."""

    async def text_to_orbit(
        prompt: str,
        seed: int = 11,
        num_views: int = 24,
        elevation_deg: float = 15.0,
        path: CameraPath = "full turn",
        quality: Quality = "normal",
        refine: bool = False,
        model: str = "",
        request: gr.Request = None,
    ) -> tuple[FileData, list[FileData], Facts]:
        """
        Make an orbit of views of an object, and the object in 3D, from a sentence.

        Args:
            prompt: the object in a few words, such as "a wooden chair".
            seed: another seed gives another object.
            num_views: number of views; the models were trained with 24.
            elevation_deg: height angle of the cameras in degrees.
            path: the way of the camera around the object.
            quality: number of denoising steps; quick takes the least time.
            refine: 3D-aware sampling, slower; all views then show one object.
            model: name of a loaded model; empty: the first.

        Returns:
            A picture of all views, the files (mesh, Gaussians, cameras, views, video), and facts with the command.
        """
        values = {"num_views": num_views, "elevation_deg": elevation_deg, "path": path, "quality": quality}
        build = functools.partial(_request, (), (), prompt=prompt, seed=seed, refine=refine, **values)
        return await _orbit(service, request, model, build)

    return text_to_orbit


def image_endpoint(service: Service) -> Endpoint:
    """Return the endpoint for pictures."""

    async def image_to_orbit(
        image: FileData,
        prompt: str = "",
        more_images: list[FileData] = [],  # noqa: B006 - Gradio shows it as the default; it is not changed
        more_azimuths_deg: list[float] = [],  # noqa: B006
        seed: int = 11,
        num_views: int = 24,
        elevation_deg: float = 15.0,
        estimate_elevation: bool = True,
        path: CameraPath = "full turn",
        quality: Quality = "normal",
        refine: bool = False,
        model: str = "",
        request: gr.Request = None,
    ) -> tuple[FileData, list[FileData], Facts]:
        """
        Make an orbit of views of an object, and the object in 3D, from one to four pictures of it.

        Args:
            image: a picture of the object, best a PNG with a transparent background; it becomes view 0.
            prompt: the object in a few words; may be empty.
            more_images: up to three more pictures of the same object.
            more_azimuths_deg: angle of each of these, in degrees counter-clockwise from above, relative to image.
            seed: another seed gives other hidden sides.
            num_views: number of views; the models were trained with 24.
            elevation_deg: height angle of the camera in degrees, if it is not estimated.
            estimate_elevation: estimate this angle from the picture.
            path: the way of the camera around the object.
            quality: number of denoising steps; quick takes the least time.
            refine: 3D-aware sampling, slower; all views then show one object.
            model: name of a loaded model; empty: the first.

        Returns:
            A picture of all views, the files (mesh, Gaussians, cameras, views, video), and facts with the command.
        """
        values = {"num_views": num_views, "elevation_deg": elevation_deg, "path": path, "quality": quality}
        values |= {"estimate_elevation": estimate_elevation, "seed": seed, "refine": refine}
        build = functools.partial(_request, [image, *more_images], [0, *more_azimuths_deg], prompt=prompt, **values)
        return await _orbit(service, request, model, build)

    return image_to_orbit


def fit_endpoint(service: Service) -> Endpoint:
    """Return the endpoint for views with cameras."""

    async def reconstruct(
        views: FileData,
        method: Literal["gs", "nerf", "neus", "dense"] = "gs",
        quality: Quality = "normal",
        seed: int = 0,
        request: gr.Request = None,
    ) -> tuple[FileData, list[FileData], Facts]:
        """
        Fit an object in 3D to views with known cameras.

        Args:
            views: a .zip with transforms.json and the pictures that it names.
            method: gs (3D Gaussians), nerf (radiance field), neus (surface), or dense (3D Gaussians in seconds).
            quality: number of steps; quick takes the least time.
            seed: of start values.

        Returns:
            A picture of views and renders, the files (mesh, Gaussians or field), and facts with the command.
        """
        visit = service.visits.of(request.session_hash)
        asked = FitRequest(method=method, quality=quality, seed=seed)
        return answer(await finished(service, lambda: service.reconstruct(visit, [_file(views)], asked)))

    return reconstruct


async def _orbit(service: Service, request: gr.Request, name: str, build: Any) -> tuple[Any, ...]:
    visit = service.visits.of(request.session_hash)

    def queue() -> Job:
        model = service.model(name)
        return service.make_orbit(visit, model, lambda folder: build(folder, model))

    return answer(await finished(service, queue))


def _request(images: Any, azimuths_deg: Any, folder: Path, model: Any, **values: Any) -> OrbitRequest:
    if len(images) != len(azimuths_deg):
        raise ConfigError(f"more_azimuths_deg has {len(azimuths_deg) - 1} angles for {len(images) - 1} more_images")
    if len(images) > MOST_PICTURES:
        raise ConfigError(f"there are {len(images)} pictures; use at most {MOST_PICTURES}")
    pictures = store_pictures([_file(image) for image in images], azimuths_deg, folder, model=model)
    return OrbitRequest(pictures=pictures, **values)


def _file(given: Any) -> str:
    """The path of an uploaded file. Gradio has checked that it lies among the uploads."""
    path = given.get("path") if isinstance(given, dict) else getattr(given, "path", None)
    if not isinstance(path, str):
        raise DataError("a file is missing; upload it, with handle_file of gradio_client or upload_file_to_gradio")
    return path


async def finished(service: Service, queue: Any) -> Result:
    """Queue a job, tell the caller its progress, and return its result.

    Raises:
        gr.Error: the request was refused or failed; the message is for the caller.
    """
    try:
        job = await asyncio.to_thread(queue)
    except (ConfigError, DataError) as err:
        raise gr.Error(str(err), print_exception=False) from err
    progress, version = gr.Progress(), -1
    try:
        while not job.is_over:
            if job.version != version:
                version = job.version
                progress((job.done, job.total) if job.total else 0.0, desc=job.stage, unit="steps")
            await asyncio.sleep(POLL_S)
    finally:
        if not job.is_over:
            service.worker.stop(job)
    if job.result is None:
        raise gr.Error(job.error or "the request was stopped", print_exception=False)
    return job.result


def answer(result: Result) -> tuple[Any, ...]:
    """Return what an endpoint answers: a picture, the files, and facts."""
    facts = {**dict(result.facts), "command": result.command, "notes": list(result.notes)}
    files = [] if result.video is None else [file_of(result.video)]
    shown = {file["path"] for file in files}
    files += [file_of(path) for path in result.downloads if str(path) not in shown]
    return file_of(result.sheet), files, facts


def file_of(path: Path | None) -> dict[str, Any] | None:
    """A file in the form in which clients download it."""
    return None if path is None else {"path": str(path), "meta": {"_type": "gradio.FileData"}}
