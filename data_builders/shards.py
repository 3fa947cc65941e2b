"""Records to files of bounded size, in the order in which they come.

TFDS's own builders shuffle a split before it is written, in memory up to a gigabyte and with TensorFlow beyond that. Grain
shuffles when it reads, so nothing has to here.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tqdm

BYTES = (
    256 << 20
)  # of uncompressed pictures in a file, which TFDS holds in memory while it writes it

Record = tuple[str, dict[str, Any]]


def shards(
    name: str, records: Iterable[Record], count: int, size: int
) -> list[Callable[[], Iterator[Record]]]:
    """For a split of `tfds.core.ShardBasedBuilder`: what makes the records of each file; TFDS asks for one after the other.

    Args:
      name: of the split, for the progress line.
      records: keys and records.
      count: of the records.
      size: pixels along each side of their pictures, an X-ray and a face.
    """
    each = max(1, BYTES // (4 * size**2))
    told = _told(records, f"writing {name}", count)
    return [functools.partial(itertools.islice, told, each)] * -(-count // each)


def _told(records: Iterable[Record], what: str, count: int) -> Iterator[Record]:
    """As they are, with a progress line from the first to the last."""
    yield from tqdm.tqdm(records, desc=what, total=count, unit=" records")
