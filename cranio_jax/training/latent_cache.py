"""The latent cache: outputs of frozen networks for all records, kept beside them."""

import dataclasses
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
    config: ml_collections.ConfigDict,
    method: Method,
    mesh: jax.sharding.Mesh,
    frozen: Any,
    builder: Any,
) -> tuple[data.Examples, data.Prepare]:
    """Returns `(examples, prepare)` to train on.

    `prepare` augments an example, takes out what only that needs, and adds the outputs of frozen
    networks: latents of the face, the context of the prompt. That comes from files in `encoded/`,
    in the records' own folder (the local copy of records in a bucket). A file's name is the hash of
    everything its content depends on: records, weights, settings, augmentation, seed. So any change
    makes a new file, and files may be removed at any time.

    For each pair, `data.cached_variants` augmented variants are encoded. A step draws one of them,
    and exposes and erases its X-ray at random. With 0 variants nothing is kept.

    Raises InputError if files can't be written, or records lack what the method needs.
    """
    variants = config.data.cached_variants
    fields = method.encodable() if variants else {}
    if method.needs_masks:
        data.check_masks(builder, "xray_mask", config.method.name)
    # The face's mask tells where the skin is. An outline network takes the X-ray's.
    moves_skin = config.augment.skin > 0 and method.kind != "outline"
    if moves_skin:
        data.check_masks(builder, "head_mask", f"augment.skin={config.augment.skin:g}")
    folder = pathlib.Path(str(builder.data_dir)) / "encoded"
    cache = _Cache(folder, method, mesh, frozen, config.train.batch_size)
    contexts = None
    latents = None
    if "context" in fields:
        contexts = _contexts(config, cache, builder, fields["context"])
    if "latents" in fields:
        latents = _latents(config, cache, builder, fields["latents"])

    def prepare(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if contexts:
            example = example | {"context": contexts[example["prompt_ids"].tobytes()]}
        found, moving = {}, rng
        if latents is not None:
            index, variant = example["index"], int(rng.integers(variants))
            found = {"latents": latents[index * variants + variant]}
            moving = _variant_rng(config.seed, index, variant)
        example = data.move(example, moving, config.augment)
        example.pop("head_mask", None)
        if method.reads_xrays:
            example = data.expose(example, rng, config.augment)
        return example | found

    encodes = latents is None and method.kind != "outline"
    needed = {
        "face": method.needs_faces or encodes,
        "xray_mask": method.needs_masks,
        "head_mask": moves_skin,
    }
    images = ("xray", *(name for name, is_needed in needed.items() if is_needed))
    numbered = data.subjects(builder, "train", config) if method.needs_subjects else ()
    return data.Examples(builder, "train", config, images, numbered), prepare


def _variant_rng(seed: int, index: int, variant: int) -> np.random.Generator:
    """Returns the random numbers that move a variant of an example, when encoded and later."""
    return np.random.default_rng([seed, index, variant])


def _contexts(
    config: ml_collections.ConfigDict, cache: "_Cache", builder: Any, key: dict[str, Any]
) -> dict[bytes, np.ndarray]:
    """Returns the context of each prompt, by the bytes of its token ids."""
    examples = data.Examples(builder, "train", config, images=())
    prompts = np.unique([examples[i]["prompt_ids"] for i in range(len(examples))], axis=0)

    def fields_of(row: int) -> dict[str, Any]:
        return {"prompt_ids": prompts[row]}

    key = key | {"prompts": prompts.tolist()}
    contexts = cache.rows("context", key, len(prompts), fields_of)
    return {prompt.tobytes(): context for prompt, context in zip(prompts, contexts, strict=True)}


def _latents(
    config: ml_collections.ConfigDict, cache: "_Cache", builder: Any, key: dict[str, Any]
) -> np.ndarray:
    """Returns latents of the faces, `(examples x variants, h, w, d)`."""
    variants = config.data.cached_variants
    images = ("face", "head_mask") if config.augment.skin else ("face",)
    faces = data.Examples(builder, "train", config, images)

    def fields_of(row: int) -> dict[str, Any]:
        index, variant = divmod(row, variants)
        rng = _variant_rng(config.seed, index, variant)
        return {"face": data.move(faces[index], rng, config.augment)["face"]}

    key = key | {name: config.augment[name] for name in data.GEOMETRY} | {"moves": data.MOVES}
    key |= {"records": data.fingerprint(builder), "seed": config.seed, "variants": variants}
    key |= {"held_out": config.data.validation_subjects}
    key |= {"synthetic": "train" in config.data.synthetic}
    return cache.rows("latents", key, len(faces) * variants, fields_of)


@dataclasses.dataclass
class _Cache:
    """Files of encoded rows.

    Attributes:
      folder: where they are.
      method, frozen: the encoder.
      mesh: where batches lie.
      batch_size: of encoding.
    """

    folder: pathlib.Path
    method: Method
    mesh: jax.sharding.Mesh
    frozen: Any
    batch_size: int

    def rows(
        self,
        field: str,
        key: dict[str, Any],
        count: int,
        fields_of: Callable[[int], dict[str, Any]],
    ) -> np.ndarray:
        """Returns `(count, ...)` rows of a field, mapped from a file that is written if missing.

        Args:
          field: of `method.encode`.
          key: everything that the rows depend on, as JSON.
          count: of the rows.
          fields_of: from the number of a row to the fields of a batch that it is made of.

        Raises:
          InputError: the file can't be written, or is damaged.
        """
        content = json.dumps(key | {"cranio_jax": cranio_jax.__version__}, sort_keys=True)
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        path = self.folder / f"{field}_{name}.npy"
        one = {name: value[None] for name, value in fields_of(0).items()}
        shape = jax.eval_shape(self.method.encode, self.frozen, one)[field]
        # Hosts with folders of their own may disagree, and encoding is done by all or by none.
        if not np.all(multihost_utils.process_allgather(np.array(path.exists()))):
            try:
                _write(self, path, field, count, fields_of, shape)
            except OSError as error:
                size = count * shape.size * shape.dtype.itemsize / 2**30
                raise InputError(
                    f"{self.folder} can't hold the {size:.2g} GB of encoded records"
                    f" ({error.strerror or error}); make room, name another data.data_dir (or"
                    " data.cache_dir, for records in a bucket), or set data.cached_variants=0"
                ) from None
        return _mapped(path, count, shape)


def _mapped(path: pathlib.Path, count: int, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r").view(shape.dtype).reshape(count, *shape.shape[1:])
    except ValueError:
        raise InputError(f"{path} is damaged; remove it") from None


def _write(
    cache: _Cache,
    path: pathlib.Path,
    field: str,
    count: int,
    fields_of: Callable[[int], dict[str, Any]],
    shape: jax.ShapeDtypeStruct,
) -> None:
    """Encodes all rows and writes them; `shape` is that of a batch of one."""

    def encode(frozen: Any, batch: data.Batch) -> jax.Array:
        return cache.method.encode(frozen, batch)[field]

    encode_fn = jax.jit(encode, out_shardings=sharding.replicated(cache.mesh))
    rows = grain.MapDataset.range(count).map(lambda row: fields_of(int(row)))
    # numpy's files have no bfloat16, so the bits are written as unsigned integers.
    bits = np.dtype(f"u{shape.dtype.itemsize}")
    with whole_file(path, "wb") as file:
        header = {"descr": bits.str, "fortran_order": False, "shape": (count, *shape.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        title = f"encoding, {field}"
        for places, batch in data.device_batches(rows, cache.batch_size, cache.mesh, title):
            batch.pop("mask")
            values = jax.device_get(encode_fn(cache.frozen, batch))[: len(places)]
            file.write(values.view(bits).tobytes())
