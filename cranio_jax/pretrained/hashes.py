"""SHA-256 of files of weights, computed once."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

from cranio_jax.errors import InputError
from cranio_jax.files.atomic import write_json

# Smaller ones are read in milliseconds.
_LARGE = 2**24


def sha256_of(files: Sequence[pathlib.Path]) -> str:
    """Returns the SHA-256 of the files' bytes, one file after the other.

    That of large files is kept in the user's cache folder (XDG_CACHE_HOME, else ~/.cache) beside
    their sizes and times, and computed again if one of these has changed. Raises InputError if a
    file can't be read.
    """
    try:
        stats = [file.stat() for file in files]
        if sum(stat.st_size for stat in stats) < _LARGE:
            return _digest(files)
        # Unlike the modification time, the change time can't be set by hand.
        stamp = [[s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for s in stats]
        names = "\n".join(str(file.resolve()) for file in files)
        kept = _folder() / f"{hashlib.sha256(names.encode()).hexdigest()}.json"
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            before = json.loads(kept.read_text())
            if before["stamp"] == stamp:
                return before["sha256"]
        digest = _digest(files)
    except OSError as error:
        name = error.filename or files[0]
        raise InputError(f"{name}: it can't be read ({error.strerror})") from None
    with contextlib.suppress(OSError):  # without a cache it is computed each time
        write_json(kept, {"stamp": stamp, "sha256": digest})
    return digest


def _folder() -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "cranio_jax" / "sha256"


def _digest(files: Sequence[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(2**24):
                digest.update(block)
    return digest.hexdigest()
