"""Checks of Cranio-Diff's settings, mostly that they agree with each other."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections

from cranio_jax import diffusion, models
from cranio_jax.errors import InputError
from cranio_jax.models.alignment import check_crop

NETWORKS = ("controlnet", "unet", "text_encoder", "vae")
TRAINABLE = (*NETWORKS, "unet_lora")
# The fields that a ControlNet must have in common with its U-Net.
SHARED = ("block_out_channels", "cross_attention_dim", "in_channels", "layers_per_block")
# The scheduler's fields that make the noise schedule; config.sampling chooses the sampler.
SCHEDULE = (
    "beta_schedule",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "prediction_type",
    "rescale_betas_zero_snr",
)
_SCHEDULER = (*SCHEDULE, "steps_offset", "set_alpha_to_one", "trained_betas")
# Of a ControlNet's config.json: the SHA-256 of the outline network that it has learnt with.
OUTLINE_FIELD = "_outline"
GATES = ("none", "quadratic", "below")


class Structure(NamedTuple):
    """The configurations of the networks, and the noise schedule with its fields."""

    unet: models.UNet2DConditionConfig
    controlnet: models.ControlNetConfig
    text_encoder: models.CLIPTextConfig
    vae: models.AutoencoderKLConfig
    schedule: diffusion.NoiseSchedule
    schedule_fields: dict[str, Any]


class Codec(NamedTuple):
    """How the codec changes a picture: sides divided by `factor`, 3 channels to `channels`."""

    factor: int
    channels: int


def check_trained(settings: ml_collections.ConfigDict, has_controlnet: bool) -> None:
    """Raises InputError if `config.method` does not say clearly what is trained."""
    trained = set(settings.trained)
    known = [part for part in TRAINABLE if has_controlnet or part != "controlnet"]
    if unknown := trained - set(known):
        raise InputError(
            f"method.trained: {min(unknown)!r} is unknown. Use some of {', '.join(known)}."
        )
    if {"unet", "unet_lora"} <= trained:
        raise InputError(
            "method.trained: it names both 'unet' and 'unet_lora', but a U-Net is trained either "
            "whole or by additions. Remove one of them."
        )
    if "unet_lora" in trained and settings.lora_rank < 1:
        raise InputError(f"method.lora_rank={settings.lora_rank}: it must be positive. Raise it.")


def check_scheduler_fields(names: Iterable[str]) -> None:
    """Raises InputError if `config.method.scheduler` has an unknown field."""
    if unknown := set(names) - set(_SCHEDULER):
        raise InputError(
            f"method.scheduler.{min(unknown)}: it is unknown. Use some of {', '.join(_SCHEDULER)}."
        )


def read_structure(settings: Mapping[str, Mapping[str, Any]]) -> Structure:
    """Returns the networks' configurations from their settings by part, 'scheduler' included.

    Raises InputError if a field is impossible.
    """
    scheduler = settings["scheduler"]
    noise = {name: scheduler[name] for name in SCHEDULE if name in scheduler}
    control = {**settings["unet"], **settings["controlnet"]}
    try:
        structure = Structure(
            schedule=diffusion.make_schedule(**noise),
            unet=models.UNet2DConditionConfig.from_mapping(settings["unet"]),
            controlnet=models.ControlNetConfig.from_mapping(control),
            text_encoder=models.CLIPTextConfig.from_mapping(settings["text_encoder"]),
            vae=models.AutoencoderKLConfig.from_mapping(settings["vae"]),
            schedule_fields=noise,
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"method: {error}") from None
    if scheduler.get("trained_betas") is not None:
        raise InputError(
            "method.scheduler.trained_betas: they are not implemented. "
            "Use one of the named beta_schedules."
        )
    return structure


def check_agreement(structure: Structure) -> None:
    """Raises InputError if the ControlNet or the text encoder does not fit the U-Net."""
    control, unet, text = structure.controlnet, structure.unet, structure.text_encoder
    for name in SHARED:
        ours, theirs = getattr(control, name), getattr(unet, name)
        if ours != theirs:
            raise InputError(
                f"method.controlnet.{name}={ours}: the U-Net's {name} is {theirs}. "
                "Set both to the same value."
            )
    if text.hidden_size != unet.cross_attention_dim:
        raise InputError(
            f"method.text_encoder.hidden_size={text.hidden_size}: the U-Net's cross_attention_dim "
            f"is {unet.cross_attention_dim}. Set both to one value."
        )


def read_codec(settings: ml_collections.ConfigDict, vae: models.AutoencoderKLConfig) -> Codec:
    """Returns what `config.method.codec` does to a picture. Raises InputError if it is unknown."""
    if settings.codec == "patch":
        return Codec(factor=settings.patch, channels=3 * settings.patch**2)
    if settings.codec == "vae":
        halvings = len(vae.block_out_channels) - 1
        return Codec(factor=2**halvings, channels=vae.latent_channels)
    raise InputError(f"method.codec={settings.codec!r}: it is unknown. Use 'patch' or 'vae'.")


def check_condition(controlnet: models.ControlNetConfig, file: str) -> None:
    """Raises InputError if the ControlNet has no channel for the outline that `file` finds."""
    if controlnet.conditioning_channels != 3:
        raise InputError(
            f"pretrained.outline={file}: the ControlNet has conditioning_channels="
            f"{controlnet.conditioning_channels}, and X-ray, outline and X-ray need 3. Use a "
            "ControlNet with 3 channels, or no outline."
        )


def check_no_outline(learnt_with: str | None) -> None:
    """Raises InputError if the ControlNet has learnt with an outline network, of that SHA-256."""
    if learnt_with:
        raise InputError(
            "pretrained.outline: the ControlNet has learnt with an outline network (SHA-256 "
            f"{learnt_with[:12]}), which is not beside it. Name its outline.safetensors."
        )


def check_outline_settings(settings: ml_collections.ConfigDict, has_outline: bool) -> None:
    """Raises InputError if settings of outlines are set where no outline is found."""
    for name in ("outline_weight", "true_outline"):
        if settings[name] and not has_outline:
            raise InputError(
                f"method.{name}={settings[name]:g}: no network finds outlines. Set "
                "pretrained.outline."
            )


def check_hints(controlnet: models.ControlNetConfig, factor: int) -> None:
    """Raises InputError if the ControlNet does not shrink X-rays by the codec's `factor`."""
    hints = controlnet.conditioning_embedding_out_channels
    shrinkage = 2 ** (len(hints) - 1)
    if shrinkage != factor:
        raise InputError(
            f"method.controlnet.conditioning_embedding_out_channels={tuple(hints)}: it shrinks "
            f"the X-ray by {shrinkage}, the codec shrinks the face by {factor}. "
            "Each number after the first halves the X-ray."
        )


