"""Published files of feature networks to safetensors, which need no torch to be read."""

import pathlib
import re
from collections.abc import Callable, Iterator

import numpy as np
import safetensors.numpy

from cranio_jax import models
from cranio_jax.errors import InputError
from cranio_jax.models.functional import Network
from cranio_jax.pretrained.files import Tensor, open_weights, sha256
from cranio_jax.pretrained.names import current_key, torch_key, torch_shape
from cranio_jax.writers import whole_file


def kinds() -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """What can be recognised: a name, and the shapes of its tensors by torch's keys."""

    def shapes(make: Callable, prefix: str = "") -> dict[str, tuple[int, ...]]:
        return {torch_key(path): torch_shape(path, s) for path, s in Network(make).shapes().items() if path.startswith(prefix)}

    yield "the Inception of the FID", shapes(lambda rngs: models.FIDInception(rngs=rngs))
    for name, make in models.EMBEDDERS.items():
        yield f"an ArcFace network, {name}", shapes(lambda rngs, make=make: make(rngs=rngs))
    for trunk in models.TRUNKS:
        lpips = lambda rngs, trunk=trunk: models.LPIPS(trunk, rngs=rngs)
        yield f"the trunk {trunk} of LPIPS", shapes(lpips, "features.")
        yield f"LPIPS's heads for {trunk}", shapes(lpips, "lin")


def recognise(tensors: dict[str, Tensor], what: str) -> tuple[str, dict[str, Tensor]]:
    """What a file holds, and the tensors that belong to it; a classifier behind a trunk does not.

    Raises InputError, naming `what`, where it is nothing known.
    """
    current = {current_key(key): tensor for key, tensor in tensors.items()}
    for name, shapes in kinds():
        if all(key in current and current[key].shape == shape for key, shape in shapes.items()):
            return name, {key: current[key] for key in shapes}
    known = "; ".join(name for name, _ in kinds())
    raise InputError(f"{what} holds {len(tensors)} tensors, such as {min(tensors, default='none')!r}, of none that is known: {known}")


def convert(file: pathlib.Path, out: pathlib.Path) -> str:
    """Writes the weights in `file` to `out` as safetensors in float32, with torch's keys; says what they are.

    A name as torch's hub gives it, `vgg16-397923af.pth`, holds the beginning of the content's SHA-256, which is checked.
    Raises InputError where it is another, or the content is nothing known.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    found = sha256(file)
    if (named := re.search(r"-([0-9a-f]{8})\.pth$", file.name)) and not found.startswith(named[1]):
        raise InputError(f"{file.name}: the content's SHA-256 begins with {found[:8]}, not as the name says; fetch it again")
    with open_weights(file) as tensors:
        name, own = recognise(tensors, file.name)
        values = {key: np.ascontiguousarray(tensor.read(), np.float32) for key, tensor in own.items()}
    with whole_file(out, "wb") as target:
        target.write(safetensors.numpy.save(values, {"format": "pt", "source_sha256": found}))
    return f"{file.name} is {name}: {len(values)} tensors, SHA-256 {found}"
