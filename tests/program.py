"""Runs the program's command line in the test's own process."""

import sys

from absl import flags

from cranio_jax import main
from cranio_jax.distributed import cluster


def forget_flags() -> None:
    """Takes back the values of flags, and the flags of a configuration's fields."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def exit_code(monkeypatch, *arguments: str) -> int:
    """Runs the program with arguments; returns its exit code."""
    forget_flags()
    monkeypatch.setattr(sys, "argv", ["cranio_jax", *arguments])
    # JAX looks for other processes only before its first computation.
    monkeypatch.setattr(cluster, "join", lambda: None)
    try:
        main.cli()
    except SystemExit as ended:
        return ended.code
    return 0
