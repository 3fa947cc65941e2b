"""Tensors from a file to the devices, one at a time."""

from typing import Any

import jax
import numpy as np

from cranio_jax.errors import InputError
from cranio_jax.models.functional import Params
from cranio_jax.pretrained.files import Tensor
from cranio_jax.pretrained.names import current_key, from_torch, torch_key, torch_shape

Shapes = dict[str, tuple[int, ...]]


def _current(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {new: tensor for key, tensor in tensors.items() if (new := current_key(key)) is not None}


def match(shapes: Shapes, tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """The tensor of each parameter.

    Args:
      shapes: of the parameters, by path.
      tensors: by the file's keys, of any age.
      what: names the file in errors.

    Raises:
      InputError: a tensor is missing, left over, or of another shape.
    """
    current, found = _current(tensors), {}
    for path, shape in shapes.items():
        key, wanted = torch_key(path), torch_shape(path, shape)
        if key not in current:
            raise InputError(f"{what} lacks the tensor {key!r} of shape {wanted}")
        found[path] = tensor = current.pop(key)
        # The oldest files keep a linear layer as a 1 x 1 convolution.
        if tensor.shape not in (wanted, (*wanted, 1, 1)):
            raise InputError(f"{what}: the tensor {key!r} is {tensor.shape}, the network's is {wanted}")
    if current:
        raise InputError(f"{what} holds {len(current)} tensors that the network lacks, such as {min(current)!r}")
    return found


def pick(shapes: Shapes, tensors: dict[str, Tensor]) -> tuple[Shapes, dict[str, Tensor]]:
    """What parameters and a file have in common by name: a ControlNet's encoder in a U-Net's file."""
    current = _current(tensors)
    shapes = {path: shape for path, shape in shapes.items() if torch_key(path) in current}
    return shapes, {key: current[key] for key in map(torch_key, shapes)}


def load(shapes: Shapes, tensors: dict[str, Tensor], shardings: dict[str, Any], what: str, dtype: Any = np.float32) -> Params:
    """Parameters, each read, converted and placed before the next is touched.

    So the host holds what stays on it and one tensor more.

    Args:
      shapes: of the parameters, by path.
      tensors: from `files.open_weights`.
      shardings: by path, where each goes; a process reads every tensor and keeps its devices' part.
      what: names the file in errors.
      dtype: to keep them in.
    """

    def place(path, tensor):
        # A turned view: the copy to the device turns faster than numpy does.
        value = from_torch(path, tensor.read().reshape(torch_shape(path, shapes[path])).astype(dtype, copy=False))
        # A copy still under way would keep `value` alive beside the next tensor.
        return jax.block_until_ready(jax.make_array_from_callback(value.shape, shardings[path], value.__getitem__))

    return {path: place(path, tensor) for path, tensor in match(shapes, tensors, what).items()}
