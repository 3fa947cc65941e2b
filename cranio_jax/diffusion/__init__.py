"""Noise schedules and samplers."""

from cranio_jax.diffusion.samplers import SAMPLERS, guided, sample, steps
from cranio_jax.diffusion.schedules import PREDICTIONS, NoiseSchedule, draw_timesteps, loss_weight, make_schedule

__all__ = ["PREDICTIONS", "SAMPLERS", "NoiseSchedule", "draw_timesteps", "guided", "loss_weight", "make_schedule", "sample", "steps"]
