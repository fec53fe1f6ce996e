"""A training run from a recipe: its data and CLIP model are made ready, then it trains.

What a recipe may say is in `galip_hf.recipe_file`.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from . import phantom
from .clip_backbone import ClipBackbone
from .configuration_galip import IXI_DOMAINS, GalipConfig
from .data.sampling import UnpairedSlices
from .data.streaming import StreamedSlices, open_stream
from .data.table import SliceReader, SubjectVolume, load_table, write_table
from .distributed import process_state
from .domain_scores import measure_domain
from .domain_statistics import DomainStatistics
from .domains import load_heads
from .errors import GalipError
from .files import atomic_write
from .image_processing_galip import GalipImageProcessor
from .modeling_galip import GalipForImageTranslation
from .prepare.sources import Scan
from .prepare.subjects import Settings, prepare_subject
from .recipe_file import FileRecipe, PhantomRecipe, Recipe, TinyClipRecipe, load_recipe
from .tiny_clip import build_tiny_clip, train_tiny_clip
from .trainer import GalipTrainer
from .training_facts import recipe_facts
from .validation import Validation

logger = logging.getLogger(__name__)

# Seeds of phantom subjects: a block for each split and, in `train` and `clip`, for each contrast: none is met
# twice.
_SUBJECT_BLOCK = 100_000
_BARE_PROMPT_SHARE = 0.25
_SPLIT_BLOCK = {"train": 0, "validation": 10, "test": 11, "clip": 12}


# Data


def phantom_subject_seed(split: str, index: int, seed: int, contrast: str | None = None) -> int:
    """Seed of a phantom subject; distinct over splits, and in `train` and `clip` over contrasts."""
    block = _SPLIT_BLOCK[split] + (phantom.CONTRASTS.index(contrast) if contrast else 0) * 20
    return (seed * 100 + block) * _SUBJECT_BLOCK + index


def phantom_volumes(
    recipe: PhantomRecipe, processor: GalipImageProcessor, seed: int
) -> Iterator[SubjectVolume]:
    """Normalised phantom volumes: unpaired over contrasts in `train`, registered in `validation`."""

    def volume(split: str, index: int, contrast: str, subject_seed: int) -> SubjectVolume:
        subject = phantom.make_subject(subject_seed, size=recipe.size, slices=recipe.slices)
        array = processor.normalize_volume(phantom.render(subject, contrast), contrast).pixel_values[:, 0]
        return SubjectVolume(np.asarray(array), contrast, f"phantom-{subject_seed}", split)

    for contrast in phantom.CONTRASTS:
        for index in range(recipe.train_subjects):
            yield volume("train", index, contrast, phantom_subject_seed("train", index, seed, contrast))
        for index in range(recipe.validation_subjects):
            yield volume("validation", index, contrast, phantom_subject_seed("validation", index, seed))


def file_volumes(files: Sequence[FileRecipe], processor: GalipImageProcessor) -> Iterator[SubjectVolume]:
    """Volumes read from files as `galip-hf prepare` reads them, in their own pixels, subject by subject."""
    settings = Settings(rules=processor.intensity_rules, spacing="native")
    subjects: dict[tuple[str, str], list[Scan]] = {}
    for entry in files:
        its = subjects.setdefault((entry.subject, entry.split), [])
        its.append(Scan(entry.path, entry.domain, entry.subject))
    for (subject, split), scans in subjects.items():
        prepared = prepare_subject(scans, settings)
        for excluded in prepared.record["excluded"]:
            raise GalipError(excluded["reason"])  # a recipe's files are named one by one: all are wanted
        for domain, array in prepared.volumes.items():
            yield SubjectVolume(array, domain, subject, split)


def prepare_table(
    recipe: Recipe, processor: GalipImageProcessor, config: GalipConfig
) -> datasets.DatasetDict:
    """The recipe's slices as a table: `data.table`, or one written to `output_dir/table` once."""
    if recipe.data.table is not None:
        return load_table(recipe.data.table)
    directory = recipe.training.output_path / "table"
    if not directory.exists():
        volumes = (
            phantom_volumes(recipe.data.phantom, processor, recipe.training.seed)
            if recipe.data.phantom
            else file_volumes(recipe.data.files, processor)
        )
        write_table(volumes, directory, domains=config.domain_names, image_size=config.image_size)
    return load_table(directory)


