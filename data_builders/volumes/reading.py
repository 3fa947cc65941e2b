"""Reading volumes of any format, which their content decides; any failure is a refusal."""

import contextlib
import pathlib
import warnings
from collections.abc import Iterator

from data_builders.errors import UnreadableError
from data_builders.volumes import dicom, itk, nifti, series, stored
from data_builders.volumes.scan import Scan, oriented

ARCHIVES = {
    b"PK\x03\x04": "ZIP",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "RAR",
    b"BZh9": "bzip2",
    b"\xfd7zX": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
KNOWN = "NIfTI, MetaImage, NRRD or DICOM"


def read_scan(path: pathlib.Path, orientation: str = "") -> Scan:
    """Reads a volume from a file, or from a folder that holds one DICOM series.

    Args:
      path: of the file or folder.
      orientation: three letters such as RAS that state where the axes lead if the file does not.

    Raises:
      UnreadableError: for any failure, whatever the decoder raises.
    """
    with refusals():
        return oriented(_read(path), orientation)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns errors into UnreadableError, and drops warnings, which may quote a header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableError:
        raise
    except MemoryError:
        raise UnreadableError("needs more memory than there is") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UnreadableError(f"not a readable volume: {reason}") from None
    except Exception as error:
        raise UnreadableError(f"not a readable volume ({type(error).__name__})") from None


def _read(path: pathlib.Path) -> Scan:
    """Reads a volume. Raises any error of a decoder."""
    if path.is_dir():
        return series.read_series(path)
    path = _header_of_pair(path)
    named = path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".hdr.gz"))
    refusal = "not a readable NIfTI file" if named else "not a readable volume"

    # Unpack the beginning.
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start in ARCHIVES:
            raise UnreadableError(
                f"not a readable volume: it is an archive ({ARCHIVES[start]}); unpack it first"
            )
        try:
            chunks = stored.pieces(file, nifti.packing_of(file))
            head, _ = stored.beginning(chunks, 4096)
        except UnreadableError as error:
            raise UnreadableError(f"{refusal}: it {error}") from None

    # Choose the reader.
    if nifti.is_nifti(head):
        return nifti.read_nifti(path)
    if named:
        raise UnreadableError(f"{refusal}: it has no NIfTI header")
    if head.startswith(b"NRRD"):
        return itk.read_nrrd(path)
    if itk.is_metaimage(head):
        return itk.read_metaimage(path)
    if dicom.read_header(path) is not None:
        return series.read_series(path)
    raise UnreadableError(f"not a readable volume: a {KNOWN} file is expected")


def _header_of_pair(path: pathlib.Path) -> pathlib.Path:
    """Returns the .hdr file next to an .img file, and any other path unchanged."""
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith(".img"):
        return path
    header = name.removesuffix(".img") + ".hdr"
    headers = sorted(p for p in path.parent.iterdir() if p.name.lower() in (header, f"{header}.gz"))
    return headers[0] if headers else path
