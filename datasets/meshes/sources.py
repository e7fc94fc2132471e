"""The sources of free meshes for tools/collect_meshes.py: where they are, under which licence, how they are read.

To add a source, add a row. Where a catalogue states the licence, author or name of an object, these are used instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from datasets.meshes.collecting import luanti, megaglest, pyrogenesis, supertuxkart, ufoai
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
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "MIT-0": "https://spdx.org/licenses/MIT-0.html",
    "GPL-2.0-or-later": "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html",
}
AWS_WORLDS = ("small-house", "hospital", "bookstore", "small-warehouse")
# Kits of Kenney of which the repository holds the .dae files, and which are not only pieces of roads.
KENNEY_KITS = (
    "Furniture Kit", "Nature Kit", "Space Kit", "Tower Defense (Classic)", "Racing Kit", "Weapon Pack",
)  # fmt: skip
# Building pieces, which are not objects on their own.
PIECES = (
    r"^hex_|^block|floor|wall|tile|(^|_)(road|street|path|river|coast|platform|cube|roof|window|pipes?)(_|$)|ground|flag"
    r"|corner|primitive|modular|details|_(top|bottom|side|left|right|middle)(_|$)"
)

# Parts of robots, arenas and practice tasks among the models of Gazebo.
GAZEBO_PIECES = (
    r"base_model|plane|floor|wall|ramp|stairs|apartment|calibration|checker|circle|triangle|spectrum|terrain|heightmap|interchange"
    r"|collision|propeller|aileron|flap|rudder|elevators|stanchion|backpack|body|finger|thumb|palm|elbow|forearm|shoulder"
    r"|upper_?arm|neck|head|wrist|tilt|torso|wheel(_h)?$|spacer|standoff|kinect|plate_|^base$|float|hokuyo|scanse|simple"
    r"|doorway|^number|task|target|_prop$|hull|chasis|^arm$|^bench$|nist|^salon|thrift|^model$|orbbec|console|industrial|lightmap|chassis|starting|door_|asus|realsense|joint|brace|gasket|pulley|rod|tube_|disk|field|walkway|bridge|willow|office$|frame|attachment|^4x8|2x4|2x6|4x4|dice|slats|connector|coupling"
    r"|sweep|velodyne|round$|extension"
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
        Source(
            name="megaglest",
            origin=DebianPackage("megaglest-data"),
            terms=Terms("mg", "CC-BY-SA-3.0", "The Glest Team and the MegaGlest Team"),
            reader=megaglest.models,
            credit="models of MegaGlest (megaglest.org), Copyright The Glest Team and The MegaGlest Team",
            megabytes=700,
        ),
        Source(
            name="supertuxkart",
            origin=DebianPackage("supertuxkart-data"),
            terms=Terms("stk", "CC-BY-SA-4.0", "SuperTuxKart team"),
            reader=supertuxkart.objects,
            credit="models of SuperTuxKart (supertuxkart.net) by the authors named below",
            megabytes=1400,
        ),
        Source(
            name="ufoai",
            origin=DebianPackage("ufoai-data"),
            terms=Terms("ufo", "CC-BY-SA-3.0", "UFO: Alien Invasion team"),
            reader=ufoai.models,
            credit="models of UFO: Alien Invasion (ufoai.org) by the authors named below",
            megabytes=900,
        ),
        Source(
            name="gazebo",
            origin=GitRepositories("https://github.com/osrf/gazebo_models"),
            terms=Terms("gz", "CC-BY-3.0", "Nathan Koenig and Open Source Robotics Foundation"),
            reader=partial(
                mesh_files,
                patterns=("*/meshes/*.dae", "*/meshes/*.obj"),
                leave_out=GAZEBO_PIECES,
                drop=frozenset("drc practice base link part first mesh description".split()),
                up="z",
                textures=("../materials/textures",),
            ),
            credit="models of the Gazebo simulator (github.com/osrf/gazebo_models)",
            needs=("collada", "pycollada"),
            megabytes=1000,
        ),
        Source(
            name="robomaker",
            origin=GitRepositories(
                *(f"https://github.com/aws-robotics/aws-robomaker-{world}-world" for world in AWS_WORLDS)
            ),
            terms=Terms("aws", "MIT-0", "Amazon.com, Inc. or its affiliates"),
            reader=partial(
                mesh_files,
                patterns=("*_visual.DAE", "*_visual.dae"),
                leave_out=r"floor|wall|ceiling|roof|ground|carpet|door|window|curtain|portrait|column|logo|elevator|ramp"
                r"|room|handle|light|sign|board$|portal|utensils|cluttering|_low$",
                drop=frozenset("aws robomaker warehouse hospital retail residential visual".split()),
                up="z",
                textures=("../materials/textures",),
            ),
            credit="models of the AWS RoboMaker worlds, Copyright Amazon.com, Inc. or its affiliates",
            needs=("collada", "pycollada"),
            megabytes=600,
        ),
        Source(
            name="servicesim",
            origin=GitRepositories("https://github.com/osrf/servicesim"),
            terms=Terms("svs", "Apache-2.0", "Open Source Robotics Foundation"),
            reader=partial(
                mesh_files,
                patterns=("*/models/*/meshes/*.obj", "*/models/*/meshes/*.dae"),
                leave_out=r"animation|skin|door|wall|cubicle|collision|no_sink|computer_|^servicebot$",
                drop=frozenset(("cafe",)),
                up="z",
                textures=("../materials/textures",),
            ),
            credit="models of ServiceSim, Copyright Open Source Robotics Foundation (github.com/osrf/servicesim)",
            needs=("collada", "pycollada"),
            megabytes=600,
        ),
        Source(
            name="ycb",
            origin=GitRepositories("https://github.com/elpis-lab/ycb_dataset"),
            terms=Terms(
                "ycb", "CC-BY-4.0", "Berk Calli, Arjun Singh, Aaron Walsman and others, YCB Object and Model Set"
            ),
            reader=partial(
                mesh_files,
                patterns=("*/google_16k/textured.obj",),
                leave_out=r"^072-[b-e]|nine_hole|colored_wood|extra_large",
                drop=frozenset(("large", "pitcher base", "ah")),
                up="z",
            ),
            credit="scans of the YCB Object and Model Set (ycbbenchmarks.com), in GitHub elpis-lab/ycb_dataset",
            megabytes=400,
        ),
        Source(
            name="kenney_city",
            origin=GitRepositories("https://github.com/peterschmidt85/openworld"),
            terms=Terms("kc", "CC0-1.0", "Kenney"),
            reader=partial(
                mesh_files,
                patterns=("*city/models/*.glb",),
                leave_out=r"road|pavement|path|grass|driveway|detail|fence",
                drop=frozenset(("type", "low", "wide", "detail", "character", "basic")),
                noun_first="building",
            ),
            credit="city kits by Kenney (kenney.nl), in GitHub peterschmidt85/openworld",
            megabytes=500,
        ),
        Source(
            name="quaternius_kits",
            origin=GitRepositories("https://github.com/Noisemaker111/jgengine"),
            terms=Terms("qk", "CC0-1.0", "Quaternius"),
            reader=partial(
                mesh_files,
                patterns=("*models/quaternius-*/*.glb",),
                leave_out=PIECES + r"|overhang|hole|balcony|door|stair|decal|platform|column|^bottom|^top|^wall|vine"
                r"|border|support|exterior|cable|clamp|rail|holder|prop_brick|path|shutters|vent|fan|accesspoint|pebble|grass|clover|petal",
                drop=frozenset(("prop", "common", "single")),
            ),
            credit="three kits by Quaternius (quaternius.com), collected in GitHub Noisemaker111/jgengine",
            megabytes=1000,
        ),
        Source(
            name="quaternius_toon",
            origin=GitRepositories("https://github.com/rcbiscuitsbelfast-prog/viber3d"),
            terms=Terms("qt", "CC0-1.0", "Quaternius"),
            reader=partial(
                mesh_files,
                patterns=("*/assets-toonshooter/Environment/glTF/*.gltf",),
                leave_out="papers|structure|planks|wall",
                drop=frozenset(("floor", "platform", "debris", "fixed")),
            ),
            credit="Toon Shooter kit by Quaternius (quaternius.com), in GitHub rcbiscuitsbelfast-prog/viber3d",
            megabytes=1000,
        ),
        Source(
            name="homedecor",
            origin=GitRepositories("https://github.com/mt-mods/homedecor_modpack"),
            terms=Terms("hd", "CC-BY-SA-4.0", "Vanessa Ezekowitz and the authors of homedecor_modpack"),
            reader=luanti.nodes,
            credit="meshes and textures of homedecor_modpack for Luanti (github.com/mt-mods/homedecor_modpack)",
        ),
        Source(
            name="babylon",
            origin=GitRepositories("https://github.com/BabylonJS/MeshesLibrary"),
            terms=Terms("bb", "CC-BY-4.0", "the authors of Babylon.js"),
            reader=partial(
                mesh_files,
                patterns=(
                    "*MeshesLibrary/*.glb",
                    "*/Demos/weaponsDemo/meshes/*.glb",
                    "*/Demos/nmeGlow/*.glb",
                    "*/pirateFort/cannon.glb",
                    "*/fish/*.glb",
                    "*/vintageDeskFan/*.gltf",
                ),
                leave_out=r"cloth|spheres|cornell|rounded|shader|solar|target|wheel|head|dragon|ground|shadow|navmesh|nomat|nomorph"
                r"|gem|ball|disk|tests?/|morph|rigged|anisotropy|underwater|plane$|tower|helmet|variants|frost|molten|saber",
                drop=frozenset(("animated", "vert", "color", "acrobatics")),
            ),
            credit="meshes of Babylon.js (github.com/BabylonJS/MeshesLibrary)",
            megabytes=800,
        ),
        Source(
            name="kaykit_forest",
            origin=GitRepositories("https://github.com/rcbiscuitsbelfast-prog/viber3d"),
            terms=Terms("kf", "CC0-1.0", "Kay Lousberg"),
            reader=partial(
                mesh_files,
                patterns=("viber3d/Assets/KayKit_Forest*.gltf", "Assets/KayKit_Forest*.gltf"),
                leave_out="grass",
                drop=frozenset(("color", "colour")),
            ),
            credit="KayKit forest pack by Kay Lousberg (kaylousberg.com), in GitHub rcbiscuitsbelfast-prog/viber3d",
            megabytes=1000,
        ),
        Source(
            name="kenney_kits",
            origin=GitRepositories("https://github.com/lazyxeon/AstraWeave-AI-Native-Gaming-Engine"),
            terms=Terms("kk2", "CC0-1.0", "Kenney"),
            reader=partial(
                mesh_files,
                patterns=tuple(f"*3D assets/{kit}/Models/DAE format/*.dae" for kit in KENNEY_KITS),
                leave_out=PIECES
                + r"|cliff|grass|stairs|rail|barrier|bezier|curve|straight|monorail_?track|terrain|platform"
                r"|overhead|_row_"
                r"|crossing|^snow_|^wood_structure|^ground|arrow|selection|ammo|uncovered|ramp|pit|corridor|track|_cap"
                r"|scope|bullet|tent_(closed|roof)_|^hex|tower.*(bottom|middle|base|top)|end$|_side",
                drop=frozenset(
                    "detailed default plateau fall blocks darkh darkd top bottom silencer flat stage ring".split()
                ),
                noun_first="tree|table|stool|statue|craft|crop|grenade|machine|television|lamp|bookcase|knife|log|stump|plant|"
                "cactus|bush|bed|chair|uzi|rocket|mushroom|flower|turret|shower",
                up="y",
            ),
            credit="six kits by Kenney (kenney.nl), collected in GitHub lazyxeon/AstraWeave-AI-Native-Gaming-Engine",
            needs=("collada", "pycollada"),
            megabytes=6000,
        ),
    )
}
