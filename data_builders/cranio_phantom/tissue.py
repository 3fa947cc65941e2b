"""Soft tissue over the template skull: published depths at landmarks, then the features of a face.

Depths follow the pooled adult tables of facial soft tissue thickness (Stephan & Simpson, J Forensic
Sci 2008;53:1257-1272; updated by Stephan, J Forensic Sci 2014;59:454-462, and by Hona & Stephan,
Int J Legal Med 2024;138), rounded to half a millimetre. They serve a procedural cohort and are no
substitute for the tables themselves. Their change with BMI and age is our choice. It follows the
tables' remarks that cheek, jaw angle and floor of the mouth vary most, the middle of the forehead
least.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from data_builders.cranio_phantom import skull as bones
from data_builders.cranio_phantom.shapes import (
    bump,
    capsule,
    ellipsoid,
    noise,
    round_max,
    smooth_max,
    smooth_min,
    sphere,
    step,
    turned,
    union,
)


class Depth(NamedTuple):
    """Soft tissue depth at a landmark of the template skull.

    Attributes:
      name: the tables' name.
      place: mm on the bone, on the right side or the midline.
      mean, spread: mm, over adults.
      bmi: relative change for +10 % BMI.
      age: mm for each 20 years past 45.
    """

    name: str
    place: tuple[float, float, float]
    mean: float
    spread: float
    bmi: float
    age: float


DEPTHS = (
    Depth("vertex", (0, 2, 118), 5.0, 1.0, 0.03, 0.0),
    Depth("opisthocranion", (0, -88, 38), 6.5, 1.5, 0.06, 0.0),
    Depth("euryon", (72, -10, 62), 5.5, 1.5, 0.05, 0.0),
    Depth("temple", (58, 52, 32), 9.5, 2.0, 0.10, -0.9),
    Depth("forehead", (18, 88, 72), 5.0, 1.0, 0.04, -0.1),
    Depth("glabella", (0, 95, 34), 5.5, 1.0, 0.05, 0.0),
    Depth("mid-supraorbital", (32, 86, 36), 6.0, 1.5, 0.06, -0.4),
    Depth("nasion", (0, 91.5, 24), 6.5, 1.5, 0.05, 0.1),
    Depth("mid-infraorbital", (33, 83, -1), 7.0, 2.5, 0.16, -0.8),
    Depth("zygoma", (48, 74, -8), 9.5, 2.0, 0.16, -1.0),
    Depth("zygion", (65, 27, -3), 6.5, 2.0, 0.14, -0.5),
    Depth("alare curvature", (16, 86, -24), 9.5, 2.0, 0.08, 0.2),
    Depth("subspinale", (0, 88, -31), 13.0, 2.5, 0.04, -0.4),
    Depth("mid-philtrum", (0, 90, -37), 11.5, 2.0, 0.04, -0.6),
    Depth("supra canine", (20, 82, -38), 10.0, 2.0, 0.08, -0.4),
    Depth("supra second molar", (31, 52, -34), 24.0, 4.0, 0.14, -1.6),
    Depth("infra second molar", (31, 50, -66), 20.0, 4.0, 0.17, 0.8),
    Depth("infra canine", (18, 74, -68), 10.5, 2.0, 0.10, 0.5),
    Depth("supramentale", (0, 79.5, -72), 11.0, 1.8, 0.06, 0.3),
    Depth("pogonion", (0, 86.5, -87), 11.0, 2.3, 0.08, 0.0),
    Depth("menton", (0, 78, -95), 7.5, 2.3, 0.16, 0.6),
    Depth("mid-mandibular border", (34, 44, -83), 10.5, 3.5, 0.22, 1.5),
    Depth("gonion", (45.5, 8, -60), 11.5, 4.0, 0.20, 0.8),
    Depth("mid-ramus", (41, 24, -38), 17.5, 4.0, 0.15, 0.0),
)
_REACH = 16.0  # mm; standard deviation of a landmark's influence


class Tissue(NamedTuple):
    """The soft parts of one head, at one age and BMI. All fields but `depth` are scalars.

    Attributes:
      depth: `(len(DEPTHS),)` mm.
      nose_width, nose_length, nose_tip: 1 on average, and degrees by which the tip turns up.
      lips, mouth_width: fullness and width, 1 on average.
      eye_opening: height of the lid fissure, 1 on average.
      ear: size, 1 on average.
      ear_flare: how far the ears stand off, 1 on average.
      brow_height: mm above the average.
      neck: girth, 1 on average.
      sag: 0 when young, about 1 at 65: jowl, lids, folds.
      fat: 0 on average; double chin and cheeks.
      hair_length: 0 cropped, 1 to the jaw.
      hair_volume: mm of hair on the top.
      hairline: mm by which the hairline has receded.
    """

    depth: np.ndarray
    nose_width: float
    nose_length: float
    nose_tip: float
    lips: float
    mouth_width: float
    eye_opening: float
    ear: float
    ear_flare: float
    brow_height: float
    neck: float
    sag: float
    fat: float
    hair_length: float
    hair_volume: float
    hairline: float


def depth_at(p, depth):
    """Returns the soft tissue depth in mm: Gaussian-weighted means of the landmarks' depths."""
    x, y, z = p
    # A constant depth of little weight, for places far from all landmarks.
    total = 6.5 * 2e-3
    weight = 2e-3
    for i, landmark in enumerate(DEPTHS):
        lx, ly, lz = landmark.place
        w = jnp.exp(-((x - lx) ** 2 + (y - ly) ** 2 + (z - lz) ** 2) / (2 * _REACH**2))
        if lx > 0 and lx < 25:  # near the midline the other side's landmark counts as well
            w = w + jnp.exp(-((x + lx) ** 2 + (y - ly) ** 2 + (z - lz) ** 2) / (2 * _REACH**2))
        total = total + w * depth[i]
        weight = weight + w
    return total / weight


