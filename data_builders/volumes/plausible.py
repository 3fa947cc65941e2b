"""Checks that a volume is a CT of a head in Hounsfield units.

They use averages over about 4 mm, in which noise is small.
"""

import itertools

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy import ndimage

from data_builders.errors import UnreadableError
from data_builders.volumes.scan import AIR

HIGHEST = 3071.0  # HU, what 12 bits hold; metal is denser
BONE = 300.0  # HU, and denser
BODY = -300.0  # HU, and denser
COARSE = 4.0  # mm
BELIEVED = 70_000.0  # larger numbers mark voxels without a value
FEW = 1e-3  # of the head's voxels, which may have no value
NO_BONE = "holds hardly anything as dense as bone; are these Hounsfield units?"


def block_counts(spacing: Float[Array, "3"], voxel: float) -> Array:
    """Returns how many voxels along each axis fit into a cube of `voxel` mm, at least 1."""
    return np.maximum(1, np.floor(voxel / spacing + 1e-3)).astype(int)


def block_means(values: Float[Array, "i j k"], blocks: Array) -> Float[Array, "l m n"]:
    """Returns means over whole blocks; incomplete blocks at the far ends are dropped."""
    whole = values[tuple(slice(n // b * b) for n, b in zip(values.shape, blocks, strict=True))]
    shape = [part for n, b in zip(whole.shape, blocks, strict=True) for part in (n // b, b)]
    return whole if (blocks == 1).all() else whole.reshape(shape).mean((1, 3, 5))


def hounsfield(
    values: Float[Array, "i j k"], spacing: Float[Array, "3"], remarks: list[str]
) -> Float[Array, "i j k"]:
    """Returns CT numbers in HU from AIR to HIGHEST. It may change `values`.

    Voxels without a value become air. Raises UnreadableError for too many of them, and for numbers
    that are not HU.
    """
    _fill_holes(values, remarks)
    # The clipping keeps the shape of a volume whose voxel sizes are wrong.
    blocks = np.clip(np.array(values.shape) // 24, 1, block_counts(spacing, COARSE))
    values = _unmasked(values, blocks, remarks)
    coarse = block_means(values, blocks)
    if not _is_hounsfield(coarse):
        signed = _signed(values, blocks, remarks)
        if signed is None:
            raise UnreadableError(_not_hounsfield(coarse))
        values = signed
    return np.clip(values, AIR, HIGHEST, out=values)


def _fill_holes(values: Float[Array, "i j k"], remarks: list[str]) -> None:
    """Sets voxels without a value to air. Raises UnreadableError where the head lacks many."""
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(values) <= BELIEVED)
    count = int(bad.sum())
    if not count:
        return

    # Whole slices.
    body = ~bad & (values > BODY)
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        inside = np.flatnonzero(body.any(others))
        empty = np.flatnonzero(bad.all(others))
        if len(inside) and ((empty > inside[0]) & (empty < inside[-1])).any():
            raise UnreadableError(
                f"holds no numbers (NaN or infinite) in {len(empty)} whole slices"
            )

    # Voxels inside of the head: air and voxels without a value are outside of it where they reach
    # the volume's faces.
    labels, _ = ndimage.label(~body)
    inner = int((bad & ~_reaching(labels)).sum())
    if inner > max(1, FEW * body.sum()) or not body.any():
        raise UnreadableError(
            f"holds no numbers (NaN or infinite) at {inner or count} voxels inside of the head"
        )

    # Fill them.
    values[bad] = AIR
    voxels = "1 voxel holds" if count == 1 else f"{count} voxels hold"
    remarks.append(f"{voxels} no number (NaN or infinite); set to air")


def _fits(coarse: Array, offset: float) -> bool:
    """Returns True if values look like CT numbers with `offset` added.

    There is air and soft tissue, and most soft voxels lie in the narrow range of tissue.
    """
    air = float(np.mean(coarse - offset < -850))
    tissue = float(np.mean((coarse > offset - 30) & (coarse < offset + 110)))
    soft = float(np.mean((coarse > offset - 500) & (coarse < offset + BONE)))
    return air > 0.02 and tissue > 0.02 and tissue / max(soft, 1e-9) > 0.4


def _is_hounsfield(coarse: Array) -> bool:
    """Returns True if there is air, and a narrow peak of soft tissue around -60 to 100 HU."""
    return any(_fits(coarse, offset) for offset in range(-100, 61, 20))


def _is_bony(coarse: Array) -> bool:
    """Returns True if values look like CT numbers that include bone."""
    return _is_hounsfield(coarse) and bool(np.mean(coarse > BONE) > 1e-3)


def _signed(
    values: Float[Array, "i j k"], blocks: Array, remarks: list[str]
) -> Float[Array, "i j k"] | None:
    """Returns HU whose negative numbers had wrapped to above 32767, None for other values."""
    if values.min() < 0 or not 32767 < values.max() <= 65535:
        return None
    signed = np.where(values > 32767, values - 65536, values)
    if not _is_bony(block_means(signed, blocks)):
        return None
    remarks.append("negative CT numbers were stored as values above 32767; 65536 was subtracted")
    return signed


def _unmasked(
    values: Float[Array, "i j k"], blocks: Array, remarks: list[str]
) -> Float[Array, "i j k"]:
    """Returns HU with air where a program masked the surroundings with another number.

    Other values are returned unchanged.
    """
    corners = values[np.ix_([0, -1], [0, -1], [0, -1])]
    level = corners[0, 0, 0]
    if (corners != level).any() or not -850 < level <= HIGHEST:
        return values
    labels, _ = ndimage.label(values == level)
    masked = np.where(_reaching(labels), np.float32(AIR), values)
    if not _is_bony(block_means(masked, blocks)):
        return values
    remarks.append(f"the surroundings were masked with {level:g}; set to air")
    return masked


def _reaching(labels: Array) -> Bool[Array, "i j k"]:
    """Returns the labelled voxels of parts that reach the volume's faces."""
    ends = [labels.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
    return np.isin(labels, np.setdiff1d(np.concatenate(ends), 0))


def _not_hounsfield(coarse: Array) -> str:
    """Returns a message on values that are not HU: their likely origin, and what to do."""
    low = float(coarse.min())
    high = float(coarse.max())
    offset = _offset(coarse)
    if offset is not None:
        words = f"they look like CT numbers with {offset:g} added. "
        words += f"State hu_offset={-offset:g} in the list"
    elif low == high:
        words = "all are the same"
    elif low >= 0 and high <= 1.01:
        words = "they look like values scaled to 0 to 1. Export the CT numbers themselves"
    elif low >= 0 and high <= 256:
        words = "they look like grey values of 0 to 255. Export the CT numbers themselves"
    else:
        words = "they look like MR or a phantom: no air near -1000 around soft tissue near 40"
    if np.mean(coarse > BONE) < 1e-3:
        return f"{NO_BONE} Values run from {low:.4g} to {high:.4g}; {words}"
    return f"does not hold Hounsfield units: values run from {low:.4g} to {high:.4g}; {words}"


def _offset(coarse: Array) -> float | None:
    """Returns the number that was added to all CT numbers, None if none fits.

    It is estimated from the peaks of air and of soft tissue.
    """
    # The histogram's best match, in steps of 20.
    finest = 20.0
    places = np.arange(coarse.min() - 40, coarse.max() - 40, finest)
    if not 1 < len(places) < 10_000:
        return None
    ordered = np.sort(coarse.ravel())
    tissue_count, air_count = (
        np.diff(np.searchsorted(ordered, places[:, None] + ends)).ravel()
        for ends in ((-30, 110), (-1150, -850))
    )
    best = int(np.minimum(tissue_count, air_count).argmax())

    # The peak of soft tissue lies at 40.
    tissue = coarse[np.abs(coarse - places[best] - 40) < 70]
    if not len(tissue):
        return None
    offset = float(np.median(tissue)) - 40
    for usual in (1000.0, 1024.0, 32768.0):
        if abs(offset - usual) < 13:
            offset = usual
    return round(offset) if _fits(coarse, offset) else None


def check_size(extents: Float[Array, "3"]) -> None:
    """Raises UnreadableError where a volume is much smaller or larger than a scan of a person."""
    longest = float(extents.max())
    if longest < 80:
        raise UnreadableError(
            f"is {longest:.3g} mm long; a head is expected. Are its voxel sizes in centimetres?"
        )
    if longest > 2500:
        raise UnreadableError(
            f"is {longest:.0f} mm long; a head is expected. Are its voxel sizes in micrometres?"
        )


def check_head(head: Float[Array, "x y z"], voxel: float) -> list[str]:
    """Returns remarks on a head in HU without its surroundings.

    Args:
      head: on RAS+ axes, in cubes.
      voxel: mm along each side of a cube.

    Raises:
      UnreadableError: the top 60 mm are not a closed skull of a head's width and length, or a large
        part is cut off.
    """
    # Bone and height.
    if (head > BONE).sum() * voxel**3 < 50_000:  # a skull has some 500 cm3 of bone
        raise UnreadableError(NO_BONE)
    levels = np.flatnonzero((head > BODY).any((0, 1)))
    height = len(levels) * voxel
    if height > 500:
        raise UnreadableError(f"is {height:.0f} mm tall, more than a head; crop it to the head")

    # The top.
    top = range(levels[-1], max(levels[0], levels[-1] - round(60 / voxel)), -1)
    sections = [head[..., k] for k in top if _area(head[..., k], voxel) > 60]
    if not sections:
        raise UnreadableError("is not a head: nothing at its top is as wide as a skull")
    width, length = np.max([_extent(section, voxel) for section in sections], axis=0)
    closed = float(np.median([_closed(section) for section in sections]))
    ratio = float(np.median([np.divide(*_extent(section, voxel)) for section in sections]))
    size = f"its top is {width:.0f} mm wide and {length:.0f} mm long"
    if width > 225 or length > 280:
        raise UnreadableError(
            f"is not a head: {size}. It looks like a trunk, or its voxel sizes are wrong"
        )
    if not 0.58 <= ratio <= 1.2:
        raise UnreadableError(
            f"is not a whole head: {size}. It looks cut in half, or lies on its side"
        )
    if width < 85 or length < 95:
        raise UnreadableError(f"is not a head: {size}. Are its voxel sizes wrong, or is it a limb?")
    if closed < 0.7:
        raise UnreadableError(
            f"is not a head: bone closes {100 * closed:.0f} % of the outline of its top. "
            "It looks like another part of the body, a cut head, or one that lies upside down"
        )

    # The rest.
    below = range(levels[-1], max(levels[0], levels[-1] - round(180 / voxel)), -1)
    longest = max(_extent(head[..., k], voxel)[1] for k in below)
    if height < 0.62 * longest:
        raise UnreadableError(f"is not a whole head: only {height:.0f} mm of it are there; {size}")
    return _cut_off(head, voxel, height=height, length=longest)


def _cut_off(head: Float[Array, "x y z"], voxel: float, height: float, length: float) -> list[str]:
    """Returns remarks on sides that touch the volume's faces.

    Raises UnreadableError for a large one.
    """
    # The left, right, back and front.
    body = head > BODY
    top = int(np.flatnonzero(body.any((0, 1)))[-1])
    above = body[..., max(0, top - round(180 / voxel)) :]
    remarks = []
    sides = (("left", "right"), ("back", "front"))
    for (axis, names), end in itertools.product(enumerate(sides), (0, 1)):
        area = float(above.take(-end, axis).sum()) * voxel**2 / 100
        if area > 40:
            raise UnreadableError(
                f"is not a whole head: it is cut at the {names[end]}, over {area:.0f} cm2"
            )
        if area > 2:
            remarks.append(f"the scan cuts the head at the {names[end]}, over {area:.0f} cm2")

    # The top and the bottom.
    if float(body[..., -1].sum()) * voxel**2 > 1000:
        remarks.append("the scan cuts the head at the top: its vault is incomplete")
    elif height < 0.9 * length:
        remarks.append(
            f"the scan ends {height:.0f} mm below the crown: the lower face may be missing"
        )
    return remarks


def _area(section: Float[Array, "x y"], voxel: float) -> float:
    """Returns the area of the body in a section, in square centimetres."""
    return float((section > BODY).sum()) * voxel**2 / 100


def _extent(section: Float[Array, "x y"], voxel: float) -> Float[Array, "2"]:
    """Returns the width and length of the body in a section, in mm."""
    places = np.argwhere(section > BODY)
    return (np.ptp(places, axis=0) + 1) * voxel if len(places) else np.zeros(2)


def _closed(section: Float[Array, "x y"]) -> float:
    """Returns the share of directions from the middle with bone in the body's outer half.

    The share is in [0, 1].
    """
    body: Bool[Array, "x y"] = section > BODY
    middle = np.argwhere(body).mean(0)
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    reach = np.arange(0, np.hypot(*section.shape), 0.5)
    rays = middle[:, None, None] + np.stack([np.cos(angles), np.sin(angles)])[..., None] * reach
    values = ndimage.map_coordinates(section, rays, order=0, mode="constant", cval=AIR)
    body_end, bone_end = (
        np.where(values > level, reach, -1.0).max(1) for level in (BODY, BONE - 100)
    )
    return float(np.mean(bone_end > 0.5 * body_end))
