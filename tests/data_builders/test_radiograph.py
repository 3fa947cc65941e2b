"""Squares of pictures: where a picture lies in one, and where a face does."""

import numpy as np
import pytest

from data_builders.images.squares import PLACES, fitting, moved, padding, take


def test_squares_keep_proportions():
    picture = np.zeros((80, 40), np.float32)
    picture[20:60, 10:30] = 1.0
    small = take(picture, padding(80, 40, 32), 32)
    assert small.shape == (32, 32) and small[:, :7].max() == 0 and small[:, -7:].max() == 0
    assert small.sum() == pytest.approx(picture.sum() * (32 / 80) ** 2, rel=0.02)
    # Fine grain averages out instead of turning into a pattern.
    grain = np.float32(np.indices((400, 400)).sum(0) % 2)
    for size in (50, 73, 230):
        assert take(grain, padding(400, 400, size), size).std() < 0.06, size


@pytest.mark.parametrize("size", [64, 300])
def test_transforms_say_where_things_went(size):
    """A spot is found where the transform says, in a padded picture and in an aligned one."""
    y, x = np.mgrid[:150, :210]
    row, column = 60.3, 95.8
    spot = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 4.0**2)).astype(np.float32)
    turned = np.array([[70.0, 60.0], [130.0, 75.0], [97.0, 95.0], [72.0, 115.0], [118.0, 126.0]])
    for transform in (padding(150, 210, size), fitting(turned, size)):
        found = take(spot, transform, size)
        place = moved(np.array([[column, row]]), transform)[0]
        centre = (np.mgrid[:size, :size] * found).sum((1, 2)) / found.sum()
        np.testing.assert_allclose(centre[::-1], place, atol=0.1)


def test_alignment_is_the_best_similarity():
    from skimage.transform import SimilarityTransform

    places = PLACES * 128 - 0.5
    landmarks = np.array([[70.0, 60.0], [130.0, 75.0], [97.0, 95.0], [72.0, 115.0], [118.0, 126.0]])
    found, wanted = fitting(landmarks, 128), SimilarityTransform.from_estimate(places, landmarks)
    np.testing.assert_allclose(found, wanted.params[:2], atol=1e-8)
