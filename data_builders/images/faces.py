"""Faces in photographs, found by YuNet through OpenCV."""

import contextlib
import functools
import pathlib
import re
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from data_builders.errors import InputError, UnreadableError

# The file of the detector on the hub, under HUB_ID.
HUB_ID = "opencv/face_detection_yunet"
HUB_FILE = "face_detection_yunet_2023mar.onnx"

# The least width of a face, about the distance between the ears, in pixels of the photograph.
LEAST_WIDTH = 60.0
# Faces with lower scores are not believed. Profiles score lower than frontal faces.
LEAST_SCORE = 0.65
# A face counts beside a wider one if its width is at least this share of the other's.
BESIDE = 1 / 3
# The longer sides, in pixels, at which a photograph is searched until a face is found. YuNet finds
# faces of 10 to 300 pixels.
_SEARCHED = (640, 1600)
# The longer side of what is cut out around a face to find its landmarks.
_CLOSE = 320
# A face is on its side, or on its head, if the turned photograph scores so much more.
_CLEARLY = 0.05
# How far the tip of the nose is beside the middle of the eyes, in distances between the eyes: at
# most so much in a frontal face, at least so much in a profile. Between them, a head is turned
# halfway. Frontal faces that we tried have up to 0.22, heads turned halfway 0.6 to 0.74, and
# profiles 0.85 or more.
_FRONTAL = 0.4
_PROFILE = 0.8


class Found(NamedTuple):
    """A face in a photograph.

    Attributes:
      box: left, top, right, bottom in pixels, from forehead to chin.
      landmarks: `(column, row)` of both eyes (the picture's left first), the tip of the nose, and
        both corners of the mouth, in pixels. In a profile they are guesses.
      score: of the detector, in [0, 1].
    """

    box: Float[Array, "4"]
    landmarks: Float[Array, "5 2"]
    score: float

    @property
    def width(self) -> float:
        """The width of the box in pixels."""
        return float(self.box[2] - self.box[0])

    @property
    def view(self) -> str:
        """'frontal', 'lateral', or '' where the head is turned halfway."""
        apart = self.landmarks[1] - self.landmarks[0]
        beside = (self.landmarks[2] - self.landmarks[:2].mean(0)) @ apart
        turned = abs(beside) / max(apart @ apart, 1e-6)
        return "frontal" if turned <= _FRONTAL else "lateral" if turned >= _PROFILE else ""

    @property
    def looks_right(self) -> bool:
        """Whether the nose is to the right of the eyes in the picture."""
        return bool(self.landmarks[2, 0] > self.landmarks[:2, 0].mean())


def detector_file(where: str, field: str) -> pathlib.Path:
    """Returns the file of the detector that a setting names.

    Args:
      where: a file, or a hub id (owner/name), which is fetched unless the hub's cache has it.
      field: the setting's name, for messages.

    Raises:
      InputError: there is neither.
    """
    path = pathlib.Path(where).expanduser()
    if path.is_file():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", where) or path.suffix == ".onnx":
        raise InputError(f"{field}={where}: no such file. Name YuNet's .onnx file, or {HUB_ID}.")
    import huggingface_hub
    from huggingface_hub import errors

    # The cache first, which needs no network.
    with contextlib.suppress(errors.LocalEntryNotFoundError):
        return pathlib.Path(huggingface_hub.hf_hub_download(where, HUB_FILE, local_files_only=True))
    try:
        # A download retries for half a minute where there is no network; this asks once.
        huggingface_hub.HfApi().model_info(where, timeout=10)
        return pathlib.Path(huggingface_hub.hf_hub_download(where, HUB_FILE))
    except errors.HfHubHTTPError as error:
        reason = f"the hub says {[*str(error).splitlines(), type(error).__name__][0]}"
    except Exception:  # no network; the class depends on the hub's version
        reason = "it is not in the hub's cache, and the hub can't be reached"
    raise InputError(f"{field}={where}: {reason}. Name YuNet's .onnx file.")


def check_detector(file: pathlib.Path, field: str) -> None:
    """Raises InputError if a file is not a detector that OpenCV can run."""
    try:
        _searched(np.zeros((64, 64, 3), np.uint8), file)
    except cv2.error:
        raise InputError(
            f"{field}={file.name}: OpenCV can't run it as YuNet. Fetch the .onnx file again."
        ) from None


def find_faces(photograph: UInt8[Array, "h w 3"], file: pathlib.Path) -> list[Found]:
    """Returns the faces in a photograph, the widest first.

    Faces much smaller than the widest one, as of people in the background, are left out.

    Args:
      photograph: sRGB, upright.
      file: of the detector.
    """
    faces: list[Found] = []
    longest = max(photograph.shape)
    for side in _SEARCHED:
        scale = min(side / longest, 1.0)
        faces = [_scaled(face, 1 / scale) for face in _searched(_resized(photograph, scale), file)]
        if faces or scale == 1.0:
            break
    faces.sort(key=lambda face: -face.width)
    return [face for face in faces if face.width >= BESIDE * faces[0].width]


