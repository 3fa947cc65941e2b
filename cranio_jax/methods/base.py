"""The interface of a method, and the parts that several methods share."""

import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from cranio_jax.data import Batch
from cranio_jax.errors import InputError
from cranio_jax.models.functional import Network, Params

Tree = Any
Kind = Literal["generator", "embedder", "matcher", "outline"]
Metrics = dict[str, jax.Array]


@runtime_checkable
class Method(Protocol):
    """Everything that training, evaluation and the jobs use of a method.

    A state is a dictionary that holds `step` and everything else that must survive a restart:
    parameters, their moving average, the optimizer's state, a pool of images. `frozen` is loaded
    once and never saved. Functions that take a batch are pure and run inside jit.

    Attributes:
      kind: 'generator' has `generate`; 'embedder' embeds faces, 'matcher' faces and X-rays;
        'outline' has `find`.
      reads_xrays: whether its faces depend on the X-ray; others have no row of shuffled X-rays.
      writes_pipeline: whether job=export can write it as a diffusers pipeline.
      supports_remat: whether train.remat=True is possible.
      remat: whether a step recomputes activations to save memory.
      needs_faces: whether a step reads the faces even if latents are cached.
      needs_subjects: whether a step reads `subject_index`.
      needs_masks: whether a step reads `xray_mask`.
      settings: by network, the fields of its config.json.
      networks: by name, those whose parameters `init` draws as `drawn` does.
    """

    kind: ClassVar[Kind]
    reads_xrays: ClassVar[bool]
    writes_pipeline: ClassVar[bool]
    supports_remat: ClassVar[bool]
    needs_subjects: ClassVar[bool]

    @property
    def needs_masks(self) -> bool: ...

    @property
    def remat(self) -> bool: ...

    @property
    def needs_faces(self) -> bool: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def networks(self) -> Mapping[str, Network]: ...

    def count_people(self) -> None:
        """Reads from the records how many people there are, if `init` needs the number."""

    def load(self, mesh: jax.sharding.Mesh, frozen_only: bool) -> Tree:
        """Returns published weights to start from, placed on the mesh. Not for jit."""

    def init(self, key: jax.Array, loaded: Tree = None) -> tuple[Tree, Tree]:
        """Returns `(state, frozen)` of an untrained model; `loaded` is what `load` returned."""

    def encodable(self) -> dict[str, dict[str, Any]]:
        """Returns the fields that can be cached, because training never changes their networks.

        Each comes with everything but the batch that its values depend on, as JSON.
        """

    def encode(self, frozen: Tree, batch: Batch) -> Batch:
        """Returns the encodable fields whose inputs `batch` holds; `train_step` accepts them."""

    def train_step(
        self, state: Tree, frozen: Tree, batch: Batch, key: jax.Array
    ) -> tuple[Tree, Metrics]:
        """Returns the state after one update on a global batch, and scalars to log with `loss`."""

    def untrained(self) -> list[str]:
        """Returns the networks that `generate` uses and that no published file gives."""

    def weight_hashes(self) -> dict[str, str]:
        """Returns the SHA-256 of each file that `load` reads, by name."""

    def parameter_count(self) -> dict[str, int]:
        """Returns the number of parameters of each network."""

    def generation_params(self, state: Tree) -> Tree:
        """Returns the part of the state that `generate`, `embed` or `find` takes."""

    @staticmethod
    def check_export(config: ml_collections.ConfigDict) -> None:
        """Raises InputError if a method with `writes_pipeline` can't be exported so."""

    def write_pipeline(self, folder: pathlib.Path, params: Tree, state: Tree, dtype: str) -> None:
        """Writes `params` of all networks as diffusers reads them, if `writes_pipeline`."""

    def describe(self) -> list[str]:
        """Returns lines for an exported model's card, if `writes_pipeline`."""

    if TYPE_CHECKING:  # a method has one of these, as its `kind` says

        def generate(self, params: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> jax.Array:
            """Returns faces `(batch, height, width, 3)` in [-1, 1].

            The noise of each face depends on `key` and its `id_hash` alone.
            """

        def embed(self, params: Tree, frozen: Tree, batch: Batch) -> dict[str, jax.Array]:
            """Returns vectors `(batch, width)` of each `face`, and of a matcher's `xray`."""

        def find(self, params: Tree, batch: Batch) -> jax.Array:
            """Returns where the head is in each `xray`, `(batch, height, width, 1)`, bool."""


class FromScratch:
    """Defaults of a method that has no frozen network and starts from no published weights.

    A subclass adds `kind`, `init`, `train_step`, `generation_params`, and `generate`, `embed` or
    `find`.
    """

    reads_xrays: ClassVar[bool] = True
    needs_masks: ClassVar[bool] = False
    writes_pipeline: ClassVar[bool] = False
    supports_remat: ClassVar[bool] = False
    remat = False
    settings: Mapping[str, Any] = {}
    networks: Mapping[str, Network] = {}

    def count_people(self) -> None:
        """Does nothing: the networks' sizes do not depend on the records."""

    def load(self, mesh: jax.sharding.Mesh, frozen_only: bool) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def init(self, key: jax.Array, loaded: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns `(state, frozen)`; a subclass implements it."""
        raise NotImplementedError

    def encodable(self) -> dict[str, dict[str, Any]]:
        """Returns nothing: every network is trained."""
        return {}

    def encode(self, frozen: Tree, batch: Batch) -> Batch:
        """Returns nothing, as `encodable` does."""
        return {}

    @staticmethod
    def check_export(config: ml_collections.ConfigDict) -> None:
        """Accepts every configuration."""

    def write_pipeline(self, folder: pathlib.Path, params: Any, state: Any, dtype: str) -> None:
        """A method with `writes_pipeline` implements it."""
        raise NotImplementedError

    def describe(self) -> list[str]:
        """Returns nothing."""
        return []

    def untrained(self) -> list[str]:
        """Returns all networks."""
        return sorted(self.networks) or ["network"]

    def weight_hashes(self) -> dict[str, str]:
        """Returns nothing: there are no published weights."""
        return {}

    def parameter_count(self) -> dict[str, int]:
        """Returns the number of parameters by network, without the batch norms' statistics."""
        return count_parameters(jax.eval_shape(self.init, jax.random.key(0))[0]["params"])


def key_of(name: str, networks: Mapping[str, Network], key: jax.Array) -> jax.Array:
    """Returns the key with which a network is drawn."""
    return jax.random.fold_in(key, sorted(networks).index(name))


def drawn(
    networks: Mapping[str, Network], key: jax.Array, loaded: Mapping[str, Params] | None
) -> dict[str, Params]:
    """Returns the parameters of all networks; those that `loaded` lacks are drawn."""
    params = {}
    for name, network in sorted(networks.items()):
        part = (loaded or {}).get(name, {})
        if part.keys() != network.shapes().keys():
            part = network.init(key_of(name, networks, key)) | part
        params[name] = part
    return params


def count_parameters(params: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Returns the number of parameters of each network."""
    return {name: sum(math.prod(p.shape) for p in part.values()) for name, part in params.items()}


def check_whole_batch(train: ml_collections.ConfigDict, reason: str) -> None:
    """Raises InputError if `config.train` splits a batch, which the method does not support."""
    if train.accumulate != 1:
        raise InputError(f"train.accumulate={train.accumulate}: {reason}. Set it to 1.")


def scaled(pictures: Array) -> Float[Array, "b h w c"]:
    """Returns 8 bit pictures as float32 in [-1, 1]."""
    return pictures.astype(jnp.float32) / 127.5 - 1.0


def unit_vectors(vectors: Float[Array, "m n"], axis: int) -> Float[Array, "m n"]:
    """Returns vectors along `axis`, scaled to length 1."""
    square = (vectors * vectors).sum(axis, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def descend(
    optimizer: optax.GradientTransformation, gradients: Tree, opt_state: Tree, params: Tree
) -> tuple[Tree, Tree]:
    """Returns `(params, opt_state)` after one update of the optimizer."""
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def finish_step(
    optimizer: optax.GradientTransformation,
    state: dict[str, Any],
    gradients: Tree,
    metrics: Metrics,
) -> tuple[dict[str, Any], Metrics]:
    """Returns the next state after one update of all parameters, and the metrics.

    The metrics include the norm of the gradients.
    """
    params, opt_state = descend(optimizer, gradients, state["opt_state"], state["params"])
    changed = {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
    return state | changed, metrics | {"gradient_norm": optax.global_norm(gradients)}


def moving_average(average: Tree, params: Tree, step: Array, decay: float) -> Tree:
    """Returns the exponential moving average of the parameters after `step` updates.

    Early steps use a smaller decay, so that the average forgets the random start.
    """
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e + (1.0 - decay_now) * (p - e), average, params)
