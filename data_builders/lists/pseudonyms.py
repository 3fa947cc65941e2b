"""Pseudonyms, which nobody can trace back without a secret that stays with the user."""

import hashlib
import hmac
import os
import pathlib
import secrets
import sys

from data_builders.errors import InputError


def read_salt(salt: str, table: pathlib.Path, field: str) -> bytes:
    """Returns the secret that pseudonyms are made with; creates it on first use.

    Args:
      salt: its file; the table's name with the ending `.salt` if empty.
      table: the user's list.
      field: the setting that holds `salt`, for messages.

    Raises InputError where the file can't be written or is too short.
    """
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
        raise InputError(f"{path} holds fewer than 16 characters, too few for a secret")
    return secret


def alias(secret: bytes, *words: str) -> str:
    """Returns a pseudonym of ten hexadecimal digits for some words."""
    return hmac.new(secret, "\0".join(words).encode(), hashlib.sha256).hexdigest()[:10]
