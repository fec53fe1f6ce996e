"""Scans in every form: found, read along an axis, round trips over shapes, types and affines."""

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import hounsfield, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from galip_hf.data.scans import ScanSource, find_scans, read_scan, write_scan
from galip_hf.data.volumes import Volume
from galip_hf.model.errors import GalipError

GEOMETRY_FIELDS = ("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d")
GEOMETRY_FIELDS += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")


def stack(*shape: int) -> np.ndarray:
    return np.random.default_rng([5, *shape]).random(shape).astype(np.float32)


def refused(source: object, **options: str) -> str:
    with pytest.raises(GalipError) as caught:
        read_scan(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- finding ---


def test_a_folder_is_searched_and_nothing_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for place in ("sub-01/anat", "sub-02/anat", ".hidden"):
        (tmp_path / place).mkdir(parents=True)
        np.save(tmp_path / place / "T1w.npy", stack(2, 4, 5))
    nib.Nifti1Image(stack(4, 5, 2), np.eye(4)).to_filename(tmp_path / "sub-01" / "anat" / "T1w.nii.gz")
    (tmp_path / "broken.nii").write_bytes(b"nothing")
    (tmp_path / "sub-01" / "anat" / "T1w.json").write_text("{}")
    write_series(tmp_path / "dicom" / "with", slices=3, series="1.2.1")
    write_series(tmp_path / "dicom" / "without", slices=2, series="1.2.2", suffix="")
    (tmp_path / "dicom" / "broken.dcm").write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING):
        scans = find_scans([tmp_path])
    assert [scan.name for scan in scans] == [
        "broken",
        "dicom_broken.dcm",
        "dicom_with",
        "dicom_without",
        f"{tmp_path.name}_sub-01_anat_T1w",
        f"{tmp_path.name}_sub-01_anat_T1w-2",
        "sub-02_anat_T1w",
    ]
    assert "1 files are no scans and are left out: 1 .json" in caplog.text
    by_name = {scan.name: scan for scan in scans}
    assert (by_name["dicom_with"].series_uid, by_name["dicom_without"].series_uid) == ("1.2.1", "1.2.2")
    assert by_name["dicom_with"].path == tmp_path / "dicom" / "with"
    assert len(read_scan(by_name["dicom_without"])[0].array) == 2
    for name in ("broken", "dicom_broken.dcm"):
        assert str(tmp_path) in refused(by_name[name])
    assert find_scans([tmp_path, tmp_path / "broken.nii"]) == scans  # a file reached twice is one scan


def test_files_given_one_by_one(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "scan.npy", stack(2, 4, 5))
    write_series(tmp_path / "ct", series="1.2.1")
    names = [scan.name for scan in find_scans([tmp_path / "a" / "scan.npy", tmp_path / "b" / "scan.npy"])]
    assert names == ["a_scan", "b_scan"]
    (slice_,) = find_scans([sorted((tmp_path / "ct").iterdir())[0]])
    assert slice_.name == "02" and read_scan(slice_)[0].array.shape == (1, 48, 64)
    (series,) = find_scans([tmp_path / "ct"])
    assert series.name == "ct" and len(series.files) == 4
    (tmp_path / "notes.txt").write_text("x")
    assert "unknown file suffix '.txt'" in refused(find_scans([tmp_path / "notes.txt"])[0])
    with pytest.raises(GalipError, match="no such file or folder"):
        find_scans([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(GalipError, match="no scans in this folder"):
        find_scans([tmp_path / "empty"])


# --- what a scan may be ---


def test_everything_a_scan_may_be(tmp_path: Path) -> None:
    array = stack(3, 4, 5)
    np.save(tmp_path / "a.npy", array)
    for source in (
        tmp_path / "a.npy",
        str(tmp_path / "a.npy"),
        ScanSource(tmp_path / "a.npy", None, "a"),
        array,
    ):
        np.testing.assert_array_equal(read_scan(source)[0].array, array)
    volume = Volume.from_array(array)
    assert read_scan(volume) == [volume]
    for mode, values in (("L", (array[0] * 255).astype(np.uint8)), ("F", array[0])):
        np.testing.assert_array_equal(read_scan(Image.fromarray(values, mode))[0].array[0], values)
    grey = Image.fromarray((array[0] * 255).astype(np.uint8)).convert("RGB")
    assert read_scan(grey)[0].array.shape == (1, 4, 5)
    grey.putpixel((0, 0), (1, 2, 3))
    assert "unequal channels" in refused(grey)
    assert "mode CMYK" in refused(grey.convert("CMYK"))
    assert "found int" in refused(3)
    assert "no such file" in refused(tmp_path / "none.nii")
    assert "only .mat and .npz" in refused(array, variable="x")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage, nib.Spm99AnalyzeImage])
