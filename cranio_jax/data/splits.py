"""Records of a split, and the people in it."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from cranio_jax.errors import InputError


@runtime_checkable
class ExampleSource(Protocol):
    """Random access to examples or records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    """Returns the SHA-256 of the content of all records.

    Builds of the same records have the same one, though their files may differ in bytes.
    """
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
) -> tuple[ExampleSource, Sequence[int]]:
    """Returns `(records, rows)`: a random-access source, and its indices in the split.

    Without a split of that name, 'validation' is `data.validation_subjects` of the training
    subjects, which 'train' then lacks. They are always the same ones, whatever the seed. Synthetic
    faces are left out of splits that `data.synthetic` does not name.

    Args:
      builder: of the records.
      split: its name.
      config: of the run; `data.validation_subjects` and `data.synthetic` count.
      images: the pictures to decode.

    Raises:
      InputError: the split is empty.
    """
    held_out = config.data.validation_subjects
    splits = builder.info.splits
    name = builder.info.full_name
    if held_out and "validation" in splits:
        raise InputError(
            f"data.validation_subjects={held_out}: {name} has validation subjects of its own. "
            "Set it to 0."
        )
    where = "train" if split == "validation" and held_out else split
    if where not in splits or not splits[where].num_examples:
        remedy = "more subjects are needed"
        if split == "validation":
            remedy = "set data.validation_subjects"
        raise InputError(f"split {split!r} of {name} is empty; {remedy}")
    records = _records(builder, where, images)
    rows: Sequence[int] = range(len(records))
    if "synthetic" in builder.info.features and split not in config.data.synthetic:
        told = _records(builder, where, images=())
        rows = [row for row in rows if not told[row]["synthetic"]]
        if not rows:
            raise InputError(
                f"split {split!r} of {name} holds synthetic faces alone; "
                f"add {split!r} to data.synthetic to use them"
            )
    if not held_out or where != "train":
        return records, rows

    # Subjects in an order that depends on their names alone; the first are held out.
    names = split_subjects(builder, "train")
    order = sorted(set(names), key=lambda name: (zlib.crc32(name.encode()), name))
    if not 0 < held_out < len(order):
        raise InputError(
            f"data.validation_subjects={held_out} leaves nobody to train on; there are "
            f"{len(order)} training subjects"
        )
    kept = set(order[:held_out] if split == "validation" else order[held_out:])
    return records, [row for row in rows if names[row] in kept]


def split_subjects(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    """Returns the subject of each record of a split on disk; no picture is decoded."""
    return [record["subject"].decode() for record in _records(builder, split, images=())]


def _records(builder: tfds.core.DatasetBuilder, split: str, images: tuple[str, ...]) -> "_Readable":
    """Returns a split's records; only the pictures in `images` are decoded."""
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


class _Readable:
    """Records that raise InputError, naming the split, if one can't be read."""

    def __init__(self, source: ExampleSource, where: str):
        self._source = source
        self._where = where

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._source[index]
        except Exception as error:  # libraries raise many kinds on damaged bytes
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{self._where}: record {index} is damaged ({reason}); remove the folder to have it"
                " built again"
            ) from None


def subjects(
    builder: tfds.core.DatasetBuilder, split: str, config: ml_collections.ConfigDict
) -> list[str]:
    """Returns the subjects of a split, sorted."""
    records, rows = read_split(builder, split, config, images=())
    return sorted({records[row]["subject"].decode() for row in rows})
