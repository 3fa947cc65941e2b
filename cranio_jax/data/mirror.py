"""Data sets in a bucket: built or copied on a local disk, whole, checked and up to date.

A data set is one folder of files. `MARKER` completes it: it is uploaded and downloaded last, so a
copy that was interrupted is never mistaken for a data set, and resumes where it stopped.
"""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import tqdm

from cranio_jax.errors import InputError
from cranio_jax.files import buckets
from cranio_jax.files.atomic import write_json

MARKER = "dataset_info.json"
_ORIGIN = ".copied_from.json"  # the listing of the bucket that a local copy equals
_BLOCK = 16 << 20
_AT_ONCE = 8  # files
_POLL_S = 2.0


class Stored(NamedTuple):
    """A file of a data set: its size in bytes, and its CRC-32C in base 64 as buckets state it."""

    size: int
    crc32c: str


def local_root(data_dir: str, cache_dir: str) -> pathlib.Path:
    """Returns the local folder for copies of the bucket's folder `data_dir`.

    Raises InputError if either is of the wrong kind; the bucket is not asked.
    """
    buckets.check_name(data_dir, "data.data_dir")
    if buckets.is_remote(cache_dir):
        raise InputError(
            f"data.cache_dir={cache_dir}: it must be a folder on a disk of this machine. Name a "
            "local folder."
        )
    folder = pathlib.Path(cache_dir or buckets.usual_cache()).expanduser().absolute()
    return folder / data_dir.removeprefix("gs://")


