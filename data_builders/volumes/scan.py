"""The type that every reader of volumes returns, and the orientation of its axes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from nibabel import orientations
from numpy import ndarray as Array

from data_builders.errors import UnreadableError

AIR = -1000.0  # HU
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from axes to the left, back and top to RAS+
MAX_VOXELS = 600_000_000
MAX_SHEAR = 45.0  # degrees; a gantry tilts up to 30

DEFAULT = (
    "states identity directions and an origin of 0, as programs that know neither write: "
    "check that left and right, front and back are correct"
)


class Scan(NamedTuple):
    """A volume as its file holds it.

    Attributes:
      values: `(i, j, k)` numbers of any type.
      affine: transform from indices to mm on the RAS+ axes.
      remarks: what was corrected or left out, in words that identify nobody.
      missing: the header field that should state the axes' directions and does not, or "".
      default: True if the directions are those that programs write which know none.
    """

    values: Array
    affine: Float[Array, "4 4"]
    remarks: list[str]
    missing: str = ""
    default: bool = False


def check_orientation(text: str) -> str:
    """Returns three letters such as `RAS` in capitals. Raises ValueError for anything else."""
    letters = text.strip().upper()
    pairs = ("LR", "PA", "IS")
    if len(letters) != 3 or any(sum(c in pair for c in letters) != 1 for pair in pairs):
        raise ValueError(f"orientation={text!r} is not three letters such as RAS or LPS")
    return letters


def oriented(scan: Scan, orientation: str) -> Scan:
    """Returns the scan with the axes that its file states, or else the list's `orientation`.

    The file is followed where it states its axes. Raises UnreadableError for a list that
    contradicts it, and where neither states the axes.
    """
    # The orientation that the file states.
    _check_affine(scan.affine)
    stated = "".join(orientations.aff2axcodes(scan.affine))
    if scan.missing and not orientation:
        raise UnreadableError(
            f"does not state how its axes lie ({scan.missing}). State it in the list's column "
            "`orientation`: three letters such as RAS or LPS, where each array axis leads"
        )
    if not orientation or (stated == orientation and not scan.missing):
        return scan
    if not scan.missing and not scan.default:
        raise UnreadableError(
            f"its header states the orientation {stated}, the list {orientation}. "
            "Leave the column `orientation` empty, or correct the header"
        )

    # The orientation that the list states.
    remarks = list(scan.remarks)
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    if scan.default:
        remarks = [words for words in remarks if words != DEFAULT]
        remarks.append(
            f"lies as the list states ({orientation}), not as its header does ({stated})"
        )
    return scan._replace(affine=affine_of(orientation, spacing), remarks=remarks, missing="")


def affine_of(orientation: str, spacing: Array) -> Float[Array, "4 4"]:
    """Returns an affine whose axes lead to the letters of `orientation`, in steps of `spacing`."""
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (target, sign) in enumerate(orientations.axcodes2ornt(tuple(orientation))):
        affine[int(target), axis] = sign * spacing[axis]
    return affine


def _check_affine(affine: Float[Array, "4 4"]) -> None:
    """Raises UnreadableError for axes that no scanner has."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (spacing > 0).all():
        raise UnreadableError(
            "does not say how its voxels lie in space: "
            "voxel sizes or directions are 0 or no numbers"
        )
    axes = affine[:3, :3] / spacing
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if abs(np.linalg.det(axes)) < 1e-3 or cosine > np.sin(np.deg2rad(MAX_SHEAR)):
        angle = np.rad2deg(np.arccos(np.clip(cosine, 0, 1)))
        raise UnreadableError(
            "does not say how its voxels lie in space: its axes are "
            f"{angle:.0f} degrees apart instead of 90"
        )
