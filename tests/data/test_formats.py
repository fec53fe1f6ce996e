"""The formats beside NIfTI, DICOM and arrays: values and geometry there and back, and what is doubtful."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from galip_hf.data.pictures import GreyScale
from galip_hf.data.readers import read_volume, read_volumes
from galip_hf.data.scans import find_scans, read_scan, write_scan
from galip_hf.data.volumes import Volume
from galip_hf.data.writers import write_volume
from galip_hf.model.errors import GalipError

sitk = pytest.importorskip("SimpleITK", reason="pip install 'galip-hf[formats]'")

ROTATION = nib.eulerangles.euler2mat(0.3, -0.25, 0.35)
OBLIQUE = nib.affines.from_matvec(ROTATION @ np.diag([-1.5, 2.0, 3.25]), [10.123456789, -20.5, 30.25])
WITH_GEOMETRY = [".nii.gz", ".img", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd"]


def stack(*shape: int) -> np.ndarray:
    return np.random.default_rng([9, *shape]).random(shape).astype(np.float32)


def nifti(path: Path, affine: np.ndarray = OBLIQUE) -> Path:
    """(5, 6, 4) voxels, int16."""
    nib.Nifti1Image((stack(5, 6, 4) * 1000).astype(np.int16), affine).to_filename(path)
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(GalipError) as caught:
        read_volume(path, **options)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    return str(caught.value)


# --- geometry ---


@pytest.mark.parametrize("suffix", WITH_GEOMETRY)
def test_one_scan_is_the_same_in_every_format(suffix: str, tmp_path: Path) -> None:
    reference = read_volume(nifti(tmp_path / "scan.nii"))
    again = read_volume(write_volume(reference, tmp_path / f"copy{suffix}"))
    np.testing.assert_array_equal(again.array, reference.array)
    np.testing.assert_allclose(again.source.affine, reference.source.affine, rtol=0, atol=1e-5)
    np.testing.assert_allclose(again.spacing, (3.25, 2.0, 1.5), rtol=1e-6)
    for axis in ("coronal", "sagittal"):
        plane = read_volume(tmp_path / f"copy{suffix}", axis=axis).array
        np.testing.assert_array_equal(plane, read_volume(tmp_path / "scan.nii", axis=axis).array)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_geometry_is_what_simpleitk_reads(suffix: str, tmp_path: Path) -> None:
    """LPS in the file, RAS here: SimpleITK's own reading names the same world points."""
    volume = read_volume(nifti(tmp_path / "scan.nii"))
    image = sitk.ReadImage(str(write_volume(volume, tmp_path / f"copy{suffix}")))
    x, y, z = image.TransformIndexToPhysicalPoint((4, 2, 3))
    np.testing.assert_allclose([-x, -y, z], (OBLIQUE @ [4, 2, 3, 1])[:3], atol=1e-5)
    assert image.GetPixel(4, 2, 3) == np.asarray(nib.load(tmp_path / "scan.nii").dataobj)[4, 2, 3]


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_itk_files_come_back_on_exactly_their_grid(suffix: str, tmp_path: Path) -> None:
    """In float64: ITK's filters refuse two images whose origins differ by a millionth of a voxel."""
    image = sitk.GetImageFromArray(stack(4, 6, 5))
    image.SetOrigin((-200.123456789012, 3.1, 7.7))
    image.SetSpacing((0.123456789, 0.3, 2.7))
    image.SetDirection(ROTATION.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"), useCompression=True)
    volume = read_volume(tmp_path / f"scan{suffix}")
    again = sitk.ReadImage(str(write_volume(volume, tmp_path / f"copy{suffix}")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), stack(4, 6, 5))
    source = sitk.ReadImage(str(tmp_path / f"scan{suffix}"))
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(again, name)(), getattr(source, name)(), rtol=0, atol=1e-12)
    assert "itself a translation" in read_volume(tmp_path / f"copy{suffix}").notes[0]


