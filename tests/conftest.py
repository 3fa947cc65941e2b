"""Settings for all tests: one small CPU host with eight virtual devices.

With JAX_PLATFORMS=cuda they run on a GPU; those that need several devices are skipped there.
"""

import os
import pathlib
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests spend most of their time on compilation.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
if os.environ["JAX_PLATFORMS"] != "cpu":
    # Runs are compared bit for bit, and networks with float32 references. Child processes share the
    # GPU with the test that starts them.
    _FLAGS = f"{_FLAGS} --xla_gpu_deterministic_ops=true"
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}"

# torch-fidelity imports torchvision if it is installed, but its wheel does not load next to torch's
# CPU build. None makes the import fail cleanly.
sys.modules["torchvision"] = None

# Many tests compile the same programs, so they share a compilation cache. It lives as long as the
# test run; child processes inherit its name.
if "CRANIO_JAX_TEST_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="cranio_jax_tests_")
    os.environ["CRANIO_JAX_TEST_CACHE"] = _CACHE.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["CRANIO_JAX_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

import tests.typecheck  # noqa: E402, F401, for jaxtyping's hook, which finds it by name

jax.config.update("jax_numpy_rank_promotion", "raise")
CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data():
    """Real test data next to the checkout; its README lists the files."""
    for folder in (os.environ.get("CRANIO_JAX_TEST_DATA"), CHECKOUT.parent / "shared" / "data"):
        if folder and pathlib.Path(folder).is_dir():
            return pathlib.Path(folder)
    pytest.skip(
        "no real test data: set CRANIO_JAX_TEST_DATA to the folder that holds ct/ and weights/"
    )


def pytest_collection_modifyitems(items):
    """Skips tests of several devices where there are fewer, as on a machine with one GPU."""
    words = "needs eight devices, which only the CPU has virtually"
    for item in items:
        if item.get_closest_marker("eight_devices") and jax.device_count() < 8:
            item.add_marker(pytest.mark.skip(reason=words))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Frees a module's compiled programs in the end; the cache on disk keeps them for others."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that the test run's processes share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def records(shared_folder):
    """A folder for the records of a small cohort; the first test that reads them builds them."""
    return shared_folder / "records"


def _shrink(config, records):
    """Sets what the smallest runs have in common: 24 subjects, images of 32 pixels."""
    config.data.data_dir = str(records)
    config.data.cranio_phantom.subjects = 24
    config.data.settings.size = 32
    config.evaluate.update(batch_size=16, num_samples=1)
    # Programs of one device compile a third faster; the tests of meshes use more.
    config.mesh.data = 1
    return config


@pytest.fixture
def config(records):
    """The smallest Cranio-Diff: one level of width 8, whose middle block reads the prompt.

    It trains the ControlNet. The smallest study, which continuous integration runs, trains all of
    its networks.
    """
    from configs import from_scratch

    c = _shrink(from_scratch.get_config("smoke"), records)
    c.method.trained = ("controlnet",)
    c.method.unet.update(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    c.method.controlnet.conditioning_embedding_out_channels = (4, 8, 16)
    c.method.text_encoder.update(hidden_size=64, intermediate_size=64)
    return c


@pytest.fixture
def quick_config(records):
    """The smallest Pix2Pix, for what does not depend on the method: it compiles much faster."""
    from configs import pix2pix

    c = _shrink(pix2pix.get_config("smoke"), records)
    c.method.update(channels=4, discriminator_layers=1, dropout=False, discriminator_dropout=0.0)
    return c


@pytest.fixture
def quick_steps(monkeypatch):
    """Replaces training steps by ones that only count; returns the shapes of their batches.

    Networks are drawn on the host. Compiling real draws and steps takes long. Tests of the loop and
    of the methods, and the smallest study, which continuous integration runs, run real ones.
    """
    from cranio_jax.runs import state as runs_state
    from cranio_jax.training import loop
    from tests.fresh import drawn_on_host

    seen = []

    @jax.jit
    def counted(state):
        return state | {"step": state["step"] + 1}, {"loss": jnp.zeros(())}

    def step(state, frozen, batch, key):
        seen.append(batch["xray"].shape)
        return counted(state)

    monkeypatch.setattr(loop, "jit_step", lambda method, mesh: step)
    monkeypatch.setattr(runs_state, "fresh_networks", drawn_on_host)
    return seen