def only_face(photograph: UInt8[Array, "h w 3"], view: str, file: pathlib.Path) -> Found:
    """Returns the one face of a photograph, with exact landmarks.

    Args:
      photograph: sRGB, upright.
      view: that the face should have, 'frontal' or 'lateral'.
      file: of the detector.

    Raises:
      UnreadableError: there is no face, more than one, a small one, or one of another view.
    """
    faces = find_faces(photograph, file)
    if view == "frontal":  # of profiles, the detector does not tell which side is up
        _check_upright(photograph, faces, file)
    if not faces:
        raise UnreadableError("no face was found in it; give its landmarks, or leave it out")
    if len(faces) > 1:
        raise UnreadableError(f"{len(faces)} faces were found in it; crop it to one")
    face = _looked_at_closely(photograph, faces[0], file)
    if face.width < LEAST_WIDTH:
        raise UnreadableError(
            f"its face is {face.width:.0f} pixels wide, and {LEAST_WIDTH:.0f} are needed"
        )
    if view == "frontal" and face.view != "frontal":
        raise UnreadableError("its face is turned to the side, but face_view is frontal")
    if view == "lateral" and face.view == "frontal":
        raise UnreadableError("its face looks at the camera, but face_view is lateral")
    return face


def _check_upright(photograph: Array, faces: list[Found], file: pathlib.Path) -> None:
    """Raises UnreadableError if a turned photograph shows a face better than this one does."""
    picture = _resized(photograph, min(_SEARCHED[0] / max(photograph.shape), 1.0))
    upright = max((face.score for face in faces), default=0.0)
    for quarters in (1, 2, 3):
        turned = np.ascontiguousarray(np.rot90(picture, quarters))
        score = max((face.score for face in _searched(turned, file)), default=0.0)
        if score > upright + _CLEARLY:
            raise UnreadableError("its face does not stand upright; turn the photograph")


def _looked_at_closely(photograph: Array, face: Found, file: pathlib.Path) -> Found:
    """Returns a face as it is found in a cutout around it, in which it has the best size."""
    # Cut it out with a margin of half its size.
    middle = (face.box[:2] + face.box[2:]) / 2
    reach = max(face.box[2:] - face.box[:2])
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.minimum(np.ceil(middle + reach), photograph.shape[1::-1]).astype(int)
    cutout = photograph[low[1] : high[1], low[0] : high[0]]
    scale = min(_CLOSE / max(cutout.shape), 1.0)
    # The nearest one is the same face.
    found = [_scaled(each, 1 / scale) for each in _searched(_resized(cutout, scale), file)]
    found = [Found(f.box + np.tile(low, 2), f.landmarks + low, f.score) for f in found]
    found.append(face)
    return min(found[:-1] or found, key=lambda f: np.abs(f.box - face.box).sum())


def _resized(photograph: Array, scale: float) -> Array:
    """Returns a photograph with its sides times `scale`, of at least one pixel."""
    height, width = (max(round(n * scale), 1) for n in photograph.shape[:2])
    if (height, width) == photograph.shape[:2]:
        return photograph
    return cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA)


def _scaled(face: Found, scale: float) -> Found:
    """Returns a face in a picture whose sides are `scale` times as long."""
    # Places are counted from the middle of the first pixel, as everywhere here.
    box, landmarks = (scale * (places + 0.5) - 0.5 for places in (face.box, face.landmarks))
    return Found(box, landmarks, face.score)


def _searched(picture: UInt8[Array, "h w 3"], file: pathlib.Path) -> list[Found]:
    """Returns the faces that the detector finds in a picture as it is."""
    detector = _detector(file)
    height, width = picture.shape[:2]
    detector.setInputSize((width, height))
    _, rows = detector.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    faces = []
    for row in [] if rows is None else rows.astype(np.float64):
        left, top, across, down = row[:4]
        box = np.array([left, top, left + across, top + down])
        faces.append(Found(box, row[4:14].reshape(5, 2), float(row[14])))
    return faces


@functools.lru_cache(maxsize=1)
def _detector(file: pathlib.Path) -> cv2.FaceDetectorYN:
    """Returns the detector of a file, opened once in each process."""
    # Errors alone: newer engines warn of settings that they ignore.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return cv2.FaceDetectorYN.create(str(file), "", (320, 320), LEAST_SCORE, 0.3, 5000)
