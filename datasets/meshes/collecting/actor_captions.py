"""Captions of 0 A.D.'s actors from their paths: structures/romans/barracks.xml becomes "a Roman barracks"."""

from __future__ import annotations

import re

from datasets.meshes.collecting.captions import caption_of_file, with_article, words_of

PEOPLES = {
    "athenians": "Athenian", "britons": "British", "carthaginians": "Carthaginian", "celts": "Celtic",
    "gauls": "Gallic", "hellenes": "Greek", "iberians": "Iberian", "kushites": "Kushite", "macedonians": "Macedonian",
    "mauryas": "Mauryan", "mauryans": "Mauryan", "persians": "Persian", "ptolemies": "Ptolemaic", "romans": "Roman",
    "seleucids": "Seleucid", "spartans": "Spartan", "han": "Chinese", "athen": "Athenian", "cart": "Carthaginian",
    "hele": "Greek", "celt": "Celtic", "pers": "Persian", "rome": "Roman", "maur": "Mauryan", "kush": "Kushite",
    "ptol": "Ptolemaic", "sele": "Seleucid", "spart": "Spartan", "brit": "British", "gaul": "Gallic", "iber": "Iberian",
}  # fmt: skip
ROCK_WORDS = frozenset("gray grey red white small large round square granite marble sandstone boulder".split())
CLEARER = {"special": "special building", "range": "archery range"}
# Words of a name in the order of English.
REORDERED = {
    "stable elephant": "elephant stable", "tower artillery": "artillery tower", "tower bolt": "bolt tower",
    "statue isis": "statue of Isis", "statue aphrodite": "statue of Aphrodite", "statue zeus": "statue of Zeus",
    "tree fir": "fir tree", "tree tropic": "tropical tree", "tropic bush biome": "tropical bush",
    "tropic forest biome tree": "tropical tree", "camp blemmye": "Blemmye camp", "camp nuba": "Nuba camp",
    "cattle sanga": "sanga cow", "fishship": "fishing ship", "merchantman": "merchant ship",
    "barrel sword heap": "barrel with swords", "sword heap": "heap of swords", "treasure Persian food": "food treasure",
    "metal Persian treasure": "metal treasure", "blocks granite pile": "pile of granite blocks",
    "blocks limestone pile": "pile of limestone blocks", "blocks redstone pile": "pile of redstone blocks",
    "blocks sandstone pile": "pile of sandstone blocks", "row cypress": "row of cypresses",
    "eyecandy fern tree": "fern", "amphitheater pompeii": "amphitheater", "capitoline": "capitoline temple",
    "long palisade bamboo": "long bamboo palisade", "medium palisade bamboo": "medium bamboo palisade",
    "short palisade bamboo": "short bamboo palisade", "short curved palisade bamboo": "curved bamboo palisade",
    "palisade bamboo": "bamboo palisade", "tables weapons shields": "shields", "tables weapons": "weapons",
    "statues": "statue", "dead bull head": "head of a dead bull", "wheel laying": "wheel",
    "shipwreck sail boat cut": "wreck of a sailing boat", "shipwreck sail boat": "wreck of a sailing boat",
    "shipwreck hull": "hull of a shipwreck", "shipwreck ram bow": "bow of a shipwreck",
    "shipwreck ram side": "side of a shipwreck", "shipwreck sail": "shipwreck with a sail",
    "wood small pile": "small pile of wood", "wood pile": "pile of wood", "sandstone stone pile": "pile of sandstone",
    "red stone pile": "pile of red stones", "stone pile": "pile of stones",
    "storehouse tools heap": "heap of tools", "woodcord": "cord of wood",
    "shoal tuna": "shoal of tuna", "treasure weapons": "treasure of weapons",
}  # fmt: skip
TREES = frozenset("baobab bamboo cedar cypress fir juniper maple oak palm pine poplar willow".split())


def caption_of_actor(actor: str, *, noun: str = "") -> str:
    """Make a noun phrase of an actor's path: structures/romans/barracks.xml is "a Roman barracks"."""
    *folders, file = actor.removesuffix(".xml").split("/")
    words = words_of(file)
    people = next((PEOPLES[word] for word in (*folders, *words) if word in PEOPLES and word != "cart"), "")
    words = [word for word in words if word not in PEOPLES or word == "cart"]
    if folders[0] == "geology":
        words = [word for word in words if word in ROCK_WORDS]
        noun = "rock"
    elif folders[0] == "structures":
        words = [CLEARER.get(word, word) for word in words]
    noun = "" if "bush" in words else noun
    drop = frozenset("new newest building reversed misc stlm up wrld edge".split())
    noun_first = folders[0] == "fauna" or (bool(words) and words[0] in TREES)
    phrase = caption_of_file(" ".join(words), drop=drop, noun=noun, noun_first=noun_first) or with_article(noun)
    bare = re.sub(r"^an? ", "", phrase)
    for found, better in REORDERED.items():
        if re.search(rf"\b{found}$", bare):
            bare = bare.removesuffix(found) + better
            break
    bare = re.sub("merchant$", "merchant ship", re.sub("^(small )?wood$", r"\1wooden beam", bare))
    return with_article(f"{people} {bare}".strip()) if bare else ""
