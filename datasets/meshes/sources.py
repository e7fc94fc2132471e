"""The sources of free meshes for tools/collect_meshes.py: where they are, under which licence, how they are read.

To add a source, add a row. Where a catalogue states the licence, author or name of an object, these are used instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from datasets.meshes.collecting import pyrogenesis
from datasets.meshes.collecting.download import DebianPackage, GitRepositories, Origin
from datasets.meshes.collecting.readers import Reader, Terms, mesh_files, sweethome3d

KAYKIT = (
    "Restaurant-Bits", "City-Builder-Bits", "Dungeon-Remastered", "Furniture-Bits", "Halloween-Bits",
    "Medieval-Hexagon-Pack", "Prototype-Bits", "Space-Base-Bits", "Character-Pack-Adventures",
    "Character-Pack-Skeletons",
)  # fmt: skip
LICENCE_TEXTS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-3.0-US": "https://creativecommons.org/licenses/by/3.0/us/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "GPL-2.0-or-later": "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html",
}
# Building pieces, which are not objects on their own.
PIECES = (
    r"^hex_|^block|floor|wall|tile|(^|_)(road|street|path|river|coast|platform|cube|roof|window|pipes?)(_|$)|ground|flag"
    r"|corner|primitive|modular|details|_(top|bottom|side|left|right|middle)(_|$)"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of meshes.

    Attributes:
        name: the folder of its objects.
        origin: where it is downloaded.
        terms: prefix of its file names, licence (SPDX) and author, where an object does not say them itself.
        reader: lists its objects.
        credit: the sentence of the attribution page.
        needs: the Python package that its format needs, with the name that pip knows; None for none.
        megabytes: disk space that the download needs while it is unpacked, roughly.
    """

    name: str
    origin: Origin
    terms: Terms
    reader: Reader
    credit: str
    needs: tuple[str, str] | None = None
    megabytes: int = 100

    @property
    def by_default(self) -> bool:
        """GPL meshes are taken only on request: works made of them would have to be under the GPL too."""
        return not self.terms.licence.startswith("GPL")


SOURCES = {
    source.name: source
    for source in (
        Source(
            name="sweethome3d",
            origin=DebianPackage("sweethome3d-furniture"),
            terms=Terms("sh3d", "CC-BY-3.0", "Sweet Home 3D contributors"),
            reader=sweethome3d,
            credit="furniture libraries of Sweet Home 3D (sweethome3d.com): Scopia, Kator Legaz, Reallusion, and "
            "contributors of Blend Swap, converted by Emmanuel Puybaret / eTeks",
            megabytes=700,
        ),
        Source(
            name="sweethome3d_default",
            origin=DebianPackage("sweethome3d"),
            terms=Terms("sh3dd", "GPL-2.0-or-later", "eTeks"),
            reader=sweethome3d,
            credit="the catalogue inside Sweet Home 3D (sweethome3d.com), Emmanuel Puybaret / eTeks",
        ),
        Source(
            name="0ad",
            origin=DebianPackage("0ad-data"),
            terms=Terms("oad", "CC-BY-SA-3.0", "Wildfire Games"),
            reader=pyrogenesis.actors,
            credit="models of 0 A.D. (play0ad.com), Copyright Wildfire Games",
            megabytes=5000,
        ),
        Source(
            name="kaykit",
            origin=GitRepositories(*(f"https://github.com/KayKit-Game-Assets/KayKit-{pack}-1.0" for pack in KAYKIT)),
            terms=Terms("kk", "CC0-1.0", "Kay Lousberg"),
            reader=partial(
                mesh_files,
                patterns=("*.gltf", "*.glb"),
                leave_out=PIECES,
                drop=frozenset(("food", "ingredient", "building", "straight", "handed")),
            ),
            credit="KayKit packs by Kay Lousberg (kaylousberg.com)",
            megabytes=1000,
        ),
        Source(
            name="quaternius",
            origin=GitRepositories("https://github.com/trebeljahr/quaternius-showcase"),
            terms=Terms("q", "CC0-1.0", "Quaternius"),
            reader=partial(
                mesh_files,
                patterns=("public/glb/*.glb", "*/public/glb/*.glb"),
                leave_out=PIECES,
                drop=frozenset("crop harvested level age first second props details transformed stack".split()),
            ),
            credit="models by Quaternius (quaternius.com), collected in GitHub trebeljahr/quaternius-showcase",
            needs=("DracoPy", "DracoPy"),
            megabytes=300,
        ),
        Source(
            name="kenney",
            origin=GitRepositories("https://github.com/beep2bleep/FreeAssetsByKenneyNLandQuaternius"),
            terms=Terms("kn", "CC0-1.0", "Kenney"),
            reader=partial(
                mesh_files,
                patterns=tuple(f"*Kenny NL Assets/*/Models/*.{suffix}" for suffix in ("obj", "glb")),
                leave_out=PIECES,
            ),
            credit="kits by Kenney (kenney.nl), collected in GitHub beep2bleep/FreeAssetsByKenneyNLandQuaternius",
            megabytes=800,
        ),
        Source(
            name="market",
            origin=GitRepositories("https://github.com/pmndrs/market-assets"),
            terms=Terms("mk", "CC0-1.0", "Kenney, Sara Vieira and creativetrio"),
            reader=partial(mesh_files, patterns=("files/models/*.gltf", "*/files/models/*.gltf"), leave_out=PIECES),
            credit="models by Kenney, Sara Vieira and creativetrio, collected in GitHub pmndrs/market-assets",
            megabytes=800,
        ),
        Source(
            name="mmmm",
            origin=GitRepositories("https://github.com/mikelovesrobots/mmmm"),
            terms=Terms("mmmm", "CC-BY-4.0", "Mike Judge"),
            reader=partial(
                mesh_files,
                patterns=("collada/*.dae", "*/collada/*.dae"),
                leave_out="street|sidewalk|crosswalk|curb|driveway|splatter|tracks|path|^env",
                drop=frozenset(("obj", "chr", "veh", "mob", "scene")),
                up="z",
            ),
            credit="Mini Mike's Metro Minis, additional artwork by Mike Judge (GitHub mikelovesrobots/mmmm)",
            needs=("collada", "pycollada"),
            megabytes=300,
        ),
    )
}
