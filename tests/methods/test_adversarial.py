"""Pix2Pix, CycleGAN and CUT: two steps against torch, noise, image pools and bad settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cranio_jax import pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method, optimizer
from cranio_jax.methods.cyclegan import drawn_from
from tests.fresh import fresh
from tests.models.torch_translation import TorchPatches, TorchResnet, TorchUnet


def configured(config, name, **settings):
    """Returns a method's smallest deterministic configuration on the data of `config`."""
    import importlib

    c = importlib.import_module(f"configs.{name}").get_config("smoke")
    c.data = config.data
    c.train.update(learning_rate=1e-3, num_steps=100)
    c.method.update(channels=4, discriminator_layers=1)
    c.method.update(settings)
    return c


def batch_of(count, seed=0, size=32):
    rng = np.random.default_rng(seed)
    batch = {
        "xray": rng.integers(0, 256, (count, size, size, 1), np.uint8),
        "face": rng.integers(0, 256, (count, size, size, 3), np.uint8),
    }
    return batch | {"id_hash": np.arange(count, dtype=np.uint32)}


def to_torch(pictures):
    x = torch.from_numpy(pictures.astype(np.float32).transpose(0, 3, 1, 2)) / 127.5 - 1.0
    return x.expand(-1, 3, -1, -1)


class Patches(nn.Module):
    """The MLPs of CUT."""

    def __init__(self, widths):
        super().__init__()
        for i, width in enumerate(widths):
            setattr(
                self,
                f"mlp_{i}",
                nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 256)),
            )
        self.count = len(widths)

    def forward(self, features):
        found = [
            getattr(self, f"mlp_{i}")(f.flatten(2).transpose(1, 2)) for i, f in enumerate(features)
        ]
        return [x / (x.norm(dim=-1, keepdim=True) + 1e-7) for x in found]


def lsgan(logits, real):
    return F.mse_loss(logits, torch.full_like(logits, float(real)))


def bce(logits, real):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def run_pix2pix(nets, adam, a, b):
    fake = nets["G"](a)
    apart = (
        bce(nets["D"](torch.cat([a, fake.detach()], 1)), False)
        + bce(nets["D"](torch.cat([a, b], 1)), True)
    ) / 2
    adam("D").step(apart)
    total = bce(nets["D"](torch.cat([a, fake], 1)), True) + 30.0 * F.l1_loss(fake, b)
    adam("G").step(total)
    return total


def run_cyclegan(nets, adam, a, b):
    fake_b, fake_a = nets["G_A"](a), nets["G_B"](b)
    cycle = F.l1_loss(nets["G_B"](fake_b), a) + F.l1_loss(nets["G_A"](fake_a), b)
    same = F.l1_loss(nets["G_A"](b), b) + F.l1_loss(nets["G_B"](a), a)
    total = (
        lsgan(nets["D_A"](fake_b), True)
        + lsgan(nets["D_B"](fake_a), True)
        + 10.0 * cycle
        + 5.0 * same
    )
    adam("G_A", "G_B").step(total)
    for name, fake, real in (("D_A", fake_b, b), ("D_B", fake_a, a)):
        adam(name).step(
            (lsgan(nets[name](fake.detach()), False) + lsgan(nets[name](real), True)) / 2
        )
    return total


def run_cut(nets, adam, a, b):
    places = (0, 4, 8, 12)

    def features(x):
        found = []
        for i, layer in enumerate(nets["G"].model[: max(places) + 1]):
            x = layer(x)
            found += [x] if i in places else []
        return found

    made = nets["G"](torch.cat([a, b]))
    fake, same = made.chunk(2)
    adam("D").step((lsgan(nets["D"](fake.detach()), False) + lsgan(nets["D"](b), True)) / 2)

    def contrast(source, target):
        total = 0.0
        for q, k in zip(nets["F"](features(target)), nets["F"](features(source)), strict=True):
            k = k.detach()
            logits = q @ k.transpose(1, 2)
            own = torch.eye(q.shape[1], dtype=torch.bool)[None]
            # As published: the positive logit first, and -10 in its place among the negatives.
            mixed = (
                torch.cat([(q * k).sum(-1, keepdim=True), logits.masked_fill(own, -10.0)], -1)
                / 0.07
            )
            total = total + F.cross_entropy(
                mixed.flatten(0, 1), torch.zeros(mixed.shape[0] * mixed.shape[1], dtype=torch.long)
            )
        return total / len(places)

    total = lsgan(nets["D"](fake), True) + (contrast(a, fake) + contrast(b, same)) / 2
    adam("G", "F").step(total)
    return total


