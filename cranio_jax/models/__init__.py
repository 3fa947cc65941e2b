"""The networks of Stable Diffusion and ControlNet, LPIPS and ArcFace, as NNX modules.

Attribute paths are the keys of the reference PyTorch checkpoints; configurations are
the fields of their config.json. Images are `(batch, height, width, channels)`.
"""

from cranio_jax.models.arcface import EMBEDDERS, make_embedder
from cranio_jax.models.autoencoder import AutoencoderKL, AutoencoderKLConfig
from cranio_jax.models.clip_text import CLIPTextConfig, CLIPTextModel
from cranio_jax.models.controlnet import ControlNetConfig, ControlNetModel
from cranio_jax.models.inception import FIDInception
from cranio_jax.models.lora import add_lora, is_lora
from cranio_jax.models.lpips import LPIPS, TRUNKS, check_side
from cranio_jax.models.outline import OutlineNetwork
from cranio_jax.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from cranio_jax.models.unet import UNet2DConditionConfig, UNet2DConditionModel

__all__ = [
    "EMBEDDERS",
    "LPIPS",
    "TRUNKS",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "ControlNetConfig",
    "ControlNetModel",
    "FIDInception",
    "OutlineNetwork",
    "TinyDecoder",
    "TinyDecoderConfig",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
    "add_lora",
    "check_side",
    "is_lora",
    "make_embedder",
]
