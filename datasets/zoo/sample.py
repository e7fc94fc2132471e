"""Draws one object of the zoo from a seed: kind, colours, part, shape and caption."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import datasets.zoo.animals
import datasets.zoo.buildings
import datasets.zoo.furniture
import datasets.zoo.kitchen
import datasets.zoo.plants
import datasets.zoo.tools
import datasets.zoo.toys
import datasets.zoo.vehicles  # noqa: F401  (importing a group declares its kinds)
from datasets.meshes.scene import RenderMesh
from datasets.zoo.kinds import COLORS, KINDS, Kind, Painter, jittered
from utils.errors import ConfigError, DataError

SPLITS = ("train", "held_out")
# one combination in ten is held out from training
HELD_OUT_IN = 10
# The first form is that of the test prompts and is used most often.
FORMS = (
    "{a_color} {kind} with {a_part_color} {part}",
    "{color} {kind}, {part_color} {part}",
    "{a_kind} in {color} with {a_part_color} {part}",
    "{a_kind}, {color}, its {part} {part_color}",
)
FORM_WEIGHTS = (0.7, 0.1, 0.1, 0.1)


@dataclass(frozen=True, kw_only=True)
class ZooObject:
    """An object with its caption and attributes. `mesh` is normalised into the unit cube and looks along +x."""

    mesh: RenderMesh | None
    caption: str
    kind: str
    color: str
    part: str
    part_color: str
    seed: int
    split: str

    def attributes(self) -> dict[str, str | int]:
        """The attributes that evaluation needs, as plain values."""
        return {
            "kind": self.kind,
            "color": self.color,
            "part": self.part,
            "part_color": self.part_color,
            "seed": self.seed,
            "split": self.split,
        }


def is_held_out(kind: str, color: str, part: str, part_color: str) -> bool:
    """Whether a combination is kept for evaluation and never used in training.

    This is a fixed tenth of all combinations, chosen by a hash of their names, so it does not change with new kinds.
    """
    digest = hashlib.sha256(f"{kind}|{color}|{part}|{part_color}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_IN == 0


def sample_object(
    seed: int, split: str = "train", *, kinds: tuple[str, ...] | None = None, with_mesh: bool = True
) -> ZooObject:
    """Draw an object; the same arguments always give the same object.

    Args:
        seed: not negative.
        split: "train" or "held_out"; the two share no combination of kind, colour, part and part colour.
        kinds: names to choose from; None: all.
        with_mesh: also build the mesh; false: draw only the attributes, which is fast.

    Raises:
        ConfigError: the split or a kind is unknown.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split}")
    names = sorted(KINDS) if kinds is None else list(kinds)
    for name in names:
        if name not in KINDS:
            raise ConfigError(f"kind {name} is unknown; valid: {', '.join(sorted(KINDS))}")
    rng = np.random.default_rng([SPLITS.index(split), seed])
    kind = KINDS[names[rng.integers(len(names))]]
    while True:
        color, part_color = rng.choice(list(COLORS), size=2, replace=False).tolist()
        part = str(rng.choice(kind.parts))
        if is_held_out(kind.name, color, part, part_color) == (split == "held_out"):
            break
    caption = write_caption(kind.name, color, part, part_color, form=int(rng.choice(len(FORMS), p=FORM_WEIGHTS)))
    mesh = _build(kind, color, part, part_color, rng) if with_mesh else None
    return ZooObject(
        mesh=mesh,
        caption=caption,
        kind=kind.name,
        color=color,
        part=part,
        part_color=part_color,
        seed=seed,
        split=split,
    )


def redraw(attributes: Mapping[str, Any]) -> ZooObject:
    """Draw the object of these attributes again, with its mesh in the world of its views' cameras.

    Args:
        attributes: from `ZooObject.attributes`.

    Raises:
        DataError: the seed gives another object.
    """
    drawn = sample_object(int(attributes["seed"]), str(attributes["split"]))
    if drawn.attributes() != dict(attributes):
        raise DataError(
            f"the zoo's object with seed {attributes['seed']} is no longer the {attributes.get('kind')} that was "
            "rendered: the folder was made with --kinds or by another version; make it again without --kinds"
        )
    return drawn


def _build(kind: Kind, color: str, part: str, part_color: str, rng: np.random.Generator) -> RenderMesh:
    colors = {name: jittered(name, rng) for name in COLORS}
    colors |= {"body": jittered(color, rng), "part": jittered(part_color, rng)}
    painter = Painter(rng, part=part, colors=colors)
    kind.draw(painter)
    return painter.mesh()


def write_caption(kind: str, color: str, part: str, part_color: str, *, form: int = 0) -> str:
    """The caption of an object, e.g. `a red mug with a white handle`."""
    plural = part.endswith("s")
    return FORMS[form].format(
        kind=kind,
        color=color,
        part=part,
        part_color=part_color,
        a_kind=with_article(kind),
        a_color=with_article(color),
        a_part_color=part_color if plural else with_article(part_color),
    )


def with_article(noun: str) -> str:
    """`a mug`, `an orange mug`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
