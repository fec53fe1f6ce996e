"""Scans in, scans out: axes, values and geometry of every format, and what is refused."""

import gzip
import itertools
import os
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io
from PIL import Image

from galip_hf.data.readers import read_volume
from galip_hf.data.volumes import Volume
from galip_hf.data.writers import write_volume
from galip_hf.model.errors import GalipError

CORNER = 100.0  # the value of the voxel furthest to the right, anterior and superior
RAS_SHAPE = (4, 5, 3)
RAS_SPACING = (1.5, 2.0, 3.0)
ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def ras_array() -> np.ndarray:
    """Distinct values along x (right), y (anterior), z (superior), with the marked corner."""
    array = np.arange(np.prod(RAS_SHAPE), dtype=np.float32).reshape(RAS_SHAPE)
    array[-1, -1, -1] = CORNER
    return array


def ras_image() -> nib.Nifti1Image:
    affine = nib.affines.from_matvec(np.diag(RAS_SPACING), [-10, 20, -30])
    return nib.Nifti1Image(ras_array(), affine)


def displayed() -> np.ndarray:
    """`ras_array` as (superior, posterior, left): what `Volume.array` must be, whatever the file's axes."""
    return ras_array().transpose(2, 1, 0)[:, ::-1, ::-1]


def stack(slices: int = 3) -> np.ndarray:
    return np.random.default_rng([7, slices]).random((slices, 6, 4)).astype(np.float32)


def message(path: Path, **options: str) -> str:
    """The one line with which reading is refused."""
    with pytest.raises(GalipError) as caught:
        read_volume(path, **options)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_every_nifti_orientation_is_shown_upright_and_written_back(orientation, tmp_path):
    source = ras_image().as_reoriented(orientation)
    nib.save(source, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.array.dtype == np.float32 and volume.array.flags["C_CONTIGUOUS"]
    assert volume.array[-1, 0, 0] == CORNER  # superior slice, anterior row, right column
    np.testing.assert_array_equal(volume.array, displayed())
    assert volume.spacing == (3.0, 2.0, 1.5)
    np.testing.assert_array_equal(volume.to_source_array(), np.asarray(source.dataobj))
    written = nib.load(write_volume(volume.with_array(volume.array + 0.25), tmp_path / "out.nii.gz"))
    np.testing.assert_array_equal(written.get_fdata(), source.get_fdata() + 0.25)
    np.testing.assert_array_equal(written.affine, source.affine)


def test_there_are_48_orientations():
    assert len({str(orientation) for orientation in ORIENTATIONS}) == 48


def test_oblique_affine_takes_the_closest_axes_and_is_kept(tmp_path):
    rotation = nib.eulerangles.euler2mat(0.3, -0.25, 0.35)
    orientation = np.array([[1, -1], [2, 1], [0, -1]])
    straight = ras_image().as_reoriented(orientation)
    affine = nib.affines.from_matvec(rotation, [1, 2, 3]) @ straight.affine
    nib.save(nib.Nifti1Image(np.asarray(straight.dataobj), affine), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.array, displayed())
    np.testing.assert_allclose(volume.spacing, (3.0, 2.0, 1.5), rtol=1e-6)
    written = nib.load(write_volume(volume, tmp_path / "out.nii"))
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(straight.dataobj))


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_header_survives_and_scale_is_reset(image_class, tmp_path):
    stored = np.arange(60, dtype=np.int16).reshape(RAS_SHAPE) * 500
    image = image_class(stored, np.diag([-2.0, 2.0, 2.5, 1.0]))
    image.set_sform(np.diag([-2.0, 2.0, 2.5, 1.0]), code=4)
    image.set_qform(nib.affines.from_matvec(np.diag([-2.0, 2.0, 2.5]), [5, 6, 7]), code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(0.1, -7.0)
    image.header["cal_max"] = 1000
    image.header["aux_file"] = b"Jane Roe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Roe"))
    image.to_filename(tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    exact = (stored * float(np.float32(0.1)) - 7.0).astype(np.float32)
    np.testing.assert_array_equal(volume.to_source_array(), exact)

    written = nib.load(write_volume(volume, tmp_path / "out.nii"))
    assert type(written) is image_class and written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(written.dataobj), exact)
    assert written.dataobj.slope == 1 and written.dataobj.inter == 0
    for form in ("get_sform", "get_qform"):
        (expected, code), (affine, written_code) = (getattr(i, form)(coded=True) for i in (image, written))
        assert written_code == code
        np.testing.assert_allclose(affine, expected, rtol=1e-6)
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.header["descrip"].item() == b"galip_hf: synthetic, not for diagnosis"
    assert written.header["cal_max"] == 0
    assert not written.header.extensions and written.header["aux_file"] == b""  # they may name the patient


