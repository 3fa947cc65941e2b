"""Faces and vectors do not depend on the number of devices, whatever the size of a batch."""

import jax
import numpy as np
import pytest
from PIL import Image

from cranio_jax import data, main
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation import generation
from cranio_jax.jobs import reconstruct
from cranio_jax.methods import make_method

DEVICES = (1, 3, 8)


@pytest.fixture
def untrained(config, monkeypatch):
    """The smallest networks with random weights, as if they had been restored."""
    config.method.unet.update(block_out_channels=(8,), norm_num_groups=4, attention_head_dim=2)
    config.method.unet.down_block_types = ("CrossAttnDownBlock2D",)
    config.method.unet.up_block_types = ("CrossAttnUpBlock2D",)
    config.method.controlnet.conditioning_embedding_out_channels = (2, 2, 2)
    config.sampling.num_steps = 1
    method, rng = make_method(config), np.random.default_rng(0)
    params = {
        name: {
            path: 0.2 * rng.standard_normal(shape, np.float32)
            for path, shape in network.shapes().items()
        }
        for name, network in method.networks.items()
    }

    def restored(config, workdir):
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        placed = jax.device_put(params, sharding.replicated(mesh))
        return method, mesh, {"ema": placed}, {}, 7

    monkeypatch.setattr(generation, "restore", restored)
    return config


@pytest.mark.eight_devices
def test_default_batches_give_the_same_faces_on_any_devices(untrained, tmp_path):
    gradient = np.linspace(0, 60000, 48 * 48).reshape(48, 48).astype(np.uint16)
    Image.fromarray(gradient).save(tmp_path / "xray.png")
    untrained.reconstruct.xrays = str(tmp_path / "xray.png")
    faces = []
    for untrained.mesh.data in DEVICES:
        (folder,) = reconstruct.reconstruct(untrained, tmp_path / str(untrained.mesh.data))
        files = sorted(folder.glob("face_*.png"))
        faces.append(np.stack([np.asarray(Image.open(file)) for file in files]).astype(int))
    assert len(faces[0]) == 4 and np.abs(np.diff(faces[0], axis=0)).max() > 20
    for other in faces[1:]:
        assert other.shape == faces[0].shape
        assert np.abs(other - faces[0]).max() <= 1  # a value may round to its neighbour


def test_untrained_networks_need_a_workdir(config, tmp_path):
    Image.linear_gradient("L").save(tmp_path / "xray.png")
    config.job = "reconstruct"
    config.reconstruct.xrays = str(tmp_path / "xray.png")
    words = "--workdir is missing, and no published file gives controlnet and text_encoder and unet"
    with pytest.raises(InputError, match=words):
        main.run(config, None)
    config.job = "evaluate"
    with pytest.raises(InputError, match="--workdir is missing. Name the folder of the run"):
        main.run(config, None)


def test_a_batch_of_nothing_names_its_setting(untrained, tmp_path):
    for job in ("reconstruct", "evaluate"):
        untrained[job].batch_size = 0
        with pytest.raises(InputError, match=f"{job}.batch_size=0: a batch holds at least one"):
            generation.Generator(untrained, tmp_path, job)


@pytest.mark.eight_devices
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("size", [1, 4, 40])
def test_every_example_comes_once(devices, size):
    examples = [{"face": np.full((2, 2, 3), i, np.uint8)} for i in range(10)]
    mesh = sharding.make_mesh(devices, 1)
    double = jax.jit(lambda batch: {"twice": batch["face"].astype(int)[:, 0, 0, 0] * 2})
    found = data.collected(double, examples, size, mesh, "doubling")
    np.testing.assert_array_equal(found["twice"], 2 * np.arange(10))
    for places, batch in data.device_batches(examples, size, mesh, None):
        assert batch["mask"].sum() == len(places) <= len(batch["mask"])
        assert len(batch["mask"]) == sharding.padded_batch(size, mesh)