def _jaw_solid(p):
    """Distance to the mandible with the space between its two halves filled."""
    _x, y, z = p
    front, inward = bones.along_jaw(p)
    lower = -95.5 + 0.40 * jnp.maximum(74.0 - front, 0.0)
    outside = 0.5 - inward
    behind = jnp.maximum(4.0 - front, 4.0 - y)
    shape = smooth_max(
        round_max(outside, (lower - z) * 0.93, 5.0), smooth_max(behind, z + 48.0, 8.0), 9.0
    )
    return smooth_min(shape, ellipsoid(p, (0, 76, -87), (13, 10.5, 9)), 8.0)


def bony_hull(p):
    """Distance to the skull with its hollows filled, on which the tissue lies."""
    x, y, z = p
    cheek = union(
        ellipsoid((x, y, z), (44, 66, -5), (14, 11, 12)),
        capsule(p, (48, 60, -8), (58, 24, -3), 6.0, 5.0),
        capsule(p, (49, 66, 4), (49, 66, 30), 5.5),
        radius=8.0,
    )
    face = ellipsoid(p, (0, 45, -20), (36, 46, 36))
    brow = union(
        capsule(p, (0, 88, 32), (36, 79, 37), 7.0), capsule(p, (36, 79, 37), (50, 66, 32), 6.5, 5.0)
    )
    ramus = ellipsoid(p, (32, 20, -34), (5, 17, 26))
    temple = ellipsoid(p, (44, 40, 20), (16, 36, 32))
    parotid = ellipsoid(p, (42, 26, -12), (14, 26, 24))
    buccal = ellipsoid(p, (25, 42, -34), (12, 28, 28))
    hull = union(bones.vault(p), brow, temple, parotid, radius=13.0)
    return union(hull, cheek, face, ramus, buccal, _jaw_solid(p), radius=14.0)


def _neck(p, t):
    """Distance to the neck with its muscles and larynx."""
    x, y, z = p
    lean = -0.20 * (z + 40.0)
    cy = -14.0 - lean * 0.35
    radius = 50.0 * t.neck + 0.0016 * jnp.maximum(-70.0 - z, 0.0) ** 2
    u = x / radius
    v = (y - cy) / (1.02 * radius)
    column = (jnp.sqrt(u * u + v * v + 1e-6) - 1.0) * radius
    column = smooth_max(column, z + 12.0, 20.0)
    sternomastoid = capsule((x / t.neck, y, z), (50, -13, -28), (14, 26, -150), 9.0, 9.0)
    larynx = capsule(p, (0, 33, -104), (0, 34, -150), 8.0, 9.0)
    trapezius = capsule((x / t.neck, y, z), (16, -44, -40), (62, -48, -185), 16.0, 24.0)
    return union(column, sternomastoid, larynx, trapezius, radius=16.0)


