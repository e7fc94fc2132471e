"""Train the text and image encoder to match captions and views (CLIP, arXiv:2103.00020).

Letters: B batch, M captions of all orbits, L tokens, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.training.data.orbits_in_memory import OrbitPixels, load_orbits
from pipelines.training.objectives.base import Objective
from utils.errors import ConfigError
from utils.registry import ENGINE
from utils.settings.run import RunConfig

MAX_LOGIT_SCALE = 100.0  # as in CLIP, section 2.5


@ENGINE.register(name="train_embedder_entrance")
class MatchCaptions(Objective):
    """Contrastive loss: each view is matched with its caption in the batch, and each caption with its views.

    If captions in a batch are equal, all of them are correct.
    """

    stem = "embedder"
    reaches_all = False  # layers after the one that gives the output have no gradient

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """There are no options."""

    @classmethod
    def weight_files(cls, options: Config, cfg: RunConfig) -> dict[str, str | None]:
        return super().weight_files(options, cfg) | {"embedder.pretrained": cfg.embedder.pretrained}

    def __init__(self, config: Config, *, cfg: RunConfig, device: torch.device) -> None:
        super().__init__(cfg, device=device, num_views=1)
        if not cfg.embedder.options.can_be_trained:
            raise ConfigError(
                f"TASK_TYPE={cfg.TASK_TYPE} cannot train embedder.type={cfg.embedder.type}; "
                "set embedder.type=FrozenOpenCLIPTtxtVisualEmbedder"
            )
        self.embedder = cfg.embedder.build()
        self.network = self.embedder.model
        self.orbits = load_orbits(cfg.vid_dataset.build(), device=device)
        prompts = self.orbits.prompts
        self.token_ids_ML = self.embedder.tokenizer.ids([prompt for one in prompts for prompt in one]).to(device)
        self.num_prompts = [len(one) for one in prompts]
        self.first_prompt = [0, *itertools.accumulate(self.num_prompts)]

    @property
    def sample_source(self) -> OrbitPixels:
        return self.orbits

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for orbits_B, views_B in self.global_batch.single_views(
            self.orbits.num_orbits, self.orbits.num_views, start=start
        ):
            chosen = self.global_batch.choices([self.num_prompts[orbit] for orbit in orbits_B.tolist()])
            rows = [self.first_prompt[orbit] + one for orbit, one in zip(orbits_B.tolist(), chosen, strict=True)]
            yield self.orbits.views(orbits_B, views_B)[0], self.token_ids_ML[torch.tensor(rows, device=self.device)]

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images_B3HW, token_ids_BL = batch
        image_BC = functional.normalize(self.embedder.encode_image(images_B3HW).float(), dim=-1)
        text_BC = functional.normalize(self.embedder.embed_tokens(token_ids_BL)[0].float(), dim=-1)
        scale = self.network.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        logits_BB = scale * image_BC @ text_BC.T
        right_BB = (token_ids_BL[:, None] == token_ids_BL[None]).all(dim=-1)
        target_BB = right_BB / right_BB.sum(dim=1, keepdim=True)
        loss = (functional.cross_entropy(logits_BB, target_BB) + functional.cross_entropy(logits_BB.T, target_BB)) / 2
        found = right_BB.gather(1, logits_BB.argmax(dim=1, keepdim=True)).float().mean()
        return loss, {"recall": found}

    def parts_to_compile(self) -> list[torch.nn.Module]:
        return [self.network.visual, *self.network.transformer.resblocks]
