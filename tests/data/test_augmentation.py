"""Augmentation: the geometry is the stated one, intensities move as stated, nothing global is touched."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import smooth_volume

from galip_hf.data.augmentation import SliceAugmentation, affine
from galip_hf.model.errors import GalipError


@pytest.fixture
def image() -> torch.Tensor:
    return torch.from_numpy(smooth_volume(1, slices=1))  # (1, 16, 16)


def test_affine_maps_are_those_asked_for(image: torch.Tensor) -> None:
    none = affine(image, rotation=0, translation=(0, 0), scale=1)
    torch.testing.assert_close(none, image, rtol=0, atol=1e-5)
    turned = affine(image, rotation=90, translation=(0, 0), scale=1)
    torch.testing.assert_close(turned, torch.rot90(image, 1, (1, 2)), rtol=0, atol=1e-5)
    moved = affine(image, rotation=0, translation=(3 / 16, 2 / 16), scale=1)
    torch.testing.assert_close(moved[:, 2:, 3:], image[:, :-2, :-3], rtol=0, atol=1e-5)
    assert not moved[:, :2].any() and not moved[:, :, :3].any()  # air comes in


def test_rotation_comes_before_translation_and_holds_off_square() -> None:
    tall = torch.zeros(1, 24, 12)
    tall[0, 8:16, 4:8] = 1.0  # twice as high as wide, centred
    turned = affine(tall, rotation=90, translation=(0, 0.25), scale=1)
    expected = torch.zeros(1, 24, 12)
    expected[0, 10 + 6 : 14 + 6, 2:10] = 1.0  # turned about the centre in pixels, then 6 rows down
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)


def test_scale_enlarges() -> None:
    square = torch.zeros(1, 32, 32)
    square[0, 12:20, 12:20] = 1.0
    assert affine(square, rotation=0, translation=(0, 0), scale=1.5).sum() == pytest.approx(
        64 * 2.25, rel=0.02
    )


def test_intensity_changes_gain_and_gamma_within_their_limits(image: torch.Tensor) -> None:
    augmentation = SliceAugmentation(intensity=0.1)
    black, grey = torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.8)  # white would be clamped
    gains, exponents = [], []
    for seed in range(200):
        whole = augmentation.apply(grey, np.random.default_rng(seed))[0, 0, 0].item()
        half = augmentation.apply(0.5 * grey, np.random.default_rng(seed))[0, 0, 0].item()
        exponents.append(np.log(half / whole) / np.log(0.5))
        gains.append(whole / 0.8 ** exponents[-1])
        assert not augmentation.apply(black, np.random.default_rng(seed)).any()
    for values in (gains, exponents):
        assert 0.9 <= min(values) < 0.92 and 1.08 < max(values) <= 1.1
    assert abs(np.corrcoef(gains, exponents)[0, 1]) < 0.3  # two draws, not one
    assert augmentation.apply(1.3 * image / image.max(), np.random.default_rng(0)).max() == 1


def test_half_of_the_slices_lose_resolution() -> None:
    stripes = torch.zeros(1, 32, 32)
    stripes[..., ::2] = 1.0
    augmentation = SliceAugmentation(resolution=0.5)
    contrasts = []
    for seed in range(100):
        image = augmentation.apply(stripes, np.random.default_rng(seed))
        assert image.shape == stripes.shape and image.min() >= 0 and image.max() <= 1
        assert image.mean() == pytest.approx(0.5, abs=0.05)
        contrasts.append((image[..., ::2].mean() - image[..., 1::2].mean()).item())
    assert 35 < sum(contrast == 1 for contrast in contrasts) < 65  # these were left as they are
    assert min(contrasts) < 0.1  # stripes of one pixel are lost at half the resolution


def test_equal_generators_give_equal_changes_with_or_without_intensity(image: torch.Tensor) -> None:
    geometry = {"rotation": 10.0, "translation": 0.05, "scale": 0.1}
    both = SliceAugmentation(intensity=0.1, **geometry)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    moved = SliceAugmentation(**geometry).apply(image, np.random.default_rng(3))
    assert not torch.allclose(moved, image, atol=1e-2)
    kept = both.apply(image, np.random.default_rng(3), changes_intensity=False)
    assert torch.equal(kept, moved)
    assert not torch.allclose(both.apply(image, np.random.default_rng(3)), moved, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_nothing_is_changed_by_default(image: torch.Tensor) -> None:
    assert torch.equal(SliceAugmentation().apply(image, np.random.default_rng(0)), image)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rotation": 46.0}, r"augmentation: rotation is 46.0; expected 0\.\.45 degrees"),
        ({"rotation": float("nan")}, "rotation is nan"),
        ({"translation": 0.5}, "translation is 0.5; expected 0 to below 0.5"),
        ({"scale": -0.1}, "scale is -0.1"),
        ({"intensity": 1.0}, "intensity is 1.0"),
        ({"resolution": 1.0}, "resolution is 1.0; expected 0 to below 1"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(GalipError, match=message):
        SliceAugmentation(**values)