def eye_center(t):
    """Returns the centre of the right eyeball in mm."""
    return (32.0, 72.5, 16.5)


def lid_gap(p, t):
    """Distance to the lid fissure in the frontal plane; negative where the eye is open."""
    x, _, z = p
    across = (x - 32.0) / 15.2
    arch = jnp.maximum(1.0 - across * across, 0.0)
    middle = 16.2 + 1.1 * across
    upper = middle + (6.0 * t.eye_opening - 0.9 * t.sag * jnp.maximum(across, 0.0)) * arch**0.75
    lower = middle - (4.7 * t.eye_opening + 0.3 * t.sag) * arch
    gap = jnp.maximum(z - upper, lower - z)
    return jnp.maximum(gap, (jnp.abs(across) - 1.0) * 15.2)


def _eyes(skin, p, t):
    _x, y, z = p
    hollow = ellipsoid(p, (33, 100, 16), (18, 18.5, 12.0))
    skin = smooth_max(skin, -hollow, 9.0)
    corner = ellipsoid(p, (17, 99, 17), (7.0, 13.0, 9))
    skin = smooth_max(skin, -corner, 7.0)
    center = eye_center(t)
    bag = ellipsoid(p, (32, 76, 7.0), (13, 8.0 + 1.2 * t.sag, 5.0))
    hood = ellipsoid(p, (35, 77.5 - 0.3 * t.sag, 28.0 - 1.5 * t.sag), (17, 8.5, 7.0))
    lids = sphere(p, center, 13.6)
    skin = union(skin, lids, bag, hood, radius=4.5)
    gap = lid_gap(p, t)
    opening = jnp.maximum(gap, 66.0 - y)
    skin = smooth_max(skin, -opening, 1.0)
    crease = (
        jnp.abs(gap - 3.0 + 0.9 * t.sag) + 2.5 * step(z, 16.0, -1.5) + jnp.maximum(70.0 - y, 0.0)
    )
    return skin + 0.5 * jnp.exp(-((crease / 0.9) ** 2))


def _nose(skin, p, t):
    x, y, z = p
    w = t.nose_width
    reach = t.nose_length
    turn = t.nose_tip * 0.12
    tip = (0.0, 111.5 + 9.5 * (reach - 1.0) * 2, -16.5 + turn)
    bridge = union(
        capsule((x / (0.85 + 0.15 * w), y, z), (0, 92.0, 24), (0, 102.0, 2), 4.6, 5.4),
        capsule((x / (0.8 + 0.2 * w), y, z), (0, 102.0, 2), tip, 5.4, 8.0),
        radius=3.0,
    )
    wall = ellipsoid((x / w, y, z), (0, 92, -9), (15.5, 14.5, 25))
    tip_ball = ellipsoid((x / w, y, z), tip, (8.4, 7.6, 7.4))
    wing = ellipsoid((x / w, y, z), (12.2, 100.0, -20.5 + 0.4 * turn), (6.0, 9.6, 6.6))
    columella = capsule(p, (0, 98, -27), (0, tip[1] - 2.5, tip[2] - 4.0), 3.6, 3.2)
    nose = union(
        union(bridge, wall, radius=8.0), union(tip_ball, wing, columella, radius=4.0), radius=5.0
    )
    skin = smooth_min(skin, nose, 6.5)
    nostril = ellipsoid((x / w, y, z), (6.6, 103.0, -26.0 + 0.7 * turn), (3.1, 5.6, 4.2))
    skin = smooth_max(skin, -nostril, 1.5)
    groove = ellipsoid((x / w, y, z), (20.5, 99.0, -23.0), (1.6, 5.0, 6.5))
    return smooth_max(skin, -groove, 5.0)


def lip_line(p, t):
    """Returns the height of the closed mouth's line and the position along it.

    The line is a cupid's bow. The position is 0 in the middle and 1 at the corner of the mouth.
    """
    x, _, _ = p
    along = x / (25.5 * t.mouth_width)
    droop = 2.0 * t.sag * jnp.clip(along, 0, 1.2) ** 3
    line = -46.0 - 0.9 * bump(x, 0, 4) + 1.0 * along**2 * (1 - along) - droop
    return line, along


