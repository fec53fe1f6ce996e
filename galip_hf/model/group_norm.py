"""GroupNorm of channels_last feature maps, and its gradients.

Convolutions on the CPU are faster in channels_last. PyTorch's GroupNorm is not fit for it there: it computes
the variance in one pass and loses it where the mean is large (by 0.5 at mean / deviation = 100), and its
backward pass is 5 to 19 times slower than in the contiguous layout. The kernels of BatchNorm are fit: of one
sample they give the sums of each channel, and a group is some channels. Each column of a channel counts as a
channel of its own at first: they add long rows of numbers twice as fast as the few channels of a pixel, and,
as a column has few pixels, lose no digits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 1024  # pixels; so few are sooner brought into the other layout, where the library's kernels are good

_aten = torch.ops.aten


def channels_last(images: Tensor) -> Tensor:
    """(B, C, H, W), in the layout in which convolutions are fastest."""
    return images.contiguous(memory_format=torch.channels_last)


def precise_group_norm(images: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The library's GroupNorm of (B, C, H, W), in float32 at least and in the layout in which it is exact."""
    precise = torch.promote_types(images.dtype, torch.float32)
    return F.group_norm(images.to(precise).contiguous(), groups, weight.to(precise), bias.to(precise), eps)


def group_norm(
    images: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm, and what its backward pass needs besides the images.

    Args:
        images: (B, C, H, W), channels_last, float32 or float64.
        groups: their number; divides C.
        weight, bias: (C,), of the images' type.
        eps: added to the variance.

    Returns:
        The normalised images (B, C, H, W), channels_last; mean and inverse deviation of each group, two
        (B, groups).
    """
    if _is_few(images):
        batch, channels, height, width = images.shape
        normalised, mean, inverse = _aten.native_group_norm(
            images.contiguous(), weight, bias, batch, channels, height * width, groups, eps
        )
        return channels_last(normalised), mean, inverse
    mean, inverse = _group_statistics(images, groups, eps)
    return normalise(images, mean, inverse, weight, bias), mean, inverse


def normalise(images: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The norm again, of `group_norm`'s mean and inverse deviation."""
    scale = _of_channels(inverse, images) * weight
    shift = bias - _of_channels(mean, images) * scale
    return torch.addcmul(shift[:, :, None, None], images, scale[:, :, None, None])


def _group_statistics(images: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each group, two (B, groups)."""
    mean, variance = _channel_statistics(images)
    if groups < images.shape[1]:
        mean, variance = _of_parts(*(values.unflatten(1, (groups, -1)).mT for values in (mean, variance)))
    return mean, torch.rsqrt(variance + eps)


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each sample and channel, two (B, C)."""
    if not _is_cpu(images):
        variance, mean = torch.var_mean(images, dim=(2, 3), correction=0)
        return mean, variance
    of_samples = (torch.batch_norm_update_stats(_in_rows(sample), None, None, 0.0) for sample in images)
    of_columns = map(torch.stack, zip(*of_samples, strict=True))
    return _of_parts(*(values.unflatten(1, (images.shape[3], -1)) for values in of_columns))


def _of_parts(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """(B, parts, N) of parts with the same number of pixels -> (B, N) of all their pixels."""
    mean = means.mean(dim=1)
    distance = means - mean[:, None]
    return mean, torch.addcmul(variances, distance, distance).mean(dim=1)


def _is_few(images: Tensor) -> bool:
    return _is_cpu(images) and images.shape[2] * images.shape[3] <= FEW


def _is_cpu(images: Tensor) -> bool:
    return images.device.type == "cpu"


def _in_rows(sample: Tensor) -> Tensor:
    """(C, H, W) of channels_last -> (H, W * C), the same memory."""
    return sample.permute(1, 2, 0).flatten(1)


def _of_channels(values: Tensor, like: Tensor) -> Tensor:
    """(B, groups) -> (B, C), that of each channel's group."""
    return values.repeat_interleave(like.shape[1] // values.shape[1], dim=1)


def group_norm_gradients(
    gradient: Tensor, images: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to the images (B, C, H, W), the weight and the bias (C,).

    Args:
        gradient: (B, C, H, W) with respect to the norm's output, channels_last.
        images, mean, inverse: input of the forward pass, and what `group_norm` returned of it.
        weight: (C,).
    """
    groups = mean.shape[1]
    if _is_few(images):
        batch, channels, height, width = images.shape
        of_images, of_weight, of_bias = _aten.native_group_norm_backward(
            gradient.contiguous(), images.contiguous(), mean, inverse, weight,
            batch, channels, height * width, groups, [True, True, True],
        )  # fmt: skip
        return channels_last(of_images), of_weight, of_bias
    mean, inverse = _of_channels(mean, images), _of_channels(inverse, images)
    of_weights, of_biases = _channel_sums(gradient, images, mean, inverse)

    def of_groups(values: Tensor) -> Tensor:  # mean over the pixels of a channel's group
        means = (values * weight).unflatten(1, (groups, -1)).mean(dim=2)
        return _of_channels(means / images[0, 0].numel(), images)

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
    width = images.shape[3]
    of_samples = (
        _aten.native_batch_norm_backward(
            _in_rows(of_sample), _in_rows(sample), None, None, None,
            *(values.repeat(width) for values in statistics), True, 0.0, [False, True, True],
        )[1:]
        for of_sample, sample, *statistics in zip(gradient, images, mean, inverse, strict=True)
    )  # fmt: skip
    of_weights, of_biases = map(torch.stack, zip(*of_samples, strict=True))
    return of_weights.unflatten(1, (width, -1)).sum(dim=1), of_biases.unflatten(1, (width, -1)).sum(dim=1)


__all__ = [
    "channels_last",
    "group_norm",
    "group_norm_gradients",
    "normalise",
    "precise_group_norm",
]
