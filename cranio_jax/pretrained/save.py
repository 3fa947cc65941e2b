"""Writing parameters to files that PyTorch's libraries can open."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from cranio_jax.pretrained.files import Tensor
from cranio_jax.pretrained.names import current_key, to_torch, torch_key

# The file name that diffusers and transformers look for, and the prefix of its keys. Older readers
# need the text encoder's prefix, newer ones accept both.
_FILES = {"text_encoder": ("model", "text_model."), "unet_lora": ("pytorch_lora_weights", "unet.")}


def tensors_of(params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Returns parameters by torch's keys, with its order of axes."""
    return (
        (torch_key(path), to_torch(path, np.asarray(jax.device_get(value))))
        for path, value in params.items()
    )


def renamed(tensors: dict[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Returns a file's tensors by today's keys, without buffers."""
    return (
        (new, tensor.read())
        for key, tensor in tensors.items()
        if (new := current_key(key)) is not None
    )


def save(
    folder: pathlib.Path, part: str, tensors: Iterator[tuple[str, np.ndarray]], dtype: str
) -> None:
    """Writes a part's weights under the name and keys that diffusers and transformers look for."""
    file, prefix = _FILES.get(part, ("diffusion_pytorch_model", ""))
    content = {prefix + key: np.ascontiguousarray(value, dtype) for key, value in tensors}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file}.safetensors"
    # The library writes a private temporary file. A new file's mode is what the user wants.
    path.touch()
    mode = path.stat().st_mode
    safetensors.numpy.save_file(content, path, {"format": "pt"})
    path.chmod(mode)
