"""The parts of the generator: norms, residual blocks, attention, levels of the encoder and decoder.

Source: the U-Net of latent diffusion (Rombach et al., CVPR 2022) without a timestep, as in Korkmaz & Patel,
MIDL 2025. Feature maps are (B, C, H, W), channels_last; tokens (B, N, width).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_galip import GalipConfig
from .group_norm import precise_group_norm
from .norm_silu_conv import norm_silu_convolution, resampled

# What the cross-attentions see of a prompt: its states (B, L, width) or, ready for each of them, its keys and
# values (1, heads, L, d), which depend on nothing else.
KeysAndValues = tuple[Tensor, Tensor]
Prompt = Tensor | Mapping[nn.Module, KeysAndValues]


class GalipGroupNorm(nn.GroupNorm):
    """GroupNorm, in float32 at least: under autocast and with weights of a lower precision too."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), of the input's type."""
        normalized = precise_group_norm(hidden_states, self.num_groups, self.weight, self.bias, self.eps)
        return normalized.to(hidden_states.dtype)


class GalipLayerNorm(nn.LayerNorm):
    """LayerNorm, in float32 at least."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width), of the input's type."""
        precise = torch.promote_types(hidden_states.dtype, torch.float32)
        weight, bias = self.weight.to(precise), self.bias.to(precise)
        normalized = F.layer_norm(hidden_states.to(precise), self.normalized_shape, weight, bias, self.eps)
        return normalized.to(hidden_states.dtype)


def _rows(images: Tensor) -> Tensor:
    """(B, C, H, W), channels_last -> (B * H * W, C), the same memory."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def add_pointwise(images: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """`images + conv2d(inputs, weight)` as one matrix product, which writes and reads a feature map less.

    Without gradients the result is in the memory of `images`.

    Args:
        images: (B, C_out, H, W).
        inputs: (B, C_in, H, W).
        weight: (C_out, C_in, 1, 1).
    """
    rows = _rows(images)
    factors = [factor.to(rows.dtype) for factor in (_rows(inputs), weight.flatten(1).T)]
    added = torch.addmm(rows, *factors, out=None if torch.is_grad_enabled() else rows)
    return added.unflatten(0, (images.shape[0], *images.shape[2:])).permute(0, 3, 1, 2)


class GalipResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, label added, GroupNorm, SiLU, convolution; a skip over all.

    With `resample`, height and width are halved (average) or doubled (nearest) before the first convolution
    and on the skip. With `skip_channels`, the input is a feature map and one of the encoder's behind it.
    """

    def __init__(
        self,
        config: GalipConfig,
        in_channels: int,
        out_channels: int,
        resample: Literal["down", "up"] | None = None,
        skip_channels: int = 0,
    ) -> None:
        super().__init__()
        self.resample, self.in_channels = resample, in_channels
        channels = in_channels + skip_channels
        # Where no group of the norm reaches across both, each half can be computed on its own.
        self.takes_parts = skip_channels > 0 and in_channels % (channels // config.norm_groups) == 0
        self.takes_label = not config.cancels_label(out_channels)
        self.norm_in = GalipGroupNorm(config.norm_groups, channels, eps=1e-5)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.label_projection = nn.Linear(config.label_width, out_channels)
        self.norm_out = GalipGroupNorm(config.norm_groups, out_channels, eps=1e-5)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def of_skip(self, skip: Tensor) -> tuple[Tensor, ...]:
        """What the block computes of the encoder's feature map alone, the same for every target.

        Args:
            skip: (B, skip_channels, H, W).

        Returns:
            Its part of the first convolution, (B, C_out, H, W), where it has one; and the map itself.
        """
        return (self._convolved(skip, slice(self.in_channels, None)), skip) if self.takes_parts else (skip,)

    def _convolved(self, inputs: Tensor, channels: slice | None) -> Tensor:
        return norm_silu_convolution(self.norm_in, self.conv_in, inputs, self.resample, channels)

    def _with_residual(self, hidden_states: Tensor, inputs: Tensor, channels: slice | None) -> Tensor:
        inputs = resampled(inputs, self.resample)
        if not isinstance(self.skip, nn.Conv2d):
            hidden_states += inputs
            return hidden_states
        weight = self.skip.weight if channels is None else self.skip.weight[:, channels]
        return add_pointwise(hidden_states, inputs, weight)

    def forward(self, inputs: Tensor, label_embedding: Tensor | None, *of_skip: Tensor) -> Tensor:
        """(B, C_in, H, W), SiLU of the label's embedding (B, label_width) -> (B, C_out, H', W').

        No label is needed where it makes no difference. `of_skip` as the function of that name returns it, or
        the encoder's feature map itself.
        """
        if of_skip and not self.takes_parts:
            inputs = torch.cat([inputs, *of_skip], dim=1)
        parts = [(inputs, slice(None, self.in_channels) if self.takes_parts else None)]
        # One after another, and the residual last: so that few maps are held at a time.
        hidden_states = self._convolved(*parts[0])
        if of_skip and self.takes_parts:
            *convolved, skip = of_skip
            parts.append((skip, slice(self.in_channels, None)))
            hidden_states += convolved[0] if convolved else self._convolved(*parts[1])
        if self.takes_label:
            hidden_states += self.label_projection(label_embedding)[:, :, None, None]
        bias = self.skip.bias if isinstance(self.skip, nn.Conv2d) else None
        hidden_states = norm_silu_convolution(self.norm_out, self.conv_out, hidden_states, added_bias=bias)
        for part in parts:
            hidden_states = self._with_residual(hidden_states, *part)
        return hidden_states


class GalipAttention(nn.Module):
    """Multi-head attention of image tokens on themselves, or on a context."""

    def __init__(self, config: GalipConfig, width: int, context_width: int | None = None) -> None:
        super().__init__()
        context_width = context_width or width
        self.head_width = config.attention_head_width
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context_width, width, bias=False)
        self.value = nn.Linear(context_width, width, bias=False)
        self.output = nn.Linear(width, width)

    def _split_heads(self, states: Tensor) -> Tensor:
        # (B, N, heads * d) -> (B, heads, N, d)
        return states.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def keys_and_values(self, context: Tensor) -> KeysAndValues:
        """(B, L, context_width) -> two times (B, heads, L, d)."""
        return self._split_heads(self.key(context)), self._split_heads(self.value(context))

    def forward(self, hidden_states: Tensor, context: Tensor | KeysAndValues | None = None) -> Tensor:
        """(B, N, width); (B, L, context_width), its keys and values, or None -> (B, N, width)."""
        context = hidden_states if context is None else context
        keys, values = self.keys_and_values(context) if isinstance(context, Tensor) else context
        batch = hidden_states.shape[0]
        attended = F.scaled_dot_product_attention(
            self._split_heads(self.query(hidden_states)),
            keys.expand(batch, -1, -1, -1),
            values.expand(batch, -1, -1, -1),
        )
        return self.output(attended.transpose(1, 2).flatten(2))


