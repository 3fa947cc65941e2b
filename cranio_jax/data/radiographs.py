"""X-rays varied as real ones are: framing, exposure, film edges, objects on the film, noise.

Radiographs differ by vendor, film, holder and hurry more than people do. All ranges are our choice,
made beside real cephalograms. Lengths are fractions of the side, so they fit any size. The strength
from 0 to 1 is the most that an X-ray is changed. It scales the probability and the size of changes.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

Picture = Float[np.ndarray, "h w"]  # in [0, 1], bone bright
Film = UInt8[np.ndarray, "h w"]  # what lies on it

VARIED = 4  # rises when `vary` changes an X-ray in another way
TILT = 10.0  # largest rotation in degrees
_ZOOM = (-0.15, 0.30)  # least and largest zoom, as logarithms
# How far from the middle profile and chin are, of heads that face the right; and the face's half
# width in a frontal view. They stay in the picture, whatever else is cut off.
_PROFILE, _CHIN, _HALF = 0.43, 0.38, 0.30
_RIM = 0.47  # from the middle
# The probability that thin soft tissue is shown. A skull is dry if more than that share of its head
# is darker than that, of 255.
_THIN, _DRY, _SEEN = 0.8, 0.22, 4
_BACK, _UP = 0.22, 0.12  # farthest shift to the back and upwards


class Framing(NamedTuple):
    """Where the head is in the picture.

    Attributes:
      zoom: how much larger it is.
      shift: `(x, y)`, how far it is moved to the right and down, as fractions of the side.
    """

    zoom: float
    shift: Float[np.ndarray, "2"]


def framing(rng: np.random.Generator, strength: float, view: str, mirrored: bool) -> Framing:
    """Returns a random framing, in which vault, occiput and neck may be cut off, but no face.

    Args:
      rng: the source of random numbers.
      strength: from 0 to 1.
      view: of the X-ray.
      mirrored: whether a lateral head faces the left.
    """
    zoom = float(np.exp(strength * rng.uniform(*_ZOOM)))
    down = rng.uniform(-_UP, min(0.1, _RIM - _CHIN * zoom))
    if view == "lateral":
        across = rng.uniform(-_BACK, min(0.1, _RIM - _PROFILE * zoom)) * (-1 if mirrored else 1)
    else:
        across = rng.uniform(-1.0, 1.0) * min(0.12, _RIM - _HALF * zoom)
    return Framing(zoom, (strength * np.array([across, down])).astype(np.float32))


def vary(
    xray: UInt8[np.ndarray, "h w 1"], rng: np.random.Generator, strength: float
) -> UInt8[np.ndarray, "h w 1"]:
    """Returns an X-ray as another device, film, processing or holder might show it.

    The head stays where it is; see `framing` for that.
    """
    strength = strength * rng.random() ** 0.5
    picture = xray[..., 0].astype(np.float32) / 255.0
    for change, probability in _CHANGES:
        if rng.random() < strength * probability:
            picture = np.clip(change(picture, rng, strength), 0.0, 1.0)
    return np.round(255.0 * picture).astype(np.uint8)[..., None]


def is_dry(xray: UInt8[np.ndarray, "h w 1"], mask: UInt8[np.ndarray, "h w 1"]) -> bool:
    """Returns whether an X-ray, as rendered, shows no soft tissue, as of a dry skull.

    Args:
      xray: as rendered.
      mask: not 0 at the head in it, soft tissue included.
    """
    head = mask > 0
    return bool(((xray < _SEEN) & head).sum() > _DRY * head.sum())


def show_thin_tissue(
    xray: UInt8[np.ndarray, "h w 1"],
    mask: UInt8[np.ndarray, "h w 1"],
    rng: np.random.Generator,
    strength: float,
) -> UInt8[np.ndarray, "h w 1"]:
    """Returns an X-ray that shows soft tissue up to the skin, as films of faces often do.

    Filters, and processing for soft tissue, bring out what a plain exposure leaves as dark as air.
    X-rays of dry skulls stay as they are.

    Args:
      xray: as rendered.
      mask: not 0 at the head in it, soft tissue included.
      rng: the source of random numbers.
      strength: from 0 to 1, the probability.
    """
    head = mask[..., 0] > 0
    if rng.random() > _THIN * strength or is_dry(xray, mask):
        return xray
    depth = cv2.distanceTransform(np.uint8(head), cv2.DIST_L2, 5) / len(head)
    least = rng.uniform(0.04, 0.14) * (1.0 - np.exp(-depth / rng.uniform(0.002, 0.012)))
    return np.maximum(xray, np.round(255.0 * least).astype(np.uint8)[..., None])


def hide_soft_tissue(
    xray: UInt8[np.ndarray, "h w 1"],
    mask: UInt8[np.ndarray, "h w 1"],
    rng: np.random.Generator,
    strength: float,
    mirrored: bool,
) -> UInt8[np.ndarray, "h w 1"]:
    """Varies a dry skull as a living head whose soft tissue is hidden beyond the facial bones.

    X-rays of the living are made dry like this: forehead and neck keep their soft tissue. See
    `data_builders.cephalograms.masking`.

    Args:
      xray: of a dry skull from the side, as rendered.
      mask: not 0 at the head in it, soft tissue included.
      rng: the source of random numbers.
      strength: from 0 to 1, for `vary`.
      mirrored: whether it faces the left.
    """
    head = mask[..., 0] > 0
    depth = cv2.distanceTransform(np.uint8(head), cv2.DIST_L2, 5) / len(head)
    tissue = rng.uniform(0.1, 0.35) * (1.0 - np.exp(-depth / rng.uniform(0.02, 0.08)))
    bone = xray[..., 0].astype(np.float32) / 255.0
    living = bone + (1.0 - bone) * tissue
    varied = vary(np.round(255.0 * living).astype(np.uint8)[..., None], rng, strength)
    hidden = _beyond_bone(xray[..., 0], head, mirrored)
    if hidden.any():
        varied[hidden] = np.percentile(varied[hidden], 5)
    return varied


def _beyond_bone(
    xray: UInt8[np.ndarray, "h w"], head: Bool[np.ndarray, "h w"], mirrored: bool
) -> Bool[np.ndarray, "h w"]:
    """Returns what lies in front of and below the facial bones of a dry skull."""
    if mirrored:
        return _beyond_bone(xray[:, ::-1], head[:, ::-1], False)[:, ::-1]
    side = len(xray)
    _, nasion, _ = _pit(head)
    # The opening of the nose counts as bone.
    gap = np.ones((2 * round(0.05 * side) + 1, 1), np.uint8)
    bone = cv2.morphologyEx(np.uint8(xray >= _SEEN), cv2.MORPH_CLOSE, gap) > 0
    front = np.where(bone.any(1), side - np.argmax(bone[:, ::-1], axis=1), 0)
    # The chin is the lowest bone near the foremost.
    foremost = int(front[nasion:].max())
    jaw = bone[:, max(0, foremost - round(0.14 * side)) :].any(1)
    chin = side - 1 - int(np.argmax(jaw[::-1]))
    front[:nasion] = front[nasion] + round(0.04 * side)  # the brow and the forehead stay
    front[chin:] = front[chin] - round(0.08 * side)
    return np.arange(side) >= front[:, None]


# What the rays and the film do.


def _rest(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Adds the holder's bar in front of the forehead, and its rest, which touches the skin.

    It does so in the deepest pit of either side's outline, mostly at the nasion, at times at the
    nape. A head without a pit, as most are from the front, gets none.
    """
    seen = picture > _SEEN / 255.0
    pits = [_pit(seen), _pit(seen[:, ::-1])]
    mirrored = pits[1][0] > pits[0][0]
    depth, row, column = pits[mirrored]
    if depth < 1:
        return picture
    y, left = row / len(picture), column / len(picture) + rng.uniform(-0.02, 0.02)
    right = left + rng.uniform(0.03, 0.13)
    width, block = rng.uniform(0.008, 0.03), rng.uniform(0.0, 0.02)
    half = rng.uniform(0.008, 0.025)

    film = np.zeros(picture.shape, np.uint8)
    bar = int(rng.integers(25, 256))
    _box(film, (right, y - rng.uniform(0.05, 0.6), right + width, y), bar)
    _box(film, (right - block, y - rng.uniform(0.0, 0.12), right + width + block, y), bar)
    _box(film, (left, y - half, right + width, y + half), int(rng.integers(10, 128)))
    if mirrored:
        film = film[:, ::-1]
    return np.maximum(picture, strength * np.float32(film) / 255.0)


