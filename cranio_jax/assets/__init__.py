"""Networks that ship with the program; README.md beside this file says how they were trained."""

import pathlib

from cranio_jax.errors import InputError

FOLDER = pathlib.Path(__file__).parent
_PREFIX = "shipped:"


def located(where: str) -> pathlib.Path:
    """Returns the path that a setting names: `shipped:NAME` is a folder or file in this package.

    Raises InputError, naming what ships, if NAME does not.
    """
    if not where.startswith(_PREFIX):
        return pathlib.Path(where).expanduser()
    known = [
        path.name
        for path in sorted(FOLDER.iterdir())
        if path.suffix == ".safetensors" or any(path.glob("*.json"))
    ]
    name = where.removeprefix(_PREFIX)
    if name not in known:
        raise InputError(f"{where}: it does not ship. Use one of {', '.join(known)}.")
    return FOLDER / name
