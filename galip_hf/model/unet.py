"""The I2I-Galip generator: a thin U-Net, conditioned on a target domain's label and its prompt's text states.

Source: Korkmaz & Patel, "I2I-Galip: Unsupervised Medical Image Translation Using Generative Adversarial
CLIP", MIDL 2025, PMLR 301:748-762; the U-Net is latent diffusion's (Rombach et al., CVPR 2022) without a
timestep.

Inference needs this file, what it imports, and the weights: the prompts' text states are a buffer of the
checkpoint. Images are (B, 1, H, W) in [0, 1]; the last layer is a plain convolution, so outputs may leave
that range.

This module does without transformers' model classes, whose import takes two seconds: `galip-hf translate`
need not wait for them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .configuration_galip import GalipConfig
from .errors import GalipError
from .norm_silu_conv import channels_last, norm_silu_conv
from .unet_blocks import (
    GalipDecoderLevel,
    GalipEncoderLevel,
    GalipGroupNorm,
    GalipMiddle,
    GalipTransformerBlock,
    KeysAndValues,
    Prompt,
)
from .weight_files import check_directory, check_fit, read_weights


@dataclass
class GalipTranslationOutput(ModelOutput):
    """Output of the generator.

    Args:
        translation: (B, 1, H, W) image in the target domain, float, nominally in [0, 1].
    """

    translation: Tensor | None = None


@dataclass(frozen=True, eq=False)
class GalipTarget:
    """A target domain, ready for any number of images; made by `GalipGenerator.prepare_target`.

    `label_embedding` is (1, label_width), after its SiLU; `prompt` holds the keys and values of every
    cross-attention.
    """

    name: str
    label_embedding: Tensor
    prompt: Mapping[nn.Module, KeysAndValues]


class GalipGenerator(nn.Module):
    """The U-Net; `GalipForImageTranslation` adds what transformers does for a model.

    The prompts' text states are the persistent buffer `prompt_states` (domains, tokens, width).

    Source images that are translated to several targets share work in two places. The first levels of the
    encoder do not depend on the target (`GalipConfig.shared_levels`): `encode` computes them, and `decode`
    runs the rest of the network. The keys and values of the cross-attentions depend on the prompt alone:
    `prepare_target` computes them once.
    """

    config: Any  # a GalipConfig; to PreTrainedModel, any of transformers
    prompt_states: Tensor

    def __init__(self, config: GalipConfig) -> None:
        super().__init__()
        self.config = config
        self._build(config)

    def _build(self, config: GalipConfig) -> None:
        """Make the layers. Not part of `__init__`, which `GalipForImageTranslation` replaces."""
        channels = config.level_channels
        self.label_embedding = nn.Embedding(len(config.domains), config.label_width)
        self.conv_in = nn.Conv2d(1, channels[0], 3, padding=1)
        self.encoder = nn.ModuleList()
        width, skips = channels[0], [channels[0]]
        for level, level_width in enumerate(channels):
            self.encoder.append(GalipEncoderLevel(config, level, width))
            width = level_width
            is_last = level == len(channels) - 1
            skips += [width] * (config.blocks_per_level + (0 if is_last else 1))
        self.middle = GalipMiddle(config, width)
        self.decoder = nn.ModuleList()  # coarsest level first
        for level in reversed(range(len(channels))):
            skip_channels = [skips.pop() for _ in range(config.blocks_per_level + 1)]
            self.decoder.append(GalipDecoderLevel(config, level, width, skip_channels))
            width = channels[level]
        self.norm_out = GalipGroupNorm(config.norm_groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, 1, 3, padding=1)
        self.register_buffer("prompt_states", torch.zeros(len(config.domains), *config.prompt_states_shape))
        self._has_prompts = False

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.conv_in.weight.dtype

    def target_labels(self, target_domain: str | Sequence[str] | Tensor, batch_size: int) -> Tensor:
        """Labels (B,) of a domain name, a list of names or a LongTensor (B,).

        Raises:
            GalipError: an unknown name, a number out of range, a wrong length or type.
        """
        if isinstance(target_domain, str):
            return torch.full((batch_size,), self.config.domain_index(target_domain), device=self.device)
        if isinstance(target_domain, Tensor):
            labels = target_domain
            if labels.dtype != torch.long:
                raise GalipError(
                    f"target_domain: found a tensor of {labels.dtype}; expected torch.int64 labels"
                )
            # On an accelerator this check would stall the queue; there the embedding's own assertion stands.
            is_free = labels.device.type == "cpu" and not torch.compiler.is_compiling()
            if (
                is_free
                and labels.numel()
                and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.config.domains)
            ):
                raise GalipError(
                    f"target_domain: labels are {labels.tolist()}; expected "
                    f"0..{len(self.config.domains) - 1} ({', '.join(self.config.domain_names)})"
                )
        elif isinstance(target_domain, Sequence) and all(isinstance(name, str) for name in target_domain):
            labels = torch.tensor([self.config.domain_index(name) for name in target_domain])
        else:
            raise GalipError(
                f"target_domain: found {target_domain!r}; expected a name, a list of names or a LongTensor"
            )
        if labels.shape != (batch_size,):
            raise GalipError(
                f"target_domain: found shape {tuple(labels.shape)}; expected one a sample, ({batch_size},)"
            )
        return labels.to(self.device)

    def _states_of_prompts(self, labels: Tensor) -> Tensor:
        if not self._has_prompts and not torch.compiler.is_compiling():
            # Looked at once: loading fills the buffer without telling.
            self._has_prompts = bool(self.prompt_states.any())
            if not self._has_prompts:
                raise GalipError(
                    "the model has no prompt states; call model.set_prompts(backbone) or pass prompt_states=…"
                )
        return self.prompt_states[labels]

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 1 or not pixel_values.is_floating_point():
            raise GalipError(
                f"pixel_values: found {tuple(pixel_values.shape)} of {pixel_values.dtype}; "
                "expected float images (B, 1, H, W) in [0, 1]"
            )

    def forward(
        self,
        pixel_values: Tensor,
        target_domain: str | Sequence[str] | Tensor,
        prompt_states: Tensor | None = None,
    ) -> GalipTranslationOutput:
        """Translate images.

        Args:
            pixel_values: (B, 1, H, W) float in [0, 1], any H and W (padded inside by repeating the border).
            target_domain: a domain's name, a list of B names, or labels as a LongTensor (B,).
            prompt_states: (B, tokens, width) states to use in place of the stored ones of the target's
                prompt.

        Raises:
            GalipError: a wrong shape or type, an unknown domain, or no prompt states.
        """
        self._check_pixel_values(pixel_values)
        labels = self.target_labels(target_domain, pixel_values.shape[0])
        if prompt_states is None:
            prompt_states = self._states_of_prompts(labels)
        expected = (pixel_values.shape[0], *self.config.prompt_states_shape)
        if tuple(prompt_states.shape) != expected:
            raise GalipError(f"prompt_states: found shape {tuple(prompt_states.shape)}; expected {expected}")
        height, width = pixel_values.shape[-2:]
        translation = self.decode(self.encode(pixel_values), labels, prompt_states.to(self.dtype))
        return GalipTranslationOutput(translation=translation[..., :height, :width].to(pixel_values.dtype))

    def encode(self, pixel_values: Tensor) -> list[Tensor]:
        """The part that does not depend on the target: the first `config.shared_levels` levels.

        Args:
            pixel_values: (B, 1, H, W) float in [0, 1]; converted to the type of the weights.

        Returns:
            The output of the first convolution and of each block so far, (B, C, H', W').
        """
        hidden_states = self.conv_in(self._pad(pixel_values.to(self.dtype)))
        if not torch.is_grad_enabled():  # the layout of inference, see `norm_silu_conv`
            hidden_states = channels_last(hidden_states)
        skips = [hidden_states]
        for level in self.encoder[: self.config.shared_levels]:
            skips += level(skips[-1], None, None)
        return skips

    def decode(self, features: Sequence[Tensor], labels: Tensor, prompt: Prompt) -> Tensor:
        """The rest of the network: `forward` is `decode(encode(...))`, apart from padding and checks.

        Args:
            features: from `encode`; not modified, so that several targets can use them.
            labels: (B,) int64 of the target domains.
            prompt: states (B, tokens, width) of the targets' prompts, or `keys_and_values` of them.

        Returns:
            (B, 1, H, W), H and W those of the padded images.
        """
        return self.decode_embedded(features, F.silu(self.label_embedding(labels)), prompt)

    def keys_and_values(self, prompt_states: Tensor) -> dict[nn.Module, KeysAndValues]:
        """Keys and values of the prompts, two (P, heads, tokens, d), for each cross-attention.

        Args:
            prompt_states: (P, tokens, width).
        """
        return {
            module.cross_attention: module.cross_attention.keys_and_values(prompt_states)
            for module in self.modules()
            if isinstance(module, GalipTransformerBlock)
        }

    def prepare_target(self, target_domain: str) -> GalipTarget:
        """What depends only on the target: its label's embedding, and its prompt's keys and values.

        Raises:
            GalipError: an unknown domain, or no prompt states.
        """
        labels = self.target_labels(target_domain, 1)
        prompt = self.keys_and_values(self._states_of_prompts(labels))
        return GalipTarget(target_domain, F.silu(self.label_embedding(labels)), prompt)

    def translate(self, pixel_values: Tensor, targets: Sequence[GalipTarget]) -> list[Tensor]:
        """Translate the same images to each of `targets`, computing what the targets share only once.

        Args:
            pixel_values: (B, 1, H, W) float in [0, 1].
            targets: from `prepare_target`; at least one.

        Returns:
            One (B, 1, H, W) a target, equal to `forward`'s to rounding.

        Raises:
            GalipError: images of a wrong shape or type.
        """
        self._check_pixel_values(pixel_values)
        height, width = pixel_values.shape[-2:]
        features = self.encode(pixel_values)
        translations = (
            self.decode_embedded(features, target.label_embedding, target.prompt) for target in targets
        )
        return [images[..., :height, :width].to(pixel_values.dtype) for images in translations]

    def _pad(self, pixel_values: Tensor) -> Tensor:
        """Height and width up to a multiple of the coarsest rate, by repeating the border."""
        height, width = pixel_values.shape[-2:]
        multiple = 2 ** (len(self.config.channel_multipliers) - 1)
        # In whole numbers, which torch.export can follow: nothing is left of it where lengths are multiples.
        bottom, right = (-(-length // multiple) * multiple - length for length in (height, width))
        return F.pad(pixel_values, (0, right, 0, bottom), mode="replicate")

    def decode_embedded(self, features: Sequence[Tensor], label_embedding: Tensor, prompt: Prompt) -> Tensor:
        """`decode` with the labels' embeddings (B or 1, label_width), after their SiLU, for labels."""
        skips = list(features)
        for level in self.encoder[self.config.shared_levels :]:
            skips += level(skips[-1], label_embedding, prompt)
        hidden_states = self.middle(skips[-1], label_embedding, prompt)
        for level in self.decoder:
            hidden_states = level(hidden_states, skips, label_embedding, prompt)
        return norm_silu_conv(self.norm_out, self.conv_out, hidden_states)


def load_generator(directory: str | os.PathLike[str], variant: str | None = None) -> GalipGenerator:
    """The network of a model directory, for inference: in evaluation mode, its weights as float32.

    Weights saved in half precision are converted too: the precision of inference is the caller's choice.

    Raises:
        GalipError: no config.json or a faulty one, weights that do not fit it, damaged ones, a pickle in
            their place.
    """
    check_directory(os.fspath(directory))
    config = GalipConfig.from_pretrained(directory)
    config.name_or_path = os.fspath(directory)
    weights = read_weights(directory, variant)
    with torch.random.fork_rng(devices=[]):  # the layers draw initial weights, which are replaced
        generator = GalipGenerator(config)
    expected = generator.state_dict()
    check_fit(
        os.fspath(directory),
        missing=expected.keys() - weights.keys(),
        unexpected=weights.keys() - expected.keys(),
        mismatched=[key for key in expected.keys() & weights if expected[key].shape != weights[key].shape],
    )
    # In the layout of the feature maps, into which each convolution would otherwise bring them.
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator.load_state_dict(weights)
    return generator.eval()


__all__ = ["GalipGenerator", "GalipTarget", "GalipTranslationOutput", "load_generator"]
