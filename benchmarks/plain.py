"""The plain form of a training step and of inference: what the fast forms are measured against.

Written from the method's description as its published implementation goes (Korkmaz & Patel, MIDL 2025): the
text tower encodes the prompts of every batch; six generator calls; six passes of the image tower, the
embedding of a fake and its features being passes of their own; heads one sample at a time, in channel layout;
attention by einsum, its block computed again in the backward pass; the discriminator evaluated on the fakes
for the generator, and on the reals and on the fakes for itself.

It works on a generator, a discriminator and a backbone of `galip_hf`, so that both forms have one and the
same weights and their losses can be compared.
"""

import copy
import math
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from galip_hf import GalipForImageTranslation
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.data.unpaired_batch import UnpairedBatch
from galip_hf.model.unet import GalipTranslationOutput
from galip_hf.model.unet_blocks import (
    GalipAttention,
    GalipDecoderLevel,
    GalipGroupNorm,
    GalipResidualBlock,
    GalipTransformerBlock,
)
from galip_hf.training.discriminator import (
    GalipDiscriminator,
    GalipHead,
    SpectralNormLinear,
    TokenConvolution,
)
from galip_hf.training.losses import adversarial_discriminator_loss, class_token_loss, clip_loss
from galip_hf.training.training_args import GalipTrainingArguments


