"""Errors of the builders."""


class UnreadableError(ValueError):
    """A file that holds no usable picture or volume.

    The message says what is wrong and what to do. It names neither folder nor patient.
    """
