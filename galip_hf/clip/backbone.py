"""The frozen CLIP model (BiomedCLIP by default) as one module: image features in one pass, prompt features.

I2I-Galip (Korkmaz & Patel, MIDL 2025) uses a pre-trained CLIP model twice without training it: the patch
tokens, class tokens and embedding of its image tower feed the discriminator heads and the CLIP and
class-token losses, and the token states and embedding of its text tower condition the generator and the
heads. The model itself is an open_clip one (`create_model`), loaded from the Hub, from open_clip's own list
or from a local directory; a local directory needs no network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.errors import GalipError

BIOMED_CLIP = "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"


@dataclass(frozen=True)
class ClipImageFeatures:
    """What one pass of the image tower gives; float32 throughout.

    Attributes:
        patch_tokens: one (B, N, W) tensor per block of `ClipBackbone.image_blocks`, final norm applied.
        class_tokens: (B, 4, W), the class tokens of the last four blocks in order, final norm applied.
        embedding: (B, E), unit length.
    """

    patch_tokens: tuple[Tensor, ...]
    class_tokens: Tensor
    embedding: Tensor


@dataclass(frozen=True)
class ClipPromptFeatures:
    """What the text tower gives for P prompts; float32 throughout, no gradient.

    Attributes:
        token_states: (P, L, W_text), last hidden states, padding included; L is the full context length.
        embedding: (P, E), unit length.
    """

    token_states: Tensor
    embedding: Tensor


class ClipBackbone(nn.Module):
    """A frozen open_clip model. Build it with `from_pretrained`.

    Parameters are float32, need no gradient, and the module stays in evaluation mode whatever `train()` is
    told. Keep it out of a `PreTrainedModel`'s submodules: its weights belong to neither its checkpoints nor
    its EMA copy.

    Attributes:
        source: where the model came from, as given to `from_pretrained`.
        image_size: (height, width) the image tower works at.
        image_blocks: 0-based indices of the four blocks whose patch tokens are returned.
        image_width, text_width, embedding_width: widths W, W_text and E of the features.
        num_patches: N, patch tokens per image.
        context_length: L, tokens per prompt, the special ones and padding included.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, clip: Any, tokenizer: Any, source: str) -> None:
        """Freeze `clip`, an open_clip `CustomTextCLIP`, and measure its features with one black image."""
        super().__init__()
        depth = _image_depth(clip.visual, source)
        self.clip: Any = clip.float().requires_grad_(False).eval()
        self.clip.text.output_tokens = True  # (embedding, token states) instead of the embedding alone
        self.training = False
        self.tokenizer = tokenizer
        self.source = source
        self.context_length: int = tokenizer.context_length
        height, width = clip.visual.image_size
        self.image_size: tuple[int, int] = (height, width)
        preprocess = clip.visual.preprocess_cfg
        self.register_buffer(
            "image_mean", torch.tensor(preprocess["mean"]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("image_std", torch.tensor(preprocess["std"]).view(1, 3, 1, 1), persistent=False)
        self.image_blocks: tuple[int, ...] = tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        self._class_token_blocks = tuple(range(depth - 4, depth))
        with torch.no_grad():
            image = self.encode_images(torch.zeros(1, 1, height, width))
            text_states = self.clip.text(self.tokenizer(["a"]))[1]
        self.num_patches, self.image_width = image.patch_tokens[0].shape[1:]
        self.embedding_width: int = image.embedding.shape[-1]
        self.text_width: int = text_states.shape[-1]

    @classmethod
    def from_pretrained(
        cls, source: str | Path = BIOMED_CLIP, *, device: torch.device | str | None = None
    ) -> ClipBackbone:
        """Load a CLIP model with its weights and tokenizer.

        Args:
            source: `hf-hub:OWNER/NAME`; a local directory in open_clip's layout (open_clip_config.json,
                weights, and for a Hugging Face text tower its config.json and tokenizer files), which needs
                no network; or `NAME:TAG`, one of open_clip's own models and its weights, such as
                `ViT-B-32:laion2b_s34b_b79k`.
            device: where to put it; the CPU by default.

        Raises:
            GalipError: nothing is found there, weights or other files are missing or do not fit, or the image
                tower is not a vision transformer with a class token and at least four blocks.
        """
        clip, tokenizer = load_open_clip(source)
        backbone = cls(clip, tokenizer, str(source))
        return backbone if device is None else backbone.to(device)

    def train(self, mode: bool = True) -> ClipBackbone:
        """Stay in evaluation mode: the model is frozen, dropout included."""
        return super().train(False)

    def encode_images(self, pixel_values: Tensor) -> ClipImageFeatures:
        """Run the image tower once; gradients flow to `pixel_values` (frozen weights, live graph).

        Args:
            pixel_values: (B, 1, H, W) in [0, 1]. The channel is repeated to three, resized (bicubic,
                antialiased; skipped when the size fits) to `image_size` and normalised with the model's own
                mean and deviation.

        Raises:
            GalipError: `pixel_values` is not (B, 1, H, W).
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 1:
            raise GalipError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, 1, height, width)."
            )
        blocks = sorted({*self.image_blocks, *self._class_token_blocks})
        output = self.clip.forward_intermediates(
            image=self._prepare_images(pixel_values),
            image_indices=blocks,
            normalize=False,
            normalize_intermediates=True,
            image_output_fmt="NLC",
            image_output_extra_tokens=True,
        )
        if "image_intermediates_prefix" not in output:
            raise GalipError(
                f"{self.source}: the image tower has no class token; choose a CLIP model that has one."
            )
        patch_tokens = dict(zip(blocks, output["image_intermediates"], strict=True))
        # the class token comes first; register tokens, where a tower has them, follow it
        class_tokens = {
            block: prefix[:, 0]
            for block, prefix in zip(blocks, output["image_intermediates_prefix"], strict=True)
        }
        return ClipImageFeatures(
            patch_tokens=tuple(patch_tokens[block].float() for block in self.image_blocks),
            class_tokens=torch.stack(
                [class_tokens[block] for block in self._class_token_blocks], dim=1
            ).float(),
            embedding=F.normalize(output["image_features"].float(), dim=-1),
        )

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> ClipPromptFeatures:
        """Run the text tower on P prompts, in float32 even under autocast (the features are kept with a
        model).

        Raises:
            GalipError: no prompt, a single string in place of a sequence, or a prompt longer than the
            context.
        """
        if isinstance(prompts, str) or not prompts:
            raise GalipError(f"prompts is {prompts!r}; expected a non-empty sequence of sentences.")
        for prompt in prompts:
            length = _count_tokens(self.tokenizer, prompt)
            if length > self.context_length:
                raise GalipError(
                    f"prompt {prompt[:60]!r} has {length} tokens; the text tower of {self.source} reads at "
                    f"most {self.context_length}. Shorten it."
                )
        device = self.image_mean.device
        with torch.autocast(device.type, enabled=False):
            embedding, token_states = self.clip.text(self.tokenizer(list(prompts)).to(device))
        return ClipPromptFeatures(token_states=token_states, embedding=F.normalize(embedding, dim=-1))

    def _prepare_images(self, pixel_values: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] -> (B, 3, *image_size), normalised. Resizing comes first: one channel, not
        three."""
        pixel_values = pixel_values.float()
        if tuple(pixel_values.shape[2:]) != self.image_size:
            pixel_values = F.interpolate(pixel_values, size=self.image_size, mode="bicubic", antialias=True)
        return (pixel_values.expand(-1, 3, -1, -1) - self.image_mean) / self.image_std


def load_open_clip(source: str | Path) -> tuple[Any, Any]:
    """Load an open_clip `CustomTextCLIP` in float32 and its tokenizer; sources as in
    `ClipBackbone.from_pretrained`.

    Raises:
        GalipError: see `ClipBackbone.from_pretrained`.
    """
    import open_clip  # late: `import galip_hf` and inference with stored prompts need no open_clip

    name, tag, overrides = _resolve_source(source)
    try:
        # without require_pretrained a failed download leaves random weights behind a log line
        clip = open_clip.create_model(
            name, pretrained=tag, require_pretrained=True, force_custom_text=True, **overrides
        )
        tokenizer = open_clip.get_tokenizer(name)
    # open_clip, timm, transformers, safetensors and the Hub client each raise their own kinds
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GalipError(
            f"CLIP model {str(source)!r} could not be loaded with its weights: {reason[:400]}; expected "
            "hf-hub:OWNER/NAME, NAME:TAG or a local open_clip directory (which needs no network)."
        ) from error
    return clip, tokenizer


def _resolve_source(source: str | Path) -> tuple[str, str | None, dict[str, Any]]:
    """Turn a source into open_clip's model name, weight tag and overrides of its configuration."""
    text = str(source)
    directory = Path(text.removeprefix("local-dir:")).expanduser().absolute()
    if directory.is_dir():
        towers = local_towers(directory)
        _check_files(directory, towers)
        return f"local-dir:{directory}", None, towers
    if text.startswith("hf-hub:"):
        return text, None, {}
    name, separator, tag = text.partition(":")
    if isinstance(source, Path) or name == "local-dir" or not separator or "/" in name:
        raise GalipError(
            f"CLIP model {text!r} is no directory; expected an existing open_clip directory, "
            "hf-hub:OWNER/NAME or NAME:TAG (such as ViT-B-32:laion2b_s34b_b79k)."
        )
    return name, tag, {}


def local_towers(directory: Path) -> dict[str, Any]:
    """Read a local model's `vision_cfg` and `text_cfg`, with the names in them pointing at the directory
    itself.

    A model directory names its text tower by a Hub repository (BiomedCLIP does) and open_clip would ask the
    Hub for it. A timm tower given as `local-dir:NAME` is a folder of the directory holding timm's config.json
    (architecture and arguments); timm would look for it in the working directory.

    Raises:
        GalipError: no open_clip_config.json, or one without these parts.
    """
    config_file = directory / "open_clip_config.json"
    if not config_file.is_file():
        raise GalipError(f"{directory} is not an open_clip model: open_clip_config.json is missing.")
    try:
        model = json.loads(config_file.read_text(encoding="utf-8"))["model_cfg"]
        vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
    except (ValueError, KeyError, TypeError) as error:
        raise GalipError(
            f"{config_file} is no open_clip configuration ({type(error).__name__}: {error}); expected JSON "
            "with model_cfg, and vision_cfg and text_cfg in it."
        ) from error
    if "hf_model_name" in text:
        text |= {"hf_model_name": str(directory), "hf_model_pretrained": False}
    if "timm_model_name" in vision:
        prefix, separator, folder = vision["timm_model_name"].partition("local-dir:")
        vision["timm_model_name"] = f"local-dir:{directory / folder}" if separator else prefix
        vision["timm_model_pretrained"] = False
    return {"vision_cfg": vision, "text_cfg": text}


def _check_files(directory: Path, towers: dict[str, Any]) -> None:
    """Raise a GalipError that names every file a local model lacks."""
    missing = []
    if not any(path.suffix in (".safetensors", ".bin", ".pth") for path in directory.iterdir()):
        missing.append("weights (open_clip_model.safetensors or open_clip_pytorch_model.bin)")
    if "hf_model_name" in towers["text_cfg"]:
        if not (directory / "config.json").is_file():
            missing.append("config.json (of the Hugging Face text tower)")
        if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
            missing.append("tokenizer.json or vocab.txt")
    if missing:
        raise GalipError(f"{directory} is not a complete open_clip model; missing: {', '.join(missing)}.")


def _image_depth(visual: Any, source: str) -> int:
    """Number of transformer blocks of an image tower, timm's or open_clip's own."""
    blocks = getattr(getattr(visual, "trunk", None), "blocks", None)
    if blocks is None:
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or len(blocks) < 4:
        found = type(visual).__name__ if blocks is None else f"{len(blocks)} blocks"
        raise GalipError(
            f"{source}: the image tower is {found}; expected a vision transformer with at least four blocks."
        )
    return len(blocks)


def _count_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens of a prompt before truncation, the special ones included."""
    if hasattr(tokenizer, "tokenizer"):  # open_clip's wrapper of a Hugging Face tokenizer
        return len(tokenizer.tokenizer(tokenizer.clean_fn(prompt), verbose=False).input_ids)
    return len(tokenizer.encode(prompt)) + 2  # open_clip's own byte-pair tokenizer: start and end
