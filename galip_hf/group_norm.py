"""GroupNorm of channels_last feature maps: its statistics and its gradients.

Convolutions on the CPU are faster in channels_last. PyTorch's GroupNorm is not fit for it there: it computes
the variance in one pass and loses it where the mean is large (by 0.5 at mean / deviation = 100), and its
backward pass is 5 to 19 times slower than in the contiguous layout. The kernels of BatchNorm are fit: of one
sample they give the sums of each channel, and a group is some channels.
"""

import torch
from torch import Tensor

PART = 2**18  # elements; 1 MB of float32 stays in a core's cache
FEW = 1024  # pixels; sums of so many lose few digits

_aten = torch.ops.aten


def group_statistics(images: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each channel's group.

    Args:
        images: (B, C, H, W), channels_last, float32 or float64.
        groups: their number; divides C.
        eps: added to the variance.

    Returns:
        Two (B, C).
    """
    means, variances = _channel_statistics(images)
    if groups == images.shape[1]:
        return means, torch.rsqrt(variances + eps)
    means, variances = (values.unflatten(1, (groups, -1)) for values in (means, variances))
    mean = means.mean(dim=2, keepdim=True)
    inverse = torch.rsqrt((variances + (means - mean).square()).mean(dim=2, keepdim=True) + eps)
    # The kernel of the gradients reads them as they lie in memory.
    mean, inverse = (values.expand_as(means).flatten(1).contiguous() for values in (mean, inverse))
    return mean, inverse


def _is_cpu(images: Tensor) -> bool:
    return images.device.type == "cpu"


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each sample and channel, two (B, C)."""
    if not _is_cpu(images):
        variance, mean = torch.var_mean(images, dim=(2, 3), correction=0)
        return mean, variance
    height, width = images.shape[-2:]
    of_sample = _statistics if height * width <= FEW else _statistics_by_parts
    means, variances = zip(*map(of_sample, images.split(1)), strict=True)
    return torch.stack(means), torch.stack(variances)


def _statistics(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the channels of (1, C, H, W), two (C,)."""
    mean, variance = torch.batch_norm_update_stats(sample, None, None, 0.0)
    return mean, variance


def _statistics_by_parts(sample: Tensor) -> tuple[Tensor, Tensor]:
    """The same, some rows at a time, and with a mean as exact as its type."""
    _, channels, height, width = sample.shape
    parts = sample.split(max(1, PART // (channels * width)), dim=2)
    # The kernel of the variance adds pixel to pixel, which loses digits of a large mean; this adds in a tree.
    means = torch.cat([part.mean(dim=(2, 3)) for part in parts])
    centres, variances = zip(*map(_statistics, parts), strict=True)
    shares = means.new_tensor([part.shape[2] / height for part in parts])
    mean = shares @ means
    return mean, shares @ (torch.stack(variances) + (torch.stack(centres) - mean).square())


def scale_and_shift(mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The norm as `shift + images * scale`, two (B, C, 1, 1): of `group_statistics`, weight and bias (C,)."""
    scale = inverse * weight
    return scale[:, :, None, None], (bias - mean * scale)[:, :, None, None]


def group_norm_gradients(
    gradient: Tensor, images: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to the images (B, C, H, W), the weight and the bias (C,).

    Args:
        gradient: (B, C, H, W) with respect to the norm's output, channels_last.
        images, mean, inverse: input and `group_statistics` of the forward pass.
        weight: (C,).
    """
    of_weights, of_biases = _channel_sums(gradient, images, mean, inverse)

    def of_groups(values: Tensor) -> Tensor:  # mean over the pixels of a channel's group
        grouped = (values * weight).unflatten(1, (groups, -1))
        return (grouped.mean(dim=2, keepdim=True) / images[0, 0].numel()).expand_as(grouped).flatten(1)

    by_image = -inverse.square() * of_groups(of_weights)
    constant = -mean * by_image - inverse * of_groups(of_biases)
    factors = [values[:, :, None, None] for values in (constant, by_image, inverse * weight)]
    result = torch.addcmul(factors[0], images, factors[1]).addcmul_(gradient, factors[2])
    return result, of_weights.sum(dim=0), of_biases.sum(dim=0)


def _channel_sums(gradient: Tensor, images: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the pixels of gradient times normalised image, and of the gradient; two (B, C)."""
    if not _is_cpu(images):
        centred = (images - mean[:, :, None, None]) * gradient
        return centred.sum(dim=(2, 3)) * inverse, gradient.sum(dim=(2, 3))
    sums = [
        _aten.native_batch_norm_backward(
            *sample, None, None, None, *statistics, True, 0.0, [False, True, True]
        )[1:]
        for *sample, statistics in zip(
            gradient.split(1), images.split(1), zip(mean, inverse, strict=True), strict=True
        )
    ]
    of_weights, of_biases = (torch.stack(values) for values in zip(*sums, strict=True))
    return of_weights, of_biases


__all__ = ["group_norm_gradients", "group_statistics", "scale_and_shift"]
