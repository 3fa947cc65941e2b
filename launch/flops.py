"""Floating-point operations of matrix products and convolutions, counted in what a function traces to.

python launch/flops.py --config=configs/demo.py [--config.FIELD=VALUE ...]

tells the TFLOP of an image in training, and of a generated face, as JSON.
"""

import json
import math
import pathlib
import sys
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np


def flops(function: Callable, *args) -> float:
    """Operations (a multiplication and an addition are two) of one call; `args` may be shapes.

    Loops count as often as they run, recomputation counts again, of branches the most costly counts. Raises ValueError
    on a product in a loop whose length is not known.
    """
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr) -> float:
    return sum(_COUNTS.get(eqn.primitive.name, _inner)(eqn) for eqn in jaxpr.eqns)


def _inner(eqn) -> float:
    parts = [
        p
        for value in eqn.params.values()
        for p in (value if isinstance(value, (tuple, list)) else (value,))
    ]
    return sum(
        _of(getattr(p, "jaxpr", p)) for p in parts if hasattr(getattr(p, "jaxpr", p), "eqns")
    )


def _dot(eqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return (
        2.0
        * math.prod(eqn.outvars[0].aval.shape)
        * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    )


def _while(eqn) -> float:
    if _inner(eqn):
        raise ValueError("a loop of unknown length holds a product")
    return 0.0


def _conv(eqn) -> float:
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    each = math.prod(kernel) / kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    # A strided convolution's gradient is one over an input with zeros between; those are not multiplied.
    return 2.0 * math.prod(out) * each / math.prod(eqn.params["lhs_dilation"])


_COUNTS = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "while": _while,
    "scan": lambda eqn: eqn.params["length"] * _inner(eqn),
    "cond": lambda eqn: max(_of(branch.jaxpr) for branch in eqn.params["branches"]),
}


def of_method(config) -> dict[str, float]:
    """TFLOP of an image in a training step, `train`, and of a face, `generate`, of what generates; counted in float32."""
    from cranio_jax.methods import make_method

    config = config.copy_and_resolve_references()
    config.compute_dtype = "float32"  # in which every product is visible
    method, count, size = make_method(config), config.train.batch_size, config.data.settings.size
    array = lambda *shape, dtype=np.float32: jax.ShapeDtypeStruct((count, *shape), dtype)
    batch = {
        "xray": array(size, size, 1, dtype=np.uint8),
        "face": array(size, size, 3, dtype=np.uint8),
        "frontal": array(),
    }
    batch |= {
        "prompt_ids": array(config.prompt.length, dtype=np.int32),
        "id_hash": array(dtype=np.uint32),
    }
    batch |= {"subject_index": array(dtype=np.int32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, frozen = jax.eval_shape(method.init, key)
    found = {"train": flops(method.train_step, state, frozen, batch, key) / count / 1e12}
    if hasattr(method, "generate"):
        params = jax.eval_shape(method.generation_params, state)
        found["generate"] = flops(method.generate, params, frozen, batch, key) / count / 1e12
    return found


def main() -> None:
    from absl import app

    from cranio_jax import main as program

    app.run(
        lambda _: print(json.dumps(of_method(program._CONFIG.value))), flags_parser=program.parse
    )


if __name__ == "__main__":
    main()
