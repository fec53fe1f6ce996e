"""A tiny CLIP model made on the spot, for examples and tests that cannot download BiomedCLIP.

It is a stand-in, NOT BiomedCLIP: a vision transformer and a BERT of some 250,000 parameters, with a
vocabulary made from the captions at hand, trained for seconds with the contrastive loss of CLIP (Radford et
al., ICML 2021) on those captions and images. It has seen no medical literature and nothing else. It has the
same parts as BiomedCLIP (an open_clip `CustomTextCLIP` with a timm image tower and a Hugging Face text
tower), so that every line of `ClipBackbone` runs on it; figures obtained with it say nothing about the
published method.
"""

from __future__ import annotations

import json
import logging
import math
import string
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..files import atomic_write
from ..model.errors import GalipError
from .backbone import load_open_clip, local_towers

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "open_clip_model.safetensors"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # [PAD] must be 0: the text tower masks it

README = """# Tiny stand-in for BiomedCLIP

This is **not BiomedCLIP** and not a medical model. It is a vision transformer and a BERT with {parameters:,}
parameters together, with a vocabulary made from a few captions, so that the software can be tried and tested
without a download. Figures obtained with it say nothing about the published method.

Load it with `galip_hf.clip.backbone.ClipBackbone.from_pretrained(DIRECTORY)`, with or without a network.
"""


