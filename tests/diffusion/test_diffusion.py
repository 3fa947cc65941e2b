"""Schedules and samplers against closed forms and against diffusers' schedulers."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cranio_jax import diffusion


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedule_agrees_with_diffusers(name, zero_snr):
    reference = diffusers.DDIMScheduler(
        beta_schedule=name, beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=zero_snr
    )
    ours = diffusion.make_schedule(
        name, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr
    )
    np.testing.assert_allclose(
        ours.alphas_cumprod, reference.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7
    )
    if zero_snr:
        assert ours.alphas_cumprod[-1] == 0.0


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_target_determines_x0(prediction):
    schedule = diffusion.make_schedule(prediction_type=prediction)
    x0, noise = jax.random.normal(jax.random.key(0), (2, 4, 3, 3, 2))
    t = jnp.array([0, 10, 500, 900])
    x_t = schedule.add_noise(x0, noise, t)
    np.testing.assert_allclose(schedule.to_x0(schedule.target(x0, noise, t), x_t, t), x0, atol=2e-4)


@pytest.mark.parametrize("weight", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_weighted_loss_does_not_depend_on_what_is_predicted(prediction, weight):
    """The loss of an error in x_0 is the same for all prediction types."""
    schedule, reference = (diffusion.make_schedule(prediction_type=p) for p in (prediction, weight))
    t = jnp.array([50, 400, 800])
    x0, noise, off = jax.random.normal(jax.random.key(1), (3, 3, 16))
    x_t = schedule.add_noise(x0, noise, t)

    def loss(s):
        wrong = x0 + 0.1 * off
        alpha, sigma = s.alpha_sigma(t, 2)
        error = s.target(wrong, (x_t - alpha * wrong) / sigma, t) - s.target(x0, noise, t)
        return (diffusion.loss_weight(s, t, weight)[:, None] * error**2).sum(1)

    np.testing.assert_allclose(loss(schedule), loss(reference), rtol=2e-3)


def test_min_snr_weight():
    schedule = diffusion.make_schedule(prediction_type="epsilon")
    t = jnp.array([1, 900])
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    np.testing.assert_allclose(
        diffusion.loss_weight(schedule, t, "min_snr"),
        np.minimum(snr, 5)[[1, 900]] / snr[[1, 900]],
        rtol=1e-5,
    )


def test_distributions_of_timesteps():
    """A share x of cubic timesteps lies above T (1 - x^3)."""
    key = jax.random.key(0)
    for distribution, power in (("uniform", 1), ("cubic", 3)):
        t = np.asarray(diffusion.draw_timesteps(key, 20_000, 1000, distribution))
        assert t.min() >= 0 and t.max() <= 999
        shares = np.array([(t >= 1000 * (1 - x**power)).mean() for x in (0.1, 0.5, 0.9)])
        np.testing.assert_allclose(shares, [0.1, 0.5, 0.9], atol=0.012)
    with pytest.raises(ValueError, match="'linear' is not one of uniform, cubic"):
        diffusion.draw_timesteps(key, 4, 1000, "linear")


MEAN, SPREAD = 0.7, 0.4


def gaussian_denoiser(schedule):
    """Returns the exact denoiser for Gaussian data with MEAN and SPREAD.

    The posterior mean of a Gaussian has a closed form.
    """

    def denoise(x, t):
        alpha, sigma = schedule.alpha_sigma(t, x.ndim)
        x0 = MEAN + alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * (x - alpha * MEAN)
        if schedule.prediction == "sample":
            return x0
        noise = (x - alpha * x0) / sigma
        return noise if schedule.prediction == "epsilon" else alpha * noise - sigma * x0

    return denoise


@pytest.mark.parametrize(
    "sampler,steps,tolerance", [("ddim", 500, 0.01), ("ddpm", 1000, 0.015), ("dpm++2m", 200, 0.01)]
)
@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_samplers_reach_a_gaussian(sampler, steps, tolerance, prediction):
    schedule = diffusion.make_schedule(prediction_type=prediction)
    noise = jax.random.normal(jax.random.key(0), (4, 20000))
    bar = schedule.alphas_cumprod[
        -1
    ]  # not pure noise at the last step: start from the true marginal
    noise = np.sqrt(bar) * MEAN + np.sqrt(bar * SPREAD**2 + 1 - bar) * noise
    table = diffusion.steps(schedule, sampler, steps, spacing="trailing", set_alpha_to_one=True)
    keys = jax.random.split(jax.random.key(1), 4)
    x = diffusion.sample(gaussian_denoiser(schedule), noise, table, schedule, keys)
    assert abs(float(x.mean()) - MEAN) < tolerance
    assert abs(float(x.std()) - SPREAD) < tolerance


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_temperature(sampler):
    """A temperature of 0.25 scales the distance from the noise-free sample by 0.25.

    For Gaussian data a sampler is linear in its noise.
    """
    schedule = diffusion.make_schedule(prediction_type="v_prediction")
    table, keys = (
        diffusion.steps(schedule, sampler, 20, spacing="trailing"),
        jax.random.split(jax.random.key(1), 4),
    )
    noise = jax.random.normal(jax.random.key(0), (4, 50))
    hot, warm, cold = (
        diffusion.sample(
            gaussian_denoiser(schedule), noise, table, schedule, keys, temperature=temperature
        )
        for temperature in (1.0, 0.25, 0.0)
    )
    assert float(jnp.abs(hot - cold).max()) > 0.5
    np.testing.assert_allclose(warm - cold, 0.25 * (hot - cold), atol=1e-5)
    np.testing.assert_array_equal(cold, jnp.broadcast_to(cold[:1, :1], cold.shape))


def test_second_order_beats_first_order():
    """Compared before the last step to zero noise, which is of first order in both."""
    schedule = diffusion.make_schedule()
    table = diffusion.steps(schedule, "dpm++2m", 12, spacing="trailing")
    noise = jax.random.normal(jax.random.key(0), (1, 2000))
    # The flow of a Gaussian is linear: it keeps the distance to the mean in standard deviations.
    bars = schedule.alphas_cumprod[table.timesteps[[0, -1]]]
    (start, end), (wide, narrow) = np.sqrt(bars) * MEAN, np.sqrt(bars * SPREAD**2 + 1 - bars)
    exact = end + narrow * (noise - start) / wide
    shorter = diffusion.samplers.Steps(*(column[:-1] for column in table))

    def run(table):
        return diffusion.sample(gaussian_denoiser(schedule), noise, table, schedule)

    def error(x):
        return float(jnp.abs(x - exact).mean())

    assert error(run(shorter)) < 0.3 * error(run(shorter._replace(c=np.zeros(11))))


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++2m"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_sampler_steps_agree_with_diffusers(sampler, spacing, prediction):
    """Compares the whole trajectory of a nonlinear denoiser, without added noise."""
    common = dict(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=1,
    )
    if sampler == "ddim":
        reference = diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False)
    elif sampler == "ddpm":
        reference = diffusers.DDPMScheduler(**common, clip_sample=False)
    else:
        reference = diffusers.DPMSolverMultistepScheduler(**common, final_sigmas_type="zero")
    reference.set_timesteps(10)
    schedule = diffusion.make_schedule(prediction_type=prediction)
    table = diffusion.steps(schedule, sampler, 10, spacing=spacing)
    np.testing.assert_array_equal(table.timesteps, reference.timesteps.numpy())
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    wanted = torch.from_numpy(x)
    for t in reference.timesteps:
        output = torch.tanh(0.7 * wanted + 0.001 * t)
        if sampler == "ddpm":
            # Compare the mean of the step. diffusers always adds noise, so it is subtracted here.
            g1, g2 = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
            stepped = reference.step(output, t, wanted, generator=g1).prev_sample
            if t > 0:
                stepped = stepped - reference._get_variance(t) ** 0.5 * torch.randn(
                    wanted.shape, generator=g2
                )
            wanted = stepped
        else:
            wanted = reference.step(output, t, wanted).prev_sample
    got = diffusion.sample(
        lambda x, t: jnp.tanh(0.7 * x + 0.001 * t.reshape(-1, 1, 1, 1)),
        jnp.asarray(x),
        table._replace(s=np.zeros(10)),
        schedule,
    )
    error = np.linalg.norm(got - wanted.numpy()) / np.linalg.norm(wanted.numpy())
    assert error < 1e-4, error


def test_guidance():
    def denoise(x, t, c):
        return x * 0 + c[:, None]

    x, t = jnp.zeros((3, 2)), jnp.zeros(3, jnp.int32)
    one = diffusion.guided(denoise, jnp.arange(3.0), jnp.full(3, -1.0), 1.0)(x, t)
    more = diffusion.guided(denoise, jnp.arange(3.0), jnp.full(3, -1.0), 3.0)(x, t)
    np.testing.assert_allclose(one[:, 0], [0, 1, 2])
    np.testing.assert_allclose(more[:, 0], [-1 + 3 * 1, -1 + 3 * 2, -1 + 3 * 3])


def test_noise_belongs_to_the_example():
    """An example's trajectory depends on its key, not on its place in the batch."""
    schedule = diffusion.make_schedule(prediction_type="sample")
    table = diffusion.steps(schedule, "ddpm", 8)
    keys = jax.random.split(jax.random.key(0), 3)
    noise = jax.random.normal(jax.random.key(1), (3, 5))

    def run(order):
        return diffusion.sample(
            gaussian_denoiser(schedule), noise[order], table, schedule, keys[order]
        )

    order = jnp.array([2, 0, 1])
    np.testing.assert_array_equal(run(order), run(jnp.arange(3))[order])