def test_images_of_nibabel(kind: type, tmp_path: Path) -> None:
    array, affine = stack(4, 5, 3), np.diag([-1.5, 2, 3, 1])
    image = kind(array, affine)
    (volume,) = read_scan(image)
    np.testing.assert_array_equal(volume.to_source_array(), array)
    np.testing.assert_allclose(volume.source.affine, affine)
    assert volume.path is None


def test_an_affine_given_beside_a_header_counts(tmp_path: Path) -> None:
    image = nib.Nifti1Image(stack(4, 5, 3), np.eye(4))
    image.affine[:3, :3] *= 2
    assert read_scan(image)[0].spacing == (2.0, 2.0, 2.0)
    np.testing.assert_array_equal(image.header.get_best_affine(), np.eye(4))  # the caller's is as it was


# --- axes ---


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "ASL", "SRP", "IPR"])
def test_the_axis_is_by_the_affine(codes: str, tmp_path: Path) -> None:
    ras = stack(4, 5, 3)  # right, anterior, superior
    image = nib.Nifti1Image(ras, np.diag([1.0, 2, 3, 1]))
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
        )
    )
    turned.to_filename(tmp_path / "scan.nii")
    expected = {
        None: ras.transpose(2, 1, 0)[:, ::-1, ::-1],
        "axial": ras.transpose(2, 1, 0)[:, ::-1, ::-1],
        "coronal": ras.transpose(1, 2, 0)[:, ::-1, ::-1],
        "sagittal": ras.transpose(0, 2, 1)[:, ::-1, ::-1],
    }
    spacing = {None: (3, 2, 1), "axial": (3, 2, 1), "coronal": (2, 3, 1), "sagittal": (1, 3, 2)}
    for axis, array in expected.items():
        (volume,) = read_scan(tmp_path / "scan.nii", axis=axis)
        np.testing.assert_array_equal(volume.array, array)
        assert volume.spacing == spacing[axis]
        written = nib.load(write_scan([volume], tmp_path / "out.nii", overwrite=True))
        np.testing.assert_array_equal(written.get_fdata(), turned.get_fdata())
        np.testing.assert_array_equal(written.affine, turned.affine)


def test_axes_that_cannot_be(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", stack(3, 4, 5))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.npy", axis="axial")[0].array, stack(3, 4, 5))
    assert "the data have no geometry" in refused(tmp_path / "a.npy", axis="coronal")
    assert "axis 'transverse' is unknown; expected sagittal, coronal, axial" in refused(
        nib.Nifti1Image(stack(3, 4, 5), np.eye(4)), axis="transverse"
    )


# --- 4-D ---


