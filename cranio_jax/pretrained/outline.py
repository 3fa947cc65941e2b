"""The network that finds the outline of the head in X-rays, as job=evaluate writes it."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from cranio_jax import models
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.models.functional import Network, Params, shared_network
from cranio_jax.pretrained.files import open_weights, sha256
from cranio_jax.pretrained.load import load
from cranio_jax.pretrained.notes import read_note, save_noted

_KIND = "outline"
FILE = "outline.safetensors"  # in the folder of a run, and of a ControlNet


def save_outline(
    path: pathlib.Path, params: Mapping[str, Any], settings: Mapping[str, Any], dtype: str
) -> None:
    """Writes a trained network; `settings` are those of `models.OutlineNetwork`."""
    save_noted(path, params, _KIND, {"settings": dict(settings)}, dtype)


class Outline(NamedTuple):
    """A network for X-rays, and where its weights are.

    Attributes:
      file: of the weights.
      settings: for `models.OutlineNetwork`.
      sha256: of the file.
    """

    file: pathlib.Path
    settings: dict[str, Any]
    sha256: str

    def network(self, dtype: Any = None) -> Network:
        """Returns the network, without parameters."""
        settings = self.settings | {"widths": tuple(self.settings["widths"])}
        return shared_network(functools.partial(models.OutlineNetwork, **settings, dtype=dtype))

    def load(self, network: Network, mesh: jax.sharding.Mesh, dtype: Any) -> Params:
        """Returns the parameters in `dtype`, on the mesh."""
        shapes = network.shapes()
        abstract = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}
        places: Any = sharding.state_sharding(abstract, mesh)
        with open_weights(self.file) as tensors:
            return load(shapes, tensors, places, self.file.name, dtype)


def open_outline(path: pathlib.Path) -> Outline:
    """Returns the network in a file. Raises InputError, naming the file, if it holds none."""
    if not path.is_file():
        raise InputError(f"pretrained.outline={path}: no such file. Name one, or leave it empty.")
    note = read_note(path, _KIND)
    if note is None:
        raise InputError(
            f"pretrained.outline={path.name}: it is not a network that finds outlines in X-rays. "
            "Name the outline.safetensors that job=evaluate of configs/outline.py wrote."
        )
    return Outline(path, note["settings"], sha256(path))
