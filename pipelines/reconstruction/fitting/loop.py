"""Fit an object: from views to a model of the object and a list of the views that disagree with it.

Letters: V views, R pixels of a step, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from datasets.views.posed_views import PosedViews
from pipelines.reconstruction.fitting.base import ObjectFit, PixelBatch
from pipelines.reconstruction.fitting.hull import carve
from pipelines.reconstruction.fitting.robust import RobustLoss, outlyingness
from utils.errors import ConfigError, DataError
from utils.files import atomic_path
from utils.images import psnr_db
from utils.registry import FITS, Section
from utils.settings.typed import identifying

log = logging.getLogger(__name__)

TELL_EVERY = 25  # steps between two updates of the error in the progress bar
AFFINE_RATE = 2e-3  # learning rate of the colour corrections
DISAGREES = 3.0  # a view whose error lies this many robust deviations above the median is named
OBJECT = 0.1  # pixels with a larger mask or opacity count in the comparison of views and renders
CHUNK_VIEWS = 8  # views that are rendered at once after the fit


@dataclass(frozen=True, kw_only=True)
class FittedObject:
    """The result of a fit.

    Attributes:
        model: the fitted model.
        views: the views that it was fitted to.
        renders_V3HW: the model's renders of these views, over white.
        psnr_V: PSNR of each view, in dB, without colour corrections.
        weight_V: weight of each view at the end of the fit.
        deviation_V: error of each view in robust deviations above the median.
        seconds: time of the fit, over all runs.
    """

    model: ObjectFit
    views: PosedViews
    renders_V3HW: Tensor
    psnr_V: Tensor
    weight_V: Tensor
    deviation_V: Tensor
    seconds: float

    @property
    def disagreeing(self) -> list[int]:
        """Indices of the views that disagree with the others."""
        return (self.deviation_V > DISAGREES).nonzero()[:, 0].tolist()

    def record(self) -> dict[str, Any]:
        """Return the scores as JSON values, for result.json."""
        views = [
            {
                "view": name,
                "psnr": round(float(psnr), 2),
                "weight": round(float(weight), 3),
                "deviation": round(float(deviation), 2),
                "disagrees": index in self.disagreeing,
            }
            for index, (name, psnr, weight, deviation) in enumerate(
                zip(self.views.names, self.psnr_V, self.weight_V, self.deviation_V, strict=True)
            )
        ]
        return {"psnr": round(float(self.psnr_V.mean()), 2), "seconds": round(self.seconds, 1), "views": views}


def fit_object(
    section: Section,
    views: PosedViews,
    *,
    seed: int,
    state: Path | None = None,
    save_every_s: float = 30.0,
    on_step: Callable[[int, int], None] | None = None,
) -> FittedObject:
    """Fit a model to views.

    Args:
        section: the method and its options, from the registry FITS.
        views: the normalised views, on the device of the fit.
        seed: seed for start values and the order of pixels.
        state: file with the state of an unfinished fit; if it exists and belongs to the same views and options, the
            fit continues from it. The caller deletes it when the results are written.
        save_every_s: seconds between two states.
        on_step: called after every step with the number of steps done and of all steps; an error that it raises ends
            the fit.

    Raises:
        ConfigError: the fit cannot start with its options.
        DataError: the hull is empty, or the fit has values that are not finite.
    """
    options = section.options
    check_start(section)
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    hull = carve(views, grid=options.hull_grid, tolerance=options.hull_tolerance)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = section.build(views=views, hull=hull).to(views.c2w_V44.device)
    loss_of = RobustLoss(options, num_views=len(views.names)).to(views.c2w_V44.device)
    optimizer = torch.optim.Adam(
        [*model.parameter_groups(), {"params": [loss_of.affine_V34], "lr": AFFINE_RATE}],
        eps=1e-15,
        fused=views.c2w_V44.is_cuda,
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    identity = identity_of(section, views, seed=seed)
    run = _Run(model=model, loss_of=loss_of, optimizer=optimizer, generator=generator, identity=identity)
    first, spent = run.read(state) if state and state.is_file() else (0, 0.0)
    saved = time.perf_counter()
    reweight_at = {int(fraction * options.num_steps) for fraction in options.reweight_at}
    with tqdm(total=options.num_steps, initial=first, unit="step", desc=section.type, mininterval=1.0) as bar:
        for step in range(first, options.num_steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * decay(step, options.num_steps, last=options.last_rate)
            error = _step(run, views, step=step)
            bar.update()
            if on_step:
                on_step(step + 1, options.num_steps)
            if step in reweight_at:
                _reweight(run, views, step=step)
            if step % TELL_EVERY == TELL_EVERY - 1:
                _check_finite(error, step)
                bar.set_postfix_str(f"{float(psnr_db(error)):.1f} dB", refresh=False)
            if state and time.perf_counter() - saved > save_every_s:
                run.write(state, step=step + 1, seconds=spent + time.perf_counter() - started)
                saved = time.perf_counter()
    model.eval()
    found = compare(model, views)
    return FittedObject(
        model=model,
        views=views,
        renders_V3HW=found.renders_V3HW,
        psnr_V=found.psnr_V,
        weight_V=loss_of.weight_V.clone(),
        deviation_V=outlyingness(found.error_V),
        seconds=spent + time.perf_counter() - started,
    )


def check_start(section: Section) -> None:
    """Check that a fit can start with its options, e.g. that its weights are there.

    Raises:
        ConfigError: it cannot; the message has the remedy.
    """
    if section.options.obstacle:
        raise ConfigError(f"method {section.type}: {section.options.obstacle}")


def ready_methods() -> list[str]:
    """List the methods that can start with their default options."""
    return [name for name in FITS.names() if FITS.section({"type": name}).options.obstacle is None]


def _reweight(run: _Run, views: PosedViews, *, step: int) -> None:
    """Estimate the weights of the views anew."""
    found = compare(run.model, views, loss_of=run.loss_of)
    _check_finite(found.error_V, step)
    run.loss_of.estimate_weights(found.corrected_error_V, found.error_V)
    run.model.trust(run.loss_of.weight_V)


def _check_finite(error: Tensor, step: int) -> None:
    if not bool(error.isfinite().all()):
        raise DataError(f"the fit has values that are not finite at step {step}; lower the learning rate")


def decay(step: int, num_steps: int, *, last: float) -> float:
    """Return the learning rate of a step as a fraction of the first one: an exponential decay."""
    return last ** (step / num_steps)


def identity_of(section: Section, views: PosedViews, *, seed: int, more: Any = None) -> str:
    """Return a digest of everything that determines a fit.

    Args:
        more: further plain values, such as options of files.
    """
    digest = hashlib.sha256(json.dumps([identifying(section.options), section.type, seed, more]).encode())
    for values in (views.colors_V3HW, views.masks_V1HW, views.c2w_V44, views.K_V33):
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _step(run: _Run, views: PosedViews, *, step: int) -> Tensor:
    """Make one step; return the mean squared error of the colours."""
    model, options, generator = run.model, run.model.config, run.generator
    pixels = model.draw(step, generator)
    prediction = model.predict(pixels, step, generator)
    true_R3, masks_R1 = looked_up(views, pixels)
    background_3 = torch.rand(3, generator=generator).to(true_R3)
    loss = run.loss_of(
        prediction.colors_R3,
        prediction.alphas_R1,
        true_R3,
        masks_R1,
        pixels.view_R,
        patch=pixels.patch,
        background_3=background_3,
        done=step / options.num_steps,
    )
    run.optimizer.zero_grad(set_to_none=True)
    (loss + prediction.penalty).backward()
    run.optimizer.step()
    model.after_step(step, run.optimizer, generator)
    return (prediction.colors_R3.detach() - true_R3 * masks_R1).square().mean()


def looked_up(views: PosedViews, pixels: PixelBatch) -> tuple[Tensor, Tensor]:
    """Return the colours (R, 3) and masks (R, 1) of pixels."""
    at = (pixels.view_R, slice(None), pixels.row_R, pixels.column_R)
    return views.colors_V3HW[at], views.masks_V1HW[at]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Renders of all views and their errors.

    Attributes:
        renders_V3HW: over white.
        error_V: mean absolute error of each view over the pixels in which the object is, or should be.
        corrected_error_V: the same after the colour corrections of the views.
        psnr_V: PSNR of each view over all pixels, in dB, without corrections.
    """

    renders_V3HW: Tensor
    error_V: Tensor
    corrected_error_V: Tensor
    psnr_V: Tensor


