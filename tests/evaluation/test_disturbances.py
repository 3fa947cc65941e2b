"""Bad X-rays: each change by what it does to a known picture."""

import cv2
import numpy as np
import pytest

from cranio_jax.errors import InputError
from cranio_jax.evaluation import disturbances


def of(picture, name):
    (changed,) = disturbances.disturbed([{"xray": picture, "face": 0}], name)
    assert changed["face"] == 0 and changed["xray"].shape == picture.shape
    return changed["xray"]


def test_what_each_does():
    side = 100
    rows, columns = np.mgrid[:side, :side]
    dot = np.uint8(255 * np.exp(-((rows - 50) ** 2 + (columns - 80) ** 2) / 8))[..., None]
    # A point 30.5 pixels right of the middle goes up by 30.5 sin(10 degrees).
    moments = cv2.moments(of(dot, "rotated")[..., 0])
    angle = np.deg2rad(10.0)
    assert moments["m10"] / moments["m00"] == pytest.approx(
        49.5 + 30.5 * np.cos(angle) + 0.5 * np.sin(angle), abs=0.1
    )
    assert moments["m01"] / moments["m00"] == pytest.approx(
        49.5 - 30.5 * np.sin(angle) + 0.5 * np.cos(angle), abs=0.1
    )

    # A step becomes as wide as the blur's standard deviation says.
    step = np.uint8(200 * (columns >= 50))[..., None]
    slope = np.diff(of(step, "blurred")[50, :, 0].astype(float)) / 200
    places = np.arange(side - 1)
    assert np.sqrt((slope * (places - (slope * places).sum()) ** 2).sum()) == pytest.approx(
        1.5, abs=0.1
    )

    grey = np.full((side, side, 1), 150, np.uint8)
    cropped = of(grey, "cropped")
    assert (cropped[10:90, 10:90] == 150).all() and cropped.sum() == 80 * 80 * 150
    dim = of(grey, "underexposed")
    assert dim.mean() == pytest.approx(60, abs=1) and dim.std() == pytest.approx(15.3, abs=1)
    np.testing.assert_array_equal(dim, of(grey, "underexposed"))
    assert (grey == 150).all()


def test_wrong_settings():
    with pytest.raises(InputError, match="evaluate.disturbances='bent': it is unknown. Use some"):
        disturbances.check(("rotated", "bent"), True)
    with pytest.raises(InputError, match=r"disturbances: it needs evaluate.keep_faces=True"):
        disturbances.check(("rotated",), False)
    disturbances.check((), False)
