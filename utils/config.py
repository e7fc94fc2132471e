"""YAML to a checked, frozen run configuration.

A file may name another one with `base:` (relative to itself); its values lie over the base's, section by section.
A section that changes its `type` starts afresh; on the command line, what is lost by that is said. Command-line
overrides (`guide_scale=7.5 UNet.dim=64`) come last.
Everything is checked before anything is built or loaded.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils import registry
from utils.errors import ConfigError, first_line
from utils.files import atomic_path
from utils.registry import make_config
from utils.settings.original import REPLACED_KEYS, RETIRED_KEYS, move_published_switches
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

# Sections whose settings are missed where another type begins without them; another sampler is meant to bring its own.
SECTIONS = {
    field.name: field.metadata["registry"]
    for field in dataclasses.fields(RunConfig)
    if field.metadata.get("registry", "SAMPLERS") != "SAMPLERS"
}


def load_config(path: str | Path, overrides: Sequence[str] = (), **values: Any) -> RunConfig:
    """Read, merge and check a configuration.

    Args:
        path: a YAML file.
        overrides: `key=value` or `section.key=value` strings.
        values: top-level keys that came another way; None is left out.

    Returns:
        The frozen configuration; each section is a `Section` that its registry has checked.

    Raises:
        ConfigError: the file is missing or no YAML; an unknown key or type (with the nearest valid name); a value of
            the wrong type or out of range.
    """
    tree = _read_tree(Path(path), seen=())
    above = _parse_overrides(overrides)
    _tell_left_behind(tree, above)
    tree = _merge(tree, above)
    content = _drop_retired(OmegaConf.to_container(tree, resolve=True))
    content |= {key: value for key, value in values.items() if value is not None}
    return make_config(RunConfig, content, where="", owner=str(path))


def save_config(cfg: RunConfig, path: str | Path) -> None:
    """Write the whole configuration as YAML, in a form that `load_config` reads back."""
    with atomic_path(path) as part:
        part.write_text(config_text(cfg), encoding="utf-8")


def config_text(cfg: RunConfig) -> str:
    """The whole configuration as YAML."""
    return yaml.safe_dump(cfg.as_dict(), sort_keys=False, allow_unicode=True)


def changes_text(cfg: RunConfig) -> str:
    """What a configuration changes of the defaults, as YAML that `load_config` reads too."""
    changed = _changed(cfg.as_dict(), RunConfig().as_dict())
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    return f"# Settings that are not the defaults; all of them: {Path(cfg.log_dir) / 'config.yaml'}\n{text}"


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    nested = {key: isinstance(value, dict) and bool(defaults.get(key)) for key, value in values.items()}
    return {
        key: _changed(value, defaults[key]) if nested[key] else value
        for key, value in values.items()
        if key not in defaults or value != defaults[key] or key == "type"
    }


def _read_tree(path: Path, *, seen: tuple[Path, ...]) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"--cfg {path}: no such file; the shipped ones are in configs/")
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base` leads back to the file itself")
    try:
        tree = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException) as err:
        raise ConfigError(f"{path}: not valid YAML ({first_line(err)})") from err
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level")
    move_published_switches(tree)
    base = tree.pop("base", None)
    if base is None:
        return tree
    return _merge(_read_tree(path.parent / base, seen=(*seen, path.resolve())), tree)


def _merge(below: DictConfig, above: DictConfig) -> DictConfig:
    """Lay `above` over `below`; a section whose type changes, or an empty one, replaces the one below."""
    merged = below.copy()
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, DictConfig) and isinstance(old, DictConfig) and value:
            if value.get("type", old.get("type")) == old.get("type"):
                value = OmegaConf.merge(old, value)
        merged[key] = value
    return merged


def _tell_left_behind(below: DictConfig, above: DictConfig) -> None:
    """Name settings of a section that its new type would have taken too, and does not have by itself."""
    for name, registry_name in SECTIONS.items():
        old, new = below.get(name), above.get(name)
        if not isinstance(old, DictConfig) or not isinstance(new, DictConfig) or "type" not in new:
            continue
        if new["type"] == old.get("type"):
            continue
        defaults = getattr(registry, registry_name).defaults(new["type"])
        left = [key for key in old if key not in new and _says_more(key, old[key], defaults)]
        if left:
            log.warning(
                "%s.type=%s starts from its own defaults; not kept: %s; set them again to keep them",
                name,
                new["type"],
                ", ".join(f"{key}={old[key]}" for key in left),
            )


def _says_more(key: str, value: Any, defaults: DictConfig) -> bool:
    """Whether an option could be set to a value, and is not by default."""
    if key not in defaults:
        return False
    try:
        return OmegaConf.merge(defaults, {key: value})[key] != defaults[key]
    except OmegaConfBaseException:  # the name is the same, the kind of value is not
        return False


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise ConfigError(f"override {item!r} is not of the form key=value")
    try:
        tree = OmegaConf.from_dotlist(list(overrides))
    except (yaml.YAMLError, OmegaConfBaseException) as err:
        raise ConfigError(f"overrides {list(overrides)}: {first_line(err)}") from err
    move_published_switches(tree)
    return tree


def _drop_retired(values: dict[str, Any]) -> dict[str, Any]:
    for key in [key for key in values if key in REPLACED_KEYS]:
        raise ConfigError(f"{key} is replaced: {REPLACED_KEYS[key]}")
    for key in [key for key in values if key in RETIRED_KEYS]:
        log.info("%s has no effect: %s", key, RETIRED_KEYS[key])
        del values[key]
    return values
