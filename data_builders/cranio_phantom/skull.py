"""The template skull as a field of Hounsfield units, and the warp to an individual skull.

Frame: millimetres in the Frankfurt plane (z = 0 through the ear canals and the lower orbital
rims), y to the front, x to the right; the middle of the ear canals is the origin. The two sides
share one description through |x|; the warp and the noise make them differ.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_builders.cranio_phantom.shapes import (
    box,
    bump,
    capsule,
    ellipsoid,
    noise,
    polygon,
    smooth_max,
    smooth_min,
    sphere,
    step,
    superellipsoid,
    turned,
    union,
)


class Mode(NamedTuple):
    """One direction in which skulls differ: a Gaussian bump of displacement in the (y, z) plane.

    `kind` says what moves: 'breadth' scales x (relative), 'depth' and 'height' shift y and z (mm),
    'level' shifts in z everything beyond z0, over a distance of spread_z (mm, a stretch).
    `amount` is one standard deviation; `male` the mean of men minus that of women, in the same unit
    of standard deviations, halved.
    """

    name: str
    kind: str
    y: float
    z: float
    spread_y: float
    spread_z: float
    amount: float
    male: float


MODES = (
    Mode("vault breadth", "breadth", -10, 65, 70, 42, 0.054, 0.1),
    Mode("forehead breadth", "breadth", 80, 55, 35, 28, 0.054, 0.1),
    Mode("cheekbone breadth", "breadth", 45, -2, 38, 20, 0.060, 0.35),
    Mode("midface breadth", "breadth", 80, -25, 28, 16, 0.060, 0.1),
    Mode("jaw angle breadth", "breadth", 8, -58, 32, 24, 0.072, 0.8),
    Mode("chin breadth", "breadth", 82, -85, 24, 18, 0.102, 0.8),
    Mode("orbit spacing", "breadth", 75, 18, 22, 16, 0.048, 0.0),
    Mode("occiput", "depth", -90, 42, 40, 45, 4.8, 0.0),
    Mode("forehead slope", "depth", 90, 78, 28, 24, 4.1, -0.45),
    Mode("brow ridge", "depth", 98, 35, 16, 9, 2.4, 0.75),
    Mode("nasal root", "depth", 95, 22, 16, 9, 2.2, 0.2),
    Mode("midface projection", "depth", 92, -26, 34, 18, 3.6, 0.0),
    Mode("tooth row projection", "depth", 92, -48, 26, 12, 2.6, 0.0),
    Mode("chin projection", "depth", 84, -86, 26, 14, 3.4, 0.4),
    Mode("cheekbone projection", "depth", 60, -6, 16, 14, 2.6, -0.1),
    Mode("vault height", "level", 0, 75, 0, 30, 6.0, 0.1),
    Mode("upper face height", "level", 0, -8, 0, -14, 3.4, 0.2),
    Mode("lower face height", "level", 0, -62, 0, -16, 4.6, 0.35),
    Mode("ramus height", "height", 0, -62, 30, 24, -4.3, 0.3),
    Mode("orbit height", "height", 75, 34, 22, 9, 1.6, -0.3),
)
# Skulls do not vary in each direction alone: broad heads are broad throughout, long faces long.
FACTORS = {
    "breadth": {m.name: 0.55 for m in MODES if m.kind == "breadth" and m.name != "chin breadth"},
    "face height": {
        "upper face height": 0.6,
        "lower face height": 0.6,
        "ramus height": 0.5,
        "vault height": 0.3,
    },
    "projection": {
        "midface projection": 0.6,
        "tooth row projection": 0.6,
        "nasal root": 0.4,
        "chin projection": 0.3,
    },
}


class Skull(NamedTuple):
    """The parameters of one skull. All fields but `shape` are scalars.

    While a volume is painted, `sinus` and `seed` hold a value for each place.

    Attributes:
      shape: `(len(MODES),)` in standard deviations.
      size: overall scale, 1 on average.
      skew: mm by which the chin stands to the right of the midline.
      thickness: mm of the vault's wall.
      sinus: size of the frontal sinuses, 1 on average; 0 leaves them out.
      sinus_skew: how much larger the right sinus is, relative.
      mastoid: size of the mastoid process, 1 on average.
      seed: phase of all noise.
    """

    shape: np.ndarray
    size: float
    skew: float
    thickness: float
    sinus: float | jax.Array
    sinus_skew: float
    mastoid: float
    seed: float | jax.Array


def _displacement(p, skull):
    """Returns the relative change of x and the shifts of y and z in mm at a template place."""
    _, y, z = p
    scale = 0.0
    dy = 0.0
    dz = 0.0
    for i, m in enumerate(MODES):
        amount = m.amount * skull.shape[i]
        if m.kind == "level":
            dz = dz + amount * step(z, m.z, m.spread_z) * np.sign(m.spread_z)
            continue
        here = amount * jnp.exp(
            -0.5 * (((y - m.y) / m.spread_y) ** 2 + ((z - m.z) / m.spread_z) ** 2)
        )
        if m.kind == "breadth":
            scale = scale + here
        elif m.kind == "depth":
            dy = dy + (here if m.name != "occiput" else -here)
        else:
            dz = dz + here
    return scale, dy, dz


def _lean(z, skull):
    """Returns the shift to the right in mm at a height, which grows towards the chin."""
    return skull.skew * step(z, -40.0, -35.0)


def to_template(p, skull: Skull):
    """Returns the template places of places `p` (mm) in this head: the inverse warp."""
    x, y, z = (a / skull.size for a in p)
    scale, dy, dz = _displacement((x, y, z), skull)
    return (x - _lean(z, skull)) / (1.0 + scale), y - dy, z - dz


@jax.jit
def from_template(p, skull: Skull):
    """Returns the places in this head (mm) of template places; iterates to the inverse."""
    target = tuple(jnp.asarray(a, jnp.float32) for a in p)
    guess = tuple(a * skull.size for a in target)
    for _ in range(12):
        reached = to_template(guess, skull)
        guess = tuple(
            g + skull.size * (t - r) for g, t, r in zip(guess, target, reached, strict=True)
        )
    return guess


# ---------------------------------------------------------------- the braincase


def vault(p):
    """Outer surface of the braincase, without its floor."""
    x, y, z = p
    return union(
        ellipsoid((x, y, z), (0, 0, 51), (67, 87, 67)),
        ellipsoid((x, y, z), (0, 42, 54), (54, 53, 48)),
        ellipsoid((x, y, z), (0, -42, 32), (59, 47, 50)),
        ellipsoid((x, y, z), (29, -14, 66), (42, 60, 46)),
        ellipsoid((x, y, z), (36, 0, 14), (31, 50, 34)),
        radius=13.0,
    )


def base_height(p):
    """Returns the height of the inner skull base: three fossae and the sella."""
    x, y, _ = p
    # The edges between the fossae.
    lesser_wing = 38.0 + 0.30 * x
    petrous_ridge = 24.0 - 0.55 * x
    # The fossae.
    anterior = (
        29.0 - 8.0 * bump(x, 0, 6) + 4.5 * bump(x, 32, 14) * bump(y, 62, 22) + 0.05 * (y - 60)
    )
    middle = -5.0 + 18.0 * bump(x, 0, 9) + 0.12 * jnp.maximum(x - 40.0, 0.0)
    posterior = (
        -22.0 - 2.0 * bump(x, 22, 14) * bump(y, -35, 20) + 30.0 * bump(x, 0, 12) * step(y, 8.0, 9.0)
    )
    floor = posterior + (middle - posterior) * step(y, petrous_ridge, 3.0)
    floor = floor + (anterior - floor) * step(y, lesser_wing, 2.5)
    # The sella.
    sella = 8.0 * bump(x, 0, 7) * bump(y, 27, 4.2)
    dorsum = 3.5 * bump(x, 0, 8) * bump(y, 20.5, 1.8)
    return floor - sella + dorsum


# ---------------------------------------------------------------- the face


def rim_front(x):
    """Returns the position in y of the orbital rim at a lateral position."""
    return 91.0 - 0.0105 * jnp.maximum(x - 8.0, 0.0) ** 2


def orbit(p):
    """The cone of the orbit: open to the front, apex at the optic canal."""
    x, y, z = p
    depth = jnp.clip((y - 40.0) / 46.0, 0.0, 1.1)
    across = (x - (14.0 + 19.5 * depth)) / (3.0 + 17.0 * depth)
    up = (z - (14.0 + 3.0 * depth)) / (3.0 + 14.8 * depth)
    # The upper rim slopes down to the side, as in life.
    up = up + 0.10 * across
    section = (jnp.abs(across) ** 2.5 + jnp.abs(up) ** 2.5 + 1e-6) ** 0.4
    return jnp.maximum((section - 1.0) * (3.0 + 14.0 * depth), 40.0 - y)


def nasal_passage(p):
    """The bony nasal cavity: narrow roof, pear-shaped opening."""
    x, y, z = p
    low = jnp.clip((20.0 - z) / 40.0, 0.0, 1.0)
    half_width = 3.0 + 9.0 * low - 2.5 * jnp.maximum(low - 0.85, 0.0) / 0.15
    return smooth_max(
        smooth_max(x - half_width, jnp.maximum(z - 22.0, -25.0 - z), 3.0),
        jnp.maximum(42.0 - y, y - 104.0),
        2.0,
    )


def _upper_arch(p):
    """Alveolar process of the upper jaw: a horseshoe around the palate."""
    x, y, z = p
    ring = ellipsoid((x, y, 0.0), (0, 50, 0), (24.5, 36.0, 1e3))
    body = jnp.abs(ring + 0.5) - (5.0 - 0.05 * (z + 45.0))
    return smooth_max(smooth_max(body, 46.0 - y, 3.0), jnp.abs(z + 35.0) - 10.0, 3.0)


def zygoma(p):
    """Cheekbone with its frontal process and the arch to the temporal bone."""
    body = capsule(p, (50, 65, 0), (44, 68, -13), 5.0, 4.5)
    frontal = capsule(p, (50, 66, 0), (49.5, 66, 32), 4.2, 3.8)
    to_maxilla = capsule(p, (45, 68, -10), (33, 76, -9), 4.5, 3.0)
    arch = union(
        capsule(p, (51, 62, -9), (61.5, 42, -6), 4.2, 2.9),
        capsule(p, (61.5, 42, -6), (63.5, 22, -2), 2.9, 2.7),
        capsule(p, (63.5, 22, -2), (58, 6, 1), 2.7, 4.0),
    )
    return smooth_min(union(body, frontal, to_maxilla, radius=6.0), arch, 4.0)


def antrum(p):
    """The maxillary sinus as a solid."""
    hollow = union(
        ellipsoid(p, (28, 62, -13), (12.0, 17, 13.5)),
        ellipsoid(p, (27, 59, -25), (8.0, 12, 8.5)),
        radius=6.0,
    )
    return smooth_max(smooth_max(hollow, 2.2 - orbit(p), 2.0), 2.2 - nasal_passage(p), 2.0)


def midface(p):
    """Maxillae and the orbital rims as solids, before sinuses, nose and orbits are cut."""
    x, y, z = p
    socket = orbit(p)
    front = y - rim_front(x)
    ring = smooth_max(smooth_max(socket - 5.0, front, 3.0), rim_front(x) - 11.0 - y, 4.0)
    nose_floor = smooth_max(nasal_passage(p) - 2.4, jnp.maximum(z + 5.0, y - 84.0 + 0.25 * x), 3.0)
    maxilla = union(antrum(p) - 1.8, nose_floor, radius=5.0)
    frontal_process = union(
        capsule(p, (7.0, 91, 18), (11, 86, 0), 3.6, 4.0),
        capsule(p, (11, 86, 0), (16, 82, -20), 4.0, 5.5),
    )
    spine = capsule(p, (0, 80, -26), (0, 95.0, -27.5), 2.6, 1.4)
    return union(ring, maxilla, frontal_process, zygoma(p), _upper_arch(p), spine, radius=4.0)


def nasal_bones(p):
    """The roof of the nose."""
    x, y, z = p
    roof = 91.5 + (24.0 - z) * 0.50 + 0.010 * (24.0 - z) ** 2 - 0.16 * x * x
    # The slope of the roof turns its vertical offset into a distance.
    return jnp.maximum(
        jnp.maximum((jnp.abs(y - roof) - 1.5) * 0.8, x - 7.5), jnp.abs(z - 14.0) - 11.5
    )


JAW_FRONT = 80.5  # mm; the plan of the mandible is y = JAW_FRONT - 0.034 x^2 - 9e-7 x^4


def along_jaw(p):
    """Returns coordinates along the mandible's plan.

    They are the position to the front and the inward normal distance, both in mm. Two Newton steps
    lead to the curve, since one overshoots where it turns.
    """
    x, y, z = p
    x = x - 0.07 * (z + 60.0) * step(y, 40.0, -14.0)
    inward = 0.0
    for _ in range(2):
        offset = JAW_FRONT - 0.034 * x * x - 9e-7 * x**4 - y
        slope = 0.068 * x + 3.6e-6 * x**3
        norm2 = 1.0 / (1.0 + slope * slope)
        inward = inward + offset * jnp.sqrt(norm2)
        x = x + offset * slope * norm2
        y = y + offset * norm2
    return y, inward


_RAMUS = [
    (7, -57),
    (16, -65),
    (40, -76),
    (39, -50),
    (31, -36),
    (31, -12),
    (27, -11),
    (20, -24),
    (14, -10),
    (8, -8),
    (7, -18),
    (3, -45),
]


def mandible(p):
    """The lower jaw."""
    _x, _y, z = p
    # The body.
    front, inward = along_jaw(p)
    lower_edge = -95.0 + 0.36 * jnp.maximum(JAW_FRONT - 4.0 - front, 0.0)
    upper_edge = -56.5 + 0.06 * jnp.maximum(JAW_FRONT - front, 0.0)
    half = 6.2 - 1.6 * step(z, -70.0, 8.0)
    body = smooth_max(
        jnp.maximum(jnp.abs(inward - 5.0) - half, 12.0 - front),
        jnp.maximum(lower_edge - z, z - upper_edge),
        4.5,
    )
    # The ramus, the chin and the joint.
    ramus = jnp.maximum(polygon(front, z, _RAMUS), jnp.abs(inward - 4.6) - 3.9)
    chin = union(
        ellipsoid(p, (0, 79, -87), (14, 7.5, 8)), sphere(p, (13, 74, -91), 5.0), radius=5.0
    )
    condyle = ellipsoid(p, (49.5, 12.5, -5.5), (9.0, 4.6, 5.2))
    neck = capsule(p, (48, 11, -9), (44.5, 10, -26), 4.0, 4.2)
    angle = sphere(p, (42.0, 12, -56), 6.0)
    body = smooth_min(body, chin, 6.0)
    return union(body, smooth_min(ramus, angle, 5.0), union(condyle, neck), radius=3.0)


class Tooth(NamedTuple):
    """A tooth of the right side.

    Attributes:
      row: 'upper' or 'lower'.
      place: (x, y) in mm.
      angle: radians by which its outward direction turns to the side.
      width: mm along the arch.
      depth: mm across the arch.
    """

    row: str
    place: tuple[float, float]
    angle: float
    width: float
    depth: float


def _tooth_rows() -> list[Tooth]:
    """Returns the teeth of the right side, spaced along both arches by their widths."""
    widths = {
        "upper": (8.6, 6.6, 7.8, 7.0, 6.8, 10.2, 9.6),
        "lower": (5.4, 6.0, 6.9, 7.0, 7.1, 11.0, 10.4),
    }
    depths = {
        "upper": (7.0, 6.4, 8.2, 9.0, 9.0, 11.0, 10.8),
        "lower": (6.2, 6.4, 7.8, 8.0, 8.2, 10.2, 10.0),
    }
    teeth = []
    for row, rx, ry, y0 in (("upper", 24.8, 37.0, 50.0), ("lower", 22.8, 34.0, 50.5)):
        angle = 0.0
        walked = 0.0
        wanted = 0.0
        for width, depth in zip(widths[row], depths[row], strict=True):
            wanted += width / 2
            while walked < wanted:
                walked += math.hypot(rx * math.cos(angle), ry * math.sin(angle)) * 1e-3
                angle += 1e-3
            wanted += width / 2
            place = (rx * math.sin(angle), y0 + ry * math.cos(angle))
            outward = math.atan2(ry * math.sin(angle), rx * math.cos(angle))
            teeth.append(Tooth(row, place, angle=outward, width=width, depth=depth))
    return teeth


TEETH = _tooth_rows()
# Middles of their crowns, (x, y, z) in mm.
CROWNS = np.array([(*t.place, -43.2 if t.row == "upper" else -51.6) for t in TEETH], np.float32)


def teeth(p):
    """Returns the distance to the teeth with their roots, and to the enamel alone."""
    x, y, z = p
    solid = 1e3
    enamel = 1e3
    for row, (tx, ty), angle, width, depth in TEETH:
        up = 1.0 if row == "upper" else -1.0
        c = math.cos(angle)
        s = math.sin(angle)
        along = c * (x - tx) - s * (y - ty)
        out = s * (x - tx) + c * (y - ty)
        height = up * (z + 47.2) - (0.0 if row == "upper" else 0.4)
        # Roots lean towards the middle of the arch; incisors slope forward.
        out = out + (0.22 if abs(angle) < 0.7 else 0.04) * (height - 4.0)
        crown = superellipsoid(
            (along, out, height), (0, 0, 4.0), (0.47 * width, 0.42 * depth, 5.0), 3.2
        )
        root = capsule((along, out, height), (0, 0, 6.0), (0, 0, 18.0), 0.34 * width, 0.9)
        solid = jnp.minimum(solid, jnp.minimum(crown, root))
        enamel = jnp.minimum(enamel, jnp.maximum(crown, jnp.maximum(height - 7.5, -(crown + 1.4))))
    return solid, enamel


# ---------------------------------------------------------------- the neck


def vertebrae(p):
    """Cervical spine from atlas to the sixth vertebra, with a slight lordosis."""
    parts = [
        capsule(p, (0, 12.5, -28), (13, 8, -29), 3.4, 5.5),  # atlas: front arch
        ellipsoid(p, (21, -2, -29), (9, 8.5, 7.0)),
        capsule(p, (22, -6, -29), (0, -31, -30), 3.6, 3.2),  # back arch
        capsule(p, (24, -2, -29), (37, -3, -31), 4.2, 3.0),
        capsule(p, (0, 5.5, -24), (0, 3.0, -45), 4.6, 6.0),  # dens
        box(p, (0, 1.0, -52), (9.5, 8.0, 9.0), 3.5),
        capsule(p, (17, -12, -48), (0, -36, -56), 4.2, 4.6),
        ellipsoid(p, (19, -7, -45), (8, 8.0, 8.5)),
    ]
    for level in range(4):
        z = -70.5 - 17.0 * level
        y = -1.0 - 0.4 * level - 0.4 * (level - 1.2) ** 2
        tilt = 0.22
        q = turned(p, (0.0, y, z), tilt)
        parts += [
            box(q, (0, 0, 0), (10.5, 8.2, 6.2), 2.0),
            ellipsoid(turned(p, (18.0, y - 12.0, z - 1), 0.75), (0, 0, 0), (6.2, 5.2, 8.8)),
            capsule(q, (16, -13, -1), (0, -25, -4), 2.6, 2.8),
            capsule(q, (0, -25, -4), (0, -33 - 2.5 * level, -8), 2.8, 3.4),
            capsule(q, (12, -3, 0), (24, -2, -3), 3.2, 2.6),
        ]
    return union(*parts)


def hyoid(p):
    """The hyoid bone."""
    return union(
        capsule(p, (0, 40, -96), (11, 36, -96), 3.4, 2.6),
        capsule(p, (11, 36, -96), (19, 14, -91), 2.2, 1.7),
    )


def airway(p):
    """Nasopharynx to larynx: the dark column in front of the spine."""
    x, y, z = p
    bent = (x * 0.62, y, z)
    return union(
        capsule(bent, (0, 40, -14), (0, 27, -32), 9.0, 7.0),
        capsule(bent, (0, 27, -32), (0, 20, -62), 6.0, 5.0),
        capsule(bent, (0, 20, -62), (0, 19, -92), 5.0, 6.5),
        capsule(bent, (0, 19, -92), (0, 20, -140), 5.5, 7.5),
        radius=4.0,
    )


# ---------------------------------------------------------------- density


def _cover(distance, voxel):
    """Returns the share of a voxel that a solid covers, from the distance at its centre."""
    return jnp.clip(0.5 - distance / voxel, 0.0, 1.0)


def _paint(hu, distance, value, voxel):
    """Returns the volume with a solid of `value` Hounsfield units painted over it."""
    return hu + (value - hu) * _cover(distance, voxel)


def _bony(distance, cortex, p, seed, spongy=560.0, dense=1350.0):
    """Returns Hounsfield units inside a bone: a dense shell of `cortex` mm over spongy bone."""
    x, y, z = p
    grain = noise(x / 9.0, y / 9.0, z / 9.0, seed)
    inner = step(-distance, cortex, 0.9)
    return dense + (spongy * (1.0 + 0.22 * grain) - dense) * inner


def paint_braincase(hu, p, skull: Skull, voxel):
    """Vault, skull base, ear and sphenoid bone."""
    x, y, z = p
    # The wall and the cavity.
    wall = skull.thickness * (1.0 + 0.14 * noise(x / 60.0, y / 60.0, z / 60.0, skull.seed))
    wall = wall * (
        1.0 + 0.30 * bump(y, 95, 18) * bump(z, 40, 16) + 0.55 * bump(y, -88, 14) * bump(z, 18, 12)
    )
    outer = vault(p)
    floor = base_height(p)
    floor = floor + 0.8 * noise(x / 22.0, y / 22.0, 0.0, skull.seed + 2.0)
    base = 4.2 - 1.6 * step(y, 42.0 + 0.3 * x, 4.0)
    shell = jnp.maximum(outer, floor - base - z)
    cavity = smooth_max(outer + wall, floor - z, 4.0)

    # Where the wall is thick enough, the diploe lies between two tables of cortical bone.
    middle = bump(outer + 0.5 * wall, 0.0, 0.32 * wall) * step(wall, 4.0, 1.2)
    diploe = noise(x / 7.0, y / 7.0, z / 7.0, skull.seed + 1.0)
    table = 1380.0 - (560.0 + 120.0 * diploe) * middle
    # Grooves of the middle meningeal artery branch up the inside of the temporal bone.
    stem = y - 30.0 + 0.42 * (z - 5.0) + 5.0 * jnp.sin(z / 17.0 + skull.seed)
    branch = y - 24.0 + 1.05 * (z - 12.0) + 4.0 * jnp.sin(z / 13.0 + 2.0 * skull.seed)
    groove = (
        (bump(stem, 0, 1.3) + bump(branch, 0, 1.1))
        * step(z, 12.0, 6.0)
        * step(z, 92.0, -12.0)
        * step(x, 30.0, 6.0)
    )
    # Coronal, lambdoid and sagittal sutures.
    waver = (
        2.4 * jnp.sin(0.55 * x + skull.seed)
        + 1.5 * jnp.sin(1.3 * x + 2 * skull.seed)
        + 1.2 * jnp.sin(0.9 * z)
    )
    coronal = y - (26.0 + 0.20 * (118.0 - z)) + waver
    lambdoid = (y + 62.0 + 0.55 * x - 0.55 * (z - 60.0)) * 0.8 + waver
    sagittal = x + 1.2 * jnp.sin(0.42 * y + skull.seed) * bump(x, 0, 5)
    suture = (
        bump(coronal, 0, 0.9) * step(z, 40.0, 4.0)
        + bump(lambdoid, 0, 0.9) * step(z, 15.0, 6.0) * step(y, -30.0, -4.0)
        + bump(sagittal, 0.0, 0.8) * step(y, 30.0, -4.0) * step(z, 70.0, 5.0)
    )
    table = table * (1.0 - 0.42 * jnp.clip(suture, 0, 1)) * (1.0 - 0.35 * jnp.clip(groove, 0, 1))
    hu = _paint(hu, jnp.maximum(shell, -cavity), table, voxel)
    hu = _paint(hu, cavity, 38.0, voxel)

    # The petrous bone, the mastoid with its air cells and the ear canals.
    petrous = capsule(p, (46, -1, -2.5), (12, 21, 0.5), 8.5, 5.0)
    cells = step(noise(x / 3.6, y / 3.6, z / 3.6, skull.seed + 4.0), 0.05, 0.25)
    mastoid_end = (50.0, -2.0, -20.0 - 8.0 * skull.mastoid)
    mastoid = union(
        capsule(p, (51, -12, -4), mastoid_end, 12.0, 5.0),
        ellipsoid(p, (53, -9, 2), (9, 15, 12)),
        radius=5.0,
    )
    air_cells = 950.0 - 1500.0 * cells * step(-mastoid, 2.2, 0.8)
    hu = _paint(hu, jnp.maximum(mastoid, -(cavity - 1.5)), air_cells, voxel)
    hu = _paint(hu, petrous, _bony(petrous, 3.0, p, skull.seed, spongy=800.0, dense=1250.0), voxel)
    canal = capsule(p, (40, 1, -1), (75, -2, 0), 2.3)
    hu = _paint(hu, canal, -900.0, voxel)
    inner_canal = capsule(p, (20, 14, 3), (34, 6, 2), 2.6)
    hu = _paint(hu, inner_canal, 40.0, voxel)

    # The sphenoid's body lies below the sella; the clivus runs from it to the foramen magnum.
    clivus = smooth_min(
        capsule(p, (0, 15, 2), (0, 4, -24), 7.5, 5.0),
        capsule(p, (8, 4, -24), (17, -4, -25), 4.5, 5.5),
        4.0,
    )
    body = box(p, (0, 33, 3.0), (16, 13, 12.5), 5.0)
    bone = jnp.maximum(smooth_min(body, clivus, 4.0), z - floor)
    hu = _paint(hu, bone, _bony(bone, 1.6, p, skull.seed, spongy=480.0), voxel)
    sphenoid_sinus = jnp.maximum(ellipsoid(p, (7.5, 35, 1.5), (7.0, 10, 8.5)), z - floor + 2.2)
    hu = _paint(hu, sphenoid_sinus, -900.0, voxel)
    foramen = ellipsoid(p, (0, -14, -26), (15, 18, 14))
    hu = _paint(hu, jnp.maximum(foramen, -(clivus)), 38.0, voxel)
    styloid = capsule(p, (40, 4, -16), (34, 14, -42), 2.0, 0.9)
    hu = _paint(hu, styloid, 900.0, voxel)

    # The frontal sinuses, with a septum between them.
    frontal_sinus = ellipsoid(
        (x, y, z),
        (9.0 + 2.0 * skull.sinus, 88.5, 36.0 + 3.0 * skull.sinus),
        (2.0 + 10.0 * skull.sinus, 4.2, 3.0 + 9.0 * skull.sinus),
    )
    scallop = 1.6 * noise(x / 8.0, 0.0, z / 8.0, skull.seed + 6.0)
    septum = jnp.maximum(frontal_sinus + scallop, 0.9 - x)
    inset = jnp.maximum(septum, jnp.maximum(outer + 2.0, -(cavity - 1.2)))
    return _paint(hu, inset, jnp.where(skull.sinus > 0.15, -900.0, hu), voxel)


def paint_face(hu, p, skull: Skull, voxel):
    """Upper jaw, cheekbones, orbits, nose and their sinuses."""
    x, y, z = p
    # The bone.
    socket = orbit(p)
    passage = nasal_passage(p)
    outer = vault(p)
    brain = smooth_max(outer + skull.thickness, base_height(p) - z, 4.0)
    solid = midface(p)
    bone = jnp.maximum(solid, -brain)
    hu = _paint(hu, bone, _bony(bone, 1.4, p, skull.seed + 3.0), voxel)

    # The maxillary sinuses.
    wavy = 0.9 * noise(x / 11.0, y / 11.0, z / 11.0, skull.seed + 5.0)
    sinus = antrum(p) + 0.6 + wavy
    hu = _paint(hu, sinus, -900.0, voxel)

    # The orbits, whose walls are thin behind the rims, and the eyes.
    hu = _paint(
        hu,
        jnp.maximum(jnp.abs(socket) - 0.8, jnp.maximum(y - rim_front(x) + 4.0, 44.0 - y)),
        1000.0,
        voxel,
    )
    hu = _paint(hu, jnp.maximum(socket, -brain), -60.0, voxel)
    hu = _paint(hu, sphere(p, (32, 74, 17), 12.0), 20.0, voxel)

    # The ethmoid cells.
    ethmoid = smooth_max(superellipsoid(p, (6.5, 64, 14), (8.0, 19, 12.0), 3.5), 1.0 - socket, 2.0)
    cells = jnp.abs(noise(x / 5.5, y / 6.5, z / 6.5, skull.seed + 7.0))
    hu = _paint(hu, ethmoid, jnp.where(cells < 0.16, 500.0, -850.0), voxel)

    # The nasal cavity with two conchae and its septum. Its air ends where the bone does: in front
    # the soft nose shows as grey as the lips.
    hu = _paint(hu, smooth_max(passage, y - 93.0, 3.0), -880.0, voxel)
    for cx, cz, half, scroll in ((7.6, -15.5, 18.0, 4.4), (6.4, -2.0, 14.0, 3.3)):
        roll = capsule((x, y, z), (cx, 66 - half, cz), (cx, 66 + half, cz), scroll, 0.7 * scroll)
        hu = _paint(hu, roll, 45.0, voxel)
        hu = _paint(hu, jnp.maximum(jnp.abs(roll + 1.8) - 0.55, cx - 5.0 - x), 420.0, voxel)
    hu = _paint(hu, jnp.abs(passage) - 0.8 + 10.0 * step(y, 84.0, 2.0), 900.0, voxel)
    bend = 0.9 * jnp.sin(0.08 * z + skull.seed)
    septum = jnp.maximum(
        jnp.abs(x + bend * bump(x, 0, 4)) - 1.0, jnp.maximum(passage - 1.0, y - 84.0)
    )
    hu = _paint(hu, septum, 620.0, voxel)
    # The palate, the pterygoid plates and the nasal bones.
    palate = smooth_max(
        jnp.maximum(jnp.abs(z + 27.5 + 0.010 * (y - 66) ** 2 * step(y, 66.0, 4.0)) - 2.0, x - 22.0),
        jnp.maximum(44.0 - y, y - 90.0),
        3.0,
    )
    hu = _paint(hu, palate, 1150.0, voxel)
    soft_palate = capsule(p, (0, 44, -27), (0, 27, -42), 3.6, 3.0)
    hu = _paint(hu, soft_palate, 45.0, voxel)
    plates = jnp.maximum(
        jnp.abs(x - 13.5 + 0.25 * (z + 20.0)) - 0.9,
        jnp.maximum(jnp.abs(y - 36.0 - 0.12 * (z + 20)) - 5.0, jnp.abs(z + 20) - 15.0),
    )
    hu = _paint(hu, plates, 1000.0, voxel)
    nasal = nasal_bones(p)
    return _paint(hu, nasal, 1150.0, voxel)


def paint_jaw(hu, p, skull: Skull, voxel):
    """Lower jaw and all teeth."""
    bone = mandible(p)
    hu = _paint(hu, bone, _bony(bone, 2.3, p, skull.seed + 8.0, spongy=470.0, dense=1450.0), voxel)
    front, inward = along_jaw(p)
    canal = jnp.maximum(
        jnp.hypot(p[2] + 84.0 - 0.42 * jnp.maximum(70.0 - front, 0.0), inward - 5.0) - 1.7,
        front - 66.0,
    )
    hu = _paint(hu, jnp.maximum(canal, 14.0 - front), 150.0, voxel)
    solid, enamel = teeth(p)
    hu = _paint(hu, solid - 0.5, 300.0, voxel)  # the ligament's dark line
    hu = _paint(hu, solid, 1450.0, voxel)
    return _paint(hu, enamel, 2300.0, voxel)


def paint_neck(hu, p, skull: Skull, voxel):
    """Spine and hyoid bone."""
    bone = vertebrae(p)
    hu = _paint(hu, bone, _bony(bone, 1.3, p, skull.seed + 9.0, spongy=360.0, dense=960.0), voxel)
    return _paint(hu, hyoid(p), 700.0, voxel)


# Each part with the two corners in mm of a box that holds it after any warp. A part is computed
# within its box only.
PARTS = (
    (paint_braincase, (-90, -115, -50), (90, 110, 140)),
    (paint_face, (-80, -5, -66), (80, 118, 62)),
    (paint_neck, (-50, -60, -150), (50, 60, -12)),
    (paint_jaw, (-72, -12, -125), (72, 116, 12)),
)

# Cephalometric and craniometric landmarks of the template, (x, y, z) in mm on the bone.
LANDMARKS = {
    "vertex": (0, 2, 118),
    "opisthocranion": (0, -88.5, 38),
    "glabella": (0, 95, 34),
    "nasion": (0, 91.5, 24),
    "rhinion": (0, 104, 4),
    "anterior nasal spine": (0, 96, -27.5),
    "prosthion": (0, 91, -41),
    "infradentale": (0, 84, -57),
    "supramentale": (0, 79.5, -72),
    "pogonion": (0, 86.5, -87),
    "menton": (0, 78, -95.5),
    "sella": (0, 27, 9),
    "basion": (0, 2, -28),
    "right orbitale": (33, 84, 0.5),
    "right porion": (60, 0, 3),
    "right zygion": (66, 27, -3),
    "right gonion": (45.5, 8, -60),
    "right euryon": (72, -10, 62),
    "right condylion": (50.5, 12.5, 0),
}
# Paired landmarks are mirrored.
LANDMARKS |= {
    name.replace("right", "left"): (-x, y, z)
    for name, (x, y, z) in LANDMARKS.items()
    if name.startswith("right")
}
