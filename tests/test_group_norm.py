"""Statistics and gradients of GroupNorm in channels_last, against float64 and PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from galip_hf import group_norm
from galip_hf.group_norm import channels_last, group_norm_gradients, group_statistics, scale_and_shift

# Height and width: few pixels; several parts, the last of them smaller.
SIZES = [(6, 8), (40, 40)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_norm, "PART", 12 * 40 * 12)
    monkeypatch.setattr(group_norm, "FEW", 100)


def normalised(images: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    scale, shift = scale_and_shift(images, *group_statistics(images, groups, 1e-5), weight, bias)
    return images * scale + shift


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 10.0, 100.0, 1000.0])
def test_the_norm_is_exact_at_every_mean(ratio: float, groups: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = channels_last(2 * (torch.randn(2, 12, *size, generator=generator) + ratio))
    weight, bias = torch.rand(12, generator=generator) + 0.5, torch.rand(12, generator=generator)
    expected = F.group_norm(images.double().contiguous(), groups, weight.double(), bias.double(), 1e-5)
    found = normalised(images, groups, weight, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    tolerance = 3e-6 + 5e-7 * ratio  # the rounding of the input's own values
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def test_the_kernel_of_the_library_is_not() -> None:
    """Why there is one of our own; when this fails, there need not be one any more."""
    images = channels_last(torch.randn(1, 64, 64, 64, generator=torch.Generator().manual_seed(0)) + 1000)
    expected = F.group_norm(images.double().contiguous(), 32)
    assert (F.group_norm(images, 32).double() - expected).abs().max() > 0.1
    weight, bias = torch.ones(64), torch.zeros(64)
    assert (normalised(images, 32, weight, bias).double() - expected).abs().max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [1, 4, 12])
def test_the_gradients_are_those_of_the_library(groups: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    images, gradient = torch.randn(2, 2, 12, *size, dtype=torch.float64, generator=generator)
    weight, bias = torch.randn(2, 12, dtype=torch.float64, generator=generator)
    leaves = [value.clone().requires_grad_() for value in (images, weight, bias)]
    expected = torch.autograd.grad(F.group_norm(leaves[0], groups, *leaves[1:]), leaves, gradient)
    images, gradient = channels_last(images), channels_last(gradient)
    statistics = group_statistics(images, groups, 1e-5)
    found = group_norm_gradients(gradient, images, *statistics, weight)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 4, 12])
def test_the_form_for_other_devices_computes_the_same(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    images, gradient = (channels_last(value) for value in torch.randn(2, 2, 12, 6, 8, generator=generator))
    weight = torch.rand(12, generator=generator) + 0.5
    results = []
    for is_cpu in (True, False):
        monkeypatch.setattr(group_norm, "_is_cpu", lambda _, value=is_cpu: value)
        statistics = group_statistics(images, groups, 1e-5)
        results.append((*statistics, *group_norm_gradients(gradient, images, *statistics, weight)))
    for value, reference in zip(*results, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)