@pytest.mark.parametrize("shape", [(4, 5, 3, 2), (4, 5, 1, 3), (4, 5, 3, 2, 1)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_series_is_read_and_written_volume_by_volume(shape: tuple, suffix: str, tmp_path: Path) -> None:
    data = (stack(*shape) * 3000).astype(np.int16)
    image = nib.Nifti1Image(data, np.diag([-2.0, 2, 4, 1]))
    image.set_qform(image.affine, 1)
    image.header.set_zooms((2, 2, 4, 1.5, 1)[: len(shape)])
    image.header.set_slope_inter(0.5, 10)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(tmp_path / f"a{suffix}")
    volumes = read_scan(tmp_path / f"a{suffix}")
    assert len(volumes) == shape[3]
    for number, volume in enumerate(volumes):
        expected = data[:, :, :, number].reshape(shape[:3]) * 0.5 + 10
        np.testing.assert_array_equal(volume.to_source_array(), expected)
    path = write_scan([volume.with_array(volume.array + 1) for volume in volumes], tmp_path / f"b{suffix}")
    written = nib.load(path)
    np.testing.assert_array_equal(written.get_fdata(), data * 0.5 + 11)
    original = nib.load(tmp_path / f"a{suffix}")
    for name in GEOMETRY_FIELDS:
        assert written.header[name].tobytes() == original.header[name].tobytes(), name
    one = nib.load(write_scan(volumes[:1], tmp_path / "one.nii")) if shape[3] == 1 else None
    assert one is None or one.shape == shape
    with pytest.raises(GalipError, match="expected one, or all those of one 4-D series"):
        write_scan(volumes[:-1] + volumes[:1] + volumes[:1], tmp_path / "c.nii")
    with pytest.raises(GalipError, match="only fit into a 4-D file"):
        write_scan(volumes, tmp_path / "c.npy")
    assert not (tmp_path / "c.nii").exists() and not (tmp_path / "c.npy").exists()


def test_one_volume_of_a_series_is_a_file_of_its_own(tmp_path: Path) -> None:
    nib.Nifti1Image(stack(4, 5, 3, 2), np.eye(4)).to_filename(tmp_path / "a.nii")
    from galip_hf.data.writers import write_volume

    written = nib.load(write_volume(read_scan(tmp_path / "a.nii")[1], tmp_path / "b.nii"))
    np.testing.assert_array_equal(written.get_fdata(), stack(4, 5, 3, 2)[..., 1])


# --- headers without meaning ---


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("pixdim", [1, 0, 1, 1, 1, 1, 1, 1], "voxel size [0.0, 1.0, 1.0] (pixdim) has a zero"),
        ("pixdim", [1, 1, np.nan, 1, 1, 1, 1, 1], "(pixdim) has a zero or is not finite"),
        ("srow_x", [np.nan, 0, 0, 0], "the affine [[nan, 0.0, 0.0, 0.0]"),
        ("srow_x", [0, 0, 0, 0], "is not invertible"),
        ("dim", [5, 2, 3, 4, 2, 3, 1, 1], "shape (2, 3, 4, 2, 3); expected a 2-D or 3-D scan"),
        ("dim", [3, 20000, 20000, 20000, 1, 1, 1, 1], "announces 32000000000352 bytes"),
        ("dim", [3, 2, 3, -4, 1, 1, 1, 1], "is empty"),
        ("datatype", 128, "several channels ('R', 'G', 'B')"),
        ("datatype", 77, "cannot be read"),
        ("magic", b"ni1", "not a single-file NIfTI"),
        ("sizeof_hdr", 100, "does not start with 348 or 540"),
        ("vox_offset", np.nan, "cannot be read"),
        ("vox_offset", 1e30, "truncated or corrupt"),
        ("qform_code", 99, "the qform_code 99 does not exist"),
    ],
)
def test_broken_headers(
    field: str, value: object, expected: str, tmp_path: Path, capfd, caplog: pytest.LogCaptureFixture
) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((2, 3, 4))
    header.set_sform(np.eye(4), 0 if field in ("qform_code", "pixdim") else 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header[field] = value
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(1000))
    message = refused(tmp_path / "a.nii")
    assert expected in message and message.startswith(str(tmp_path / "a.nii"))
    assert capfd.readouterr() == ("", "") and not caplog.records  # nibabel's own remarks are held back


def test_sizes_are_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    """Announced: far more than the machine has. A MemoryError would be reported as such."""
    content = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    content += (
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (90000, 90000, 90000), }".ljust(117) + b"\n"
    )
    (tmp_path / "a.npy").write_bytes(content + bytes(1000))
    assert "announces 5832000000000000 bytes" in refused(tmp_path / "a.npy")
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 13000, 13000, 16, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (tmp_path / "a.png").write_bytes(png + struct.pack(">I", 10) + b"IDAT" + bytes(14))
    assert "announces 338000000 bytes" in refused(tmp_path / "a.png")
    import h5py

    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("data_fs", shape=(9000, 9000, 9000), dtype="f8", chunks=(1, 64, 64))
    assert "announces 5832000000000 bytes" in refused(tmp_path / "a.mat")


def test_what_a_small_gzip_could_announce_is_bounded(tmp_path: Path) -> None:
    import gzip

    image = nib.Nifti1Image(stack(4, 5, 3), np.eye(4))
    content = bytearray(image.to_bytes())
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert "announces 108000000000352 bytes" in refused(tmp_path / "a.nii.gz")


