"""Errors of the builders, and of the program that uses them."""


class InputError(ValueError):
    """Wrong input. The message names the file, row or field, what is wrong, and what to do."""


class UnreadableError(ValueError):
    """A file that holds no usable picture or volume.

    The message says what is wrong and what to do. It names neither folder nor patient.
    """
