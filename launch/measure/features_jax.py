"""The benchmark's cases of feature networks, in JAX."""

import time
from collections.abc import Callable
from typing import Any

import jax

from cranio_jax import models
from cranio_jax.models import alignment
from cranio_jax.models.functional import Network
from launch.measure.cases import Figures, Task, median_seconds, random_pictures
from launch.measure.flops import flops
from launch.measure.steps_jax import figures

CROP = (0.2, 0.2, 0.65, 0.6)  # as `evaluate.crop`


def make_network(case: str) -> Network:
    """Returns the feature network of a case."""
    if case == "inception":
        return Network(lambda rngs: models.FIDInception(rngs=rngs))
    if case.startswith("lpips-"):
        trunk = case.removeprefix("lpips-")
        return Network(lambda rngs: models.LPIPS(trunk, rngs=rngs))
    return Network(models.make_embedder({"network": case}))


def measure(task: Task) -> Figures:
    """Measures a task."""
    began = time.monotonic()
    network = make_network(task.case)
    function = _function(task.case, network)
    params = jax.jit(network.init)(jax.random.key(0))
    a, b = jax.device_put(random_pictures(task))
    jitted = jax.jit(function)

    def step():
        return jax.block_until_ready(jitted(params, a, b))

    step()
    starting = time.monotonic() - began
    tflop = flops(function, params, a, b) / task.batch / 1e12
    seconds = median_seconds(step, task.repeats)
    return figures(task, seconds, starting, tflop, step)


def _function(case: str, network: Network) -> Callable[..., Any]:
    """Returns a function of parameters and two batches of uint8 pictures.

    It uses the first batch only if the case takes no pairs.
    """

    def inception(params, a, b):
        return network.bind(params)(a)

    def lpips(params, a, b):
        return network.bind(params)(_scaled(a), _scaled(b))

    def embed(params, a, b):
        model = network.bind(params)
        return model(alignment.crop_face(_scaled(a), CROP, model.height, model.width))

    if case == "inception":
        return inception
    return lpips if case.startswith("lpips-") else embed


def _scaled(pictures: Any) -> Any:
    """Scales uint8 pictures to [-1, 1]."""
    return pictures.astype("float32") / 127.5 - 1.0
