"""Turns plain values of YAML into a frozen dataclass, and collects everything that is refused.

Strings are taken as they are. Numbers must be finite, and whole numbers must fit into 64 bits. A number may be written
as a string; a whole number may be written as 1e6.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from utils.errors import ConfigError

LARGEST_WHOLE = 2**63 - 1
TRUTHS = {
    **dict.fromkeys(("true", "yes", "on", "y"), True),
    **dict.fromkeys(("false", "no", "off", "n"), False),
}
# Metadata of a field that is newer than finished results: they have its default.
NEWER = {"newer": True}
SHOWN = 80  # characters of a value in a message
Unknown = Callable[[str, list[str]], str]


def identifying(options: Any) -> dict[str, Any]:
    """Return the values of a dataclass that tell results apart.

    Those of newer fields count only if they are not the defaults, so that results of earlier versions stay finished.
    """
    values = dataclasses.asdict(options)
    for field in dataclasses.fields(options):
        if field.metadata.get("newer") and getattr(options, field.name) == field.default:
            del values[field.name]
    return values


@dataclass(frozen=True)
class Refusal:
    """One refused setting: its full key, and the message, which begins with the key."""

    key: str
    text: str


class Refused(ConfigError):
    """Several settings are refused; the message has all of them in one line."""

    def __init__(self, refusals: list[Refusal]) -> None:
        self.refusals = refusals
        super().__init__("; ".join(refusal.text for refusal in refusals))


def typed(schema: type, options: Mapping[str, Any], *, where: str, unknown: Unknown) -> Any:
    """Make the dataclass `schema`.

    Its `__post_init__` ends at the first value out of range. So the field that the message names gets its default
    value, and the dataclass is made again, until no further message comes.

    Args:
        options: plain values by field.
        where: name of the section in messages; "" for the top level.
        unknown: from the key of an unknown option and the valid keys to its message, without the key itself.

    Raises:
        Refused: options are unknown, of the wrong type or out of range.
    """
    hints, valid = _hints(schema), [field.name for field in dataclasses.fields(schema)]
    defaults = {field.name: field for field in dataclasses.fields(schema)}
    values: dict[str, Any] = {}
    refusals: list[Refusal] = []
    for key, value in options.items():
        full = _joined(where, key)
        if key not in hints:
            refusals.append(Refusal(full, f"{full} {unknown(str(key), valid)}"))
            continue
        try:
            if typing.get_origin(hints[key]) is dict and isinstance(value, Mapping):
                value = {**_default_entries(defaults[key]), **value}
            values[key] = converted(value, hints[key], key=full, unknown=unknown)
        except Refused as err:
            refusals += err.refusals
    missing = [name for name, field in defaults.items() if _is_required(field) and name not in options]
    refusals += [Refusal(_joined(where, name), f"{_joined(where, name)} is missing; give it") for name in missing]
    while not missing:
        try:
            made = schema(**values)
        except Refused as err:
            found = err.refusals
        except ValueError as err:
            found = [_of_message(str(err), where=where, valid=valid)]
        else:
            if refusals:
                break
            return made
        refusals += found
        culprits = {refusal.key.removeprefix(f"{where}.").split(".")[0].split("[")[0] for refusal in found}
        if not culprits & values.keys():
            break
        values = {key: value for key, value in values.items() if key not in culprits}
    raise Refused(refusals)


def converted(value: Any, hint: Any, *, key: str, unknown: Unknown) -> Any:
    """Convert a plain value to a type.

    Args:
        hint: bool, int, float, str, list, tuple, dict, a dataclass, a union of these, or Any.
        key: the full key, for messages.

    Raises:
        Refused: the value does not fit.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        _check_numbers(value, key=key)
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments, key=key, unknown=unknown)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _refused(key, value, "a section; write `key: value` lines in it")
        return typed(hint, value, where=key, unknown=unknown)
    if (origin or hint) in (list, tuple):
        return _sequence(value, origin or hint, arguments, key=key, unknown=unknown)
    if (origin or hint) is dict:
        if not isinstance(value, Mapping):
            raise _refused(key, value, "a section; write `key: value` lines in it")
        inner = arguments[1] if arguments else Any
        made = _each(((item, inner, _joined(key, name)) for name, item in value.items()), unknown=unknown)
        return dict(zip(map(str, value), made, strict=True))
    return SCALARS[hint](value, key) if hint in SCALARS else value