def _pit(seen: Bool[np.ndarray, "h w"]) -> tuple[float, int, int]:
    """Returns how deep the deepest pit in a head's right outline is, and its row and column.

    Only rows in which a nasion may lie count. Lengths are pixels.
    """
    rows, columns = seen.shape
    front = np.where(seen.any(1), columns - np.argmax(seen[:, ::-1], axis=1), 0)
    # The foremost point within a nose's length above and below each row.
    reach = round(0.12 * rows)
    window = np.ones((reach, 1), np.uint8)
    profile = front.astype(np.float32)[:, None]
    above = cv2.dilate(profile, window, anchor=(0, reach - 1))[:, 0]
    below = cv2.dilate(profile, window, anchor=(0, 0))[:, 0]
    depth = np.minimum(above, below) - front
    first, last = round(0.2 * rows), round(0.55 * rows)
    row = first + int(np.argmax(depth[first:last]))
    return float(depth[row]), row, int(front[row])


def _curve(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Changes the exposure: gamma, a film's S-curve, clipped highlights, grey in place of black.

    The air around the head may be brighter than black, but for a seam along the skin or bone.
    """
    glow = np.zeros_like(picture)
    if rng.random() < 0.8:
        brighter = _halo if rng.random() < 0.4 else _glow
        glow = brighter(picture, rng, strength)
    # Thin soft tissue is dim, but films show even the tip of a nose against the air.
    rim = strength * rng.uniform(0.0, 0.2) if rng.random() < 0.8 else 0.0
    film = rim * (1.0 - np.exp(-picture / rng.uniform(0.01, 0.06)))
    picture = picture ** np.exp(strength * rng.uniform(-0.5, 0.4))
    if rng.random() < 0.4:
        slope, middle = rng.uniform(1.0, 4.0), rng.uniform(0.35, 0.7)
        low, curve, high = (np.tanh(slope * (x - middle)) for x in (0.0, picture, 1.0))
        picture = (curve - low) / (high - low)
    picture = film + (1.0 - rim) * picture
    if rng.random() < 0.2:
        picture = np.minimum(1.0, picture * (1.0 + strength * rng.uniform(0.0, 0.3)))
    black = strength * max(0.0, rng.uniform(-0.15, 0.15))
    return black + (1.0 - black) * (picture + glow)


def _glow(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Returns what makes the air brighter: 0 in the head, and rising with the distance from it.

    It is what filters that even out a film do. Air beyond a dark seam is as bright as soft tissue
    within a few percent of the side, and may be as bright as bone at the edge.
    """
    air = np.uint8(picture < rng.uniform(0.003, 0.015))
    distance = cv2.distanceTransform(air, cv2.DIST_L2, 5) / len(picture)
    distance = _blurred(distance, rng.uniform(0.2, 1.0))
    slope = np.exp(rng.uniform(np.log(0.7), np.log(5.0))) * (0.4 + 0.6 * _smooth(rng, air.shape))
    rising = slope * np.maximum(0.0, distance - rng.uniform(0.0, 0.02)) ** rng.uniform(0.8, 1.3)
    return strength * np.minimum(rising, rng.uniform(0.2, 1.0))


def _halo(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Returns what is added to all of the picture: a grey that is lower, or negative, near bone.

    Digital films are evened out like this. The bridge of a nose is as black as the air beside it,
    and its tip as bright as the air farther away.
    """
    around = _blurred(picture, np.exp(rng.uniform(np.log(0.02), np.log(0.1))) * len(picture))
    dense = np.minimum(1.0, around / rng.uniform(0.1, 0.5))
    return strength * rng.uniform(0.05, 0.4) * (1.0 - rng.uniform(0.6, 1.6) * dense)


def _fog(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Adds light that hides contrast: uneven, or rising towards a side as where no head is."""
    veil = strength * rng.uniform(0.0, 0.4) * _smooth(rng, picture.shape)
    if rng.random() < 0.6:
        x, y = _axes(picture.shape)
        angle = rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2]) + rng.normal(0.0, 0.3)
        start = rng.uniform(-0.3, 0.8)
        along = (x * np.cos(angle) + y * np.sin(angle) - start) / (1.0 - start)
        ramp = np.clip(along, 0.0, 1.0) ** rng.uniform(0.7, 2.5)
        veil = np.maximum(veil, strength * rng.uniform(0.2, 1.0) * ramp)
    return 1.0 - (1.0 - picture) * (1.0 - veil)


