"""Reading printed text in a grey picture, by the RapidOCR library and its PP-OCR networks."""

import functools
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

_LETTER_WIDTH = 72  # pixels of a lone letter's picture, 48 pixels high; a line's has 320


class Line(NamedTuple):
    """A line of text.

    Attributes:
      corners: `(4, 2)`, columns and rows of its four corners in pixels: upper left, upper right,
        lower right, lower left.
      words: the text.
      score: the recogniser's confidence in [0, 1].
    """

    corners: Float[Array, "4 2"]
    words: str
    score: float

    @property
    def height(self) -> float:
        """Pixels across the line."""
        return float(min(np.linalg.norm(self.corners[0] - self.corners[i]) for i in (1, 3)))


def read_lines(picture: UInt8[Array, "h w"]) -> list[Line]:
    """Returns all candidates for lines of text in a picture, in any of four orientations."""
    reader = _reader(cv2.getNumThreads(), line=True)
    result = reader(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    if result.boxes is None:
        return []
    return [
        Line(_lying(np.asarray(box, np.float64)), words, float(score))
        for box, words, score in zip(result.boxes, result.txts, result.scores, strict=True)
    ]


def _lying(corners: Float[Array, "4 2"]) -> Float[Array, "4 2"]:
    """Returns the corners in the order of a line that is read from left to right.

    The library turns tall boxes by 90 degrees.
    """
    width, height = (np.linalg.norm(corners[0] - corners[i]) for i in (1, 3))
    return np.roll(corners, -1, axis=0) if height >= 1.5 * width else corners


def read_line(picture: UInt8[Array, "h w"], corners: Float[Array, "4 2"]) -> tuple[str, float]:
    """Returns the text between four corners, in the order of Line's, and its score in [0, 1].

    The text is empty where nothing was recognised.
    """
    width = max(int(np.linalg.norm(corners[1] - corners[0])), 1)
    height = max(int(np.linalg.norm(corners[3] - corners[0])), 1)
    straight = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    turn = cv2.getPerspectiveTransform(np.asarray(corners, np.float32), straight)
    crop = cv2.warpPerspective(picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return read_letter(crop)


def read_letter(picture: UInt8[Array, "h w"]) -> tuple[str, float]:
    """Returns the text of a picture that one letter or line fills, and its score in [0, 1].

    The text is empty where nothing was recognised.
    """
    reader = _reader(cv2.getNumThreads(), line=False)
    result = reader(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    return (result.txts[0], float(result.scores[0])) if result.txts else ("", 0.0)


@functools.cache
def _reader(threads: int, line: bool) -> Any:
    """Returns the library's pipeline, which detects lines of text first if `line` is set."""
    import rapidocr  # takes half a second

    settings: dict[str, Any] = {
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
