"""Names of folders, local or in a Google Cloud Storage bucket, and readable errors of a bucket."""

import atexit
import contextlib
import errno
import functools
import importlib.util
import logging
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from etils import epath

from cranio_jax.errors import InputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_FOLDER_IN_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(/.*)?")
LOGIN = (
    "log in with `gcloud auth application-default login`, or give the machine's account "
    "roles/storage.objectAdmin of the bucket"
)


def is_remote(path: str | pathlib.PurePath) -> bool:
    """Returns True for a URL; paths on this machine's disks have no scheme."""
    return _SCHEME.match(str(path)) is not None


def usual_cache() -> pathlib.Path:
    """Returns the user's own folder for what can be made again."""
    return (
        pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cranio_jax"
    ).expanduser()


def open_folder(name: str, field: str) -> pathlib.Path:
    """Returns the path of a folder on a disk or in a bucket, which need not exist.

    Args:
      name: a path, or gs://BUCKET/FOLDER.
      field: the flag or setting that holds it, for the error message.

    Raises:
      InputError: a kind of storage that can't be used, no gcsfs, no such bucket, or no access.
    """
    if not is_remote(name):
        return pathlib.Path(name).expanduser()
    check_name(name, field)
    with sentences(f"{field}={name}"):
        # A bucket's metadata need a permission of their own; its objects are read anyway.
        filesystem().call("GET", "b/{}/o", bucket_of(name), maxResults=1, json_out=True)
    return epath.Path(name)


def check_name(name: str, field: str) -> None:
    """Raises InputError if a URL is not gs://BUCKET/..., or gcsfs is not installed."""
    match = _SCHEME.match(name)
    if match is None:
        raise ValueError(f"{name!r} is no URL")
    scheme = match[1]
    if scheme.lower() in ("gs", "gcs") and not _FOLDER_IN_BUCKET.fullmatch(name):
        raise InputError(f"{field}={name}: not a folder in a bucket. Write gs://BUCKET/FOLDER.")
    if scheme == "file":
        raise InputError(f"{field}={name}: a URL of a local folder. Write only its path.")
    if scheme != "gs":
        raise InputError(
            f"{field}={name}: {scheme}:// can't be read or written. Mount that storage and use "
            "the folder, or use a Google Cloud Storage bucket (gs://BUCKET/FOLDER)."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"{field}={name}: buckets need gcsfs. Run `pip install gcsfs`.")


def bucket_of(name: str | pathlib.PurePath) -> str:
    """Returns the bucket in gs://BUCKET/..."""
    return str(name).removeprefix("gs://").partition("/")[0]


@functools.cache
def filesystem() -> Any:
    """Returns gcsfs's file system. Listings are not cached: other processes write, too."""
    import fsspec

    for name in ("gcsfs", "google.auth"):  # failures are raised too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs")


def write_object(path: pathlib.PurePath, content: bytes) -> None:
    """Writes an object, which appears when it is complete. Raises OSError, as a disk does."""
    try:
        filesystem().pipe_file(str(path), content)
    except Exception as error:
        if not is_failure(error):
            raise
        raise OSError(errno.EIO, reason(error), str(path)) from error


@contextlib.contextmanager
def sentences(where: str) -> Iterator[None]:
    """Turns bucket errors within the block into an InputError that names `where`."""
    try:
        yield
    except Exception as error:
        if not is_failure(error):
            raise
        raise InputError(f"{where}: {reason(error)}.") from error


def is_failure(error: BaseException) -> bool:
    """Returns True if the libraries that read and write buckets raised the error."""
    return "gcsfs" in sys.modules and _passed_gcsfs(error.__traceback__)


def _passed_gcsfs(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "gcsfs":
            return True
        traceback = traceback.tb_next
    return False


def reason(error: BaseException) -> str:
    """Returns why a bucket can't be read or written, and what to do."""
    import google.auth.exceptions

    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket or object. Check the name"
    refused = getattr(error, "code", None) in (401, 403, "401", "403")
    if refused or "Forbidden" in said or isinstance(error, google.auth.exceptions.GoogleAuthError):
        return f"access is denied ({said}). To get it, {LOGIN}"
    if getattr(error, "code", None) or isinstance(error, ValueError):
        return f"the bucket answers {said!r}. Try again later"
    return f"the bucket can't be reached ({said}). Check the network, and start again"


@contextlib.contextmanager
def local_folder(path: pathlib.Path, last: str = "") -> Iterator[pathlib.Path]:
    """Yields a folder to write into: `path`, or one whose files are then copied to its bucket.

    The file named `last` is copied last, so its presence means that all are there.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        yield scratch
        files = sorted(file for file in scratch.rglob("*") if file.is_file())
        for file in sorted(files, key=lambda file: file.name == last):
            target = path / file.relative_to(scratch).as_posix()
            filesystem().put_file(str(file), str(target))


@functools.cache
def local_file(path: pathlib.Path) -> pathlib.Path:
    """Returns a file's path on a disk; one in a bucket is copied until the process ends."""
    if not is_remote(path):
        return path
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    copy = pathlib.Path(folder.name) / path.name
    filesystem().get_file(str(path), str(copy))
    return copy


def file_sizes(folder: pathlib.Path) -> dict[str, int]:
    """Returns the bytes of each file below a folder, by its path within it."""
    if is_remote(folder):
        top = str(folder).removeprefix("gs://") + "/"
        objects = filesystem().find(str(folder), detail=True)
        return {name.removeprefix(top): int(entry["size"]) for name, entry in objects.items()}
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
