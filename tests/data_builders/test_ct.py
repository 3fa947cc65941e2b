"""Real CT heads through the renderers that the procedural cohort uses."""

import numpy as np
import pytest

from data_builders.rendering import ct, surface
from data_builders.rendering.volume import VIEWS


@pytest.fixture(scope="module")
def head(shared_data):
    return ct.read_head(shared_data / "ct" / "cthead.nii.gz", voxel=2.0)


def test_head_is_upright_and_alone(head):
    values = np.asarray(head.values)
    assert values.max() > 1000 and values.min() == ct.AIR
    bone = np.argwhere(values > 300)
    middle = np.argwhere(values > -300).mean(0)
    # Teeth and enamel, the densest part, lie in front of and below the middle.
    dense = np.argwhere(values > 2000).mean(0)
    assert dense[1] > middle[1] and dense[2] < middle[2]
    assert np.ptp(bone[:, 2] * head.spacing[2]) > 150


@pytest.mark.parametrize("view", VIEWS)
def test_xray_and_face_agree(head, view):
    xrays, faces = ct.pictures(ct.boxed(head), 96)
    picture, face = xrays[view], faces[view]
    assert picture.max() == pytest.approx(1.0, abs=0.02) and 0.1 < picture.mean() < 0.5
    silhouette = np.abs(face - np.asarray(surface.BACKGROUND)).max(-1) > 0.03
    # Where the X-ray shows tissue there is a face, and where nothing absorbs there is none.
    assert silhouette[picture > 0.2].mean() > 0.97
    assert silhouette[picture < 0.005].mean() < 0.1
