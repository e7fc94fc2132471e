"""The Gaussian head of a run: whether it can be used, and its weights."""

from __future__ import annotations

import logging

import torch

from models.autoencoder import AutoencoderKL
from models.gaussians.lgm import LGM
from models.gaussians.rendering import pick_rasterizer
from models.weights import load_head, read_weights
from pipelines.placement import Stage
from pipelines.reconstruction.feed_forward import GaussianReconstruction
from utils.errors import ConfigError, DataError
from utils.registry import MODEL, RECONSTRUCTORS
from utils.settings.run import RunConfig
from utils.torch_settings import channels_last

log = logging.getLogger(__name__)


def check_reconstruction(cfg: RunConfig, device: torch.device, *, needed: bool = False) -> None:
    """Refuse, before anything is loaded, a head that is needed or told its views, and cannot work on what is sampled.

    Where only the files of the object depend on it, the run goes on without them; see `load_head_of`.

    Args:
        needed: also where nothing is refined.

    Raises:
        ConfigError: names the setting and what would do.
    """
    refines = cfg.UNet.get("use_lgm_refine")
    if not cfg.reconstruction:
        if refines:
            raise ConfigError("UNet.use_lgm_refine=true needs a section reconstruction; see configs/t2v_infer.yaml")
        return
    pick_rasterizer(cfg.rasterizer, device)
    obstacle = _obstacle(cfg)
    if obstacle and (refines or needed):
        raise ConfigError(f"{obstacle}; change that{', or set UNet.use_lgm_refine=false' if refines else ''}")
    if obstacle and cfg.reconstruction.get("input_views"):
        raise ConfigError(f"{obstacle}; change that, or sample without the head: reconstruction={{}}")


def load_head_of(cfg: RunConfig) -> LGM | None:
    """The head that `cfg.reconstruction` describes, on the CPU; None when none is needed and there is none to load, or
    it cannot work on what the run samples.

    Raises:
        DataError: the weights are missing or do not fit.
    """
    if not cfg.reconstruction:
        return None
    config = RECONSTRUCTORS.resolve(cfg.reconstruction, where="reconstruction")[1]
    option, path = "reconstruction.pretrained", config.pretrained
    if path is None:
        option, path = "test_model", cfg.test_model
        if not read_weights(path, option=option).head:
            if cfg.UNet.get("use_lgm_refine"):
                raise DataError(
                    f"test_model={path} holds no Gaussian head (lgm_big.*), which UNet.use_lgm_refine=true needs; name "
                    "its own file with reconstruction.pretrained, or set UNet.use_lgm_refine=false"
                )
            log.info("no Gaussians: test_model holds no head, and reconstruction.pretrained names none")
            return None
    if obstacle := _obstacle(cfg):
        log.warning("no Gaussians: %s", obstacle)
        return None
    return load_lgm(config.head, path, option=option)


def build_reconstruction(
    cfg: RunConfig, head: LGM, *, autoencoder: AutoencoderKL, stage: Stage
) -> GaussianReconstruction:
    """What `cfg.reconstruction` describes, of loaded parts that the stage brings to the device."""
    if cfg.channels_last and stage.device.type == "cuda":
        channels_last(head)
    return RECONSTRUCTORS.build(
        cfg.reconstruction,
        where="reconstruction",
        head=head,
        autoencoder=autoencoder,
        stage=stage,
        rasterizer=cfg.rasterizer,
        decode_chunk=cfg.decoder_bs,
        encode_chunk=cfg.chunk_size,
    )


def usable(
    reconstruction: GaussianReconstruction | None, *, num_views: int, resolution: tuple[int, int], needed: bool
) -> GaussianReconstruction | None:
    """The reconstruction, if there is one and it can work on the views of a call.

    Args:
        needed: say so where it cannot; else the call goes on without Gaussians.

    Raises:
        ConfigError: it cannot, and it is needed.
    """
    obstacle = reconstruction and reconstruction.config.obstacle(num_views=num_views, resolution=resolution)
    if obstacle is None:
        return reconstruction
    if needed:
        raise ConfigError(f"{obstacle}; ask for results=plain")
    log.warning("no Gaussians: %s", obstacle)
    return None


def load_lgm(options: dict[str, object], path: str, *, option: str) -> LGM:
    """A head for inference, on the CPU, without drawing random weights first.

    Raises:
        DataError: the weights are missing or do not fit.
    """
    with torch.device("meta"):
        head = MODEL.build({"type": "LGM", **options}, where="reconstruction.head")
    load_head(head, path, option=option)
    return head.requires_grad_(False).eval()


def _obstacle(cfg: RunConfig) -> str | None:
    config = RECONSTRUCTORS.resolve(cfg.reconstruction, where="reconstruction")[1]
    return config.obstacle(num_views=len(cfg.cameras.c2w()), resolution=cfg.resolution)
