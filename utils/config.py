"""Read YAML into a checked, frozen run configuration.

A file may refer to another file with `base:` (a path relative to its own folder). Its values then override those of the
base, section by section. A section with a new `type` does not inherit options. When this happens through a command-line
override, the log lists the options that are lost. Command-line overrides (`guide_scale=7.5 UNet.dim=64`) come last.
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

# When the type of one of these sections changes, the log lists the settings that are lost. Samplers are left out,
# because each sampler is expected to have its own settings.
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
        values: top-level keys from other sources than the file; those that are None are ignored.

    Returns:
        The frozen configuration; each section is a `Section` that its registry has checked.

    Raises:
        ConfigError: the file is missing or not valid YAML; a key or type is unknown (the message has the nearest valid
            name); a value has the wrong type or is out of range.
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
    """Return the whole configuration as YAML."""
    return yaml.safe_dump(cfg.as_dict(), sort_keys=False, allow_unicode=True)


def changes_text(cfg: RunConfig) -> str:
    """Return the settings that differ from the defaults, as YAML that `load_config` reads too."""
    changed = _changed(cfg.as_dict(), RunConfig().as_dict())
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    return f"# Settings that differ from the defaults. All settings: {Path(cfg.log_dir) / 'config.yaml'}\n{text}"


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    nested = {key: isinstance(value, dict) and bool(defaults.get(key)) for key, value in values.items()}
    return {
        key: _changed(value, defaults[key]) if nested[key] else value
        for key, value in values.items()
        if key not in defaults or value != defaults[key] or key == "type"
    }


def _read_tree(path: Path, *, seen: tuple[Path, ...]) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"--cfg {path}: no such file; use one of the files in configs/ or correct the path")
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base` refers back to this file; remove it or use another base")
    try:
        tree = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException) as err:
        raise ConfigError(f"{path}: not valid YAML ({first_line(err)}); correct the file") from err
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path}: the top level is not a mapping; write `key: value` lines")
    move_published_switches(tree)
    base = tree.pop("base", None)
    if base is None:
        return tree
    return _merge(_read_tree(path.parent / base, seen=(*seen, path.resolve())), tree)


def _merge(below: DictConfig, above: DictConfig) -> DictConfig:
    """Override `below` with `above`; an empty section, or one with a new type, replaces that in `below`."""
    merged = below.copy()
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, DictConfig) and isinstance(old, DictConfig) and value:
            if value.get("type", old.get("type")) == old.get("type"):
                value = OmegaConf.merge(old, value)
        merged[key] = value
    return merged


def _tell_left_behind(below: DictConfig, above: DictConfig) -> None:
    """Log the settings that a section loses with its new type, where the new type has the same option."""
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
    """Whether the option accepts the value and has another default."""
    if key not in defaults:
        return False
    try:
        return OmegaConf.merge(defaults, {key: value})[key] != defaults[key]
    except OmegaConfBaseException:  # the new type has an option of this name, but with another kind of value
        return False


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise ConfigError(f"override {item!r} is not of the form key=value; write for example seed=1")
    try:
        tree = OmegaConf.from_dotlist(list(overrides))
    except (yaml.YAMLError, OmegaConfBaseException) as err:
        raise ConfigError(f"overrides {list(overrides)}: {first_line(err)}") from err
    move_published_switches(tree)
    return tree


def _drop_retired(values: dict[str, Any]) -> dict[str, Any]:
    for key in [key for key in values if key in REPLACED_KEYS]:
        raise ConfigError(f"{key} is no longer an option: {REPLACED_KEYS[key]}")
    for key in [key for key in values if key in RETIRED_KEYS]:
        log.info("%s has no effect: %s", key, RETIRED_KEYS[key])
        del values[key]
    return values
