"""Read YAML into a checked, frozen run configuration.

A file may refer to another file with `base:` (a path relative to its own folder). Its values then override those of the
base, section by section. A section with a new `type` does not inherit options. When this happens through a command-line
override, the log lists the options that are lost. Command-line overrides (`guide_scale=7.5 UNet.dim=64`) come last.
Files of the original code are read as they are, see utils/settings/original.py. Everything is checked before anything
is built or loaded, and one message has all faults of all files, each with its line and key.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils import registry
from utils.errors import ConfigError
from utils.files import atomic_path
from utils.registry import make_config, nearest
from utils.settings.original import (
    BASE_KEYS,
    PUBLISHED_FILES,
    TRAINED_BY,
    check_training_of,
    drop_retired,
    is_original,
    read_as_present,
)
from utils.settings.paths import ROOT, config_names, found_config, with_found_paths
from utils.settings.references import resolved
from utils.settings.run import RunConfig
from utils.settings.typed import Refused
from utils.settings.yaml_text import Document, parse, read_text

log = logging.getLogger(__name__)

# When the type of one of these sections changes, the log lists the settings that are lost. Samplers are left out,
# because each sampler is expected to have its own settings.
SECTIONS = {
    field.name: field.metadata["registry"]
    for field in dataclasses.fields(RunConfig)
    if field.metadata.get("registry", "SAMPLERS") != "SAMPLERS"
}
KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
MOST_SHOWN, LONGEST_SHOWN = 10, 240  # faults in one message, and characters of each


@dataclass(kw_only=True)
class Tree:
    """Plain values of a file with its bases, or of the command line.

    Attributes:
        values: the settings.
        places: where each setting stands, by its full name; settings of the command line have none.
        faults: messages of what is wrong.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def over(self, below: Tree) -> Tree:
        """Return `below`, overridden by this."""
        return Tree(
            values=_merge(below.values, self.values),
            places={**below.places, **self.places},
            faults=[*below.faults, *self.faults],
        )


def load_config(path: str | Path, overrides: Sequence[str] = (), **values: Any) -> RunConfig:
    """Read, merge and check a configuration.

    Args:
        path: a YAML file; one that is not in the working directory is looked for among those of the project, where
            `mini/real_infer` is enough.
        overrides: `key=value` or `section.key=value` strings; `key`, `value` in two strings as in the original.
        values: top-level keys from other sources than the file; those that are None are ignored.

    Returns:
        The frozen configuration; each section is a `Section` that its registry has checked.

    Raises:
        ConfigError: the file is missing or not valid YAML; a key or type is unknown (the message has the nearest valid
            name); a value has the wrong type or is out of range. The message is one line with all faults.
    """
    tree = _read_tree(_config_file(str(path)), seen=(), option="--cfg ")
    above = _parse_overrides(overrides)
    _tell_left_behind(tree.values, above.values)
    tree = above.over(tree)
    drop_retired(tree.values, tree.places)
    content, wrong = resolved(tree.values)
    tree.faults += [_placed(message, name, tree.places) for name, message in wrong]
    content |= {key: value for key, value in values.items() if value is not None}
    tree.places |= dict.fromkeys(values, "")
    moved: list[str] = []
    content = with_found_paths(content, moved=moved)
    if moved:
        log.info("not in the working directory, so read from %s: %s", ROOT, ", ".join(dict.fromkeys(moved)))
    try:
        cfg = make_config(RunConfig, content, where="", owner=str(path))
    except Refused as err:
        faults = [*tree.faults, *(_placed(refusal.text, refusal.key, tree.places) for refusal in err.refusals)]
        raise ConfigError(_one_line(faults)) from err
    if tree.faults:
        raise ConfigError(_one_line(tree.faults))
    return cfg


def _config_file(name: str) -> Path:
    """Find a configuration; one of the project is logged.

    Raises:
        ConfigError: no file has this name.
    """
    found = found_config(name)
    try:
        os.lstat(found)
    except FileNotFoundError as err:
        plain = name.removeprefix("configs/").removesuffix(".yaml")
        here = "no such file here, and no such configuration of the project"
        raise ConfigError(f"--cfg {name}: {here}{nearest(plain, config_names())}") from err
    except (OSError, ValueError):  # reading it says why
        pass
    if found != os.path.expanduser(name):
        log.info("--cfg %s is not in the working directory, so read from %s", name, found)
    return Path(found)


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


