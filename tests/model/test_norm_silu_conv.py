"""GroupNorm, SiLU, resampling and convolution as one operation: the textbook form is the reference."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from galip_hf.model.norm_silu_conv import (
    channels_last,
    norm_silu_conv,
    resampled,
    textbook_norm_silu_conv,
)


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
def test_the_textbook_form_is_a_composition_of_pytorchs_functions(resample: Any, mean: float) -> None:
    norm, conv = layers(torch.float64)
    inputs = mean + torch.randn(3, 8, 10, 12, dtype=torch.float64)
    hidden = F.silu(F.group_norm(inputs, 4, norm.weight, norm.bias, norm.eps))
    if resample == "down":
        hidden = F.avg_pool2d(hidden, 2)
    if resample == "up":
        hidden = hidden.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(hidden, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(textbook_norm_silu_conv(norm, conv, inputs, resample), expected)


@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_outputs_and_gradients_are_those_of_the_textbook_form(resample: Any, mean: float) -> None:
    norm, conv = layers(torch.float64)
    inputs = mean + torch.randn(3, 8, 10, 12, dtype=torch.float64)
    parameters = [*norm.parameters(), *conv.parameters()]
    found = outputs_and_gradients(lambda x: norm_silu_conv(norm, conv, x, resample), inputs, parameters)
    expected = outputs_and_gradients(
        lambda x: textbook_norm_silu_conv(norm, conv, x, resample), inputs, parameters
    )
    for value, reference in zip(found, expected, strict=True):
        # The norm's gradient is a difference of numbers as large as the mean.
        torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        output = norm_silu_conv(norm, conv, inputs, resample)
    torch.testing.assert_close(output, expected[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_only_the_gradients_asked_for_are_computed(resample: Any) -> None:
    """A frozen convolution costs the gradient of its input, and no more; likewise the other way round."""
    norm, conv = layers(torch.float64)
    inputs = torch.randn(2, 8, 10, 12, dtype=torch.float64)
    parameters = [*norm.parameters(), *conv.parameters()]
    all_gradients = outputs_and_gradients(
        lambda x: norm_silu_conv(norm, conv, x, resample), inputs, parameters
    )[1:]

    def gradients_and_cost(wanted: list[int]) -> tuple[list[Tensor | None], int]:
        leaves = [inputs.detach().requires_grad_(0 in wanted), *parameters]
        for index, parameter in enumerate(parameters, start=1):
            parameter.requires_grad_(index in wanted)
            parameter.grad = None
        output = norm_silu_conv(norm, conv, leaves[0], resample)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        with FlopCounterMode(display=False) as counter:
            (output * weights).sum().backward()
        cost = counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution_backward, 0)
        return [leaf.grad for leaf in leaves], cost

    whole = gradients_and_cost([0, 1, 2, 3, 4])[1]
    for wanted in ([0], [3], [0, 1, 2], [3, 4], [4], [0, 1, 2, 3, 4]):
        found, cost = gradients_and_cost(wanted)
        for index, (value, reference) in enumerate(zip(found, all_gradients, strict=True)):
            assert (value is None) == (index not in wanted)
            if value is not None:
                torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-12)
        halves = (bool({0, 1, 2} & set(wanted))) + (3 in wanted)  # of the input, of the weight
        assert cost == whole * halves // 2


@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_inference_is_in_channels_last(resample: Any) -> None:
    norm, conv = layers(torch.float32)
    with torch.no_grad():
        output = norm_silu_conv(norm, conv, torch.randn(2, 8, 10, 12), resample)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_doubling_takes_four_ninths_of_the_multiplications() -> None:
    norm, conv = layers(torch.float32)
    inputs, counts = torch.randn(1, 8, 10, 12), []
    for call in (
        lambda: norm_silu_conv(norm, conv, inputs, "up"),
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
        assert torch.autograd.gradcheck(lambda x, r=resample: norm_silu_conv(norm, conv, x, r), inputs)


def test_it_stores_only_its_input() -> None:
    norm, conv = layers(torch.float32)
    inputs = channels_last(torch.randn(2, 8, 16, 16)).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm_silu_conv(norm, conv, inputs)
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
        expected = norm_silu_conv(norm, conv, inputs, resample)
        with torch.no_grad():
            found = norm_silu_conv(norm, conv, inputs, resample)
    assert expected.requires_grad and not found.requires_grad
    assert found.dtype == expected.dtype
    tolerance = 0.03 if autocast else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(inputs, given)


def test_the_norm_stays_in_float32_under_autocast() -> None:
    norm, conv = layers(torch.float32)
    inputs = 300 + torch.randn(2, 8, 16, 16)  # bfloat16 would keep a digit or two of it
    parameters = [*norm.parameters(), *conv.parameters()]
    expected = outputs_and_gradients(lambda x: norm_silu_conv(norm, conv, x), inputs, parameters)

    def autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return norm_silu_conv(norm, conv, x)

    found = outputs_and_gradients(autocast, inputs, parameters)
    assert found[0].dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in found[1:])
    for value, reference in zip(found, expected, strict=True):
        assert (value.float() - reference).abs().max() < 0.02 * reference.abs().max()