def test_nifti_without_sform_and_qform_keeps_codes_of_zero(tmp_path):
    image = ras_image()
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    image.to_filename(tmp_path / "scan.nii")
    written = nib.load(write_volume(read_volume(tmp_path / "scan.nii"), tmp_path / "out.nii"))
    assert written.header["sform_code"] == 0 and written.header["qform_code"] == 0
    assert written.header.get_zooms() == RAS_SPACING


def test_spacing_is_in_millimetres_whatever_the_unit(tmp_path):
    image = nib.Nifti1Image(ras_array(), np.diag([1500.0, 2000.0, 3000.0, 1.0]))
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "scan.nii")
    assert read_volume(tmp_path / "scan.nii").spacing == (3.0, 2.0, 1.5)


@pytest.mark.parametrize("shape", [(4, 5, 3, 1), (4, 5, 3, 1, 1), (4, 5), (4, 5, 1), (4, 5, 1, 1)])
def test_nifti_shape_is_restored(shape, tmp_path):
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.array.shape == ((3, 5, 4) if 3 in shape else (1, 5, 4))
    assert volume.array[0, 0, 0] == data[(-1, -1) + (0,) * (len(shape) - 2)]
    written = nib.load(write_volume(volume, tmp_path / "out.nii"))
    assert written.shape == shape
    np.testing.assert_array_equal(np.asarray(written.dataobj), data)


@pytest.mark.parametrize(("thin", "corner"), [(0, "superior anterior"), (1, "superior right")])
def test_one_voxel_thick_volume_is_one_slice_in_its_own_plane(thin, corner, tmp_path):
    data = np.take(ras_array(), [-1], axis=thin)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.array.shape == (1, 3, 5 if thin == 0 else 4)
    assert volume.array[0, 0, 0] == CORNER, corner
    np.testing.assert_array_equal(volume.to_source_array(), data)


def test_compression_is_told_by_content_and_suffix_case_is_ignored(tmp_path):
    nib.save(ras_image(), tmp_path / "scan.nii")
    content = (tmp_path / "scan.nii").read_bytes()
    (tmp_path / "zipped.nii").write_bytes(gzip.compress(content))
    (tmp_path / "SCAN.NII.GZ").write_bytes(gzip.compress(content))
    for name in ("zipped.nii", "SCAN.NII.GZ"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, displayed())
    assert write_volume(read_volume(tmp_path / "scan.nii"), tmp_path / "OUT.NPY").name == "OUT.NPY"
    np.testing.assert_array_equal(np.load(tmp_path / "OUT.NPY"), displayed())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy", ".npz", ".mat"])
@pytest.mark.parametrize("slices", [1, 3])
def test_arrays_without_geometry_round_trip(suffix, slices, tmp_path):
    np.save(tmp_path / "scan.npy", stack(slices))
    volume = read_volume(tmp_path / "scan.npy")
    assert volume.spacing == (1.0, 1.0, 1.0) and volume.path == tmp_path / "scan.npy"
    again = read_volume(write_volume(volume, tmp_path / f"out{suffix}"))
    np.testing.assert_array_equal(again.array, stack(slices))
    assert not list(tmp_path.glob(".galip_hf_*"))


