"""A whole head: its volume in Hounsfield units, its X-rays and its portraits."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_builders.conditions import VIEWS
from data_builders.cranio_phantom import skull as bones
from data_builders.cranio_phantom import tissue as soft
from data_builders.cranio_phantom.exposures import Exposure, with_metal
from data_builders.cranio_phantom.shapes import bump, noise, smooth_min, step, union
from data_builders.cranio_phantom.skull import Skull
from data_builders.cranio_phantom.tissue import Tissue
from data_builders.rendering import surface, xray
from data_builders.rendering.volume import Frame, Volume, ray_points

WIDTH = 264.0  # mm shown by a picture
CENTER = (0.0, 6.0, 3.0)
_LOW = np.array([-92.0, -122.0, -130.0], np.float32)  # mm; the box that the volume fills
_HIGH = np.array([92.0, 130.0, 137.0], np.float32)


class Colour(NamedTuple):
    """The colours of one head. RGB triples are display values in [0, 1]; the rest are scalars.

    Attributes:
      skin, hair, iris: RGB.
      grey: share of grey hair.
      flush: redness of cheeks, nose and ears, 1 on average.
      blotch: strength of age spots and uneven colour.
      stubble: darkness of a shaved beard, 0 for none.
      makeup: redness of the lips beyond the skin's.
      brow: strength of the eyebrows, 1 on average.
      seed: phase of the skin's and hair's noise.
    """

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    grey: float
    flush: float
    blotch: float
    stubble: float
    makeup: float
    brow: float
    seed: float | jax.Array


def frame(size: int) -> Frame:
    """Returns the picture plane that X-rays and portraits of the cohort share."""
    return Frame(size, WIDTH, CENTER)


def _grid(spacing: float) -> np.ndarray:
    """Returns the places in mm of the volume's samples: `(right, front, top, 3)`."""
    count = np.ceil((_HIGH - _LOW) / spacing).astype(int)
    axes = [np.float32(_LOW[i] + spacing * np.arange(count[i])) for i in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def _folded(p):
    """Mirrors the left half onto the right, rounded at the midline to avoid a crease there."""
    return jnp.sqrt(p[0] ** 2 + 0.25), p[1], p[2]


def _visible_ear(p, tissue: Tissue):
    """Distance to the ear as light sees it: long hair covers it. X-rays show it all the same."""
    return soft.ear(p, tissue) + 60.0 * tissue.hair_length


def outer_distance(p, skull: Skull, tissue: Tissue):
    """Signed distance in mm to the visible surface: skin, eyes or hair."""
    q = _folded(bones.to_template(p, skull))
    bare = soft.skin_without_ears(q, tissue)
    brow = 0.7 * step(brow_region(q, tissue), 0.5, 0.8)
    skin = smooth_min(bare, _visible_ear(q, tissue), 3.0) - brow
    return union(skin, soft.eyeball(q, tissue), soft.hair(q, tissue, bare)) * skull.size


def brow_region(p, tissue: Tissue):
    """Returns the distance in mm from the eyebrow's edge; positive within the eyebrow."""
    x, y, z = p
    along = (x - 14.0) / 34.0
    middle = 32.5 + tissue.brow_height + 5.5 * jnp.sin(jnp.clip(along, 0, 1) * 2.2) - 3.4 * along
    half = 3.6 - 2.6 * jnp.clip(along, 0, 1) ** 1.5
    ends = jnp.minimum(along, 1.0 - along) * 34.0
    return jnp.minimum(half - jnp.abs(z - middle), ends) - jnp.maximum(60.0 - y, 0.0)


# Each organ has a program of its own: a single one would repeat the warp for every organ.
@jax.jit
def _prepare(grid, skull: Skull):
    """Returns the template places, and the skull with noise and sinuses that differ by side."""
    gx, gy, gz = (grid[..., i] for i in range(3))
    tx, ty, tz = bones.to_template((gx, gy, gz), skull)
    side = jnp.tanh(tx / 8.0)
    sided = skull._replace(
        seed=skull.seed + 1.1 * side, sinus=skull.sinus * (1.0 + skull.sinus_skew * side)
    )
    return _folded((tx, ty, tz)), sided


@jax.jit
def _fill(p, skull: Skull, tissue: Tissue, spacing):
    """Returns Hounsfield units of fat, muscle and airway, and the distance to the skin."""
    skin = jnp.minimum(soft.skin(p, tissue), soft.eyeball(p, tissue))
    fat = bump(-skin, 4.0, 2.2) * step(-skin, 2.0, 0.6)
    x, y, z = p
    hu = 48.0 - 120.0 * fat + 12.0 * noise(x / 9.0, y / 9.0, z / 9.0, skull.seed)
    return hu + (-1000.0 - hu) * jnp.clip(0.5 - bones.airway(p) / spacing, 0, 1), skin


@partial(jax.jit, static_argnames="paint")
def _paint(hu, p, skull: Skull, spacing, paint):
    return paint(hu, p, skull, spacing)


@jax.jit
def _clip_to_skin(hu, skin, spacing):
    return -1000.0 + (hu + 1000.0) * jnp.clip(0.5 - skin / spacing, 0.0, 1.0)


def volume(skull: Skull, tissue: Tissue, spacing: float) -> Volume:
    """Returns the head in Hounsfield units, without hair, which X-rays do not show.

    Args:
      skull: the head's skull.
      tissue: the head's soft parts.
      spacing: mm between samples.
    """
    # Fill the head with soft tissue.
    grid = _grid(spacing)
    step_mm = np.float32(spacing)
    p, sided = _prepare(grid, skull)
    hu, skin = _fill(p, sided, tissue, step_mm)
    # Paint the parts of the skull, each within its box.
    for paint, low, high in bones.PARTS:
        start = np.maximum(0, np.floor((np.array(low) - _LOW) / step_mm)).astype(int)
        stop = np.minimum(grid.shape[:3], np.ceil((np.array(high) - _LOW) / step_mm)).astype(int)
        box = tuple(slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True))
        # Cut out before the program starts: strided reads inside it are several times slower.
        *here, sided_here = jax.tree.map(partial(_cut_out, box=box), (*p, sided))
        hu = hu.at[box].set(_paint(hu[box], tuple(here), sided_here, step_mm, paint=paint))
    return _volume(_clip_to_skin(hu, skin, step_mm), step_mm)


