"""Reads YAML to plain values, with the line of each key, and turns every fault into one line.

All keys are strings: `24: 2` has the key "24". Dates stay text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError, first_line

MOST_NODES = 100_000  # more come from aliases inside aliases
DEEPEST = 50  # levels of nesting


class Loader(yaml.SafeLoader):
    """YAML's plain values; 1e-5 is a number, as it is in JSON, and a date is text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:timestamp",)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(kw_only=True)
class Document:
    """Values of a YAML text.

    Attributes:
        values: plain values.
        lines: the line of each key by its full name, such as `UNet.dim`; list items are not in it.
        twice: (full name, line, first line) of keys that come again in one mapping; the last value counts.
    """

    values: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    twice: list[tuple[str, int, int]] = field(default_factory=list)


def read_text(path: Path, *, named: str) -> str:
    """Read UTF-8 text with or without BOM.

    Args:
        named: how messages name the file, with its option.

    Raises:
        ConfigError: the file is missing, cannot be read, or is not UTF-8.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{named} is a folder; name a file in it")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as err:
        raise ConfigError(f"{named}: no such file; use one of the files in configs/ or correct the path") from err
    except UnicodeDecodeError as err:
        line = err.object[: err.start].count(b"\n") + 1
        raise ConfigError(
            f"{named}, line {line}: not UTF-8 text (byte 0x{err.object[err.start]:02x}); save the file as UTF-8"
        ) from err
    except (OSError, ValueError) as err:  # ValueError: a path with a zero byte
        raise ConfigError(f"{named} cannot be read ({err}); correct the path") from err


def parse(text: str, *, named: str, line_numbers: bool = True) -> Document:
    """Parse one YAML document.

    Args:
        named: how messages name the text.
        line_numbers: whether messages have the line, which one line of the command line has no use for.

    Raises:
        ConfigError: this is not valid YAML.
    """
    document, loader = Document(), None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is not None:
            document.values = _Reader(loader, document).value(node, "", ())
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        place = f", line {mark.line + 1}" if mark is not None and line_numbers else ""
        raise ConfigError(f"{named}{place}: not valid YAML ({_problem(err)}); correct it") from err
    except yaml.YAMLError as err:
        raise ConfigError(f"{named}: not valid YAML ({first_line(err)}); correct it") from err
    except RecursionError as err:
        raise ConfigError(f"{named}: not valid YAML (nested too deeply); correct it") from err
    except ValueError as err:  # such as a number of more than 4,300 digits
        raise ConfigError(f"{named}: not valid YAML ({first_line(err)}); correct it") from err
    finally:
        if loader is not None:
            loader.dispose()
    return document


def _problem(err: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (err.context, err.problem) if part]
    return " ".join(" ".join(parts).split())


class _Reader:
    """Turns the nodes of one document into plain values."""

    def __init__(self, loader: Loader, document: Document) -> None:
        self.loader, self.document, self.num_nodes = loader, document, 0

    def value(self, node: yaml.Node, name: str, above: tuple[yaml.Node, ...]) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MOST_NODES:
            raise yaml.YAMLError("more than 100,000 values")
        if any(node is one for one in above):
            raise yaml.constructor.ConstructorError(None, None, "an alias that contains itself", node.start_mark)
        if len(above) > DEEPEST:
            raise yaml.constructor.ConstructorError(None, None, "nested too deeply", node.start_mark)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, name, (*above, node))
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.value(item, f"{name}[{number}]", (*above, node)) for number, item in enumerate(node.value)]
        return self.loader.construct_object(node, deep=True)

    def _mapping(self, node: yaml.MappingNode, name: str, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        own = {id(key) for key, _ in node.value}
        self.loader.flatten_mapping(node)  # `<<: *other`
        values: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a name", key_node.start_mark)
            key, line = key_node.value, key_node.start_mark.line + 1
            full = f"{name}.{key}" if name else key
            if id(key_node) in own:
                if key in first:
                    self.document.twice.append((full, line, first[key]))
                first.setdefault(key, line)
            self.document.lines[full] = line
            values[key] = self.value(value_node, full, above)
        return values
