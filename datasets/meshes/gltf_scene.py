"""Makes triangles of a glTF scene: nodes, instances, skins, morph targets and primitives.

Letters: F faces, N vertices, J joints.
Source: https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.meshes.companions import Companions
from datasets.meshes.gltf import DRACO, INSTANCING, Gltf, as_float
from datasets.meshes.gltf_materials import Materials, numbers, without_texture
from datasets.meshes.materials import painted
from datasets.meshes.scene import EmptyMeshError, RenderMesh, join, seamless_normals, srgb_to_linear
from utils.errors import DataError

MAX_FACES = 20_000_000
LARGEST_UV = 1e6  # float32 has no places after the point beyond; also false for NaN
POINTS_AND_LINES = {0: "points", 1: "lines", 2: "lines", 3: "lines"}


def read_gltf(content: bytes, files: Companions) -> RenderMesh:
    """Read the default scene of a glTF file, y up.

    What is ignored or not found is noted in `files`.

    Raises:
        DataError: the file is broken, needs something that is not read here, or has no triangles that can be seen.
    """
    return _Scene(Gltf(content, files)).mesh()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """A node with a mesh, and where it is."""

    node: dict[str, Any]
    world_44: np.ndarray


class _Scene:
    def __init__(self, gltf: Gltf) -> None:
        self.gltf = gltf
        self.materials = Materials(gltf)
        self.worlds: dict[int, np.ndarray] = {}
        # Of a mesh without material, trimesh writes the bytes of sRGB colours; the specification has linear ones.
        self.written_by_trimesh = "trimesh" in str(gltf.json.get("asset", {}).get("generator", ""))
        self.num_faces = 0

    def mesh(self) -> RenderMesh:
        parts, invisible = [], False
        for place in self._places():
            mesh = self.gltf.row("meshes", place.node.get("mesh"))
            for primitive in mesh.get("primitives", []):
                triangles = self._triangles(primitive, mesh, place.node)
                if triangles is None:
                    continue
                for world_44 in self._instances(place):
                    part = self._painted(triangles, world_44)
                    invisible = invisible or part is None
                    parts += [] if part is None else [part]
        if not parts:
            raise EmptyMeshError(
                "everything in it is transparent, so nothing can be seen; correct the materials' alpha"
                if invisible
                else "contains no triangles (it is a point cloud, hidden, or empty); export a triangle mesh"
            )
        return join(parts)

    def _places(self) -> Iterator[_Place]:
        """Every node with a mesh in the default scene; zero scales and invisible nodes are left out with their
        children."""
        nodes, scenes = self.gltf.rows("nodes"), self.gltf.rows("scenes")
        children = {child for node in nodes for child in node.get("children", [])}
        if scenes:
            roots = self.gltf.row("scenes", self.gltf.json.get("scene", 0)).get("nodes", [])
        else:
            roots = [index for index in range(len(nodes)) if index not in children]
        self._find_worlds([index for index in range(len(nodes)) if index not in children])
        seen: set[int] = set()
        waiting = list(roots)
        while waiting:
            index = waiting.pop(0)
            node = self.gltf.row("nodes", index)
            if index in seen or index not in self.worlds:
                raise DataError(f"its node {index} has two parents or is its own ancestor; export it again")
            seen.add(index)
            if node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True) is False:
                continue
            waiting += node.get("children", [])
            # The skeleton places a skinned mesh, so the node's own scale does not hide it.
            hidden = np.abs(self.worlds[index][:3, :3]).max() < 1e-12 and "skin" not in node
            if "mesh" in node and not hidden:
                yield _Place(node=node, world_44=self.worlds[index])

    def _find_worlds(self, roots: list[int]) -> None:
        """The transform of every node to the world; of a node with two parents, the one that is reached first."""
        waiting = [(index, np.eye(4)) for index in roots]
        while waiting:
            index, parent_44 = waiting.pop()
            node = self.gltf.row("nodes", index)
            if index in self.worlds:
                raise DataError(f"its node {index} has two parents; export it again")
            self.worlds[index] = parent_44 @ local_transform(node)
            waiting += [(child, self.worlds[index]) for child in node.get("children", [])]

    def _instances(self, place: _Place) -> list[np.ndarray]:
        """Where a node draws its mesh: once, or as often as EXT_mesh_gpu_instancing says."""
        if "skin" in place.node:
            return [np.eye(4)]
        attributes = place.node.get("extensions", {}).get(INSTANCING, {}).get("attributes", {})
        stored = {name: self.gltf.accessor(attributes[name]) for name in PARTS if name in attributes}
        if not stored:
            return [place.world_44]
        count = min(len(values) for values in stored.values())
        return [
            place.world_44 @ composed(**{PARTS[name]: values[k] for name, values in stored.items()})
            for k in range(count)
        ]

    def _triangles(self, primitive: dict[str, Any], mesh: dict[str, Any], node: dict[str, Any]) -> _Triangles | None:
        """One primitive with its morph targets and its skeleton applied; None if it has no triangles."""
        mode = primitive.get("mode", 4)
        if mode in POINTS_AND_LINES:
            self.gltf.files.note(f"{POINTS_AND_LINES[mode]} are ignored")
            return None
        attributes, stored = self._attributes(primitive), primitive.get("indices")
        if "POSITION" not in attributes:
            return None
        points_N3 = self._vectors(attributes, "POSITION").astype(np.float64)
        if DRACO in primitive.get("extensions", {}) and "draco indices" in attributes:
            indices = attributes["draco indices"]
        else:
            indices = np.arange(len(points_N3)) if stored is None else self.gltf.accessor(stored, whole=True)[:, 0]
        if indices.dtype.kind not in "ui":
            raise DataError("its vertex indices are not whole numbers; export it again")
        faces_F3 = faces_of(indices.astype(np.int64), mode)
        if faces_F3.size and faces_F3.max() >= len(points_N3):
            raise DataError(
                f"a face names vertex {faces_F3.max()}, but there are {len(points_N3)} vertices; "
                "repair the mesh and export it again"
            )
        if not len(faces_F3):
            return None
        normals_N3 = self._vectors(attributes, "NORMAL").astype(np.float64) if "NORMAL" in attributes else None
        points_N3, normals_N3 = self._morphed(points_N3, normals_N3, primitive, mesh, node)
        if "skin" in node:
            points_N3, normals_N3 = self._skinned(points_N3, normals_N3, attributes, node["skin"])
        if not np.isfinite(points_N3[faces_F3]).all():
            raise DataError("some vertices are not finite; repair the mesh and export it again")
        return _Triangles(
            points_N3=points_N3, normals_N3=normals_N3, faces_F3=faces_F3, attributes=attributes,
            material=primitive.get("material"),
        )  # fmt: skip

    def _attributes(self, primitive: dict[str, Any]) -> dict[str, np.ndarray]:
        """The attributes of a primitive as numbers; those of Draco, with their indices, where it is compressed."""
        named = primitive.get("attributes", {})
        compressed = primitive.get("extensions", {}).get(DRACO)
        required = DRACO in self.gltf.rows("extensionsRequired", of=str)
        found: dict[str, np.ndarray] = {}
        if compressed is not None:
            try:
                decoded, found["draco indices"] = self.gltf.draco(compressed)
                for name, values in decoded.items():
                    accessor = self.gltf.row("accessors", named[name]) if name in named else {}
                    found[name] = as_float(values, bool(accessor.get("normalized")))
            except DataError:
                copies = [self.gltf.row("accessors", index) for index in named.values()]
                if required or not all("bufferView" in row for row in copies):
                    raise
                found = {}  # the file has the same without compression
        return found | {name: self.gltf.accessor(index) for name, index in named.items() if name not in found}

    def _vectors(self, attributes: dict[str, np.ndarray], name: str) -> np.ndarray:
        values = attributes[name]
        if values.shape != (len(attributes["POSITION"]), 3):
            raise DataError(f"its {name} has the shape {values.shape}, which does not fit; export it again")
        return values

    def _morphed(
        self,
        points_N3: np.ndarray,
        normals_N3: np.ndarray | None,
        primitive: dict[str, Any],
        mesh: dict[str, Any],
        node: dict[str, Any],
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Add the morph targets with their default weights; a node's weights replace those of its mesh."""
        targets = primitive.get("targets", [])
        weights = node.get("weights", mesh.get("weights", []))
        weights = numbers(weights, len(weights), name="the weights of morph targets")
        for target, weight in zip(targets, weights, strict=False):
            if weight == 0:
                continue
            moved = {
                name: self.gltf.accessor(index) for name, index in target.items() if name in ("POSITION", "NORMAL")
            }
            if any(values.shape != points_N3.shape for values in moved.values()):
                raise DataError("a morph target has another number of vertices than its mesh; export it again")
            if "POSITION" in moved:
                points_N3 = points_N3 + weight * moved["POSITION"]
                # normals of before the move would be wrong
                has_normals = normals_N3 is not None and "NORMAL" in moved
                normals_N3 = normals_N3 + weight * moved["NORMAL"] if has_normals else None
        return points_N3, normals_N3

    def _skinned(
        self, points_N3: np.ndarray, normals_N3: np.ndarray | None, attributes: dict[str, np.ndarray], skin: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Place a mesh by its skeleton in the pose of the file; the transform of its own node has no influence."""
        stored = self.gltf.row("skins", skin)
        joints = stored.get("joints", [])
        if not joints or "JOINTS_0" not in attributes or "WEIGHTS_0" not in attributes:
            self.gltf.files.note("a skeleton without joints or weights is ignored")
            return points_N3, normals_N3
        worlds_J44 = np.stack([self._world_of(joint) for joint in joints])
        if "inverseBindMatrices" in stored:
            inverse = self.gltf.accessor(stored["inverseBindMatrices"]).astype(np.float64)
            if inverse.shape[1] != 16 or len(inverse) < len(joints):
                raise DataError("its skin has too few inverse bind matrices; export it again")
            worlds_J44 = worlds_J44 @ inverse[: len(joints)].reshape(-1, 4, 4).transpose(0, 2, 1)
        blended = np.zeros((len(points_N3), 4, 4))
        total = np.zeros(len(points_N3))
        for number in range(8):
            if f"JOINTS_{number}" not in attributes or f"WEIGHTS_{number}" not in attributes:
                break
            joint_N4, weight_N4 = attributes[f"JOINTS_{number}"].astype(np.int64), attributes[f"WEIGHTS_{number}"]
            used = weight_N4 != 0
            if joint_N4.shape != (len(points_N3), 4) or weight_N4.shape != joint_N4.shape:
                raise DataError("its joints or weights do not fit its vertices; export it again")
            if (joint_N4[used] >= len(joints)).any():
                raise DataError(f"a vertex names a joint that its skin does not have ({len(joints)}); export it again")
            for corner in range(4):
                weight_N = weight_N4[:, corner].astype(np.float64)
                blended += weight_N[:, None, None] * worlds_J44[np.where(used[:, corner], joint_N4[:, corner], 0)]
                total += weight_N
        blended[total <= 0] = worlds_J44[0]
        blended /= np.where(total > 0, total, 1.0)[:, None, None]
        points_N3 = np.einsum("nij,nj->ni", blended[:, :3, :3], points_N3) + blended[:, :3, 3]
        if normals_N3 is not None:
            normals_N3 = np.einsum("nij,nj->ni", cofactors(blended[:, :3, :3]), normals_N3)
        return points_N3, normals_N3

    def _world_of(self, index: Any) -> np.ndarray:
        self.gltf.row("nodes", index)
        if index not in self.worlds:
            raise DataError(f"its node {index} is its own ancestor; export it again")
        return self.worlds[index]

    def _painted(self, shape: _Triangles, world_44: np.ndarray) -> RenderMesh | None:
        """Put triangles into the world and give them their material."""
        self.num_faces += len(shape.faces_F3)
        if self.num_faces > MAX_FACES:
            raise DataError(f"has more than {MAX_FACES:,} triangles; reduce it and export it again")
        points_N3 = shape.points_N3 @ world_44[:3, :3].T + world_44[:3, 3]
        faces_F3, normals_F33 = shape.faces_F3, None
        mirrored = np.linalg.det(world_44[:3, :3]) < 0
        if mirrored:
            faces_F3 = faces_F3[:, ::-1]
        if shape.normals_N3 is not None:
            normals_N3 = shape.normals_N3 @ cofactors(world_44[None, :3, :3])[0].T * (-1 if mirrored else 1)
            length = np.linalg.norm(normals_N3, axis=1, keepdims=True)
            if (length[faces_F3] > 1e-20).all() and np.isfinite(length).all():
                normals_F33 = (normals_N3 / np.maximum(length, 1e-20))[faces_F3]
        if normals_F33 is None:
            normals_F33 = seamless_normals(points_N3, faces_F3)
        tints_N4 = self._tints(shape)
        look = self.materials.look(shape.material, tinted=tints_N4 is not None)
        uvs = {}
        for name, mapping in (("base", look.mapping), ("glow", look.glow_mapping)):
            stored = None if mapping is None else shape.attributes.get(f"TEXCOORD_{mapping.texcoord}")
            fits = stored is not None and stored.shape == (len(points_N3), 2)
            uvs_N2 = mapping.uvs(stored) if fits else None
            fits = uvs_N2 is not None and bool((np.abs(uvs_N2) < LARGEST_UV).all())
            uvs[name] = uvs_N2[faces_F3] if fits else None
            if mapping is not None and not fits:
                self.gltf.files.note(f"a texture has no coordinates (TEXCOORD_{mapping.texcoord}) and is left out")
        look = without_texture(
            look,
            base=look.mapping is not None and uvs["base"] is None,
            glow=look.glow_mapping is not None and uvs["glow"] is None,
        )
        return painted(
            points_N3[faces_F3],
            normals_F33,
            look.material,
            uvs_F32=uvs["base"],
            glow_uvs_F32=uvs["glow"],
            tints_F34=None if tints_N4 is None else tints_N4[faces_F3],
        )

    def _tints(self, shape: _Triangles) -> np.ndarray | None:
        """COLOR_0 as linear RGB and opacity."""
        stored = shape.attributes.get("COLOR_0")
        if stored is None:
            return None
        if len(stored) != len(shape.points_N3) or stored.shape[1] not in (3, 4) or not np.isfinite(stored).all():
            self.gltf.files.note("COLOR_0 does not fit its vertices and is ignored")
            return None
        is_srgb = self.written_by_trimesh and shape.material is None
        rgb = srgb_to_linear(stored[:, :3]) if is_srgb else stored[:, :3]
        alpha = stored[:, 3:] if stored.shape[1] == 4 else np.ones((len(stored), 1), np.float32)
        return np.concatenate([rgb, alpha], axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Triangles:
    """One primitive in the frame of its node (of the world, if it is skinned)."""

    points_N3: np.ndarray
    normals_N3: np.ndarray | None
    faces_F3: np.ndarray
    attributes: dict[str, np.ndarray]
    material: Any


PARTS = {"TRANSLATION": "translation", "ROTATION": "rotation", "SCALE": "scale"}


def local_transform(node: dict[str, Any]) -> np.ndarray:
    """The (4, 4) transform of a node to its parent."""
    if "matrix" in node:
        return np.array(numbers(node["matrix"], 16, name="a node's matrix")).reshape(4, 4).T
    parts = {"translation": 3, "rotation": 4, "scale": 3}
    found = {
        name: np.array(numbers(node[name], n, name=f"a node's {name}")) for name, n in parts.items() if name in node
    }
    return composed(**found)


def composed(
    *, translation: np.ndarray | None = None, rotation: np.ndarray | None = None, scale: np.ndarray | None = None
) -> np.ndarray:
    """The (4, 4) matrix that scales, rotates (quaternion x y z w) and moves, in this order."""
    out_44 = np.eye(4)
    if rotation is not None and (length := np.linalg.norm(rotation)) > 0:
        x, y, z, w = np.asarray(rotation, np.float64) / length
        out_44[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    if scale is not None:
        out_44[:3, :3] *= np.asarray(scale, np.float64)
    if translation is not None:
        out_44[:3, 3] = translation
    return out_44


def cofactors(matrices_N33: np.ndarray) -> np.ndarray:
    """The cofactor matrices, which turn normals; unlike the inverse, they exist where a scale is zero."""
    a, b, c = matrices_N33[:, 0], matrices_N33[:, 1], matrices_N33[:, 2]
    return np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)


def faces_of(indices: np.ndarray, mode: Any) -> np.ndarray:
    """The triangles (F, 3) of a list (mode 4), strip (5) or fan (6); triangles of a strip that repeat a vertex go."""
    if mode == 4:
        return indices[: len(indices) // 3 * 3].reshape(-1, 3)
    if mode == 5:
        faces_F3 = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1) if len(indices) > 2 else indices[:0]
        faces_F3 = faces_F3.reshape(-1, 3).copy()
        faces_F3[1::2] = faces_F3[1::2][:, [1, 0, 2]]
    elif mode == 6:
        rim = indices[1:]
        faces_F3 = np.stack([np.full(max(len(rim) - 1, 0), indices[0] if len(indices) else 0), rim[:-1], rim[1:]], 1)
    else:
        raise DataError(f"its primitive mode {str(mode)[:20]} is unknown; export it again")
    distinct = (
        (faces_F3[:, 0] != faces_F3[:, 1]) & (faces_F3[:, 1] != faces_F3[:, 2]) & (faces_F3[:, 0] != faces_F3[:, 2])
    )
    return faces_F3[distinct]
