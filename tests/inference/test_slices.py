"""Slices through the generator in batches: order, equality with one batch, types."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import filled_model, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from galip_hf import GalipError, GalipForImageTranslation
from galip_hf.foreground import above_air
from galip_hf.inference.slices import CROP_MULTIPLE, foreground_box, translate_slices
from galip_hf.model.unet_blocks import GalipResidualBlock, GalipSpatialTransformer


@pytest.fixture(scope="module")
def model() -> GalipForImageTranslation:
    return filled_model(tiny_config())


@pytest.fixture
def slices() -> np.ndarray:
    return np.random.default_rng(0).random((7, 12, 18), dtype=np.float32)


def test_batches_equal_the_whole_in_order(model: GalipForImageTranslation, slices: np.ndarray) -> None:
    with torch.inference_mode():
        whole = model(torch.from_numpy(slices)[:, None], "CT").translation[:, 0].numpy()
    sizes: list[int] = []
    handle = model.conv_in.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    found = translate_slices(model, slices, "CT", batch_size=3)
    handle.remove()
    assert sizes == [3, 3, 1] and found.dtype == np.float32
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(translate_slices(model, slices, "CT"), whole, rtol=0, atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 0.1  # so that a wrong order would show


def test_the_target_matters(model: GalipForImageTranslation, slices: np.ndarray) -> None:
    difference = translate_slices(model, slices, "T1") - translate_slices(model, slices, "T2")
    assert np.abs(difference).max() > 0.01


def test_other_layouts_and_types_are_taken(model: GalipForImageTranslation, slices: np.ndarray) -> None:
    expected = translate_slices(model, slices[::-1].copy(), "T1")
    for same in (slices[::-1], slices[::-1].astype(np.float64)):
        np.testing.assert_allclose(translate_slices(model, same, "T1"), expected, rtol=0, atol=1e-5)


def test_unknown_domain(model: GalipForImageTranslation, slices: np.ndarray) -> None:
    with pytest.raises(GalipError, match="'PD' is unknown"):
        translate_slices(model, slices, "PD")


def test_noise_alone_is_air() -> None:
    rng = np.random.default_rng(0)
    slices = np.hypot(*(0.018 * rng.standard_normal((2, 3, 64, 64)))).astype(np.float32)
    slices[1, 20:24, 30:34] = 0.3  # a little of a body on one slice
    assert slices[0].max() > 0.06
    assert np.any(above_air(slices), axis=(1, 2)).tolist() == [False, True, False]


@pytest.mark.parametrize("start", [0, 40])
@pytest.mark.parametrize(("extent", "expected"), [(32, 32), (33, 64), (64, 64), (65, 96)])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_box_holds_the_whole_foreground(axis: int, extent: int, expected: int, start: int) -> None:
    """Rows and columns alike, on both sides of a multiple of 32; the other side of the slice is 20 pixels."""
    slices = np.zeros((2, 128, 128), np.float32)
    region: list[slice] = [slice(50, 70), slice(50, 70)]
    region[axis] = slice(start, start + extent)
    slices[1, region[0], region[1]] = 0.08  # too dim for the smoothing to carry it across its edges
    foreground = np.any(above_air(slices), axis=0)
    assert foreground.any(axis=1 - axis).sum() == extent
    box = foreground_box(slices)
    assert foreground[box].sum() == foreground.sum()
    lengths = [part.stop - part.start for part in box]
    assert lengths[axis] == expected and lengths[1 - axis] == CROP_MULTIPLE


def test_translations_are_computed_in_channels_last(model: GalipForImageTranslation) -> None:
    layouts: list[bool] = []
    handles = [
        module.register_forward_hook(
            lambda _, __, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
        )
        for module in model.modules()
        if isinstance(module, (GalipResidualBlock, GalipSpatialTransformer))
    ]
    images = torch.rand(2, 1, 12, 18, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (translated,) = model.translate(images, [model.prepare_target("CT")])
        assert layouts and all(layouts)
        expected = model(images, "CT").translation
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(translated, expected, rtol=0, atol=1e-5)


class ReadsOfTheDevice(TorchDispatchMode):
    """Counts what makes the host wait for the device: values read, and copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        waits = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal.", "unique", "masked_select")
        if any(part in name for part in waits) or ("_to_copy" in name and "device" in (kwargs or {})):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_a_translation_never_waits_for_the_device(model: GalipForImageTranslation) -> None:
    images = torch.rand(1, 1, 12, 18)
    with torch.no_grad():
        targets = [model.prepare_target(name) for name in ("T1", "CT")]
        with ReadsOfTheDevice() as reads:
            model.translate(images, targets)
        assert reads.names == []
        with ReadsOfTheDevice() as reads:  # the counter does count
            images.max().item()
    assert reads.names == ["aten._local_scalar_dense.default"]
