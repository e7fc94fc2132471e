"""Material words from a mesh file: from the names and the properties of its materials."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from datasets.meshes.companions import Companions
from datasets.meshes.gltf import Gltf
from utils.errors import DataError

# The word of captions, and what names of materials contain.
WORDS = {
    "wooden": r"wood|oak|pine|walnut|mahogany|teak|birch|plywood|timber|parquet",
    "metal": r"metal|steel|iron|alumini?um|chrome|brass|copper|bronze|tin",
    "golden": r"gold",
    "silver": r"silver",
    "glass": r"glass|crystal",
    "leather": r"leather",
    "fabric": r"fabric|cloth|textile|cotton|wool|linen|velvet|canvas",
    "stone": r"stone|rock|granite|slate",
    "marble": r"marble",
    "brick": r"bricks?",
    "concrete": r"concrete|cement",
    "plastic": r"plastic|pvc|vinyl",
    "rubber": r"rubber",
    "ceramic": r"ceramic|porcelain|clay|terracotta",
    "paper": r"paper|cardboard",
}
HALF = 0.5


def material_word(files: Companions) -> str:
    """Return the material that at least half of the triangles of a file have, as an adjective; "" for none."""
    suffix = files.path.suffix.lower()
    try:
        if suffix in (".glb", ".gltf"):
            counts = _of_gltf(files)
        elif suffix == ".obj":
            counts = _of_obj(files.path)
        else:
            return ""
    except (DataError, OSError):
        return ""  # the file is read again to be drawn, and what is wrong is reported there
    word, number = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return word if number >= HALF * counts.total() else ""


def word_in(name: str) -> str:
    """Return the material word in the name of a material, such as `Wood_Dark.001`; "" for none."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_\d]+", " ", name).lower()
    return next((word for word, pattern in WORDS.items() if re.search(rf"\b(?:{pattern})\b", parts)), "")


def _of_gltf(files: Companions) -> Counter[str]:
    """How many corners have each material word; "" for none."""
    gltf = Gltf(files.path.read_bytes(), files)
    words = [_gltf_word(material) for material in gltf.rows("materials")]
    accessors, counts = gltf.rows("accessors"), Counter[str]()
    for mesh in gltf.rows("meshes"):
        for primitive in mesh.get("primitives", []):
            corners = primitive.get("indices", primitive.get("attributes", {}).get("POSITION"))
            number = primitive.get("material")
            word = words[number] if isinstance(number, int) and 0 <= number < len(words) else ""
            known = isinstance(corners, int) and 0 <= corners < len(accessors)
            counts[word] += int(accessors[corners].get("count", 0)) if known else 0
    return counts


def _gltf_word(material: dict[str, Any]) -> str:
    name, look = material.get("name"), material.get("pbrMetallicRoughness")
    word, look = word_in(name) if isinstance(name, str) else "", look if isinstance(look, dict) else {}
    if word:
        return word
    if "KHR_materials_transmission" in material.get("extensions", {}):
        return "glass"
    # The default of metallicFactor is 1, so that only a written value means something.
    metallic = look.get("metallicFactor", 0)
    return "metal" if isinstance(metallic, int | float) and metallic >= 0.8 else ""


def _of_obj(path: Path) -> Counter[str]:
    """How many faces have each material word; "" for none."""
    counts, word = Counter[str](), ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("usemtl"):
            word = word_in(line[6:])
        elif line.startswith("f "):
            counts[word] += 1
    return counts
