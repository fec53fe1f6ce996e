"""The geometry that is measured on a table's training slices."""

from pathlib import Path

import numpy as np
import pytest

from galip_hf.data.phantom_table import PhantomRecipe, phantom_volumes
from galip_hf.data.slice_geometry import measure_geometry
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, crop_or_pad, write_table
from galip_hf.model.domains import IXI_DOMAINS
from galip_hf.model.intensity import IntensityNormalizer

DOMAINS = ["T1", "T2", "PD"]


def test_of_the_phantom(tmp_path: Path) -> None:
    recipe = PhantomRecipe(train_subjects=2, validation_subjects=0, slices=6)
    volumes = phantom_volumes(recipe, IntensityNormalizer(list(IXI_DOMAINS)), 0)
    directory = write_table(volumes, tmp_path / "table", domains=DOMAINS, image_size=80)
    geometry = measure_geometry(load_table(directory)["train"], directory)
    assert geometry is not None
    assert geometry.planes == ("axial",) and geometry.pixel_size == (4.0, 4.0)
    assert geometry.pixel_size_range == (4.0, 4.0) and geometry.canvas == (80, 80)
    assert 170 < geometry.body_extent * 4 < 240  # mm, of an adult's head
    assert geometry.skull_stripped is False
    body = geometry.body_extent**2 / 80**2  # the share of the bounding box
    assert 0.6 * body < geometry.foreground_share < body


def test_what_is_not_known_of_all_volumes_is_not_known(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def volume(domain: str, pixel: tuple[float, float] | None, plane: str | None) -> SubjectVolume:
        array = np.zeros((4, 32, 32), np.float32)
        array[:, 8:24, 4:28] = 0.5 + rng.random((4, 16, 24)) / 4
        return SubjectVolume(array, domain, f"s-{domain}", "train", plane=plane, pixel_size=pixel)

    for plane in ("axial", None):
        mixed = [volume("T1", (1.0, 2.0), "axial"), volume("T2", None, plane)]
        directory = write_table(mixed, tmp_path / f"{plane}", domains=["T1", "T2"], image_size=None)
        geometry = measure_geometry(load_table(directory)["train"], directory)
        assert geometry is not None and geometry.pixel_size is None and geometry.skull_stripped is None
        assert geometry.planes == (("axial",) if plane else ())
        assert geometry.body_extent == pytest.approx(np.sqrt(16 * 24), abs=1)
    both = [volume("T1", (1.0, 2.0), "axial"), volume("T2", (3.0, 2.0), "coronal")]
    directory = write_table(both, tmp_path / "both", domains=["T1", "T2"], image_size=None)
    geometry = measure_geometry(load_table(directory)["train"], directory)
    assert geometry is not None and geometry.pixel_size == (2.0, 2.0)
    assert geometry.pixel_size_range == (1.0, 3.0) and geometry.planes == ("axial", "coronal")


def test_a_crop_about_a_centre() -> None:
    image = np.arange(30.0).reshape(1, 5, 6)
    np.testing.assert_array_equal(crop_or_pad(image, 2, (1, 5)), image[:, 0:2, 4:6])
    moved = crop_or_pad(image, 4, (1, 5))
    np.testing.assert_array_equal(moved[:, 1:, :3], image[:, :3, 3:])
    assert not moved[:, 0].any() and not moved[:, :, 3].any()