def _cut_out(field, box: tuple[slice, ...]):
    """Returns the part of a field within a box; scalars as they are."""
    return field[box] if jnp.ndim(field) == 3 else field


def _volume(values: jax.Array, spacing: float | np.float32) -> Volume:
    """Returns a field on `_grid(spacing)` as a volume."""
    return Volume(values, jnp.full(3, spacing, jnp.float32), jnp.asarray(_LOW))


@partial(jax.jit, static_argnames=("size", "dry"))
def expose(head: Volume, size: int, exposure: Exposure | None = None, dry: bool = False):
    """Returns the X-rays `(2, size, size)` of a volume in [0, 1], in the order of VIEWS.

    Args:
      head: in Hounsfield units.
      size: pixels along each side.
      exposure: how they are taken; None for parallel rays and no metal.
      dry: whether soft tissue is left out.
    """
    beam = xray.STANDARD
    if exposure:
        beam = exposure.beam
        head = with_metal(head, exposure.metal)
    if dry:
        head = xray.bare_bone(head)
    return jnp.stack([xray.radiograph(head, frame(size), view, beam) for view in VIEWS])


@partial(jax.jit, static_argnames="size")
def silhouettes(head: Volume, size: int, exposure: Exposure | None = None):
    """Returns where the head is in X-rays, `(2, size, size)`, in the order of VIEWS.

    Soft tissue is included. The arguments are those of `expose`.
    """
    beam = exposure.beam if exposure else xray.STANDARD
    return jnp.stack([xray.silhouette(head, frame(size), view, beam) for view in VIEWS])


def radiographs(skull: Skull, tissue: Tissue, size: int, spacing: float):
    """Returns the X-rays `(2, size, size)` in [0, 1], in the order of VIEWS."""
    return expose(volume(skull, tissue, spacing), size)


# ---------------------------------------------------------------- light


def _strands(p, along, seed):
    """Returns noise that is stretched along a direction of growth, for hair."""
    x, y, z = p
    u, v, w = along
    return 0.6 * noise(x * u, y * v, z * w, seed) + 0.4 * noise(
        2.3 * x * u + 3.0, 2.3 * y * v, 1.5 * z * w, seed + 1.0
    )


def _mix(a, b, weight):
    """Returns `a` where `weight` is 0 and `b` where it is 1."""
    return a + (b - a) * weight[..., None]


