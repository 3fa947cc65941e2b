"""Augmentation: moving an X-ray with its face, and changing its exposure."""

from collections.abc import Iterable
from typing import Any

import cv2
import ml_collections
import numpy as np
from jaxtyping import Float, Num, UInt8

from cranio_jax.data import radiographs

# The settings of augmentations that move the face, and a number that rises when they move it in
# another way.
GEOMETRY = ("flip", "rotation", "bend", "skin", "radiograph")
MOVES = 5
_MASKS = ("head_mask", "xray_mask")

# Control points per side: those of the bend are about one facial feature apart, those of the skin
# from a nose to half a lip. Coarse ones alone taught the outline network to smooth lips away, fine
# ones alone to forget what a nose is. With fewer than _EVEN, bumps are larger than `skin` says.
_KNOTS = 4
_SKIN_KNOTS = (7, 20)
_EVEN = 10.5
# Probability that a dry skull from the side is shown as a living head whose soft tissue is hidden.
_HIDDEN = 0.6
# How deep the skin's displacement goes, as a fraction of the side.
_SKIN_DEPTH = 0.03
# Iterations of the bend's inversion.
_ROUNDS = 8
# How much the bend shears and stretches the whole head, in units of `bend`. Jaws lie farther
# forward or back by it, and faces are longer or shorter.
_SHEAR = 3.5


def displacement(
    rng: np.random.Generator, side: int, bend: float, mirrored: bool
) -> Float[np.ndarray, "side side 2"]:
    """Returns a smooth random displacement (x, y) in pixels whose mean is zero.

    It is the sum of one that changes from feature to feature, and of one in proportion to the
    height, which shears the head to the front or back and stretches it.

    Args:
      rng: the source of random numbers.
      side: of the picture, in pixels.
      bend: the standard deviation of the displacement, as a fraction of the side.
      mirrored: True makes both sides of the middle column alike, as frontal faces are.
    """
    local = _smooth(rng, side, _KNOTS, mirrored)
    shear = _SHEAR * rng.standard_normal(2).astype(np.float32)
    if mirrored:
        shear[0] = 0.0
    height = np.linspace(-0.5, 0.5, side, dtype=np.float32)[:, None, None]
    return bend * side * (local + shear * height)


def skin_displacement(
    rng: np.random.Generator, mask: Num[np.ndarray, "side side 1"], skin: float, mirrored: bool
) -> Float[np.ndarray, "side side 2"]:
    """Returns a fine random displacement (x, y) in pixels at the outline of a head.

    It falls to a quarter at the depth of facial bones, so that soft tissue is thicker or thinner.
    Its bumps are as large as half a lip to a nose; the largest differ most.

    Args:
      rng: the source of random numbers.
      mask: not 0 at the head.
      skin: the standard deviation of the displacement, as a fraction of the side; half
        as much again for the largest bumps.
      mirrored: True makes both sides of the middle column alike, as frontal faces are.
    """
    side = len(mask)
    inside = (mask[..., 0] > 0).astype(np.float32)
    blurred = cv2.GaussianBlur(inside, None, _SKIN_DEPTH * side, borderType=cv2.BORDER_REPLICATE)
    weight = 4 * blurred * (1 - blurred)
    knots = int(rng.integers(*_SKIN_KNOTS, endpoint=True))
    size = skin * side * max(1.0, _EVEN / knots)  # noses differ more than lips
    return size * weight[..., None] * _smooth(rng, side, knots, mirrored)


def _smooth(
    rng: np.random.Generator, side: int, knots: int, mirrored: bool
) -> Float[np.ndarray, "side side 2"]:
    """Returns smooth random values of mean 0, with `knots` control points a side."""
    values = rng.standard_normal((knots, knots, 2)).astype(np.float32)
    if mirrored:
        values = (values + values[:, ::-1] * np.array([-1, 1], np.float32)) / np.sqrt(np.float32(2))
    centred = values - values.mean((0, 1))
    return cv2.resize(centred, (side, side), interpolation=cv2.INTER_CUBIC)


