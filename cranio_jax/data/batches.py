"""Batches: endless and shuffled for training, in order for everything else."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from cranio_jax.distributed import cluster, sharding

# Arrays that go to the device, where an example has them; everything else stays on the host.
DEVICE_FIELDS = (
    "xray",
    "face",
    "prompt_ids",
    "id_hash",
    "mask",
    "frontal",
    "landmarks",
    "subject_index",
    "latents",
    "context",
)

EVALUATION_FIELDS = ("generated", "other_xray", "head_mask", "place", "split")

READING = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)

Batch = dict[str, jax.Array]
# From an example and random numbers to the one that is trained on.
Prepare = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def to_device_fields(example: dict[str, Any]) -> dict[str, np.ndarray]:
    """Drops what stays on the host."""
    return {name: example[name] for name in (*DEVICE_FIELDS, *EVALUATION_FIELDS) if name in example}


class TrainingBatches(Iterator[dict[str, np.ndarray]]):
    """Endless shuffled batches, or of each the `rows` that are this process's.

    The order of the examples, and how each is augmented, depends on the seed alone. So any number
    of processes may go on from a position, and with batches of another size.
    """

    def __init__(
        self,
        examples: Sequence[dict[str, Any]],
        batch_size: int,
        seed: int,
        prepare: Prepare,
        rows: Sequence[int] | None = None,
        position: dict[str, int] | None = None,
    ):
        """Starts at `position`, from `get_state`, or at the first example."""
        position = position or {}
        # Checkpoints of version 0.1 count batches.
        self._start = position.get("examples", position.get("next_index", 0) * batch_size)
        self._batch_size = batch_size

        def prepared(example, rng):
            return to_device_fields(prepare(example, rng))

        dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
        dataset = dataset.random_map(prepared)[self._start :]
        self._batches = iter(_of_each_batch(dataset, batch_size, rows).to_iter_dataset(READING))

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def get_state(self) -> dict[str, int]:
        """Returns the position: how many examples all processes have seen, as JSON."""
        batches = self._batches.get_state()["next_index"]
        return {"examples": self._start + batches * self._batch_size}


def ordered_batches(
    examples: Sequence[dict[str, Any]], batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Batches in order, or of each the `rows`, read ahead; the last is filled up with copies whose mask is 0."""
    count = len(examples)

    def one(place: int) -> dict[str, np.ndarray]:
        return to_device_fields(examples[min(place, count - 1)]) | {
            "mask": np.float32(place < count)
        }

    places = grain.MapDataset.range(-(-count // batch_size) * batch_size)
    return iter(_of_each_batch(places.map(one), batch_size, rows).to_iter_dataset(READING))


def _of_each_batch(
    dataset: grain.MapDataset, batch_size: int, rows: Sequence[int] | None
) -> grain.MapDataset:
    """Batches of the `rows` of each whole batch."""
    if rows is None or len(rows) == batch_size:
        return dataset.batch(batch_size, drop_remainder=True)
    each = len(rows)
    places = grain.MapDataset.range(len(dataset) // batch_size * each)
    return places.map(
        lambda place: dataset[place // each * batch_size + int(rows[place % each])]
    ).batch(each)


def device_batches(
    examples: Sequence[dict], size: int, mesh: jax.sharding.Mesh, say: str | None
) -> Iterator[tuple[range, Batch]]:
    """Yields `(places, batch)`: which examples a batch holds, and the batch on the devices.

    A `size` that does not divide over the devices is rounded up. The last batch is filled up with
    masked copies behind the `places`.
    """
    size = sharding.padded_batch(size, mesh)
    quiet = 0.1 if sys.stderr.isatty() else 20.0  # a log file wants few lines
    starts = range(0, len(examples), size)
    silent = say is None or not cluster.is_first()
    with tqdm(
        total=len(examples), desc=say, unit=" images", disable=silent, mininterval=quiet
    ) as told:
        local = ordered_batches(examples, size, sharding.local_rows(size, mesh))
        for start, batch in zip(starts, local, strict=True):
            places = range(start, min(start + size, len(examples)))
            yield places, sharding.put_batch(batch, mesh)
            told.update(len(places))


def collected(
    function: Callable[[Batch], dict[str, Array]],
    examples: Sequence[dict],
    size: int,
    mesh: jax.sharding.Mesh,
    say: str,
) -> dict[str, np.ndarray]:
    """What a jitted function makes of all examples, batch by batch, without what filled up the last."""
    found: dict[str, list[np.ndarray]] = {}
    for places, batch in device_batches(examples, size, mesh, say):
        if not places.start:
            cluster.wait_for_all(say)
        for name, part in jax.device_get(function(batch)).items():
            found.setdefault(name, []).append(part[: len(places)])
    return {name: np.concatenate(parts) for name, parts in found.items()}
