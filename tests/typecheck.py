"""The type checker for jaxtyping's import hook, which pyproject.toml switches on for all tests."""

import collections.abc
import pathlib
from typing import Protocol, runtime_checkable

import ml_collections
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from etils import epath
from flax import nnx


@runtime_checkable
class Keys(Protocol):
    """What draws parameters; `models.functional.KeySequence` does in place of NNX's streams."""

    def params(self):
        """Returns a key."""


# A ConfigDict has what a mapping has.
collections.abc.Mapping.register(ml_collections.ConfigDict)
# Whole numbers count as real ones, numpy's numbers as Python's, and folders may be in a bucket.
OVERRIDES = {
    bool: bool | np.bool_,
    int: int | np.integer,
    float: float | int | np.floating | np.integer,
    pathlib.Path: pathlib.Path | epath.Path,
    nnx.Rngs: nnx.Rngs | Keys,
}
check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict(OVERRIDES)))
