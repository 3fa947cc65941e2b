"""Divides records into files of bounded size, in their order.

TFDS's own builders shuffle a split before they write it: in memory up to a gigabyte, with
TensorFlow beyond that. Grain shuffles when it reads, so these builders need not.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tqdm

# Uncompressed pictures in a file, which TFDS holds in memory while it writes.
BYTES = 256 << 20

Record = tuple[str, dict[str, Any]]


def shards(
    name: str, records: Iterable[Record], count: int, size: int
) -> list[Callable[[], Iterator[Record]]]:
    """Returns a function for each file of a split that yields the file's records.

    `tfds.core.ShardBasedBuilder` calls them one after the other.

    Args:
      name: of the split, for the progress line.
      records: keys and records.
      count: number of records.
      size: pixels along each side of their pictures, an X-ray and a face.
    """
    each = max(1, BYTES // (4 * size**2))
    source = _with_progress(records, f"writing {name}", count)
    return [functools.partial(itertools.islice, source, each)] * -(-count // each)


def _with_progress(records: Iterable[Record], words: str, count: int) -> Iterator[Record]:
    """Yields the records, with a progress line from the first to the last."""
    yield from tqdm.tqdm(records, desc=words, total=count, unit=" records")
