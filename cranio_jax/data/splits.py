"""Records of a split, and the people in it."""

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from cranio_jax.errors import InputError


def fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    """SHA-256 over the content of all records: the same for builds of the same records, whose files may differ in bytes."""
    digest = hashlib.sha256()
    for split in sorted(builder.info.splits):
        for record in _records(builder, split, images=()):
            for name in sorted(record):
                value = record[name]
                digest.update(name.encode())
                digest.update(value if isinstance(value, bytes) else np.asarray(value).tobytes())
    return digest.hexdigest()


def read_split(
    builder: tfds.core.DatasetBuilder,
    split: str,
    config: ml_collections.ConfigDict,
    images: tuple[str, ...],
):
    """`(records, rows)` of a split: a random-access source, and which of its places belong to the split.

    Without a split of that name, 'validation' is `data.validation_subjects` of the training subjects, whom 'train' then
    lacks: always the same ones, whatever the seed. Raises InputError where a split is empty.
    """
    held_out, splits = config.data.validation_subjects, builder.info.splits
    if held_out and "validation" in splits:
        raise InputError(
            f"{builder.info.full_name} has validation subjects of its own; set data.validation_subjects=0"
        )
    where = "train" if split == "validation" and held_out else split
    if where not in splits or not splits[where].num_examples:
        remedy = (
            "set data.validation_subjects" if split == "validation" else "more subjects are needed"
        )
        raise InputError(f"split {split!r} of {builder.info.full_name} is empty; {remedy}")
    records = _records(builder, where, images)
    if not held_out or where != "train":
        return records, range(len(records))
    names = split_subjects(builder, "train")
    order = sorted(set(names), key=lambda name: (zlib.crc32(name.encode()), name))
    if not 0 < held_out < len(order):
        raise InputError(
            f"data.validation_subjects={held_out} leaves nobody to train on; there are {len(order)} training subjects"
        )
    kept = set(order[:held_out] if split == "validation" else order[held_out:])
    return records, [row for row, name in enumerate(names) if name in kept]


def split_subjects(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    """The subject of each record of a split on disk; no picture is decoded."""
    return [record["subject"].decode() for record in _records(builder, split, images=())]


def _records(
    builder: tfds.core.DatasetBuilder, split: str, images: tuple[str, ...]
) -> Sequence[dict[str, Any]]:
    """A split's records, of whose pictures only `images` are decoded."""
    pictures = [
        name
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    ]
    unread = {name: tfds.decode.SkipDecoding() for name in pictures if name not in images}
    return _Readable(
        builder.as_data_source(split, decoders=unread or None),
        f"{builder.data_dir}, split {split!r}",
    )


class _Readable(Sequence):
    """Records, where what can't be read is told in a sentence."""

    def __init__(self, source: Sequence[dict[str, Any]], where: str):
        self._source, self._where = source, where

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._source[index]
        except Exception as error:  # whatever a library says of damaged bytes
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{self._where}: record {index} is damaged ({reason}); remove the folder, and it is built again"
            ) from None


def subjects(
    builder: tfds.core.DatasetBuilder, split: str, config: ml_collections.ConfigDict
) -> list[str]:
    """The subjects of a split, sorted."""
    records, rows = read_split(builder, split, config, images=())
    return sorted({records[row]["subject"].decode() for row in rows})
