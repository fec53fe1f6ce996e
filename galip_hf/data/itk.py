"""NRRD and MetaImage files, and SimpleITK images: what ITK reads and writes.

ITK's world axes are LPS+, as DICOM's; ours are RAS+. Files are decoded in a child process. Their headers, a
few lines of text, are read here first: for the size, and for the file that holds the voxels, which must lie
beside the header. (https://teem.sourceforge.net/nrrd/format.html,
https://docs.itk.org/en/latest/learn/metaio.html)
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import require
from ..model.errors import GalipError
from ..version import DISCLAIMER
from .child_process import ChildProcess
from .file_checks import DEFLATE_RATIO, check_announced, check_file, check_size, corrupt_as_error
from .nifti import OWN_OUTPUT
from .volumes import Decoded, Volume, geometry_header, nifti_layout

_LONGEST_HEADER = 1 << 16
_LONGEST_HEADER_WRITTEN = 1 << 12  # bytes before the voxels of our files
_RAS_LPS = np.diag([-1.0, -1.0, 1.0])  # from either to the other
_OWN_KEY = "galip_hf"  # of our outputs' metadata
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32"), 4),
    **{"uint32_t": 4, "float": 4, "double": 8},
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
}  # fmt: skip
_META_BYTES = {
    **{"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4},
    **{"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8},
}
_GUESS = "so left and right, and the plane of the slices, are a guess."


@dataclass(frozen=True)
class _Header:
    """What the text of a header says: the shape, bytes a value, the voxels' file (None: this one)."""

    shape: tuple[int, ...]
    itemsize: int
    data_file: str | None
    compressed: bool
    oriented: bool
    length: int


def read_itk(path: Path, axis: str | None, max_size: int) -> Decoded:
    """A NRRD (`.nrrd`, `.nhdr`) or MetaImage (`.mha`, `.mhd`) file of 2 to 4 axes.

    Raises:
        GalipError: SimpleITK is not installed, a corrupt file, voxels in another folder or in several files,
            several channels, a scan larger than `max_size`, or geometry without meaning.
    """
    require("SimpleITK", "formats")
    with corrupt_as_error(path):
        header = _header(path)
        check_size(header.shape, path, max_size)
        _check_data_file(path, header)
        with ChildProcess(max_size) as child:
            facts, array = child.call(__name__, "decode", str(path))
    if facts["channels"] != 1:
        raise GalipError(f"{path}: has {facts['channels']} values a voxel; expected one grey value")
    decoded = _decoded(array, facts, str(path), axis)
    notes = () if header.oriented else (f"The header has no orientation, {_GUESS}",)
    return replace(decoded, notes=decoded.notes + notes)


