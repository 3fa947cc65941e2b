"""The autoencoder: its loss is diffusers' and torch's, and what it writes opens there."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cranio_jax import main
from cranio_jax.errors import InputError
from cranio_jax.jobs import export
from cranio_jax.methods import make_method
from cranio_jax.training import loop
from tests.evaluated import evaluated
from tests.fresh import fresh


@pytest.fixture
def autoencoder(records):
    from configs import autoencoder as recipe

    c = recipe.get_config("smoke")
    c.data.data_dir = str(records)
    c.evaluate.batch_size = 16
    c.mesh.data = 1
    c.method.vae.update(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
    )
    c.train.update(warmup_steps=0, learning_rate=1e-2, schedule="constant")
    return c


@pytest.fixture
def batch():
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3))
    faces = np.kron(blocks, np.ones((1, 8, 8, 1))).astype(np.uint8)
    return {"face": jnp.asarray(faces)}


@pytest.fixture
def written(autoencoder, tmp_path):
    """A method, its first state, and the folder that it writes."""
    method = make_method(autoencoder)
    state, frozen = fresh(method)
    state["latent_square"] = jnp.asarray(4.0)
    method.write_pipeline(tmp_path / "vae", state["params"] | frozen, state, "float32")
    return method, state, frozen, tmp_path / "vae"


def nchw(pictures):
    return torch.from_numpy(np.array(pictures, np.float32).transpose(0, 3, 1, 2))


def test_others_may_read_what_it_writes(written):
    """All files have the mode that the user's files have."""
    _, _, _, folder = written
    (folder / "new").touch()
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_its_loss_is_torchs(written, batch):
    method, state, frozen, folder = written
    noise = jax.random.normal(jax.random.key(1), (4, *method.latent_shape))
    total, terms = method.loss(state["params"], frozen, batch, noise)

    reference = diffusers.AutoencoderKL.from_pretrained(folder)
    faces = nchw(batch["face"]) / 127.5 - 1
    with torch.no_grad():
        posterior = reference.encode(faces).latent_dist
        latents = posterior.mean + posterior.std * nchw(noise)
        l1 = torch.nn.functional.l1_loss(reference.decode(latents).sample, faces)
    kl = posterior.kl().mean() / np.prod(method.latent_shape)
    assert float(terms["l1"]) == pytest.approx(float(l1), rel=1e-5)
    assert float(terms["kl"]) == pytest.approx(float(kl), rel=1e-4)
    assert float(total) == pytest.approx(float(l1 + method.config.kl * kl), rel=1e-5)


def test_what_it_writes_has_latents_of_deviation_one(written, batch):
    method, state, frozen, folder = written
    reference = diffusers.AutoencoderKL.from_pretrained(folder)
    assert reference.config.scaling_factor == 0.5
    with torch.no_grad():
        theirs = reference(nchw(batch["face"]) / 127.5 - 1, sample_posterior=False).sample
    ours = method.generate(state["ema"], frozen, batch, jax.random.key(0))
    clipped = theirs.clip(-1, 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours, clipped, atol=2e-4)


def test_it_learns_and_splits_its_batches(autoencoder, batch):
    method = make_method(autoencoder)
    state, frozen = first = fresh(method)
    step = jax.jit(method.train_step)
    losses = []
    for _ in range(20):
        state, metrics = step(state, frozen, batch, jax.random.key(2))
        losses.append(float(metrics["l1"]))
    assert losses[-1] < 0.8 * losses[0]
    # The state knows the latents' second moment, of which the scaling factor is made.
    mean, _ = (
        method.networks["vae"].bind(state["params"]["vae"]).moments(batch["face"] / 127.5 - 1.0)
    )
    assert float(state["latent_square"]) == pytest.approx(float((mean**2).mean()), rel=0.5)

    # Adam scales gradients, so these are compared.
    autoencoder.train.accumulate = 2
    halves = jax.jit(make_method(autoencoder).train_step)(*first, batch, jax.random.key(2))[1]
    whole = step(*first, batch, jax.random.key(2))[1]
    for name in ("loss", "gradient_norm", "latent_std"):
        assert float(halves[name]) == pytest.approx(float(whole[name]), rel=1e-4), name


def test_it_starts_from_a_published_one(written, autoencoder, batch):
    _, state, _, folder = written
    autoencoder.pretrained.vae = str(folder)
    method = make_method(autoencoder)
    loaded = method.load(jax.make_mesh((1, 1), ("data", "fsdp")), frozen_only=False)
    again, _ = method.init(jax.random.key(5), loaded)
    jax.tree.map(np.testing.assert_array_equal, again["params"], state["params"])
    # U-Nets know a published scaling factor, so it stays.
    again["latent_square"] = jnp.asarray(9.0)
    method.write_pipeline(folder.parent / "again", again["params"], again, "float16")
    reference = diffusers.AutoencoderKL.from_pretrained(folder.parent / "again")
    assert reference.config.scaling_factor == 0.5


