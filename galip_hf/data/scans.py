"""Scans in any form that users bring: found in folders, read as volumes, written as files."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from ..files import files_below
from ..model.errors import GalipError
from . import dicom_series, itk, nifti
from .dicom import read_series
from .dicom_deflated import header_source
from .dicom_writer import write_dicom_series
from .file_checks import MAX_SIZE, SUFFIXES, check_size, has_suffix, one_of_each_pair
from .own_outputs import is_own_output
from .pictures import largest_grey, pil_image
from .readers import check_axis_of_array, read_volumes
from .volumes import Decoded, Volume, slices_first_layout, volumes_of
from .writers import write_series

logger = logging.getLogger(__name__)
_COMPRESSION_RATIO = 4096  # no coder of DICOM makes a slice smaller than this share of its voxels


@dataclass(frozen=True)
class ScanSource:
    """One scan on disk.

    Attributes:
        path: the file; for a DICOM series of several files the folder that holds them all.
        series_uid: SeriesInstanceUID of a DICOM series; None for other formats, and for DICOM with none, with
            several, or with an unreadable header.
        name: unique among the scans found together, without suffix, fit for a file name.
        files: the files of a DICOM series, sorted by name; empty for other formats.
        series: of DICOM, which images of `files` are meant; None: all, which must be one stack.
        shown: `path` as reports name it: below the folder that was searched, without the folders above.
    """

    path: Path
    series_uid: str | None
    name: str
    files: tuple[Path, ...] = ()
    series: dicom_series.Series | None = None
    shown: str = ""


def find_scans(
    paths: Iterable[str | os.PathLike[str]],
    *,
    select: Mapping[str, str] | None = None,
    output: str | os.PathLike[str] | None = None,
) -> list[ScanSource]:
    """The scans at `paths`: a file is one, a folder is searched through all its levels.

    In a folder every file with a suffix of `SUFFIXES` is a scan, and the DICOM files (known by their content,
    or by `.dcm`, `.dicom` or `.ima`) are grouped into series, and series into stacks where they hold several
    (echoes, time points, b-values), see `dicom_series`. A file that turns out not to be readable, or DICOM
    without an image, is a scan too, which `read_scan` refuses in one line. Other files, such as BIDS' JSON,
    are counted in a warning of the log; those whose name starts with a dot, and DICOMDIR, are passed over. A
    file reached twice is one scan, and so are `.img` and `.hdr`.

    Args:
        paths: files and folders.
        select: keep only DICOM images whose elements have these values, by keyword (`{"EchoTime": "80"}`);
            other formats, which have no such elements, are then left out.
        output: where translations will be written, a file or a folder. In the folders searched, what lies in
            that folder is no scan, nor is, where a searched folder is itself the output's, a translation that
            lies in it already. A file that is named in `paths` always is.

    Returns:
        The scans, sorted by path within each of `paths`.

    Raises:
        GalipError: a path that does not exist, a folder without scans, an unknown keyword or nothing that
            fits `select`, or pydicom is needed and missing.
    """
    found: list[_Found] = []
    seen: set[Path] = set()
    for given in paths:
        root = Path(given)
        every = _files(root, None if output is None else Path(output))
        files = [file for file in every if file.resolve() not in seen]
        seen.update(file.resolve() for file in files)
        if every and not files:
            continue
        here = _scans_of(root, files, select)
        if not here and len(files) == len(every):
            raise GalipError(f"{root}: no scans in this folder; expected DICOM or {', '.join(SUFFIXES)}")
        found += sorted(here, key=lambda scan: (str(scan.path), scan.label, scan.uid, scan.part))
    return [
        ScanSource(
            scan.path,
            scan.uid or None,
            name,
            scan.series.files if scan.series else (),
            scan.series,
            scan.shown,
        )
        for scan, name in zip(found, _unique_names(found), strict=True)
    ]


@dataclass(frozen=True)
class _Found:
    """A scan before it has its name; `label` tells it from others of its folder."""

    root: Path
    path: Path
    label: str
    series: dicom_series.Series | None = None

    @property
    def uid(self) -> str:
        """SeriesInstanceUID, "" where there is none."""
        return (self.series.uid if self.series else None) or ""

    @property
    def shown(self) -> str:
        """The path below the folder that was searched; of that folder, or of a file given, the name."""
        inside = self.root.is_dir() and self.path != self.root
        return self.path.relative_to(self.root).as_posix() if inside else self.path.resolve().name

    @property
    def part(self) -> str:
        """Of several stacks in one series, what tells this one from the others, such as `_EchoTime-80`."""
        return f"_{self.series.part}" if self.series and self.series.part else ""


def _scans_of(root: Path, files: Sequence[Path], select: Mapping[str, str] | None) -> list[_Found]:
    others = [file for file in files if not has_suffix(file)]
    series = dicom_series.dicom_files(others)
    if select and not series:
        raise GalipError(f"{root}: holds no DICOM, of which alone --select can choose images")
    scans = [] if select else [_Found(root, file, _stem(file.name)) for file in files if has_suffix(file)]
    for one in dicom_series.find_series(series, select):
        label = _stem(root.name) if root.is_file() else one.label
        scans.append(_Found(root, one.path, label, one))
    rest = sorted(set(others) - set(series))
    if root.is_file():
        return scans or [_Found(root, root, _stem(root.name))]  # refused, with the reason, when it is read
    if rest:
        kinds = Counter(file.suffix.lower() or "no suffix" for file in rest)
        listing = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        logger.warning("%s: %d files are no scans and are left out: %s", root, len(rest), listing)
    return scans


def _files(root: Path, output: Path | None) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise GalipError(f"{root}: no such file or folder; check the path")
    files = [file for file in files_below(root) if file.stem.upper() != "DICOMDIR"]
    if output is not None:
        kept = [file for file in files if not _is_output(file, root, output)]
        if len(kept) < len(files):
            logger.info("%s: %d files are outputs and are left out", root, len(files) - len(kept))
        files = kept
    return one_of_each_pair(files)


def _is_output(file: Path, root: Path, output: Path) -> bool:
    """Whether a file found below `root` belongs to what is, or was, written to `output`."""
    file, root, output = file.resolve(), root.resolve(), output.resolve()
    if not has_suffix(output) and output != root and output not in root.parents:
        return output in file.parents
    folder = output.parent if has_suffix(output) else output
    if file == output or (file.parent == folder and is_own_output(file)):
        return True
    return file.parent.parent == folder and is_own_output(file.parent)  # a derived DICOM series


def _stem(name: str) -> str:
    suffixes = (*SUFFIXES, *dicom_series.SUFFIXES)
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _unique_names(found: Sequence[_Found]) -> list[str]:
    """The place under the folder given, as one word; with the name of that folder, then with a number, where
    it is not enough. Told apart without regard to case, as many file systems do."""
    short, long = [], []
    for scan in found:
        folder = scan.path if scan.path.is_dir() else scan.path.parent
        inside = () if scan.root.is_file() else folder.relative_to(scan.root).parts
        root = scan.root.resolve().parent if scan.root.is_file() else scan.root.resolve()
        parts = [part for part in (*inside, scan.label) if part]
        short.append(_word(("_".join(parts) or root.name) + scan.part))
        long.append(_word("_".join([root.name, *parts]) + scan.part))
    counts = Counter(name.lower() for name in short)
    taken: set[str] = set()
    names = []
    for brief, full in zip(short, long, strict=True):
        base = name = brief if counts[brief.lower()] == 1 else full
        number = 2
        while name.lower() in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def _word(text: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-.") or "scan"


def read_scan(
    source: Any,
    *,
    axis: str | None = None,
    variable: str | None = None,
    uneven: str = "refuse",
    nan_background: bool = False,
    max_size: int = MAX_SIZE,
) -> list[Volume]:
    """Read a scan, whatever it is.

    Args:
        source: a `ScanSource`; the path of a file of `read_volumes`, of a DICOM file or of a folder with one
            DICOM series; a nibabel or SimpleITK image; a numpy array or torch tensor (S, H, W) or (H, W); a
            PIL image with one channel, or RGB with equal ones; or a `Volume`, which is returned as it is.
        axis: the plane of the slices, `axial`, `coronal` or `sagittal`; None: axial by the affine.
        variable: the array to take from a `.mat` or `.npz` file.
        uneven: what to do about DICOM slices at uneven distances, `refuse` or `resample`.
        nan_background: take NaN as air: 0, or the lowest finite value of the scan where that is negative.
        max_size: bytes of the largest scan accepted from a file, as float32; see `check_size`.

    Returns:
        One volume, or one for each volume of a 4-D series. `Volume.notes` says what had to be assumed.

    Raises:
        GalipError: as `read_volumes` and `read_series`; also a folder with several scans.
    """
    if isinstance(source, (str, os.PathLike)):
        source = _single_source(Path(source))
    if variable is not None and not (isinstance(source, ScanSource) and not source.files):
        raise GalipError(f"variable={variable!r} was given, but only .mat and .npz files hold named arrays")
    if isinstance(source, Volume):
        return [source]
    if isinstance(source, ScanSource):
        if source.files:
            return [_read_series(source, axis, uneven, max_size)]
        volumes = read_volumes(
            source.path, axis=axis, variable=variable, nan_background=nan_background, max_size=max_size
        )
        return [_told_of_ours(volume) for volume in volumes] if is_own_output(source.path) else volumes
    decoded, name = _decoded(source, axis)
    path = Path(name) if isinstance(source, nib.spatialimages.SpatialImage) and name != "image" else None
    return volumes_of(decoded, path, name, nan_background=nan_background)


def _read_series(source: ScanSource, axis: str | None, uneven: str, max_size: int) -> Volume:
    ours = _check_dicom_size(source, max_size)
    volume = read_series(source.series or source.files, axis=axis, uneven=uneven)
    return _told_of_ours(volume) if ours or is_own_output(source.path) else volume


def _told_of_ours(volume: Volume) -> Volume:
    """The volume with a note that it is a translation of ours."""
    if nifti.OWN_OUTPUT in volume.notes:
        return volume
    return replace(volume, notes=(*volume.notes, nifti.OWN_OUTPUT))


def _check_dicom_size(source: ScanSource, max_size: int) -> bool:
    """GalipError for a series larger than `max_size`; else whether it is one that we derived.

    Files whose header cannot be read are left to `read_series`, which says what is wrong with them.
    """
    import pydicom

    frames, largest, makers = 0, (0, 0), set()
    tags = ["Rows", "Columns", "NumberOfFrames", "Manufacturer"]
    for file in source.files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(
                    header_source(file), stop_before_pixels=True, specific_tags=tags, force=True
                )
                frames += int(header.get("NumberOfFrames") or 1)
                largest = max(largest, (int(header.get("Rows", 0)), int(header.get("Columns", 0))))
                makers.add(str(header.get("Manufacturer", "")))
        except Exception:  # any that pydicom raises for a broken header
            continue
    available = sum(file.stat().st_size for file in source.files) * _COMPRESSION_RATIO
    if frames * largest[0] * largest[1] <= available:  # else the header is wrong, as `read_series` says
        check_size((frames, *largest), source.path, max_size)
    return makers == {"galip_hf"}


def _decoded(source: Any, axis: str | None) -> tuple[Decoded, str]:
    """What an object in memory holds, and the name that messages start with."""
    if isinstance(source, nib.spatialimages.SpatialImage):
        return nifti.decode_image(source, axis)
    if itk.is_itk_image(source):
        return itk.decode_image(source, axis), "image"
    check_axis_of_array(axis, "array")
    if isinstance(source, Image.Image):
        data = pil_image(source)
        layout = replace(slices_first_layout(data.shape, "image"), largest_grey=largest_grey(data))
        return Decoded([data], layout), "image"
    torch = sys.modules.get("torch")  # imported already, if the scan is a tensor
    if torch is not None and isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    if isinstance(source, np.ndarray):
        return Decoded([source], slices_first_layout(source.shape, "array")), "array"
    raise GalipError(
        f"scan: found {type(source).__name__}; expected a path, a DICOM folder, a nibabel or SimpleITK "
        "image, a numpy array, a torch tensor or a PIL image"
    )


def _single_source(path: Path) -> ScanSource:
    if not path.is_dir() and (has_suffix(path) or not path.is_file() or not dicom_series.is_dicom(path)):
        return ScanSource(path, None, _stem(path.name))
    sources = find_scans([path])
    if len(sources) > 1:
        listing = ", ".join(
            (source.series.part if source.series else "") or source.series_uid or source.path.name
            for source in sources[:4]
        )
        raise GalipError(
            f"{path}: holds {len(sources)} scans ({listing}{', ...' if len(sources) > 4 else ''}), expected "
            "one series; give them one by one, or all of them to find_scans or to the command line"
        )
    return sources[0]


def write_scan(volumes: Sequence[Volume] | Volume, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write one volume as `write_volume` does, or all volumes of a 4-D series as one.

    Returns:
        The path written.

    Raises:
        GalipError: as `write_volume`; also volumes that are not those of one 4-D series.
    """
    return write_series([volumes] if isinstance(volumes, Volume) else volumes, path, overwrite=overwrite)


__all__ = ["ScanSource", "find_scans", "read_scan", "write_dicom_series", "write_scan"]
