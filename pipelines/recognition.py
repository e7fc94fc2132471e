"""How often the kind and colour that a prompt names are recognised in views, by a classifier nothing was trained with.

Letters: N objects, V views, C channels, H W pixels, K names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.classifier import ViewClassifier
from utils.errors import DataError

ATTRIBUTES = ("kind", "color")


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """Which name won for each object, as indices: N of kinds and N of colours."""

    kind: Tensor
    color: Tensor


@torch.no_grad()
def recognise(classifier: ViewClassifier, orbits: Iterable[Tensor]) -> Recognition:
    """Name each orbit by its mean logits over the views.

    Args:
        orbits: views_VCHW in [0, 1], one for each object, on any device.
    """
    device = next(classifier.parameters()).device
    logits = [classifier(views_VCHW.to(device)) for views_VCHW in orbits]
    return Recognition(
        kind=torch.stack([one.kind.mean(dim=0).argmax() for one in logits]).cpu(),
        color=torch.stack([one.color.mean(dim=0).argmax() for one in logits]).cpu(),
    )


def labels_of(classifier: ViewClassifier, records: Sequence[dict[str, Any]]) -> Recognition:
    """What is true, in the classifier's numbers.

    Raises:
        DataError: an object is of a kind or colour that the classifier does not know.
    """
    known = {"kind": classifier.kinds, "color": classifier.colors}
    for record in records:
        for key, names in known.items():
            if record.get(key) not in names:
                raise DataError(f"the classifier knows no {key} {record.get(key)!r}; train it on a set that has it")
    return Recognition(
        **{key: torch.tensor([names.index(record[key]) for record in records]) for key, names in known.items()}
    )


def hit_rate(found_N: Tensor, true_N: Tensor) -> float:
    """Share of objects named right."""
    return (found_N == true_N).float().mean().item()


def shuffled_rate(found_N: Tensor, true_N: Tensor) -> float:
    """Share named right when each object is held against the prompt of another, over all pairs."""
    right_NN = (found_N[:, None] == true_N[None]).float()
    right_NN.fill_diagonal_(0)
    return (right_NN.sum() / max(1, len(found_N) * (len(found_N) - 1))).item()


def recognition_table(
    *, generated: Recognition, rendered: Recognition, true: Recognition
) -> dict[str, dict[str, float]]:
    """For kind, colour and both: rate in generated views, in true renders (ceiling), against shuffled prompts (floor).

    `of_ceiling` is the rate in generated views as a share of the ceiling.
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
    """Kind, colour, or the two as one number."""
    if name != "both":
        return getattr(value, name)
    return value.kind * 1000 + value.color