def build_tiny_clip(
    directory: str | Path,
    captions: Sequence[str],
    *,
    image_size: int = 64,
    patch_size: int = 8,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    embedding_width: int = 64,
    text_width: int = 64,
    text_depth: int = 2,
    context_length: int = 32,
    feed_forward_multiplier: int = 2,
    seed: int = 0,
) -> Path:
    """Write an untrained tiny CLIP model (a stand-in, not BiomedCLIP) that `ClipBackbone.from_pretrained`
    loads.

    Args:
        directory: where to write it; must be absent or empty.
        captions: texts whose words become the vocabulary; other words are spelled in letters.
        image_size: height and width the image tower works at, in pixels; a multiple of `patch_size`.
        width, depth, heads: of the image tower; `heads` also of the text tower.
        embedding_width: of the space shared by images and texts.
        text_width, text_depth: of the text tower.
        context_length: tokens per text, [CLS] and [SEP] included.
        feed_forward_multiplier: hidden width of both towers' feed-forward layers over their width.
        seed: of the initial weights. Equal arguments write equal bytes.

    Returns:
        The directory.

    Raises:
        GalipError: no captions, sizes that do not divide, or a directory that holds something already.
    """
    directory = Path(directory)
    if isinstance(captions, str) or not captions:
        raise GalipError(f"captions is {captions!r}; expected a non-empty sequence of sentences.")
    if image_size % patch_size or width % heads or text_width % heads:
        raise GalipError(
            f"image_size {image_size}, width {width} and text_width {text_width} must be multiples of "
            f"patch_size {patch_size}, heads {heads} and heads {heads}."
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise GalipError(f"{directory} exists and is not an empty directory; delete it or name another.")
    vocabulary = _vocabulary(captions)
    image_tower = {  # timm's own format: an architecture and arguments that override its sizes
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {},
        "model_args": {
            "img_size": image_size,
            "patch_size": patch_size,
            "embed_dim": width,
            "depth": depth,
            "num_heads": heads,
            "mlp_ratio": feed_forward_multiplier,
            "weight_init": "jax",  # Xavier; the default deviation of 0.02 stalls narrow layers
        },
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory) as work:
        (work / "vision").mkdir(parents=True)
        _write_json(work / "vision" / "config.json", image_tower)
        _write_text_tower(
            work, vocabulary, text_width, text_depth, heads, context_length, feed_forward_multiplier
        )
        _write_json(
            work / "open_clip_config.json", _open_clip_config(embedding_width, image_size, context_length)
        )
        clip = _initial_model(work, embedding_width, seed)
        _replace_weights(clip, work)
        parameters = sum(parameter.numel() for parameter in clip.parameters())
        (work / "README.md").write_text(README.format(parameters=parameters), encoding="utf-8")
    logger.warning(
        "%s: tiny stand-in CLIP with %d parameters built; it is not BiomedCLIP", directory, parameters
    )
    return directory


def train_tiny_clip(
    directory: str | Path,
    images: np.ndarray | Tensor,
    captions: Sequence[str],
    *,
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Train a model written by `build_tiny_clip` on images and their captions, and replace its weights.

    The loss is CLIP's symmetric cross-entropy (open_clip's `ClipLoss`). It takes every other caption for a
    wrong one, and captions repeat, so a batch is made of groups in which each caption occurs once. AdamW; a
    tenth of the steps warm up, then a cosine falls to zero. Augmentation: gain (0.8 to 1.2), offset (+-0.1)
    and noise (deviation up to 0.03), drawn per image; no flip, because captions may say left or right.

    Args:
        directory: holds the model; its weights file is replaced at the end.
        images: (N, H, W) in [0, 1], at least ten.
        captions: one for each image, at least two different ones.
        steps: optimiser steps.
        batch_size: images a step, at most.
        learning_rate: its highest value.
        seed: of the held-out images, the batches and the augmentation. Equal arguments give equal weights.
        progress: show a bar on a terminal.

    Returns:
        `loss_first` and `loss_last` (means over the first and last twentieth of the steps); `accuracy`, the
        share of held-out images (a tenth, 256 at most) whose own caption ranks first among the `candidates`
        different captions of these images; `seconds`. Single images are held out, so one subject may be on
        both sides.

    Raises:
        GalipError: images, captions or numbers do not fit, or the directory holds no CLIP model.
    """
    started = time.perf_counter()
    directory = Path(directory)
    pixel_values = _check_training_set(images, captions, steps, batch_size)
    clip, tokenizer = load_open_clip(directory)
    names = sorted(set(captions))
    labels = torch.tensor([names.index(caption) for caption in captions])
    tokens = tokenizer(names)
    longest = int((tokens != 0).sum(dim=1).max())
    tokens = tokens[:, :longest]  # more padding would change nothing
    pixel_values = _resize_to_tower(clip, pixel_values)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    held_out, training = order.split([len(order) // 10, len(order) - len(order) // 10])
    members = [training[labels[training] == label] for label in labels[training].unique()]
    bar = tqdm(range(steps), desc="tiny CLIP", disable=None if progress else True)
    batches = (_draw_groups(members, batch_size, generator) for _ in bar)
    losses = _fit(clip, pixel_values, labels, tokens, batches, steps, learning_rate, generator)
    _replace_weights(clip, directory)
    twentieth = max(1, steps // 20)
    result = {
        "loss_first": float(np.mean(losses[:twentieth])),
        "loss_last": float(np.mean(losses[-twentieth:])),
        **_retrieval(clip, pixel_values[held_out[:256]], tokens, labels[held_out[:256]]),
        "seconds": time.perf_counter() - started,
    }
    logger.warning("%s: tiny stand-in CLIP trained; it is not BiomedCLIP: %s", directory, result)
    return result


def _fit(
    clip: Any,
    pixel_values: Tensor,
    labels: Tensor,
    tokens: Tensor,
    batches: Iterable[list[Tensor]],
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> list[float]:
    """Train on `steps` batches, each a list of groups of image indices; returns the loss of each step."""
    optimizer = torch.optim.AdamW(clip.parameters(), lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
    losses = []
    clip.train()
    for groups in batches:
        batch = _augment(pixel_values[torch.cat(groups)], generator)
        loss = _contrastive_loss(clip, batch, tokens, [labels[group] for group in groups])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    clip.eval()
    return losses


def _vocabulary(captions: Sequence[str]) -> list[str]:
    """Special tokens, single characters (whole and as word endings), then the captions' words in sorted
    order."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalize, split = BertNormalizer().normalize_str, BertPreTokenizer().pre_tokenize_str
    words = {word for caption in captions for word, _ in split(normalize(caption))}
    letters = sorted({*string.ascii_lowercase, *string.digits, *string.punctuation, *"".join(words)})
    endings = [f"##{letter}" for letter in letters]
    return [*SPECIAL_TOKENS, *letters, *endings, *sorted(words - set(letters))]


def _write_text_tower(
    directory: Path,
    vocabulary: list[str],
    width: int,
    depth: int,
    heads: int,
    context_length: int,
    feed_forward_multiplier: int,
) -> None:
    """Write BERT's config.json and the WordPiece tokenizer's files."""
    from transformers import BertConfig, BertTokenizer

    BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=feed_forward_multiplier * width,
        initializer_range=width**-0.5,  # as in the image tower
        max_position_embeddings=context_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    token_ids = {token: index for index, token in enumerate(vocabulary)}
    BertTokenizer(vocab=token_ids, do_lower_case=True).save_pretrained(directory)


def _open_clip_config(embedding_width: int, image_size: int, context_length: int) -> dict[str, Any]:
    """open_clip_config.json, wired as BiomedCLIP's is; `ClipBackbone` resolves the two relative names."""
    return {
        "model_cfg": {
            "embed_dim": embedding_width,
            "vision_cfg": {
                "timm_model_name": "local-dir:vision",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": image_size,
            },
            "text_cfg": {
                "hf_model_name": ".",
                "hf_tokenizer_name": ".",
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": context_length,
            },
        },
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def _initial_model(directory: Path, embedding_width: int, seed: int) -> Any:
    """Build the model from the files in a directory with weights drawn from a seed."""
    from open_clip.model import CustomTextCLIP

    with torch.random.fork_rng(devices=[]):  # timm and transformers draw from the global generator
        torch.manual_seed(seed)
        # 1.5, not CLIP's 2.66: a sharp start learns the easiest difference between captions and stays there
        clip = CustomTextCLIP(embed_dim=embedding_width, init_logit_scale=1.5, **local_towers(directory))
        # timm's deviation of 0.02 vanishes beside the patch embeddings, and with it left and right
        nn.init.normal_(clip.visual.trunk.pos_embed, std=1.0)
    return clip


def _replace_weights(clip: Any, directory: Path) -> None:
    """Write the weights beside their place, then rename them."""
    weights = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
    with atomic_write(directory / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(save(weights))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_training_set(
    images: np.ndarray | Tensor, captions: Sequence[str], steps: int, batch_size: int
) -> Tensor:
    """Images as (N, 1, H, W) float32, or a GalipError."""
    pixel_values = torch.as_tensor(images, dtype=torch.float32)
    if pixel_values.ndim != 3 or len(pixel_values) < 10:
        raise GalipError(
            f"images has shape {tuple(pixel_values.shape)}; expected (N, H, W) with N of at least 10."
        )
    if len(captions) != len(pixel_values):
        raise GalipError(f"{len(captions)} captions for {len(pixel_values)} images; expected one for each.")
    low, high = pixel_values.aminmax()
    if not (low >= 0 and high <= 1):
        raise GalipError(f"images range over [{low:.4g}, {high:.4g}]; expected finite values in [0, 1].")
    if len(set(captions)) < 2:
        raise GalipError(
            f"all captions are {captions[0]!r}; contrastive training needs at least two different ones."
        )
    if steps < 1 or batch_size < 2:
        raise GalipError(f"steps is {steps} and batch_size {batch_size}; expected at least 1 and 2.")
    return pixel_values[:, None]


def _resize_to_tower(clip: Any, pixel_values: Tensor) -> Tensor:
    """(N, 1, H, W) -> (N, 1, *tower size), resampled as `ClipBackbone` does."""
    if pixel_values.shape[2:] == tuple(clip.visual.image_size):
        return pixel_values
    return F.interpolate(pixel_values, size=clip.visual.image_size, mode="bicubic", antialias=True)


def _learning_rate_factor(step: int, steps: int) -> float:
    """Linear over the first tenth, then half a cosine to zero."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _draw_groups(members: list[Tensor], batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Draw image indices in groups: in each, distinct captions at random and one random image of each."""
    size = min(len(members), batch_size)
    groups = []
    for _ in range(batch_size // size):
        chosen = torch.randperm(len(members), generator=generator)[:size].tolist()
        picks = [
            members[label][torch.randint(len(members[label]), (1,), generator=generator)] for label in chosen
        ]
        groups.append(torch.cat(picks))
    return groups


def _augment(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """Random gain, offset and noise per image of (B, 1, H, W), clipped to [0, 1]."""
    gain, offset, noise = torch.rand(3, len(pixel_values), 1, 1, 1, generator=generator)
    pixel_values = pixel_values * (0.8 + 0.4 * gain) + (0.2 * offset - 0.1)
    pixel_values = pixel_values + 0.03 * noise * torch.randn(pixel_values.shape, generator=generator)
    return pixel_values.clamp(0, 1)


def _contrastive_loss(clip: Any, pixel_values: Tensor, tokens: Tensor, groups: list[Tensor]) -> Tensor:
    """Mean of `ClipLoss` over groups of distinct labels; `pixel_values` holds the groups' images in order."""
    from open_clip.loss import ClipLoss

    labels, position = torch.cat(groups).unique(return_inverse=True)
    text = clip.encode_text(tokens[labels], normalize=True)[position]
    image = clip.encode_image(_normalize(clip, pixel_values), normalize=True)
    scale = clip.logit_scale.exp().clamp(max=100)  # the bound of the CLIP paper
    sizes = [len(group) for group in groups]
    loss = ClipLoss()
    return torch.stack(
        [loss(*pair, scale) for pair in zip(image.split(sizes), text.split(sizes), strict=True)]
    ).mean()


def _normalize(clip: Any, pixel_values: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1] -> the three channels the image tower reads."""
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (clip.visual.image_mean, clip.visual.image_std)
    )
    return (pixel_values - mean) / std


@torch.no_grad()
def _retrieval(clip: Any, pixel_values: Tensor, tokens: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of images whose own caption is the nearest among all captions of these images."""
    candidates = labels.unique()
    text = clip.encode_text(tokens[candidates], normalize=True)
    image = clip.encode_image(_normalize(clip, pixel_values), normalize=True)
    nearest = candidates[(image @ text.T).argmax(dim=1)]
    return {"accuracy": float((nearest == labels).float().mean()), "candidates": len(candidates)}
