"""Reading stored values: checking their checksum, and their number against the header."""

import bz2
import itertools
import math
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy import ndarray as Array

from data_builders.errors import UnreadableError
from data_builders.volumes.scan import MAX_VOXELS

CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
SURPLUS = 4096  # bytes after the values that may be zero padding
MAX_RATIO = 500  # of unpacked to packed size; no large CT is compressed that much


def pieces(file: BinaryIO, packing: str) -> Iterator[bytes]:
    """Yields an open file's bytes, unpacked from "" (nothing), "zlib" (gzip too) or "bzip2".

    Raises UnreadableError where a compressed stream ends early or fails its checksum.
    """
    try:
        if packing == "zlib":
            yield from _inflated(file)
        else:
            plain = bz2.BZ2File(file) if packing == "bzip2" else file
            yield from iter(lambda: plain.read(CHUNK), b"")
    except (zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UnreadableError(
            "fails its checksum: the compressed values are damaged; copy it again"
        ) from None


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    """Yields the unpacked members of a gzip file, of which parallel compressors write many.

    Bytes after the last member are ignored.
    """
    member = None
    count = 0
    data = file.read(CHUNK)
    while data:
        # Begin a member. There may be zeros before it, but not before the first.
        if member is None:
            if count and len(data := data.lstrip(b"\0")) < 2:
                data += file.read(CHUNK)
                data = data.lstrip(b"\0")
            if count and not data.startswith(GZIP):
                return
            member = zlib.decompressobj(47)
            count += 1

        # Unpack a chunk of it.
        if piece := member.decompress(data, CHUNK):
            yield piece
        data = member.unused_data if member.eof else member.unconsumed_tail
        if member.eof:
            member = None
        data = data or file.read(CHUNK)

    # The file ends within a member.
    if member is not None:
        if piece := member.flush():
            yield piece
        if not member.eof:
            raise EOFError


def values_of(
    chunks: Iterator[bytes],
    dtype: np.dtype,
    shape: tuple[int, ...],
    *,
    skip: int = 0,
    packed: int = 0,
) -> Array:
    """Returns the values in Fortran order that `chunks` hold after `skip` bytes.

    `packed` is the size in bytes of the file that they are unpacked from. Raises UnreadableError
    where there are fewer or more values than the header says.
    """
    # Refuse decompression bombs.
    shape = volume_shape(shape)
    needed = math.prod(shape) * dtype.itemsize
    if needed > 64 * CHUNK and packed and needed > MAX_RATIO * packed:
        raise UnreadableError("unpacks to more voxels than any CT has")

    # Collect the bytes. Zeros may fill the last block; anything else contradicts the header.
    last = skip + needed
    slack = min(SURPLUS, needed // shape[2] - 1)
    content = bytearray()
    for piece in chunks:
        content += piece
        if len(content) > last and (len(content) > last + slack or any(content[last:])):
            raise UnreadableError(f"holds more values than its header says ({shape})")
    if len(content) < last:
        share = 100 * max(0, len(content) - skip) // needed
        raise UnreadableError(f"is cut off: {share} % of its values are there; copy it again")
    values = np.frombuffer(content, dtype, count=math.prod(shape), offset=skip)
    return values.reshape(shape, order="F")


def volume_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns the lengths of a volume's three axes. Raises UnreadableError for other shapes.

    Further axes of length 1 are dropped.
    """
    lengths = tuple(int(n) for n in shape)
    while len(lengths) > 3 and lengths[-1] == 1:
        lengths = lengths[:-1]
    if len(lengths) != 3 or min(lengths) < 1:
        raise UnreadableError(f"holds an array of shape {lengths} in place of a volume")
    if math.prod(lengths) > MAX_VOXELS:
        raise UnreadableError("unpacks to more voxels than any CT has")
    return lengths


def beginning(chunks: Iterator[bytes], length: int) -> tuple[bytes, Iterator[bytes]]:
    """Returns at least the first `length` bytes if there are so many, and all chunks again."""
    head = b""
    for piece in chunks:
        head += piece
        if len(head) >= length:
            break
    return head, itertools.chain([head], chunks)
