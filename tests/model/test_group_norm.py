"""GroupNorm in channels_last, without gradients, against float64."""

import pytest
import torch
import torch.nn.functional as F

from galip_hf.model import norm_silu_conv
from galip_hf.model.norm_silu_conv import channels_last, group_norm
from galip_hf.model.unet_blocks import GalipGroupNorm

# Height and width: few pixels; many; one row; narrow; as many as in use.
SIZES = [(6, 8), (40, 40), (40, 28), (1, 130), (60, 4), (256, 256)]


@pytest.fixture(autouse=True)
def small_maps_have_a_hundred_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_silu_conv, "SMALL_MAP", 100)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 10.0, 100.0, 1000.0])
def test_the_norm_is_exact_at_every_mean(ratio: float, groups: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = channels_last(2 * (torch.randn(2, 12, *size, generator=generator) + ratio))
    weight, bias = torch.rand(12, generator=generator) + 0.5, torch.rand(12, generator=generator)
    expected = F.group_norm(images.double().contiguous(), groups, weight.double(), bias.double(), 1e-5)
    found = group_norm(images, groups, weight, bias, 1e-5)
    tolerance = 3e-6 + 3e-7 * ratio  # the rounding of the input's own values
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [4, 12])
@pytest.mark.parametrize("ratio", [0.0, 10.0, 1000.0])
def test_half_precision_is_rounded_once(ratio: float, groups: int, dtype: torch.dtype) -> None:
    """The statistics are those in float32 of the given values; only the output is rounded."""
    generator = torch.Generator().manual_seed(0)
    images = channels_last(2 * (torch.randn(2, 12, 40, 28, generator=generator) + ratio)).to(dtype)
    weight, bias = torch.rand(12, generator=generator) + 0.5, torch.rand(12, generator=generator)
    expected = F.group_norm(images.double().contiguous(), groups, weight.double(), bias.double(), 1e-5)
    found = group_norm(images, groups, weight, bias, 1e-5)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    half_a_unit = torch.finfo(dtype).eps / 2
    tolerance = 3e-6 + 1e-6 * ratio
    torch.testing.assert_close(found.double(), expected, rtol=half_a_unit, atol=tolerance)


@pytest.mark.parametrize("groups", [4, 12])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 10.0, 100.0, 1000.0])
def test_the_module_is_exact_in_both_layouts(ratio: float, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = 2 * (torch.randn(2, 12, 12, 40, generator=generator) + ratio)
    norm = GalipGroupNorm(groups, 12, eps=1e-5)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.uniform_(-1, 1, generator=generator)
        parameters = (norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
        expected = F.group_norm(images.double(), *parameters)
        tolerance = 3e-6 + 3e-7 * ratio  # the rounding of the input's own values
        for given in (images, channels_last(images)):
            torch.testing.assert_close(norm(given).double(), expected, rtol=0, atol=tolerance)


def test_with_gradients_the_module_is_exact_in_both_layouts() -> None:
    images = (torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(0)) + 500).requires_grad_()
    norm = GalipGroupNorm(4, 8)
    gradients = []
    for given in (images, channels_last(images)):
        output = F.silu(norm(given))
        gradients.append((output, *torch.autograd.grad(output.square().mean(), [images, norm.weight])))
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-6)
    expected = F.silu(F.group_norm(images.double(), 4, eps=1e-5))
    torch.testing.assert_close(gradients[1][0].double(), expected, rtol=0, atol=2e-4)


def test_the_kernel_of_the_library_is_not() -> None:
    """Why there is one of our own; when this fails, there need not be one any more."""
    images = channels_last(torch.randn(1, 64, 64, 64, generator=torch.Generator().manual_seed(0)) + 1000)
    expected = F.group_norm(images.double().contiguous(), 32)
    assert (F.group_norm(images, 32).double() - expected).abs().max() > 0.1
    weight, bias = torch.ones(64), torch.zeros(64)
    assert (group_norm(images, 32, weight, bias, 1e-5).double() - expected).abs().max() < 1e-3


@pytest.mark.parametrize("groups", [1, 4, 12])
def test_the_form_for_other_devices_computes_the_same(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    images = channels_last(torch.randn(2, 12, 16, 18, generator=generator))
    weight = torch.rand(12, generator=generator) + 0.5
    results = []
    for is_cpu in (True, False):
        monkeypatch.setattr(norm_silu_conv, "_is_cpu", lambda _, value=is_cpu: value)
        results.append(group_norm(images, groups, weight, weight, 1e-5))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
