"""The outline network: against torch, on a toy task, and as an eye of Cranio-Diff's ControlNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from cranio_jax import data, pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.methods.cranio_diff import losses
from cranio_jax.metrics.masks import overlap
from cranio_jax.models import OutlineNetwork
from cranio_jax.models.functional import Network
from cranio_jax.training.loop import train
from tests.evaluated import evaluated


@pytest.fixture
def outline(config):
    from configs import outline

    c = outline.get_config("smoke")
    c.data = config.data
    c.augment.radiograph = c.evaluate.radiograph = 0.0
    c.train.update(num_steps=2, log_every=1, checkpoint_every=0)
    return c


def test_overlap_is_intersection_over_union():
    found = np.zeros((4, 2, 4, 1), bool)
    true = found.copy()
    found[0, 0, :3], true[0, 0, 1:] = True, True  # 2 of 4
    found[1, 1], true[1, 1] = True, True  # all
    found[2, 0, 0] = True  # nothing of it is there
    got = overlap(jnp.asarray(found), jnp.asarray(true))
    np.testing.assert_allclose(got, [0.5, 1.0, 0.0, 1.0])


@pytest.mark.parametrize("side", [16, 48])
def test_network_is_torchs(side):
    """A U-Net written with torch's own functions has the same logits, at another size too."""
    network = Network(lambda rngs: OutlineNetwork((8, 12, 16), 16, rngs=rngs))
    params = network.init(jax.random.key(0))
    params = {k: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape) for k, p in params.items()}
    xrays = np.random.default_rng(0).integers(0, 256, (2, side, side, 1), np.uint8)
    got = jax.jit(lambda p, x: network.bind(p)(x))(params, xrays)

    weights = {k: torch.from_numpy(np.array(v)) for k, v in pretrained.tensors_of(params)}

    def level(name, x):
        for i in (1, 2):
            part = f"{name}.conv{i}", f"{name}.norm{i}"
            x = F.conv2d(x, weights[f"{part[0]}.weight"], weights[f"{part[0]}.bias"], padding=1)
            x = F.group_norm(x, 4, weights[f"{part[1]}.weight"], weights[f"{part[1]}.bias"])
            x = F.silu(x)
        return x

    def scaled(x, to):
        smooth = to < x.shape[-1]
        return F.interpolate(x, size=(to, to), mode="bilinear", antialias=smooth)

    x = torch.from_numpy(xrays.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1.0
    first = level("down.0", F.pixel_unshuffle(scaled(x, 16), 2))
    second = level("down.1", F.max_pool2d(first, 2))
    third = level("down.2", F.max_pool2d(second, 2))
    back = level("up.0", torch.cat([scaled(third, 4), second], 1))
    back = level("up.1", torch.cat([scaled(back, 8), first], 1))
    out = F.conv2d(back, weights["conv_out.weight"], weights["conv_out.bias"], padding=1)
    wanted = scaled(F.pixel_shuffle(out, 2), side).permute(0, 2, 3, 1).numpy()
    assert wanted.std() > 0.1
    np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_it_learns_and_its_file_is_read_again(outline, tmp_path):
    outline.train.update(learning_rate=1e-2, schedule="constant", warmup_steps=0, num_steps=60)
    train(outline, tmp_path)
    results = evaluated(outline, tmp_path)
    assert results["rows"]["outline"]["iou"]["mean"] > 0.9
    assert len(results["by_subject"]["rows"]["outline"]["iou"]) == results["subjects"]
    assert "IoU of the head" in (tmp_path / "table.md").read_text()
    # The file.
    opened = pretrained.open_outline(tmp_path / "outline.safetensors")
    assert results["networks"] == {"outline": opened.sha256}
    network = opened.network()
    params = opened.load(network, sharding.make_mesh(1, 1), jnp.float32)
    examples = data.Examples(
        data.make_builder(outline.data), "test", outline, ("xray", "xray_mask")
    )
    found = np.stack(
        [np.asarray(network.bind(params)(jnp.asarray(e["xray"][None])))[0] > 0 for e in examples]
    )
    true = np.stack([e["xray_mask"] > 0 for e in examples])
    ious = np.asarray(overlap(jnp.asarray(found), jnp.asarray(true)))
    assert ious.mean() == pytest.approx(results["rows"]["outline"]["iou"]["mean"], abs=1e-4)


def saved(outline, path, offset=0.0):
    """Writes an untrained network; `offset` is added to its logits."""
    method = make_method(outline)
    params = method.networks["outline"].init(jax.random.key(0))
    params["conv_out.bias"] = params["conv_out.bias"] + offset
    pretrained.save_outline(path, params, method.settings, "float32")
    return path


def drawn(config, xray):
    """Faces that a method draws with random weights, and its ControlNet's picture."""
    config.method.controlnet.conditioning_channels = 3
    method = make_method(config)
    mesh = sharding.make_mesh(1, 1)
    state, frozen = method.init(jax.random.key(0), method.load(mesh, frozen_only=False))
    # A ControlNet is born without effect.
    control = {
        k: p + 0.3 * jax.random.normal(jax.random.key(1), p.shape)
        for k, p in state["ema"]["controlnet"].items()
    }
    params = state["ema"] | {"controlnet": control}
    batch = {
        "xray": jnp.asarray(xray),
        "id_hash": jnp.zeros(len(xray), jnp.uint32),
        "prompt_ids": jnp.zeros((len(xray), config.prompt.length), jnp.int32),
    }
    faces = jax.jit(method.generate)(params, frozen, batch, jax.random.key(3))
    return np.asarray(faces), np.asarray(method.condition(params | frozen, batch["xray"]))


def test_the_controlnet_sees_the_outline(config, outline, tmp_path):
    xray = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 1), np.uint8)
    without, seen = drawn(config, xray)
    np.testing.assert_allclose(seen, xray / 255.0, atol=1e-6)

    faces, pictures = [], []
    for offset in (0.0, 30.0):
        folder = tmp_path / f"{offset}"
        folder.mkdir()
        saved(outline, folder / "outline.safetensors", offset)
        config.pretrained.outline = str(folder)
        face, picture = drawn(config, xray)
        faces.append(face)
        pictures.append(picture)
    np.testing.assert_allclose(pictures[0][..., ::2], np.repeat(xray / 255.0, 2, -1), atol=1e-6)
    network = pretrained.open_outline(tmp_path / "0.0" / "outline.safetensors").network()
    params = network.init(jax.random.key(0))
    logits = np.asarray(network.bind(params)(jnp.asarray(xray)))
    np.testing.assert_allclose(pictures[0][..., 1:2], 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_allclose(pictures[1][..., 1], 1.0, atol=1e-5)  # a head everywhere
    # What is found reaches the face.
    assert np.abs(faces[0] - faces[1]).max() > 1e-3
    assert np.abs(faces[0] - without).max() > 1e-3


def batch_for(config, outline, folder):
    """Sets an outline network for `config`, and returns a batch of random pictures."""
    saved(outline, folder / "outline.safetensors")
    config.pretrained.outline = str(folder)
    config.method.controlnet.conditioning_channels = 3
    rng = np.random.default_rng(0)
    return {
        "xray": rng.integers(0, 256, (2, 32, 32, 1), np.uint8),
        "face": rng.integers(0, 256, (2, 32, 32, 3), np.uint8),
        "prompt_ids": np.zeros((2, config.prompt.length), np.int32),
        "frontal": np.ones(2, np.float32),
    }


def test_latents_at_the_outline_count_more(config, outline, tmp_path):
    # A head whose edge runs through the second of four columns of latents.
    head = np.zeros((1, 16, 16, 1), np.float32)
    head[:, :, 6:] = 1.0
    head[:, 9, 6] = 0.5
    cells = np.zeros((1, 4, 4, 1))
    cells[0, 2, 1] = 1.0
    expected = (1 + 4 * cells) / (1 + 4 / 16)
    np.testing.assert_allclose(losses.outline_weights(jnp.asarray(head), 4, 4.0), expected)

    # In a step the loss changes, and the squared error that is logged does not.
    batch = batch_for(config, outline, tmp_path)
    found = {}
    for weight in (0.0, 4.0):
        config.method.outline_weight = weight
        method = make_method(config)
        state, frozen = method.init(
            jax.random.key(0), method.load(sharding.make_mesh(1, 1), frozen_only=False)
        )
        draws = method._draw(jnp.array(0), count=2, key=jax.random.key(1))
        _, metrics = jax.jit(method.loss)(state["params"], frozen, batch, draws)
        found[weight] = jax.tree.map(float, metrics)
    assert found[0.0]["loss"] == pytest.approx(found[0.0]["mse"], rel=1e-6)
    assert found[4.0]["mse"] == pytest.approx(found[0.0]["mse"], rel=1e-5)
    assert abs(found[4.0]["loss"] - found[4.0]["mse"]) > 1e-4


def test_a_soft_mask_is_scipys():
    mask = np.random.default_rng(0).integers(0, 2, (2, 12, 16, 1), np.uint8)
    expected = mask.astype(float)
    for axis in (1, 2):
        weights = np.array([1, 4, 6, 4, 1]) / 16
        expected = ndimage.correlate1d(expected, weights, axis, mode="nearest")
    np.testing.assert_allclose(losses.soft_mask(jnp.asarray(mask)), expected, atol=1e-6)


def test_training_shows_the_true_outline(config, outline, tmp_path):
    """With `method.true_outline` the loss depends on the masks, and no longer on the network."""
    batch = batch_for(config, outline, tmp_path)
    empty = batch | {"xray_mask": np.zeros((2, 32, 32, 1), np.uint8)}
    full = batch | {"xray_mask": np.full((2, 32, 32, 1), 255, np.uint8)}

    def loss_for(share):
        """Returns a function of a batch and of a factor of the outline network's parameters."""
        config.method.true_outline = share
        method = make_method(config)
        assert method.needs_masks == (share > 0)
        state, frozen = method.init(
            jax.random.key(0), method.load(sharding.make_mesh(1, 1), frozen_only=False)
        )
        # A ControlNet that starts has no effect: its last layers are 0.
        control = state["params"]["controlnet"]
        for path, values in control.items():
            if "controlnet" in path:
                control[path] = values + 0.1
        draws = method._draw(jnp.array(0), count=2, key=jax.random.key(1))
        jitted = jax.jit(method.loss)

        def loss(batch, factor=1.0):
            other = {"outline": jax.tree.map(lambda p: factor * p, frozen["outline"])}
            return float(jitted(state["params"], frozen | other, batch, draws)[0])

        return loss

    found = loss_for(0.0)
    assert found(empty) == found(full)
    assert abs(found(full) - found(full, factor=2.0)) > 1e-5
    true = loss_for(1.0)
    assert true(full) == true(full, factor=2.0)
    assert abs(true(empty) - true(full)) > 1e-5


def test_wrong_settings_are_named(config, outline, quick_config, tmp_path):
    outline.method.widths = (8, 10)
    with pytest.raises(InputError, match=r"method.widths=\(8, 10\): they must be positive mult"):
        make_method(outline)
    outline.method.widths = (8, 8, 8, 8, 8, 8)
    with pytest.raises(
        InputError, match=r"data.settings.size=32: 6 method.widths need a multiple of 64"
    ):
        make_method(outline)
    outline.method.widths = (8, 8)
    # The ControlNet's side.
    for name in ("outline_weight", "true_outline"):
        config.method[name] = 0.5
        with pytest.raises(InputError, match=f"method.{name}=0.5: no network finds outlines"):
            make_method(config)
        config.method[name] = 0.0
    config.pretrained.outline = str(tmp_path / "none.safetensors")
    config.method.controlnet.conditioning_channels = 3
    with pytest.raises(InputError, match=r"pretrained.outline=.*: no such file"):
        make_method(config)
    config.pretrained.outline = "shipped:phantom_judge.safetensors"
    with pytest.raises(
        InputError, match=r"pretrained.outline=phantom_judge.safetensors: it is not"
    ):
        make_method(config)
    config.pretrained.outline = str(saved(outline, tmp_path / "outline.safetensors"))
    config.method.controlnet.conditioning_channels = 1
    with pytest.raises(
        InputError, match=r"pretrained.outline=outline.safetensors: the .*=1, and X-ray"
    ):
        make_method(config)


def test_records_without_masks_are_refused(outline, tmp_path, monkeypatch):
    builder = data.make_builder(outline.data)
    monkeypatch.delitem(builder.info.features._feature_dict, "xray_mask")
    monkeypatch.setattr(data, "make_builder", lambda *_: builder)
    with pytest.raises(InputError, match="hold no xray_mask, which outline needs"):
        train(outline, tmp_path)
