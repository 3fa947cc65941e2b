"""Reading printed text in a grey picture, by the RapidOCR library and the PP-OCR networks in its package."""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

_LETTER_WIDTH = 72  # pixels of a lone letter's picture, 48 pixels high; a line's has 320


class Line(NamedTuple):
    """A line of text.

    Attributes:
      corners: `(4, 2)`, columns and rows of its four corners in pixels: upper left, upper right, lower right, lower left.
      words: what it says.
      score: how sure the recogniser is, in [0, 1].
    """

    corners: Float[Array, "4 2"]
    words: str
    score: float

    @property
    def height(self) -> float:
        """Pixels across the line."""
        return float(min(np.linalg.norm(self.corners[0] - self.corners[i]) for i in (1, 3)))


def read_lines(picture: UInt8[Array, "h w"]) -> list[Line]:
    """Returns all that may be lines of text in a picture, those upside down and on their side too."""
    found = _reader(cv2.getNumThreads(), line=True)(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    if found.boxes is None:
        return []
    rows = zip(found.boxes, found.txts, found.scores, strict=True)
    return [Line(_lying(np.float64(box)), words, float(score)) for box, words, score in rows]


def _lying(corners: Float[Array, "4 2"]) -> Float[Array, "4 2"]:
    """The corners in the order of a line that is read from left to right; the library turns tall boxes by a quarter."""
    width, height = (np.linalg.norm(corners[0] - corners[i]) for i in (1, 3))
    return np.roll(corners, -1, axis=0) if height >= 1.5 * width else corners


def read_line(picture: UInt8[Array, "h w"], corners: Float[Array, "4 2"]) -> tuple[str, float]:
    """Returns what stands between four corners, as Line has them, and how sure that is; empty words for nothing."""
    size = np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[3] - corners[0])
    width, height = (max(int(length), 1) for length in size)
    straight = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    turn = cv2.getPerspectiveTransform(np.float32(corners), straight)
    crop = cv2.warpPerspective(picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    found = _reader(cv2.getNumThreads(), line=False)(cv2.cvtColor(crop, cv2.COLOR_GRAY2BGR))
    return (found.txts[0], float(found.scores[0])) if found.txts else ("", 0.0)


def read_letter(picture: UInt8[Array, "h w"]) -> tuple[str, float]:
    """Returns what a picture of one letter shows and how sure that is, in [0, 1]; empty words for nothing."""
    found = _reader(cv2.getNumThreads(), line=False)(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    return (found.txts[0], float(found.scores[0])) if found.txts else ("", 0.0)


@functools.cache
def _reader(threads: int, line: bool):
    """The library's pipeline, with as many threads as OpenCV has."""
    import rapidocr  # takes half a second

    settings = {
        "Global.log_level": "critical",
        "Global.text_score": 0.0,
        "Global.use_det": line,
        "Global.use_cls": line,
        "Global.use_vertical_padding": line,
        # The picture is scaled by the caller.
        "Global.min_side_len": 1,
        "Global.max_side_len": 8192,
        "Det.limit_type": "max",
        "Det.limit_side_len": 8192,
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
    }
    if not line:
        settings["Rec.rec_img_shape"] = [3, 48, _LETTER_WIDTH]
    return rapidocr.RapidOCR(params=settings)
