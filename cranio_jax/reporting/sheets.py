"""A sheet of one X-ray's reconstructions: the X-ray, the faces, their mean and their spread."""

import textwrap

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from cranio_jax.reporting.notice import NOTICE

_TILE = 256  # pixels; the least side of a picture
_GAP = 16
_CAPTION = 26
_COLUMNS = 4
_INK = (40, 44, 52)
_PAPER = (255, 255, 255)
_LEGEND = (
    "The spread is the standard deviation of each pixel over the samples. White is a quarter of "
    "the range or more: there the X-ray and the profile leave most open."
)

Picture = UInt8[np.ndarray, "h w 3"]


def heat(spread: Float[np.ndarray, "h w"]) -> Picture:
    """Returns a spread in [0, 1] as black-red-yellow-white; white is a quarter of the range."""
    level = np.clip(spread * 4.0, 0.0, 1.0)[..., None]
    colours = level * np.array([3.0, 3.0, 3.0]) - np.array([0.0, 1.0, 2.0])
    return np.round(255 * np.clip(colours, 0, 1)).astype(np.uint8)


def sheet(
    title: str, xray: Picture, mean: Picture, spread: Picture, faces: list[Picture]
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a sheet with captions: X-ray, mean, spread and legend, then the faces below.

    Small pictures are enlarged.

    Args:
      title: the profile of the faces.
      xray, mean, spread, faces: pictures of one size.
    """
    side = max(_TILE, xray.shape[0])
    first = {"X-ray": xray, f"mean of {len(faces)}": mean, "spread": spread}
    samples = {f"sample {k + 1}": face for k, face in enumerate(faces)}
    rows = 1 + -(-len(samples) // _COLUMNS)
    step = side + _CAPTION + _GAP
    width = _COLUMNS * (side + _GAP) + _GAP
    page = Image.new("RGB", (width, 2 * _GAP + _CAPTION + rows * step), _PAPER)
    draw = ImageDraw.Draw(page)
    large, small = ImageFont.load_default(19), ImageFont.load_default(15)
    draw.text((_GAP, _GAP - 4), title, _INK, large)

    def place(number: int, name: str, picture: Picture) -> None:
        row, column = divmod(number, _COLUMNS)
        left, top = _GAP + column * (side + _GAP), _GAP + _CAPTION + row * step
        tile = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        page.paste(tile, (left, top))
        draw.text((left, top + side + 4), name, _INK, small)

    for number, (name, picture) in enumerate(first.items()):
        place(number, name, picture)
    for number, (name, picture) in enumerate(samples.items(), _COLUMNS):
        place(number, name, picture)

    # The legend fills the fourth place of the first row.
    left, top = _GAP + 3 * (side + _GAP), _GAP + _CAPTION
    ramp = np.broadcast_to(np.linspace(0.0, 0.25, side), (18, side))
    page.paste(Image.fromarray(heat(ramp)), (left, top))
    draw.text((left, top + 22), "0", _INK, small)
    draw.text((left + side, top + 22), "1/4", _INK, small, anchor="ra")
    words = textwrap.wrap(_LEGEND, side // 7) + [""] + textwrap.wrap(NOTICE, side // 7)
    draw.multiline_text((left, top + 56), "\n".join(words), _INK, small, spacing=5)
    return np.asarray(page)
