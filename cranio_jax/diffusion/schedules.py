"""Discrete-time noise schedules: the noise level of each step, and what a network predicts.

x_t = alpha_t x_0 + sigma_t noise with alpha_t^2 = alphas_cumprod[t] and sigma_t^2 = 1 - alpha_t^2.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
TIMESTEPS = ("uniform", "cubic")
WEIGHTS = ("none", "epsilon", "v_prediction", "sample", "min_snr")


class NoiseSchedule(NamedTuple):
    """A schedule and the meaning of the network's output.

    Attributes:
      alphas_cumprod: `(T,)` float64 on the host; tables for the device are made from it.
      prediction: one of PREDICTIONS: noise; alpha noise - sigma x_0 (Salimans & Ho 2022); x_0.
    """

    alphas_cumprod: np.ndarray
    prediction: str

    @property
    def count(self) -> int:  # type: ignore[override]
        """T, the number of steps in training."""
        return len(self.alphas_cumprod)

    def alpha_sigma(self, timesteps: Int[Array, "b"], ndim: int) -> tuple[Array, Array]:
        """Returns alpha and sigma at `timesteps`, to multiply an array of rank `ndim`."""
        shape = (-1,) + (1,) * (ndim - 1)
        alpha = jnp.asarray(np.sqrt(self.alphas_cumprod), jnp.float32)
        sigma = jnp.asarray(np.sqrt(1.0 - self.alphas_cumprod), jnp.float32)
        return alpha[timesteps].reshape(shape), sigma[timesteps].reshape(shape)

    def add_noise(
        self, x0: Float[Array, "b *n"], noise: Float[Array, "b *n"], timesteps: Int[Array, "b"]
    ) -> Float[Array, "b *n"]:
        """Returns x_t."""
        alpha, sigma = self.alpha_sigma(timesteps, x0.ndim)
        return alpha * x0 + sigma * noise

    def target(
        self, x0: Float[Array, "b *n"], noise: Float[Array, "b *n"], timesteps: Int[Array, "b"]
    ) -> Float[Array, "b *n"]:
        """Returns what the network should predict."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x0
        alpha, sigma = self.alpha_sigma(timesteps, x0.ndim)
        return alpha * noise - sigma * x0

    def to_x0(
        self, output: Float[Array, "b *n"], x_t: Float[Array, "b *n"], timesteps: Int[Array, "b"]
    ) -> Float[Array, "b *n"]:
        """Returns the clean sample that the network's output implies."""
        alpha, sigma = self.alpha_sigma(timesteps, x_t.ndim)
        return clean_sample(self.prediction, output, x_t, alpha, sigma)


def clean_sample(prediction: str, output: Array, x_t: Array, alpha: Array, sigma: Array) -> Array:
    """Returns the clean sample that a network's output implies at a noise level.

    `output` and `x_t` are `(batch, ...)`; `alpha` and `sigma` are scalars or broadcast to them.
    """
    if prediction == "sample":
        return output
    if prediction == "epsilon":
        return (x_t - sigma * output) / alpha
    return alpha * x_t - sigma * output


def make_schedule(
    beta_schedule: str = "scaled_linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    prediction_type: str = "epsilon",
    rescale_betas_zero_snr: bool = False,
) -> NoiseSchedule:
    """Returns a schedule from the fields of a diffusers scheduler_config.json.

    The defaults are Stable Diffusion's. `rescale_betas_zero_snr` moves the last step to pure noise
    (Lin et al. 2024, algorithm 1), from which noise prediction can't sample. Raises ValueError on
    unknown names.
    """
    count = num_train_timesteps
    if prediction_type not in PREDICTIONS:
        raise ValueError(
            f"prediction_type={prediction_type!r} is not one of {', '.join(PREDICTIONS)}"
        )
    if beta_schedule == "linear":
        betas = np.linspace(beta_start, beta_end, count)
    elif beta_schedule == "scaled_linear":
        betas = np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), count) ** 2
    elif beta_schedule == "squaredcos_cap_v2":
        bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1.0 - bar[1:] / bar[:-1], 0.999)
    else:
        raise ValueError(
            f"beta_schedule={beta_schedule!r} is not one of {', '.join(BETA_SCHEDULES)}"
        )
    alphas_cumprod = np.cumprod(1.0 - betas)
    if rescale_betas_zero_snr:
        if prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr needs prediction_type 'v_prediction' or 'sample'"
            )
        root = np.sqrt(alphas_cumprod)
        alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return NoiseSchedule(alphas_cumprod, prediction_type)


def draw_timesteps(key: Array, count: int, steps: int, distribution: str) -> Int[Array, "b"]:
    """Returns random timesteps in [0, steps) to train on.

    `distribution` is one of TIMESTEPS. 'cubic' is T (1 - u^3) for uniform u: half of the timesteps
    lie in the noisiest eighth, where the condition decides the layout and x_t says little about it
    (T2I-Adapter, Mou et al. 2023, section 3.4).
    """
    if distribution not in TIMESTEPS:
        raise ValueError(f"distribution={distribution!r} is not one of {', '.join(TIMESTEPS)}")
    if distribution == "uniform":
        return jax.random.randint(key, (count,), 0, steps)
    u = jax.random.uniform(key, (count,))
    return jnp.minimum((steps * (1.0 - u**3)).astype(jnp.int32), steps - 1)


def loss_weight(
    schedule: NoiseSchedule, timesteps: Int[Array, "b"], weight: str, gamma: float = 5.0
) -> Float[Array, "b"]:
    """Returns the factor of the squared error of the network's output at each timestep.

    Relative to errors of x_0, predicting noise weighs by the signal-to-noise ratio, velocity by
    SNR + 1, and the sample itself by 1. `weight` names one of these (whatever is predicted),
    'min_snr' for min(SNR, gamma) (Hang et al. 2023), or 'none'.
    """
    if weight not in WEIGHTS:
        raise ValueError(f"weight={weight!r} is not one of {', '.join(WEIGHTS)}")
    if weight == "none" or weight == schedule.prediction:
        return jnp.ones(timesteps.shape, jnp.float32)
    bar = schedule.alphas_cumprod
    snr = bar / (1.0 - bar)
    seen_from_x0 = {
        "epsilon": snr,
        "v_prediction": snr + 1.0,
        "sample": np.ones_like(snr),
        "min_snr": np.minimum(snr, gamma),
    }
    table = seen_from_x0[weight] / np.maximum(seen_from_x0[schedule.prediction], 1e-12)
    return jnp.asarray(table, jnp.float32)[timesteps]