class _TableVolumes(Sequence[np.ndarray]):
    """Volumes of a table, read when asked for."""

    def __init__(self, reader: SliceReader, rows: list[list[int]]) -> None:
        self.reader, self.rows = reader, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return np.stack([self.reader[row] for row in self.rows[index]])


def measure_statistics(table: datasets.Dataset, domains: Sequence[str]) -> dict[str, DomainStatistics]:
    """Statistics of each domain's slices in a table, subject by subject in the table's order.

    A domain with too few slices for them is left out: inputs cannot be compared with it.
    """
    reader, names = SliceReader(table), table.features["domain"].names
    rows: dict[str, dict[str, list[int]]] = {domain: {} for domain in domains}
    for row, (subject, label) in enumerate(zip(table["subject"], table["domain"], strict=True)):
        rows[names[label]].setdefault(subject, []).append(row)
    statistics = {}
    for domain, volumes in rows.items():
        try:
            statistics[domain] = measure_domain(_TableVolumes(reader, list(volumes.values())))
        except GalipError as error:
            logger.warning("%s: no statistics of its training slices are kept (%s)", domain, error)
    return statistics


# CLIP


def make_tiny_clip(recipe: TinyClipRecipe, directory: Path, seed: int) -> dict[str, Any]:
    """Build the stand-in in `directory` and train it on captioned phantom slices; returns its figures."""
    processor = GalipImageProcessor(domains=list(IXI_DOMAINS))
    rng = np.random.default_rng([seed, _SPLIT_BLOCK["clip"]])
    images, captions = [], []
    for contrast in phantom.CONTRASTS:
        for index in range(recipe.subjects):
            subject = phantom.make_subject(
                phantom_subject_seed("clip", index, seed, contrast), size=recipe.image_size
            )
            normalized = processor.normalize_volume(phantom.render(subject, contrast), contrast)
            images.append(np.asarray(normalized.pixel_values)[:, 0].clip(0, 1))
            captions += [
                # The trainer uses bare prompts, so the stand-in must have met them.
                phantom.PROMPTS[contrast] if bare else phantom.caption(subject, number, contrast)
                for number, bare in enumerate(rng.random(len(images[-1])) < _BARE_PROMPT_SHARE)
            ]
    # Written beside: a half-trained stand-in must not be taken for a whole one.
    with atomic_write(directory) as temporary:
        build_tiny_clip(
            temporary,
            captions,
            image_size=recipe.image_size,
            patch_size=recipe.patch_size,
            width=recipe.width,
            depth=recipe.depth,
            context_length=recipe.context_length,
            seed=seed,
        )
        measured = train_tiny_clip(
            temporary,
            np.concatenate(images),
            captions,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            seed=seed,
        )
    return measured


def load_backbone(recipe: Recipe) -> ClipBackbone:
    """The recipe's CLIP model; the stand-in is made first if it is not there yet."""
    if recipe.clip.tiny is None:
        return ClipBackbone.from_pretrained(recipe.clip.source)
    directory = recipe.training.output_path / "clip"
    if not directory.exists():
        logger.warning(
            "%s: making a tiny stand-in for BiomedCLIP, trained on the phantom; it knows no medicine",
            directory,
        )
        logger.info("stand-in: %s", make_tiny_clip(recipe.clip.tiny, directory, recipe.training.seed))
    return ClipBackbone.from_pretrained(directory)


# The run


def make_config(recipe: Recipe, backbone: ClipBackbone) -> GalipConfig:
    """The recipe's model configuration; the text widths are the backbone's unless stated."""
    text = {
        "text_width": backbone.text_width,
        "text_length": backbone.context_length,
        "text_embedding_width": backbone.embedding_width,
    }
    return GalipConfig.from_dict({**text, **recipe.model})


