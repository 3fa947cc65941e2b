"""What frozen networks make of the records, computed once and kept beside them: latents of faces, contexts of prompts."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

import cranio_jax
from cranio_jax import data
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.files.atomic import whole_file
from cranio_jax.methods import Method


def training_examples(
    config: ml_collections.ConfigDict, method: Method, mesh: jax.sharding.Mesh, frozen: Any, builder
):
    """`(examples, prepare)` to train on: `prepare` augments, and adds what frozen networks make of an example.

    That comes from `encoded/` in the records' own folder, which is the local copy of records in a
    bucket; a file's name is the hash of all that its content depends on
    (records, weights, settings, augmentation, seed), so that a change of any makes a new file, and files may be removed
    at any time. Of each pair `data.cached_variants` augmented variants are encoded; a step draws one of them, and new
    exposure and erasing of its X-ray. With 0 variants nothing is kept. Raises InputError where files can't be written.
    """
    variants, c = config.data.cached_variants, config.augment
    fields = method.encodable() if variants else {}
    rows = functools.partial(
        _rows,
        pathlib.Path(str(builder.data_dir)) / "encoded",
        method,
        mesh,
        frozen,
        config.train.batch_size,
    )
    variant_rng = lambda index, variant: np.random.default_rng([config.seed, index, variant])
    contexts, latents = None, None
    if "context" in fields:
        plain = data.Examples(builder, "train", config, images=())
        prompts = np.unique([plain[i]["prompt_ids"] for i in range(len(plain))], axis=0)
        key = fields["context"] | {"prompts": prompts.tolist()}
        found = rows("context", key, len(prompts), lambda row: {"prompt_ids": prompts[row]})
        contexts = {
            prompt.tobytes(): context for prompt, context in zip(prompts, found, strict=True)
        }
    if "latents" in fields:
        faces = data.Examples(builder, "train", config, images=("face",))
        key = fields["latents"] | {name: c[name] for name in data.GEOMETRY}
        key |= {"records": data.fingerprint(builder), "seed": config.seed, "variants": variants}
        key |= {"held_out": config.data.validation_subjects}
        face = lambda index, variant: data.move(faces[index], variant_rng(index, variant), c)[
            "face"
        ]
        latents = rows(
            "latents",
            key,
            len(faces) * variants,
            lambda row: {"face": face(*divmod(row, variants))},
        )

    def prepare(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if contexts:
            example = example | {"context": contexts[example["prompt_ids"].tobytes()]}
        if latents is None:
            return data.augment(example, rng, c)
        index, variant = example["index"], int(rng.integers(variants))
        example = data.move(example, variant_rng(index, variant), c)
        return data.expose(example, rng, c) | {"latents": latents[index * variants + variant]}

    images = ("xray",) if latents is not None and not method.needs_faces else ("xray", "face")
    numbered = data.subjects(builder, "train", config) if method.needs_subjects else ()
    return data.Examples(builder, "train", config, images, numbered), prepare


def _rows(
    folder: pathlib.Path,
    method: Method,
    mesh,
    frozen,
    batch_size: int,
    field: str,
    key: dict,
    count: int,
    make: Callable,
):
    """`(count, ...)` rows of `field`, mapped from a file; `make(row)` gives the fields of a batch that they are made of."""
    name = hashlib.sha256(
        json.dumps(key | {"cranio_jax": cranio_jax.__version__}, sort_keys=True).encode()
    ).hexdigest()
    path = folder / f"{field}_{name[:32]}.npy"
    shape = jax.eval_shape(
        method.encode, frozen, {name: value[None] for name, value in make(0).items()}
    )[field]
    # Hosts with folders of their own may disagree, and encoding is done by all or by none.
    if not np.all(multihost_utils.process_allgather(np.array(path.exists()))):
        try:
            _write(path, method, mesh, frozen, batch_size, field, count, make, shape)
        except OSError as error:
            size = count * shape.size * shape.dtype.itemsize / 2**30
            raise InputError(
                f"{folder} can't take the {size:.2g} GB of encoded records"
                f" ({error.strerror or error}); make room, name another data.data_dir (or"
                " data.cache_dir, for records in a bucket), or set data.cached_variants=0"
            ) from None
    return _mapped(path, count, shape)


def _mapped(path: pathlib.Path, count: int, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r").view(shape.dtype).reshape(count, *shape.shape[1:])
    except ValueError:
        raise InputError(f"{path} is damaged; remove it") from None


def _write(path, method, mesh, frozen, batch_size, field, count, make, shape):
    encode = jax.jit(
        lambda frozen, batch: method.encode(frozen, batch)[field],
        out_shardings=sharding.replicated(mesh),
    )
    rows = grain.MapDataset.range(count).map(lambda row: make(int(row)))
    kind = np.dtype(f"u{shape.dtype.itemsize}")  # numpy's files know no bfloat16
    with whole_file(path, "wb") as file:
        header = {"descr": kind.str, "fortran_order": False, "shape": (count, *shape.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for places, batch in data.device_batches(rows, batch_size, mesh, f"encoding, {field}"):
            batch.pop("mask")
            values = jax.device_get(encode(frozen, batch))[: len(places)]
            file.write(values.view(kind).tobytes())
