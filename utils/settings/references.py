"""References between settings: `${seed}`, and `${oc.env:NAME}` for an environment variable.

Texts and pictures of users are never looked into: `${...}` and `???` are ordinary characters there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from utils.errors import first_line

LITERAL = ("prompts", "images", "known_views", "known_objects", "visual_train.prompts", "visual_train.images")
MISSING = "???"  # OmegaConf's sign for a value that must be given


def resolved(values: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Replace the references in plain settings.

    Returns:
        (the settings, (full name, message) of each reference that cannot be replaced). The message begins with the
        name, and the setting is left out.
    """
    refers = [(name, text) for name, text in _texts(values, "") if "${" in text or text == MISSING]
    if not refers:
        return values, []
    from omegaconf import OmegaConf  # takes 0.1 s to import
    from omegaconf.errors import OmegaConfBaseException

    wrong: dict[str, str] = {}
    for name, text in refers:
        if text == MISSING:
            wrong[name] = f"{name}=???: a value is missing; give one"
            continue
        try:
            OmegaConf.create({"text": text})
        except (OmegaConfBaseException, RecursionError) as err:
            wrong[name] = f"{name}={text}: {first_line(err)}; correct the reference"
    whole = OmegaConf.create(_readable(values, "", wrong))

    def visit(value: Any, node: Any, key: Any, name: str) -> Any:
        if name in LITERAL or name in wrong:
            return value
        if isinstance(value, dict | list):
            parts = ((one, visit(item, node[key], one, _name(name, one, value))) for one, item in _items(value))
            parts = [(one, item) for one, item in parts if _name(name, one, value) not in wrong]
            return dict(parts) if isinstance(value, dict) else [item for _, item in parts]
        if not isinstance(value, str) or "${" not in value:
            return value
        try:
            found = node[key]
            return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
        except (OmegaConfBaseException, RecursionError) as err:
            wrong[name] = f"{name}={value}: {first_line(err)}; correct the reference"
            return None

    result = {key: visit(value, whole, key, key) for key, value in values.items()}
    return {key: value for key, value in result.items() if key not in wrong}, list(wrong.items())


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """All strings in the settings with their full names, except the texts of users."""
    if name in LITERAL:
        return
    if isinstance(value, str):
        yield name, value
    for key, item in _items(value):
        yield from _texts(item, _name(name, key, value))


def _readable(value: Any, name: str, wrong: dict[str, str]) -> Any:
    """The settings without texts of users, and with null for what OmegaConf cannot hold."""
    if name in LITERAL or name in wrong or not isinstance(value, dict | list | str | int | float):
        return None
    if isinstance(value, dict | list):
        parts = [(key, _readable(item, _name(name, key, value), wrong)) for key, item in _items(value)]
        return dict(parts) if isinstance(value, dict) else [item for _, item in parts]
    return value


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _name(name: str, key: Any, inside: Any) -> str:
    if isinstance(inside, list):
        return f"{name}[{key}]"
    return f"{name}.{key}" if name else str(key)
