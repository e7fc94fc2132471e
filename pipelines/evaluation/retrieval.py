"""Measure whether an image-text encoder finds the prompt of a sample again, among the captions of other objects.

The encoder must not be the one that the generator was conditioned on: a generator may please its own encoder with
views that show something else.

Letters: N samples, M captions, V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.evaluation.held_out import open_held_out
from pipelines.evaluation.recognition import held_out_objects
from pipelines.evaluation.samples import read_views, sample_folders, sample_prompts, samples_by_prompt, views_folders
from pipelines.sampling.finished import facts_of
from utils.devices import pick_device
from utils.errors import ConfigError, DataError
from utils.files import writable_folder, write_json
from utils.prompts import with_suffix
from utils.settings.run import RunConfig

CEILING, FLOOR = "true renders (ceiling)", "chance (floor)"
NUM_FIRST = 5  # of the captions that are most similar


def evaluate_retrieval(
    cfg: RunConfig,
    *,
    held_out: Path,
    encoder: str,
    runs: Path | None,
    num_objects: int,
    num_captions: int,
    out: Path,
) -> dict[str, Any]:
    """Sample if necessary, measure, and write retrieval.json; returns its content.

    Args:
        encoder: weights of the network of the section embedder, from another training than `embedder.pretrained`.
        runs: folder of existing samples; None: sample now.
        num_objects: largest number of prompts.
        num_captions: largest number of different captions, among them the prompts.

    Raises:
        ConfigError, DataError: a setting or a folder does not fit.
    """
    if cfg.takes_images and not cfg.takes_prompts:
        raise ConfigError(
            f"--measure retrieval needs prompts, but UNet.type={cfg.UNet.type} is an image model; set "
            "takes_prompts=true if its weights were trained for prompts"
        )
    network = load_encoder(cfg, encoder)
    out = writable_folder(out, option="--out")
    dataset, attributes = open_held_out(held_out, cfg)
    candidates = held_out_objects(dataset, attributes or [{}] * len(dataset), limit=num_captions)
    if len(candidates) < 2:
        raise DataError(f"--held-out {held_out}: retrieval needs at least two different captions")
    wanted = candidates[:num_objects]
    folders = sample_prompts(cfg, [one.prompt for one in wanted], out=out) if runs is None else sample_folders(runs)
    samples = samples_by_prompt(folders, suffix=cfg.prompt_suffix)
    places = [place for place, one in enumerate(candidates) if one.prompt in samples]
    if not places:
        raise DataError(f"--runs {runs}: no sample has a prompt of {held_out}; leave --runs out to sample them")
    text_MC = embed_captions(network, [with_suffix(one.prompt, cfg.prompt_suffix) for one in candidates])
    chosen = [candidates[place] for place in places]
    names = sorted(set.intersection(*[set(views_folders(samples[one.prompt])) for one in chosen]))
    found = {}
    for name in names:
        views = (read_views(samples[one.prompt] / name) for one in chosen)
        found["generated" if name == "views" else f"generated ({name})"] = ranks(network, views, text_MC, places)
    if "generated" not in found:
        raise DataError(f"--runs {runs}: a sample has no folder views; sample again")
    found[CEILING] = ranks(network, (dataset[one.number]["views_VCHW"] for one in chosen), text_MC, places)
    rows = {name: rates(rank_N) for name, rank_N in found.items()}
    num = len(candidates)
    rows[FLOOR] = {"first": 1 / num, "among_first": min(1.0, NUM_FIRST / num), "median_rank": (num + 1) / 2}
    result = {
        "num_prompts": len(chosen),
        "num_captions": num,
        "encoder": encoder,
        "rows": rows,
        "samples": [
            {"prompt": one.prompt, "rank": rank} for one, rank in zip(chosen, found["generated"].tolist(), strict=True)
        ],
    }
    write_json(out / "retrieval.json", result)
    return result


def load_encoder(cfg: RunConfig, path: str) -> nn.Module:
    """Build the network of the section embedder with other weights, in float32 on the device of the run.

    Raises:
        ConfigError, DataError: the file is missing, does not fit, or has the weights of `embedder.pretrained`.
    """
    if not path:
        raise ConfigError(
            "--measure retrieval needs --encoder FILE: weights from configs/mini/embedder.yaml with another seed"
        )
    if not cfg.embedder.options.can_be_trained:
        raise ConfigError(
            f"--measure retrieval needs an encoder of texts and images that can be trained twice, but embedder.type="
            f"{cfg.embedder.type} is not one; use another --measure for this model"
        )
    own = cfg.embedder.pretrained
    if not Path(path).is_file():
        raise DataError(f"--encoder {path}: no such file; train it with configs/mini/embedder.yaml and another seed")
    if own and Path(own).is_file() and facts_of(Path(own))["digest"] == facts_of(Path(path))["digest"]:
        raise ConfigError(
            f"--encoder {path}: the generator is conditioned on these weights (embedder.pretrained={own}); use weights "
            "from another training, for example with another seed"
        )
    return cfg.embedder.changed(pretrained=path).build().to(pick_device(cfg.device)).eval()


@torch.no_grad()
def embed_captions(network: nn.Module, captions: list[str]) -> Tensor:
    """Embed captions: (M, C) of unit length."""
    return functional.normalize(network.embed_tokens(network.tokenize(captions))[0].float(), dim=-1)


@torch.no_grad()
def ranks(network: nn.Module, orbits: Iterable[Tensor], text_MC: Tensor, places: list[int]) -> Tensor:
    """Rank the right caption of each orbit by similarity: (N,) from 1; of equal similarities the worse rank counts.

    Args:
        orbits: views_VCHW in [0, 1] of each object; the embedding of an orbit is the mean of those of its views.
        places: index of the right caption of each object.
    """
    found = []
    for views_VCHW, place in zip(orbits, places, strict=True):
        image_VC = functional.normalize(network.encode_image(views_VCHW.to(text_MC.device)).float(), dim=-1)
        similarity_M = text_MC @ image_VC.mean(dim=0)
        found.append((similarity_M >= similarity_M[place]).sum())
    return torch.stack(found).cpu()


def rates(rank_N: Tensor) -> dict[str, float]:
    """Compute how often the right caption is the first and among the first, and its median rank."""
    return {
        "first": (rank_N == 1).float().mean().item(),
        "among_first": (rank_N <= NUM_FIRST).float().mean().item(),
        "median_rank": rank_N.float().quantile(0.5).item(),
    }


def retrieval_text(result: dict[str, Any]) -> str:
    """Format the figures as a table."""
    rows = result["rows"]
    width = max(map(len, rows)) + 2
    lines = [
        f"{result['num_prompts']} held-out prompts among {result['num_captions']} captions",
        f"{'':{width}}{'first':>8}{f'first {NUM_FIRST}':>10}{'median rank':>13}{'of ceiling':>12}",
    ]
    for name, row in rows.items():
        share = row["first"] / rows[CEILING]["first"] if rows[CEILING]["first"] else float("nan")
        lines.append(
            f"{name:{width}}{row['first']:>8.1%}{row['among_first']:>10.1%}{row['median_rank']:>13.1f}{share:>12.1%}"
        )
    return "\n".join(lines)
