"""Captions from names: "bed_double_A" becomes "a double bed". Rules on words, no description of what is seen."""

from __future__ import annotations

import re

# Words that files put after the noun, and English puts before it.
ADJECTIVES = frozenset(
    "small large big medium little tiny huge long short tall wide narrow thin thick low high old new open closed empty "
    "full broken ruined damaged dead dry wild young baby square round rounded curved corner flat half double single "
    "triple rectangle decorated decorative cushion mobile standing hanging fallen potted buried propped wooden wood "
    "metal stone iron gold golden silver glass brick plastic granite limestone sandstone redstone marble red green "
    "blue yellow orange purple pink black white grey gray brown beige tan chestnut dark light snowy autumn winter "
    "african asian indian european american arabian persian bactrian mediterranean tropical temperate arctic polar "
    "bare summer northern southern doric ionic corinthian defensive military simple modern fancy burnt grilled cooked "
    "uncooked chopped sliced male female adult great filled dirty melted destroyed floating rough celtic iberian "
    "egyptian italic greek roman arab".split()
)
CAPITALS = frozenset(
    "african american anubis arab arabian asian aztec bactrian celtic christmas cretan doric easter egyptian european "
    "ferris greek hungarian iberian indian ionic italic joshua mars mediterranean norse persian roman senegal "
    "viking".split()
)
PROPER = frozenset(
    "American African Apple Asian British Chevrolet Christmas Concept Egyptian Ford French Greek Indian Japanese "
    "Oriental Osaka Peugeot PlayStation Renault Roman Rubik's Ryokan Seat Siamese VW Winchester Yamaha".split()
)
# Words that mean something else in English, or are misspelt, in file names and titles.
CORRECTED = {
    "male": "man", "female": "woman", "hashtray": "ashtray", "gaz": "gas", "mocassin": "moccasin", "teck": "teak",
    "thea": "tea", "cups": "cup", "duplo": "block", "marbles": "pile of marbles", "musterd": "mustard", "tv": "TV",
    "lollypop": "lollipop", "rubiks": "Rubik's", "windex": "cleaner", "suv": "SUV", "trashcan": "trash can",
    "coatrack": "coat rack", "coffeemaker": "coffee maker", "openframe": "open",
    "polaris": "utility vehicle", "tableware": "plate rack", "hatchback": "hatchback car", "ac": "air conditioner",
    "airconditioner": "air conditioner", "horologe": "clock", "nursesstation": "reception desk",
    "penbox": "pen box", "flipper": "pinball machine", "puff": "pouf", "bended": "bent", "trunck": "trunk",
}  # fmt: skip
# Abbreviations in file names, and words there that say nothing about the object.
REPLACED = CORRECTED | {
    "aut": "autumn", "medit": "mediterranean", "euro": "european", "sm": "small", "med": "medium",
    "generic": "", "decal": "", "mat": "", "mesh": "", "lod": "", "var": "", "variant": "", "decor": "",
}  # fmt: skip
MASS = frozenset(  # and irregular plurals
    "amphorae bamboo bread butter cheese clothes cutlery grass hay ham ice milk rice soap sugar water wheat "
    "wood".split()
)
SINGULAR = frozenset("barracks bus gas lens canvas focus christmas swiss atlas tennis chess mattress".split())
# Letters whose names begin with a vowel: an SUV, an MP3 player, a TV.
SPOKEN_VOWELS = "AEFHILMNORSX"
LINKS = re.compile(r" (?:with|of|on|in|under|for|from|and|or|at|without)\b|,")


def words_of(name: str) -> list[str]:
    """Split the name of a file into lower-case words; numbers and single letters, which count variants, are dropped."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    found = [re.sub(r"\d+[a-z]?$", "", word.lower()) for word in re.split(r"[^A-Za-z0-9']+", text)]
    return [REPLACED.get(word, word) for word in found if len(word) > 1 and REPLACED.get(word, word)]


def caption_of_file(name: str, *, drop: frozenset[str] = frozenset(), noun: str = "", noun_first: bool = False) -> str:
    """Make a noun phrase of the name of a file.

    Args:
        drop: words that say something about the file, not about the object; they are kept if there are no others.
        noun: what the object is if the name does not say it, such as "tree" for "oak".
        noun_first: the first word is the noun and all others describe it, as in "whale_fin", unless it is an adjective.

    Returns:
        The phrase with its article; "" if no word remains.
    """
    found = list(dict.fromkeys(words_of(name)))
    words = [word for word in found if word not in drop] or found
    before: list[str] = []
    while len(words) > 1 and words[-1] in ADJECTIVES:
        before.append(words.pop())
    if noun_first and words and words[0] not in ADJECTIVES:
        words = words[1:] + words[:1]
    words = before + words
    if noun and words and noun not in words and not words[-1].endswith(noun):
        words.append(noun)
    return with_article(" ".join(word.capitalize() if word in CAPITALS else word for word in words))


def caption_of_title(title: str) -> str:
    """Make a noun phrase of an entry of a catalogue, such as "Double window 3 panes"; "" if no word remains."""
    text = re.split(r"\s+-\s+|\(|\s+\d[\w:.€°]*(?:\s|$)", title.strip())[0].strip()
    words = text.split()
    if words and words[0] not in PROPER and not any(letter.isupper() for letter in words[0][1:]):
        words[0] = words[0].lower()
    return with_article(" ".join(CORRECTED.get(word, word) for word in words))


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase, unless its noun is a plural or cannot be counted."""
    if not phrase:
        return ""
    noun = LINKS.split(phrase)[0].split()[-1].lower()
    plural = noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and noun not in SINGULAR
    if plural or noun in MASS:
        return phrase
    first = phrase.split()[0]
    if len(first) > 1 and first[:2].isupper():
        vowel = first[0] in SPOKEN_VOWELS
    else:
        vowel = first[0].lower() in "aeiou" and not re.match(r"(uni|eu|one|use|ute|uti|uri)", first.lower())
    return f"{'an' if vowel else 'a'} {phrase}"
