"""Stored values: unpacked to their checksum, and as many as the header promises."""

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
SURPLUS = 4096  # zeros after the values that are taken for padding
MAX_RATIO = 500  # a CT of some size never shrinks that much


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
    """Members one after the other, as parallel compressors write them, without what follows."""
    member = None
    count = 0
    data = file.read(CHUNK)
    while data:
        if member is None:
            if count and len(data := data.lstrip(b"\0")) < 2:
                data += file.read(CHUNK)
                data = data.lstrip(b"\0")
            if count and not data.startswith(GZIP):
                return
            member = zlib.decompressobj(47)
            count += 1
        if piece := member.decompress(data, CHUNK):
            yield piece
        data = member.unused_data if member.eof else member.unconsumed_tail
        if member.eof:
            member = None
        data = data or file.read(CHUNK)
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
    """The values in Fortran order that `chunks` hold after `skip` bytes.

    `packed` is the size of the file that they are unpacked from, in bytes. Raises UnreadableError
    where there are fewer or more than the header says.
    """
    shape = volume_shape(shape)
    needed = math.prod(shape) * dtype.itemsize
    if needed > 64 * CHUNK and packed and needed > MAX_RATIO * packed:
        raise UnreadableError("unpacks to more voxels than any CT has")
    last = skip + needed
    slack = min(SURPLUS, needed // shape[2] - 1)
    content = bytearray()
    for piece in chunks:
        content += piece
        # Zeros may fill up the last block; anything else is a header that lies.
        if len(content) > last and (len(content) > last + slack or any(content[last:])):
            raise UnreadableError(f"holds more values than its header says ({shape})")
    if len(content) < last:
        share = 100 * max(0, len(content) - skip) // needed
        raise UnreadableError(f"is cut off: {share} % of its values are there; copy it again")
    return np.frombuffer(content, dtype, math.prod(shape), skip).reshape(shape, order="F")


def volume_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The three axes of a volume; further axes of length 1 are dropped. Raises UnreadableError."""
    shape = tuple(int(n) for n in shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise UnreadableError(f"holds an array of shape {shape} in place of a volume")
    if math.prod(shape) > MAX_VOXELS:
        raise UnreadableError("unpacks to more voxels than any CT has")
    return shape


def beginning(chunks: Iterator[bytes], length: int) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, and the chunks from the beginning again."""
    head = b""
    for piece in chunks:
        head += piece
        if len(head) >= length:
            break
    return head, itertools.chain([head], chunks)
