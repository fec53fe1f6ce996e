"""NIfTI-1 and 2 in one file or two, Analyze 7.5, and FreeSurfer's MGH: what nibabel reads."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np

from ..model.errors import GalipError
from .file_checks import (
    DEFLATE_RATIO,
    check_announced,
    check_file,
    check_size,
    companion,
    corrupt_as_error,
    surplus_note,
)
from .matlab import read_matlab
from .volumes import Decoded, FileLayout, geometry_header, nifti_layout, quiet_nibabel

_TOLERATED_REST = 1 << 20  # bytes behind the voxels of a compressed file, before it is taken for a bomb
_LONGEST_HEADER = 1 << 20  # of a pair's header file with its extensions
_SIZE_TOLERANCE = 0.01  # of a voxel's size in pixdim against that of the sform
OWN_MARK = b"galip_hf:"  # how `descrip` starts in our outputs
OWN_OUTPUT = (
    "The input is itself a translation by galip_hf: what is made of it shows even less of the patient."
)
_GUESS = "so left and right, and the plane of the slices, are a guess."


def read_nifti(path: Path, axis: str | None, max_size: int) -> Decoded:
    """A single-file NIfTI, compressed or not.

    Raises:
        GalipError: a corrupt file, a header without meaning, or a scan larger than `max_size`.
    """
    with corrupt_as_error(path), quiet_nibabel():
        content, header, notes = _single_file(path, max_size)
        notes += _mended(header)
        layout = nifti_layout(header, str(path), axis)
        # nibabel scales in float64; rounded once to float32, the values are the closest possible.
        voxels = nib.arrayproxy.ArrayProxy(io.BytesIO(content), header)
    return Decoded(_parts(voxels, layout), layout, notes)


def read_pair(path: Path, axis: str | None, max_size: int) -> Decoded:
    """NIfTI or Analyze 7.5 in two files, `.hdr` and `.img`; `path` is either.

    Analyze says nothing of left and right: its voxels are taken to run from the patient's right to the left,
    as SPM and nibabel do, or where SPM's orientation file (`.mat`) lies beside as that says.

    Raises:
        GalipError: as `read_nifti`; also a missing second file.
    """
    other = companion(path)
    assert other is not None
    image_path, header_path = (path, other) if path.name.lower().endswith(".img") else (other, path)
    for file in (image_path, header_path):
        if not file.is_file():
            raise GalipError(f"{path}: {file.name} is missing beside it; the two files are one scan")
        check_file(file)
    with corrupt_as_error(path), quiet_nibabel():
        start = header_path.read_bytes()[:_LONGEST_HEADER]
        header, notes = _pair_header(start, path)
        needed = _announced(header, path, max_size, image_path.stat().st_size)
        size = image_path.stat().st_size
        notes += surplus_note(size, needed)
        voxels = nib.arrayproxy.ArrayProxy(io.BytesIO(image_path.read_bytes()[:needed]), header)
        if not isinstance(header, nib.Nifti1Header):
            header, affine_notes = _header_of_analyze(header, image_path)
            notes += affine_notes
        notes += _mended(header)
        layout = nifti_layout(header, str(path), axis)
    return Decoded(_parts(voxels, layout), layout, notes)


def read_mgh(path: Path, axis: str | None, max_size: int) -> Decoded:
    """FreeSurfer's `.mgh`, or compressed `.mgz`.

    Raises:
        GalipError: as `read_nifti`.
    """
    header_class = nib.freesurfer.mghformat.MGHHeader
    with corrupt_as_error(path), quiet_nibabel():
        with _opened(path) as stream:
            start = stream.read(header_class.template_dtype.itemsize)
            bare = header_class(start, check=False)
            if int(bare["version"]) != 1:
                raise GalipError(f"{path}: truncated, or not MGH: its version is not 1; copy it again")
            needed = _announced(bare, path, max_size, _available(path))
            content = start + stream.read(max(needed - len(start), 0))
            _check_whole(content, needed, path)
            _read_to_the_end(stream, needed, path)  # scan parameters lie behind the voxels
        voxels = nib.arrayproxy.ArrayProxy(io.BytesIO(content), bare)
        shape = bare.get_data_shape()
        header = geometry_header(shape, bare.get_affine())
        layout = nifti_layout(header, str(path), axis)
    notes = (
        ()
        if int(bare["goodRASFlag"]) == 1
        else (f"The file has no orientation (goodRASFlag is 0), {_GUESS}",)
    )
    return Decoded(_parts(voxels, layout), layout, notes)


def decode_image(image: Any, axis: str | None) -> tuple[Decoded, str]:
    """A nibabel image in memory, and the name that messages start with.

    Raises:
        GalipError: as `read_nifti`.
    """
    name = image.get_filename() or "image"
    with corrupt_as_error(Path(name)), quiet_nibabel():
        kind = type(image) if isinstance(image, nib.Nifti1Image) else nib.Nifti1Image
        if not isinstance(image, nib.Nifti1Image):
            image = nib.Nifti1Image.from_image(image)
        # A copy, whose header takes up an affine that the caller gave beside the header.
        copied = kind(image.dataobj, image.affine, image.header)
        copied.update_header()
        notes = _mended(copied.header)
        layout = nifti_layout(copied.header, name, axis)
    return Decoded(_parts(copied.dataobj, layout), layout, notes), name


def _parts(voxels: Any, layout: FileLayout) -> Iterator[np.ndarray]:
    """One volume at a time, so that a series is never in memory in float64."""
    count = math.prod(voxels.shape) // math.prod(layout.shape)
    for number in range(count):
        yield np.asanyarray(voxels if count == 1 else voxels[:, :, :, number])


def _opened(path: Path) -> IO[bytes]:
    """The file, uncompressed where it is compressed, whatever its suffix."""
    return gzip.open(path) if _is_zipped(path) else path.open("rb")  # type: ignore[return-value]


def _is_zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _available(path: Path) -> int:
    """The most bytes that the file can hold, uncompressed."""
    return path.stat().st_size * (DEFLATE_RATIO if _is_zipped(path) else 1)


def _single_file(path: Path, max_size: int) -> tuple[bytes, nib.Nifti1Header, tuple[str, ...]]:
    """The bytes, uncompressed, and the header as it stands: nibabel's checks would mend a size of zero."""
    with _opened(path) as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        header_class = _nifti_class(start)
        if header_class is None:
            raise GalipError(
                f"{path}: truncated, or not NIfTI: it does not start with 348 or 540; copy it again"
            )
        bare = header_class(start[: header_class.sizeof_hdr], check=False)
        if bare["magic"].item()[:2] != b"n+":
            raise GalipError(f"{path}: not a single-file NIfTI (magic {bare['magic'].item()!r}); convert it")
        offset, first = int(bare["vox_offset"]), header_class.single_vox_offset
        notes: tuple[str, ...] = ()
        if offset < first:
            notes = (f"vox_offset is {offset}, inside the header; the voxels were read from byte {first}.",)
            bare["vox_offset"] = first
        needed = _announced(bare, path, max_size, _available(path))
        content = start + stream.read(max(needed - len(start), 0))
        _check_whole(content, needed, path)
        size = _read_to_the_end(stream, max(needed, len(start)), path)
    head = bare.binaryblock + content[len(bare.binaryblock) : max(offset, first)]  # extensions among it
    header = header_class.from_fileobj(io.BytesIO(head), check=False)
    header.copy().check_fix()  # raises what nibabel would raise when the header is written again
    return content, header, notes + _of_values(header) + surplus_note(size, needed)