def _material(p, signed_x, tissue: Tissue, colour: Colour):
    """Returns albedo and gloss at surface places in the template's frame."""
    x, y, z = p
    scalp = soft.skin_without_ears(p, tissue)
    eye = soft.eyeball(p, tissue)
    bare = smooth_min(scalp, _visible_ear(p, tissue), 3.0)
    hair = soft.hair(p, tissue, scalp)

    # Skin: mottling, redness, shaded sockets, age spots and stubble.
    mottle = noise(signed_x / 13.0, y / 13.0, z / 13.0, colour.seed)
    fine = noise(signed_x / 3.7, y / 3.7, z / 3.7, colour.seed + 2.0)
    spots = step(noise(signed_x / 6.1, y / 6.1, z / 5.3, colour.seed + 5.0), 0.72, 0.12)
    skin = colour.skin * (1.0 + 0.012 * mottle + 0.008 * fine)[..., None]
    red = (
        0.9 * bump(x, 38, 14) * bump(z, -14, 13) * step(y, 45, 8)
        + 0.7 * bump(x, 0, 12) * bump(z, -16, 10) * step(y, 96, 5)
        + 0.6 * step(x, 68, 3) * bump(y, -8, 18) * bump(z, 0, 30)
        + 0.3 * bump(x, 0, 20) * bump(z, -86, 10) * step(y, 70, 6)
    )
    skin = skin * (1.0 + 0.07 * colour.flush * red[..., None] * jnp.array([0.9, -1.1, -0.9]))
    socket = bump(x, 31, 15) * bump(z, 13.0, 8.5) * step(y, 60, 6)
    skin = skin * (1.0 - socket[..., None] * jnp.array([0.03, 0.05, 0.04]))
    skin = skin * (
        1.0
        - colour.blotch
        * (0.10 * spots + 0.03 * jnp.abs(mottle))[..., None]
        * jnp.array([0.6, 1.0, 1.2])
    )
    beard = step(-24.0 - z, 0.0, 5.0) * step(y, 12.0, 7.0) * step(z, -104.0, 5.0)
    beard = beard * (1.0 - 0.85 * bump(x, 40, 12) * bump(z, -34, 14) * step(y, 35, 8))
    skin = _mix(
        skin,
        0.62 * colour.skin + 0.10 * colour.hair + jnp.array([0.0, 0.01, 0.03]),
        colour.stubble * beard * (0.85 + 0.15 * fine),
    )

    # Lips and lashes.
    lips = step(soft.lip_region(p, tissue), 0.2, 0.9)
    lip_colour = (
        colour.skin
        * jnp.array([0.90, 0.66, 0.64])
        * (1.0 - colour.makeup * jnp.array([0.0, 0.28, 0.2]))
    )
    line, along = soft.lip_line(p, tissue)
    parting = bump(z, line, 0.9) * step(along, 1.04, -0.05) * step(y, 72, 4)
    skin = _mix(skin, lip_colour, 0.85 * lips)
    skin = skin * (1.0 - 0.55 * parting[..., None])
    lash = bump(soft.lid_gap(p, tissue), 0.3, 0.7) * step(z, 15.0, 2.0) * step(y, 70, 2)
    skin = skin * (1.0 - (0.40 + 0.4 * colour.makeup) * lash[..., None])

    # Hair and brows.
    hue = colour.hair * (1.0 - colour.grey) + jnp.array([0.68, 0.67, 0.65]) * colour.grey
    hairs = _strands((signed_x, y, z), (0.42, 0.10, 0.16), colour.seed + 9.0)
    # Crown hair grows to the front, side hair downwards: two strand fields, blended by height.
    crown = _strands((signed_x, y, z), (0.55, 0.07, 0.3), colour.seed + 4.0)
    sides = _strands((signed_x, y, z), (0.35, 0.42, 0.06), colour.seed + 6.0)
    strand = crown + (sides - crown) * step(z, 70.0, -18.0)
    tint = (
        hue
        * (1.0 + 0.20 * strand + 0.06 * hairs)[..., None]
        * (1.0 - 0.25 * colour.grey * step(hairs, 0.3, 0.2)[..., None])
    )
    brow = step(_ragged_brow(p, tissue, strand), 0.3, 0.7) * 0.72 * colour.brow
    skin = _mix(skin, 0.75 * hue, jnp.clip(brow, 0, 0.9))
    # Hair thins out towards its edge.
    thin = step(soft.hair_edge(p, tissue) + 2.2 * strand, 1.5, 2.2)
    is_hair = step(bare - hair, 0.5, 0.6) * jnp.maximum(thin, step(bare - hair, 6.0, 1.0))
    albedo = _mix(skin, tint, is_hair)
    gloss = 0.055 + 0.05 * lips + 0.02 * step(y, 96, 4) + is_hair * (0.03 + 0.05 * strand)

    # Eyes: the white, the iris with its pupil, the upper lid's shadow and a glint.
    ex, _, ez = soft.eye_center(tissue)
    radius = jnp.hypot(x - ex, z - ez)
    spokes = 0.85 + 0.2 * jnp.sin(9.0 * jnp.arctan2(z - ez, x - ex) + colour.seed)
    white = jnp.array([0.86, 0.83, 0.80]) * (1.0 - 0.02 * jnp.maximum(radius - 6.0, 0.0))[..., None]
    iris = colour.iris * (spokes * (1.1 - 0.5 * step(radius, 5.2, 0.4)))[..., None]
    ball = _mix(white, iris, step(radius, 6.1, -0.35))
    ball = _mix(ball, jnp.full(3, 0.03), step(radius, 2.4, -0.3))
    shadow = 0.35 * step(soft.lid_gap(p, tissue), -2.2, 1.2) * step(z, ez - 1.0, 2.0)
    ball = ball * (1.0 - shadow)[..., None]
    glint = bump(x * jnp.sign(signed_x) - (ex * jnp.sign(signed_x) + 1.6), 0.0, 0.9) * bump(
        z, ez + 2.6, 0.9
    )
    ball = ball + 0.8 * glint[..., None]
    is_eye = step(jnp.minimum(bare, hair) - eye, 0.05, 0.12)
    return _mix(albedo, ball, is_eye), gloss * (1 - is_eye) + 0.10 * is_eye