def _each(items: Iterable[tuple[Any, Any, str]], *, unknown: Unknown) -> list[Any]:
    """Convert (value, type, key) of several items and collect all refusals."""
    made, refusals = [], []
    for value, hint, key in items:
        try:
            made.append(converted(value, hint, key=key, unknown=unknown))
        except Refused as err:
            refusals += err.refusals
    if refusals:
        raise Refused(refusals)
    return made


def _sequence(value: Any, kind: type, arguments: tuple[Any, ...], *, key: str, unknown: Unknown) -> Any:
    if not isinstance(value, list | tuple):
        raise _refused(key, value, "a list; write [a, b]")
    fixed = kind is tuple and arguments and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        raise _refused(key, value, f"a list of {len(arguments)} values")
    inner = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
    keys = [f"{key}[{number}]" for number in range(len(value))]
    return kind(_each(zip(value, inner, keys, strict=True), unknown=unknown))


def _one_of(value: Any, kinds: tuple[Any, ...], *, key: str, unknown: Unknown) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    kinds = tuple(sorted(kinds, key=lambda kind: type(value) is not kind))  # first the type that needs no conversion
    for number, kind in enumerate(kinds):
        try:
            return converted(value, kind, key=key, unknown=unknown)
        except Refused:
            if number == len(kinds) - 1:
                raise
    return value


def _boolean(value: Any, key: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in TRUTHS:
        return TRUTHS[value.lower()]
    raise _refused(key, value, "true or false")


def _whole(value: Any, key: str) -> int:
    number = value
    if isinstance(value, str):
        try:
            number = float(value) if not value.strip().lstrip("+-").isdigit() else int(value)
        except ValueError:
            number = math.nan
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number or number % 1:
        raise _refused(key, value, "a whole number")
    if abs(number) > LARGEST_WHOLE:
        raise Refused([Refusal(key, f"{key}={_shown(value)} is out of range; it must fit into 64 bits")])
    return int(number)


def _real(value: Any, key: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        raise _refused(key, value, "a number") from None
    if not math.isfinite(number):
        raise _refused(key, value, "a finite number")
    return number


def _text(value: Any, key: str) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    raise _refused(key, value, "text")


SCALARS: dict[Any, Callable[[Any, str], Any]] = {bool: _boolean, int: _whole, float: _real, str: _text}


def _check_numbers(value: Any, *, key: str) -> None:
    """Check that all numbers inside a value of any type are finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused(key, value, "a finite number")
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise Refused([Refusal(key, f"{key}={_shown(value)} is out of range; it must fit into 64 bits")])
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_numbers(item, key=_joined(key, name))
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_numbers(item, key=f"{key}[{number}]")


def _refused(key: str, value: Any, wanted: str) -> Refused:
    return Refused([Refusal(key, f"{key}={_shown(value)} is not {wanted}")])


def _shown(value: Any) -> str:
    try:
        text = "null" if value is None else str(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        text = "a number of thousands of digits"
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _of_message(message: str, *, where: str, valid: list[str]) -> Refusal:
    """Make a refusal of an error message that begins with the key, with or without the name of the section."""
    first = message.split()[0] if message.split() else ""
    name = first.split("=")[0].rstrip(":;,")
    bare = name.removeprefix(f"{where}.")
    if bare.split(".")[0].split("[")[0] not in valid:
        return Refusal(where, f"{where}: {message}" if where and not message.startswith(where) else message)
    full = _joined(where, bare)
    return Refusal(full, f"{full}{message[len(name) :]}")


def _default_entries(field: dataclasses.Field) -> Mapping[str, Any]:
    """The entries of a mapping that is the default value of a field."""
    default = {} if field.default_factory is dataclasses.MISSING else field.default_factory()
    return default if isinstance(default, Mapping) else {}


def _is_required(field: dataclasses.Field) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _joined(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


@cache
def _hints(schema: type) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}
