"""What Pix2Pix, CycleGAN and CUT share: generators against discriminators, both updated in one step."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, UInt8

from cranio_jax import pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import optimizer
from cranio_jax.methods.base import FromScratch
from cranio_jax.models.functional import Network, Params, is_statistic, params_of
from cranio_jax.models.translation import NORMS

KINDS = ("bce", "lsgan")


def judged(logits: Float[Array, "b h w 1"], real: bool, kind: str) -> Float[Array, ""]:
    """How far a discriminator's map is from 'real' or 'not real': cross-entropy, or squared distance to 1 or 0 (Mao et al. 2017)."""
    logits = logits.astype(jnp.float32)
    if kind == "lsgan":
        return ((logits - (1.0 if real else 0.0)) ** 2).mean()
    return jax.nn.softplus(-logits if real else logits).mean()


def absolute(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Mean absolute difference."""
    return jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).mean()


class Adversarial(FromScratch):
    """The parts of the protocol of `cranio_jax.methods.Method` that do not depend on the losses.

    Attributes:
      networks: by the names of the authors' files, `G`, `D_A`, ...; those with D discriminate.
    """

    needs_faces, needs_subjects = True, False

    def __init__(self, config: ml_collections.ConfigDict, networks: dict[str, Network]):
        """Raises InputError on impossible settings."""
        m, t = config.method, config.train
        self.config, self.size, self.networks = m, config.data.settings.size, networks
        if m.gan not in KINDS:
            raise InputError(f"method.gan={m.gan!r} is not one of {', '.join(KINDS)}")
        if t.accumulate != 1:
            raise InputError(
                f"train.accumulate={t.accumulate}; a discriminator wants the whole batch at once, so it must be 1"
            )
        for field in ("learning_rates", "files"):
            if unknown := set(m[field]) - set(networks):
                raise InputError(
                    f"method.{field} names {min(unknown)!r}; expected some of {', '.join(networks)}"
                )
        self.files = {name: pathlib.Path(file).expanduser() for name, file in m.files.items()}
        self.optimizer = optimizer.make_optimizer(t, m.learning_rates)

    def load(self, mesh: jax.sharding.Mesh, frozen_only: bool) -> dict[str, Params]:
        """Parameters of the authors' files that `method.files` names, by network. Raises InputError where they do not fit."""
        loaded = {}
        for name, file in {} if frozen_only else self.files.items():
            shapes = self.networks[name].shapes()
            abstract = {
                path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()
            }
            with pretrained.open_weights(file) as tensors:
                loaded[name] = pretrained.load(
                    shapes, tensors, sharding.state_sharding(abstract, mesh), file.name, jnp.float32
                )
        return loaded

    def init(
        self, key: Array, loaded: dict[str, Params] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`(state, frozen)`: parameters from `load` where there are such, the others fresh; `statistics` are batch norms'."""
        loaded = loaded or {}
        made = {
            n: loaded.get(n) or net.init(jax.random.fold_in(key, i))
            for i, (n, net) in enumerate(sorted(self.networks.items()))
        }
        params = {
            name: {path: p for path, p in part.items() if not is_statistic(path)}
            for name, part in made.items()
        }
        statistics = {
            name: {path: p for path, p in part.items() if is_statistic(path)}
            for name, part in made.items()
        }
        opt_state = {
            side: self.optimizer.init(part)
            for side, part in zip(("generate", "judge"), _sides(params), strict=True)
        }
        return {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "statistics": statistics,
            "opt_state": opt_state,
        }, {}

    def module(self, name: str, params: dict[str, Params], state: dict[str, Any]) -> Any:
        """A network in training, with its parameters: batch norms take the batch's statistics."""
        module = self.networks[name].bind(params[name] | state["statistics"][name])
        module.train()
        return module

    @staticmethod
    def kept_statistics(module: Any) -> Params:
        """What a module's batch norms have stored."""
        return {path: p for path, p in params_of(module).items() if is_statistic(path)}

    def updated(
        self, state: dict[str, Any], side: str, gradients: dict[str, Params]
    ) -> dict[str, Any]:
        """The state after an update of the networks that `gradients` are of: one side, 'generate' or 'judge'."""
        params = {name: state["params"][name] for name in gradients}
        updates, opt_state = self.optimizer.update(gradients, state["opt_state"][side], params)
        params = state["params"] | optax.apply_updates(params, updates)
        return state | {"params": params, "opt_state": state["opt_state"] | {side: opt_state}}

    def pictures(
        self, batch: dict[str, Array]
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w 3"]]:
        """X-rays, in three equal channels as the authors' networks take grey pictures, and faces; in [-1, 1]."""
        return jnp.repeat(scaled(batch["xray"]), 3, -1), scaled(batch["face"])

    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of the files that training started from."""
        return {name: pretrained.sha256(file) for name, file in self.files.items()}

    def generation_params(self, state: dict[str, Any]) -> Params:
        """The generator of faces, with the stored statistics of its batch norms."""
        name = min(self.networks, key=lambda n: (n[0] != "G", n))
        return state["params"][name] | state["statistics"][name]


def scaled(pictures: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """To [-1, 1]."""
    return pictures.astype(jnp.float32) / 127.5 - 1.0


def faces_of(output: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """What a generator made, as the protocol wants it."""
    return output.astype(jnp.float32)


def _sides(params: dict[str, Params]) -> tuple[dict[str, Params], dict[str, Params]]:
    """Of the networks those that generate, and those that judge."""
    judges = {name: part for name, part in params.items() if name[0] == "D"}
    return {name: part for name, part in params.items() if name not in judges}, judges


def check_norm(name: str) -> None:
    """Raises InputError where `method.norm` is none."""
    if name not in NORMS:
        raise InputError(f"method.norm={name!r} is not one of {', '.join(NORMS)}")
