"""Noise schedules and samplers."""

from cranio_jax.diffusion.guidance import control_steps, guided, rescaled
from cranio_jax.diffusion.samplers import SAMPLERS, run, sample, steps
from cranio_jax.diffusion.schedules import (
    PREDICTIONS,
    NoiseSchedule,
    draw_timesteps,
    loss_weight,
    make_schedule,
)
from cranio_jax.diffusion.settings import checked_steps, scheduler_config

__all__ = [
    "PREDICTIONS",
    "SAMPLERS",
    "NoiseSchedule",
    "checked_steps",
    "control_steps",
    "draw_timesteps",
    "guided",
    "loss_weight",
    "make_schedule",
    "rescaled",
    "run",
    "sample",
    "scheduler_config",
    "steps",
]