@torch.no_grad()
def compare(model: ObjectFit, views: PosedViews, *, loss_of: RobustLoss | None = None) -> Comparison:
    """Compare a model with its views, in their full size: a blurred view differs only in its finest details.

    Args:
        loss_of: has the colour corrections of the views; None: no corrections.
    """
    height, width = views.size
    chunks = list(zip(views.c2w_V44.split(CHUNK_VIEWS), views.K_V33.split(CHUNK_VIEWS), strict=True))
    drawn = [model.render(c2w_V44, K, size=(height, width), background=0.0) for c2w_V44, K in chunks]
    colors_V3HW = torch.cat([part.colors_BV3HW[0] for part in drawn])
    alphas_V1HW = torch.cat([part.alphas_BV1HW[0] for part in drawn])
    true_V3HW = views.over(1.0)
    object_V1HW = torch.maximum(views.masks_V1HW, alphas_V1HW) > OBJECT

    def error(shown_V3HW: Tensor) -> Tensor:
        difference_V3HW = (shown_V3HW - true_V3HW).abs() * object_V1HW
        return difference_V3HW.sum(dim=(1, 2, 3)) / (3 * object_V1HW.sum(dim=(1, 2, 3)).clamp_min(1))

    renders_V3HW = (colors_V3HW + 1 - alphas_V1HW).clamp(0, 1)
    error_V = corrected_error_V = error(renders_V3HW)
    if loss_of is not None:
        view_R = torch.arange(len(views), device=colors_V3HW.device).repeat_interleave(height * width)
        flat_R3, flat_R1 = (values.movedim(1, -1).flatten(0, 2) for values in (colors_V3HW, alphas_V1HW))
        corrected_R3 = loss_of.corrected(flat_R3, flat_R1, view_R)
        corrected_V3HW = corrected_R3.view(len(views), height, width, 3).movedim(-1, 1)
        corrected_error_V = error((corrected_V3HW + 1 - alphas_V1HW).clamp(0, 1))
    return Comparison(
        renders_V3HW=renders_V3HW,
        error_V=error_V,
        corrected_error_V=corrected_error_V,
        psnr_V=psnr_db((renders_V3HW - true_V3HW).square().mean(dim=(1, 2, 3))),
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What changes during a fit, and its file."""

    model: ObjectFit
    loss_of: RobustLoss
    optimizer: torch.optim.Adam
    generator: torch.Generator
    identity: str

    def write(self, path: Path, *, step: int, seconds: float) -> None:
        """Write the state, completely or not at all."""
        values = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        values |= {f"loss.{name}": value for name, value in self.loss_of.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            values |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        values["generator"] = self.generator.get_state()
        facts = {"identity": self.identity, "step": str(step), "seconds": f"{seconds:.3f}"}
        with atomic_path(path) as part:
            save_file({name: value.detach().cpu().contiguous().clone() for name, value in values.items()}, part, facts)

    def read(self, path: Path) -> tuple[int, float]:
        """Load the state and return its step and seconds; (0, 0.0) if it belongs to another fit or is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
            values = load_file(path)
        except (OSError, SafetensorError) as err:
            log.warning("%s cannot be read (%s), so the fit starts anew", path, err)
            return 0, 0.0
        if facts.get("identity") != self.identity:
            log.warning("%s belongs to other views or options, so the fit starts anew", path)
            return 0, 0.0
        device = next(iter(self.model.parameters())).device
        self.model.load_state_dict(_part(values, "model."))
        self.loss_of.load_state_dict(_part(values, "loss."))
        self.model.trust(self.loss_of.weight_V)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(values, "adam.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value if key == "step" else value.to(device)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(values["generator"])
        log.info("the fit continues at step %s of %s", facts["step"], path)
        return int(facts["step"]), float(facts["seconds"])


def _part(values: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