def test_array_becomes_nifti_with_identity_affine_shown_upright(tmp_path):
    image = nib.load(write_volume(Volume.from_array(stack()), tmp_path / "out.nii"))
    np.testing.assert_array_equal(image.affine, np.eye(4))
    data = np.asarray(image.dataobj)
    assert data[-1, -1, 0] == stack()[0, 0, 0]  # right, anterior, inferior
    assert data[0, -1, 0] == stack()[0, 0, -1]  # the last column is the patient's left
    assert data[-1, 0, 0] == stack()[0, -1, 0]  # the last row is posterior
    assert image.header["descrip"].item() == b"galip_hf: synthetic, not for diagnosis"


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".mat"])
def test_two_dimensional_files_stay_two_dimensional(suffix, tmp_path):
    np.save(tmp_path / "slice.npy", stack()[0])
    volume = read_volume(tmp_path / "slice.npy")
    np.testing.assert_array_equal(volume.array, stack()[:1])
    np.testing.assert_array_equal(volume.to_source_array(), stack()[0])
    again = read_volume(write_volume(volume, tmp_path / f"out{suffix}"))
    assert again.source.shape == (6, 4)
    np.testing.assert_array_equal(again.array, volume.array)


def test_matlab_axes_are_matlabs_own_in_both_versions(tmp_path):
    matlab = stack().transpose(1, 2, 0)  # (H, W, S), as MATLAB shows it
    scipy.io.savemat(tmp_path / "v5.mat", {"data_fs": matlab, "other": matlab})
    with h5py.File(tmp_path / "v73.mat", "w") as file:
        file["data_fs"] = matlab.T  # HDF5 sees MATLAB's axes reversed: (S, W, H)
    for name in ("v5.mat", "v73.mat"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.array, stack())
        np.testing.assert_array_equal(volume.to_source_array(), matlab)
    path = write_volume(volume, tmp_path / "out.mat")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["data_fs"][()], matlab.T)
        assert file["data_fs"].attrs["MATLAB_class"] == b"single" and file.userblock_size == 512
    assert path.read_bytes()[:19] == b"MATLAB 7.3 MAT-file"
    assert scipy.io.matlab.matfile_version(path) == (2, 0)  # what scipy calls v7.3


@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_variable_is_the_only_image_or_the_one_named(suffix, tmp_path):
    image, path = stack()[0], tmp_path / f"scan{suffix}"
    save = scipy.io.savemat if suffix == ".mat" else lambda name, arrays: np.savez(name, **arrays)
    save(path, {"img": image, "spacing": np.ones((1, 3)), "subject": "a text"})
    np.testing.assert_array_equal(read_volume(path).array[0], image)
    save(path, {"img": image, "mask": image * 2})
    assert "2 variables could be the scan" in message(path) and "img (6, 4), mask (6, 4)" in message(path)
    np.testing.assert_array_equal(read_volume(path, variable="mask").array[0], image * 2)
    assert "no variable 'ct'; the file holds img, mask" in message(path, variable="ct")
    save(path, {"subject": "a text"})
    assert "0 variables could be the scan" in message(path)


def test_matlab_73_text_cells_and_empty_arrays_are_no_images(tmp_path):
    path = tmp_path / "scan.mat"
    with h5py.File(path, "w") as file:
        file["img"] = stack()
        file["text"] = np.ones((5, 6), dtype=np.uint16)
        file["text"].attrs["MATLAB_class"] = np.bytes_("char")
        file["nothing"] = np.zeros(2, dtype=np.uint64)
        file["nothing"].attrs["MATLAB_class"] = np.bytes_("double")
        file["nothing"].attrs["MATLAB_empty"] = 1
        file.create_group("#refs#")
    assert read_volume(path).array.shape == (3, 4, 6)
    assert "'text' is not a numeric array" in message(path, variable="text")
    assert "'nothing' is empty" in message(path, variable="nothing")