def _ragged_brow(p, tissue: Tissue, strand):
    """Returns `brow_region` with a ragged edge."""
    return brow_region(p, tissue) + 0.8 * strand - 0.3


# The distance is a large expression. As its own program, called for the grid, the march and the
# normals, it compiles in seconds; inlined at each call, or differentiated in reverse, in minutes.
# Places are triples of arrays: reading a last axis of three with strides is several times slower.
@jax.jit
def _distances(points, offset, skull, tissue):
    return outer_distance(tuple(p + o for p, o in zip(points, offset, strict=True)), skull, tissue)


_COARSE = 5.0  # mm; the grid that rays start from
_RIM = 1.5  # mm; of rays that pass nearer than this by the grid, the exact distance decides
_GRAZING = np.arange(-4, 5, 2, dtype=np.float32)  # mm along a ray, from the grid's nearest sample
_HERE = np.zeros(3, np.float32)
_TOWARD = {"frontal": (0.0, 1.0, 0.0), "lateral": (1.0, 0.0, 0.0)}
_TETRAHEDRON = 0.3 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)  # mm


@jax.jit
def _advance(points, toward, distance, least):
    # A warped field is not an exact distance: steps are short, and go back where one went too far.
    # Rays that graze an edge would creep along it; a minimum step lets them pass.
    stride = 0.85 * jnp.clip(distance, -4.0, 16.0)
    stride = jnp.where(distance > 0.4, jnp.maximum(stride, least), stride)
    return tuple(p - t * stride for p, t in zip(points, toward, strict=True))


@partial(jax.jit, static_argnames=("fine", "view"))
def _near_surface(coarse: Volume, fine: Frame, view: str):
    """Returns each ray's least distance to the head, where it has it, and where its march starts.

    All are as the grid sees them. It misses parts thinner than its spacing by up to 1 mm, so the
    march starts a little before the crossing.
    """
    nearness, depth = surface.highest(coarse, fine, view, -200.0)
    start = surface.first_crossing(coarse, fine, view, -_RIM, -200.0) + 3.0
    nearest, starts = (
        tuple(jnp.moveaxis(ray_points(fine, view, along), -1, 0).reshape(3, -1))
        for along in (depth, start)
    )
    return -nearness.ravel(), nearest, starts


@jax.jit
def _nearest(points, toward, skull, tissue):
    """Returns where rays that graze the head come nearest to it, and the distance in mm."""
    places = [tuple(p + t * o for p, t in zip(points, toward, strict=True)) for o in _GRAZING]
    distances = jnp.stack([_distances(place, _HERE, skull, tissue) for place in places])
    offset = jnp.array(_GRAZING)[distances.argmin(0)]
    return tuple(p + t * offset for p, t in zip(points, toward, strict=True)), distances.min(0)


@jax.jit
def _normals(corners):
    nx, ny, nz = (
        sum(c * offset[i] for c, offset in zip(corners, _TETRAHEDRON, strict=True))
        for i in range(3)
    )
    scale = 1.0 / jnp.maximum(jnp.sqrt(nx * nx + ny * ny + nz * nz), 1e-6)
    return nx * scale, ny * scale, nz * scale


@jax.jit
def _raised(points, normal, height):
    return tuple(p + height * n for p, n in zip(points, normal, strict=True))


