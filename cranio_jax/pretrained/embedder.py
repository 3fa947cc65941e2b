"""Embedders of faces: published ArcFace weights, or a network trained here, whose file says how it sees."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from cranio_jax import models
from cranio_jax.errors import InputError
from cranio_jax.files.atomic import whole_file
from cranio_jax.models.functional import Network, Params
from cranio_jax.pretrained.files import Tensor, open_weights, sha256
from cranio_jax.pretrained.kinds import Kind, recognise
from cranio_jax.pretrained.save import tensors_of

_FIELD = "cranio_jax_embedder"  # of a safetensors file's metadata


class Embedder(NamedTuple):
    """A network for faces and where its weights are.

    Attributes:
      file: of the weights.
      settings: for `models.make_embedder`.
      crop: what it was trained to see, as `alignment.crop_face` takes it; None for published ones, which see aligned faces.
      seed: it was trained with; None for published ones.
      sha256: of the file.
    """

    file: pathlib.Path
    settings: dict[str, Any]
    crop: tuple[float, float, float, float] | None
    seed: int | None
    sha256: str

    @property
    def name(self) -> str:
        """`arcface/FILE` for published weights; one trained here is called `identity/NETWORK`, not by the famous name."""
        return (
            f"arcface/{self.file.stem}"
            if self.seed is None
            else f"identity/{self.settings['network']}"
        )

    def network(self, dtype=None) -> Network:
        """The network, without parameters."""
        return Network(models.make_embedder(self.settings, dtype=dtype))


def save_embedder(
    path: pathlib.Path, params: Params, settings: dict[str, Any], crop: tuple[float, ...], seed: int
) -> None:
    """Writes a trained embedder with all that is needed to use it."""
    told = {"settings": settings, "crop": list(crop), "seed": seed}
    content = {key: np.ascontiguousarray(value, np.float32) for key, value in tensors_of(params)}
    with whole_file(path, "wb") as file:
        file.write(safetensors.numpy.save(content, {"format": "pt", _FIELD: json.dumps(told)}))


def open_embedder(path: pathlib.Path) -> Embedder:
    """The embedder in a file. Raises InputError where there is none."""
    if told := _told(path):
        return Embedder(path, told["settings"], tuple(told["crop"]), told["seed"], sha256(path))
    kind = kinds_of(path)[0]
    if kind.part != "embedder":
        raise InputError(f"{path.name} is {kind.title}, not an embedder of faces")
    return Embedder(path, {"network": kind.network}, None, None, sha256(path))


def kinds_of(path: pathlib.Path) -> list[Kind]:
    """What a file of weights holds. Raises InputError, naming it, where that is nothing known."""
    if told := _told(path):
        network = told["settings"]["network"]
        return [Kind("embedder", network, f"an embedder trained here, {network}")]
    with open_weights(path) as tensors:
        return [kind for kind, _ in recognise(tensors, path.name)]


@contextlib.contextmanager
def open_part(path: pathlib.Path, part: str, network: str) -> Iterator[dict[str, Tensor]]:
    """One network's tensors, by torch's keys, in a file that may hold several networks.

    `part` and `network` are those of `Kind`. Raises InputError, naming the file, if it holds
    another network, or anything besides those that are known.
    """
    with open_weights(path) as tensors:
        found = [] if _told(path) else recognise(tensors, path.name)
        own = [of_kind for kind, of_kind in found if (kind.part, kind.network) == (part, network)]
        if found and not own:
            titles = " and ".join(kind.title for kind, _ in found)
            raise InputError(f"{path.name} is {titles}; expected the {part} of {network}")
        yield own[0] if own else tensors


def _told(path: pathlib.Path) -> dict[str, Any] | None:
    """What the writer of a safetensors file said of the embedder in it; None where it is not ours."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            told = (opened.metadata() or {}).get(_FIELD)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or cut short ({error}); fetch it again") from None
    return json.loads(told) if told else None