def _read_tree(path: Path, *, seen: tuple[Path, ...], option: str = "", sampling: str = "") -> Tree:
    """Read a file with everything below it.

    Args:
        seen: the files above this one.
        option: what names the file, for messages.
        sampling: the TASK_TYPE of a file of the original that names this one as the configuration of its training.
    """
    tree, base, original = _read_layer(path, option=option, sampling=sampling)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base` refers back to this file; remove it or use another base")
    seen = (*seen, path.resolve())
    if original:
        return tree.over(_below_original(tree.values.get("TASK_TYPE"), base, path, seen=seen))
    return tree if base is None else tree.over(_read_tree(path.parent / base, seen=seen, option=f"{path}: base="))


def _read_layer(path: Path, *, option: str = "", sampling: str = "") -> tuple[Tree, str | None, bool]:
    """Read one file: (its settings, the file that it names as its base, whether it has the form of the original)."""
    document = parse(read_text(path, named=f"{option}{path}"), named=f"{option}{path}")
    values = document.values
    if not isinstance(values, dict):
        raise ConfigError(f"{option}{path}: the top level is not a mapping; write `key: value` lines")
    tree = Tree(values=values, places={key: f"{path}, line {line}" for key, line in document.lines.items()})
    original = is_original(values) or bool(sampling and "base" not in values)
    tree.faults = _repeated(document, path, allowed=original)
    base = _pop_base(tree, path)
    if sampling:
        check_training_of(sampling, values, path, place=tree.places.get("lgm_pretrain", ""))
    read_as_present(values, tree.places)
    return tree, base, original


def _below_original(task: Any, base: str | None, path: Path, *, seen: tuple[Path, ...]) -> Tree:
    """The settings below a file of the original, whose code had defaults for what its files leave out.

    They are the published ones of its task. If the file names the configuration of its training, that comes first.
    """
    if task not in PUBLISHED_FILES:
        return Tree() if base is None else _read_tree(_beside(base, path), seen=seen)
    published = ROOT / "configs" / PUBLISHED_FILES[task]
    log.info("%s has the form of the original; what it leaves out is as in %s", path, published)
    if base is None:
        return _read_tree(published, seen=())
    if task in TRAINED_BY:
        training = _read_tree(_beside(base, path), seen=seen, option="vldm_cfg=", sampling=task)
        return _read_layer(published)[0].over(training)
    return _read_tree(_beside(base, path), seen=seen).over(_read_tree(published, seen=()))


def _pop_base(tree: Tree, path: Path) -> str | None:
    """Remove the name of the file below this one and return it.

    Raises:
        ConfigError: it is not a file name, or there are several.
    """
    given = {key: tree.values.pop(key) for key in ("base", *BASE_KEYS) if key in tree.values}
    if len(given) > 1:
        raise ConfigError(f"{path}: {' and '.join(given)} name files below this one; give only one of them")
    for key, value in given.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigError(f"{tree.places[key]}: {key}={value} is not a file name; name one file")
        if value is not None and key != "base":
            log.info("%s: %s=%s is read as the base", tree.places[key], key, value)
        return value
    return None


def _beside(name: str, path: Path) -> Path:
    """The file that a file of the original names: from the working directory, as there, or from near `path`."""
    name = os.path.expanduser(name)
    near = (Path(name), path.parent / name, path.resolve().parent.parent / name, ROOT / name)
    return next((file for file in near if os.path.isfile(file)), Path(name))


def _repeated(document: Document, path: Path, *, allowed: bool) -> list[str]:
    """Messages for keys that come again; in a file of the original, the last one counts, as it did there."""
    faults = []
    for key, line, first in document.twice:
        message = f"{path}, line {line}: {key} comes again (first in line {first})"
        if allowed:
            log.warning("%s; this last value counts", message)
        else:
            faults.append(f"{message}; keep one")
    return faults


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Override `below` with `above`; an empty section, or one with a new type, replaces that in `below`."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value:
            if value.get("type", old.get("type")) == old.get("type"):
                value = _deep_merge(old, value)
        merged[key] = value
    return merged


def _deep_merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _deep_merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def _tell_left_behind(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Log the settings that a section loses with its new type, where the new type has the same option."""
    for name, registry_name in SECTIONS.items():
        old, new = below.get(name), above.get(name)
        if not isinstance(old, dict) or not isinstance(new, dict) or "type" not in new:
            continue
        if new["type"] == old.get("type"):
            continue
        own = getattr(registry, registry_name)
        left = [key for key in old if key not in new and own.says_more(new["type"], key, old[key])]
        if left:
            log.warning(
                "%s.type=%s starts from its own defaults; not kept: %s; set them again to keep them",
                name,
                new["type"],
                ", ".join(f"{key}={old[key]}" for key in left),
            )


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the values of `key=value` arguments, nested by the dots of their keys.

    Raises:
        ConfigError: an argument is not of this form, or a key comes twice.
    """
    tree = _parse_overrides(overrides)
    if tree.faults:
        raise ConfigError(_one_line(tree.faults))
    return tree.values


def _parse_overrides(overrides: Sequence[str]) -> Tree:
    tree = Tree()
    waiting = list(overrides)
    while waiting:
        item = waiting.pop(0)
        key, equals, text = item.partition("=")
        if not equals and KEY.fullmatch(item) and waiting and "=" not in waiting[0]:
            text, equals = waiting.pop(0), "="
        if not equals or not KEY.fullmatch(key):
            raise ConfigError(f"override {item!r} is not of the form key=value; write for example seed=1")
        document = parse(text, named=f"override {item!r}")
        _put(tree.values, key, document.values, item=item)
        tree.places |= dict.fromkeys([key, *(f"{key}.{inner}" for inner in document.lines)], "")
        if document.twice:
            tree.faults.append(f"override {item!r}: {document.twice[0][0]} comes again; keep one")
    read_as_present(tree.values, tree.places)
    return tree


def _put(values: dict[str, Any], key: str, value: Any, *, item: str) -> None:
    """Set a value by its full name; sections on the way are made."""
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {item!r}: an earlier override makes {section} a value; give only one of them")
    values[last] = value


def _placed(text: str, key: str, places: dict[str, str]) -> str:
    """Put the place of a setting, or of the section that it should be in, before a message."""
    name = key
    while name and name not in places:
        name = name[: max(name.rfind("."), name.rfind("["), 0)]
    place = places.get(name, "")
    return f"{place}: {text}" if place else text


def _one_line(faults: list[str]) -> str:
    """Join messages to one line."""
    if len(faults) == 1:
        return faults[0]
    shown = [text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..." for text in faults[:MOST_SHOWN]]
    more = f"; {len(faults) - MOST_SHOWN} more" if len(faults) > MOST_SHOWN else ""
    return f"{len(faults)} settings are wrong: {'; '.join(shown)}{more}"