def check_codec(structure: Structure, codec: Codec, size: int) -> None:
    """Raises InputError if pictures of `size` pixels, codec and U-Net do not fit each other."""
    factor, channels = codec
    unet = structure.unet
    if unet.in_channels != channels or unet.out_channels != channels:
        raise InputError(
            f"method.unet.in_channels={unet.in_channels}, out_channels={unet.out_channels}: "
            f"the codec has {channels} channels. Set both to {channels}."
        )
    if size % factor:
        raise InputError(
            f"data.settings.size={size}: the codec shrinks pictures by {factor}. "
            f"Set a multiple of {factor}."
        )


def check_tokens(length: int, ids: int, text: models.CLIPTextConfig) -> None:
    """Raises InputError if the text encoder is too small for `length` tokens out of `ids`."""
    if length > text.max_position_embeddings:
        raise InputError(
            f"prompt.length={length}: the text encoder has {text.max_position_embeddings} "
            "positions. Set it to that or less."
        )
    if ids > text.vocab_size:
        raise InputError(
            f"method.text_encoder.vocab_size={text.vocab_size}: the tokenizer has {ids} ids. "
            "Name the tokenizer that belongs to the text encoder, or train one with that many."
        )


def check_learning_rates(settings: ml_collections.ConfigDict) -> None:
    """Raises InputError if a network that is not trained has a learning rate."""
    if idle := set(settings.learning_rates) - set(settings.trained):
        name = min(idle)
        raise InputError(
            f"method.learning_rates.{name}: method.trained does not name {name!r}. "
            "Remove the rate, or train the network."
        )


def check_losses(losses: ml_collections.ConfigDict, log_every: int) -> None:
    """Raises InputError if a setting of `config.method.losses` is out of its range.

    Args:
      losses: the settings.
      log_every: steps between log lines.
    """
    if losses.gate not in GATES:
        raise InputError(
            f"method.losses.gate={losses.gate!r}: it is unknown. Use one of {', '.join(GATES)}."
        )
    for name in ("lpips", "identity"):
        if losses[name] < 0:
            raise InputError(
                f"method.losses.{name}={losses[name]}: it is negative. Set it to 0 or more."
            )
    if losses.every < 1:
        raise InputError(f"method.losses.every={losses.every}: it must be positive. Raise it.")
    if (losses.lpips or losses.identity) and log_every % losses.every:
        raise InputError(
            f"train.log_every={log_every}: the loss terms of these steps are not computed. "
            f"Set it to a multiple of method.losses.every={losses.every}."
        )
    check_crop(losses.crop, "method.losses.crop")