def decode(path: str) -> tuple[dict[str, Any], np.ndarray]:
    """What the child runs."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    # The format is by the suffix, as for the checks of the header: ITK would ask the content.
    reader.SetImageIO("MetaImageIO" if path.lower().endswith((".mha", ".mhd")) else "NrrdImageIO")
    reader.SetFileName(path)
    image = reader.Execute()
    return _facts(image), sitk.GetArrayFromImage(image)


def is_itk_image(source: Any) -> bool:
    """Whether an object is a SimpleITK image, without importing SimpleITK."""
    return type(source).__module__.startswith("SimpleITK") and hasattr(source, "GetDirection")


def decode_image(image: Any, axis: str | None) -> Decoded:
    """A SimpleITK image in memory.

    Raises:
        GalipError: several channels, other than 2 to 4 axes, or geometry without meaning.
    """
    sitk = require("SimpleITK", "formats")
    facts = _facts(image)
    if facts["channels"] != 1:
        raise GalipError(f"image: has {facts['channels']} values a voxel; expected one grey value")
    return _decoded(sitk.GetArrayFromImage(image), facts, "image", axis)


def _facts(image: Any) -> dict[str, Any]:
    return {
        "spacing": image.GetSpacing(),
        "origin": image.GetOrigin(),
        "direction": image.GetDirection(),
        "channels": image.GetNumberOfComponentsPerPixel(),
        "ours": image.HasMetaDataKey(_OWN_KEY),
    }


def _decoded(array: np.ndarray, facts: dict[str, Any], name: str, axis: str | None) -> Decoded:
    """`array` is in ITK's order, slowest axis first: (time, z, y, x), (z, y, x) or (y, x)."""
    rank = array.ndim
    if rank not in (2, 3, 4):
        raise GalipError(f"{name}: has {rank} axes; expected a 2-D or 3-D scan, or a 4-D series")
    voxels = array.transpose()  # the file's order, x first
    space = min(rank, 3)
    direction, spacing, origin = np.eye(3), np.ones(3), np.zeros(3)
    direction[:space, :space] = np.reshape(facts["direction"], (rank, rank))[:space, :space]
    spacing[:space], origin[:space] = facts["spacing"][:space], facts["origin"][:space]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = _RAS_LPS @ direction * spacing, _RAS_LPS @ origin
    if not np.isfinite(affine).all():
        raise GalipError(f"{name}: the geometry {affine[:3].tolist()} is not finite; correct the header")
    header = geometry_header(voxels.shape, affine)
    if rank == 4:
        header["pixdim"][4] = facts["spacing"][3]
    layout = replace(nifti_layout(header, name, axis), exact_affine=affine)
    single = math.prod(voxels.shape) == math.prod(layout.shape)
    parts = [voxels] if single else (voxels[..., number] for number in range(voxels.shape[3]))
    return Decoded(parts, layout, (OWN_OUTPUT,) if facts["ours"] else ())


# Headers


def _header(path: Path) -> _Header:
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    if path.name.lower().endswith((".mha", ".mhd")):
        return _meta_header(start, path)
    return _nrrd_header(start, path)