class GalipTransformerBlock(nn.Module):
    """Self-attention, cross-attention on the prompt, GEGLU feed-forward; each with LayerNorm and skip."""

    def __init__(self, config: GalipConfig, width: int) -> None:
        super().__init__()
        hidden_width = width * config.feed_forward_multiplier
        self.norm_self = GalipLayerNorm(width)
        self.self_attention = GalipAttention(config, width)
        self.norm_cross = GalipLayerNorm(width)
        self.cross_attention = GalipAttention(config, width, config.prompt_states_shape[1])
        self.norm_feed_forward = GalipLayerNorm(width)
        self.feed_forward_in = nn.Linear(width, 2 * hidden_width)
        self.feed_forward_out = nn.Linear(hidden_width, width)

    def forward(self, hidden_states: Tensor, prompt: Prompt) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        context = prompt if isinstance(prompt, Tensor) else prompt[self.cross_attention]
        hidden_states = hidden_states + self.self_attention(self.norm_self(hidden_states))
        hidden_states = hidden_states + self.cross_attention(self.norm_cross(hidden_states), context)
        values, gate = self.feed_forward_in(self.norm_feed_forward(hidden_states)).chunk(2, dim=-1)
        return hidden_states + self.feed_forward_out(values * F.gelu(gate))


def _linear(tokens: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A 1 x 1 convolution of tokens (B, N, width); the convolution itself would copy them into images."""
    return F.linear(tokens, convolution.weight.flatten(1), convolution.bias)


class GalipSpatialTransformer(nn.Module):
    """Transformer blocks over the H * W positions of a feature map, inside a skip."""

    def __init__(self, config: GalipConfig, channels: int) -> None:
        super().__init__()
        self.norm = GalipGroupNorm(config.norm_groups, channels, eps=1e-6)
        self.projection_in = nn.Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(
            GalipTransformerBlock(config, channels) for _ in range(config.transformer_depth)
        )
        self.projection_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_states: Tensor, prompt: Prompt) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = _linear(self.norm(hidden_states).flatten(2).transpose(1, 2), self.projection_in)
        for block in self.blocks:
            tokens = block(tokens, prompt)
        projected = _linear(tokens, self.projection_out)
        return hidden_states + projected.transpose(1, 2).reshape(hidden_states.shape)


class GalipCheckpointedModule(nn.Module):
    """A part whose activations are computed again in the backward pass, where that is asked for.

    `PreTrainedModel.gradient_checkpointing_enable` looks for the attribute, and sets it and the function.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]
    compute: Callable[..., Tensor]  # what `forward` returns

    def forward(self, *inputs: Any) -> Tensor:
        """`compute`; positional arguments alone, as a checkpoint gives gradients to no others."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.compute, *inputs)
        return self.compute(*inputs)


class GalipBlock(GalipCheckpointedModule):
    """A residual block and, at the rates that have attention, a spatial transformer."""

    def __init__(
        self, config: GalipConfig, in_channels: int, out_channels: int, rate: int, skip_channels: int = 0
    ) -> None:
        super().__init__()
        self.residual = GalipResidualBlock(config, in_channels, out_channels, skip_channels=skip_channels)
        has_attention = rate in config.attention_rates
        self.transformer = GalipSpatialTransformer(config, out_channels) if has_attention else None

    def compute(
        self,
        hidden_states: Tensor,
        label_embedding: Tensor | None,
        prompt: Prompt | None,
        *of_skip: Tensor,
    ) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        hidden_states = self.residual(hidden_states, label_embedding, *of_skip)
        if self.transformer is not None:
            hidden_states = self.transformer(hidden_states, prompt)
        return hidden_states


class GalipEncoderLevel(nn.Module):
    """The blocks of one resolution; on all levels but the last, a down-sampling block."""

    def __init__(self, config: GalipConfig, level: int, in_channels: int) -> None:
        super().__init__()
        channels = config.level_channels[level]
        widths = [in_channels] + [channels] * config.blocks_per_level
        self.blocks = nn.ModuleList(
            GalipBlock(config, width_in, width_out, 2**level) for width_in, width_out in pairwise(widths)
        )
        is_last = level == len(config.level_channels) - 1
        self.downsample = None if is_last else GalipResidualBlock(config, channels, channels, resample="down")
        self.number_of_maps = len(self.blocks) + (not is_last)

    def forward(
        self, hidden_states: Tensor, label_embedding: Tensor | None, prompt: Prompt | None
    ) -> list[Tensor]:
        """(B, C_in, H, W) -> the output of every block, the last one (B, C, H', W'): the decoder's skips."""
        skips = []
        for block in self.blocks:
            hidden_states = block(hidden_states, label_embedding, prompt)
            skips.append(hidden_states)
        if self.downsample is not None:
            skips.append(self.downsample(hidden_states, label_embedding))
        return skips


