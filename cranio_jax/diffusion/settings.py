"""The block `sampling` of a configuration: its checks, and its scheduler in diffusers."""

import inspect
from typing import Any

import ml_collections

from cranio_jax.diffusion.guidance import control_steps
from cranio_jax.diffusion.samplers import SAMPLERS, SPACINGS, Steps, steps
from cranio_jax.diffusion.schedules import NoiseSchedule, make_schedule
from cranio_jax.errors import InputError

_PARTS = ("guidance_rescale", "control_start", "control_end", "eta")
_NOT_NEGATIVE = ("temperature", "clip")
_CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# Settings that give these classes our algorithms, explicit since defaults change.
_ALGORITHMS: dict[str, dict[str, Any]] = {
    "ddpm": {"variance_type": "fixed_small"},
    "dpm++2m": {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
    },
    "euler": {"interpolation_type": "linear", "final_sigmas_type": "zero"},
    "unipc": {
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
        "final_sigmas_type": "zero",
    },
}


def checked_steps(
    settings: ml_collections.ConfigDict,
    schedule: NoiseSchedule,
    text_layers: int,
    steps_offset: int,
    set_alpha_to_one: bool,
) -> Steps:
    """Returns the sampler's table for `config.sampling`.

    Args:
      settings: `config.sampling`.
      schedule: noise levels.
      text_layers: how many layers the text encoder has.
      steps_offset, set_alpha_to_one: of the published scheduler; see `steps`.

    Raises:
      InputError: a setting is out of its range, or has no effect.
    """
    s = settings
    # Ranges.
    for name in _PARTS:
        if not 0 <= s[name] <= 1:
            raise InputError(f"sampling.{name}={s[name]}: it is outside 0 to 1. Set 0 to 1.")
    for name in _NOT_NEGATIVE:
        if not s[name] >= 0:
            raise InputError(f"sampling.{name}={s[name]}: it is negative. Set it to 0 or more.")
    if not 0 <= s.clip_skip <= text_layers:
        raise InputError(
            f"sampling.clip_skip={s.clip_skip}: the text encoder has {text_layers} layers. "
            "Set how many of the last ones to skip, from 0 to all."
        )
    # The steps.
    for name, known in (("sampler", SAMPLERS), ("spacing", SPACINGS)):
        if s[name] not in known:
            names = ", ".join(known)
            raise InputError(f"sampling.{name}={s[name]!r}: it is unknown. Use one of {names}.")
    try:
        table = steps(
            schedule,
            s.sampler,
            s.num_steps,
            s.spacing,
            steps_offset=steps_offset,
            set_alpha_to_one=set_alpha_to_one,
            eta=s.eta,
        )
    except ValueError as error:
        raise InputError(f"sampling.num_steps={s.num_steps}: {error}.") from None
    # Settings without effect.
    if s.guidance_scale == 1 and (s.negative_prompt or s.guidance_rescale):
        name = "negative_prompt" if s.negative_prompt else "guidance_rescale"
        raise InputError(
            f"sampling.{name}={s[name]!r}: it has no effect without guidance. "
            "Raise sampling.guidance_scale above 1, or reset this setting."
        )
    if s.control_start >= s.control_end:
        raise InputError(
            f"sampling.control_start={s.control_start}: it is not less than "
            f"sampling.control_end={s.control_end}. Set it lower."
        )
    if not control_steps(s.num_steps, s.control_start, s.control_end).any():
        raise InputError(
            f"sampling.control_start={s.control_start}: none of {s.num_steps} steps lies fully "
            f"between it and sampling.control_end={s.control_end}, so no X-ray is seen. Widen it."
        )
    return table


def scheduler_config(
    settings: ml_collections.ConfigDict,
    schedule: dict[str, Any],
    steps_offset: int,
    set_alpha_to_one: bool,
) -> dict[str, Any]:
    """Returns the scheduler_config.json, class included, that makes diffusers sample as here.

    Args:
      settings: `config.sampling`.
      schedule: arguments of `make_schedule`.
      steps_offset, set_alpha_to_one: see `steps`.
    """
    arguments = inspect.signature(make_schedule).bind(**schedule)
    arguments.apply_defaults()
    sampler = settings.sampler
    if sampler == "euler_ancestral" and arguments.arguments["prediction_type"] == "sample":
        sampler = "ddim"  # diffusers' ancestral sampler can't predict samples
    config = {"_class_name": _CLASSES[sampler], **arguments.arguments, "trained_betas": None}
    config |= {"timestep_spacing": settings.spacing, "steps_offset": steps_offset}
    if sampler in ("ddim", "ddpm"):
        config |= {"clip_sample": settings.clip > 0, "clip_sample_range": settings.clip or 1.0}
    if sampler == "ddim":
        config["set_alpha_to_one"] = set_alpha_to_one
    return config | _ALGORITHMS.get(sampler, {})
