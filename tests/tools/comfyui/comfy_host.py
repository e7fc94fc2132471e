"""A host that treats nodes as ComfyUI's source does (nodes.py and execution.py of 0.3.64), in a few lines.

It imports a folder under a name of its own, reads NODE_CLASS_MAPPINGS, checks the inputs of a prompt against
INPUT_TYPES, and runs the nodes in the order of their links.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

WIDGETS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


class ExecutionBlocker:
    def __init__(self, message: str) -> None:
        self.message = message


class Stopped(Exception):
    """Stands for ComfyUI's InterruptProcessingException."""


class Splat:
    """The arguments of comfy_api.latest.Types.SPLAT."""

    def __init__(self, positions, scales, rotations, opacities, sh, counts=None):
        self.positions, self.scales, self.rotations = positions, scales, rotations
        self.opacities, self.sh, self.counts = opacities, sh, counts


class Mesh:
    """Those of comfy_api.latest.Types.MESH that the nodes use."""

    def __init__(self, vertices, faces, uvs=None, vertex_colors=None, unlit=False):
        self.vertices, self.faces, self.vertex_colors, self.unlit = vertices, faces, vertex_colors, unlit


class Host:
    """ComfyUI's modules that the nodes import, and what happened in them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, types_of_2026: bool = True) -> None:
        self.steps: list[tuple[int, int]] = []
        self.stopped = False
        self.classes: dict[str, type] = {}
        self._monkeypatch = monkeypatch
        steps = self.steps

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total = total

            def update_absolute(self, value: int, total: int) -> None:
                steps.append((value, total))

        def throw_if_stopped() -> None:
            if self.stopped:
                raise Stopped

        geometry = types.SimpleNamespace(SPLAT=Splat, MESH=Mesh) if types_of_2026 else types.SimpleNamespace()
        for name, content in {
            "comfy": {},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.model_management": {"throw_exception_if_processing_interrupted": throw_if_stopped},
            "comfy_execution": {},
            "comfy_execution.graph_utils": {"ExecutionBlocker": ExecutionBlocker},
            "comfy_api": {},
            "comfy_api.latest": {"Types": geometry},
            "comfy_extras": {},
        }.items():
            module = types.ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)

    def load(self, folder: Path) -> Any:
        """Import a folder of `custom_nodes` and keep its nodes."""
        name = str(folder).replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        self._monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        self.classes |= module.NODE_CLASS_MAPPINGS
        assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
        return sys.modules[f"{name}.nodes"]

    def check(self, prompt: dict[str, Any]) -> None:
        """Refuse a prompt as validate_prompt does: missing inputs, other types, values out of range."""
        for node in prompt.values():
            kinds = self.classes[node["class_type"]].INPUT_TYPES()
            inputs = {**kinds["required"], **kinds.get("optional", {})}
            assert kinds["required"].keys() <= node["inputs"].keys() <= inputs.keys(), node
            for name, value in node["inputs"].items():
                kind, options = inputs[name]
                if isinstance(value, list):
                    source, output = value
                    assert self.classes[prompt[source]["class_type"]].RETURN_TYPES[output] == kind, name
                elif isinstance(kind, list):
                    assert value in kind, name
                else:
                    assert type(value) is WIDGETS[kind], name
                    assert options.get("min", value) <= value <= options.get("max", value), name

    def run(self, prompt: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        """Run a prompt: the outputs of each node. A blocked input blocks all outputs of its node."""
        self.check(prompt)
        done: dict[str, tuple[Any, ...]] = {}

        def outputs_of(name: str) -> tuple[Any, ...]:
            if name not in done:
                kind = self.classes[prompt[name]["class_type"]]
                inputs = {
                    key: outputs_of(value[0])[value[1]] if isinstance(value, list) else value
                    for key, value in prompt[name]["inputs"].items()
                }
                blocked = [value for value in inputs.values() if isinstance(value, ExecutionBlocker)]
                found = (blocked[0],) * len(kind.RETURN_TYPES) if blocked else getattr(kind(), kind.FUNCTION)(**inputs)
                assert len(found) == len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES)
                done[name] = found
            return done[name]

        for name in prompt:
            outputs_of(name)
        return done
