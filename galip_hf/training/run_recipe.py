"""A training run from a recipe: its data and CLIP model are made ready, then it trains.

What a recipe may say is in `recipe`.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import datasets

from ..clip.backbone import ClipBackbone
from ..clip.phantom_clip import make_tiny_clip
from ..data.input_statistics import measure_statistics
from ..data.phantom_table import phantom_volumes
from ..data.streamed_dataset import StreamedSlices, open_stream
from ..data.table import SubjectVolume, load_table, write_table
from ..data.unpaired_dataset import UnpairedSlices
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from ..model.image_processing_galip import GalipImageProcessor
from ..model.modeling_galip import GalipForImageTranslation
from ..prepare.sources import Scan
from ..prepare.subjects import Settings, prepare_subject
from .discriminator import load_heads
from .distributed import process_state
from .recipe import FileRecipe, Recipe, load_recipe
from .run_facts import recipe_facts
from .trainer import GalipTrainer
from .validation import Validation

logger = logging.getLogger(__name__)

# Data


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


# CLIP


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
        kept = load_heads(trainer.state.discriminator, training.initial_heads, config.domain_names)
        logger.info("heads kept from %s: %s", training.initial_heads, ", ".join(kept))
    trainer.train()
    return trainer


__all__ = ["Recipe", "load_recipe", "run_recipe"]