class Mirror:
    """A data set's folder in a bucket and its local copy. Errors of either are InputErrors."""

    def __init__(self, remote: pathlib.PurePath, local: pathlib.Path):
        self.remote, self.local = remote, local

    def listing(self) -> dict[str, Stored]:
        """Returns the files in the bucket's folder, by name, without hidden ones, ours or not."""
        try:
            with buckets.sentences(str(self.remote)):
                found = self._listed()
        except InputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            return {}
        named = {one["name"].rpartition("/")[2]: one for one in found if one["type"] == "file"}
        return {
            name: Stored(int(one["size"]), one["crc32c"])
            for name, one in named.items()
            if name and not name.startswith(".")
        }

    def _listed(self) -> list[dict[str, Any]]:
        return buckets.filesystem().ls(str(self.remote), detail=True, refresh=True)

    def wait(self) -> None:
        """Waits until another process has completed the data set in the bucket."""
        while MARKER not in self.listing():
            time.sleep(_POLL_S)

    def forget(self) -> None:
        """Removes a copy of what the bucket no longer has; keeps what was not copied."""
        if (self.local / _ORIGIN).exists():
            shutil.rmtree(self.local)

    def publish(self) -> None:
        """Uploads the files of the local data set that the bucket lacks."""
        files = sorted(path for path in self.local.iterdir() if _belongs(path))
        files.sort(key=lambda path: path.name == MARKER)
        here = {path.name: Stored(path.stat().st_size, _crc32c(path)) for path in files}
        there = self.listing()
        missing = [path for path in files if there.get(path.name) != here[path.name]]
        with self._progress(missing, here, "copying records to") as told:
            for path in missing:
                with buckets.sentences(str(self.remote / path.name)):
                    buckets.filesystem().put_file(str(path), str(self.remote / path.name))
                told.update(here[path.name].size)
        there = self.listing()
        if wrong := next((name for name in here if there.get(name) != here[name]), None):
            raise InputError(
                f"{self.remote / wrong}: differs from what was uploaded. Another run may write the "
                "same records; start again when it has ended."
            )
        write_json(self.local / _ORIGIN, here)

    def fetch(self, check: Callable[[], None]) -> None:
        """Makes the local folder equal to the bucket's, and calls `check` if it was not."""
        listing = self.listing()
        if self._remembered() == listing and all(
            _size(self.local / name) == stored.size for name, stored in listing.items()
        ):
            return
        with self._on_disk(listing):
            self.local.mkdir(parents=True, exist_ok=True)
            write_json(self.local / _ORIGIN, {})  # a copy, but still incomplete
            wanted = [name for name, stored in listing.items() if not self._has(name, stored)]
            self._make_room(wanted, listing)
            if wanted:  # without its marker the folder is not a data set until complete
                (self.local / MARKER).unlink(missing_ok=True)
                wanted = [*(name for name in wanted if name != MARKER), MARKER]
            for path in self.local.iterdir():
                if _belongs(path) and path.name not in listing:
                    path.unlink()
            self._copy_down(wanted, listing)
            check()
            write_json(self.local / _ORIGIN, listing)

    def _copy_down(self, wanted: list[str], listing: dict[str, Stored]) -> None:
        files = [self.local / name for name in wanted]
        with self._progress(files, listing, "copying records from") as told:

            def copy(name: str) -> None:
                self._copy_one(name, listing[name], told)

            with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(copy, wanted[:-1]))
            for name in wanted[-1:]:
                copy(name)

    def _copy_one(self, name: str, stored: Stored, told: tqdm.tqdm) -> None:
        """Downloads a file, resuming an interrupted download."""
        part = self.local / f".{name}.part"
        for _ in range(2):  # a partial file may be of an older version
            with part.open("ab") as file:
                told.update(file.tell())
                while file.tell() < stored.size:
                    block = self._block(name, file.tell(), stored.size)
                    file.write(block)
                    told.update(len(block))
            if Stored(part.stat().st_size, _crc32c(part)) == stored:
                os.replace(part, self.local / name)
                return
            part.unlink()
        raise InputError(
            f"{self.remote / name}: changed while it was copied. Start again when nobody "
            "writes to the folder."
        )

    def _block(self, name: str, start: int, size: int) -> bytes:
        """Returns the bytes of a file from `start` on, one block at most."""
        end = min(start + _BLOCK, size)
        with buckets.sentences(str(self.remote / name)):
            block = buckets.filesystem().cat_file(str(self.remote / name), start=start, end=end)
        if len(block) != end - start:
            raise InputError(f"{self.remote / name}: ended after {start} bytes. Start again.")
        return block

    def _has(self, name: str, stored: Stored) -> bool:
        path = self.local / name
        return _size(path) == stored.size and _crc32c(path) == stored.crc32c

    def _remembered(self) -> dict[str, Stored] | None:
        try:
            content = json.loads((self.local / _ORIGIN).read_text())
            return {name: Stored(*values) for name, values in content.items()}
        except (OSError, ValueError, TypeError):
            return None

    def _make_room(self, wanted: list[str], listing: dict[str, Stored]) -> None:
        started = sum(_size(self.local / f".{name}.part") or 0 for name in wanted)
        needed = sum(listing[name].size for name in wanted) - started
        free = shutil.disk_usage(self.local).free
        if needed > free:
            raise InputError(
                f"{self.local}: copying {self.remote} needs {needed / 2**30:.3g} GB, and "
                f"{free / 2**30:.3g} GB are free. Make room, or set data.cache_dir."
            )

    @contextlib.contextmanager
    def _on_disk(self, listing: dict[str, Stored]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            size = sum(stored.size for stored in listing.values()) / 2**30
            raise InputError(
                f"{self.local}: can't hold the {size:.3g} GB of {self.remote} "
                f"({error.strerror or error}). Make room, or set data.cache_dir."
            ) from None

    @contextlib.contextmanager
    def _progress(self, files: list[pathlib.Path], sizes: dict[str, Stored], words: str):
        """Yields a progress line in bytes, which is not shown if there is nothing to copy."""
        quiet = 0.1 if sys.stderr.isatty() else 20.0  # a log file needs few lines
        with tqdm.tqdm(
            desc=f"{words} {self.remote}",
            total=sum(sizes[path.name].size for path in files),
            unit="B",
            unit_scale=True,
            mininterval=quiet,
            disable=not files,
        ) as told:
            yield told


def _belongs(path: pathlib.Path) -> bool:
    """Returns True for a data set's own files: not for folders, locks, and our notes."""
    return path.is_file() and not path.name.startswith(".")


def _size(path: pathlib.Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _crc32c(path: pathlib.Path) -> str:
    """Returns a file's CRC-32C as Google's storage writes it."""
    import google_crc32c

    total = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return base64.b64encode(total.digest()).decode()
