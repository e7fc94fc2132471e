"""The prompt suffix, which training and sampling share."""

from __future__ import annotations

from typing import Any

# The published text models were trained with this suffix.
PROMPT_SUFFIX = ", 3d asset"


def wordings_of(value: Any) -> tuple[str, ...]:
    """Return the captions of an object, which is stored with one caption or a list of them; () if it has none."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(values) if all(isinstance(one, str) and one.strip() for one in values) else ()


def with_suffix(prompt: str, suffix: str) -> str:
    """Append the suffix, unless the prompt already ends with it."""
    return prompt if prompt.endswith(suffix) else prompt + suffix
