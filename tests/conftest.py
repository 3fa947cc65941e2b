"""Settings for all tests: one small CPU host with eight virtual devices."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data():
    """Real test data beside the checkout; its README lists it."""
    for folder in (os.environ.get("CRANIO_JAX_TEST_DATA"), CHECKOUT.parent / "shared" / "data"):
        if folder and pathlib.Path(folder).is_dir():
            return pathlib.Path(folder)
    pytest.skip("no real test data: set CRANIO_JAX_TEST_DATA to the folder that holds ct/ and weights/")