def test_png_depths(tmp_path):
    deep = np.array([[0, 1, 256], [40000, 65534, 65535]], dtype=np.uint16)
    shallow = np.array([[0, 1, 2], [100, 254, 255]], dtype=np.uint8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(shallow).save(tmp_path / "shallow.png")
    Image.fromarray(np.stack([shallow] * 3, axis=-1)).save(tmp_path / "grey.png")
    for name, expected in (("deep", deep), ("shallow", shallow), ("grey", shallow)):
        np.testing.assert_array_equal(read_volume(tmp_path / f"{name}.png").array, expected[None])
    Image.fromarray(np.stack([shallow, shallow, shallow[::-1]], axis=-1)).save(tmp_path / "colour.png")
    assert "8-bit RGB picture with unequal channels" in message(tmp_path / "colour.png")
    Image.fromarray(shallow).convert("LA").save(tmp_path / "alpha.png")
    assert "grayscale with alpha" in message(tmp_path / "alpha.png")
    Image.fromarray(shallow).convert("P").save(tmp_path / "palette.png")
    assert "palette" in message(tmp_path / "palette.png")


def test_png_is_written_over_the_unit_window_only(tmp_path):
    values = np.array([[0.0, 0.5, 1.0], [0.25, 1 / 65535, 0.75]], dtype=np.float32)
    path = write_volume(Volume.from_array(values), tmp_path / "out.png")
    expected = [[[0, 32768, 65535], [16384, 1, 49151]]]
    np.testing.assert_array_equal(read_volume(path).array, expected)
    with pytest.raises(GalipError, match=r"span \[0, 1\.5\]; give the window"):
        write_volume(Volume.from_array(values * 1.5), tmp_path / "bright.png")
    with pytest.raises(GalipError, match="span"):
        write_volume(Volume.from_array(values - 0.01), tmp_path / "negative.png")
    with pytest.raises(GalipError, match="the volume has 3"):
        write_volume(Volume.from_array(stack()), tmp_path / "many.png")
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]  # nothing is left by a failure


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy", ".npz", ".mat", ".png"])
def test_truncated_garbled_and_empty_files(suffix, tmp_path):
    good = write_volume(Volume.from_array(stack(1)), tmp_path / f"good{suffix}").read_bytes()
    path = tmp_path / f"bad{suffix}"
    for length in (len(good) - 30, len(good) // 2, 60, 5):
        path.write_bytes(good[:length])
        assert "truncated" in message(path)
    path.write_bytes(b"this is not a scan" * 100)
    message(path)
    path.write_bytes(b"")
    assert "0 bytes" in message(path)


def test_compressed_nifti_with_a_changed_byte_is_refused(tmp_path):
    content = bytearray(gzip.compress(ras_image().to_bytes(), compresslevel=0))
    content[-20] ^= 1  # a voxel
    (tmp_path / "scan.nii.gz").write_bytes(content)
    assert "CRC" in message(tmp_path / "scan.nii.gz")


def test_paths_and_suffixes_that_cannot_be_read(tmp_path):
    assert "no such file" in message(tmp_path / "none.nii.gz")
    (tmp_path / "folder.npy").mkdir()
    assert "is a directory" in message(tmp_path / "folder.npy")
    (tmp_path / "scan.dcm").write_bytes(b"x")
    assert "unknown file suffix '.dcm'; supported are .nii.gz" in message(tmp_path / "scan.dcm")
    np.save(tmp_path / "scan.npy", stack())
    assert "only .mat and .npz" in message(tmp_path / "scan.npy", variable="data_fs")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (np.zeros(5), "shape (5,)"),
        (np.zeros((2, 3, 4, 5)), "shape (2, 3, 4, 5)"),
        (np.zeros((2, 0, 4)), "is empty"),
        (np.zeros((3, 4), dtype=complex), "complex"),
        (np.full((3, 4), "a"), "not numeric"),
        (np.array([[0, np.nan], [-np.inf, 1]]), "2 of 4 voxels are NaN, infinite or beyond float32"),
        (np.array([[0, np.nan], [-np.inf, 1]]), "the first at index (0, 1) of shape (2, 2)"),
        (np.array([[0, 1e300]]), "1 of 2 voxels"),
        (np.array([[None, 1]]), "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_no_scans(data, expected, tmp_path):
    np.save(tmp_path / "scan.npy", data)
    assert expected in message(tmp_path / "scan.npy")


def test_niftis_that_are_no_scans(tmp_path):
    def saved(data: np.ndarray, affine: np.ndarray | None = None) -> Path:
        nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), tmp_path / "scan.nii")
        return tmp_path / "scan.nii"

    assert "split a series into single volumes" in message(saved(np.zeros((2, 3, 4, 5), np.float32)))
    assert "complex" in message(saved(np.zeros((2, 3, 4), np.complex64)))
    colour = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "several channels ('R', 'G', 'B')" in message(saved(colour))
    assert "is empty" in message(saved(np.zeros((2, 0, 4), np.float32)))
    assert "1 of 24 voxels" in message(saved(np.where(np.arange(24) == 9, np.nan, 1.0).reshape(2, 3, 4)))
    path = saved(np.zeros((2, 3, 4), np.float32))
    content = bytearray(path.read_bytes())
    content[280:284] = np.float32(0).tobytes()  # srow_x[0]: the x axis of the sform vanishes
    path.write_bytes(content)
    assert "not invertible" in message(path)


