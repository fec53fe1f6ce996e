"""GroupNorm, SiLU, resampling and convolution as one operation that keeps its input alone for its gradient.

Composed of PyTorch's own functions, the three store four feature maps for the backward pass; and at full
resolution writing them to memory costs about as much as computing them. Here the normalised and the activated
map live in the cache for a moment, and are computed again in the backward pass.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Resample = Literal["down", "up"] | None

_aten = torch.ops.aten


def resampled(hidden_states: Tensor, resample: Resample) -> Tensor:
    """(B, C, H, W), H and W even: halved by averages, doubled by repetition, or as it is."""
    if resample == "down":
        # At half the size, bilinear interpolation is the average of 2 x 2; and on a CPU it is vectorised.
        return F.interpolate(hidden_states, scale_factor=0.5, mode="bilinear", align_corners=False)
    if resample == "up":
        return F.interpolate(hidden_states, scale_factor=2, mode="nearest")
    return hidden_states


def _resampled_gradient(gradient: Tensor, resample: Resample) -> Tensor:
    """The adjoint of `resampled`: an average spreads its gradient evenly, repetitions add theirs up."""
    if resample == "down":
        return F.interpolate(gradient, scale_factor=2, mode="nearest").mul_(0.25)
    if resample == "up":
        return resampled(gradient, "down").mul_(4)
    return gradient


class NormSiluConvolution(torch.autograd.Function):
    """`conv(resampled(silu(norm(inputs))))` for a GroupNorm and a 3 x 3 convolution with padding 1.

    The norm and its gradients are float32 at least; the convolution is of autocast's type, or of the input's.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        resample: Resample,
    ) -> Tensor:
        kind = inputs.device.type
        is_autocast = torch.is_autocast_enabled(kind)
        ctx.dtype = torch.get_autocast_dtype(kind) if is_autocast else inputs.dtype
        ctx.groups, ctx.eps, ctx.resample = groups, eps, resample
        ctx.save_for_backward(inputs, norm_weight, norm_bias, weight, bias)
        with torch.autocast(kind, enabled=False):
            normalised, _, _ = _normalise(inputs, norm_weight, norm_bias, groups, eps)
            activated = F.silu(normalised, inplace=True)
            return F.conv2d(
                resampled(activated, resample).to(ctx.dtype),
                weight.to(ctx.dtype),
                bias.to(ctx.dtype),
                padding=1,
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, norm_weight, norm_bias, weight, bias = ctx.saved_tensors
        dtype, inputs = inputs.dtype, _precise(inputs)
        normalised, mean, deviation = _normalise(inputs, norm_weight, norm_bias, ctx.groups, ctx.eps)
        activated = resampled(F.silu(normalised), ctx.resample).to(ctx.dtype)
        gradient, of_weight, of_bias = _aten.convolution_backward(
            gradient.contiguous(), activated, weight.to(ctx.dtype), [len(bias)],
            [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True],
        )  # fmt: skip
        del activated
        gradient = _resampled_gradient(gradient.to(inputs.dtype), ctx.resample)
        gradient = _aten.silu_backward.grad_input(gradient, normalised, grad_input=gradient)
        batch, channels, height, width = inputs.shape
        gradient, of_norm_weight, of_norm_bias = _aten.native_group_norm_backward(
            gradient, inputs, mean, deviation, norm_weight.to(inputs.dtype),
            batch, channels, height * width, ctx.groups, [True, True, True],
        )  # fmt: skip
        return (
            gradient.to(dtype),
            of_norm_weight.to(norm_weight.dtype),
            of_norm_bias.to(norm_bias.dtype),
            of_weight.to(weight.dtype),
            of_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _precise(inputs: Tensor) -> Tensor:
    return inputs.to(torch.promote_types(inputs.dtype, torch.float32)).contiguous()


def _normalise(
    inputs: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """GroupNorm in float32 at least; the result, mean and inverse deviation of each sample and group."""
    inputs = _precise(inputs)
    batch, channels, height, width = inputs.shape
    result: tuple[Tensor, Tensor, Tensor] = _aten.native_group_norm(
        inputs, weight.to(inputs.dtype), bias.to(inputs.dtype),
        batch, channels, height * width, groups, eps,
    )  # fmt: skip
    return result


def norm_silu_convolution(
    norm: nn.GroupNorm, conv: nn.Conv2d, inputs: Tensor, resample: Resample = None
) -> Tensor:
    """`conv(resampled(silu(norm(inputs)), resample))`.

    Args:
        norm: `GalipGroupNorm` over the input's channels.
        conv: 3 x 3 with padding 1 and a bias.
        inputs: (B, C_in, H, W).

    Returns:
        (B, C_out, H', W'); nothing else refers to it, so that it may be changed in place.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        result: Tensor = NormSiluConvolution.apply(
            inputs, norm.weight, norm.bias, conv.weight, conv.bias, norm.num_groups, norm.eps, resample
        )
        return result
    output: Tensor = conv(resampled(norm(inputs, silu=True), resample))
    return output


__all__ = ["norm_silu_convolution", "resampled"]
