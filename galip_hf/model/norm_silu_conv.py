"""GroupNorm, SiLU, resampling and 3 x 3 convolution: the step that residual blocks are made of.

`textbook_norm_silu_conv` says what it computes; `norm_silu_conv` is what the network calls, and computes the
same (`tests/model/test_norm_silu_conv.py`) with less memory in training and less time in inference:

- Training: the normalised and the activated map are recomputed in the backward pass instead of stored
  (`torch.utils.checkpoint`, which stops before it would repeat the convolution).
- Inference on a CPU: feature maps are channels_last, in which convolutions are fastest. PyTorch's GroupNorm
  is unfit for that layout there: its one-pass variance is inexact where the mean is large, with an error of
  0.5 at mean / deviation = 100. The norm here takes its sums from BatchNorm's kernels, exact and fast.
- Both: doubling a map and convolving it is one transposed convolution with a 4 x 4 kernel, which takes 4/9 of
  the multiplications.

What each buys is measured in docs/speed.md.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Resample = Literal["down", "up"] | None

# Of maps with so few pixels, it is faster to change the layout and use the library's GroupNorm.
SMALL_MAP = 1024


def textbook_norm_silu_conv(
    norm: nn.GroupNorm, conv: nn.Conv2d, inputs: Tensor, resample: Resample = None
) -> Tensor:
    """The reference: `conv(resampled(silu(norm(inputs)), resample))`, the norm in float32 at least."""
    normalized = precise_group_norm(inputs, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return conv(resampled(F.silu(normalized).to(inputs.dtype), resample))


def norm_silu_conv(norm: nn.GroupNorm, conv: nn.Conv2d, inputs: Tensor, resample: Resample = None) -> Tensor:
    """`textbook_norm_silu_conv`, with less memory and time.

    Args:
        norm: over the input's channels.
        conv: 3 x 3 with padding 1.
        inputs: (B, C, H, W).
        resample: halve (H and W even) or double height and width before the convolution.

    Returns:
        (B, C', H', W'), channels_last where no gradients are recorded; nothing else refers to its memory.
    """
    if torch.compiler.is_exporting():  # runtimes of exported graphs gain by the doubling kernel too
        return _storing_norm_silu_conv(norm, conv, inputs, resample)
    if torch.compiler.is_compiling():  # the compiler fuses and recomputes by itself
        return textbook_norm_silu_conv(norm, conv, inputs, resample)
    if torch.is_grad_enabled():
        return checkpoint(
            _storing_norm_silu_conv, norm, conv, inputs, resample,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
    return _inference_norm_silu_conv(norm, conv, inputs, resample)


def _storing_norm_silu_conv(
    norm: nn.GroupNorm, conv: nn.Conv2d, inputs: Tensor, resample: Resample
) -> Tensor:
    """What is recomputed in the backward pass, where autograd stores the maps for a moment."""
    normalized = precise_group_norm(inputs, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return _resampled_conv(F.silu(normalized).to(inputs.dtype), conv.weight, conv.bias, resample)


def _inference_norm_silu_conv(
    norm: nn.GroupNorm, conv: nn.Conv2d, inputs: Tensor, resample: Resample
) -> Tensor:
    """In channels_last, the convolution in autocast's type or the input's.

    The norm's statistics are float32 at least. On a CPU, maps in half precision stay so: to convert them
    takes as long as what is computed in between. What other devices would gain was not measured.
    """
    precise = torch.promote_types(inputs.dtype, torch.float32)
    images = channels_last(inputs if _is_cpu(inputs) else inputs.to(precise))
    normalized = group_norm(images, norm.num_groups, norm.weight.to(precise), norm.bias.to(precise), norm.eps)
    activated = F.silu(normalized, inplace=True).to(inputs.dtype)
    return channels_last(_resampled_conv(activated, conv.weight, conv.bias, resample))


def resampled(images: Tensor, resample: Resample) -> Tensor:
    """(B, C, H, W): halved by averages of 2 x 2 (H and W even), doubled by repetition, or as it is."""
    if resample == "down":
        # At half the size, bilinear interpolation is the average of 2 x 2, and vectorised on a CPU.
        return F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)
    if resample == "up":
        return F.interpolate(images, scale_factor=2, mode="nearest")
    return images


def _resampled_conv(images: Tensor, weight: Tensor, bias: Tensor | None, resample: Resample) -> Tensor:
    """`conv2d(resampled(images, resample), weight, bias, padding=1)`."""
    if resample == "up":
        return F.conv_transpose2d(images, _doubling_kernel(weight), bias, stride=2, padding=1)
    return F.conv2d(resampled(images, resample), weight, bias, padding=1)


def _doubling_kernel(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (I, O, 4, 4): the kernel of the transposed convolution that doubles and convolves."""
    # Along one axis, a weight falls on two of the four places: the last of three on the first two, and so on.
    # Made on the device, since a copy from the host would make the host wait.
    taps = torch.eye(3, dtype=weight.dtype, device=weight.device)
    along_one = (F.pad(taps, (0, 1)) + F.pad(taps, (1, 0))).flip(0)  # (3, 4)
    return (weight.transpose(0, 1).flatten(2) @ torch.kron(along_one, along_one)).unflatten(2, (4, 4))


# GroupNorm


def channels_last(images: Tensor) -> Tensor:
    """(B, C, H, W), in the memory layout in which a CPU's convolutions are fastest."""
    return images.contiguous(memory_format=torch.channels_last)


def precise_group_norm(images: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """PyTorch's GroupNorm of (B, C, H, W), in float32 at least and in the layout in which it is exact."""
    precise = torch.promote_types(images.dtype, torch.float32)
    return F.group_norm(images.to(precise).contiguous(), groups, weight.to(precise), bias.to(precise), eps)


def group_norm(images: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """GroupNorm of channels_last maps, without gradients.

    Args:
        images: (B, C, H, W), channels_last, float32 or float64; on a CPU also float16 or bfloat16.
        groups: number of groups; divides C.
        weight, bias: (C,), of the images' type, of images in half precision float32.
        eps: added to the variance.

    Returns:
        (B, C, H, W), channels_last, of the images' type, in memory of its own. The statistics, and scale and
        shift, are float32 at least: half precision is rounded once.
    """
    if _is_cpu(images) and images.shape[2] * images.shape[3] <= SMALL_MAP:
        return channels_last(precise_group_norm(images, groups, weight, bias, eps)).to(images.dtype)
    mean, variance = _channel_statistics(images)  # (B, C)
    if groups < images.shape[1]:
        mean, variance = _pooled(*(values.unflatten(1, (groups, -1)).mT for values in (mean, variance)))
    size = images.shape[1] // groups
    if images.dtype != mean.dtype:
        mean, variance = (values.repeat_interleave(size, dim=1) for values in (mean, variance))
        return _half_batch_norm(images, mean, variance, weight, bias, eps)
    inverse, mean = (values.repeat_interleave(size, dim=1) for values in (torch.rsqrt(variance + eps), mean))
    scale = inverse * weight  # (B, C)
    shift = bias - mean * scale
    return torch.addcmul(shift[:, :, None, None], images, scale[:, :, None, None])


def _half_batch_norm(
    images: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Normalise images in half precision by float32 statistics (B, C), without a float32 copy of them.

    That is what BatchNorm does for inference, with one set of statistics for a batch.
    """
    normalized = [
        F.batch_norm(images[number : number + 1], mean[number], variance[number], weight, bias, eps=eps)
        for number in range(len(images))
    ]
    return normalized[0] if len(normalized) == 1 else torch.cat(normalized)


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each sample and channel, two (B, C), in float32 at least."""
    if not _is_cpu(images):
        variance, mean = torch.var_mean(images, dim=(2, 3), correction=0)
        return mean, variance
    # BatchNorm's kernel adds long rows of numbers twice as fast as a pixel's few channels. So each column of
    # a channel is a channel to it, which also keeps the rounding errors of the sums small.
    rows = (sample.permute(1, 2, 0).flatten(1) for sample in images)  # (C, H, W) -> (H, W * C), same memory
    # Of rows in half precision, float32 running statistics (not moved: momentum 0) make it answer in float32.
    kept = None
    if images.dtype in (torch.float16, torch.bfloat16):
        kept = torch.zeros(images.shape[1] * images.shape[3])
    of_samples = (torch.batch_norm_update_stats(row, kept, kept, 0.0) for row in rows)
    of_columns = map(torch.stack, zip(*of_samples, strict=True))
    return _pooled(*(values.unflatten(1, (images.shape[3], -1)) for values in of_columns))


def _pooled(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """(B, parts, K), parts of equal size -> mean and variance (B, K) of the parts together."""
    mean = means.mean(dim=1)
    distance = means - mean[:, None]
    return mean, torch.addcmul(variances, distance, distance).mean(dim=1)


def _is_cpu(images: Tensor) -> bool:
    return images.device.type == "cpu"


__all__ = [
    "Resample",
    "channels_last",
    "group_norm",
    "norm_silu_conv",
    "precise_group_norm",
    "resampled",
    "textbook_norm_silu_conv",
]
