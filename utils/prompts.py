"""The one rule about prompts that training and sampling share."""

from __future__ import annotations

# The published text models were trained with it.
PROMPT_SUFFIX = ", 3d asset"


def with_suffix(prompt: str, suffix: str) -> str:
    """The prompt, ending in the suffix."""
    return prompt if prompt.endswith(suffix) else prompt + suffix
