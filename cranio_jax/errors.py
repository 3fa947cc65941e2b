"""What the program says when its input is wrong."""


class InputError(ValueError):
    """One sentence for the person at the terminal: the file, row or field, what is wrong, what to do."""
