"""Floating-point operations of matrix products and convolutions, counted in what a function traces to."""

import math
from collections.abc import Callable

import jax


def flops(function: Callable, *args) -> float:
    """Operations (a multiplication and an addition are two) of one call; `args` may be shapes.

    Loops count as often as they run, recomputation counts again, of branches the most costly counts. Raises ValueError
    on a product in a loop whose length is not known.
    """
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr) -> float:
    return sum(_COUNTS.get(eqn.primitive.name, _inner)(eqn) for eqn in jaxpr.eqns)


def _inner(eqn) -> float:
    parts = [p for value in eqn.params.values() for p in (value if isinstance(value, (tuple, list)) else (value,))]
    return sum(_of(getattr(p, "jaxpr", p)) for p in parts if hasattr(getattr(p, "jaxpr", p), "eqns"))


def _dot(eqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)


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
