"""Floating-point operations of matrix products and convolutions, counted in a traced function.

python launch/flops.py --config=configs/demo.py [--config.FIELD=VALUE ...]

prints, as JSON, the TFLOP of an image in training and of a generated face.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app

from cranio_jax.methods import make_method


def flops(function: Callable, *args: Any) -> float:
    """Counts the operations of one call; `args` may be shapes.

    A multiplication and an addition are two operations. Loops count as often as they run, and
    recomputation counts again. Only the costliest branch counts.

    Raises:
      ValueError: there is a product in a loop of unknown length.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> float:
    return sum(_COUNTS.get(eqn.primitive.name, _inner)(eqn) for eqn in jaxpr.eqns)


def _inner(eqn: Any) -> float:
    """Counts what an equation's parameters hold, e.g. the body of a jitted function."""
    count = 0.0
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(part, "jaxpr", part)
            if hasattr(jaxpr, "eqns"):
                count += _of_jaxpr(jaxpr)
    return count


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    out = eqn.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _conv(eqn: Any) -> float:
    kernel = eqn.invars[1].aval.shape
    out = eqn.outvars[0].aval.shape
    per_output = math.prod(kernel) / kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    # The gradient of a strided convolution is a convolution of an input with zeros in between,
    # which are not multiplied.
    return 2.0 * math.prod(out) * per_output / math.prod(eqn.params["lhs_dilation"])


def _while(eqn: Any) -> float:
    if _inner(eqn):
        raise ValueError("a loop of unknown length holds a product")
    return 0.0


def _scan(eqn: Any) -> float:
    return eqn.params["length"] * _inner(eqn)


def _cond(eqn: Any) -> float:
    return max(_of_jaxpr(branch.jaxpr) for branch in eqn.params["branches"])


_COUNTS: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "while": _while,
    "scan": _scan,
    "cond": _cond,
}


def of_method(config: Any) -> dict[str, float]:
    """Counts a configuration's TFLOP.

    Returns:
      `train`, of an image in a training step, and `generate`, of a face, if the method generates
      faces.
    """
    config = config.copy_and_resolve_references()
    config.compute_dtype = "float32"  # every product is visible in it
    method = make_method(config)
    count = config.train.batch_size
    size = config.data.settings.size

    def array(*shape, dtype: Any = np.float32):
        return jax.ShapeDtypeStruct((count, *shape), dtype)

    batch = {
        "xray": array(size, size, 1, dtype=np.uint8),
        "face": array(size, size, 3, dtype=np.uint8),
        "frontal": array(),
        "profile": array(4),
        "xray_mask": array(size, size, 1, dtype=np.uint8),
        "prompt_ids": array(config.prompt.length, dtype=np.int32),
        "id_hash": array(dtype=np.uint32),
        "subject_index": array(dtype=np.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, frozen = jax.eval_shape(method.init, key)
    counts = {"train": flops(method.train_step, state, frozen, batch, key) / count / 1e12}
    if hasattr(method, "generate"):
        params = jax.eval_shape(method.generation_params, state)
        counts["generate"] = flops(method.generate, params, frozen, batch, key) / count / 1e12
    return counts


def main() -> None:
    """Prints the TFLOP of the configuration that the flags name."""
    # Only here: the import defines the program's flags.
    from cranio_jax import main as program

    app.run(
        lambda _: print(json.dumps(of_method(program._CONFIG.value))),
        flags_parser=program.parse,
    )
