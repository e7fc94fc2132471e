"""Registries: a `type` name in a YAML section becomes an object.

A registered class declares its options in a nested frozen dataclass `Config` and is built as `cls(config, **runtime)`.
One class may have several names, each with its own defaults. In this way a published type name stays valid without a
copy of the class. A section is checked once, when its file is loaded, and becomes a `Section`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import ConfigError
from utils.settings.typed import Refusal, Refused, typed

log = logging.getLogger(__name__)

# A line that registers a class, or a solver of diffusers.
REGISTERS = re.compile(r"^(@?[A-Z_]+\.register\b|@solver_named\b)", re.MULTILINE)
# Common names of options, for the cases in which the spelling is closer to a wrong option.
OTHER_NAMES = {"guidance": "guide_scale"}


class Registry:
    """Classes by name.

    Args:
        name: the registry's name in error messages, e.g. "MODEL".
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._entries: dict[str, tuple[type, dict[str, Any]]] = {}

    def register(self, cls: type | None = None, *, name: str | None = None, **defaults: Any) -> Any:
        """Class decorator: `@MODEL.register` or `@MODEL.register(name="UNetSD_T2VBase", dim=320)`.

        Args:
            cls: the class, when used without arguments.
            name: the `type` in YAML; default: the class name.
            defaults: values that replace those of `cls.Config` for this name.
        """

        def enter(cls: type) -> type:
            key = name or cls.__name__
            assert key not in self._entries, f"{self.name} already holds {key}"
            assert dataclasses.is_dataclass(getattr(cls, "Config", None)), f"{key} declares no Config dataclass"
            self._entries[key] = (cls, defaults)
            return cls

        return enter(cls) if cls is not None else enter

    def names(self) -> list[str]:
        """List all registered type names, sorted."""
        return sorted(self._entries)

    def section(self, given: Mapping[str, Any], *, where: str | None = None) -> Section:
        """Check a section; see `resolve` for the arguments and errors."""
        return Section(self, given, where=where or self.name)

    def resolve(
        self, node: Mapping[str, Any], *, where: str | None = None, mention_retired: bool = True
    ) -> tuple[type, Any]:
        """Check the options of a type without building anything.

        Args:
            node: the section, with its `type`.
            where: the section's name in error messages; default: the registry's name.
            mention_retired: log the keys that no longer have an effect.

        Returns:
            (class, its frozen Config).

        Raises:
            ConfigError: unknown type or key (with the nearest valid name), wrong type, value out of range.
        """
        where = where or self.name
        options = dict(node)
        type_name = options.pop("type", None)
        if type_name is None:
            raise _refused(f"{where}.type", f" is missing; valid types: {', '.join(self.names())}")
        if not isinstance(type_name, str) or type_name not in self._entries:
            raise _refused(f"{where}.type", f"={type_name} is unknown{nearest(type_name, self.names())}")
        cls, defaults = self._entries[type_name]
        for key, reason in getattr(cls, "retired_keys", {}).items():
            if options.pop(key, None) is not None and mention_retired:
                log.info("%s.%s has no effect: %s", where, key, reason)
        return cls, make_config(cls.Config, {**defaults, **options}, where=where, owner=type_name)

    def says_more(self, type_name: str, key: str, value: Any) -> bool:
        """Whether a type has this option, accepts the value and has another default."""
        if type_name not in self._entries:
            return False
        cls, defaults = self._entries[type_name]
        try:
            default = make_config(cls.Config, defaults, where=self.name, owner=type_name)
            changed = make_config(cls.Config, {**defaults, key: value}, where=self.name, owner=type_name)
        except ConfigError:  # the type has no such option, or one with another kind of value
            return False
        return changed != default

    def build(self, node: Mapping[str, Any], *, where: str | None = None, **runtime: Any) -> Any:
        """Build an object from plain options; its constructor receives `runtime` unchanged."""
        return self.section(node, where=where).build(**runtime)


class Section:
    """A section of a configuration that its registry has checked.

    An empty section is false and has neither class nor options.

    Attributes:
        given: the options that were written, including `type`; all other options have their defaults.
        where: the section's name in error messages.
    """

    def __init__(
        self, registry: Registry, given: Mapping[str, Any], *, where: str, mention_retired: bool = True
    ) -> None:
        self.registry, self.given, self.where = registry, dict(given), where
        self._resolved = registry.resolve(given, where=where, mention_retired=mention_retired) if given else None

    def __bool__(self) -> bool:
        return bool(self.given)

    @property
    def type(self) -> str:
        """The registered name."""
        return self.given["type"]

    @property
    def cls(self) -> type:
        """The registered class."""
        return self._checked()[0]

    @property
    def options(self) -> Any:
        """The class's frozen `Config`, complete."""
        return self._checked()[1]

    def _checked(self) -> tuple[type, Any]:
        if self._resolved is None:
            valid = ", ".join(self.registry.names())
            raise ConfigError(f"the section {self.where} is empty; give it a type, one of {valid}")
        return self._resolved

    @property
    def pretrained(self) -> str | None:
        """The section's weight file; None when `pretrained` is not set."""
        return self.given.get("pretrained")

    def build(self, **runtime: Any) -> Any:
        """Build the object; its constructor receives `runtime` unchanged."""
        return self.cls(self.options, **runtime)

    def changed(self, **options: Any) -> Section:
        """Return a copy with other options. A new `type` must accept the options that were given.

        Raises:
            ConfigError: see `Registry.resolve`.
        """
        return Section(self.registry, {**self.given, **options}, where=self.where, mention_retired=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Section) and (self.registry, self.given) == (other.registry, other.given)

    __hash__ = None  # the options may hold lists

    def __repr__(self) -> str:
        return f"{self.where}: {self.given}"


def import_parts(package: str, folder: Path) -> None:
    """Import every module of a package and its subpackages that registers something.

    A new file therefore needs no other change. The modules are found by their text, because importing all modules would
    also load those that are imported only on use, such as kernels and open_clip.
    """
    for file in sorted(folder.rglob("*.py")):
        if REGISTERS.search(file.read_text(encoding="utf-8")):
            importlib.import_module(".".join([package, *file.relative_to(folder).with_suffix("").parts]))


def make_config(schema: type, options: Mapping[str, Any], *, where: str, owner: str) -> Any:
    """Turn plain options into the frozen dataclass `schema`.

    Strings are taken as they are: nothing in them refers to other settings.

    Raises:
        Refused: options are unknown or invalid; the message is one line with the key, the value and the nearest valid
            name of each.
    """
    return typed(schema, options, where=where, unknown=lambda key, valid: f"is unknown to {owner}{nearest(key, valid)}")


def _refused(key: str, text: str) -> Refused:
    return Refused([Refusal(key, f"{key}{text}")])


def nearest(name: str, valid: list[str]) -> str:
    """Return the end of an error message: the nearest valid name, or all valid names."""
    meant = OTHER_NAMES.get(str(name))
    close = [meant] if meant in valid else difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; valid: {', '.join(valid)}"


MODEL = Registry("MODEL")
AUTO_ENCODER = Registry("AUTO_ENCODER")
EMBEDDER = Registry("EMBEDDER")
DIFFUSION = Registry("DIFFUSION")
SAMPLERS = Registry("SAMPLERS")
RECONSTRUCTORS = Registry("RECONSTRUCTORS")
FITS = Registry("FITS")
DATASETS = Registry("DATASETS")
ENGINE = Registry("ENGINE")
INFER_ENGINE = Registry("INFER_ENGINE")
PRETRAIN = Registry("PRETRAIN")
VISUAL = Registry("VISUAL")
