"""Draws pictures of the cohort, or measures its ceiling.

Usage: `python -m data_builders.cranio_phantom.overview sheet|variants|ceiling [FILE.png]`.
"""

import sys

import jax
import numpy as np
from PIL import Image

from data_builders.cranio_phantom import cohort, head

SPREAD = cohort.Spread()


def _faces(subject: cohort.Subject, age: float, change: float, size: int) -> np.ndarray:
    return np.asarray(head.portraits(*cohort.appearance(subject, age, change, SPREAD), size).faces)


def sheet(size: int = 192, subjects: int = 6) -> np.ndarray:
    """Returns a picture with a column for each subject: both X-rays, then both faces.

    All are at the reference age and BMI.
    """
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
    """Returns a picture of one subject: columns are ages (both views), rows changes of BMI."""
    subject = cohort.draw(0, index)
    rows = [
        np.concatenate([f for age in cohort.AGES for f in _faces(subject, age, change, size)], 1)
        for change in cohort.BMI_CHANGES
    ]
    return np.concatenate(rows)


def ceiling(size: int = 64, subjects: int = 120) -> dict[str, float]:
    """Returns two mean PSNRs in dB on the test subjects.

    The first is that of the mean training face. The second is that of the true skull with new
    draws of all other traits: methods that see only the skull can't be expected to do much better.
    """
    splits = cohort.split(0, subjects)
    conditions = [(age, change) for age in cohort.AGES for change in cohort.BMI_CHANGES]
    # Average the training faces.
    mean: dict[tuple[int, int], np.ndarray] = {
        condition: np.zeros((2, size, size, 3), np.float32) for condition in conditions
    }
    for index in splits["train"]:
        for c in conditions:
            mean[c] = mean[c] + _faces(cohort.draw(0, index), *c, size) / len(splits["train"])
    # Compare them, and strangers with the same skull, with the test faces.
    values: dict[str, list[float]] = {"mean face": [], "true skull, other traits": []}
    for index in splits["test"]:
        subject = cohort.draw(0, index)
        stranger = cohort.with_other_traits(subject, 1000 + index)
        for c in conditions:
            truth = _faces(subject, *c, size)
            values["mean face"] += list(_psnr(mean[c], truth))
            values["true skull, other traits"] += list(_psnr(_faces(stranger, *c, size), truth))
    return {name: float(np.mean(v)) for name, v in values.items()}


def _psnr(faces: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the PSNR of each face in dB."""
    return -10 * np.log10(np.mean((faces - truth) ** 2, axis=(1, 2, 3)))


def main(what: str, file: str = "overview.png") -> None:
    """Writes a picture, or prints the ceiling. `what` is 'sheet', 'variants' or 'ceiling'."""
    if what == "ceiling":
        for name, value in ceiling().items():
            print(f"{name:28s} {value:.2f} dB")
        return
    picture = {"sheet": sheet, "variants": variants}[what]()
    Image.fromarray(np.uint8(np.round(picture * 255))).save(file)


if __name__ == "__main__":
    with jax.numpy_rank_promotion("allow"):
        main(*sys.argv[1:])