def lip_region(p, t):
    """Positive within the red of the lips, in mm from its edge."""
    x, y, z = p
    line, along = lip_line(p, t)
    arch = jnp.maximum(1.0 - along**2, 0.0)
    bow = 1.0 - 0.20 * bump(x, 0, 2.6) + 0.08 * bump(x, 5.5, 3.0)
    upper = line + 6.6 * t.lips * arch**0.85 * bow
    lower = line - 8.2 * t.lips * arch**0.62
    return (
        jnp.minimum(upper - z, z - lower)
        - 4.0 * jnp.maximum(along - 1.0, 0.0)
        - jnp.maximum(70.0 - y, 0.0)
    )


def _mouth(skin, p, t):
    x, y, z = p
    line, along = lip_line(p, t)
    width = 22.0 * t.mouth_width
    full = 0.6 + 0.4 * t.lips
    upper = ellipsoid(p, (0, 92.0, -42.2), (width, 9.6 + 1.6 * full, 5.6 * full))
    lower = ellipsoid(p, (0, 90.2, -51.2), (0.86 * width, 9.8 + 1.8 * full, 6.0 * full))
    mound = ellipsoid(p, (0, 78, -44), (30, 20.5, 22))
    skin = smooth_min(skin, mound, 12.0)
    skin = union(skin, upper, lower, radius=5.0)
    parting = bump(z, line, 1.1) * step(along, 1.06, -0.05) * step(y, 72, 4)
    corner = bump(x, 26.0 * t.mouth_width, 3.0) * bump(z, -46.5 - 1.5 * t.sag, 3.0) * step(y, 60, 5)
    philtrum = bump(x, 0, 2.6) * bump(z, -36.0, 5.0) * step(y, 85, 4)
    below = bump(z, -64.5, 5.5) * bump(x, 0, 15) * step(y, 70, 5)
    return skin + 1.8 * parting + 0.9 * corner + 0.8 * philtrum + 2.4 * below


def _age_and_weight(skin, p, t):
    """Adds the effects of age and weight on cheeks, jowls, nasolabial fold and throat."""
    x, y, z = p
    fold_line = x - (20.0 + 0.30 * (-22.0 - z))
    in_reach = bump(z, -37.0, 11.0) * step(y, 62, 6)
    fold = (bump(fold_line, 0.0, 2.6) * 0.9 - bump(fold_line, 7.0, 5.0) * 0.9) * in_reach
    jowl = bump(x, 31, 9) * bump(y, 58, 14) * bump(z, -84, 11)
    marionette = bump(x - 27.0 + 0.10 * (z + 50), 0.0, 2.4) * bump(z, -58.0, 7.0) * step(y, 62, 6)
    throat = bump(x, 0, 24) * bump(y, 50, 20) * bump(z, -104, 14)
    cheek = bump(x, 42, 12) * bump(y, 58, 18) * bump(z, -38, 18)
    tear = bump(x - 24.0 - 0.4 * (4.0 - z), 0.0, 4.0) * bump(z, 4.0, 5.0) * step(y, 70, 5)
    change = t.sag * (
        0.9 * fold - 2.6 * jowl + 0.7 * marionette - 3.0 * throat + 1.8 * cheek + 0.9 * tear
    )
    return (
        skin + 0.35 * fold + 0.5 * tear + change - t.fat * (2.6 * cheek + 4.4 * throat + 1.8 * jowl)
    )


