"""The building blocks of the generator, those of latent diffusion's U-Net without a timestep.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022; as used in
Korkmaz & Patel, MIDL 2025. In the shapes, B is the batch, C channels, H and W height and width, N = H * W
image tokens, L text tokens, d the width of an attention head; C', H' and W' are those of a block's output.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_galip import GalipConfig
from .norm_silu_conv import Resample, norm_silu_conv, precise_group_norm, resampled

# The context of the cross-attentions: a prompt's text states (B, L, text_width), or, computed from them in
# advance, each cross-attention's keys and values, two (1 or B, heads, L, d).
KeysAndValues = tuple[Tensor, Tensor]
Prompt = Tensor | Mapping[nn.Module, KeysAndValues]


class GalipGroupNorm(nn.GroupNorm):
    """GroupNorm computed in float32 at least, under autocast and with half-precision weights too."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), of the input's type."""
        normalized = precise_group_norm(hidden_states, self.num_groups, self.weight, self.bias, self.eps)
        return normalized.to(hidden_states.dtype)


class GalipLayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 at least."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C), of the input's type."""
        precise = torch.promote_types(hidden_states.dtype, torch.float32)
        weight, bias = self.weight.to(precise), self.bias.to(precise)
        normalized = F.layer_norm(hidden_states.to(precise), self.normalized_shape, weight, bias, self.eps)
        return normalized.to(hidden_states.dtype)


class GalipResidualBlock(nn.Module):
    """Two norm-SiLU-convolutions with the target's label added between them, and a skip connection.

    With `resample`, height and width are halved (average) or doubled (nearest neighbour) before the first
    convolution and on the skip connection.
    """

    def __init__(
        self, config: GalipConfig, in_channels: int, out_channels: int, resample: Resample = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.adds_label = not config.cancels_label(out_channels)
        self.norm_in = GalipGroupNorm(config.norm_groups, in_channels, eps=1e-5)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.label_projection = nn.Linear(config.label_width, out_channels)
        self.norm_out = GalipGroupNorm(config.norm_groups, out_channels, eps=1e-5)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, inputs: Tensor, label_embedding: Tensor | None) -> Tensor:
        """(B, C, H, W), SiLU of the label's embedding (B or 1, label_width) -> (B, C', H', W').

        The label may be None where the next norm would cancel it (`GalipConfig.cancels_label`).
        """
        hidden_states = norm_silu_conv(self.norm_in, self.conv_in, inputs, self.resample)  # (B, C', H', W')
        if self.adds_label:
            label = self.label_projection(label_embedding)  # (B, C')
            hidden_states += label[:, :, None, None]
        hidden_states = norm_silu_conv(self.norm_out, self.conv_out, hidden_states)  # (B, C', H', W')
        hidden_states += self.skip(resampled(inputs, self.resample))
        return hidden_states


class GalipAttention(nn.Module):
    """Multi-head attention of image tokens to themselves, or to the text tokens of a prompt."""

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
        """(B, L, context_width) -> two (B, heads, L, d)."""
        return self._split_heads(self.key(context)), self._split_heads(self.value(context))

    def forward(self, tokens: Tensor, context: Tensor | KeysAndValues | None = None) -> Tensor:
        """(B, N, C); a context (B, L, context_width), its keys and values, or None (self) -> (B, N, C)."""
        context = tokens if context is None else context
        keys, values = self.keys_and_values(context) if isinstance(context, Tensor) else context
        batch = tokens.shape[0]
        attended = F.scaled_dot_product_attention(
            self._split_heads(self.query(tokens)),  # (B, heads, N, d)
            keys.expand(batch, -1, -1, -1),  # (B, heads, L, d)
            values.expand(batch, -1, -1, -1),
        )
        return self.output(attended.transpose(1, 2).flatten(2))  # (B, heads, N, d) -> (B, N, C)


class GalipTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt, GEGLU feed-forward; each with LayerNorm and skip."""

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

    def forward(self, tokens: Tensor, prompt: Prompt) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        context = prompt if isinstance(prompt, Tensor) else prompt[self.cross_attention]
        tokens = tokens + self.self_attention(self.norm_self(tokens))
        tokens = tokens + self.cross_attention(self.norm_cross(tokens), context)
        values, gate = self.feed_forward_in(self.norm_feed_forward(tokens)).chunk(2, dim=-1)  # (B, N, 4 C)
        return tokens + self.feed_forward_out(values * F.gelu(gate))


class GalipSpatialTransformer(nn.Module):
    """Transformer blocks over the H * W positions of a feature map, inside a skip connection."""

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
        tokens = self.norm(hidden_states).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)
        tokens = _pointwise(self.projection_in, tokens)
        for block in self.blocks:
            tokens = block(tokens, prompt)
        projected = _pointwise(self.projection_out, tokens)
        return hidden_states + projected.transpose(1, 2).reshape(hidden_states.shape)  # back to (B, C, H, W)


def _pointwise(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A 1 x 1 convolution of tokens (B, N, C): the same as a linear layer."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)


class GalipCheckpointedModule(nn.Module):
    """A part whose activations are recomputed in the backward pass where that is asked for.

    `PreTrainedModel.activation_checkpointing_enable` looks for this attribute, and sets it and the function.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]
    compute: Callable[..., Tensor]  # what `forward` returns

    def forward(self, *inputs: Any) -> Tensor:
        """`compute`; positional arguments only, as checkpointing passes gradients to no others."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.compute, *inputs)
        return self.compute(*inputs)


class GalipBlock(GalipCheckpointedModule):
    """A residual block and, at the attention rates, a spatial transformer."""

    def __init__(self, config: GalipConfig, in_channels: int, out_channels: int, rate: int) -> None:
        super().__init__()
        self.residual = GalipResidualBlock(config, in_channels, out_channels)
        has_attention = rate in config.attention_rates
        self.transformer = GalipSpatialTransformer(config, out_channels) if has_attention else None

    def compute(self, hidden_states: Tensor, label_embedding: Tensor | None, prompt: Prompt | None) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        hidden_states = self.residual(hidden_states, label_embedding)
        if self.transformer is not None:
            hidden_states = self.transformer(hidden_states, prompt)
        return hidden_states


class GalipEncoderLevel(nn.Module):
    """The blocks of one resolution and, on all levels but the last, a down-sampling residual block."""

    def __init__(self, config: GalipConfig, level: int, in_channels: int) -> None:
        super().__init__()
        channels, blocks = config.level_channels[level], config.blocks_per_level
        self.blocks = nn.ModuleList(
            GalipBlock(config, channels if index else in_channels, channels, 2**level)
            for index in range(blocks)
        )
        is_last = level == len(config.level_channels) - 1
        self.downsample = None if is_last else GalipResidualBlock(config, channels, channels, "down")

    def forward(
        self, hidden_states: Tensor, label_embedding: Tensor | None, prompt: Prompt | None
    ) -> list[Tensor]:
        """(B, C, H, W) -> the output of every block, in order: the skips of the decoder.

        The last of them, (B, C', H / 2, W / 2) or on the last level (B, C', H, W), goes on to the next level.
        """
        outputs = []
        for block in self.blocks:
            hidden_states = block(hidden_states, label_embedding, prompt)
            outputs.append(hidden_states)
        if self.downsample is not None:
            outputs.append(self.downsample(hidden_states, label_embedding))
        return outputs


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


class GalipDecoderLevel(nn.Module):
    """The blocks of one resolution, each on the concatenation with a skip; then, but on the finest level, an
    up-sampling residual block."""

    def __init__(self, config: GalipConfig, level: int, in_channels: int, skip_channels: list[int]) -> None:
        super().__init__()
        channels = config.level_channels[level]
        self.blocks = nn.ModuleList(
            GalipBlock(config, (channels if index else in_channels) + skip, channels, 2**level)
            for index, skip in enumerate(skip_channels)
        )
        self.upsample = GalipResidualBlock(config, channels, channels, "up") if level else None

    def forward(
        self, hidden_states: Tensor, skips: list[Tensor], label_embedding: Tensor, prompt: Prompt
    ) -> Tensor:
        """(B, C, H, W) -> (B, C', 2 H, 2 W), on the finest level (B, C', H, W).

        Each block takes the last of `skips`, (B, C_skip, H, W), off the list.
        """
        for block in self.blocks:
            hidden_states = torch.cat([hidden_states, skips.pop()], dim=1)  # (B, C + C_skip, H, W)
            hidden_states = block(hidden_states, label_embedding, prompt)
        if self.upsample is not None:
            hidden_states = self.upsample(hidden_states, label_embedding)
        return hidden_states
