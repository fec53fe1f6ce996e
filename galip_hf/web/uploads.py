"""One uploaded file as one scan: NIfTI and the other formats as they are, DICOM as a zip of its files."""

from __future__ import annotations

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.file_checks import GIB, MAX_SIZE, corrupt_as_error
from ..data.scans import ScanSource, find_scans, read_scan
from ..inference.translation import save_translations
from ..model.errors import GalipError

if TYPE_CHECKING:
    from ..data.volumes import Volume
    from ..inference.pipeline import Advance, GalipPipeline
    from ..inference.translation import Translation

MAX_ZIPPED_FILES = 20_000
_LONGEST_NAME = 80


def safe_name(name: str) -> str:
    """The last part of an uploaded file's name, of letters, digits, `.`, `_`, `+`, `=` and `-` only.

    It can name no other folder and no hidden file; a long name keeps its end, where the suffix is.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^\w.+=-]+", "-", last, flags=re.ASCII)[-_LONGEST_NAME:].lstrip(".-") or "scan"


def read_upload(upload: Path, folder: Path, *, max_size: int = MAX_SIZE) -> tuple[Volume, str]:
    """The scan in an uploaded file, and a name for it.

    Args:
        upload: a file of a format that `read_scan` reads, or a zip that holds one scan.
        folder: empty, to unpack a zip in.
        max_size: bytes of the largest scan accepted, decoded to float32, and of an unpacked zip.

    Raises:
        GalipError: nothing, several scans or a series of volumes in it, or one that cannot be read. The
            message names files by their name alone, not by where they lie on this machine.
    """
    try:
        if zipfile.is_zipfile(upload) and not upload.name.lower().endswith(".npz"):
            unpack(upload, folder, max_size)
            scan = _single_scan(find_scans([folder]), upload)
        else:
            scan = _single_scan(find_scans([upload]), upload)
        volumes = read_scan(scan, max_size=max_size)
    except GalipError as error:
        message = str(error).replace(f"{folder}/", "").replace(str(folder), upload.name)
        raise GalipError(message.replace(f"{upload.parent}/", "")) from None
    if len(volumes) != 1:
        raise GalipError(f"{upload.name}: holds {len(volumes)} volumes; expected one scan")
    return replace(volumes[0], path=Path(upload.name)), scan.name


def public_name(model: str) -> str:
    """What visitors are told of the model: its repository, or its directory without the folders above."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _single_scan(scans: list[ScanSource], upload: Path) -> ScanSource:
    if len(scans) > 1:
        listing = ", ".join(scan.name for scan in scans[:4]) + (", …" if len(scans) > 4 else "")
        raise GalipError(f"{upload.name}: holds {len(scans)} scans ({listing}); expected one")
    return scans[0]


def unpack(archive: Path, folder: Path, max_size: int) -> None:
    """Unpack the files of a zip into `folder`, under names made from their numbers.

    Raises:
        GalipError: damaged, encrypted, too many files, or more bytes than `max_size`, counted while they are
            unpacked: what the archive announces is not believed.
    """
    with corrupt_as_error(archive), zipfile.ZipFile(archive) as opened:
        members = [member for member in opened.infolist() if _is_content(member)]
        if len(members) > MAX_ZIPPED_FILES:
            raise GalipError(
                f"{archive}: holds {len(members)} files, the limit is {MAX_ZIPPED_FILES}; zip one scan alone"
            )
        left = max_size
        for number, member in enumerate(members):
            name = safe_name(member.filename)
            with opened.open(member) as packed, open(folder / f"{number:05d}_{name}", "wb") as file:
                while block := packed.read(1 << 20):
                    left -= len(block)
                    if left < 0:
                        raise GalipError(
                            f"{archive}: unpacks to more than {max_size / GIB:.3g} GiB; zip one scan alone"
                        )
                    file.write(block)


def _is_content(member: zipfile.ZipInfo) -> bool:
    """Not a folder, a hidden file, or what macOS adds."""
    parts = member.filename.split("/")
    return not member.is_dir() and not (parts[-1].startswith(".") or "__MACOSX" in parts)


def translate_upload(
    pipeline: GalipPipeline,
    upload: Path,
    folder: Path,
    *,
    target: str,
    source: str | None,
    cycle: bool,
    max_size: int = MAX_SIZE,
    advance: Advance = lambda count: None,
    total: Advance = lambda count: None,
) -> tuple[Translation, Path]:
    """Translate an uploaded scan, and write NIfTI, report and cycle map into `folder`.

    Args:
        folder: empty; a zip is unpacked, and removed again, in it.
        advance: called with the number of slices done since the last call.
        total: called once, with the number of slices that there are to do.

    Returns:
        The translation and its file, `NAME_TARGET.nii.gz`.

    Raises:
        GalipError: as `read_upload` and `GalipPipeline.__call__`.
    """
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    try:
        volume, name = read_upload(upload, unpacked, max_size=max_size)
    finally:
        for file in unpacked.iterdir():
            file.unlink()
        unpacked.rmdir()
    name = safe_name(name)
    total(len(volume.array) * (2 if cycle else 1))
    translation = pipeline(volume, target, source, cycle=cycle, advance=advance)
    path = save_translations([translation], folder / f"{name}_{safe_name(target)}.nii.gz")
    return translation, path


__all__ = ["MAX_ZIPPED_FILES", "public_name", "read_upload", "safe_name", "translate_upload", "unpack"]