def _nifti_class(start: bytes) -> type[nib.Nifti1Header] | None:
    sizes = (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))
    header_class = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
    return header_class if header_class.sizeof_hdr in sizes else None


def _announced(header: Any, path: Path, max_size: int, available: int) -> int:
    """The bytes up to the end of the voxels, by the header; GalipError if they cannot be there."""
    shape = [max(int(length), 0) for length in header.get_data_shape()]
    needed = int(header.get_data_offset()) + math.prod(shape) * header.get_data_dtype().itemsize
    check_announced(needed, available, path)
    check_size(shape, path, max_size)
    return needed


def _check_whole(content: bytes, needed: int, path: Path) -> None:
    if len(content) < needed:
        raise GalipError(
            f"{path}: truncated, {len(content)} of the {needed} bytes its header announces; copy it again"
        )


def _read_to_the_end(stream: IO[bytes], position: int, path: Path) -> int:
    """Read on to the end, where gzip's checksum is, and return the bytes that the file holds.

    A compressed file with much more than its header announces is refused: small as it is, it could go on for
    gigabytes.
    """
    size = position
    while block := stream.read(1 << 16):
        size += len(block)
        if size - position > _TOLERATED_REST and isinstance(stream, gzip.GzipFile):
            raise GalipError(
                f"{path}: holds more than {size} bytes uncompressed, its header announces {position}; "
                "copy it again"
            )
        if not isinstance(stream, gzip.GzipFile):
            return path.stat().st_size
    return size


