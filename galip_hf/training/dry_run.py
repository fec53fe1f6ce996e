"""What a recipe would do, in words: data, model, steps and an estimate of memory. Nothing is trained or kept.

Data and CLIP model that are not there yet are neither made nor downloaded; they are described as far as the
recipe determines them.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from ..clip.backbone import BIOMED_CLIP, ClipBackbone
from ..clip.phantom_clip import TinyClipRecipe
from ..clip.tiny_clip import build_tiny_clip
from ..data import phantom
from ..data.unpaired_dataset import UnpairedSlices
from ..model.configuration_galip import GalipConfig
from ..model.modeling_galip import GalipForImageTranslation
from .discriminator import GalipDiscriminator
from .distributed import process_state
from .memory_estimate import FrozenClip, MemoryEstimate, estimate_memory
from .patch_discriminator import PatchDiscriminator
from .precision import with_launcher_precision
from .recipe import FileRecipe, Recipe
from .run_facts import count_rows
from .run_recipe import initial_config, load_training_table, table_directory
from .step_loader import StepLoader
from .training_args import GalipTrainingArguments

_CPU = torch.device("cpu")
_IMAGE_LAYERS = 4  # blocks of the image tower that the discriminator reads, see ClipBackbone.image_blocks
# ViT-B/16 at 224 pixels with its projection, and BERT-base without a pooler with its own.
_BIOMED_CLIP = FrozenClip(85_798_656 + 393_216 + 108_891_648 + 819_200 + 1, 196, 768, 12, 768, 256, 512)


@dataclass(frozen=True)
class _Data:
    """What is known of the data: lines to print, and items of an epoch, exactly or at most."""

    lines: list[str]
    items: int | None
    is_exact: bool = True


def describe_run(recipe: Recipe) -> list[str]:
    """Lines that describe the run of a recipe; none on other processes than the first.

    Raises:
        GalipError: what is there already does not fit the recipe.
    """
    training = with_launcher_precision(recipe.training)
    state = process_state()
    if not state.is_main_process:
        return []
    clip, place = _clip_of(recipe)
    config = _config_of(recipe, clip)
    data = _data_of(recipe, config, state.num_processes)
    model = [f"{', '.join(config.domain_names)} at {config.image_size} x {config.image_size} pixels"]
    if clip is None:
        model.append(f"parameters: unknown, {place} is not on this machine yet")
        memory = "unknown"
    else:
        generator = GalipForImageTranslation(config)
        heads = _discriminator_parameters(config, clip, bool(training.loss_weights.patch))
        model += [
            f"generator: {sum(parameter.numel() for parameter in generator.parameters()):,} parameters",
            f"discriminator: {heads:,} parameters",
            f"CLIP, frozen: {clip.parameters:,} parameters; {place}",
        ]
        memory = _memory(estimate_memory(generator, heads, clip, training, state.device.type))
    device = torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else str(state.device)
    precision = "float32" if training.mixed_precision == "no" else training.mixed_precision
    earlier = ", where an earlier run is" if (training.output_path / "log.jsonl").exists() else ""
    return [
        *_section("data", data.lines),
        *_section("model", model),
        *_section("steps", _steps(training, data, state.num_processes)),
        *_section("device", [f"{device}, {precision}, processes: {state.num_processes}"]),
        *_section("memory", [memory]),
        *_section("output", [f"{training.output_path}{earlier}"]),
    ]


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return [f"{'' if number else title:8}{line}" for number, line in enumerate(lines)]


# CLIP and model


def _clip_of(recipe: Recipe) -> tuple[FrozenClip | None, str]:
    """Shape of the recipe's CLIP model, None where that is not known; and where it is, or will come from."""
    if recipe.clip.tiny is not None:
        made = recipe.training.output_path / "clip"
        if made.exists():
            return _shape(ClipBackbone.from_pretrained(made)), str(made)
        prompts = GalipConfig.from_dict(recipe.model).prompts
        return _shape(
            _untrained(recipe.clip.tiny, prompts)
        ), f"its vocabulary adds some; to be made in {made}"
    source = recipe.clip.source
    repository = source.removeprefix("hf-hub:")
    is_cached = source != repository and isinstance(
        try_to_load_from_cache(repository, "open_clip_config.json"), str
    )
    if is_cached or Path(source).is_dir():
        return _shape(ClipBackbone.from_pretrained(source)), source
    return (_BIOMED_CLIP, f"{source}, to be downloaded") if source == BIOMED_CLIP else (None, source)


def _shape(backbone: ClipBackbone) -> FrozenClip:
    return FrozenClip(
        sum(parameter.numel() for parameter in backbone.parameters()),
        backbone.num_patches,
        backbone.image_width,
        backbone.image_blocks[-1] + 1,
        backbone.text_width,
        backbone.context_length,
        backbone.embedding_width,
    )


