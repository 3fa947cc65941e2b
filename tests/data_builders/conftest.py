"""The builders combine colours and fields of different rank on purpose."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield
