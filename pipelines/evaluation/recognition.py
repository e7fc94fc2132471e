"""Measure how often a classifier recognises the kind and colour of the prompt in views.

The classifier is not used in the training of any generator.

Letters: N objects, V views, C channels, H W pixels, K names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.base import OrbitData
from models.classifier import ViewClassifier
from pipelines.evaluation.held_out import open_held_out
from pipelines.evaluation.samples import read_views, sample_folders, sample_prompts, samples_by_prompt, views_folders
from utils.devices import pick_device
from utils.errors import ConfigError, DataError
from utils.files import writable_folder, write_json
from utils.registry import MODEL
from utils.settings.run import RunConfig

ATTRIBUTES = ("kind", "color")


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """Recognised kind and colour of each object: N indices of kinds and N indices of colours."""

    kind: Tensor
    color: Tensor


@torch.no_grad()
def recognise(classifier: ViewClassifier, orbits: Iterable[Tensor]) -> Recognition:
    """Classify each orbit by its mean logits over the views.

    Args:
        orbits: views_VCHW in [0, 1] of each object, on any device.
    """
    device = next(classifier.parameters()).device
    logits = [classifier(views_VCHW.to(device)) for views_VCHW in orbits]
    return Recognition(
        kind=torch.stack([one.kind.mean(dim=0).argmax() for one in logits]).cpu(),
        color=torch.stack([one.color.mean(dim=0).argmax() for one in logits]).cpu(),
    )


def labels_of(classifier: ViewClassifier, records: Sequence[dict[str, Any]]) -> Recognition:
    """Return the true kinds and colours as the classifier's indices.

    Raises:
        DataError: an object has a kind or colour that the classifier does not know.
    """
    known = {"kind": classifier.kinds, "color": classifier.colors}
    for record in records:
        for key, names in known.items():
            if record.get(key) not in names:
                raise DataError(f"the classifier does not know {key} {record.get(key)!r}; train it on data with it")
    return Recognition(
        **{key: torch.tensor([names.index(record[key]) for record in records]) for key, names in known.items()}
    )


def hit_rate(found_N: Tensor, true_N: Tensor) -> float:
    """Compute the fraction of correctly recognised objects."""
    return (found_N == true_N).float().mean().item()


def shuffled_rate(found_N: Tensor, true_N: Tensor) -> float:
    """Compute the fraction of correct objects if each is compared with the prompts of the others, over all pairs."""
    right_NN = (found_N[:, None] == true_N[None]).float()
    right_NN.fill_diagonal_(0)
    return (right_NN.sum() / max(1, len(found_N) * (len(found_N) - 1))).item()


def recognition_table(
    *, generated: Recognition, rendered: Recognition, true: Recognition
) -> dict[str, dict[str, float]]:
    """Compute rates for kind, colour and both: in generated views, true renders (ceiling), shuffled prompts (floor).

    `of_ceiling` is the rate in generated views divided by the ceiling.
    """
    table = {}
    for name in (*ATTRIBUTES, "both"):
        found, seen, labels = (_column(value, name) for value in (generated, rendered, true))
        rate, ceiling = hit_rate(found, labels), hit_rate(seen, labels)
        table[name] = {
            "generated": rate,
            "ceiling": ceiling,
            "floor": shuffled_rate(found, labels),
            "of_ceiling": rate / ceiling if ceiling else float("nan"),
        }
    return table


def _column(value: Recognition, name: str) -> Tensor:
    """Return kind, colour, or both combined into one number."""
    if name != "both":
        return getattr(value, name)
    return value.kind * 1000 + value.color


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """An object that is not in the training data.

    Attributes:
        prompt: the caption, without the suffix.
        attributes: known attributes, at least kind and color.
        number: index in the data set.
    """

    prompt: str
    attributes: dict[str, Any]
    number: int


def held_out_objects(dataset: OrbitData, attributes: list[dict[str, Any]], *, limit: int) -> list[HeldOut]:
    """Return the first `limit` objects with different captions."""
    objects: dict[str, HeldOut] = {}
    for number, record in enumerate(attributes):
        prompt = dataset.prompt(number)
        objects.setdefault(prompt, HeldOut(prompt=prompt, attributes=record, number=number))
    return list(objects.values())[:limit]


def evaluate_recognition(
    cfg: RunConfig, *, held_out: Path, runs: Path | None, classifier: str, num_objects: int, out: Path
) -> dict[str, Any]:
    """Sample if necessary, measure, and write recognition.json; returns its content.

    Args:
        runs: folder of existing samples; None: sample now.

    Raises:
        ConfigError, DataError: a setting or a folder does not fit.
    """
    if cfg.takes_images and not cfg.takes_prompts:
        raise ConfigError(
            f"--measure recognition needs prompts, but UNet.type={cfg.UNet.type} is an image model; set "
            "takes_prompts=true if its weights were trained for prompts"
        )
    out = writable_folder(out, option="--out")
    dataset, attributes = open_held_out(held_out, cfg)
    network = MODEL.build(
        {"type": "ViewClassifier", **cfg.classifier.given, "pretrained": classifier}, where="classifier"
    )
    network = network.to(pick_device(cfg.device)).eval()
    objects = held_out_objects(dataset, attributes, limit=num_objects)
    if runs is None:
        folders = sample_prompts(cfg, [one.prompt for one in objects], out=out)
    else:
        folders = sample_folders(runs)
    samples = samples_by_prompt(folders, suffix=cfg.prompt_suffix)
    objects = [one for one in objects if one.prompt in samples]
    if not objects:
        raise DataError(f"--runs {runs}: no sample has a prompt of {held_out}; leave --runs out to sample them")
    true = labels_of(network, [one.attributes for one in objects])
    rendered = recognise(network, (dataset[one.number]["views_VCHW"] for one in objects))
    found = {}
    for name in sorted(set.intersection(*[set(views_folders(samples[one.prompt])) for one in objects])):
        found[name] = recognise(network, (read_views(samples[one.prompt] / name) for one in objects))
    if "views" not in found:
        raise DataError(f"--runs {runs}: a sample has no folder views; sample again")
    generated = found["views"]
    rates = {name: recognition_table(generated=value, rendered=rendered, true=true) for name, value in found.items()}
    result = {
        "num_prompts": len(objects),
        "rates": rates.pop("views"),
        "rates_of_other_results": rates,
        "samples": [
            {"prompt": one.prompt, "kind": network.kinds[kind], "color": network.colors[color]}
            for one, kind, color in zip(objects, generated.kind.tolist(), generated.color.tolist(), strict=True)
        ],
    }
    write_json(out / "recognition.json", result)
    return result


def recognition_text(result: dict[str, Any]) -> str:
    """Format the figures as a table."""
    lines = [
        f"{result['num_prompts']} held-out prompts",
        f"{'':8}{'generated':>11}{'ceiling':>9}{'floor':>8}{'of ceiling':>12}",
    ]
    for views, table in {"": result["rates"], **result["rates_of_other_results"]}.items():
        lines += [f"{views}:"] if views else []
        for name, rates in table.items():
            cells = f"{rates['generated']:>11.1%}{rates['ceiling']:>9.1%}{rates['floor']:>8.1%}"
            lines.append(f"{name:8}{cells}{rates['of_ceiling']:>12.1%}")
    return "\n".join(lines)
