"""The renderers against bodies whose projection and surface are known exactly."""

import jax.numpy as jnp
import numpy as np
import pytest

from data_builders.rendering import surface, xray
from data_builders.rendering.volume import (
    Frame,
    Volume,
    check_view,
    pixel_axes,
    project_point,
    ray_points,
)

RADIUS, CENTER = 40.0, (10.0, -6.0, 4.0)


def ball(spacing=(2.0, 2.0, 2.0), inside=0.0):
    """A ball of water in air off the middle of a box."""
    axes = [np.arange(-70, 70, s) for s in spacing]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    distance = np.linalg.norm(places - np.array(CENTER), axis=-1) - RADIUS
    values = -1000.0 + (inside + 1000.0) * np.clip(0.5 - distance / min(spacing), 0, 1)
    return Volume(
        jnp.asarray(values, jnp.float32), jnp.asarray(spacing, jnp.float32), jnp.full(3, -70.0)
    )


FRAME = Frame(70, 140.0, (0.0, 0.0, 0.0))


def chord(view):
    columns, rows = pixel_axes(FRAME, view)
    across = columns - (CENTER[0] if view == "frontal" else CENTER[1])
    away = jnp.hypot(across[None, :], (rows - CENTER[2])[:, None])
    return 2 * jnp.sqrt(jnp.maximum(RADIUS**2 - away**2, 0.0)), away


@pytest.mark.parametrize("view", ["frontal", "lateral"])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.4, 2.0, 2.8)])
def test_projection_of_a_water_ball(view, spacing):
    path = xray.path_attenuation(ball(spacing), FRAME, view)
    exact, away = chord(view)
    error = np.abs(path - 0.02 * exact)  # water absorbs 0.02 / mm
    assert float(error[away < 36].max()) < 0.02
    assert float(path[away > 45].max()) < 1e-4
    np.testing.assert_allclose(
        path.sum() * FRAME.pixel**2, 0.02 * 4 / 3 * np.pi * RADIUS**3, rtol=0.01
    )


def test_small_pictures_keep_the_mass():
    """Shrinking averages, so nothing thin is lost between the pixels."""
    coarse = Frame(20, 140.0, (0.0, 0.0, 0.0))
    total = [
        float(xray.path_attenuation(ball(), f, "frontal").sum()) * f.pixel**2
        for f in (FRAME, coarse)
    ]
    np.testing.assert_allclose(*total, rtol=0.01)


def test_bone_absorbs_more_than_water_more_than_air():
    mu = xray.attenuation(jnp.array([-1200.0, -1000.0, 0.0, 1000.0]))
    assert mu[0] == mu[1] == 0.0 and mu[2] == pytest.approx(0.02) and mu[3] > 0.04


@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_rays_from_a_focal_point(view):
    """A ball before or behind the middle plane is moved and enlarged as its centre is."""
    beam = xray.Beam(distance=500.0)
    path = np.asarray(xray.path_attenuation(ball(), FRAME, view, beam))
    columns, rows = np.meshgrid(np.arange(70), np.arange(70))
    seen = [(path * places).sum() / path.sum() for places in (columns, rows)]
    expected = project_point(FRAME, view, jnp.asarray(CENTER), 500.0)
    np.testing.assert_allclose(seen, expected, atol=0.05)
    parallel = np.asarray(project_point(FRAME, view, jnp.asarray(CENTER)))
    assert np.abs(parallel - seen).max() > 0.05
    # By similar triangles: 6 mm further from the focal point, or 10 mm nearer to it.
    larger = 500 / (500 - 6) if view == "frontal" else 500 / (500 - 10)
    mass = 0.02 * 4 / 3 * np.pi * RADIUS**3
    np.testing.assert_allclose(path.sum() * FRAME.pixel**2 / mass, larger**2, rtol=0.01)


def test_far_focal_points_give_parallel_rays():
    far = xray.path_attenuation(ball(), FRAME, "lateral", xray.Beam(distance=1e7))
    np.testing.assert_allclose(far, xray.path_attenuation(ball(), FRAME, "lateral"), atol=2e-3)


