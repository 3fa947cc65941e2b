"""Files that are complete as soon as they exist."""

import contextlib
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from cranio_jax.files import buckets


@contextlib.contextmanager
def whole_file(path: pathlib.Path, mode: str = "w") -> Iterator[Any]:
    """Yields an open file that appears under its name only when it is complete."""
    if buckets.is_remote(path):
        content = io.BytesIO()
        file: Any = content
        if "b" not in mode:
            file = io.TextIOWrapper(content, "utf-8", write_through=True)
        yield file
        buckets.write_object(path, content.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode) as opened:
            yield opened
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes indented JSON, completely or not at all."""
    with whole_file(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")