def test_matlab_complex_data_in_both_versions(tmp_path):
    scipy.io.savemat(tmp_path / "v5.mat", {"data_fs": stack() + 1j})
    pairs = np.zeros((3, 4, 5), dtype=[("real", "f8"), ("imag", "f8")])
    with h5py.File(tmp_path / "v73.mat", "w") as file:
        file["data_fs"] = pairs
    assert "complex" in message(tmp_path / "v5.mat") and "complex" in message(tmp_path / "v73.mat")


def test_with_array_checks_shape_and_keeps_geometry(tmp_path):
    nib.save(ras_image(), tmp_path / "scan.nii")
    volume = read_volume(str(tmp_path / "scan.nii"))
    changed = volume.with_array(np.ones(volume.array.shape, dtype=np.float64))
    assert changed.array.dtype == np.float32 and changed.spacing == volume.spacing
    assert changed.source is volume.source and volume.array[-1, 0, 0] == CORNER
    with pytest.raises(GalipError, match=r"shape \(3, 4, 5\) does not match the volume's \(3, 5, 4\)"):
        volume.with_array(np.zeros((3, 4, 5)))
    with pytest.raises(GalipError, match="complex"):
        volume.with_array(np.zeros(volume.array.shape, dtype=complex))


def test_writing_refuses_what_would_lose_or_hide_data(tmp_path):
    volume, path = Volume.from_array(stack()), tmp_path / "out.npy"
    path.write_bytes(b"precious")
    with pytest.raises(GalipError, match="already exists"):
        write_volume(volume, path)
    assert path.read_bytes() == b"precious"
    write_volume(volume, path, overwrite=True)
    np.testing.assert_array_equal(np.load(path), stack())
    broken = stack()
    broken[1, 2, 3] = np.nan
    with pytest.raises(GalipError, match=r"1 of 72 voxels .* index \(1, 2, 3\)"):
        write_volume(volume.with_array(broken), path, overwrite=True)
    np.testing.assert_array_equal(np.load(path), stack())
    with pytest.raises(GalipError, match="does not exist; create it first"):
        write_volume(volume, tmp_path / "none" / "out.npy")
    with pytest.raises(GalipError, match=r"unknown file suffix '\.bmp'; supported are"):
        write_volume(volume, tmp_path / "out.bmp")
    with pytest.raises(GalipError, match="is a directory"):
        (tmp_path / "folder.npy").mkdir()
        write_volume(volume, tmp_path / "folder.npy", overwrite=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_directory_and_unreadable_file(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    np.save(tmp_path / "secret.npy", stack())
    (tmp_path / "secret.npy").chmod(0)
    assert "may not be read" in message(tmp_path / "secret.npy")
    locked.chmod(0o500)
    with pytest.raises(GalipError, match=r"out\.npy: the directory .* is not writable"):
        write_volume(Volume.from_array(stack()), locked / "out.npy")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where nobody can create files")
def test_directory_where_no_file_can_be_made():
    with pytest.raises(
        GalipError, match=r"self/out\.npy: (cannot be written|the directory .* is not writable)"
    ):
        write_volume(Volume.from_array(stack()), "/proc/self/out.npy")


def test_written_files_have_the_users_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = write_volume(Volume.from_array(stack()), tmp_path / "out.nii.gz")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
