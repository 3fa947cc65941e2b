"""The error of a wrong input."""

from data_builders.errors import InputError

__all__ = ["InputError"]
