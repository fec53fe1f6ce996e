"""The I2I-Galip generator: a thin U-Net, conditioned on a target domain's label and its prompt's text states.

Source: Korkmaz & Patel, "I2I-Galip: Unsupervised Medical Image Translation Using Generative Adversarial
CLIP", MIDL 2025, PMLR 301:748-762; the U-Net is latent diffusion's (Rombach et al., CVPR 2022) without a
timestep.

Inference needs this file, what it imports, and the weights: the prompts' text states are buffers of the
checkpoint. Images are (B, 1, H, W) float32 in [0, 1]; the last layer is a plain convolution, so outputs may
leave that range.
"""

import importlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_galip import GalipConfig
from .errors import GalipError
from .generator_blocks import (
    GalipBlock,
    GalipDecoderLevel,
    GalipEncoderLevel,
    GalipGroupNorm,
    GalipMiddle,
    GalipResidualBlock,
    GalipTransformerBlock,
    KeysAndValues,
    Prompt,
)
from .group_norm import channels_last
from .norm_silu_convolution import norm_silu_convolution
from .weight_files import LOADING_ERRORS, cached_file, check_shards, loading_fault


@dataclass
class GalipTranslationOutput(ModelOutput):
    """Output of the generator.

    Args:
        translation: (B, 1, H, W) image in the target domain, float, nominally in [0, 1].
    """

    translation: Tensor | None = None


@dataclass(frozen=True, eq=False)
class GalipTarget:
    """A target domain, ready for any number of images; made by `GalipForImageTranslation.prepare_target`.

    `label_embedding` is (1, label_width), after its SiLU; `prompt` holds the keys and values of every
    cross-attention.
    """

    name: str
    label_embedding: Tensor
    prompt: Mapping[nn.Module, KeysAndValues]


class GalipPreTrainedModel(PreTrainedModel):
    """Initialisation and strict loading."""

    config_class = GalipConfig
    base_model_prefix = "galip"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 (as transformers declares it)
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # Also the convolutions that latent diffusion sets to zero: small, and none of them dead.
            init.xavier_normal_(module.weight, gain=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, GalipForImageTranslation):
            init.zeros_(module.prompt_states)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `PreTrainedModel`, but weights that do not fit config.json are an error, not a log line.

        Only safetensors are loaded: a pickle could run code.

        Raises:
            GalipError: missing, unexpected or misshapen weights, or a pickle in their place; a faulty
                config.json; a damaged weights file; a directory or repository that holds no model or cannot
                be reached.
        """
        directory = os.fspath(pretrained_model_name_or_path)
        folder = os.path.join(directory, kwargs.get("subfolder") or "")
        if os.path.isfile(directory) or (
            os.path.isdir(directory) and not os.path.isfile(os.path.join(folder, "config.json"))
        ):
            raise GalipError(
                f"{folder}: not a model directory (no config.json in it); expected one written by "
                "save_pretrained"
            )
        for option in ("use_safetensors", "weights_only"):
            if kwargs.get(option) is False:
                raise GalipError(f"{option}=False: only safetensors are loaded; a pickle could run code")
        suffix = f".{kwargs['variant']}" if kwargs.get("variant") else ""
        weights, index = f"model{suffix}.safetensors", f"model.safetensors.index{suffix}.json"
        check_shards(os.path.join(folder, index))
        wants_info = kwargs.pop("output_loading_info", False)
        loading = {
            **kwargs,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
            "use_safetensors": True,
            "weights_only": True,  # for what a list of weight files may name
        }
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **loading)
            if not os.path.isdir(directory):  # of the Hub: the list was not to be had before
                check_shards(cached_file(directory, index, kwargs))
        except LOADING_ERRORS as error:
            raise GalipError(f"{directory}: {loading_fault(error, weights, kwargs.get('token'))}") from None
        model, info = loaded
        faults = [
            f"{len(info[kind])} {kind.removesuffix('_keys')} (e.g. {sorted(map(str, info[kind]))[0]})"
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if info[kind]
        ]
        if faults:
            raise GalipError(f"{directory}: the weights do not fit config.json: {'; '.join(faults)}")
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As in `PreTrainedModel`, except that `push_to_hub=True` is refused: it would push no processor."""
        if kwargs.pop("push_to_hub", False):
            raise GalipError("save_pretrained(push_to_hub=True): call model.push_to_hub(repo) instead")
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:  # type: ignore[override]
        """Push model, processor and card to the Hub in one commit; returns its `CommitInfo`.

        Args:
            repo_id: `user/name`; made if it is not there.
            **options: of `galip_hf.hub.push_model_directory`: `private`, `revision`, `create_pr`, `tag`,
                `subfolder`, `variant`, `with_code`, `commit_message`, `commit_description`, `token`; `tags`
                are the card's; `processor` is the model's (made of its domains by default, without
                statistics of training slices).

        Raises:
            GalipError: see `push_model_directory`; also in a process that has this file alone.
        """
        try:  # not by an import statement: transformers would carry the module along with this file
            hub = importlib.import_module("galip_hf.hub")
        except ImportError:
            raise GalipError("push_to_hub needs the package galip-hf; install it") from None
        return hub.push_model(self, repo_id, **options)