@jax.jit
def _painted(points, skull: Skull, tissue: Tissue, colour: Colour):
    template = bones.to_template(points, skull)
    return _material(_folded(template), template[0], tissue, colour)


@partial(jax.jit, static_argnames="view")
def _lit(value, normal, above, albedo, gloss, view: str):
    sky = surface.openness_from_distances(above)
    # Rays that have not reached the surface count little compared with the others of their pixel.
    settled = jnp.where(jnp.abs(value) < 1.0, 1.0, 1e-3)
    return jnp.concatenate(
        [surface.shade(view, jnp.stack(normal, -1), albedo, sky, gloss), settled[:, None]], -1
    )


_downsample = jax.jit(surface.downsample, static_argnames="factor")
_PIECE = 2**13  # rays


# Minimum steps of the march in mm.
_LEAST_STEPS = np.array([0, 0.5, 1.5, 2, 1, 0, 0], np.float32)


def _trace(points, view: str, skull: Skull, tissue: Tissue, colour: Colour):
    """Returns the display RGB of rays, and their weights in their pixels: `(rays, 4)`.

    The rays start from `points` near the surface.
    """
    # March to the surface.
    toward = tuple(np.full_like(points[0], t) for t in _TOWARD[view])
    for least in _LEAST_STEPS:
        points = _advance(points, toward, _distances(points, _HERE, skull, tissue), least)
    # Shade it.
    value = _distances(points, _HERE, skull, tissue)
    normal = _normals([_distances(points, offset, skull, tissue) for offset in _TETRAHEDRON])
    above = tuple(
        _distances(_raised(points, normal, np.float32(r)), _HERE, skull, tissue)
        for r in surface.RADII
    )
    return _lit(value, normal, above, *_painted(points, skull, tissue, colour), view)


class Portraits(NamedTuple):
    """Portraits in the order of VIEWS.

    Attributes:
      faces: `(2, size, size, 3)` display RGB in [0, 1].
      masks: `(2, size, size, 1)`, True in pixels of which the head fills half or more.
    """

    faces: jax.Array
    masks: np.ndarray


def portraits(
    skull: Skull, tissue: Tissue, colour: Colour, size: int, supersample: int = 2
) -> Portraits:
    """Returns a frontal and a lateral portrait.

    A coarse grid of distances gives each ray's first place near the head; a few steps of the exact
    distance then lead to the surface. Rays that miss the head are left out. The others are traced
    in pieces of one size, so that all pictures share one compilation and a piece fits the cache.
    """
    # Parameters go to the device once, not at each of many calls.
    skull, tissue, colour = jax.device_put((skull, tissue, colour))
    grid = tuple(np.moveaxis(_grid(_COARSE), -1, 0))
    coarse = _volume(-_distances(grid, _HERE, skull, tissue), _COARSE)
    fine = Frame(size * supersample, WIDTH, CENTER)
    faces = []
    masks = []
    for view in VIEWS:
        # Find the rays that meet the head. Those that graze it start where they are nearest.
        distance, nearest, starts = jax.tree.map(np.array, _near_surface(coarse, fine, view))
        rim = np.flatnonzero(np.abs(distance) < _RIM)
        toward = tuple(np.full(_PIECE, t, np.float32) for t in _TOWARD[view])
        for piece, padded in _pieces(rim):
            places, least = _nearest(tuple(p[padded] for p in nearest), toward, skull, tissue)
            distance[piece] = np.asarray(least)[: len(piece)]
            for start, place in zip(starts, places, strict=True):
                start[piece] = np.asarray(place)[: len(piece)]
        met = distance < 0.0
        # Trace them.
        colours = np.tile(np.array([*surface.BACKGROUND, 1.0], np.float32), (distance.size, 1))
        for piece, padded in _pieces(np.flatnonzero(met)):
            traced = _trace(tuple(p[padded] for p in starts), view, skull, tissue, colour)
            # Cut on the host: a device would compile a program for each length.
            colours[piece] = np.asarray(traced)[: len(piece)]
        # Average each pixel's rays.
        colours = colours.reshape(fine.size, fine.size, 4)
        faces.append(_downsample(colours[..., :3], colours[..., 3], factor=supersample))
        hits = met.reshape(size, supersample, size, supersample, 1).astype(np.float32)
        masks.append(hits.mean((1, 3)) >= 0.5)
    return Portraits(jnp.stack(faces), np.stack(masks))


def _pieces(rays: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the indices of rays in pieces, each also repeated at its end to one size."""
    for start in range(0, len(rays), _PIECE):
        piece = rays[start : start + _PIECE]
        yield piece, np.pad(piece, (0, _PIECE - len(piece)), mode="edge")
