"""The DICOM series of a folder, told apart by their headers alone."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import GalipError
from ..extras import require

_TAGS = ["SeriesInstanceUID", "Modality", "SeriesDescription", "ProtocolName"]


@dataclass(frozen=True)
class SeriesInfo:
    """One series: the folder of its files, its UID, modality (`CT`, `MR`, …) and description."""

    path: Path
    uid: str
    modality: str
    description: str


def find_series(directory: Path) -> list[SeriesInfo]:
    """The image series below a directory, in the order of their folders and UIDs; other files are ignored.

    Raises:
        GalipError: pydicom is not installed, or a series is spread over several folders.
    """
    found: dict[str, SeriesInfo] = {}
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or not _is_dicom(path):
            continue
        pydicom = require("pydicom", "dicom")
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        except (OSError, ValueError, pydicom.errors.InvalidDicomError) as error:
            raise GalipError(f"{path}: not a readable DICOM file ({error}); copy it again") from None
        uid = str(header.get("SeriesInstanceUID", ""))
        if not uid:
            continue  # a DICOMDIR
        description = " ".join(str(header.get(tag, "")) for tag in _TAGS[2:]).strip()
        info = SeriesInfo(path.parent, uid, str(header.get("Modality", "")), description)
        if found.setdefault(uid, info).path != path.parent:
            raise GalipError(
                f"{path}: its series lies in {found[uid].path} too; put the files of a series in one folder"
            )
    return sorted(found.values(), key=lambda series: (series.path, series.uid))


def _is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM: `DICM` after a preamble of 128 bytes."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


__all__ = ["SeriesInfo", "find_series"]