def _of_values(header: Any) -> tuple[str, ...]:
    """What is odd about how the header says that values are stored."""
    slope = float(header["scl_slope"]) if "scl_slope" in header else 1.0
    unscaled = (
        (f"scl_slope is {slope:g}, so the values were not scaled.",) if not math.isfinite(slope) else ()
    )
    return _wrong_bitpix(header) + unscaled


def _wrong_bitpix(header: Any) -> tuple[str, ...]:
    stated, actual = int(header["bitpix"]), 8 * header.get_data_dtype().itemsize
    if stated == actual:
        return ()
    return (f"bitpix is {stated}, but the datatype {int(header['datatype'])} has {actual} bits and counts.",)


def _mended(header: nib.Nifti1Header) -> tuple[str, ...]:
    """Mend voxel sizes that contradict the sform, in place, and say what is in doubt."""
    notes = []
    if bytes(header["descrip"].item()).startswith(OWN_MARK):
        notes.append(OWN_OUTPUT)
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform == 0 and qform == 0:
        notes.append(f"Neither sform nor qform is set (both codes are 0), {_GUESS}")
    if sform > 0:
        stated = np.abs(np.array(header["pixdim"][1:4], dtype=np.float64))
        actual = nib.affines.voxel_sizes(header.get_sform())
        rank = min(len(header.get_data_shape()), 3)
        wrong = ~np.isclose(stated, actual, rtol=_SIZE_TOLERANCE, atol=0)[:rank]
        if np.isfinite(actual).all() and wrong.any():
            notes.append(
                f"pixdim says voxels of {_listed(stated[:rank])} and the sform {_listed(actual[:rank])}; "
                "the sform was used."
            )
        if not (np.isfinite(stated) & (stated > 0))[:rank].all() and np.isfinite(actual).all():
            header["pixdim"][1:4] = actual
            header["qform_code"] = 0  # it has its voxel sizes from pixdim too
    return tuple(notes)


def _listed(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:g}" for size in sizes)


def _pair_header(start: bytes, path: Path) -> tuple[Any, tuple[str, ...]]:
    """The header of a pair as it stands: NIfTI's by its magic, else Analyze's as SPM fills it."""
    header_class = _nifti_class(start)
    if header_class is None or len(start) < header_class.sizeof_hdr:
        raise GalipError(
            f"{path}: truncated, or neither NIfTI nor Analyze: the header does not start with 348 or 540"
        )
    bare = header_class(start[: header_class.sizeof_hdr], check=False)
    if bare["magic"].item()[:2] == b"ni":
        pair_class = (
            nib.nifti2.Nifti2PairHeader if header_class is nib.Nifti2Header else nib.nifti1.Nifti1PairHeader
        )
        header = pair_class.from_fileobj(io.BytesIO(start), check=False)
        header.copy().check_fix()
        return header, _of_values(header)
    analyze = nib.spm2analyze.Spm2AnalyzeHeader(start[:348], check=False)
    return analyze, _wrong_bitpix(analyze)


def _header_of_analyze(analyze: Any, image_path: Path) -> tuple[nib.Nifti1Header, tuple[str, ...]]:
    """The NIfTI header that says the same, and what is in doubt."""
    sizes = [float(size) for size in analyze["pixdim"][1:4]]
    if not all(math.isfinite(size) and size != 0 for size in sizes):
        raise GalipError(
            f"{image_path}: the voxel size {sizes} (pixdim) has a zero or is not finite; correct it"
        )
    orientation = image_path.with_name(image_path.stem + ".mat")
    if orientation.is_file():
        affine = _spm_affine(orientation, bool(analyze.default_x_flip))
        return geometry_header(analyze.get_data_shape(), affine), ()
    note = f"Analyze has no orientation; voxels were taken to run from right to left, {_GUESS}"
    return geometry_header(analyze.get_data_shape(), analyze.get_best_affine()), (note,)


def _spm_affine(path: Path, flipped: bool) -> np.ndarray:
    """SPM's 4 x 4 matrix for voxels counted from 1: `mat` as it is, or the older `M` without the flip."""
    with corrupt_as_error(path):
        try:
            matrix = read_matlab(path, "mat", 1 << 20)
        except GalipError:
            matrix = np.diag([-1.0 if flipped else 1.0, 1, 1, 1]) @ read_matlab(path, "M", 1 << 20)
        matrix = np.asarray(matrix if matrix.ndim == 2 else matrix[..., 0], dtype=np.float64)
        if matrix.shape != (4, 4):
            raise GalipError(f"{path}: the orientation has the shape {matrix.shape}; expected (4, 4)")
        return matrix @ nib.affines.from_matvec(np.eye(3), [1, 1, 1])


__all__ = ["OWN_OUTPUT", "decode_image", "read_mgh", "read_nifti", "read_pair"]
