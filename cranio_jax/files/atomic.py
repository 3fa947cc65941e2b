"""What a run leaves behind: TensorBoard events, a line of JSON for each logged step, and whole files."""

import contextlib
import io
import json
import os
import pathlib
import tempfile
from typing import Any

from cranio_jax.files import buckets


@contextlib.contextmanager
def whole_file(path: pathlib.Path, mode: str = "w"):
    """A file that appears under its name only when it is complete."""
    if buckets.is_remote(path):
        content = io.BytesIO()
        file = content if "b" in mode else io.TextIOWrapper(content, "utf-8", write_through=True)
        yield file
        buckets.write_object(path, content.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode) as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes readable JSON, whole or not at all."""
    with whole_file(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")
