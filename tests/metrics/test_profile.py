"""Depths of soft tissue are measured to a fraction of a pixel, and a missing face is an error."""

import jax.numpy as jnp
import numpy as np
import pytest

from cranio_jax.metrics.depths import depths

SKIN, WALL = np.array([200.0, 150, 120]), np.array([200.0, 210, 220])


def face(edge, size=64, slope=0.0, mirrored=False):
    """A head that fills the left up to the column `edge`, with an anti-aliased rim."""
    fine = 16
    y, x = (np.mgrid[: size * fine, : size * fine] + 0.5) / fine - 0.5
    inside = (x < edge + slope * (y - size / 2)).astype(float)
    cover = inside.reshape(size, fine, size, fine).mean((1, 3))[..., None]
    picture = cover * SKIN + (1 - cover) * WALL
    return picture[:, ::-1] if mirrored else picture


def measured(picture, bone, skin, reach=40.0, spread=0.0):
    as_batch = [jnp.asarray(value, jnp.float32)[None] for value in (picture, [bone], [skin])]
    spread = jnp.deg2rad(jnp.array([spread]))
    (found,) = np.asarray(depths(*as_batch, jnp.array([reach]), spread))
    return found[0]


@pytest.mark.parametrize("edge", [40.0, 40.25, 40.5, 40.8])
def test_an_upright_edge(edge):
    assert measured(face(edge), (30.3, 31.0), (36.0, 31.0)) == pytest.approx(edge - 30.3, abs=0.12)


def test_a_slanted_edge_along_a_slanted_ray():
    """The edge x = 40 + 0.5 (y - 32), met from (28, 26) in the direction (4, 3) / 5."""
    found = measured(face(40.0, slope=0.5), (28.0, 26.0), (36.0, 32.0))
    assert found == pytest.approx((40 - 28 + 0.5 * (26 - 32)) / (0.8 - 0.5 * 0.6), abs=0.15)


def test_a_face_that_looks_to_the_left():
    left = measured(face(40.3, mirrored=True), (63 - 30.0, 31.0), (63 - 35.0, 31.0))
    assert left == pytest.approx(10.3, abs=0.12)


def test_only_the_direction_of_the_skin_counts():
    near, far = (measured(face(41.0), (30.0, 31.0), (x, 31.0)) for x in (31.0, 60.0))
    assert near == pytest.approx(far, abs=1e-3)


def test_the_nearest_edge_counts():
    """A nose behind a gap is not the lip."""
    picture = face(40.0)
    picture[:, 46:52] = SKIN
    assert measured(picture, (30.0, 31.0), (36.0, 31.0)) == pytest.approx(10.0, abs=0.12)


@pytest.mark.parametrize("miss", [-2.0, 0.0, 2.0])
def test_a_corner_is_found_though_the_ray_misses_it(miss):
    """A nose with its lower side at the row 31.5, above a lip that comes forward by 45 degrees."""
    picture, bone, corner = face(40.0, slope=1.0), (30.0, 33.5), (39.5, 31.5)
    picture[:32, :56] = SKIN
    expected = np.hypot(*np.subtract(corner, bone))
    aim = (corner[0], corner[1] + miss)
    assert measured(picture, bone, aim, spread=30.0) == pytest.approx(expected, abs=1.0)
    if miss < 0:
        assert measured(picture, bone, aim) > expected + 10


def test_no_head_and_no_end_of_it():
    assert measured(face(20.0), (30.0, 31.0), (36.0, 31.0)) == 0.0
    assert measured(face(62.0), (30.0, 31.0), (36.0, 31.0), reach=20.0) == 20.0
    even = np.broadcast_to(WALL, (64, 64, 3))
    assert measured(even, (30.0, 31.0), (36.0, 31.0)) == 0.0