class GalipDecoderLevel(nn.Module):
    """The blocks of one resolution, each taking a skip; on all levels but the first, an up-sampling block."""

    def __init__(
        self, config: GalipConfig, level: int, in_channels: int, skip_channels: Sequence[int]
    ) -> None:
        super().__init__()
        channels = config.level_channels[level]
        widths = [in_channels] + [channels] * (len(skip_channels) - 1)
        self.blocks = nn.ModuleList(
            GalipBlock(config, width, channels, 2**level, skip)
            for width, skip in zip(widths, skip_channels, strict=True)
        )
        self.upsample = GalipResidualBlock(config, channels, channels, resample="up") if level else None

    def forward(
        self, hidden_states: Tensor, skips: list[tuple[Tensor, ...]], label_embedding: Tensor, prompt: Prompt
    ) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W'); every block takes the last of `skips` off the list."""
        for block in self.blocks:
            hidden_states = block(hidden_states, label_embedding, prompt, *skips.pop())
        if self.upsample is not None:
            hidden_states = self.upsample(hidden_states, label_embedding)
        return hidden_states


class GalipMiddle(GalipCheckpointedModule):
    """Residual block, spatial transformer, residual block at the coarsest resolution."""

    def __init__(self, config: GalipConfig, channels: int) -> None:
        super().__init__()
        self.residual_in = GalipResidualBlock(config, channels, channels)
        self.transformer = GalipSpatialTransformer(config, channels)
        self.residual_out = GalipResidualBlock(config, channels, channels)

    def compute(self, hidden_states: Tensor, label_embedding: Tensor, prompt: Prompt) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        hidden_states = self.residual_in(hidden_states, label_embedding)
        hidden_states = self.transformer(hidden_states, prompt)
        return self.residual_out(hidden_states, label_embedding)
