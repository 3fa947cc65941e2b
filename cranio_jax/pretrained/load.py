"""Tensors from a file to the devices, one at a time."""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from cranio_jax.errors import InputError
from cranio_jax.models.functional import Params
from cranio_jax.pretrained.files import Tensor
from cranio_jax.pretrained.names import current_key, from_torch, torch_key, torch_shape

Shapes = dict[str, tuple[int, ...]]
# CUT's filters along one axis by their length; the longer one doubles the size and the sum.
BLURS = {3: (0.25, 0.5, 0.25), 4: (0.25, 0.75, 0.75, 0.25)}


def current_tensors(tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """Returns a file's tensors by today's keys. Raises InputError if two have the same key."""
    before: dict[str, str] = {}
    for key in tensors:
        new = current_key(key)
        if new is not None and before.setdefault(new, key) != key:
            raise InputError(
                f"{what} holds {before[new]!r} and {key!r}, which mean the same tensor"
            )
    return {new: tensors[key] for new, key in before.items()}


def match(shapes: Shapes, tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """Returns the tensor of each parameter.

    Args:
      shapes: of the parameters, by path.
      tensors: by the file's keys, of any age.
      what: names the file in errors.

    Raises:
      InputError: a tensor is missing, left over, or of another shape.
    """
    current = current_tensors(tensors, what)
    matched: dict[str, Tensor] = {}
    names = set(current)
    for path, shape in shapes.items():
        key, wanted = torch_key(path), torch_shape(path, shape)
        if key not in current:
            raise InputError(f"{what} lacks the tensor {key!r} of shape {wanted}")
        matched[path] = tensor = current.pop(key)
        # The oldest files keep a linear layer as a 1 x 1 convolution.
        if tensor.shape not in (wanted, (*wanted, 1, 1)):
            raise InputError(
                f"{what}: the tensor {key!r} is {tensor.shape}, the network's is {wanted}"
            )
    extra = [key for key, tensor in current.items() if not _is_idle(key, tensor, names, what)]
    if extra:
        raise InputError(
            f"{what} holds {len(extra)} tensors that the network lacks, such as {min(extra)!r}"
        )
    return matched


def _is_idle(key: str, tensor: Tensor, names: Collection[str], what: str) -> bool:
    """Returns True for a buffer of the published GANs that changes nothing.

    An instance norm normalises by the picture's own statistics, whatever it has stored. CUT's
    resampling layers store their blur; InputError is raised if that is not the network's.
    """
    stem, _, leaf = key.rpartition(".")
    if leaf in ("running_mean", "running_var"):
        return f"{stem}.weight" not in names
    if leaf != "filt" or len(tensor.shape) != 4:
        return False
    taps = BLURS.get(tensor.shape[-1])
    if taps is None or not np.allclose(tensor.read(), np.outer(taps, taps), rtol=1e-2):
        raise InputError(f"{what}: {key!r} is not the blur of CUT's networks (3 and 4 taps)")
    return True


def pick(shapes: Shapes, tensors: dict[str, Tensor]) -> tuple[Shapes, dict[str, Tensor]]:
    """Returns the shapes and the tensors that parameters and a file have in common by name.

    An example is a ControlNet's encoder in a U-Net's file.
    """
    current = current_tensors(tensors, "the file")
    shapes = {path: shape for path, shape in shapes.items() if torch_key(path) in current}
    return shapes, {key: current[key] for key in map(torch_key, shapes)}


def load(
    shapes: Shapes,
    tensors: dict[str, Tensor],
    shardings: dict[str, Any],
    what: str,
    dtype: Any = np.float32,
) -> Params:
    """Returns parameters, each read, converted and placed before the next one is touched.

    So the host holds one tensor more than what stays on it.

    Args:
      shapes: of the parameters, by path.
      tensors: from `files.open_weights`.
      shardings: by path, where each goes; a process reads every tensor and keeps its devices' part.
      what: names the file in errors.
      dtype: to keep them in.
    """

    def place(path, tensor):
        # A transposed view: the copy to the device transposes faster than numpy does.
        shape = torch_shape(path, shapes[path])
        value = from_torch(path, tensor.read().reshape(shape).astype(dtype, copy=False))
        # A copy still under way would keep `value` alive with the next tensor.
        return jax.block_until_ready(
            jax.make_array_from_callback(value.shape, shardings[path], value.__getitem__)
        )

    return {path: place(path, tensor) for path, tensor in match(shapes, tensors, what).items()}
