"""Signed distances of simple solids in mm, negative inside, and how to join them.

A point is a tuple `(x, y, z)` of arrays, so that XLA fuses a whole organ into one loop.
Ellipsoids and cones give first-order distances: exact on the surface, where it counts.
"""

import jax.numpy as jnp


def sphere(p, center, radius):
    """Exact distance to a sphere."""
    x, y, z = (a - b for a, b in zip(p, center, strict=True))
    return jnp.sqrt(x * x + y * y + z * z + 1e-9) - radius


def ellipsoid(p, center, radii):
    """First-order distance to an ellipsoid with its axes along x, y and z."""
    x, y, z = (a - b for a, b in zip(p, center, strict=True))
    u, v, w = x / radii[0], y / radii[1], z / radii[2]
    k0 = jnp.sqrt(u * u + v * v + w * w + 1e-9)
    k1 = jnp.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2 + 1e-12)
    return k0 * (k0 - 1.0) / k1


def superellipsoid(p, center, radii, power=4.0):
    """Distance to an ellipsoid that gets boxier as `power` rises; 2 is an ellipsoid."""
    u, v, w = (jnp.abs(a - b) / r for a, b, r in zip(p, center, radii, strict=True))
    return ((u**power + v**power + w**power + 1e-9) ** (1.0 / power) - 1.0) * min(radii)


def capsule(p, start, end, radius, end_radius=None):
    """A rounded stick from `start` to `end`; the radius may change along it."""
    ax, ay, az = (a - b for a, b in zip(p, start, strict=True))
    bx, by, bz = (b - a for a, b in zip(start, end, strict=True))
    t = jnp.clip((ax * bx + ay * by + az * bz) / (bx * bx + by * by + bz * bz), 0.0, 1.0)
    dx, dy, dz = ax - t * bx, ay - t * by, az - t * bz
    thickness = radius if end_radius is None else radius + t * (end_radius - radius)
    return jnp.sqrt(dx * dx + dy * dy + dz * dz + 1e-9) - thickness


def box(p, center, half, rounding):
    """Distance to a box of half lengths `half` whose edges have the radius `rounding`."""
    qx, qy, qz = (jnp.abs(a - b) - h + rounding for a, b, h in zip(p, center, half, strict=True))
    out = jnp.sqrt(
        jnp.maximum(qx, 0) ** 2 + jnp.maximum(qy, 0) ** 2 + jnp.maximum(qz, 0) ** 2 + 1e-9
    )
    return out + jnp.minimum(jnp.maximum(qx, jnp.maximum(qy, qz)), 0.0) - rounding


def turned(p, center, angle):
    """`p` in a frame at `center`, turned by `angle` radians in the (y, z) plane."""
    x, y, z = (a - b for a, b in zip(p, center, strict=True))
    c, s = jnp.cos(angle), jnp.sin(angle)
    return x, c * y + s * z, c * z - s * y


def polygon(u, v, corners):
    """Distance in the plane to a closed polygon given by its `(u, v)` corners."""
    nearest = 1e9
    sign = 1.0
    for (ax, ay), (bx, by) in zip(corners, corners[-1:] + corners[:-1], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, u - ax, v - ay
        t = jnp.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        nearest = jnp.minimum(nearest, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        above, below, left = v >= ay, v < by, ex * wy > ey * wx
        sign = jnp.where((above & below & left) | (~above & ~below & ~left), -sign, sign)
    return sign * jnp.sqrt(nearest + 1e-9)


def smooth_min(a, b, radius):
    """Union with a fillet of about `radius` mm."""
    h = jnp.maximum(radius - jnp.abs(a - b), 0.0) / radius
    return jnp.minimum(a, b) - 0.25 * h * h * radius


def smooth_max(a, b, radius):
    """Intersection with a rounded edge of about `radius` mm."""
    return -smooth_min(-a, -b, radius)


def round_max(a, b, radius):
    """Intersection with a rounded edge of `radius` mm.

    Outside it stays a distance, so a surface at an offset from it has round corners too.
    """
    u, v = a + radius, b + radius
    out = jnp.sqrt(jnp.maximum(u, 0.0) ** 2 + jnp.maximum(v, 0.0) ** 2 + 1e-6)
    return out + jnp.minimum(jnp.maximum(u, v), 0.0) - radius


def union(*distances, radius=None):
    """Union of solids, with fillets of about `radius` mm where that is given."""
    total = distances[0]
    for d in distances[1:]:
        total = jnp.minimum(total, d) if radius is None else smooth_min(total, d, radius)
    return total


def step(x, edge, width):
    """0 below `edge`, 1 above it, rising over about `width`."""
    return 0.5 + 0.5 * jnp.tanh((x - edge) / width)


def bump(x, center, width):
    """1 at `center`, falling as a Gaussian with standard deviation `width`."""
    return jnp.exp(-0.5 * ((x - center) / width) ** 2)


def _wave(x):
    """Approximates sin(x) by parabolas, enough for noise; XLA's own sine is five times slower."""
    turn = x * (0.5 / jnp.pi)
    turn = turn - jnp.round(turn)
    return 8.0 * turn * (1.0 - 2.0 * jnp.abs(turn))


def noise(x, y, z, seed):
    """Smooth noise in about [-1, 1] with period near 1, from domain-warped waves.

    Three waves in skewed directions, bent by one another: a plain product of sines
    shows as a grid.
    """
    a = x + 0.45 * _wave(1.7 * y + 0.9 * z + 1.3 * seed)
    b = y + 0.45 * _wave(1.5 * z + 1.1 * x + 2.1 * seed)
    c = z + 0.45 * _wave(1.9 * x + 0.7 * y + 0.7 * seed)
    waves = (
        _wave(5.1 * a + 2.2 * b - 1.4 * c)
        + _wave(4.7 * b + 1.9 * c - 2.3 * a)
        + _wave(5.3 * c - 2.6 * b + 1.1 * a)
    )
    return waves / 2.2
