"""Whether two radiographs are one: the same file twice, or the same exported again at another size and brightness."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

SIDE = 48  # pixels of a thumbnail
ALIKE = 0.985  # cosine; exports of one X-ray reach 0.99, different people of the procedural cohort stay below 0.98


def signature(picture: Array) -> Float[Array, "n"]:
    """Edges of a thumbnail, of length 1: exposure and size leave them alone.

    Hashes of a few bits, as for photographs, are of no use here: skulls in one pose have the same ones.
    """
    small = cv2.resize(np.asarray(picture, np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    edges = small - cv2.GaussianBlur(small, (0, 0), 1.5)
    edges -= edges.mean()
    return (edges / max(float(np.linalg.norm(edges)), 1e-9)).ravel()


def duplicates(
    signatures: Float[Array, "n d"], owners: Sequence[str]
) -> Iterator[tuple[int, int, float]]:
    """Pairs of different owners' pictures that are alike, also where one is mirrored: `(first, second, cosine)`, the likest first."""
    mirrored = signatures.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(signatures.shape)
    owner = np.unique(np.asarray(owners), return_inverse=True)[1]
    found = []
    for start in range(0, len(signatures), 1024):
        block = signatures[start : start + 1024]
        cosine = np.maximum(block @ signatures.T, block @ mirrored.T)
        rows, columns = np.nonzero(cosine > ALIKE)
        found += [
            (start + i, j, float(cosine[i, j]))
            for i, j in zip(rows, columns, strict=True)
            if start + i < j
        ]
    return iter(
        sorted(((i, j, c) for i, j, c in found if owner[i] != owner[j]), key=lambda pair: -pair[2])
    )
