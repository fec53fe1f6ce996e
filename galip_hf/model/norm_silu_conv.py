"""GroupNorm, SiLU, resampling and convolution as one operation that keeps its input alone for its gradient.

Composed of PyTorch's own functions, they store four feature maps for the backward pass; and at full
resolution writing them to memory costs about as much as computing them. Here the normalised and the activated
map live in the cache for a moment, and are computed again in the backward pass. All maps are channels_last.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .group_norm import channels_last, group_norm, group_norm_gradients, normalise, precise_group_norm

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


def _doubling(like: Tensor) -> Tensor:
    """(9, 16): how 3 x 3 weights on doubled pixels add up to 4 x 4 of a transposed convolution."""
    # Along one axis, the last weight falls on the first two of four, and so on. Made on the device: to bring
    # it there would make the host wait.
    taps = torch.eye(3, dtype=like.dtype, device=like.device)
    along_one = (F.pad(taps, (0, 1)) + F.pad(taps, (1, 0))).flip(0)
    return torch.kron(along_one, along_one)


def _doubling_kernel(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (I, O, 4, 4), of the transposed convolution that doubles and convolves at once.

    Each doubled pixel's nine weights fall on four pixels of the input: 4/9 of the multiplications.
    """
    kernel = weight.transpose(0, 1).flatten(2) @ _doubling(weight)
    return kernel.unflatten(2, (4, 4))


def _doubling_kernel_gradient(gradient: Tensor) -> Tensor:
    """(I, O, 4, 4) -> (O, I, 3, 3): the adjoint of `_doubling_kernel`."""
    return (gradient.flatten(2) @ _doubling(gradient).T).unflatten(2, (3, 3)).transpose(0, 1)


def _convolution(images: Tensor, weight: Tensor, bias: Tensor | None, resample: Resample) -> Tensor:
    """`conv2d(resampled(images, resample), weight, bias, padding=1)`."""
    if resample == "up":
        return F.conv_transpose2d(images, _doubling_kernel(weight), bias, stride=2, padding=1)
    return F.conv2d(resampled(images, resample), weight, bias, padding=1)


def _convolution_gradients(
    gradient: Tensor, images: Tensor, weight: Tensor, has_bias: bool, resample: Resample
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of `_convolution`, with respect to images, weight and bias."""
    is_up = resample == "up"
    of_images, of_weight, of_bias = _aten.convolution_backward(
        gradient, images if is_up else resampled(images, resample),
        _doubling_kernel(weight) if is_up else weight, [len(weight)],
        [2, 2] if is_up else [1, 1], [1, 1], [1, 1], is_up, [0, 0], 1, [True, True, has_bias],
    )  # fmt: skip
    if is_up:
        of_weight = _doubling_kernel_gradient(of_weight)
    if resample == "down":  # an average spreads its gradient evenly
        of_images = F.interpolate(of_images, scale_factor=2, mode="nearest").mul_(0.25)
    return of_images, of_weight, of_bias


def _forward(
    inputs: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    eps: float,
    resample: Resample,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, channels_last; mean and inverse deviation of the norm."""
    dtype = _convolution_type(inputs)
    with torch.autocast(inputs.device.type, enabled=False):
        images = _precise(inputs)
        norm_weight, norm_bias = norm_weight.to(images.dtype), norm_bias.to(images.dtype)
        normalised, mean, inverse = group_norm(images, groups, norm_weight, norm_bias, eps)
        activated = F.silu(normalised, inplace=True).to(dtype)
        bias = None if bias is None else bias.to(dtype)
        return channels_last(_convolution(activated, weight.to(dtype), bias, resample)), mean, inverse


def _convolution_type(inputs: Tensor) -> torch.dtype:
    """Autocast's type, or the input's."""
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype


class NormSiluConvolution(torch.autograd.Function):
    """`conv(resampled(silu(norm(inputs))))` for a GroupNorm and a 3 x 3 convolution with padding 1.

    The norm and its gradients are float32 at least; the convolution is of autocast's type, or of the input's.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *arguments: Any) -> Tensor:
        """Those of `_forward`."""
        *parameters, _, _, resample = arguments
        ctx.dtype, ctx.resample = _convolution_type(inputs), resample
        output, *statistics = _forward(inputs, *arguments)
        ctx.save_for_backward(inputs, *parameters, *statistics)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, norm_weight, norm_bias, weight, bias, mean, inverse = ctx.saved_tensors
        images = _precise(inputs)
        precise_weight, precise_bias = norm_weight.to(images.dtype), norm_bias.to(images.dtype)
        normalised = normalise(images, mean, inverse, precise_weight, precise_bias)
        gradient, of_weight, of_bias = _convolution_gradients(
            channels_last(gradient),
            F.silu(normalised).to(ctx.dtype),
            weight.to(ctx.dtype),
            bias is not None,
            ctx.resample,
        )
        gradient = channels_last(gradient.to(images.dtype))
        gradient = _aten.silu_backward.grad_input(gradient, normalised, grad_input=gradient)
        del normalised
        gradient, of_norm_weight, of_norm_bias = group_norm_gradients(
            gradient, images, mean, inverse, precise_weight
        )
        return (
            gradient.to(inputs.dtype),
            of_norm_weight.to(norm_weight.dtype),
            of_norm_bias.to(norm_bias.dtype),
            of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _precise(inputs: Tensor) -> Tensor:
    return channels_last(inputs.to(torch.promote_types(inputs.dtype, torch.float32)))


def _parameters(
    norm: nn.GroupNorm, conv: nn.Conv2d, channels: slice | None, added_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Weight and bias of the norm and of the convolution, those of some of its input's channels or of all."""
    bias = cast("Tensor", conv.bias)
    if added_bias is not None:
        bias = bias + added_bias
    if channels is None:
        return norm.weight, norm.bias, conv.weight, bias
    of_part = None if channels.start else bias
    return norm.weight[channels], norm.bias[channels], conv.weight[:, channels], of_part


def norm_silu_convolution(
    norm: nn.GroupNorm,
    conv: nn.Conv2d,
    inputs: Tensor,
    resample: Resample = None,
    channels: slice | None = None,
    added_bias: Tensor | None = None,
) -> Tensor:
    """`conv(resampled(silu(norm(inputs)), resample))`.

    Args:
        norm: over the input's channels.
        conv: 3 x 3 with padding 1 and a bias.
        inputs: (B, C_in, H, W).
        channels: of norm and convolution, whole groups, if `inputs` are not all of them. The results of all
            parts add up to that of the whole; the bias is in the first one's.
        added_bias: (C_out,), added to the convolution's: what is to be added to its result costs nothing so.

    Returns:
        (B, C_out, H', W'), channels_last; nothing else refers to it, so that it may be changed in place.
    """
    groups = norm.num_groups * inputs.shape[1] // norm.num_channels
    parameters = _parameters(norm, conv, channels, added_bias)
    if torch.compiler.is_compiling():
        normalised = precise_group_norm(inputs, groups, *parameters[:2], norm.eps)
        return _convolution(F.silu(normalised).to(inputs.dtype), *parameters[2:], resample)
    if not torch.is_grad_enabled():
        return _forward(inputs, *parameters, groups, norm.eps, resample)[0]
    result: Tensor = NormSiluConvolution.apply(inputs, *parameters, groups, norm.eps, resample)
    return result


__all__ = ["norm_silu_convolution", "resampled"]