class GalipForImageTranslation(GalipPreTrainedModel):
    """Translates images to a target domain of `config.domains`.

    ```python
    model = GalipForImageTranslation.from_pretrained(directory)
    translation = model(pixel_values, target_domain="T2").translation
    ```

    The prompts' text states are the persistent buffer `prompt_states` (domains, tokens, width): inference
    needs no text encoder. `set_prompts` fills it.
    """

    prompt_states: Tensor

    def __init__(self, config: GalipConfig) -> None:
        super().__init__(config)
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
        self.post_init()

    def set_prompts(self, backbone: Any, prompts: Mapping[str, str] | None = None) -> None:
        """Encode the domains' prompts once, and keep their states in the checkpoint.

        Args:
            backbone: a `ClipBackbone` whose text tower has the configuration's widths.
            prompts: new prompts by domain name, taken into the configuration first.

        Raises:
            GalipError: an unknown domain, a prompt longer than the context, or a backbone of other widths.
        """
        indices = {self.config.domain_index(name): prompt for name, prompt in (prompts or {}).items()}
        texts = [indices.get(index, prompt) for index, prompt in enumerate(self.config.prompts)]
        features = backbone.encode_prompts(texts)
        pooled = self.config.text_conditioning == "pooled"
        states = features.embedding[:, None] if pooled else features.token_states
        if states.shape != self.prompt_states.shape:
            raise GalipError(
                f"set_prompts: {backbone.source} gives prompt states of shape {tuple(states.shape[1:])}; the "
                f"configuration (text_conditioning={self.config.text_conditioning!r}) expects "
                f"{self.config.prompt_states_shape}"
            )
        for index, prompt in indices.items():
            self.config.domains[index]["prompt"] = prompt
        self.prompt_states.copy_(states.to(self.prompt_states))
        self._has_prompts = True

    def target_labels(self, target_domain: str | Sequence[str] | Tensor, batch_size: int) -> Tensor:
        """Labels (B,) of a domain name, a list of names or a LongTensor (B,).

        Raises:
            GalipError: an unknown name, a number out of range, a wrong length or type.
        """
        device = self.conv_in.weight.device
        if isinstance(target_domain, str):
            return torch.full((batch_size,), self.config.domain_index(target_domain), device=device)
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
        return labels.to(device)

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
        translation = self.decode(self.encode(pixel_values), labels, prompt_states)
        return GalipTranslationOutput(translation=translation[..., :height, :width])

    def encode(self, pixel_values: Tensor, targets: int = 1) -> list[Tensor]:
        """All that is the same for every target: the encoder's `config.shared_levels`, and, for several
        targets, what the decoder makes of their feature maps alone.

        Args:
            pixel_values: (B, 1, H, W) float in [0, 1].
            targets: how often the result is to be decoded. For one, the decoder makes its parts when it needs
                them: they take twice the memory of the maps that they are made of.

        Returns:
            The feature map of these levels, and each map that the decoder takes of them, or its
            `GalipResidualBlock.of_skip`; (B, C, H', W'), channels_last.
        """
        # Of one channel, both layouts are the same memory: the strides tell which is meant.
        images = self._pad(pixel_values)[:, 0, :, :, None].permute(0, 3, 1, 2)
        skips = [channels_last(self.conv_in(images))]
        for level in self.encoder[: self.config.shared_levels]:
            skips += level(skips[-1], None, None)
        if targets == 1:
            return [skips[-1], *skips]
        takers = self._takers_of_skips()
        return [skips[-1], *(part for skip in skips for part in next(takers).of_skip(skip))]

    def _takers_of_skips(self) -> Iterator[GalipResidualBlock]:
        """The decoder's blocks in the order in which the encoder makes what they take."""
        blocks = [block for level in self.decoder for block in cast("GalipDecoderLevel", level).blocks]
        return (cast("GalipBlock", block).residual for block in reversed(blocks))

    def decode(self, features: Sequence[Tensor], labels: Tensor, prompt: Prompt) -> Tensor:
        """The rest of the network: `forward` is `decode(encode(...))`, without the padding.

        Args:
            features: from `encode`.
            labels: (B,) int64 of the target domains.
            prompt: states (B, tokens, width) of the targets' prompts, or `keys_and_values` of them.

        Returns:
            (B, 1, H, W), H and W those of the padded images.
        """
        return self._decode(features, F.silu(self.label_embedding(labels)), prompt)

    def keys_and_values(self, prompt_states: Tensor) -> dict[nn.Module, KeysAndValues]:
        """All that the network computes of prompts alone: two (P, heads, tokens, d) for each cross-attention.

        Args:
            prompt_states: (P, tokens, width).
        """
        return {
            module.cross_attention: module.cross_attention.keys_and_values(prompt_states)
            for module in self.modules()
            if isinstance(module, GalipTransformerBlock)
        }

    def prepare_target(self, target_domain: str) -> GalipTarget:
        """What depends on the target alone: its label's embedding, the keys and values of its prompt.

        Raises:
            GalipError: an unknown domain, or no prompt states.
        """
        labels = self.target_labels(target_domain, 1)
        prompt = self.keys_and_values(self._states_of_prompts(labels))
        return GalipTarget(target_domain, F.silu(self.label_embedding(labels)), prompt)

    def translate(self, pixel_values: Tensor, targets: Sequence[GalipTarget]) -> list[Tensor]:
        """The same images to each of `targets`, as `forward` would, with what the targets share done once.

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
        features = self.encode(pixel_values, len(targets))
        return [
            self._decode(features, target.label_embedding, target.prompt)[..., :height, :width]
            for target in targets
        ]

    def _pad(self, pixel_values: Tensor) -> Tensor:
        """Height and width up to a multiple of the coarsest rate, by repeating the border."""
        height, width = pixel_values.shape[-2:]
        multiple = 2 ** (len(self.config.channel_multipliers) - 1)
        bottom, right = (math.ceil(length / multiple) * multiple - length for length in (height, width))
        return F.pad(pixel_values, (0, right, 0, bottom), mode="replicate")

    def _skips(self, parts: list[Tensor]) -> list[tuple[Tensor, ...]]:
        """What `encode` returns behind the first feature map, as the decoder's blocks take it."""
        shared = cast("list[GalipEncoderLevel]", self.encoder[: self.config.shared_levels])
        if len(parts) == 1 + sum(level.number_of_maps for level in shared):  # the maps themselves
            return [(part,) for part in parts]
        takers, skips = self._takers_of_skips(), []
        while parts:
            number = 2 if next(takers).takes_parts else 1
            skips.append(tuple(parts[:number]))
            parts = parts[number:]
        return skips

    def _decode(self, features: Sequence[Tensor], label_embedding: Tensor, prompt: Prompt) -> Tensor:
        hidden_states, *parts = features
        skips = self._skips(parts)
        for level in self.encoder[self.config.shared_levels :]:
            skips += [(skip,) for skip in level(hidden_states, label_embedding, prompt)]
            (hidden_states,) = skips[-1]
        hidden_states = self.middle(hidden_states, label_embedding, prompt)
        for level in self.decoder:
            hidden_states = level(hidden_states, skips, label_embedding, prompt)
        return norm_silu_convolution(self.norm_out, self.conv_out, hidden_states)


__all__ = ["GalipForImageTranslation", "GalipPreTrainedModel", "GalipTarget", "GalipTranslationOutput"]