def _shade(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Lightens and darkens parts of the picture."""
    return picture * np.exp(strength * rng.uniform(0.2, 1.0) * (_smooth(rng, picture.shape) - 0.6))


def _structure(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Thickens and thins what the rays pass through, at the scale of a jaw or a sinus."""
    field = _smooth(rng, picture.shape, int(rng.integers(5, 13)))
    return picture * np.exp(strength * rng.uniform(0.2, 0.9) * (field - 0.5))


def _local_contrast(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Evens out thick and thin parts: an unsharp mask, or an adaptive histogram."""
    if rng.random() < 0.7:
        # Strong ones leave a dark seam in front of bone, and bright noses and lips beyond it.
        radius = np.exp(rng.uniform(np.log(0.015), np.log(0.1))) * len(picture)
        return picture + strength * rng.uniform(0.2, 3.0) * (picture - _blurred(picture, radius))
    tiles = int(rng.integers(2, 9))
    equaliser = cv2.createCLAHE(rng.uniform(1.0, 2.5), (tiles, tiles))
    evened = np.float32(equaliser.apply(np.uint8(np.round(255 * picture)))) / 255.0
    return picture + strength * rng.uniform(0.2, 1.0) * (evened - picture)


def _blur(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Blurs by the focal spot, or by a movement."""
    length = strength * len(picture)
    if rng.random() < 0.6:
        return _blurred(picture, rng.uniform(0.001, 0.010) * length)
    points = max(2, round(rng.uniform(0.008, 0.030) * length))
    kernel = np.zeros((points, points), np.float32)
    middle = (points - 1) / 2
    angle = rng.uniform(0.0, np.pi)
    reach = middle * np.array([np.cos(angle), np.sin(angle)])
    ends = np.round(middle + np.array([-reach, reach])).astype(int)
    cv2.line(kernel, ends[0].tolist(), ends[1].tolist(), 1.0)
    return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def _noise(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Adds quantum noise, coarser or finer, and dust."""
    grain = rng.standard_normal(picture.shape).astype(np.float32)
    if rng.random() < 0.5:
        grain = _blurred(grain, rng.uniform(0.5, 1.2))
        grain /= grain.std()
    picture = picture + strength * rng.uniform(0.0, 0.04) * grain
    if rng.random() < 0.3:
        specks = rng.random(picture.shape) < strength * rng.uniform(0.0, 0.002)
        picture = np.where(specks, rng.choice([0.0, 1.0]), picture)
    return picture


# What lies on the film.


def _objects(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Adds up to three objects."""
    painters = (_film_marks, _ruler, _ear_rod, _letters, _lines, _apron, _filter)
    for painter in rng.permutation(len(painters))[: rng.integers(1, 4)]:
        film = np.zeros(picture.shape, np.uint8)
        painters[painter](film, rng)
        layer = np.float32(film) / 255.0
        picture = np.maximum(picture, layer) if rng.random() < 0.7 else picture + 0.6 * layer
    return picture


def _film_marks(film: Film, rng: np.random.Generator) -> None:
    side = len(film)
    for edge in rng.permutation(4)[: rng.integers(1, 3)]:
        strip = np.rot90(film, edge)  # a view, whose top is an edge
        height = max(1, round(rng.uniform(0.015, 0.04) * side))
        width = max(1, round(rng.uniform(0.03, 0.08) * side))
        for start in rng.integers(0, side, rng.integers(1, 5)):
            strip[:height, start : start + width] = 255


def _ruler(film: Film, rng: np.random.Generator) -> None:
    side = len(film)
    left = rng.uniform(0.62, 0.97) if rng.random() < 0.8 else rng.uniform(0.03, 0.3)
    width = rng.uniform(0.008, 0.035)
    top, bottom = sorted(rng.uniform(-0.1, 0.6, 2))
    _box(film, (left, top, left + width, bottom + 0.15), int(rng.integers(64, 230)))
    for mark in np.arange(max(top, 0.0), bottom + 0.15, rng.uniform(0.02, 0.06)):
        row = round(mark * side)
        film[row : row + 1, round(left * side) : round((left + width) * side)] = 255 * (
            rng.random() < 0.5
        )


def _ear_rod(film: Film, rng: np.random.Generator) -> None:
    centre = _fixed(rng.uniform((0.15, 0.35), (0.55, 0.65)), film)
    radius = rng.uniform(0.008, 0.03)
    thick = max(1, round(rng.uniform(0.004, 0.015) * len(film)))
    thickness = -1 if rng.random() < 0.4 else thick
    bright = int(rng.integers(128, 256))
    cv2.circle(film, centre, _fixed([radius], film)[0], bright, thickness, cv2.LINE_AA, 4)


def _letters(film: Film, rng: np.random.Generator) -> None:
    words = ("R", "L", "RECHTS", "L 12", "PA", "150", "2019-04")
    place = rng.uniform(0.02, 0.95, 2)
    place[rng.integers(2)] = rng.choice([0.06, 0.95])  # near an edge
    cv2.putText(
        film,
        words[rng.integers(len(words))],
        np.round(place * len(film)).astype(int).tolist(),
        cv2.FONT_HERSHEY_SIMPLEX,
        rng.uniform(0.001, 0.004) * len(film),
        int(rng.integers(153, 256)),
        max(1, round(rng.uniform(0.002, 0.01) * len(film))),
        cv2.LINE_AA,
    )


def _apron(film: Film, rng: np.random.Generator) -> None:
    """A lead apron, or a shoulder, at the lower left or right."""
    centre = _fixed((rng.choice([0.0, 0.15, 0.85, 1.0]), rng.uniform(0.95, 1.15)), film)
    axes = _fixed(rng.uniform((0.1, 0.05), (0.5, 0.25)), film)
    turn = rng.uniform(-30.0, 30.0)
    bright = int(rng.integers(128, 256))
    cv2.ellipse(film, centre, axes, turn, 0, 360, bright, -1, cv2.LINE_AA, 4)


def _filter(film: Film, rng: np.random.Generator) -> None:
    """A wedge or grid that brightens a strip from top to bottom."""
    left = rng.uniform(0.0, 0.9)
    _box(film, (left, 0.0, left + rng.uniform(0.05, 0.4), 1.0), int(rng.integers(10, 50)))


def _lines(film: Film, rng: np.random.Generator) -> None:
    """Lines of a grid, one way or both."""
    step = rng.uniform(0.02, 0.15) * len(film)
    bright = rng.integers(13, 77)
    places = np.arange(rng.uniform(0, step), len(film), step).astype(int)
    film[:, places] = bright
    if rng.random() < 0.5:
        film[places] = bright


def _edges(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Cuts the picture off at some sides, as collimation and film edges do: vault, occiput or neck.

    The face behind is not cut.
    """
    margins = rng.uniform(0.0, strength * 0.18, 4) * (rng.random(4) < 0.6)
    left, top, right, bottom = margins * np.array([1.0, 0.8, 1.0, 0.8])
    open_film = np.zeros(picture.shape, np.float32)
    corners = np.array([[left, top], [1 - right, top], [1 - right, 1 - bottom], [left, 1 - bottom]])
    turn = np.deg2rad(rng.normal(0.0, 0.7))
    corners = 0.5 + (corners - 0.5) @ np.array(
        [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    )
    cv2.fillConvexPoly(open_film, np.int32(np.round(corners * len(picture) * 16)), 1.0, 16, 4)
    if rng.random() < 0.15:  # a round collimator
        x, y = _axes(picture.shape)
        open_film *= np.hypot(x, y) < rng.uniform(1.0, 1.3)
    beyond = rng.uniform(0.0, 1.0) if rng.random() < 0.25 else 0.0
    return beyond + (picture - beyond) * _blurred(open_film, rng.uniform(0.2, 1.5))


# In the order in which they happen, with their probabilities at full strength.
_CHANGES = (
    (_rest, 0.6),
    (_structure, 0.5),
    (_shade, 0.5),
    (_local_contrast, 0.7),
    (_curve, 0.9),
    (_fog, 0.6),
    (_objects, 0.7),
    (_blur, 0.4),
    (_noise, 0.6),
    (_edges, 0.7),
)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], knots: int = 3) -> Picture:
    """Returns a smooth random field from 0 to 1, with that many knots along each side."""
    values = np.float32(rng.random((knots, knots)))
    field = cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0.0, 1.0)


def _axes(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of pixels, from -1 to 1."""
    y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    return x, y


def _blurred(picture: Picture, sigma: float) -> Picture:
    return cv2.GaussianBlur(picture, (0, 0), max(sigma, 0.1), borderType=cv2.BORDER_REPLICATE)


def _fixed(values, film: Film) -> list[int]:
    """Returns fractions of the side in sixteenths of a pixel, as OpenCV's `shift` takes them."""
    return np.round(np.asarray(values) * len(film) * 16).astype(int).tolist()


def _box(film: Film, corners: tuple[float, ...], bright: int) -> None:
    """Fills a box: left, top, right, bottom as fractions of the side."""
    left, top, right, bottom = (max(0, round(c * len(film))) for c in corners)
    film[top : max(bottom, top + 1), left : max(right, left + 1)] = bright
