"""Looks at the cohort: `python -m data_builders.cranio_phantom.overview sheet|variants|ceiling [FILE.png]`."""

import sys
from collections import defaultdict

import jax
import numpy as np
from PIL import Image

from data_builders.cranio_phantom import cohort, head

SPREAD = cohort.Spread()


def _faces(subject: cohort.Subject, age: float, change: float, size: int) -> np.ndarray:
    return np.asarray(head.portraits(*cohort.appearance(subject, age, change, SPREAD), size)[0])


def sheet(size: int = 192, subjects: int = 6) -> np.ndarray:
    """One column a subject: both X-rays, both faces, at the reference age and BMI."""
    columns = []
    for index in range(subjects):
        subject = cohort.draw(0, index)
        skull, tissue, _ = cohort.appearance(
            subject, cohort.REFERENCE_AGE, cohort.REFERENCE_BMI_CHANGE, SPREAD
        )
        xrays = np.repeat(np.asarray(head.radiographs(skull, tissue, size, 1.4))[..., None], 3, -1)
        columns.append(
            np.concatenate(
                [*xrays, *_faces(subject, cohort.REFERENCE_AGE, cohort.REFERENCE_BMI_CHANGE, size)]
            )
        )
    return np.concatenate(columns, 1)


def variants(size: int = 160, index: int = 2) -> np.ndarray:
    """One subject: columns 25, 45, 65 years (both views), rows BMI -10 %, 0, +10 %."""
    subject = cohort.draw(0, index)
    rows = [
        np.concatenate([f for age in cohort.AGES for f in _faces(subject, age, change, size)], 1)
        for change in cohort.BMI_CHANGES
    ]
    return np.concatenate(rows)


def ceiling(size: int = 64, subjects: int = 120) -> dict[str, float]:
    """PSNR in dB of the mean training face, and of the true skull with everything else drawn anew, on test subjects.

    No method that sees only the skull can be expected far above the second.
    """
    splits = cohort.split(0, subjects)
    psnr = lambda a, b: -10 * np.log10(np.mean((a - b) ** 2, axis=(1, 2, 3)))
    total = defaultdict(float)
    conditions = [(age, change) for age in cohort.AGES for change in cohort.BMI_CHANGES]
    for index in splits["train"]:
        for c in conditions:
            total[c] = total[c] + _faces(cohort.draw(0, index), *c, size) / len(splits["train"])
    values = {"mean face": [], "true skull, other traits": []}
    for index in splits["test"]:
        subject = cohort.draw(0, index)
        stranger = cohort.with_other_traits(subject, 1000 + index)
        for c in conditions:
            truth = _faces(subject, *c, size)
            values["mean face"] += list(psnr(total[c], truth))
            values["true skull, other traits"] += list(psnr(_faces(stranger, *c, size), truth))
    return {name: float(np.mean(v)) for name, v in values.items()}


def main(what: str, file: str = "overview.png") -> None:
    """Writes a picture or prints the ceiling."""
    if what == "ceiling":
        for name, value in ceiling().items():
            print(f"{name:28s} {value:.2f} dB")
        return
    picture = {"sheet": sheet, "variants": variants}[what]()
    Image.fromarray(np.uint8(np.round(picture * 255))).save(file)


if __name__ == "__main__":
    with jax.numpy_rank_promotion("allow"):
        main(*sys.argv[1:])
