"""A pipeline brings scans into the form of its training slices, says what it did, and what it doubts."""

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import filled_model, tiny_config

from galip_hf import GalipError, GalipImageProcessor, GalipPipeline
from galip_hf.data import phantom
from galip_hf.inference.translation import Translation
from galip_hf.model.slice_geometry import SliceGeometry

PIXEL = phantom.FIELD_OF_VIEW / 64
AFFINE = np.diag([PIXEL, PIXEL, 9.0, 1.0])


def make_pipeline(geometry: SliceGeometry | None) -> GalipPipeline:
    config = tiny_config(norm_groups=8)
    processor = GalipImageProcessor.from_config(config)
    processor.set_geometry(geometry)
    return GalipPipeline(filled_model(config), processor, name="tiny")


@pytest.fixture(scope="module")
def trained() -> GalipPipeline:
    return make_pipeline(
        SliceGeometry(("axial",), (PIXEL, PIXEL), (PIXEL, PIXEL), (64, 64), 51.0, (46.0, 57.0), 0.42, False)
    )


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    """A head in RAS order."""
    volume = phantom.render(phantom.make_subject(7, slices=6), "T1")
    return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1])


def translate(
    pipeline: GalipPipeline, voxels: np.ndarray, affine: np.ndarray = AFFINE, **options: Any
) -> Translation:
    return pipeline(nib.Nifti1Image(voxels.astype(np.float32), affine), "T2", "T1", **options)


def test_air_shifts_and_orientations_change_nothing(trained: GalipPipeline, voxels: np.ndarray) -> None:
    expected = translate(trained, voxels).array
    scale = np.ptp(expected)
    padded = translate(trained, np.pad(voxels, ((30, 10), (0, 64), (0, 0)))).array[30:-10, :-64]
    np.testing.assert_allclose(padded[4:-4, 4:-4], expected[4:-4, 4:-4], atol=0.02 * scale)
    image = nib.Nifti1Image(voxels.astype(np.float32), AFFINE)
    for codes in ("LPI", "PIR", "SLA"):
        change = nib.orientations.ornt_transform(
            nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes)
        )
        turned = image.as_reoriented(change)
        result = nib.Nifti1Image(trained(turned, "T2", "T1").array, turned.affine)
        np.testing.assert_array_equal(nib.as_closest_canonical(result).get_fdata(), expected)


def test_what_was_done_is_in_the_report(trained: GalipPipeline, voxels: np.ndarray) -> None:
    fine = np.repeat(np.repeat(voxels, 2, axis=0), 2, axis=1)
    translation = translate(trained, fine, np.diag([PIXEL / 2, PIXEL / 2, 9.0, 1.0]))
    geometry = translation.report["geometry"]
    assert geometry["used"] == "model" and geometry["scale"] == [0.5, 0.5]
    assert geometry["scale_from"] == "the training pixel size" and geometry["canvas"] == [64, 64]
    assert translation.array.shape == fine.shape
    native = translate(trained, fine, geometry="native")
    assert native.report["geometry"]["used"] == "native"
    assert native.report["geometry"]["why"] == "asked for"
    without = translate(make_pipeline(None), voxels)
    assert "keeps no geometry" in without.report["geometry"]["why"]
    with pytest.raises(GalipError, match="geometry is 'mine'; expected one of model, native"):
        translate(trained, voxels, geometry="mine")


def test_the_plane_of_the_training_is_taken(trained: GalipPipeline, voxels: np.ndarray) -> None:
    translation = translate(trained, voxels)
    assert translation.volume.plane == "axial"
    assert not any("slices are" in warning for warning in translation.warnings)
    asked = translate(trained, voxels, axis="coronal")
    assert asked.volume.plane == "coronal"
    assert any("slices are coronal" in warning for warning in asked.warnings)
    both = make_pipeline(
        SliceGeometry(("axial", "sagittal"), (1.0, 1.0), (1.0, 1.0), (64, 64), 51.0, (46.0, 57.0), 0.4, False)
    )
    # A sagittal acquisition: 6 mm from left to right, 1 mm within the slices.
    sagittal = translate(both, voxels, np.diag([6.0, 1.0, 1.0, 1.0]), resample=1.0)
    assert sagittal.volume.plane == "sagittal"
    thick = translate(trained, voxels, np.diag([12.0, 2.0, 2.0, 1.0]), resample=4.0)
    assert any("acquired in another plane" in warning for warning in thick.warnings)


def test_a_stripped_brain_is_doubted_by_a_model_of_heads(trained: GalipPipeline, voxels: np.ndarray) -> None:
    subject = phantom.make_subject(7, slices=6)
    tissues = [
        phantom.TISSUES.index(name) for name in phantom.TISSUES if name not in ("air", "scalp", "bone")
    ]
    inside = subject.fractions[tissues].sum(axis=0).transpose(2, 1, 0)[:, ::-1] > 0.5
    assert not any("skull" in warning for warning in translate(trained, voxels).warnings)
    stripped = translate(trained, voxels * inside)
    assert any(
        "looks like a skull-stripped brain, and the model was trained on whole heads" in warning
        for warning in stripped.warnings
    )


def test_metal_and_foreign_units_are_warned_of(trained: GalipPipeline, voxels: np.ndarray) -> None:
    hounsfield = np.where(voxels > 50, 40.0, -1000.0)
    hounsfield[30:33, 30:33, 2:4] = 12000
    image = nib.Nifti1Image(hounsfield.astype(np.float32), AFFINE)
    translation = trained(image, "T2", "CT")
    assert translation.report["metal_slices"] == [2, 3]
    assert any("slices 2-3 hold metal (above 3000 HU)" in warning for warning in translation.warnings)
    shifted = nib.Nifti1Image((hounsfield + 3000).astype(np.float32), AFFINE)  # no HU at all
    assert any("far outside the intensity window" in text for text in trained(shifted, "T2", "CT").warnings)
    clean = nib.Nifti1Image(np.where(voxels > 50, 40.0, -1000.0).astype(np.float32), AFFINE)
    assert trained(clean, "T2", "CT").report["far_outside_fraction"] == 0


def test_a_stray_voxel_is_as_good_as_a_white_one(trained: GalipPipeline, voxels: np.ndarray) -> None:
    """What lies far outside the window changes the slice no more than the window's end does."""

    def translated(value: float) -> Translation:
        spoilt = voxels.copy()
        spoilt[30, 30, 3] = value
        # T2's rule has percentiles 1 and 99.
        return trained(nib.Nifti1Image(spoilt.astype(np.float32), AFFINE), "T1", "T2")

    for value, end in ((32767.0, 1), (1e9, 1), (-1e5, 0)):
        white = translated(translated(value).report["window"][end])
        width = np.subtract(*white.report["window"][::-1])
        np.testing.assert_allclose(translated(value).array, white.array, atol=2e-3 * width)
