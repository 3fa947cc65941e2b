"""Embedders of faces: published ArcFace weights, or a network trained here."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cranio_jax import models
from cranio_jax.errors import InputError
from cranio_jax.models.functional import Network, shared_network
from cranio_jax.pretrained.files import Tensor, open_weights, sha256
from cranio_jax.pretrained.kinds import Kind, recognise
from cranio_jax.pretrained.notes import read_note, save_noted

_KIND = "embedder"


class Embedder(NamedTuple):
    """A network for faces and where its weights are.

    Attributes:
      file: of the weights.
      settings: for `models.make_embedder`.
      crop: the part of the picture it was trained on, as `alignment.crop_face` takes it; None for
        published ones, which take aligned faces.
      seed: the seed it was trained with; None for published ones.
      sha256: of the file.
    """

    file: pathlib.Path
    settings: dict[str, Any]
    crop: tuple[float, float, float, float] | None
    seed: int | None
    sha256: str

    @property
    def name(self) -> str:
        """Returns `arcface/FILE` for published weights, `identity/NETWORK` for one trained here."""
        if self.seed is None:
            return f"arcface/{self.file.stem}"
        return f"identity/{self.settings['network']}"

    def network(self, dtype=None) -> Network:
        """Returns the network, without parameters."""
        return shared_network(models.make_embedder(self.settings, dtype=dtype))


def save_embedder(
    path: pathlib.Path,
    params: Mapping[str, Any],
    settings: dict[str, Any],
    crop: tuple[float, ...],
    seed: int,
    dtype: str = "float32",
) -> None:
    """Writes a trained embedder with all that is needed to use it, in numbers of `dtype`."""
    note = {"settings": settings, "crop": list(crop), "seed": seed}
    save_noted(path, params, _KIND, note, dtype)


def open_embedder(path: pathlib.Path) -> Embedder:
    """Returns the embedder in a file. Raises InputError if it holds none."""
    if note := read_note(path, _KIND):
        crop: Any = tuple(note["crop"])
        return Embedder(path, note["settings"], crop, note["seed"], sha256(path))
    kind = kinds_of(path)[0]
    if kind.part != "embedder":
        raise InputError(f"{path.name} is {kind.title}, not an embedder of faces")
    return Embedder(path, {"network": kind.network}, None, None, sha256(path))


def kinds_of(path: pathlib.Path) -> list[Kind]:
    """Returns what a file of weights holds. Raises InputError, naming it, if that is unknown."""
    if note := read_note(path, _KIND):
        network = note["settings"]["network"]
        return [Kind("embedder", network, f"an embedder trained here, {network}")]
    with open_weights(path) as tensors:
        return [kind for kind, _ in recognise(tensors, path.name)]


@contextlib.contextmanager
def open_part(path: pathlib.Path, part: str, network: str) -> Iterator[dict[str, Tensor]]:
    """Yields one network's tensors, by torch's keys, from a file that may hold several networks.

    `part` and `network` are those of `Kind`. Raises InputError, naming the file, if it holds
    another network, or unknown tensors.
    """
    with open_weights(path) as tensors:
        if read_note(path, _KIND):
            yield tensors
            return
        parts = recognise(tensors, path.name)
        for kind, of_kind in parts:
            if (kind.part, kind.network) == (part, network):
                yield of_kind
                return
        titles = " and ".join(kind.title for kind, _ in parts)
        raise InputError(f"{path.name} is {titles}; expected the {part} of {network}")
