"""The prompt suffix, which training and sampling share."""

from __future__ import annotations

# The published text models were trained with this suffix.
PROMPT_SUFFIX = ", 3d asset"


def with_suffix(prompt: str, suffix: str) -> str:
    """Append the suffix, unless the prompt already ends with it."""
    return prompt if prompt.endswith(suffix) else prompt + suffix
