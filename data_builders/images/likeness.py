"""Finding radiographs that occur twice.

They may be copies of one file, or exports of one X-ray at other sizes and brightnesses.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

SIDE = 48  # pixels of a thumbnail
# Cosine of signatures that are alike. Exports of one X-ray reach 0.99; different people of the
# procedural cohort stay below 0.98.
ALIKE = 0.985


def signature(picture: Array) -> Float[Array, "n"]:
    """Returns the edges of a thumbnail as a vector of length 1.

    Exposure and size hardly change it. The hashes of a few bits that photographs are compared by
    do not work here: skulls in the same pose share them.
    """
    small = cv2.resize(np.asarray(picture, np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    edges = small - cv2.GaussianBlur(small, (0, 0), 1.5)
    edges -= edges.mean()
    return (edges / max(float(np.linalg.norm(edges)), 1e-9)).ravel()


def duplicates(
    signatures: Float[Array, "n d"], owners: Sequence[str]
) -> Iterator[tuple[int, int, float]]:
    """Returns pairs `(first, second, cosine)` of different owners' pictures that are alike.

    Mirrored pictures count, too. The most similar pair comes first.
    """
    mirrored = signatures.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(signatures.shape)
    owner = np.unique(np.asarray(owners), return_inverse=True)[1]
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(signatures), 1024):
        block = signatures[start : start + 1024]
        cosine = np.maximum(block @ signatures.T, block @ mirrored.T)
        for row, second in np.argwhere(cosine > ALIKE).tolist():
            first = start + row
            if first < second and owner[first] != owner[second]:
                pairs.append((first, second, float(cosine[row, second])))
    return iter(sorted(pairs, key=lambda pair: -pair[2]))
