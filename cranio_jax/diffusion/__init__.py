"""Noise schedules and samplers."""

from cranio_jax.diffusion.samplers import SAMPLERS, guided, sample, steps
from cranio_jax.diffusion.schedules import PREDICTIONS, NoiseSchedule, loss_weight, make_schedule

__all__ = ["PREDICTIONS", "SAMPLERS", "NoiseSchedule", "guided", "loss_weight", "make_schedule", "sample", "steps"]
