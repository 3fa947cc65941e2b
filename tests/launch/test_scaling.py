"""Compares SCALING.md's bytes with the collectives that XLA compiles for eight devices."""

import collections
import math
import re

import jax
import numpy as np
import pytest

from cranio_jax.distributed import sharding
from cranio_jax.methods import make_method
from cranio_jax.runs.state import shardings_of
from cranio_jax.training import loop
from launch.measure import scaling

pytestmark = pytest.mark.eight_devices
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


def collectives(text):
    """Bytes that each kind of collective yields on a device."""
    found = collections.Counter()
    for line in text.splitlines():
        if made := re.search(
            rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(",
            line,
        ):
            for kind, shape in re.findall(rf"({'|'.join(SIZES)})\[([\d,]*)\]", made[1]):
                found[made[2]] += SIZES[kind] * math.prod(int(n) for n in shape.split(",") if n)
    return found


@pytest.fixture
def compiled(config, monkeypatch):
    """From a mesh to the collectives of a training step, and what scaling counts of it."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 2**11)
    monkeypatch.setattr(scaling, "MIN_SHARDED_SIZE", 2**11)
    # Two levels, all of them trained, so that most parameters are large enough to be sharded.
    config.method.trained = ("controlnet", "unet", "text_encoder")
    config.method.unet.update(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    method, size = make_method(config), config.data.settings.size

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((8, *shape), dtype)

    batch = {
        "xray": array(np.uint8, size, size, 1),
        "face": array(np.uint8, size, size, 3),
        "prompt_ids": array(np.int32, config.prompt.length),
    }
    batch |= {"id_hash": array(np.uint32), "mask": array(np.float32), "frontal": array(np.float32)}

    def of(data, fsdp):
        mesh = sharding.make_mesh(data, fsdp)
        state, frozen = shardings_of(method, mesh)[0]
        text = (
            loop.jit_step(method, mesh)
            .lower(state, frozen, batch, sharding.random_key(1, mesh))
            .compile()
            .as_text()
        )
        return collectives(text), scaling.Need(
            *scaling.parameters(state, frozen), flop=0.0, kept=0.0, measured=0.0
        )

    return of


@pytest.mark.slow
def test_gradients_are_all_that_is_sent(compiled):
    found, need = compiled(8, 1)
    assert need.sharded > 0
    # The loss and its one part are added up beside the gradients.
    assert found == {"all-reduce": 4 * need.trained + 2 * 4}
    assert scaling.link_bytes(need, 8, 1) == 2 * (4 * need.trained) * 7 / 8


@pytest.mark.slow
def test_sharded_parameters_are_gathered(compiled):
    found, need = compiled(1, 8)
    assert set(found) == {"all-gather", "all-reduce"}
    assert 4 * need.sharded < found["all-gather"] < 2 * 4 * need.sharded
    assert 4 * need.trained * 0.9 < found["all-reduce"] < 4 * (need.trained + need.sharded)
    gathered, scattered = 2 * 4 * need.sharded * 7 / 8, 4 * need.sharded * 7 / 8
    assert (
        scaling.link_bytes(need, 8, 8)
        == gathered + scattered + 2 * 4 * (need.trained - need.sharded) * 7 / 8
    )


def test_what_is_kept_for_the_backward_pass_is_counted():
    """Of a product with a parameter its other factor; the parameter itself is not of an image."""

    class Method:
        size, factor, channels = 4, 2, 3

        def loss(self, params, frozen, batch, draws):
            return (draws["noise"].reshape(-1, 12) @ params["w"]).sum(), {}

    kept = []
    for count in (1, 2):
        batch = {"xray": jax.ShapeDtypeStruct((count, 4, 4, 1), np.uint8)}
        kept.append(
            scaling.kept_for_backward(
                Method(), {"params": {"w": jax.ShapeDtypeStruct((12, 5), np.float32)}}, {}, batch
            )
        )
    assert kept[1] - kept[0] == 4 * 12