@pytest.mark.parametrize("suffix", [".nii", ".img", ".mgh", ".nrrd", ".mha"])
def test_series_keep_their_volumes(suffix: str, tmp_path: Path) -> None:
    nib.Nifti1Image(stack(5, 6, 4, 3), OBLIQUE).to_filename(tmp_path / "scan.nii.gz")
    volumes = read_scan(tmp_path / "scan.nii.gz")
    again = read_volumes(write_scan(volumes, tmp_path / f"copy{suffix}"))
    assert len(again) == 3
    for volume, expected in zip(again, volumes, strict=True):
        np.testing.assert_array_equal(volume.array, expected.array)


def test_two_dimensional_itk_images(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(stack(6, 5))
    image.SetSpacing((0.5, 0.75))
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    volume = read_volume(tmp_path / "scan.mha")
    np.testing.assert_array_equal(volume.array[0], stack(6, 5))  # identity directions: shown as stored
    again = sitk.ReadImage(str(write_volume(volume, tmp_path / "copy.mha")))
    assert again.GetSize() == (5, 6) and again.GetSpacing() == (0.5, 0.75)


@pytest.mark.parametrize("suffix", WITH_GEOMETRY)
def test_arrays_are_written_upright(suffix: str, tmp_path: Path) -> None:
    volume = read_volume(write_volume(Volume.from_array(stack(4, 6, 5)), tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(volume.array, stack(4, 6, 5))
    np.testing.assert_array_equal(volume.source.affine, np.eye(4))


def test_analyze_and_spm(tmp_path: Path) -> None:
    """Plain Analyze runs from right to left by convention, and the reader says so; SPM's .mat is exact."""
    for kind, name in ((nib.AnalyzeImage, "plain"), (nib.Spm99AnalyzeImage, "spm")):
        image = kind(stack(5, 6, 4), OBLIQUE if name == "spm" else np.diag([-1.5, 2, 3.25, 1]))
        image.to_filename(tmp_path / f"{name}.img")
    plain = read_volume(tmp_path / "plain.hdr")
    np.testing.assert_array_equal(plain.to_source_array(), stack(5, 6, 4))
    np.testing.assert_allclose(np.diag(plain.source.affine)[:3], [-1.5, 2, 3.25])
    assert "left and right" in plain.notes[0]
    spm = read_volume(tmp_path / "spm.img")
    np.testing.assert_allclose(spm.source.affine, OBLIQUE, atol=1e-5)
    assert spm.notes == ()
    (tmp_path / "plain.img").unlink()
    assert "plain.img is missing" in refused(tmp_path / "plain.hdr")


def test_a_pair_is_one_scan(tmp_path: Path) -> None:
    nib.Nifti1Pair(stack(5, 6, 4), OBLIQUE).to_filename(tmp_path / "a.img")
    assert [scan.path.name for scan in find_scans([tmp_path])] == ["a.img"]


def test_images_and_tensors_in_memory(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path / "scan.nii"))
    (from_itk,) = read_scan(sitk.ReadImage(str(tmp_path / "scan.nii")))
    np.testing.assert_array_equal(from_itk.array, volume.array)
    np.testing.assert_allclose(from_itk.source.affine, volume.source.affine, atol=1e-5)
    tensor = torch.from_numpy(stack(3, 6, 5)).requires_grad_()
    np.testing.assert_array_equal(read_scan(tensor)[0].array, stack(3, 6, 5))
    half = read_scan(tensor.to(torch.bfloat16))[0].array
    np.testing.assert_allclose(half, stack(3, 6, 5), rtol=2**-8)


# --- what is doubtful ---


def patched(path: Path, **fields: Any) -> Path:
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path


def test_a_header_without_orientation_is_told(tmp_path: Path) -> None:
    path = patched(nifti(tmp_path / "a.nii", np.diag([-2.0, 2, 2, 1])), sform_code=0, qform_code=0)
    (note,) = read_volume(path).notes
    assert "both codes are 0" in note and "left and right" in note
    np.save(tmp_path / "a.npy", stack(3, 4, 5))
    assert read_volume(tmp_path / "a.npy").notes == ()  # arrays have no orientation to begin with
    text = b"NRRD0004\ntype: float\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(text + stack(8).tobytes())
    assert "left and right" in read_volume(tmp_path / "a.nrrd").notes[0]


@pytest.mark.parametrize("size", [0.0, np.nan])
def test_the_sform_counts_where_pixdim_is_broken(size: float, tmp_path: Path) -> None:
    expected = read_volume(nifti(tmp_path / "a.nii"))
    patched(tmp_path / "a.nii", pixdim=[1, 1.5, 2, size, 0, 0, 0, 0])
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.array, expected.array)
    assert volume.spacing == expected.spacing and "the sform was used" in volume.notes[0]
    written = nib.load(write_volume(volume, tmp_path / "b.nii"))
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(written.header.get_zooms(), (1.5, 2, 3.25), rtol=1e-6)
    patched(tmp_path / "a.nii", sform_code=0, qform_code=1)
    assert "voxel size" in refused(tmp_path / "a.nii")


def test_headers_that_lie_are_told_with_both_numbers(tmp_path: Path) -> None:
    expected = read_volume(nifti(tmp_path / "a.nii")).array
    content = (tmp_path / "a.nii").read_bytes()
    for fields, told in (
        ({"vox_offset": 0}, "vox_offset is 0, inside the header; the voxels were read from byte 352"),
        ({"bitpix": 32}, "bitpix is 32, but the datatype 4 has 16 bits"),
        ({"scl_slope": np.inf}, "scl_slope is inf, so the values were not scaled"),
        ({}, f"holds {len(content) + 7} bytes and its header announces {len(content)}"),
    ):
        (tmp_path / "b.nii").write_bytes(content + (b"" if fields else bytes(7)))
        volume = read_volume(patched(tmp_path / "b.nii", **fields))
        np.testing.assert_array_equal(volume.array, expected)
        assert told in volume.notes[0]
    np.save(tmp_path / "a.npy", expected)
    with (tmp_path / "a.npy").open("ab") as file:
        file.write(bytes(9))
    assert f"announces {expected.nbytes + 128}" in read_volume(tmp_path / "a.npy").notes[0]
    patched(nifti(tmp_path / "a.nii", np.diag([2.0, 2, 2, 1])), srow_x=[1e-30, 0, 0, 0])
    assert "expected sizes between 0.0001 and 1000 mm" in refused(tmp_path / "a.nii")


def test_nan_is_air_where_it_is_asked_for(tmp_path: Path) -> None:
    data = stack(5, 6, 4) + 1
    data[0, 0, :2] = np.nan
    nib.Nifti1Image(data, OBLIQUE).to_filename(tmp_path / "a.nii")
    assert "2 of 120 voxels are NaN" in refused(tmp_path / "a.nii") and "--nan-background" in refused(
        tmp_path / "a.nii"
    )
    volume = read_volume(tmp_path / "a.nii", nan_background=True)
    np.testing.assert_array_equal(volume.to_source_array(), np.nan_to_num(data, nan=0.0))
    assert volume.notes == ("2 of 120 voxels are NaN and were taken as air (0).",)
    (signed,) = read_scan(data - 1000, nan_background=True)
    assert signed.array[0, 0, 0] == np.nanmin(data - 1000)
    data[1, 1, 1] = np.inf
    with pytest.raises(GalipError, match="infinite"):
        read_scan(data, nan_background=True)
    with pytest.raises(GalipError, match="all 4 voxels are NaN"):
        read_scan(np.full((2, 2), np.nan), nan_background=True)


@pytest.mark.parametrize("suffix", [".nii.gz", ".img", ".nrrd", ".mha", ".png", ".tif"])
def test_our_own_outputs_are_known_by_their_content(suffix: str, tmp_path: Path) -> None:
    write_volume(Volume.from_array(stack(1, 6, 5)), tmp_path / f"a{suffix}")
    assert "The input is itself a translation" in " ".join(read_scan(tmp_path / f"a{suffix}")[0].notes)


# --- pictures ---


def test_tiff_pages_are_slices(tmp_path: Path) -> None:
    deep = (stack(3, 6, 5) * 65535).astype(np.uint16)
    for name, data, options in (
        ("deep", deep, {}),
        ("packed", deep, {"compression": "tiff_lzw"}),
        ("shallow", (deep >> 8).astype(np.uint8), {}),
        ("float", stack(3, 6, 5), {}),
    ):
        pages = [Image.fromarray(page) for page in data]
        pages[0].save(tmp_path / f"{name}.tif", save_all=True, append_images=pages[1:], **options)
        np.testing.assert_array_equal(read_volume(tmp_path / f"{name}.tif").array, data.astype(np.float32))
    Image.fromarray(deep[0]).save(tmp_path / "white.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(read_volume(tmp_path / "white.tif").array[0], 65535 - deep[0])
    Image.fromarray(np.stack([deep[0] >> 8] * 3, axis=-1).astype(np.uint8)).save(tmp_path / "grey.tiff")
    np.testing.assert_array_equal(read_volume(tmp_path / "grey.tiff").array[0], deep[0] >> 8)
    other = [Image.fromarray(deep[0]), Image.fromarray(deep[0, :4])]
    other[0].save(tmp_path / "mixed.tif", save_all=True, append_images=other[1:])
    assert "page 1 is of" in refused(tmp_path / "mixed.tif")


def test_a_window_is_written_over_the_sources_scale(tmp_path: Path) -> None:
    values = np.array([[-1200.0, -1000, 0], [500, 1000, 1001]], dtype=np.float32)
    for dtype, largest in ((np.uint8, 255), (np.uint16, 65535)):
        Image.fromarray(np.eye(2, 3).astype(dtype)).save(tmp_path / f"{largest}.png")
        volume = read_volume(tmp_path / f"{largest}.png").with_array(values[None])
        for suffix in (".png", ".tif"):
            path = write_volume(volume, tmp_path / f"out{largest}{suffix}", window=(-1000, 1000))
            stored = np.asarray(Image.open(path))
            # Older versions of Pillow open a PNG of 16 bits as int32.
            assert stored.dtype == dtype or (largest == 65535 and stored.dtype == np.int32)
            expected = np.rint(np.clip((values + 1000) / 2000, 0, 1) * largest)
            np.testing.assert_array_equal(stored, expected)
    assert GreyScale(-1000, 1000, 255).clipped(values) == 1  # 1001 is within the rounding of 1000
    assert GreyScale(-1000, 1000, 65535).clipped(values) == 2
    path = write_volume(Volume.from_array(values), tmp_path / "float.tif", window=(-1000, 1000))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), values)  # not a picture: float32


