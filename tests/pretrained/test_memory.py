"""Loading takes the parameters' memory and little more."""

import threading
import time

import jax
import numpy as np
import pytest
import safetensors.numpy

from cranio_jax import pretrained

WIDTH, COUNT = 1024, 8  # 8 tensors of 36 MB


def anonymous_memory() -> int:
    """Bytes that this process holds apart from mapped files."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_is_the_parameters_and_the_largest_tensor(tmp_path, dtype):
    tensor = np.ones((WIDTH, WIDTH, 3, 3), np.float32)
    safetensors.numpy.save_file(
        {f"{i}.weight": tensor for i in range(COUNT)}, tmp_path / "model.safetensors"
    )
    largest = tensor.nbytes
    del tensor
    shapes = {f"{i}.kernel": (3, 3, WIDTH, WIDTH) for i in range(COUNT)}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pretrained.open_weights(
        tmp_path
    ) as tensors:  # JAX keeps a copy of the first array that it places, once a process
        only = {"0.kernel": shapes["0.kernel"]}
        pretrained.load(
            only,
            {"0.weight": tensors["0.weight"]},
            {"0.kernel": here},
            "model",
            jax.numpy.dtype(dtype),
        )
    seen, done = [anonymous_memory()], threading.Event()

    def watch():
        while not done.is_set():
            seen.append(anonymous_memory())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pretrained.open_weights(tmp_path) as tensors:
        params = pretrained.load(
            shapes, tensors, dict.fromkeys(shapes, here), "model", jax.numpy.dtype(dtype)
        )
        jax.block_until_ready(params)
    done.set()
    watcher.join()
    kept = sum(p.nbytes for p in params.values())
    assert kept == COUNT * largest * jax.numpy.dtype(dtype).itemsize // 4
    assert max(seen) - seen[0] <= kept + 1.2 * largest