def _meta_header(start: bytes, path: Path) -> _Header:
    # The header ends with this line. Found wherever it is in a line, so that ITK cannot see another first.
    found = re.search(rb"ElementDataFile[^\r\n]*(\r\n|\n|\r|$)", start)
    fields = _fields(start[: found.end()], r"(\w+)[ \t]*=[ \t]*(.*)", path) if found else {}
    if found is None or "ElementDataFile" not in fields:
        raise GalipError(f"{path}: truncated, or not MetaImage: it has no ElementDataFile; copy it again")
    itemsize = _META_BYTES.get(fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"))
    if itemsize is None:
        raise GalipError(f"{path}: ElementType is {fields.get('ElementType')!r}; expected MET_SHORT or such")
    shape = tuple(int(length) for length in fields["DimSize"].split())
    where = fields["ElementDataFile"]
    return _Header(
        shape,
        itemsize * int(fields.get("ElementNumberOfChannels", 1)),
        None if where.upper() == "LOCAL" else where,
        fields.get("CompressedData", "F")[:1].upper() == "T"
        or fields.get("BinaryData", "T")[:1].upper() == "F",
        bool({"TransformMatrix", "Rotation", "Orientation"} & set(fields)),
        found.end(),
    )


def _nrrd_header(start: bytes, path: Path) -> _Header:
    if not start.startswith(b"NRRD000"):
        raise GalipError(f"{path}: truncated, or not NRRD: it does not start with NRRD000; copy it again")
    end = re.search(rb"(\r\n|\n|\r(?!\n)){2}", start)
    fields = _fields(start[: end.start()] if end else start, r"([\w ]+):[ \t]+(.*)", path)
    fields = {name.lower(): value for name, value in fields.items()}  # as ITK does
    itemsize = _NRRD_BYTES.get(fields.get("type", ""))
    if itemsize is None:
        raise GalipError(f"{path}: the type is {fields.get('type')!r}; expected short, float or such")
    return _Header(
        tuple(int(length) for length in fields["sizes"].split()),
        itemsize,
        next((fields[name] for name in ("data file", "datafile") if name in fields), None),
        fields.get("encoding", "raw").lower() != "raw",
        "space" in fields and "space directions" in fields,
        end.end() if end else len(start),
    )


def _fields(header: bytes, pattern: str, path: Path) -> dict[str, str]:
    """Name to value, one a line; lines may end as on any system.

    Raises:
        GalipError: a name that is there twice, of which ITK may take the other.
    """
    found = [re.fullmatch(pattern, line.strip()) for line in re.split(r"[\r\n]+", header.decode("latin-1"))]
    pairs = [(match[1], match[2]) for match in found if match]
    names = [name.lower().replace(" ", "") for name, _ in pairs]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise GalipError(f"{path}: the header has the field {doubled!r} twice; remove one")
    return dict(pairs)


def _check_data_file(path: Path, header: _Header) -> None:
    """GalipError unless the voxels are in this file, or in one beside it that can hold them."""
    available = path.stat().st_size - header.length
    if header.data_file is not None:
        name = header.data_file.removeprefix("./")
        if name.split()[0:1] == ["LIST"] or "%" in name:
            raise GalipError(f"{path}: its voxels are in several files ({name}); save them as one")
        if name != Path(name).name or "\\" in name or not name or name in (".", ".."):
            raise GalipError(
                f"{path}: its voxels are said to be in {name!r}; expected a file in the same folder, without "
                "a path"
            )
        check_file(path.with_name(name))
        available = path.with_name(name).stat().st_size
    announced = math.prod(header.shape) * header.itemsize
    check_announced(announced, available * (DEFLATE_RATIO if header.compressed else 1), path)


# Writing


def check_itk() -> None:
    """GalipError unless SimpleITK is installed."""
    require("SimpleITK", "formats")


def write_itk(volumes: Sequence[Volume], path: Path) -> None:
    """Write volumes with geometry, one or those of a 4-D series, uncompressed.

    Raises:
        OSError: the file cannot be written whole.
    """
    sitk = require("SimpleITK", "formats")
    layout = volumes[0].source
    affine = layout.affine_mm
    assert affine is not None
    parts = [volume.to_source_array() for volume in volumes]
    flat = parts[0].ndim == 2 and not affine[2, :2].any() and not affine[:2, 2].any()
    rank = 2 if flat else 3
    data = parts[0] if flat else np.stack([part.reshape(layout.grid) for part in parts], axis=-1)
    if not flat and len(parts) == 1:
        data = data[..., 0]
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose()), isVector=False)
    lps = _RAS_LPS @ affine[:3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = np.eye(data.ndim)
    direction[:rank, :rank] = (lps[:, :3] / spacing)[:rank, :rank]
    extra = [float(layout.header["pixdim"][4]) or 1.0] if data.ndim == 4 and layout.header is not None else []
    image.SetSpacing([*spacing[:rank].tolist(), *extra])
    image.SetOrigin([*lps[:rank, 3].tolist(), *[0.0] * len(extra)])
    image.SetDirection(direction.ravel().tolist())
    image.SetMetaData(_OWN_KEY, DISCLAIMER)
    _reserve(path, data.nbytes)
    try:
        sitk.WriteImage(image, str(path), useCompression=False)
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())[-160:]) from None
    written = sum(file.stat().st_size for file in path.parent.iterdir() if file.stem == path.stem)
    if written < data.nbytes:  # ITK does not always notice that it could not write
        raise OSError(f"{written} of {data.nbytes} bytes could be written")


def _reserve(path: Path, size: int) -> None:
    """OSError unless a file of that size can be written: ITK would print of it, past Python's streams."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size + _LONGEST_HEADER_WRITTEN)


__all__ = ["check_itk", "decode", "decode_image", "is_itk_image", "read_itk", "write_itk"]