def initial_config(recipe: Recipe) -> GalipConfig:
    """The configuration of `training.initial_model`; what the recipe says of the model must agree with it."""
    config = GalipConfig.from_pretrained(str(recipe.training.initial_model))
    for key, value in recipe.model.items():
        if getattr(config, key) != value:
            raise GalipError(
                f"model.{key} is {value!r}, that of {recipe.training.initial_model} is "
                f"{getattr(config, key)!r}; leave `model` out with training.initial_model"
            )
    return config


def make_dataset(
    recipe: Recipe, table: datasets.DatasetDict | None, config: GalipConfig, processor: GalipImageProcessor
) -> UnpairedSlices | StreamedSlices:
    """The training items: of a table, or where there is none, of the recipe's stream."""
    training = recipe.training
    options: dict[str, Any] = {
        "domains": config.domain_names,
        "seed": training.seed,
        "horizontal_flip": training.horizontal_flip,
        "augmentation": training.augmentation,
        "fixed_scale": [name for name in config.domain_names if processor.fixed_window(name)],
    }
    if table is not None:
        share = training.paired_share if training.loss_weights.paired else 0.0
        return UnpairedSlices(table["train"], paired_share=share, **options)
    stream = recipe.data.streaming
    assert stream is not None  # for the type checker: a recipe has one source
    if training.loss_weights.paired:
        raise GalipError("data.streaming: a stream has no registered pairs; set loss_weights.paired to 0")
    state = process_state()
    # Every worker gives as many whole batches as the others.
    unit = training.batch_size * max(1, training.num_workers)
    return StreamedSlices(
        open_stream(stream.source, "train", stream.revision),
        length=stream.items // state.num_processes // unit * unit,
        buffer_size=stream.buffer_size,
        process_index=state.process_index,
        num_processes=state.num_processes,
        **options,
    )


def make_validation(
    recipe: Recipe,
    table: datasets.DatasetDict | None,
    config: GalipConfig,
    processor: GalipImageProcessor,
    backbone: ClipBackbone,
) -> Validation | None:
    """What scores the model every `validation_steps`; None where that is 0."""
    if not recipe.training.validation_steps:
        return None
    if table is None:
        stream = recipe.data.streaming
        assert stream is not None
        try:
            split = datasets.load_dataset(stream.source, split="validation", revision=stream.revision)
        except (ValueError, OSError) as error:
            raise GalipError(
                f"data.streaming: {stream.source} has no readable validation split "
                f"({' '.join(str(error).split())[:200]}); set validation_steps to 0"
            ) from None
        table = datasets.DatasetDict(validation=split)
    return Validation(table, config.domain_names, processor, backbone)


def run_recipe(recipe: Recipe) -> GalipTrainer:
    """Prepare the data, load the CLIP model, train; returns the trainer, `train` having ended.

    Raises:
        GalipError: what the recipe names cannot be had, does not fit or cannot be written; see
            `GalipTrainer.train` too.
    """
    from accelerate.utils import set_seed

    training = recipe.training
    training.make_output_directory()
    with process_state().main_process_first():
        backbone = load_backbone(recipe)
        config = initial_config(recipe) if training.initial_model else make_config(recipe, backbone)
        processor = GalipImageProcessor.from_config(config)
        table = None if recipe.data.streaming else prepare_table(recipe, processor, config)
        if table is not None:
            processor.set_statistics(measure_statistics(table["train"], config.domain_names))
        validate = make_validation(recipe, table, config, processor, backbone)
    set_seed(training.seed)
    model = (
        GalipForImageTranslation.from_pretrained(training.initial_model)
        if training.initial_model
        else GalipForImageTranslation(config)
    )
    dataset = make_dataset(recipe, table, config, processor)
    pictures = validate.save_pictures if validate else None
    facts = recipe_facts(recipe, table)
    trainer = GalipTrainer(model, processor, backbone, training, dataset, validate, pictures, facts)
    if training.initial_heads:
        kept = load_heads(trainer.discriminator, training.initial_heads, config.domain_names)
        logger.info("heads kept from %s: %s", training.initial_heads, ", ".join(kept))
    trainer.train()
    return trainer


__all__ = ["Recipe", "load_recipe", "run_recipe"]