class Adams:
    """One Adam optimizer for each group of networks, created on first use."""

    def __init__(self, nets, rates):
        self.nets, self.rates, self.made = nets, rates, {}

    def __call__(self, *names):
        if names not in self.made:
            groups = [
                {"params": self.nets[name].parameters(), "lr": self.rates.get(name, 1e-3)}
                for name in names
            ]
            self.made[names] = torch.optim.Adam(groups, betas=(0.5, 0.999))
        self.last = self.made[names]
        return self

    def step(self, loss):
        # Discard the gradients that the generator's loss gave to a discriminator.
        for net in self.nets.values():
            net.zero_grad()
        loss.backward(retain_graph=True)
        self.last.step()


CASES = {
    "pix2pix": (
        {"dropout": False, "discriminator_dropout": 0.0},
        lambda: {"G": TorchUnet(5, 4, dropout=False), "D": TorchPatches(6, 4, 1)},
        run_pix2pix,
    ),
    "cyclegan": (
        {"blocks": 1},
        lambda: {
            n: TorchResnet(1, 4) if n[0] == "G" else TorchPatches(3, 4, 1, "instance")
            for n in ("G_A", "G_B", "D_A", "D_B")
        },
        run_cyclegan,
    ),
    "cut": (
        {"blocks": 1, "patches": 10_000, "nce_layers": (0, 4, 8, 12)},
        lambda: {
            "G": TorchResnet(1, 4, antialias=True),
            "D": TorchPatches(3, 4, 1, "instance", True),
            "F": Patches((3, 8, 16, 16)),
        },
        run_cut,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_two_steps_are_torchs(name, config, tmp_path):
    """Two steps from the authors' files give the losses, parameters and statistics of torch.

    Each step uses a different batch.
    """
    settings, nets, run = CASES[name]
    torch.manual_seed(0)
    nets = nets()
    c = configured(config, name, **settings)
    for part, net in nets.items():
        torch.save(net.state_dict(), tmp_path / f"{part}.pth")
        c.method.files[part] = str(tmp_path / f"{part}.pth")
    method = make_method(c)

    loaded = method.load(sharding.make_mesh(), frozen_only=False)
    state, _ = jax.jit(method.init)(jax.random.key(0), loaded)
    step, adam = jax.jit(method.train_step), Adams(nets, c.method.learning_rates.to_dict())
    for seed in range(2):
        batch = batch_of(2, seed)
        state, metrics = step(state, {}, batch, jax.random.key(1))
        wanted = run(nets, adam, to_torch(batch["xray"]), to_torch(batch["face"]))
        assert float(metrics["loss"]) == pytest.approx(wanted.item(), rel=2e-4)
    assert set(state["params"]) == set(nets)
    for part, net in nets.items():
        there = net.state_dict()
        ours = dict(
            pretrained.tensors_of(
                state["params"][part] | (state["statistics"][part] if part == "G" else {})
            )
        )
        for key, value in ours.items():
            if key.endswith("bias") and c.method.norm == "instance" and part != "F":
                continue  # before an instance norm its gradient is only rounding error
            start = torch.load(tmp_path / f"{part}.pth", weights_only=True)[key].numpy()
            moved = np.abs(there[key].numpy() - start)
            # Adam's first steps follow the sign of the gradient. Where the gradient is almost zero,
            # rounding decides the sign.
            wrong = np.abs(value - there[key].numpy()) > 2e-5 + 0.05 * moved.max()
            assert wrong.mean() < 0.02, (part, key, wrong.mean())


def test_pool_returns_what_it_was_given():
    """A pool returns each new picture until it is full.

    Then it returns an older one about half of the time, and the new one takes its place.
    """
    draw = jax.jit(drawn_from)
    pool = {"pictures": jnp.zeros((10, 1, 1, 3)), "kept": jnp.zeros((), jnp.int32)}

    def numbered(first):
        return jnp.broadcast_to(jnp.arange(first, first + 5.0)[:, None, None, None], (5, 1, 1, 3))

    given, new = set(), 0
    for turn in range(200):
        before = set(np.ravel(pool["pictures"][: int(pool["kept"])][..., 0]).tolist())
        pictures = numbered(1 + 5 * turn)
        found, pool = draw(pool, pictures, jax.random.key(turn))
        given |= set(np.ravel(pictures).tolist())
        for i, value in enumerate(np.ravel(found[..., 0]).tolist()):
            assert value in given
            if turn < 2:
                assert value == 1 + 5 * turn + i
            new += turn >= 2 and value == 1 + 5 * turn + i
        after = set(np.ravel(pool["pictures"][..., 0]).tolist())
        if turn >= 2:
            assert len(after) == 10 and int(pool["kept"]) == 10
            # Every picture that left the pool was returned.
            assert before - after <= set(np.ravel(found[..., 0]).tolist())
    assert new / (198 * 5) == pytest.approx(0.5, abs=0.05)


def test_faces_of_pix2pix_have_their_own_noise(config):
    """Dropout depends on the id of a face, and not on other faces in the batch."""
    c = configured(config, "pix2pix")
    c.data.settings.size = 64  # with fewer pixels no block of the U-Net has dropout
    method = make_method(c)
    state, frozen = fresh(method)
    state["params"]["G"] = jax.tree.map(
        lambda p: 5.0 * p, state["params"]["G"]
    )  # small weights would let little noise through
    generate = jax.jit(
        lambda batch, key: method.generate(method.generation_params(state), frozen, batch, key)
    )
    batch = batch_of(3, size=64)
    faces = generate(batch, jax.random.key(0))
    assert (
        faces.shape == (3, 64, 64, 3) and faces.dtype == jnp.float32 and np.abs(faces).max() <= 1.0
    )
    other = {name: value.copy() for name, value in batch.items()}
    other["xray"][1:], other["id_hash"][1:] = 7, [8, 9]
    np.testing.assert_allclose(generate(other, jax.random.key(0))[0], faces[0], atol=1e-6)
    assert np.abs(generate(batch, jax.random.key(1))[0] - faces[0]).max() > 1e-4
    again = batch | {"xray": np.repeat(batch["xray"][:1], 3, 0)}
    assert (
        np.abs(generate(again, jax.random.key(0))[0] - generate(again, jax.random.key(0))[1]).max()
        > 1e-4
    )
    c.method.dropout = False
    method = make_method(c)
    quiet = jax.jit(
        lambda batch, key: method.generate(method.generation_params(state), frozen, batch, key)
    )
    np.testing.assert_array_equal(quiet(batch, jax.random.key(0)), quiet(batch, jax.random.key(1)))


def test_pix2pix_is_told_the_profile(config):
    """With `method.profile` both networks see it; a generator without it is as before."""
    batch = batch_of(2) | {"profile": np.array([[1, 1, -1, 0], [1, 1, -1, 1]], np.float32)}
    other = batch | {"profile": batch["profile"][::-1].copy()}
    c = configured(config, "pix2pix", profile=True, dropout=False, discriminator_dropout=0.0)
    method = make_method(c)
    told, told_other = map(jax.jit(method.xrays), (batch, other))
    assert told.shape == (2, 32, 32, 7)
    np.testing.assert_array_equal(told[..., :3], told_other[..., :3])
    np.testing.assert_array_equal(told[1, 5, 9, 3:], batch["profile"][1])

    state, frozen = fresh(method)
    step, losses = jax.jit(method.train_step), []
    for given in (batch, other):
        losses.append(step(state, frozen, given, jax.random.key(0))[1])
    assert losses[0]["l1"] != losses[1]["l1"]
    # With one generator's faces for both, the discriminator still tells profiles apart.
    kernel = state["params"]["G"]["model.model.0.kernel"]
    state["params"]["G"]["model.model.0.kernel"] = kernel.at[..., 3:, :].set(0.0)
    losses = [step(state, frozen, given, jax.random.key(0))[1] for given in (batch, other)]
    assert losses[0]["l1"] == losses[1]["l1"]
    assert losses[0]["discriminator"] != losses[1]["discriminator"]


def test_rate_falls_over_the_second_half(config):
    c = configured(config, "pix2pix")
    c.train.update(num_steps=10, learning_rate=1.0)
    c.train.b1 = c.train.b2 = 0.0  # so that each update has the size of the learning rate
    opt, params = optimizer.make_optimizer(c.train, {}), {"G": jnp.ones(1)}
    state, rates = opt.init(params), []
    for _ in range(10):
        update, state = opt.update({"G": jnp.ones(1)}, state, params)
        rates.append(-float(update["G"][0]))
    np.testing.assert_allclose(rates, [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2], atol=1e-5)


@pytest.mark.parametrize(
    "name,change,words",
    [
        (
            "pix2pix",
            lambda c: c.method.update(gan="wgan"),
            "method.gan='wgan': it is unknown. Use one of bce, lsgan",
        ),
        ("pix2pix", lambda c: c.method.update(norm="layer"), "method.norm='layer'"),
        ("pix2pix", lambda c: c.data.settings.update(size=100), "not a multiple of"),
        ("cyclegan", lambda c: c.train.update(accumulate=2), "train.accumulate=2"),
        (
            "cyclegan",
            lambda c: c.method.learning_rates.update(D=1e-5),
            "method.learning_rates.D: there is no such network. Use some of G_A",
        ),
        (
            "cut",
            lambda c: c.method.files.update(H="x.pth"),
            "method.files.H: there is no such network",
        ),
    ],
)
def test_bad_settings(name, change, words, config):
    c = configured(config, name)
    change(c)
    with pytest.raises(InputError, match=words):
        make_method(c)


def test_weights_of_another_network(config, tmp_path):

    torch.save(TorchResnet(1, 4).state_dict(), tmp_path / "other.pth")
    c = configured(config, "pix2pix")
    c.method.files.G = str(tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth"):
        make_method(c).load(sharding.make_mesh(), frozen_only=False)
