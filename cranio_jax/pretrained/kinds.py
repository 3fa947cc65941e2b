"""What a file of a feature network holds: told by the names and shapes of its tensors, not by its name."""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from cranio_jax import models
from cranio_jax.errors import InputError
from cranio_jax.models.functional import Network
from cranio_jax.pretrained.files import Tensor, sha256
from cranio_jax.pretrained.names import current_key, torch_key, torch_shape

# Content of files whose publishers put no hash into their names.
KNOWN = {"w600k_r50.onnx": "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43"}


class Kind(NamedTuple):
    """A network that is known, or a part of one.

    Attributes:
      part: 'inception', 'embedder', 'trunk' or 'heads'.
      network: of `models.EMBEDDERS` or `models.TRUNKS`; the same as `part` for the Inception.
      title: in words.
      shapes: of its tensors by torch's keys.
    """

    part: str
    network: str
    title: str
    shapes: dict[str, tuple[int, ...]]


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """All that can be recognised."""

    def shapes(make: Callable, prefix: str = "") -> dict[str, tuple[int, ...]]:
        return {torch_key(path): torch_shape(path, s) for path, s in Network(make).shapes().items() if path.startswith(prefix)}

    found = [Kind("inception", "inception", "the Inception of the FID", shapes(lambda rngs: models.FIDInception(rngs=rngs)))]
    for name, make in models.EMBEDDERS.items():
        found.append(Kind("embedder", name, f"an ArcFace network, {name}", shapes(lambda rngs, make=make: make(rngs=rngs))))
    for trunk in models.TRUNKS:
        lpips = lambda rngs, trunk=trunk: models.LPIPS(trunk, rngs=rngs)
        found.append(Kind("trunk", trunk, f"the trunk {trunk} of LPIPS", shapes(lpips, "features.")))
        found.append(Kind("heads", trunk, f"LPIPS's heads for {trunk}", shapes(lpips, "lin")))
    return tuple(found)


def recognise(tensors: dict[str, Tensor], what: str) -> list[tuple[Kind, dict[str, Tensor]]]:
    """The kinds that a file holds, each with its tensors by torch's keys; a classifier behind a trunk is none's.

    One file may hold LPIPS's heads for several trunks, each behind the trunk's name. Raises InputError, naming `what`,
    where there is nothing known.
    """
    current, found = {current_key(key): tensor for key, tensor in tensors.items()}, []
    for kind in kinds():
        for prefix in ("", f"{kind.network}.") if kind.part == "heads" else ("",):
            own = {key: current.get(prefix + key) for key in kind.shapes}
            if all(tensor is not None and tensor.shape == kind.shapes[key] for key, tensor in own.items()):
                found.append((kind, own))
    # A deep network has all that a shallow one of its family has.
    embedders = [(kind, own) for kind, own in found if kind.part == "embedder"]
    found = [pair for pair in found if pair not in embedders] + sorted(embedders, key=lambda pair: -len(pair[1]))[:1]
    if not found:
        known = "; ".join(kind.title for kind in kinds())
        raise InputError(f"{what} holds {len(tensors)} tensors, such as {min(tensors, default='none')!r}, of none that is known: {known}")
    return found


def check_hash(file: pathlib.Path) -> str:
    """The SHA-256 of a file's content. Raises InputError where the file's name promises another.

    A name as torch's hub gives it, `vgg16-397923af.pth`, holds the beginning of the hash; some other names are KNOWN.
    """
    found = sha256(file)
    named = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
    promised = named[1] if named else KNOWN.get(file.name, "")
    if not found.startswith(promised):
        raise InputError(f"{file.name}: the content's SHA-256 begins with {found[:8]}, not as the name says; fetch it again")
    return found
