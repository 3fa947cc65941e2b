"""Controls: the mean face, which needs no X-ray, and faces from other people's X-rays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cranio_jax.data import Examples
from cranio_jax.errors import InputError

MEAN_FACE = "mean face"
SHUFFLED = "shuffled X-rays"
# The minimum number of faces in a mean.
FEWEST = 20

Example = dict[str, Any]


def mean_faces(examples: Examples) -> Callable[[Example], UInt8[np.ndarray, "h w 3"]]:
    """Returns a function from an example to the mean training face of its view, age and BMI change.

    Somebody who never saw the X-ray would draw it. Where fewer than FEWEST faces have an
    age and BMI change, the nearest ones count too; ten years are as far as ten percent.

    The function raises InputError if no training face has the example's view.
    """
    views, ages, changes = (np.array(column) for column in zip(*examples.conditions(), strict=True))
    means: dict[tuple[str, float, float], np.ndarray] = {}

    def mean_face(example: Example) -> UInt8[np.ndarray, "h w 3"]:
        kind = (example["face_view"], example["age"], example["bmi_change"])
        if kind not in means:
            alike = np.flatnonzero(views == kind[0])
            distance = np.abs(ages[alike] - kind[1]) + np.abs(changes[alike] - kind[2])
            means[kind] = _mean(examples, _nearest(alike, distance, kind[0]))
        return means[kind]

    return mean_face


def _nearest(rows: np.ndarray, distance: np.ndarray, view: str) -> np.ndarray:
    """Returns the rows of the FEWEST smallest distances, and all others that are as near."""
    if not len(rows):
        raise InputError(
            f"a test face is {view}, but no training face is. Add such training faces."
        )
    return rows[distance <= np.sort(distance)[:FEWEST][-1]]


def _mean(examples: Examples, rows: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    total = sum(examples[i]["face"].astype(np.float64) for i in rows)
    return np.round(total / len(rows)).astype(np.uint8)


def shuffled_xrays(examples: Sequence[Example], seed: int) -> list[Example]:
    """Returns the examples, each with the X-ray of another person, who is named in `xray_of`.

    That X-ray has the same view, and is of the same sex if there is one. Nobody keeps their own.
    Raises InputError if only one subject has an X-ray of a view.
    """
    rng = np.random.default_rng([seed, 15485863])
    xrays = {(e["subject"], e["xray_view"]): e["xray"] for e in examples}
    sex_of = dict(sorted((e["subject"], e["sex"]) for e in examples))
    sexes = list(dict.fromkeys(sex_of.values()))
    cycles = {
        sex: list(rng.permutation([name for name in sex_of if sex_of[name] == sex]))
        for sex in sexes
    }
    everybody = list(sex_of)

    def other_person(example: Example) -> str:
        """Returns the next person of a cycle who has such an X-ray: nobody gets their own."""
        for cycle in (cycles[example["sex"]], everybody):
            place = cycle.index(example["subject"])
            for name in cycle[place + 1 :] + cycle[:place]:
                if (name, example["xray_view"]) in xrays:
                    return str(name)
        raise InputError(
            f"only one test subject has a {example['xray_view']} X-ray, so X-rays can't be "
            "shuffled; more test subjects are needed"
        )

    shuffled = []
    for example in examples:
        name = other_person(example)
        xray = xrays[name, example["xray_view"]]
        shuffled.append(example | {"xray": xray, "xray_of": name})
    return shuffled
