"""Networks trained here as a safetensors file with a note of all that is needed to use them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from cranio_jax.errors import InputError
from cranio_jax.files.atomic import whole_file
from cranio_jax.pretrained.save import tensors_of


def save_noted(
    path: pathlib.Path,
    params: Mapping[str, Any],
    kind: str,
    note: Mapping[str, Any],
    dtype: str = "float32",
) -> None:
    """Writes a network's parameters in numbers of `dtype`, with a note in the file's metadata.

    Args:
      path: of the file.
      params: by path.
      kind: of network, a word such as 'embedder'.
      note: JSON values.
      dtype: numpy's name of it.
    """
    content = {key: np.ascontiguousarray(value, dtype) for key, value in tensors_of(params)}
    metadata = {"format": "pt", _field(kind): json.dumps(dict(note))}
    with whole_file(path, "wb") as file:
        file.write(safetensors.numpy.save(content, metadata))


def read_note(path: pathlib.Path, kind: str) -> dict[str, Any] | None:
    """Returns the note that `save_noted` wrote; None in other files.

    Raises InputError if the file is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            note = (opened.metadata() or {}).get(_field(kind))
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or cut short ({error}); fetch it again") from None
    return json.loads(note) if note else None


def _field(kind: str) -> str:
    return f"cranio_jax_{kind}"
