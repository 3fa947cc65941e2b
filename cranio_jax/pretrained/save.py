"""Parameters to files that PyTorch's libraries open."""

import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import safetensors.numpy

from cranio_jax.models.functional import Params
from cranio_jax.pretrained.files import Tensor
from cranio_jax.pretrained.names import current_key, to_torch, torch_key

# Older readers know the text encoder's tensors by this prefix only, newer ones by both names.
_PREFIX = {"text_encoder": "text_model."}


def tensors_of(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters by torch's keys, with its order of axes."""
    return ((torch_key(path), to_torch(path, np.asarray(jax.device_get(value)))) for path, value in params.items())


def renamed(tensors: dict[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """A file's tensors by today's keys, without buffers."""
    return ((new, tensor.read()) for key, tensor in tensors.items() if (new := current_key(key)) is not None)


def save(folder: pathlib.Path, part: str, tensors: Iterator[tuple[str, np.ndarray]], dtype: str) -> None:
    """Writes a part's weights under the name and keys that diffusers and transformers look for."""
    content = {_PREFIX.get(part, "") + key: np.ascontiguousarray(value, dtype) for key, value in tensors}
    file = "model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(content, folder / file, {"format": "pt"})