def _untrained(recipe: TinyClipRecipe, prompts: Sequence[str]) -> ClipBackbone:
    """A stand-in of the recipe's shape; its vocabulary is that of the prompts alone."""
    logger = logging.getLogger(build_tiny_clip.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would tell of a model that is thrown away here
    try:
        with tempfile.TemporaryDirectory() as folder:
            directory = build_tiny_clip(
                Path(folder) / "clip",
                prompts,
                image_size=recipe.image_size,
                patch_size=recipe.patch_size,
                width=recipe.width,
                depth=recipe.depth,
                context_length=recipe.context_length,
            )
            return ClipBackbone.from_pretrained(directory)
    finally:
        logger.setLevel(level)


def _config_of(recipe: Recipe, clip: FrozenClip | None) -> GalipConfig:
    """The model's configuration; where the CLIP model is not known, with BiomedCLIP's widths."""
    if recipe.training.initial_model:
        return initial_config(recipe)
    widths = (
        {
            "text_width": clip.text_width,
            "text_length": clip.text_length,
            "text_embedding_width": clip.embedding_width,
        }
        if clip
        else {}
    )
    return GalipConfig.from_dict({**widths, **recipe.model})


def _discriminator_parameters(config: GalipConfig, clip: FrozenClip, has_patch: bool) -> int:
    domains = len(config.domains)
    with torch.device("meta"):
        networks: list[torch.nn.Module] = [
            GalipDiscriminator(domains, _IMAGE_LAYERS, clip.width, clip.embedding_width)
        ]
        if has_patch:
            networks.append(PatchDiscriminator(domains))
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


# Data and steps


def _data_of(recipe: Recipe, config: GalipConfig, processes: int) -> _Data:
    data, directory = recipe.data, table_directory(recipe)
    if data.streaming:
        stream = data.streaming
        return _Data([f"{stream.source}, streamed, {stream.items:,} items an epoch"], stream.items)
    if directory.exists():
        return _table_data(directory, recipe.training, config, processes)
    if data.table:
        return _Data([f"{directory}: not there yet; galip-hf prepare makes it"], None)
    first = f"{directory}: not there yet; training makes it"
    if data.phantom:
        spec = data.phantom
        lines, total = [first], 0
        for split, subjects in (("train", spec.train_subjects), ("validation", spec.validation_subjects)):
            of_domain = dict.fromkeys(phantom.CONTRASTS, subjects)
            slices = {domain: count * spec.slices for domain, count in of_domain.items()}
            lines.append(_split_line(split, of_domain, slices, "at most "))
            total += sum(slices[domain] for domain in config.domain_names if split == "train")
        return _Data(lines, total // 2, is_exact=False)
    return _Data([first, *_file_lines(data.files)], None)


def _table_data(
    directory: Path, training: GalipTrainingArguments, config: GalipConfig, processes: int
) -> _Data:
    tables = load_training_table(directory)
    lines = [str(directory), *(_split_line(split, *count_rows(tables[split])) for split in tables)]
    items = UnpairedSlices(tables["train"], domains=config.domain_names, seed=training.seed)
    StepLoader(items, training, processes, 0, _CPU)  # refuses an epoch shorter than a step
    return _Data(lines, len(items))


def _file_lines(files: Iterable[FileRecipe]) -> list[str]:
    lines = []
    missing = [entry.path for entry in files if not Path(entry.path).exists()]
    for split in dict.fromkeys(entry.split for entry in files):
        volumes = Counter(entry.domain for entry in files if entry.split == split)
        text = ", ".join(f"{domain} {number}" for domain, number in volumes.items())
        lines.append(f"{split}: volumes {text}; slices are counted when they are read")
    if missing:
        lines.append(f"{len(missing)} files are missing, the first is {missing[0]}")
    return lines


def _split_line(split: str, subjects: Mapping[str, int], slices: Mapping[str, int], at_most: str = "") -> str:
    parts = [f"{name} {subjects[name]} subjects, {at_most}{slices[name]:,} slices" for name in subjects]
    return f"{split}: {'; '.join(parts)}"


def _steps(training: GalipTrainingArguments, data: _Data, processes: int) -> list[str]:
    images = training.images_per_step(processes)
    lines = [
        f"{training.max_steps:,} of {images} images: 2 x batch_size {training.batch_size} x "
        f"gradient_accumulation_steps {training.gradient_accumulation_steps} x {processes} processes"
    ]
    if training.max_hours is not None:
        lines.append(f"at most {training.max_hours:g} hours")
    an_epoch = None if data.items is None else data.items // (images // 2)
    if not an_epoch:
        return [*lines, "epochs: unknown before the slices are counted"]
    least = "" if data.is_exact else "at least "
    most = "" if data.is_exact else "at most "
    return [*lines, f"{least}{training.max_steps / an_epoch:.1f} epochs of {most}{an_epoch:,} steps"]


def _memory(estimate: MemoryEstimate) -> str:
    process = f", the process itself {_gb(estimate.process)}" if estimate.process else ""
    return (
        f"about {_gb(estimate.total)} a process: weights and optimisers {_gb(estimate.weights)}, activations "
        f"{_gb(estimate.activations)}{process}"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


__all__ = ["describe_run"]
