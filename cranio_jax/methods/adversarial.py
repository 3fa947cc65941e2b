"""The parts that Pix2Pix, CycleGAN and CUT share: generators against discriminators."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cranio_jax import pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import base, optimizer
from cranio_jax.methods.base import scaled
from cranio_jax.models.functional import Network, Params, split_statistics
from cranio_jax.models.translation import NORMS

LOSSES = ("bce", "lsgan")
Tree = dict[str, Any]


def adversarial_loss(logits: Float[Array, "b h w 1"], real: bool, kind: str) -> Float[Array, ""]:
    """Returns the distance of a discriminator's map from 'real' or 'not real'.

    It is the cross-entropy for 'bce', or the squared distance to 1 or 0 for 'lsgan' (Mao et al.
    2017).
    """
    logits = logits.astype(jnp.float32)
    if kind == "lsgan":
        return ((logits - (1.0 if real else 0.0)) ** 2).mean()
    return jax.nn.softplus(-logits if real else logits).mean()


def mean_absolute_difference(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]
) -> Float[Array, ""]:
    """Returns the mean absolute difference of two batches of pictures."""
    return jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).mean()


def check_norm(name: str) -> None:
    """Raises InputError if `method.norm` is unknown."""
    if name not in NORMS:
        raise InputError(f"method.norm={name!r}: it is unknown. Use one of {', '.join(NORMS)}.")


class Adversarial(base.FromScratch):
    """The parts of `methods.base.Method` that do not depend on the losses.

    Attributes:
      networks: by the names of the authors' files, `G`, `D_A`, ...; those in D discriminate.
    """

    kind: base.Kind = "generator"
    needs_faces = True
    needs_subjects = False

    def __init__(self, config: ml_collections.ConfigDict, networks: dict[str, Network]):
        """Raises InputError on impossible settings."""
        m = config.method
        self.config = m
        self.size = config.data.settings.size
        self.networks = networks
        if m.gan not in LOSSES:
            raise InputError(
                f"method.gan={m.gan!r}: it is unknown. Use one of {', '.join(LOSSES)}."
            )
        base.check_whole_batch(config.train, "a discriminator needs the whole batch at once")
        for field in ("learning_rates", "files"):
            if unknown := set(m[field]) - set(networks):
                raise InputError(
                    f"method.{field}.{min(unknown)}: there is no such network. "
                    f"Use some of {', '.join(networks)}."
                )
        self.files = {name: pathlib.Path(file).expanduser() for name, file in m.files.items()}
        self.optimizer = optimizer.make_optimizer(config.train, m.learning_rates)

    def load(self, mesh: jax.sharding.Mesh, frozen_only: bool) -> dict[str, Params]:
        """Returns the parameters in the authors' files that `method.files` names, by network.

        Raises InputError if they do not fit.
        """
        if frozen_only:
            return {}
        loaded = {}
        for name, file in self.files.items():
            shapes = self.networks[name].shapes()
            abstract = {
                path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()
            }
            places = sharding.state_sharding(abstract, mesh)
            with pretrained.open_weights(file) as tensors:
                loaded[name] = pretrained.load(shapes, tensors, places, file.name, jnp.float32)
        return loaded

    def init(self, key: Array, loaded: dict[str, Params] | None = None) -> tuple[Tree, Tree]:
        """Returns `(state, frozen)`; parameters that `loaded` lacks are drawn.

        `statistics` are those of batch norms. `opt_state` has one part for the networks that
        generate and one for those that judge.
        """
        params, statistics = {}, {}
        for name, both in base.drawn(self.networks, key, loaded).items():
            params[name], statistics[name] = split_statistics(both)
        judges = {name: part for name, part in params.items() if name[0] == "D"}
        generators = {name: part for name, part in params.items() if name[0] != "D"}
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "statistics": statistics,
            "opt_state": {
                "generate": self.optimizer.init(generators),
                "judge": self.optimizer.init(judges),
            },
        }
        return state, {}

    def module(self, name: str, params: dict[str, Params], state: Tree) -> Any:
        """Returns a network with its parameters, in training mode.

        Batch norms use the statistics of the batch.
        """
        module = self.networks[name].bind(params[name] | state["statistics"][name])
        module.train()
        return module

    def judge(
        self,
        name: str,
        params: dict[str, Params],
        state: Tree,
        pictures: Float[Array, "b h w c"],
        real: bool,
        keys: Sequence[Array] = (),
    ) -> Float[Array, ""]:
        """Returns the loss of a discriminator that should judge the pictures as `real` or not.

        `keys`, if any, holds one array with a key for each picture, for dropout.
        """
        logits = self.module(name, params, state)(pictures, *keys)
        return adversarial_loss(logits, real, self.config.gan)

    def updated(self, state: Tree, side: str, gradients: dict[str, Params]) -> Tree:
        """Returns the state after an update of the networks that `gradients` names.

        They are all that generate (`side` 'generate') or all that judge ('judge').
        """
        params, opt_state = base.descend(
            self.optimizer,
            gradients,
            opt_state=state["opt_state"][side],
            params={name: state["params"][name] for name in gradients},
        )
        return state | {
            "params": state["params"] | params,
            "opt_state": state["opt_state"] | {side: opt_state},
        }

    def finished(self, state: Tree, statistics: dict[str, Params]) -> Tree:
        """Returns the state with the step counted, and new statistics of some networks."""
        statistics = state["statistics"] | statistics
        return state | {"step": state["step"] + 1, "statistics": statistics}

    def pictures(self, batch: Tree) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w 3"]]:
        """Returns X-rays and faces in [-1, 1]; X-rays as `xrays` says."""
        return self.xrays(batch), scaled(batch["face"])

    def xrays(self, batch: Tree) -> Float[Array, "b h w c"]:
        """Returns X-rays in [-1, 1], in three equal channels."""
        return jnp.repeat(scaled(batch["xray"]), 3, -1)

    def untrained(self) -> list[str]:
        """Returns the generator of faces, unless `method.files` names its file."""
        return [] if self.generator in self.files else [self.generator]

    def weight_hashes(self) -> dict[str, str]:
        """Returns the SHA-256 of each file that training started from."""
        return {name: pretrained.sha256(file) for name, file in self.files.items()}

    def generation_params(self, state: Tree) -> Params:
        """Returns the generator of faces, with the statistics of its batch norms."""
        name = self.generator
        return state["params"][name] | state["statistics"][name]

    @property
    def generator(self) -> str:
        """The name of the network that makes faces of X-rays."""
        return "G" if "G" in self.networks else "G_A"


def in_float32(output: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Returns a generator's pictures in float32."""
    return output.astype(jnp.float32)
