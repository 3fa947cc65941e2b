"""Euler, ancestral Euler and UniPC against diffusers, step by step; defaults against a loop."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral

from cranio_jax import diffusion

CLASSES = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
STABLE_DIFFUSION = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
SHAPE = (2, 3, 4, 5)
MIX = np.random.default_rng(7).standard_normal((5, 5)).astype(np.float32) / 5**0.5


def denoise(x, t):
    """A linear network for arrays of both libraries; its output depends on the timestep."""
    mix = torch.from_numpy(MIX) if isinstance(x, torch.Tensor) else jnp.asarray(MIX)
    return x @ mix + 0.0004 * t


def fresh_noise(keys, index):
    draw = [jax.random.normal(jax.random.fold_in(key, index), SHAPE[1:]) for key in keys]
    return torch.from_numpy(np.stack(draw))


def inputs_of_diffusers(scheduler, noise, keys, monkeypatch):
    """What the network sees at each step, and last the result."""
    x, seen = torch.from_numpy(noise) * scheduler.init_noise_sigma, []
    for index, t in enumerate(scheduler.timesteps):
        draw = fresh_noise(keys, index)
        monkeypatch.setattr(ancestral, "randn_tensor", lambda *_, draw=draw, **__: draw)
        scaled = scheduler.scale_model_input(x, t)
        seen.append(scaled.numpy())
        x = scheduler.step(denoise(scaled, t), t, x).prev_sample
    return [*seen, x.numpy()]


def our_inputs(table, schedule, noise, keys):
    seen = []

    def recorded(x, t):
        seen.append(np.asarray(x))
        return denoise(x, t.reshape(-1, 1, 1, 1))

    with jax.disable_jit():
        last = diffusion.sample(recorded, jnp.asarray(noise), table, schedule, keys)
    return [*seen, np.asarray(last)]


def compare(sampler, steps, spacing, prediction, monkeypatch, offset=1, tolerance=1e-5, **settings):
    scheduler = CLASSES[sampler](
        **STABLE_DIFFUSION | settings,
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=offset,
    )
    scheduler.set_timesteps(steps)
    schedule = diffusion.make_schedule(**STABLE_DIFFUSION | settings, prediction_type=prediction)
    table = diffusion.steps(schedule, sampler, steps, spacing, steps_offset=offset)
    np.testing.assert_array_equal(table.timesteps, scheduler.timesteps.numpy())
    noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    keys = jax.random.split(jax.random.key(5), SHAPE[0])
    wanted = inputs_of_diffusers(scheduler, noise, keys, monkeypatch)
    got = our_inputs(table, schedule, noise, keys)
    for step, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        scale = max(np.linalg.norm(theirs), np.linalg.norm(noise))
        error = np.linalg.norm(ours - theirs) / scale
        assert error < tolerance, (step, error)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", CLASSES)
def test_each_step_is_diffusers(sampler, spacing, prediction, monkeypatch):
    compare(sampler, 9, spacing, prediction, monkeypatch)


@pytest.mark.parametrize("steps", [1, 2, 3, 24])
@pytest.mark.parametrize("sampler", CLASSES)
def test_few_and_many_steps(sampler, steps, monkeypatch):
    compare(sampler, steps, "linspace", "v_prediction", monkeypatch)
    compare(sampler, steps, "leading", "epsilon", monkeypatch, offset=0)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("sampler", CLASSES)
def test_other_schedules(sampler, beta_schedule, monkeypatch):
    compare(sampler, 9, "leading", "v_prediction", monkeypatch, beta_schedule=beta_schedule)


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_a_network_that_predicts_the_sample(sampler, monkeypatch):
    compare(sampler, 9, "trailing", "sample", monkeypatch)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("sampler", CLASSES)
def test_zero_terminal_snr(sampler, spacing, monkeypatch):
    """diffusers' first step subtracts numbers of 4096 in single precision."""
    zero_snr = dict(rescale_betas_zero_snr=True, tolerance=3e-5)
    compare(sampler, 9, spacing, "v_prediction", monkeypatch, **zero_snr)


def test_steps_that_fit_nowhere_are_refused():
    schedule = diffusion.make_schedule()
    for sampler, steps, spacing in (
        ("unipc", 1000, "leading"),
        ("dpm++2m", 1000, "linspace"),
        ("ddim", 1000, "leading"),
    ):
        with pytest.raises(ValueError, match=f"{steps} .* with spacing='{spacing}' don't fit"):
            diffusion.steps(schedule, sampler, steps, spacing)
    # Near misses: one step less, or another spacing.
    for sampler, steps, spacing in (
        ("unipc", 999, "linspace"),
        ("ddim", 1000, "trailing"),
        ("euler", 999, "leading"),
    ):
        table = diffusion.steps(schedule, sampler, steps, spacing)
        assert all(np.isfinite(column).all() for column in table)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++2m"])
def test_defaults_change_no_bit(sampler):
    """The scan as it was before it knew a third estimate, levels by the step and a start level."""
    schedule = diffusion.make_schedule()
    table = diffusion.steps(schedule, sampler, 7, "trailing", eta=0.5)
    noise = jax.random.normal(jax.random.key(0), SHAPE)
    keys = jax.random.split(jax.random.key(1), SHAPE[0])

    def step(carry, row):
        x, before = carry
        t, a, b, c, s, index = row
        timesteps = jnp.full(SHAPE[:1], t)
        output = denoise(x, timesteps.reshape(-1, 1, 1, 1))
        clean = schedule.to_x0(output, x, timesteps)
        x = a * x + b * clean + c * (clean - before)
        if table.s.any():
            each = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
            x = x + 0.8 * s * jax.vmap(lambda key: jax.random.normal(key, SHAPE[1:]))(each)
        return (x, clean), None

    @jax.jit
    def as_it_was(noise):
        columns = [jnp.asarray(table._asdict()[name], jnp.float32) for name in "abcs"]
        rows = (jnp.asarray(table.timesteps, jnp.int32), *columns, jnp.arange(7))
        return jax.lax.scan(step, (0.8 * noise, jnp.zeros_like(noise)), rows)[0][0]

    def conditioned(x, t, _):
        return denoise(x, t.reshape(-1, 1, 1, 1))

    @jax.jit
    def now(noise):
        network = diffusion.guided(conditioned, noise, noise, 1.0)
        return diffusion.sample(network, noise, table, schedule, keys, temperature=0.8)

    np.testing.assert_array_equal(now(noise), as_it_was(noise))


def test_rescaled_guidance_is_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    without, prompted = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    prompted *= np.array([0.5, 2.0], np.float32).reshape(2, 1, 1, 1)
    network = diffusion.guided(
        lambda x, t, c: c, *map(jnp.asarray, (prompted, without)), 7.5, rescale=0.7
    )
    got = network(jnp.zeros(SHAPE), jnp.zeros(2))
    guided = torch.from_numpy(without + 7.5 * (prompted - without))
    wanted = rescale_noise_cfg(guided, torch.from_numpy(prompted), 0.7)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start,end", [(0.0, 1.0), (0.2, 0.8), (0.3, 0.7), (0.0, 0.1), (0.15, 1.0)])
@pytest.mark.parametrize("steps", [7, 10, 50])
def test_control_steps_are_diffusers(steps, start, end):
    wanted = [1.0 - float(i / steps < start or (i + 1) / steps > end) for i in range(steps)]
    np.testing.assert_array_equal(diffusion.control_steps(steps, start, end), wanted)
