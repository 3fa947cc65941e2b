"""Batches: endless and shuffled for training, in order for everything else."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Array, Int
from tqdm import tqdm

from cranio_jax.data.splits import ExampleSource
from cranio_jax.distributed import cluster, sharding

# The arrays of a batch, each with a first axis of examples. An example need not have all of them;
# everything else in it stays on the host.
FIELDS = {
    # Of training.
    "xray": "(h, w, 1) uint8",
    "face": "(h, w, 3) uint8",
    "prompt_ids": "(length,) int32, token ids",
    "id_hash": "() uint32, of the example's id; it seeds the noise",
    "mask": "() float32, 0 for padding examples",
    "xray_mask": "(h, w, 1) uint8, not 0 at the head in the X-ray, soft tissue included",
    "frontal": "() float32, 1 for a frontal face",
    "profile": "(4,) float32: view, sex, age and change of BMI, as prompts.profile_numbers says",
    "landmarks": "(5, 2) float32, x and y of eyes, nose tip and mouth corners; NaN if unknown",
    "subject_index": "() int32, which of the training subjects it is",
    "latents": "(h, w, d), of the face, from the cache",
    "context": "(length, d), of the prompt, from the cache",
    # Of evaluation.
    "generated": "(kinds, h, w, 3) uint8, faces that were generated before",
    "other_xray": "(h, w, 1) uint8, of another person",
    "head_mask": "(h, w, 1) uint8, not 0 at the true head",
    "place": "() int32, in the list of examples",
    "split": "() int32, of the Inception score",
    # Of faces made from photographs.
    "true_ids": "(length,) int32, token ids of the photograph's own profile",
}

READING = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)

# The fields of a batch on the devices.
Batch = dict[str, jax.Array]
# Augments an example with random numbers, and adds to it what is cached.
Prepare = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def to_device_fields(example: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the fields of an example that go to the device."""
    return {name: example[name] for name in FIELDS if name in example}


class TrainingBatches(Iterator[dict[str, np.ndarray]]):
    """Endless shuffled batches: of each, the `rows` that belong to this process.

    The order of the examples, and how each is augmented, depends on the seed alone. So any number
    of processes may resume from a position, even with another batch size.
    """

    def __init__(
        self,
        examples: ExampleSource,
        batch_size: int,
        seed: int,
        prepare: Prepare,
        rows: Sequence[int] | Int[np.ndarray, "share"] | None = None,
        position: dict[str, int] | None = None,
        weights: Sequence[float] | None = None,
    ):
        """Starts somewhere in the endless order.

        Args:
          examples: to draw from.
          batch_size: of all processes together.
          seed: of the order and of augmentation.
          prepare: augments an example.
          rows: of each batch, those of this process; None: all.
          position: from `get_state`; None: the first example.
          weights: how often each example is drawn, in relation to others; None: all alike.
        """
        position = position or {}
        # Checkpoints of version 0.1 count batches.
        self._start = position.get("examples", position.get("next_index", 0) * batch_size)
        self._batch_size = batch_size

        def prepared(example, rng):
            return to_device_fields(prepare(example, rng))

        dataset = _endless(examples, seed, weights)
        dataset = dataset.random_map(prepared)[self._start :]
        self._batches = iter(_of_each_batch(dataset, batch_size, rows).to_iter_dataset(READING))

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def get_state(self) -> dict[str, int]:
        """Returns the position: how many examples all processes have seen, as JSON."""
        batches = self._batches.get_state()["next_index"]
        return {"examples": self._start + batches * self._batch_size}


def ordered_batches(
    examples: ExampleSource,
    batch_size: int,
    rows: Sequence[int] | Int[np.ndarray, "share"] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns batches in order, prefetched; only the `rows` of each, if given.

    The last batch is padded with copies whose mask is 0.
    """
    count = len(examples)

    def masked_example(place: int) -> dict[str, np.ndarray]:
        fields = to_device_fields(examples[min(place, count - 1)])
        return fields | {"mask": np.asarray(place < count, np.float32)}

    places = grain.MapDataset.range(-(-count // batch_size) * batch_size).map(masked_example)
    return iter(_of_each_batch(places, batch_size, rows).to_iter_dataset(READING))


def _endless(
    examples: ExampleSource, seed: int, weights: Sequence[float] | None
) -> grain.MapDataset:
    """Returns the examples, shuffled anew in each pass.

    Examples of one weight are passed through together. These passes are mixed so that each example
    is drawn in proportion to its weight, within a few places.
    """
    source = grain.MapDataset.source(examples).seed(seed)
    if weights is None or len(set(weights)) == 1:
        return source.shuffle().repeat()
    places: dict[float, list[int]] = {}
    for place, weight in enumerate(weights):
        places.setdefault(weight, []).append(place)
    passes = [
        grain.MapDataset.source(alike).seed(seed).shuffle().repeat() for alike in places.values()
    ]
    shares = [weight * len(alike) for weight, alike in places.items()]
    return grain.MapDataset.mix(passes, shares).map(lambda place: examples[place]).seed(seed)


def _of_each_batch(
    dataset: grain.MapDataset,
    batch_size: int,
    rows: Sequence[int] | Int[np.ndarray, "share"] | None,
) -> grain.MapDataset:
    """Returns batches of the `rows` of each whole batch."""
    if rows is None or len(rows) == batch_size:
        return dataset.batch(batch_size, drop_remainder=True)
    share = len(rows)

    def example_at(place: int) -> Any:
        batch, row = divmod(place, share)
        return dataset[batch * batch_size + int(rows[row])]

    places = grain.MapDataset.range(len(dataset) // batch_size * share)
    return places.map(example_at).batch(share)


def device_batches(
    examples: ExampleSource, size: int, mesh: jax.sharding.Mesh, title: str | None
) -> Iterator[tuple[range, Batch]]:
    """Yields `(places, batch)`: which examples a batch holds, and the batch on the devices.

    Args:
      examples: all of them, in order.
      size: of a batch; rounded up if it does not divide over the devices. The last batch is filled
        up with masked copies behind the `places`.
      mesh: where batches lie.
      title: of the progress line; None for no line.
    """
    size = sharding.padded_batch(size, mesh)
    rows = sharding.local_rows(size, mesh)
    starts = range(0, len(examples), size)
    progress = tqdm(
        total=len(examples),
        desc=title,
        unit=" images",
        disable=title is None or not cluster.is_first(),
        mininterval=0.1 if sys.stderr.isatty() else 20.0,  # seconds; log files get few lines
    )
    with progress as bar:
        batches = ordered_batches(examples, size, rows)
        for start, batch in zip(starts, batches, strict=True):
            places = range(start, min(start + size, len(examples)))
            yield places, sharding.put_batch(batch, mesh)
            bar.update(len(places))


def collected(
    function: Callable[[Batch], dict[str, Array]],
    examples: ExampleSource,
    size: int,
    mesh: jax.sharding.Mesh,
    title: str,
) -> dict[str, np.ndarray]:
    """Returns a jitted function's outputs for all examples, on the host.

    Args:
      function: from a batch to arrays with a first axis of examples.
      examples, size, mesh, title: as in `device_batches`.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for places, batch in device_batches(examples, size, mesh, title):
        if not places.start:
            cluster.wait_for_all(title)
        for name, values in jax.device_get(function(batch)).items():
            parts.setdefault(name, []).append(values[: len(places)])
    return {name: np.concatenate(of_name) for name, of_name in parts.items()}