# --- round trips ---

REAL = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64", ">i2", ">f4"]


@st.composite
def images(draw: st.DrawFn) -> nib.Nifti1Image:
    """Any real data type, 2 to 4 axes, rotated, sheared, flipped and anisotropic affines, any codes."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=5))
    dtype = np.dtype(draw(st.sampled_from(REAL)))
    limits = {"u": (0, 200), "i": (-100, 100)}.get(dtype.kind)
    elements = st.integers(*limits) if limits else st.floats(-1e6, 1e6, width=32)
    data = draw(hnp.arrays(dtype, shape, elements=elements))
    angles = [draw(st.floats(-3, 3)) for _ in range(3)]
    sizes = [draw(st.floats(0.1, 9)) * draw(st.sampled_from([-1, 1])) for _ in range(3)]
    shear = np.eye(3) + np.diag([draw(st.floats(-0.2, 0.2)), draw(st.floats(-0.2, 0.2))], k=1)
    affine = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(*angles) @ shear @ np.diag(sizes),
        [draw(st.floats(-500, 500)) for _ in range(3)],
    )
    kind = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    image = kind(data, affine)
    image.set_sform(affine, draw(st.integers(0, 4)))
    image.set_qform(affine, draw(st.integers(0, 4)))
    if dtype.kind in "ui" and draw(st.booleans()):
        image.header.set_slope_inter(draw(st.floats(0.01, 10)), draw(st.floats(-100, 100)))
    return image


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(image=images(), axis=st.sampled_from([None, "axial", "coronal", "sagittal"]))
def test_nifti_comes_back_on_the_same_header(
    image: nib.Nifti1Image, axis: str | None, tmp_path: Path
) -> None:
    image.to_filename(tmp_path / "a.nii")
    read = nib.load(tmp_path / "a.nii")
    volumes = read_scan(tmp_path / "a.nii", axis=axis)
    written = nib.load(write_scan(volumes, tmp_path / "b.nii", overwrite=True))
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(read.dataobj).astype(np.float32))
    assert written.shape == read.shape and type(written) is type(read)
    np.testing.assert_array_equal(written.affine, read.affine)
    for name in GEOMETRY_FIELDS:
        assert written.header[name].tobytes() == read.header[name].tobytes(), name
    np.testing.assert_array_equal(
        [volume.array.size for volume in volumes], [volume.to_source_array().size for volume in volumes]
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6),
        elements=st.floats(-(2.0**90), 2.0**90, width=32),
    ),
    suffix=st.sampled_from([".npy", ".npz", ".mat", ".nii", ".nii.gz"]),
)
def test_arrays_come_back_from_every_format(data: np.ndarray, suffix: str, tmp_path: Path) -> None:
    (volume,) = read_scan(data)
    path = write_scan(volume, tmp_path / f"a{suffix}", overwrite=True)
    (again,) = read_scan(path, variable="data_fs" if suffix in (".npz", ".mat") else None, axis="axial")
    np.testing.assert_array_equal(again.array, volume.array)


def test_dicom_and_nifti_of_one_scan_agree(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    (volume,) = read_scan(tmp_path / "ct")
    (nifti,) = read_scan(write_scan(volume, tmp_path / "ct.nii"))
    np.testing.assert_array_equal(nifti.array, hounsfield())
    assert nifti.spacing == volume.spacing


def test_a_harmless_oddity_of_the_header_is_passed_over_in_silence(tmp_path: Path, capfd, caplog) -> None:
    image = nib.Nifti1Image(stack(4, 5, 3), np.eye(4))
    content = bytearray(image.to_bytes())
    content[108:112] = np.float32(353).tobytes()  # vox_offset, "not SPM compatible"
    (tmp_path / "a.nii").write_bytes(content[:352] + bytes(1) + content[352:])
    volumes = read_scan(tmp_path / "a.nii")
    np.testing.assert_array_equal(volumes[0].to_source_array(), stack(4, 5, 3))
    write_scan(volumes, tmp_path / "b.nii")
    assert capfd.readouterr() == ("", "") and not caplog.records
    np.testing.assert_array_equal(nib.load(tmp_path / "b.nii").get_fdata(), stack(4, 5, 3))
