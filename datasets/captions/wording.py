"""Captions of an object in several wordings: its noun, its colours, the colour of a part, its material."""

from __future__ import annotations

import re

from datasets.captions.color_names import NAMES
from datasets.captions.looks import Look
from datasets.meshes.collecting.captions import LINKS, with_article

# Words that may say the colour of the whole object before its noun. They are replaced by what is seen.
COLOR = "|".join(
    (*NAMES, "gray", "turquoise", "violet", "magenta", "tan", "cream", "ivory", "silver", "golden", "navy", "olive",
     "teal", "maroon", "crimson", "scarlet", "lilac", "rose", "colourful", "colorful")
)  # fmt: skip
SAID = re.compile(rf"^(?:(?:dark|light|pale|bright) )?(?:{COLOR})(?:(?:, | and |-)(?:{COLOR}))*(?: and)? (?=\w)")
# With these nouns the colour is part of the name.
KEPT = re.compile(
    r"^(?:(?:red|white) wine|orange (?:juice|tree)|(?:red|white|green) (?:cabbage|pepper|bean|cross)|silver birch|"
    r"(?:gold|silver) (?:bar|coin|medal)|gold fish|brown bear|black (?:hole|board)|white board)s?\b"
)
# The nouns of the upper and the lower end, by the last word of an object's noun.
TOPS = {
    "lid": "teapot|pot|jar|box|bin|barrel|basket|kettle|pan|chest|case|trash|dustbin",
    "cap": "bottle|flask|mushroom|pen|tube|lighter",
    "roof": "house|hut|tower|church|temple|building|barn|castle|shop|store|cottage|tent|stall|mill|shed|kiosk",
    "leaves": "tree|palm|plant|bush|flower|oak|pine|birch|fir",
    "shade": "lamp|light|lantern",
    "seat": "stool",
    "hair": "man|woman|boy|girl|character|person",
}
BOTTOMS = {
    "legs": "chair|table|desk|bench|sofa|stool|armchair|bed|couch|nightstand",
    "wheels": "car|truck|bus|van|cart|wagon|taxi|tractor|ambulance|jeep|bicycle|motorcycle|trolley",
    "trunk": "tree|palm|oak|pine|birch|fir",
    "pot": "plant|cactus|flower",
    "stand": "lamp|monitor|screen|tv|television|fan",
    "shoes": "man|woman|boy|girl|character|person",
    "handle": "axe|sword|hammer|knife|shovel|dagger|brush|pickaxe",
}
COLOURFUL = "colourful"
PLURAL = ("leaves", "legs", "wheels", "shoes", "hair")


def bare_noun(caption: str) -> str:
    """Take the article and the colours before the noun off a caption: `a red fire hydrant` becomes `fire hydrant`."""
    phrase = re.sub(r"^(?:an?|the) ", "", caption.strip())
    return phrase if KEPT.match(phrase) else SAID.sub("", phrase)


def captions_of(caption: str, look: Look | None, *, material: str = "", most: int = 6) -> list[str]:
    """Write captions, the most complete one first.

    Args:
        caption: what the object is, such as `a teapot`.
        look: its colours; None if they are unknown.
        material: an adjective; "" if it is unknown.
        most: return at most this number of captions.
    """
    noun = bare_noun(caption) or "object"
    if material in noun.split() or (material == "wooden" and "wood" in noun):
        material = ""
    made = f"{material} {noun}".strip()
    if look is None:
        return list(dict.fromkeys([with_article(made), with_article(noun)]))[:most]
    if KEPT.match(noun) and SAID.match(noun):  # such as red wine: another colour before it would confuse
        return list(dict.fromkeys([with_article(made), with_article(noun)]))[:most]
    color, part = _listed(look.colors), _part_of(noun, look)
    shade = f"{look.shade} {color}".strip() if len(look.colors) == 1 else color
    if LINKS.search(noun):
        full, beside = with_article(f"{color} {made}"), [f"{with_article(made)}, {color}"]
    else:
        tail = f" with {part}" if part else ""
        full = f"{with_article(f'{color} {made}')}{tail}"
        beside = [
            f"{with_article(made)} in {'many colours' if color == COLOURFUL else color}{tail}",
            f"{with_article(noun)}, {color}{tail}",
        ]
    found = [
        full,
        with_article(f"{color} {noun}"),
        with_article(f"{shade} {noun}"),
        *beside,
        with_article(made),
        with_article(noun),
    ]
    return list(dict.fromkeys(found))[:most]


def _listed(colors: tuple[str, ...]) -> str:
    if len(colors) > 3:
        return COLOURFUL
    return colors[0] if len(colors) == 1 else f"{', '.join(colors[:-1])} and {colors[-1]}"


def _part_of(noun: str, look: Look) -> str:
    """The part with another colour, such as `a blue lid`; "" for none."""
    last = LINKS.split(noun)[0].split()[-1].lower()

    def named(color: str, nouns: dict[str, str], other: str) -> str:
        part = next((part for part, of in nouns.items() if re.search(rf"(?:{of})s?$", last)), other)
        return f"{color} {part}" if part in PLURAL else with_article(f"{color} {part}")

    parts = []
    if look.top:
        parts.append(named(look.top, TOPS, "top"))
    if look.bottom:
        parts.append(named(look.bottom, BOTTOMS, "base"))
    if parts:
        return " and ".join(parts)
    return f"{look.detail} details" if look.detail else ""