@pytest.mark.parametrize("distance", [None, 500.0])
@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_silhouettes_end_where_the_ball_does(view, distance):
    """In perspective, a ball's outline is its tangent cone's; its middle is that of the shadow."""
    beam = xray.Beam(distance=distance)
    seen = np.asarray(xray.silhouette(ball(inside=-70.0), FRAME, view, beam))
    columns, rows = np.meshgrid(*(np.asarray(a) for a in pixel_axes(FRAME, view)))
    middle = np.array(CENTER[1:] if view == "lateral" else CENTER[::2])
    radius = RADIUS
    if distance:
        larger = distance / (distance - 6) if view == "frontal" else distance / (distance - 10)
        middle = middle * larger
        radius = RADIUS * larger / np.sqrt(1 - (RADIUS / (distance / larger)) ** 2)
    away = np.hypot(columns - middle[0], rows - middle[1])
    assert seen[away < radius - 1.5].all() and not seen[away > radius + 1.5].any()
    assert seen.sum() * FRAME.pixel**2 == pytest.approx(np.pi * radius**2, rel=0.02)


def test_lower_energies_show_more_bone():
    hu = jnp.array([0.0, 1000.0])
    hard, soft = (xray.attenuation(hu, calcium) for calcium in (0.007, 0.021))
    assert hard[0] == soft[0] and soft[1] > 1.2 * hard[1]


def test_dry_skulls_are_bone_alone():
    hu = jnp.array([-1000.0, -80.0, 60.0, 119.0, 180.0, 240.0, 900.0, 2300.0]).reshape(2, 2, 2)
    dry = xray.bare_bone(Volume(hu, np.ones(3, np.float32), np.zeros(3, np.float32))).values
    np.testing.assert_allclose(dry.ravel(), [-1000] * 4 + [-410, 240, 900, 2300])


@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_surface_of_a_ball(view):
    depth = surface.first_crossing(ball(), FRAME, view, -500.0, -1000.0)
    exact, away = chord(view)
    nearest = (CENTER[1] if view == "frontal" else CENTER[0]) + exact / 2
    assert np.abs(depth - nearest)[away < 34].max() < 0.35
    assert (depth[away > 43] == surface.MISS).all()
    highest, middle = surface.highest(ball(), FRAME, view, -1000.0)
    assert highest.max() == ball().values.max() and highest[away > 43].max() < -500
    assert (middle < depth)[away < 34].all()
    points = ray_points(FRAME, view, depth)
    normal = surface.normals_from_volume(ball(), points, -1000.0)
    outward = (points - jnp.asarray(CENTER)[None, None]) / RADIUS
    assert float((normal * outward).sum(-1)[away < 34].min()) > 0.97


@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_points_project_to_their_pixels(view):
    depth = jnp.full((70, 70), 3.0)
    pixels = project_point(FRAME, view, ray_points(FRAME, view, depth))
    columns, rows = np.meshgrid(np.arange(70), np.arange(70))
    np.testing.assert_allclose(pixels[..., 0], columns, atol=1e-3)
    np.testing.assert_allclose(pixels[..., 1], rows, atol=1e-3)


def test_views_are_seen_as_a_radiographer_does():
    right, front, top = (
        project_point(FRAME, "frontal", jnp.array(p))
        for p in ([30.0, 0, 0], [0, 30.0, 0], [0, 0, 30.0])
    )
    assert right[0] < 34.5 and top[1] < 34.5 and front[0] == 34.5
    assert project_point(FRAME, "lateral", jnp.array([0, 30.0, 0]))[0] > 34.5


def test_hollows_are_darker():
    above = [jnp.array([r, r, 0.2 * r]) for r in surface.RADII]  # two open places, one hollow
    light = surface.openness_from_distances(tuple(above))
    assert light[0] == light[1] > 2 * light[2]


def test_unknown_view():
    with pytest.raises(
        ValueError, match="unknown view 'oblique'; expected one of frontal, lateral"
    ):
        check_view("oblique")
