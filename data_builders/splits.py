"""Who is trained on and who is held out: whole subjects, never pictures."""

import hashlib
import pathlib
from collections.abc import Iterable

from cranio_jax.errors import InputError


def by_seed(sexes: dict[str, str], test_fraction: float, seed: int) -> dict[str, str]:
    """'train' or 'test' of each subject, each sex alike, from a seed: whatever the order they come in.

    Args:
      sexes: of each subject.
      test_fraction: of the subjects that is held out, at least one and not all.
      seed: of the draw.
    """
    draw = lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()
    ranks = []
    for sex in sorted(set(sexes.values())):
        members = sorted((name for name in sexes if sexes[name] == sex), key=draw)
        ranks += [((place + 0.5) / len(members), name) for place, name in enumerate(members)]
    held_out = max(1, round(len(sexes) * test_fraction))
    if not held_out < len(sexes):
        raise InputError(f"test_fraction={test_fraction:g} of {len(sexes)} subjects leaves nobody to train on")
    return {name: "test" if place < held_out else "train" for place, (_, name) in enumerate(sorted(ranks))}


def by_list(subjects: Iterable[str], path: pathlib.Path) -> dict[str, str]:
    """'test' for the subjects that a text file names, one a line, 'train' for the others. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"split: {path} can't be read as a list of subjects ({type(error).__name__})") from None
    subjects, named = set(subjects), {}
    for number, line in enumerate(lines, 1):
        if name := line.strip():
            if name not in subjects:
                raise InputError(f"{path.name}, line {number}: no subject of that name is in the data")
            named[name] = number
    if not named or len(named) == len(subjects):
        raise InputError(f"{path.name} names {'nobody' if not named else 'everybody'}; it lists the test subjects, one a line")
    return {name: "test" if name in named else "train" for name in sorted(subjects)}
