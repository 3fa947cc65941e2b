"""What a method is held against: the mean face, which needs no X-ray, and other people's X-rays."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from cranio_jax.data import Examples
from cranio_jax.errors import InputError

MEAN_FACE, SHUFFLED = "mean face", "shuffled X-rays"


def mean_faces(examples: Examples) -> Callable[[dict], np.ndarray]:
    """The mean training face of a view, age and BMI change: what somebody would draw who never saw the X-ray."""
    sums, counts = defaultdict(float), defaultdict(int)
    kind = lambda e: (e["face_view"], e["age"], e["bmi_change"])
    for i in range(len(examples)):
        example = examples[i]
        sums[kind(example)] = sums[kind(example)] + example["face"].astype(np.float64)
        counts[kind(example)] += 1

    def mean_face(example):
        if kind(example) not in sums:
            raise InputError(f"no training face has the view, age and BMI change {kind(example)} of a test face")
        return np.round(sums[kind(example)] / counts[kind(example)]).astype(np.uint8)

    return mean_face


def shuffled_xrays(examples: list[dict], seed: int) -> list[dict]:
    """The same examples with the X-ray of somebody else, `xray_of`, of the same view and sex; nobody keeps their own."""
    xrays, order = {}, defaultdict(list)
    rng = np.random.default_rng([seed, 15485863])
    for e in examples:
        xrays[e["subject"], e["xray_view"]] = e["xray"]
    for subject, sex in sorted({(e["subject"], e["sex"]) for e in examples}):
        order[sex].append(subject)
    other = {}
    for sex, subjects in order.items():
        if len(subjects) < 2:
            raise InputError(
                f"the test split has one {sex} subject, so X-rays can't be shuffled within a sex; raise data.settings.subjects"
            )
        subjects = list(rng.permutation(subjects))
        other |= dict(zip(subjects, subjects[1:] + subjects[:1], strict=True))  # one cycle: a derangement
    return [e | {"xray": xrays[other[e["subject"]], e["xray_view"]], "xray_of": other[e["subject"]]} for e in examples]
