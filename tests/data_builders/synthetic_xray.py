"""A synthetic X-ray, and how alike another picture is."""

import numpy as np

HEIGHT, WIDTH = 120, 100


def head(height=HEIGHT, width=WIDTH):
    """A bright ring with something in it, on a dark ground; in [0, 1], not symmetric."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = np.hypot(x / 0.7, y / 0.8)
    picture = 0.6 * np.exp(-(((radius - 0.9) / 0.12) ** 2)) + 0.3 / (
        1 + np.exp((radius - 0.95) / 0.04)
    )
    picture += 0.4 * np.exp(-((x + 0.3) ** 2 + (y - 0.4) ** 2) / 0.03)
    picture -= 0.2 * np.exp(-((x - 0.2) ** 2 + (y + 0.3) ** 2) / 0.05)
    return np.clip(picture + 0.1, 0, 1)


HEAD = head()


def alike(picture, reference=HEAD, where=Ellipsis):
    """Returns the correlation of two pictures, or of a part of them."""
    return np.corrcoef(picture[where].ravel(), reference[where].ravel())[0, 1]
