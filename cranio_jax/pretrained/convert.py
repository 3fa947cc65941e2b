"""Published files of feature networks to safetensors, which need neither torch nor onnx to be read."""

import pathlib

import numpy as np
import safetensors.numpy

from cranio_jax.errors import InputError
from cranio_jax.files.atomic import whole_file
from cranio_jax.pretrained.files import open_weights
from cranio_jax.pretrained.kinds import check_hash, recognise


def convert(file: pathlib.Path, out: pathlib.Path) -> str:
    """Writes the weights in `file` to `out` as safetensors in float32, with torch's keys; says what they are.

    Raises InputError where the name promises another content, or the content is nothing known.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    digest = check_hash(file)
    with open_weights(file) as tensors:
        found = recognise(tensors, file.name)
        several = len(found) > 1
        values = {
            f"{kind.network}.{key}" if several else key: np.ascontiguousarray(
                tensor.read(), np.float32
            )
            for kind, own in found
            for key, tensor in own.items()
        }
    with whole_file(out, "wb") as target:
        target.write(safetensors.numpy.save(values, {"format": "pt", "source_sha256": digest}))
    return f"{file.name} is {' and '.join(kind.title for kind, _ in found)}: {len(values)} tensors, SHA-256 {digest}"
