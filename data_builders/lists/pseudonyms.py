"""Names that nobody can turn back into the user's, made with a secret that stays with the user."""

import hashlib
import hmac
import os
import pathlib
import secrets
import sys

from data_builders.errors import InputError


def read_salt(salt: str, table: pathlib.Path, field: str) -> bytes:
    """The secret in the file `salt`, or else beside a table of the user's; made at first. Raises InputError."""
    path = pathlib.Path(salt).expanduser() if salt else table.with_suffix(".salt")
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        print(f"pseudonyms are made with {path}: keep it, and keep it to yourself", file=sys.stderr)
    except FileExistsError:
        pass
    except OSError as error:
        raise InputError(
            f"{path} can't be written ({error.strerror}); set {field} to a file of yours"
        ) from None
    secret = path.read_bytes().strip()
    if len(secret) < 16:
        raise InputError(f"{path} holds fewer than 16 characters, which is no secret")
    return secret


def alias(secret: bytes, *told: str) -> str:
    """Ten hexadecimal digits for some words."""
    return hmac.new(secret, "\0".join(told).encode(), hashlib.sha256).hexdigest()[:10]
