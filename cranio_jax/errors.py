"""What the program says when its input is wrong."""

from data_builders.errors import InputError

__all__ = ["InputError"]