def move(
    example: dict[str, Any], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """Flips, turns, bends and moves the (square) X-ray, face and landmarks of an example alike.

    Masks move with them. Fields that the example lacks are skipped. The new field `mirrored` says
    whether it was flipped. Flip and rotation are the paper's; the others are ours. The bend makes a
    new person from an X-ray and a face, so that few people suffice. It is left out where the two
    have different views, since they are not in register then. So is `skin`, which needs the face's
    mask, or else the X-ray's: by the bend alone, bone tells how thick soft tissue is, and nobody
    looks at the tissue itself. The skin of a dry skull stays, since bone alone tells where it was.
    `radiograph` frames both as X-rays are framed, and tilts them further.
    """
    names = ("xray", "face", *_MASKS)
    images = {name: example[name] for name in names if name in example}
    landmarks = example.get("landmarks")
    side = next(iter(images.values())).shape[1]

    # Flip.
    mirrored = rng.random() < settings.flip
    if mirrored:
        images = {name: image[:, ::-1] for name, image in images.items()}
        if landmarks is not None:
            mirrored_places = landmarks[[1, 0, 2, 4, 3]] * np.array([-1, 1], np.float32)
            landmarks = mirrored_places + np.array([side - 1, 0], np.float32)

    # Rotate about the middle, counterclockwise, with rows that run down; then bend, zoom and shift.
    in_register = example.get("xray_view") == example.get("face_view")
    bend = settings.bend if in_register else 0.0
    mask = images.get("head_mask", images.get("xray_mask"))
    skin = settings.skin if in_register else 0.0
    if mask is None or (skin and "xray" in images and radiographs.is_dry(images["xray"], mask)):
        skin = 0.0
    framing = radiographs.Framing(1.0, np.zeros(2, np.float32))
    if strength := settings.radiograph:
        framing = radiographs.framing(rng, strength, example.get("xray_view", ""), mirrored)
    if settings.rotation or bend or skin or strength:
        most = max(settings.rotation, strength * radiographs.TILT)
        angle = np.deg2rad(rng.uniform(-most, most))
        middle = np.float32((side - 1) / 2)
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]], np.float32)
        push = np.zeros((1, 1, 2), np.float32)
        frontal = example.get("face_view") == "frontal"
        if bend:
            push = displacement(rng, side, bend, mirrored=frontal)
        columns_rows = np.moveaxis(np.indices((side, side), dtype=np.float32)[::-1], 0, -1)
        shifted = middle + side * framing.shift
        source = (columns_rows - shifted) @ (turn / framing.zoom).T + middle + push  # of each pixel
        if skin and mask is not None:
            moved_mask = _sampled(mask, source, (0,), cv2.INTER_NEAREST)
            moved_skin = skin_displacement(rng, moved_mask, skin, mirrored=frontal)
            push, source = push + moved_skin, source + moved_skin
        if strength:  # the neck goes on below the picture
            source[..., 1] = np.minimum(source[..., 1], side - 1)
        images = {
            name: _sampled(
                image,
                source,
                fill=image[0, 0] if name == "face" else (0,),
                between=cv2.INTER_NEAREST if name in _MASKS else cv2.INTER_LINEAR,
            )
            for name, image in images.items()
        }
        if landmarks is not None:
            rounds = _ROUNDS if bend or skin else 1
            landmarks = _moved_landmarks(
                landmarks - middle, turn * framing.zoom, shifted, push, rounds
            )

    moved = example | {name: np.ascontiguousarray(image) for name, image in images.items()}
    moved["mirrored"] = mirrored
    return moved if landmarks is None else moved | {"landmarks": landmarks}


def _moved_landmarks(
    landmarks: Float[np.ndarray, "n 2"],
    turn: Float[np.ndarray, "2 2"],
    shifted: Float[np.ndarray, "2"],
    push: Float[np.ndarray, "h w 2"],
    rounds: int,
) -> Float[np.ndarray, "n 2"]:
    """Returns the positions that landmarks, counted from the middle, move to.

    They are found by fixed-point iteration, which a smooth displacement makes quick.
    """
    places = landmarks + shifted
    for _ in range(rounds):
        pushed = cv2.remap(
            push, places[:, None], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )[:, 0]
        places = (landmarks - pushed) @ turn + shifted
    return places


def _sampled(
    image: np.ndarray, source: Float[np.ndarray, "h w 2"], fill: Iterable[int], between: int
) -> np.ndarray:
    """Samples an image at the places (x, y) of `source`; `fill` outside of it.

    `between` is OpenCV's way to interpolate.
    """
    edge = [float(value) for value in fill]
    return cv2.remap(
        image, source, None, between, borderMode=cv2.BORDER_CONSTANT, borderValue=edge
    ).reshape(image.shape)


def expose(
    example: dict[str, Any], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """Changes the exposure of an example's X-ray and erases a part of it, as the paper does.

    The paper does not say which picture this applies to. Changing the face would teach the model
    to paint at random exposures, so we change the X-ray alone. `radiograph` varies it further.
    """
    xray = example["xray"]
    if settings.radiograph:
        xray = _as_another_film(example, rng, settings.radiograph)

    # Contrast and brightness.
    exposed = xray.astype(np.float32)
    contrast = 1.0 + rng.uniform(-settings.contrast, settings.contrast)
    brightness = 255.0 * rng.uniform(-settings.brightness, settings.brightness)
    exposed = (exposed - exposed.mean()) * contrast + exposed.mean() + brightness
    exposed = np.clip(np.round(exposed), 0, 255).astype(np.uint8)

    # Erase a rectangle.
    if settings.erase:
        height, width = exposed.shape[:2]
        area = rng.uniform(0, settings.erase) * height * width
        aspect = np.exp(rng.uniform(-1.0, 1.0))
        tall = min(height, round((area * aspect) ** 0.5))
        wide = min(width, round((area / aspect) ** 0.5))
        top = rng.integers(0, height - tall + 1)
        left = rng.integers(0, width - wide + 1)
        exposed[top : top + tall, left : left + wide] = rng.integers(0, 256)
    return example | {"xray": exposed}


def _as_another_film(
    example: dict[str, Any], rng: np.random.Generator, strength: float
) -> UInt8[np.ndarray, "h w 1"]:
    """Returns an example's X-ray, varied. With its mask, soft tissue is shown or hidden too."""
    xray, mask = example["xray"], example.get("xray_mask")
    if mask is None:
        return radiographs.vary(xray, rng, strength)
    is_dry = example.get("xray_view") == "lateral" and radiographs.is_dry(xray, mask)
    if is_dry and rng.random() < _HIDDEN * strength:
        mirrored = example.get("mirrored", False)
        return radiographs.hide_soft_tissue(xray, mask, rng, strength, mirrored)
    return radiographs.vary(radiographs.show_thin_tissue(xray, mask, rng, strength), rng, strength)


def augment(
    example: dict[str, Any], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """Returns an example with all of the paper's augmentations."""
    return expose(move(example, rng, settings), rng, settings)
