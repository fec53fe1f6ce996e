"""Placement: to the training's canvas and back, without seams, for every size, shift and plane of a scan."""

import nibabel as nib
import numpy as np
import pytest

from galip_hf.data.scans import read_scan
from galip_hf.data.volumes import Volume
from galip_hf.foreground import body_extent
from galip_hf.inference.placement import Placement, place_as_trained, place_natively, resize_slices
from galip_hf.model.slice_geometry import SliceGeometry


def geometry(canvas: int = 48, pixel: float | None = 2.0, extent: float = 24.0) -> SliceGeometry:
    size = None if pixel is None else (pixel, pixel)
    return SliceGeometry(("axial",), size, size, (canvas, canvas), extent, (extent, extent), 0.3)


def square(side: int, at: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    body = np.zeros((3, *shape), bool)
    body[:, at[0] : at[0] + side, at[1] : at[1] + side] = True
    return body


def scan(shape: tuple[int, int], pixel: float) -> Volume:
    """Of zeros, with square pixels."""
    image = nib.Nifti1Image(np.zeros((shape[1], shape[0], 3), np.float32), np.diag([pixel, pixel, 5, 1]))
    return read_scan(image)[0]


def values(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_a_scan_like_the_training_is_only_moved() -> None:
    body = square(24, (4, 30), (40, 60))
    placement = place_as_trained(scan((40, 60), 2.0), body, geometry(), None)
    assert placement.resized == (40, 60) and placement.corners == ((4 + 12 - 24, 30 + 12 - 24),)
    slices = values((3, 40, 60)) * body
    tiles = placement.tiles(slices)
    assert tiles.shape == (3, 48, 48)
    np.testing.assert_array_equal(tiles[:, 12:36, 12:36], slices[:, 4:28, 30:54])
    np.testing.assert_array_equal(placement.restore(tiles), slices)


def test_shifts_and_padding_change_nothing_on_the_canvas() -> None:
    head = values((3, 24, 24))
    canvases = []
    for at, shape in (((4, 30), (40, 60)), ((0, 0), (24, 24)), ((70, 9), (100, 200))):
        slices = np.zeros((3, *shape), np.float32)
        slices[:, at[0] : at[0] + 24, at[1] : at[1] + 24] = head
        placement = place_as_trained(scan(shape, 2.0), square(24, at, shape), geometry(), None)
        canvases.append(placement.tiles(slices))
        np.testing.assert_array_equal(placement.restore(canvases[-1]), slices)
    assert np.array_equal(canvases[0], canvases[1]) and np.array_equal(canvases[0], canvases[2])


@pytest.mark.parametrize("pixel", [1.0, 3.1])
def test_other_pixel_sizes_are_resampled_and_back(pixel: float) -> None:
    side = round(48 / pixel)
    shape = (3 * side, 3 * side)
    body = square(side, (side, side), shape)
    placement = place_as_trained(scan(shape, pixel), body, geometry(), None)
    extent = body_extent(placement.resize(body.astype(np.float32)) > 0.5)
    assert extent == pytest.approx(24, abs=1)
    rows = np.linspace(0, 1, shape[0], dtype=np.float32)
    smooth = (np.ones((3, *shape), np.float32) * rows[None, :, None]) * body
    back = placement.restore(placement.tiles(smooth))
    inner = (slice(None), *(slice(side + 3, 2 * side - 3),) * 2)
    np.testing.assert_allclose(back[inner], smooth[inner], atol=0.02)
    assert back.shape == smooth.shape and placement.report["scale_from"] == "the training pixel size"


@pytest.mark.parametrize("lower", [0.0, -1.0])
def test_tiles_overlap_and_leave_no_seam(lower: float) -> None:
    """Also for signed values, such as those of HU."""
    body = square(100, (10, 5), (120, 110))
    placement = place_as_trained(scan((120, 110), 2.0), body, geometry(extent=90.0), None)
    starts = sorted({row for row, _ in placement.corners})
    assert len(placement.corners) == 9 and max(np.diff(starts)) <= 0.75 * 48
    slices = values((2, 120, 110)) * (1 - lower) + lower
    tiles = np.stack(
        [slices[:, row : row + 48, column : column + 48] for row, column in placement.corners]
    ).reshape(-1, 48, 48)
    back = placement.restore(tiles)
    covered = (slice(None), slice(8, 112), slice(3, 107))
    np.testing.assert_allclose(back[covered], slices[covered], rtol=0, atol=1e-6)
    # Tiles that disagree by a constant are blended: no step between neighbours is more than a ramp's.
    constants = np.repeat(np.linspace(0, 1, 9, dtype=np.float32), 2)[:, None, None] * np.ones((18, 48, 48))
    steps = np.abs(np.diff(placement.restore(constants.astype(np.float32))[covered], axis=1))
    assert steps.max() < 0.1


def test_a_header_that_cannot_be_true_gives_way_to_the_body() -> None:
    body = square(24, (20, 20), (64, 64))
    placement = place_as_trained(scan((64, 64), 0.1), body, geometry(), None)
    assert placement.resized == (64, 64) and "not credible" in placement.report["scale_from"]
    assert "0.05 times as large as in training" in placement.notes[0]
    asked = place_as_trained(scan((64, 64), 0.1), body, geometry(), 0.1)
    assert asked.resized == (64, 64) and not asked.notes


def test_thick_pixels_are_told_and_unknown_ones_are_left() -> None:
    image = nib.Nifti1Image(np.zeros((40, 12, 3), np.float32), np.diag([2, 8, 5, 1]))
    body = np.ones((3, 12, 40), bool)
    placement = place_as_trained(read_scan(image)[0], body, geometry(extent=40.0), None)
    assert "8 x 2 mm" in placement.notes[0]
    unknown = place_as_trained(Volume.from_array(np.zeros((3, 12, 40))), body, geometry(), None)
    assert unknown.resized == (12, 40) and "unknown" in unknown.report["scale_from"]


def test_native_takes_the_grid_as_it_is() -> None:
    volume = Volume.from_array(np.zeros((3, 40, 60)))
    placement = place_natively(volume, np.zeros((3, 40, 60), np.float32), None, False, "asked for")
    assert placement.canvas == placement.resized == (40, 60) and placement.report["why"] == "asked for"
    slices = values((3, 40, 60))
    assert np.array_equal(placement.restore(placement.tiles(slices)), slices)


def test_resizing_is_antialiased_and_keeps_the_field_of_view() -> None:
    stripes = np.zeros((1, 64, 64), np.float32)
    stripes[..., ::2] = 1
    small = resize_slices(stripes, 32, 32)
    np.testing.assert_allclose(small[:, 4:-4, 4:-4], 0.5, atol=0.05)
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), (1, 64, 64))
    np.testing.assert_allclose(
        resize_slices(ramp, 32, 32)[0, 0, 4:-4], ramp[0, 0].reshape(32, 2).mean(1)[4:-4], atol=1e-3
    )


def test_placement_is_plain_data() -> None:
    placement = Placement((4, 4), (4, 4), (4, 4), ((0, 0),), {})
    assert placement.resize(slices := values((1, 4, 4))) is slices