def test_a_decoder_alone(written, autoencoder, batch):
    """Only the decoder moves, even with weight decay, so a U-Net's latents stay."""
    *_, folder = written
    autoencoder.method.trained = ("decoder",)
    with pytest.raises(InputError, match="the encoder .* has to be a published one"):
        make_method(autoencoder)
    autoencoder.pretrained.vae = str(folder)
    autoencoder.train.update(weight_decay=0.1, ema_decay=0.9)
    method = make_method(autoencoder)
    loaded = method.load(jax.make_mesh((1, 1), ("data", "fsdp")), frozen_only=False)
    before, frozen = method.init(jax.random.key(5), loaded)
    step = jax.jit(method.train_step)
    after = before
    for _ in range(3):
        after, _ = step(after, frozen, batch, jax.random.key(2))

    def changed(new, old):
        return {path.split(".")[0] for path in new if (new[path] != old[path]).any()}

    for part in ("params", "ema"):
        found = changed(after[part]["vae"], before[part]["vae"])
        assert found == {"decoder", "post_quant_conv"}, part
    # No gradient of the encoder counts when the gradients' norm is clipped.
    noise = jnp.zeros((4, *method.latent_shape))
    gradient = jax.jit(jax.grad(lambda params: method.loss(params, frozen, batch, noise)[0]))
    slopes = gradient(before["params"])["vae"]
    assert changed(slopes, jax.tree.map(jnp.zeros_like, slopes)) == {"decoder", "post_quant_conv"}
    autoencoder.method.trained = ("encoder",)
    with pytest.raises(InputError, match="it lacks 'decoder'"):
        make_method(autoencoder)


def test_a_diffusion_model_is_trained_in_its_latents(written, config):
    """A model from scratch takes the autoencoder, its fields and its scaling factor."""
    _, state, _, folder = written
    c = config
    c.pretrained.vae = str(folder)
    c.method.codec = "vae"
    c.method.unet.update(in_channels=4, out_channels=4)
    c.method.controlnet.conditioning_embedding_out_channels = (4, 8)
    method = make_method(c)
    assert method.settings["vae"]["scaling_factor"] == 0.5
    loaded = method.load(jax.make_mesh((1, 1), ("data", "fsdp")), frozen_only=False)
    assert set(loaded) == {"vae"}
    jax.tree.map(np.testing.assert_array_equal, loaded["vae"], state["params"]["vae"])
    assert set(method.weight_hashes()) == {"vae"}


def test_the_whole_recipe(autoencoder, tmp_path, quick_steps):
    autoencoder.evaluate.keep_faces = False
    loop.train(autoencoder, tmp_path)
    results = evaluated(autoencoder, tmp_path)
    assert list(results["rows"]) == ["autoencoder", "mean face"]
    autoencoder.evaluate.keep_faces = True
    kept = evaluated(autoencoder, tmp_path)
    psnr = [r["rows"]["autoencoder"]["psnr"]["mean"] for r in (results, kept)]
    assert psnr[0] == pytest.approx(psnr[1], rel=1e-6)
    folder = export.export(autoencoder, tmp_path)
    diffusers.AutoencoderKL.from_pretrained(folder)
    assert "absolute error" in (folder / "README.md").read_text()
    autoencoder.job = "reconstruct"
    autoencoder.reconstruct.xrays = "x.png"
    with pytest.raises(InputError, match="makes faces of X-rays, which autoencoder does not"):
        main.run(autoencoder, tmp_path)


@pytest.mark.parametrize(
    "field,value,words",
    [
        ("kl", -1.0, "method.kl=-1.0: it is negative"),
        ("vae", {"act_fn": "silu", "shift_factor": 3.0}, "method.vae: .*shift_factor=3.0 is not"),
        ("losses", {"lpips": -0.5}, "method.losses.lpips=-0.5: it is negative"),
        ("losses", {"lpips": 0.5, "trunk": "squeeze"}, "method.losses.trunk_file is empty"),
    ],
)
def test_wrong_settings(autoencoder, field, value, words):
    if isinstance(value, dict):
        autoencoder.method[field].update(value)
    else:
        autoencoder.method[field] = value
    with pytest.raises(InputError, match=words):
        make_method(autoencoder)


def test_a_size_that_does_not_divide(autoencoder):
    autoencoder.data.settings.size = 33
    with pytest.raises(InputError, match="the autoencoder shrinks pictures by 2"):
        make_method(autoencoder)


def test_a_published_one_has_its_own_fields(written):
    """The recipe's small network does not get in the way of another size."""
    from configs import autoencoder as recipe

    c = recipe.get_config("published")
    c.pretrained.vae = str(written[-1])
    c.method.losses.lpips = 0.0
    assert make_method(c).networks["vae"].shapes() == written[0].networks["vae"].shapes()
