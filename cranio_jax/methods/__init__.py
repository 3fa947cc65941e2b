"""What the paper compares. A method is one file and one entry here."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import ml_collections

from cranio_jax.data import Batch
from cranio_jax.errors import InputError

Tree = Any


class Method(Protocol):
    """What the loop, the evaluation and the report know of a method.

    A state is a dictionary that holds `step`, and whatever else must survive a restart: parameters, their
    averages, optimiser, a pool of images. `frozen` is loaded once and never saved. What takes a batch is
    pure and runs inside jit.
    """

    needs_faces: bool  # whether a step reads the faces even where latents stand in for them
    remat: bool  # whether a step computes activations twice to save memory
    settings: Mapping[str, Any]  # of its networks, as their config.json files say, by network
    needs_subjects: bool  # whether a step wants to know whose face it is, as `subject_index`

    def load(self, mesh: jax.sharding.Mesh, frozen_only: bool) -> Tree:
        """Published weights to start from, placed on the mesh; empty where there are none. Not for jit."""

    def init(self, key: jax.Array, loaded: Tree = None) -> tuple[Tree, Tree]:
        """`(state, frozen)` of an untrained model, from what `load` gave."""

    def encodable(self) -> dict[str, dict[str, Any]]:
        """Fields that no training changes, each with what its values depend on beside the batch, as JSON; perhaps none."""

    def encode(self, frozen: Tree, batch: Batch) -> Batch:
        """Those of the encodable fields that `batch` has the makings of; `train_step` takes them in their place."""

    def train_step(
        self, state: Tree, frozen: Tree, batch: Batch, key: jax.Array
    ) -> tuple[Tree, dict[str, jax.Array]]:
        """One update on a global batch; scalars to log, `loss` among them."""

    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of the files that `load` reads, by name."""

    def generation_params(self, state: Tree) -> Tree:
        """The part of the state that `generate` takes."""

    def generate(self, params: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> jax.Array:
        """Faces `(batch, height, width, 3)` in [-1, 1]; the noise of each depends on `key` and its `id_hash`."""

    # What generates nothing has this in place of `generate`:
    # def embed(self, params: Tree, frozen: Tree, batch: Batch) -> dict[str, jax.Array]:
    #     vectors `(batch, width)` of identity, of each `face` and perhaps of each `xray`, in one space


def make_method(config: ml_collections.ConfigDict) -> Method:
    """Returns the method that `config.method.name` names.

    An embedder's size depends on the records, which are built if there are none. Raises InputError
    on impossible settings.
    """
    method = check_method(config)
    if hasattr(method, "count_people"):
        method.count_people()
    return method


def check_method(config: ml_collections.ConfigDict) -> Method:
    """As `make_method`, without a look at the records: `init` can't be called yet."""
    from cranio_jax.methods import arcface, cranio_diff, cut, cyclegan, pix2pix, siamese

    methods = {
        "cranio_diff": cranio_diff.CranioDiff,
        "pix2pix": pix2pix.Pix2Pix,
        "cyclegan": cyclegan.CycleGAN,
        "cut": cut.CUT,
    }
    methods |= {"siamese": siamese.Siamese, "arcface": arcface.ArcFace}
    if config.method.name not in methods:
        raise InputError(f"method.name={config.method.name!r} is not one of {', '.join(methods)}")
    if config.train.remat and config.method.name != "cranio_diff":
        raise InputError(
            f"train.remat=True: method.name={config.method.name!r} has no U-Net and ControlNet to "
            "compute again. Set train.remat=False."
        )
    return methods[config.method.name](config)
