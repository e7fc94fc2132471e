"""What the user gives, as what the network takes. Text and image modes differ here and nowhere else.

Letters: B batch, V views, S tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from utils.cameras import camera_condition
from utils.prompts import with_suffix


@dataclass(frozen=True)
class Conditions:
    """Arguments of the network for both guidance branches.

    Attributes:
        conditional: name to tensor, batch first.
        unconditional: the same names.
    """

    conditional: dict[str, Tensor]
    unconditional: dict[str, Tensor]

    @cached_property
    def both(self) -> dict[str, Tensor]:
        """Conditional, then unconditional, as one batch."""
        return {name: torch.cat([value, self.unconditional[name]]) for name, value in self.conditional.items()}


@dataclass(frozen=True, kw_only=True)
class TextConditioner:
    """Prompts and cameras to conditions.

    Attributes:
        embedder: gives `encode_text(prompts) -> words_BSC`.
        negative_prompt: text of the unconditional branch.
        prompt_suffix: appended to a prompt unless it has it.
        fps: the frame rate the network is told.
    """

    embedder: Any
    negative_prompt: str
    prompt_suffix: str
    fps: int

    def __call__(
        self, prompts: Sequence[str], c2w_V44: Tensor, *, device: torch.device, dtype: torch.dtype
    ) -> Conditions:
        """Embed the prompts; every sample of the batch gets the same cameras."""
        words_BSC = self.embedder.encode_text([self.full_prompt(prompt) for prompt in prompts])
        negative_BSC = self.embedder.encode_text([self.negative_prompt]).expand_as(words_BSC)
        camera_BV16 = camera_condition(c2w_V44).expand(len(prompts), -1, -1)
        shared = {
            "camera_data": camera_BV16.to(device, dtype),
            "fps": torch.full((len(prompts),), self.fps, device=device),
        }
        return Conditions(
            {"y": words_BSC.to(device, dtype), **shared},
            {"y": negative_BSC.to(device, dtype), **shared},
        )

    def full_prompt(self, prompt: str) -> str:
        """The prompt with its suffix."""
        return with_suffix(prompt, self.prompt_suffix)
