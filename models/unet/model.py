"""The camera-conditioned video UNet: it maps (noisy latents, timestep, conditions) to a prediction, and only that.

One class implements the text and the image model; a published type name is a set of defaults. Parameter names and
shapes are those of the published weights (arXiv:2403.12010, on the UNet of ModelScope text-to-video and I2VGen-XL).

Letters: B batch, V views, C channels, H W latent pixels, F = B·V images, S context tokens, E embedding.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from models.backbone import Backbone, DeepFeatures, check_shapes
from models.unet.blocks import embedding_mlp, sinusoidal_embedding
from models.unet.config import CAMERA_DIM, UNetConfig
from models.unet.image_condition import (
    NUM_IMAGE_TOKENS,
    ViewsEncoder,
    concat_condition,
    local_image_concat,
    local_image_embedding,
)
from models.unet.layout import REPEATED_BLOCKS, decoder, encoder, middle, run
from utils.registry import MODEL
from utils.torch_settings import GroupNorm


@MODEL.register(name="UNetSD_T2VBase")
@MODEL.register(name="UNetSD_I2VGen", image_condition=True)
class OrbitUNet(Backbone):
    """Predicts epsilon or v for every view of an orbit."""

    retired_keys = {
        "upper_len": "the published models do not use it",
        "default_fps": "target_fps is given with every call",
        "misc_dropout": "the published models do not use it",
        "use_sim_mask": "the published models do not use it",
        "use_sync_attention": "the published models do not use it",
        "use_flexicube_reg": "the published models do not use it",
        "use_lgm_reg": "the published models do not use it",
        "use_lgm_refine": "use the top-level setting refine",
    }

    Config = UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        dim, embed_dim = config.dim, 4 * config.dim
        self.time_embed = embedding_mlp(dim, embed_dim)
        if config.image_condition:
            self._add_image_condition(config, embed_dim)
        if config.takes_fps:
            self.fps_embedding = embedding_mlp(dim, embed_dim)
        if config.use_camera_condition:
            self.camera_embedding = embedding_mlp(CAMERA_DIM, embed_dim)
        self.input_blocks, widths = encoder(config, embed_dim)
        self.middle_block = middle(config, embed_dim)
        self.output_blocks, width = decoder(config, embed_dim, widths)
        self.out = nn.Sequential(GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, config.out_dim, 3, padding=1))
        nn.init.zeros_(self.out[-1].weight)

    def _add_image_condition(self, config: UNetConfig, embed_dim: int) -> None:
        image_dim = config.image_width
        self.context_embedding = embedding_mlp(image_dim, embed_dim, out_dim=NUM_IMAGE_TOKENS * config.context_dim)
        self.local_image_concat = local_image_concat(config.in_dim, config.concat_dim)
        self.local_temporal_encoder = ViewsEncoder(config.concat_dim)
        self.local_image_embedding = local_image_embedding(config.in_dim, config.concat_dim, config.context_dim)

    @property
    def can_be_graphed(self) -> bool:
        """Whether training passes can be captured as CUDA graphs.

        A graph cannot reset random generators, as recomputed dropout needs it.
        """
        config = self.config
        return not config.use_checkpoint or config.checkpoint_level == "transformers" or not config.dropout

    def parts_to_compile(self) -> list[nn.Module]:
        """List the repeated blocks, which are compiled separately."""
        return [module for module in self.modules() if isinstance(module, REPEATED_BLOCKS)]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        camera_data: Tensor | None = None,
        fps: Tensor | None = None,
        image: Tensor | None = None,
        local_image: Tensor | None = None,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """Predict epsilon or v.

        Args:
            x: noisy latents (B, C, V, H, W).
            t: timesteps (B,).
            y: text tokens (B, S, y_dim).
            camera_data: camera condition (B, V, 16), see utils.cameras.camera_condition; None for images without
                cameras.
            fps: (B,) or one number; used by the image model and with use_fps_condition.
            image: CLIP image embedding (B, 1, image_dim), for the image model only; None: no tokens from it.
            local_image: latent of the conditioning view (B, C, V, H, W), for the image model only.
            deep: if it is empty, this call fills it; if it is filled, the inner part of the network does not run.

        Returns:
            (B, out_dim, V, H, W), epsilon or v, as set in the schedule.

        Raises:
            ValueError: a condition that this model needs is missing, or B or V differ between the inputs.
        """
        B, _, V, H, W = x.shape
        self.check_inputs(x, camera_data, fps, local_image)
        embedding_FE = self._embedding(t, V, camera_data, fps)
        context_BSC = self.context_tokens(y, image, local_image)
        if local_image is not None:
            concat = concat_condition(local_image, self.local_image_concat, self.local_temporal_encoder)
            x = torch.cat([x, concat.to(x.dtype)], dim=1)
        h = rearrange(x, "b c v h w -> (b v) c h w").contiguous(memory_format=torch.channels_last)
        recomputes = self.config.use_checkpoint and self.training and torch.is_grad_enabled()
        given = {"num_views": V, "context_BSC": context_BSC, "config": self.config if recomputes else None}
        reuses, outer = deep is not None and deep.value is not None, len(self.input_blocks)
        if deep is not None:
            outer = deep.num_outer
            self.check_outer(outer)
        skips = []
        for block in self.input_blocks[:outer] if reuses else self.input_blocks:
            h = run(block, h, embedding_FE, **given)
            skips.append(h)
        if not reuses:
            h = run(self.middle_block, h, embedding_FE, **given)
            for block in self.output_blocks[:-outer]:
                h = run(block, torch.cat([h, skips.pop()], dim=1), embedding_FE, **given)
        if deep is not None:
            h = deep.value = deep.value if reuses else h
        for block in self.output_blocks[-outer:]:
            h = run(block, torch.cat([h, skips.pop()], dim=1), embedding_FE, **given)
        return rearrange(self.out(h), "(b v) c h w -> b c v h w", v=V)

    def check_inputs(
        self, x: Tensor, camera_data: Tensor | None, fps: Tensor | None, local_image: Tensor | None
    ) -> None:
        """Check the shapes and the presence of the inputs of `forward`, which lists the errors."""
        check_shapes(x, camera_data, self.config, channels=self.config.in_dim)
        if self.config.image_condition and (local_image is None or fps is None):
            raise ValueError("the image model needs local_image and fps; pass both")

    def check_outer(self, num_outer: int) -> None:
        """Check that a number of outer blocks leaves an inner part, and raise ValueError if not."""
        if not 1 <= num_outer < len(self.input_blocks):
            raise ValueError(f"num_outer must lie in [1, {len(self.input_blocks) - 1}], got {num_outer}")

    def _embedding(self, t: Tensor, num_views: int, camera_data: Tensor | None, fps: Tensor | None) -> Tensor:
        """Return the embedding of the timestep, the frame rate and the camera of every view: (F, E)."""
        dtype = self.time_embed[0].weight.dtype
        embedding_BE = self.time_embed(sinusoidal_embedding(t, self.config.dim).to(dtype))
        if self.config.takes_fps and fps is not None:
            fps = torch.as_tensor(fps, device=t.device).expand(len(t))
            embedding_BE = embedding_BE + self.fps_embedding(sinusoidal_embedding(fps, self.config.dim).to(dtype))
        embedding_BVE = embedding_BE[:, None].expand(-1, num_views, -1)
        if self.config.use_camera_condition:
            if camera_data is not None:
                embedding_BVE = embedding_BVE + self.camera_embedding(camera_data.to(dtype))
            elif self.training and torch.is_grad_enabled():
                # All processes must have gradients of the same parameters to exchange; here these gradients are zero.
                nowhere_1 = embedding_BVE.new_zeros(1, CAMERA_DIM)
                embedding_BVE = embedding_BVE + 0 * self.camera_embedding(nowhere_1)
        return embedding_BVE.flatten(0, 1)

    def context_tokens(self, y: Tensor, image: Tensor | None, local_image: Tensor | None) -> Tensor:
        """Return the context tokens in the published order: text, local image, CLIP image."""
        tokens = [y]
        if local_image is not None:
            tokens.append(rearrange(self.local_image_embedding(local_image[:, :, 0]), "b c h w -> b (h w) c"))
        if image is not None:
            tokens.append(rearrange(self.context_embedding(image), "b 1 (s c) -> b s c", s=NUM_IMAGE_TOKENS))
        return torch.cat([part.to(tokens[0].dtype) for part in tokens], dim=1)
