"""What a method is held against: the mean face, which needs no X-ray, and other people's X-rays."""

from collections.abc import Callable

import numpy as np

from cranio_jax.data import Examples
from cranio_jax.errors import InputError

MEAN_FACE, SHUFFLED = "mean face", "shuffled X-rays"
FEWEST = 20  # faces that make a mean


def mean_faces(examples: Examples) -> Callable[[dict], np.ndarray]:
    """The mean training face of a view, age and BMI change: what somebody would draw who never saw the X-ray.

    Where fewer than FEWEST faces have an age and BMI change, those next to it count too (ten years as much as ten percent).
    """
    views, ages, changes = (np.array(column) for column in zip(*examples.conditions(), strict=True))
    means: dict[tuple[str, float, float], np.ndarray] = {}

    def mean_face(example):
        kind = (example["face_view"], example["age"], example["bmi_change"])
        if kind not in means:
            if not len(alike := np.flatnonzero(views == kind[0])):
                raise InputError(
                    f"no training face is {kind[0]}, as a test face is; there is no mean face of"
                    " that view"
                )
            distance = np.abs(ages[alike] - kind[1]) + np.abs(changes[alike] - kind[2])
            near = alike[distance <= np.sort(distance)[:FEWEST][-1]]
            total = sum(examples[i]["face"].astype(np.float64) for i in near)
            means[kind] = np.round(total / len(near)).astype(np.uint8)
        return means[kind]

    return mean_face


def shuffled_xrays(examples: list[dict], seed: int) -> list[dict]:
    """The same examples with the X-ray of somebody else, `xray_of`, of the same view, and the same sex if there is one.

    Nobody keeps their own.
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

    def other(e: dict) -> str:
        """Who comes next in the cycle and has such an X-ray: of all the same view, one cycle is a derangement."""
        for cycle in (cycles[e["sex"]], everybody):
            place = cycle.index(e["subject"])
            for name in cycle[place + 1 :] + cycle[:place]:
                if (name, e["xray_view"]) in xrays:
                    return str(name)
        raise InputError(
            f"one test subject alone has a {e['xray_view']} X-ray, so X-rays can't be shuffled;"
            " more test subjects are needed"
        )

    others = [other(e) for e in examples]
    return [
        e | {"xray": xrays[name, e["xray_view"]], "xray_of": name}
        for e, name in zip(examples, others, strict=True)
    ]