# --- files that attack the reader ---


def test_links_out_of_a_matlab_file_are_not_followed(tmp_path: Path) -> None:
    import h5py

    secret = stack(4, 6)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["img"] = secret
    (tmp_path / "raw").write_bytes(secret.tobytes())
    layout = h5py.VirtualLayout(shape=(4, 6), dtype="f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "img", shape=(4, 6))
    with h5py.File(tmp_path / "link.mat", "w") as file:
        file["img"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/img")
    with h5py.File(tmp_path / "chain.mat", "w") as file:
        file["#refs#/x"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/img")
        file["img"] = h5py.SoftLink("/#refs#/x")
    with h5py.File(tmp_path / "virtual.mat", "w") as file:
        file.create_virtual_dataset("img", layout)
    with h5py.File(tmp_path / "external.mat", "w") as file:
        file.create_dataset("img", (4, 6), "f4", external=[(str(tmp_path / "raw"), 0, 96)])
    for name in ("link", "chain", "virtual", "external"):
        for options in ({}, {"variable": "img"}):
            assert "'img' is a link, or data in other files" in refused(tmp_path / f"{name}.mat", **options)


@pytest.mark.parametrize("where", ["../secret.raw", "/etc/hostname", "LIST", "slice%02d.raw 1 4 1", ""])
def test_detached_voxels_lie_beside_their_header(where: str, tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(1000))
    (tmp_path / "in").mkdir()
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\n"
    (tmp_path / "in" / "a.mhd").write_text(f"{meta}ElementDataFile = {where}\n")
    (tmp_path / "in" / "a.mha").write_text(f"{meta}ElementDataFile = {where}\n")
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nencoding: raw\n"
    (tmp_path / "in" / "a.nhdr").write_text(f"{nrrd}data file: {where}\n\n")
    (tmp_path / "in" / "b.nhdr").write_text(f"{nrrd}datafile: {where}\n\n")
    for name in ("a.mhd", "a.mha", "a.nhdr", "b.nhdr"):
        message = refused(tmp_path / "in" / name)
        assert "in the same folder" in message or "several files" in message or not where


@pytest.mark.parametrize(
    ("name", "trick"),
    [
        ("a.mhd", "{meta} ElementDataFile = ../secret.raw\nElementDataFile = LOCAL\n"),
        ("a.mhd", "{meta}Comment = x\rElementDataFile = ../secret.raw\nElementDataFile = a.raw\n"),
        ("a.nhdr", "{nrrd}DATA FILE: ../secret.raw\n\n"),
        ("a.nhdr", "{nrrd}content: x\rdata file: ../secret.raw\n\n"),
        ("a.nhdr", "{nrrd}data file: a.raw\nDataFile: ../secret.raw\n\n"),
    ],
)
def test_headers_that_hide_another_file_from_the_check(name: str, trick: str, tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(b"secret" * 4)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.raw").write_bytes(bytes(24))
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\n"
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nencoding: raw\n"
    (tmp_path / "in" / name).write_text(trick.format(meta=meta, nrrd=nrrd), newline="")
    message = refused(tmp_path / "in" / name)
    assert "in the same folder" in message or "twice" in message


def test_nrrd_in_other_spaces(tmp_path: Path) -> None:
    """RAS as it is, LPS turned, in one file with the voxels, or with CRLF line ends."""
    for space, sign in (("right-anterior-superior", 1), ("left-posterior-superior", -1)):
        text = (
            f"NRRD0004\ntype: uchar\ndimension: 3\nspace: {space}\nsizes: 2 3 4\n"
            "space directions: (0,2,0) (-1.5,0,0) (0,0,3)\nspace origin: (7,8,9)\n"
            "kinds: domain domain domain\nencoding: raw\n\n"
        )
        (tmp_path / "a.nrrd").write_bytes(text.encode() + np.arange(24, dtype=np.uint8).tobytes())
        volume = read_volume(tmp_path / "a.nrrd")
        expected = np.array([[0, -1.5 * sign, 0, 7 * sign], [2 * sign, 0, 0, 8 * sign], [0, 0, 3, 9]])
        np.testing.assert_allclose(volume.source.affine[:3], expected, atol=1e-12)
        np.testing.assert_array_equal(volume.to_source_array().ravel(order="F"), np.arange(24))


def test_sizes_beyond_the_limit_are_refused_from_the_header(tmp_path: Path) -> None:
    """Each file holds what it announces, and is small or sparse: only the limit can refuse it."""
    import gzip

    limit = 100_000  # bytes as float32: 25,000 voxels, 3,125 a slice
    big = np.zeros((40, 40, 40), np.uint8)
    nib.Nifti1Image(big, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    nib.Nifti1Pair(big, np.eye(4)).to_filename(tmp_path / "a.img")
    nib.MGHImage(big, np.eye(4)).to_filename(tmp_path / "a.mgz")
    sitk.WriteImage(sitk.GetImageFromArray(big), str(tmp_path / "a.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(big), str(tmp_path / "a.mha"))
    np.save(tmp_path / "a.npy", big)
    np.savez_compressed(tmp_path / "a.npz", big)
    scipy.io.savemat(tmp_path / "v5.mat", {"img": big})
    write_volume(Volume.from_array(big), tmp_path / "v73.mat")
    pages = [Image.fromarray(page) for page in big]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(tmp_path / "slice.png")
    for path in sorted(tmp_path.iterdir()):
        if path.suffix == ".hdr":
            continue
        message = refused(path, max_size=limit)
        assert "raise --max-size" in message, message
        assert ("3600 in one slice; the limit is 3125" in message) == (path.name == "slice.png")
        read_volume(path)
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(content + bytes(1 << 22)))
    assert "holds more than" in refused(tmp_path / "bomb.nii.gz")


def test_the_default_limit(tmp_path: Path) -> None:
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 13000, 13000, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(13001 * 1000))
    chunks = [head, b"IDAT" + body + bytes(200_000)]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    (tmp_path / "a.png").write_bytes(png)
    assert "169000000 in one slice; the limit is 67108864" in refused(tmp_path / "a.png")