def ear(p, t):
    """Distance to the pinna: a shell with helix, concha, tragus and lobule."""
    x, y, z = p
    s = t.ear
    # The ear's frame tilts backward and flares away from the head.
    _qx, qy, qz = turned((x, y, z), (0.0, -9.0, 2.0), 0.22)
    flare = 0.42 * t.ear_flare
    off = x - (68.5 - 0.02 * qz) + flare * (qy - 10.0)
    u = qy / (15.5 * s)
    v = (qz - 1.0) / (30.5 * s)
    u = u * (1.0 - 0.22 * v)  # wider above
    # The shell.
    radius = jnp.sqrt(u * u + v * v + 1e-6)
    edge = (radius - 1.0) * 17.0 * s
    plate = smooth_max(edge, jnp.abs(off) - 1.9, 2.5)
    lobule_free = step(v, -0.55, 0.15)
    helix = jnp.hypot(edge + 2.2, off - 1.6) - (1.2 + 1.3 * lobule_free * step(u, 0.75, -0.2))
    fold = (
        jnp.hypot((jnp.hypot(u + 0.02, v + 0.05) - 0.56) * 20.0 * s, off - 0.9)
        - 1.6 * step(u, 0.15, -0.2) * lobule_free
    )
    shape = union(plate, helix, fold, radius=2.4)
    # The hollow and the tragus before it.
    concha = ellipsoid((off, qy, qz), (3.4, 3.0, -2.0), (4.6, 7.0 * s, 10.0 * s))
    shape = smooth_max(shape, -concha, 2.0)
    tragus = ellipsoid((off, qy, qz), (0.6, 11.0, -3.5), (3.0, 3.2, 4.8))
    return smooth_min(shape, tragus, 2.0)


def skin(p, t: Tissue):
    """Signed distance to the skin without hair, in mm, at template places with x >= 0."""
    return smooth_min(skin_without_ears(p, t), ear(p, t), 3.0)


def skin_without_ears(p, t: Tissue):
    """Signed distance as in `skin`, without the ears; hair grows on this surface."""
    body = bony_hull(p) - depth_at(p, t.depth)
    body = _age_and_weight(body, p, t)
    body = _mouth(body, p, t)
    body = _nose(body, p, t)
    body = _eyes(body, p, t)
    return smooth_min(body, _neck(p, t), 15.0)


def eyeball(p, t: Tissue):
    """Distance to the eye with its cornea."""
    x, y, z = eye_center(t)
    return smooth_min(sphere(p, (x, y, z), 12.1), sphere(p, (x, y + 4.8, z), 7.9), 2.0)


def hair_edge(p, t: Tissue):
    """Returns the distance in mm inside the hairline; negative on bare skin."""
    x, y, z = p
    wave = 1.2 * noise(x / 14.0, y / 14.0, z / 14.0, 0.3)
    recede = t.hairline * (1.0 + 0.8 * bump(x, 36, 12))
    # The front edge runs from the trichion over the temple, then down before the ear.
    front_y = 78.0 + 1.0 * (z - 88.0) - recede
    front_y = jnp.where(
        z < 88.0,
        78.0 - 0.035 * (88.0 - z) ** 1.5 * 2.2 - 0.25 * (88 - z) * step(x, 30, 8) - recede,
        front_y,
    )
    front_y = jnp.maximum(front_y, 19.0 - 0.3 * recede + 0.05 * z)
    # The lower edge passes over the ear.
    low = -14.0
    around_ear = 24.0 * bump(y, -7, 15) * step(z, 60, -10)
    low = low + around_ear - 36.0 * step(y, -34.0, -8.0)
    return jnp.minimum(front_y - y, z - low) + wave


def hair(p, t: Tissue, bare):
    """Distance to the hair. `bare` is the distance to the skin at `p`."""
    x, y, z = p
    # The cap of hair that every head has.
    edge = hair_edge(p, t)
    lock = noise(x / 16.0, y / 18.0, z / 26.0, 1.7) * 0.9
    top = 0.55 + 0.45 * step(z, 70, 18)
    thick = (t.hair_volume * top + lock) * step(edge, 4.0, 6.0) - 3.0 * step(edge, 0.0, -3.0)
    cap = bare - thick
    # The curtain of long hair.
    long_edge = 19.0 - 0.04 * (z + 20) + 4.0 * jnp.sin(z / 23.0)
    curtain = (
        ellipsoid((x, y, 0.0), (0, -16, 0), (86, 86, 1e3))
        + 0.0045 * jnp.maximum(-32.0 - z, 0.0) ** 2
    )
    curtain = smooth_max(
        curtain + lock,
        smooth_max(y - long_edge, jnp.maximum(z - 56.0, -84.0 - 0.1 * y - z), 12.0),
        12.0,
    )
    inner = ellipsoid((x, y, 0.0), (0, -10, 0), (58, 60, 1e3))
    curtain = smooth_max(curtain, -inner, 6.0) + 60.0 * (1.0 - t.hair_length)
    return smooth_min(cap, curtain, 10.0)
