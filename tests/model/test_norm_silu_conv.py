"""GroupNorm, SiLU, resampling and convolution as one operation: the composed form is the reference."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from galip_hf.model.group_norm import channels_last
from galip_hf.model.norm_silu_conv import norm_silu_convolution, resampled


def layers(dtype: torch.dtype) -> tuple[nn.GroupNorm, nn.Conv2d]:
    torch.manual_seed(0)
    norm, conv = nn.GroupNorm(4, 8), nn.Conv2d(8, 6, 3, padding=1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(dtype), conv.to(dtype)


def outputs_and_gradients(function: Any, inputs: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    inputs = inputs.detach().requires_grad_()
    output = function(inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), [inputs, *parameters])]


@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_outputs_and_gradients_are_those_of_the_composed_form(resample: Any, mean: float) -> None:
    norm, conv = layers(torch.float64)
    inputs = mean + torch.randn(3, 8, 10, 12, dtype=torch.float64)
    parameters = [*norm.parameters(), *conv.parameters()]
    found = outputs_and_gradients(
        lambda x: norm_silu_convolution(norm, conv, x, resample), inputs, parameters
    )
    expected = outputs_and_gradients(lambda x: conv(resampled(F.silu(norm(x)), resample)), inputs, parameters)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-12)


def test_parts_of_the_channels_add_up_to_the_whole() -> None:
    norm, conv = layers(torch.float64)
    inputs = torch.randn(2, 8, 10, 12, dtype=torch.float64)
    parameters = [*norm.parameters(), *conv.parameters()]

    def by_parts(x: Tensor) -> Tensor:
        first = norm_silu_convolution(norm, conv, x[:, :6], channels=slice(None, 6))
        return first + norm_silu_convolution(norm, conv, x[:, 6:], channels=slice(6, None))

    expected = outputs_and_gradients(lambda x: norm_silu_convolution(norm, conv, x), inputs, parameters)
    found = outputs_and_gradients(by_parts, inputs, parameters)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-11)


def test_an_added_bias_is_added_once() -> None:
    norm, conv = layers(torch.float64)
    inputs, bias = torch.randn(2, 8, 10, 12, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    bias.requires_grad_()
    parameters: list[Any] = [*norm.parameters(), *conv.parameters(), bias]
    parts = [{"channels": slice(None, 6)}, {"channels": slice(6, None)}]
    expected = outputs_and_gradients(
        lambda x: conv(F.silu(norm(x))) + bias[:, None, None], inputs, parameters
    )
    whole = outputs_and_gradients(
        lambda x: norm_silu_convolution(norm, conv, x, added_bias=bias), inputs, parameters
    )
    by_parts = outputs_and_gradients(
        lambda x: sum(
            norm_silu_convolution(norm, conv, x[:, part["channels"]], added_bias=bias, **part)
            for part in parts
        ),
        inputs,
        parameters,
    )
    for found in (whole, by_parts):
        for value, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_all_is_channels_last(resample: Any) -> None:
    norm, conv = layers(torch.float32)
    inputs = channels_last(torch.randn(2, 8, 10, 12)).requires_grad_()
    output = norm_silu_convolution(norm, conv, inputs, resample)
    (gradient,) = torch.autograd.grad(output.square().sum(), [inputs])
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_doubling_takes_four_ninths_of_the_multiplications() -> None:
    norm, conv = layers(torch.float32)
    inputs, counts = torch.randn(1, 8, 10, 12), []
    for call in (
        lambda: norm_silu_convolution(norm, conv, inputs, "up"),
        lambda: conv(resampled(inputs, "up")),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        counts.append(counter.get_flop_counts()["Global"][torch.ops.aten.convolution])
    assert counts[0] * 9 == counts[1] * 4


def test_its_gradient_is_the_numerical_one() -> None:
    norm, conv = layers(torch.float64)
    for resample in (None, "down", "up"):
        inputs = torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, r=resample: norm_silu_convolution(norm, conv, x, r), inputs)


def test_it_keeps_its_input_alone() -> None:
    norm, conv = layers(torch.float32)
    inputs = channels_last(torch.randn(2, 8, 16, 16)).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm_silu_convolution(norm, conv, inputs)
    maps = [tensor for tensor in kept if tensor.ndim == 4 and tensor.shape[-1] == 16]
    assert len(maps) == 1 and maps[0].data_ptr() == inputs.data_ptr()


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("autocast", [False, True])
def test_without_gradients_the_output_is_the_same(autocast: bool, resample: Any, size: int) -> None:
    norm, conv = layers(torch.float32)
    inputs = channels_last(3 + torch.randn(2, 8, size, size))
    given = inputs.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = norm_silu_convolution(norm, conv, inputs, resample)
        with torch.no_grad():
            found = norm_silu_convolution(norm, conv, inputs, resample)
    assert expected.requires_grad and not found.requires_grad
    assert torch.equal(found, expected) and found.stride() == expected.stride()
    assert torch.equal(inputs, given)


def test_the_norm_stays_in_float32_under_autocast() -> None:
    norm, conv = layers(torch.float32)
    inputs = 300 + torch.randn(2, 8, 16, 16)  # bfloat16 would keep a digit or two of it
    parameters = [*norm.parameters(), *conv.parameters()]
    expected = outputs_and_gradients(lambda x: norm_silu_convolution(norm, conv, x), inputs, parameters)

    def autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return norm_silu_convolution(norm, conv, x)

    found = outputs_and_gradients(autocast, inputs, parameters)
    assert found[0].dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in found[1:])
    for value, reference in zip(found, expected, strict=True):
        assert (value.float() - reference).abs().max() < 0.02 * reference.abs().max()