def einsum_attention(self: GalipAttention, hidden_states: Tensor, context: Tensor | None = None) -> Tensor:
    """`GalipAttention.forward` with the matrix of weights made, (B, heads, N, L)."""
    context = hidden_states if context is None else context
    batch, length, width = hidden_states.shape

    def heads(states: Tensor) -> Tensor:  # (B, L, heads * d) -> (B * heads, L, d)
        split = states.view(batch, states.shape[1], width // self.head_width, self.head_width)
        return split.permute(0, 2, 1, 3).reshape(-1, states.shape[1], self.head_width)

    query, key, value = heads(self.query(hidden_states)), heads(self.key(context)), heads(self.value(context))
    weights = torch.einsum("bid,bjd->bij", query, key) * self.head_width**-0.5
    attended = torch.einsum("bij,bjd->bid", weights.softmax(dim=-1), value)
    attended = attended.view(batch, width // self.head_width, length, self.head_width)
    return self.output(attended.permute(0, 2, 1, 3).reshape(batch, length, width))


def plain_resampled(hidden_states: Tensor, resample: str | None) -> Tensor:
    """Average pooling, or each pixel four times."""
    if resample == "down":
        return F.avg_pool2d(hidden_states, 2)
    if resample == "up":
        return F.interpolate(hidden_states, scale_factor=2, mode="nearest")
    return hidden_states


def plain_residual(self: GalipResidualBlock, hidden_states: Tensor, label_embedding: Tensor) -> Tensor:
    """`GalipResidualBlock.forward`, operation by operation, of all its input channels."""
    residual = self.skip(plain_resampled(hidden_states, self.resample))
    hidden_states = self.conv_in(plain_resampled(F.silu(self.norm_in(hidden_states)), self.resample))
    hidden_states = hidden_states + self.label_projection(label_embedding)[:, :, None, None]
    return residual + self.conv_out(F.silu(self.norm_out(hidden_states)))


def plain_decoder_level(
    self: GalipDecoderLevel,
    hidden_states: Tensor,
    skips: list[Tensor],
    label_embedding: Tensor,
    prompt_states: Tensor,
) -> Tensor:
    """`GalipDecoderLevel.forward`: each block on the concatenation with the next skip."""
    for block in self.blocks:
        hidden_states = torch.cat([hidden_states, skips.pop()], dim=1)
        hidden_states = block(hidden_states, label_embedding, prompt_states)
    return hidden_states if self.upsample is None else self.upsample(hidden_states, label_embedding)


def plain_forward(
    self: GalipForImageTranslation,
    pixel_values: Tensor,
    labels: Tensor,
    prompt_states: Tensor | None = None,
) -> GalipTranslationOutput:
    """`GalipForImageTranslation.forward` of images that need no padding; the label enters every block."""
    states = self.prompt_states[labels] if prompt_states is None else prompt_states
    condition = F.silu(self.label_embedding(labels)), states
    skips = [self.conv_in(pixel_values)]
    for level in self.encoder:
        skips += level(skips[-1], *condition)
    hidden_states = self.middle(skips[-1], *condition)
    for level in self.decoder:
        hidden_states = level(hidden_states, skips, *condition)
    return GalipTranslationOutput(translation=self.conv_out(F.silu(self.norm_out(hidden_states))))


def recomputed_block(self: GalipTransformerBlock, hidden_states: Tensor, prompt_states: Tensor) -> Tensor:
    """`GalipTransformerBlock.forward`, computed again in the backward pass."""
    forward = types.MethodType(GalipTransformerBlock.forward, self)
    if not torch.is_grad_enabled():
        return forward(hidden_states, prompt_states)
    return checkpoint(forward, hidden_states, prompt_states, use_reentrant=False)


PLAIN_FORWARDS: dict[type[nn.Module], Any] = {
    GalipAttention: einsum_attention,
    GalipDecoderLevel: plain_decoder_level,
    GalipGroupNorm: nn.GroupNorm.forward,
    GalipResidualBlock: plain_residual,
    GalipTransformerBlock: recomputed_block,
    GalipForImageTranslation: plain_forward,
}


def plain_generator(model: GalipForImageTranslation) -> GalipForImageTranslation:
    """A copy of a generator that computes in the plain form."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in PLAIN_FORWARDS:
            module.forward = types.MethodType(PLAIN_FORWARDS[type(module)], module)  # type: ignore[method-assign]
    return model


def plain_translate(
    model: GalipForImageTranslation, backbone: ClipBackbone, pixel_values: Tensor, domain: int
) -> Tensor:
    """One slice, (1, 1, H, W): the prompt is encoded for it."""
    states = encode_prompts(backbone, [model.config.prompts[domain]])[0]
    return model(pixel_values, torch.tensor([domain]), states).translation


@torch.no_grad()
def encode_prompts(backbone: ClipBackbone, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Token states (P, L, W) and unit embedding (P, E), from the text tower."""
    embedding, states = backbone.clip.text(backbone.tokenizer(prompts).to(backbone.image_mean.device))
    return states, F.normalize(embedding, dim=-1)


class PlainTraining:
    """Steps in the plain form on copies of a generator and a discriminator.

    Args:
        model, discriminator: copied.
        backbone: the frozen CLIP model.
        arguments: learning rates and loss weights.
    """

    def __init__(
        self,
        model: GalipForImageTranslation,
        discriminator: GalipDiscriminator,
        backbone: ClipBackbone,
        arguments: GalipTrainingArguments,
    ) -> None:
        self.generator, self.backbone = plain_generator(model).train(), backbone
        self.discriminator = copy.deepcopy(discriminator)
        self.average = copy.deepcopy(model)
        self._tokens: list[Any] = [None, None]  # of reals and detached fakes, by domain
        self.weights, self.decay = arguments.loss_weights, arguments.ema_decay
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=arguments.learning_rate, betas=arguments.adam_betas
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(),
            lr=arguments.discriminator_learning_rate,
            betas=arguments.adam_betas,
        )

    def training_step(self, batch: UnpairedBatch) -> dict[str, Tensor]:
        """One step; the losses by name, means over the two directions."""
        images, labels = batch.sources.chunk(2), batch.source_labels.chunk(2)
        captions = [
            encode_prompts(self.backbone, [self.generator.config.prompts[label] for label in own.tolist()])
            for own in labels
        ]
        values = self._generator_losses(images, labels, captions)
        total = sum(2 * getattr(self.weights, name) * value for name, value in values.items())
        assert isinstance(total, Tensor)
        self.generator_optimizer.zero_grad()
        self.discriminator.requires_grad_(False)
        total.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        values["discriminator"] = self._discriminator_loss(images, labels, captions)
        self.discriminator_optimizer.zero_grad()
        (2 * values["discriminator"]).backward()
        self.discriminator_optimizer.step()
        self.discriminator.power_iteration(set(batch.target_domains))
        with torch.no_grad():
            for average, parameter in zip(
                self.average.parameters(), self.generator.parameters(), strict=True
            ):
                average.mul_(self.decay).add_(parameter, alpha=1 - self.decay)
        return {name: value.detach() for name, value in values.items()}

    def _generator_losses(
        self, images: tuple[Tensor, ...], labels: tuple[Tensor, ...], captions: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        def translate(pixel_values: Tensor, target: int) -> Tensor:
            return self.generator(pixel_values, labels[target], captions[target][0]).translation

        fakes = [translate(images[1], 0), translate(images[0], 1)]  # of domain A, of domain B
        sums: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            sums[name] = sums.get(name, torch.zeros(())) + value / 2

        for side in (0, 1):
            embedding = captions[side][1]
            add("clip", clip_loss(self.backbone.encode_images(fakes[side]).embedding, embedding))
            features = self.backbone.encode_images(fakes[side])
            logits = plain_logits(self.discriminator, features.patch_tokens, labels[side], embedding)
            add("adversarial", (logits - 1).square().mean())
            with torch.no_grad():
                real = self.backbone.encode_images(images[side])
            add("class_token", class_token_loss(features.class_tokens, real.class_tokens))
            add("cycle", (translate(fakes[side], 1 - side) - images[1 - side]).abs().mean())
            add("identity", (translate(images[side], side) - images[side]).abs().mean())
            self._tokens[side] = (real.patch_tokens, [tokens.detach() for tokens in features.patch_tokens])
        return sums

    def _discriminator_loss(
        self, images: tuple[Tensor, ...], labels: tuple[Tensor, ...], captions: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        losses = []
        for side in (0, 1):
            real_tokens, fake_tokens = self._tokens[side]
            condition = (labels[side], captions[side][1])
            losses.append(
                adversarial_discriminator_loss(
                    plain_logits(self.discriminator, real_tokens, *condition),
                    plain_logits(self.discriminator, fake_tokens, *condition),
                )
            )
        return torch.stack(losses).mean()


# Heads, one sample at a time


def plain_logits(
    discriminator: GalipDiscriminator,
    patch_tokens: "tuple[Tensor, ...] | list[Tensor]",
    labels: Tensor,
    text_embedding: Tensor,
) -> Tensor:
    """Logits (B, layers, N) of tokens (B, N, W), with one call of a head for each sample."""
    layers = []
    for layer, tokens in enumerate(patch_tokens):
        samples = []
        for index, label in enumerate(labels):
            head = discriminator.heads(int(label.item()))[layer]
            assert isinstance(head, GalipHead)
            samples.append(_plain_head(head, tokens[index : index + 1].mT, text_embedding[index]))
        layers.append(torch.cat(samples))
    return torch.stack(layers, dim=1)


def _plain_head(head: GalipHead, tokens: Tensor, text_embedding: Tensor) -> Tensor:
    """(1, W, N) -> (1, N)."""
    hidden = _plain_convolution(head.pointwise, tokens)
    hidden = (_plain_convolution(head.neighbourhood, hidden) + hidden) / math.sqrt(2)
    weight = _normalised_weight(head.projection)
    image = F.conv1d(hidden, weight[..., None], head.projection_bias)  # (1, 64, N)
    text = head.text_projection(text_embedding)
    return (image * text[None, :, None]).sum(dim=1) / math.sqrt(image.shape[1])


def _normalised_weight(module: SpectralNormLinear) -> Tensor:
    return module.weight / module.singular_value()


def _plain_convolution(module: TokenConvolution, tokens: Tensor) -> Tensor:
    """(1, W, N) -> (1, W, N)."""
    size, width = module.kernel_size, tokens.shape[1]
    weight = _normalised_weight(module.linear).view(width, size, width).permute(0, 2, 1)
    hidden = F.conv1d(F.pad(tokens, (size // 2, size // 2), mode="circular"), weight)
    hidden = F.batch_norm(
        hidden,
        None,
        None,
        module.scale,
        module.shift,
        training=True,
        eps=1e-5,
    )
    return F.leaky_relu(hidden, 0.2)
