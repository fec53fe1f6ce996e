"""A training run from a recipe: its data and CLIP model are made ready, then it trains.

What a recipe may say is in `recipe`. Data and CLIP model are functions of the recipe: on nodes without a
shared disk, each node makes or downloads them for itself, and all are compared before the first step.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..clip.backbone import ClipBackbone
from ..clip.phantom_clip import make_tiny_clip, phantom_slices
from ..clip.table_clip import captioned_slices
from ..data.input_statistics import measure_statistics
from ..data.phantom_table import PHANTOM_ONLY, phantom_volumes
from ..data.slice_geometry import measure_geometry
from ..data.streamed_dataset import StreamedSlices, open_stream
from ..data.table import load_table
from ..data.table_writer import SubjectVolume, write_table
from ..data.unpaired_dataset import UnpairedSlices
from ..files import told_if_full
from ..model.configuration_galip import GalipConfig
from ..model.domains import HOUNSFIELD_MODALITIES
from ..model.errors import GalipError
from ..model.image_processing_galip import GalipImageProcessor
from ..model.modeling_galip import GalipForImageTranslation
from ..prepare.sources import Scan
from ..prepare.subjects import Settings, prepare_subject
from .agreement import require_same_tensor, table_sample
from .discriminator import load_heads
from .distributed import ProcessGroup
from .precision import with_launcher_precision
from .recipe import FileRecipe, Recipe, load_recipe
from .run_facts import recipe_facts
from .step_loader import told_if_killed
from .trainer import GalipTrainer
from .validation import Validation

logger = logging.getLogger(__name__)

# Data


def file_volumes(files: Sequence[FileRecipe], processor: GalipImageProcessor) -> Iterator[SubjectVolume]:
    """Volumes read from files as `galip-hf prepare` reads them, in their own pixels, subject by subject."""
    settings = Settings(rules=processor.intensity_rules, spacing="native")
    subjects: dict[tuple[str, str], list[Scan]] = {}
    for entry in files:
        scans_of_subject = subjects.setdefault((entry.subject, entry.split), [])
        scans_of_subject.append(Scan(entry.path, entry.domain, entry.subject))
    for (subject, split), scans in subjects.items():
        prepared = prepare_subject(scans, settings)
        for excluded in prepared.record["excluded"]:
            raise GalipError(excluded["reason"])  # a recipe's files are named one by one: all are wanted
        plane, spacing = prepared.record["plane"], prepared.record["spacing"]
        centre = tuple(prepared.record["centre"])
        for domain, array in prepared.volumes.items():
            yield SubjectVolume(
                array,
                domain,
                subject,
                split,
                plane=plane,
                pixel_size=tuple(spacing[1:]) if plane else None,
                centre=centre,
            )


def prepare_table(recipe: Recipe, config: GalipConfig) -> datasets.DatasetDict:
    """The recipe's slices as a table: `data.table`, or one written to `output_dir/table` once."""
    directory = table_directory(recipe)
    if recipe.data.table is None and not directory.exists():
        processor = GalipImageProcessor.from_config(config)
        volumes = (
            phantom_volumes(recipe.data.phantom, processor, recipe.training.seed)
            if recipe.data.phantom
            else file_volumes(recipe.data.files, processor)
        )
        write_table(volumes, directory, domains=config.domain_names, image_size=config.image_size)
    return load_training_table(directory)


def load_training_table(directory: Path) -> datasets.DatasetDict:
    """Open a table; GalipError where it has no split to train on."""
    tables = load_table(directory)
    if "train" not in tables:
        raise GalipError(f"{directory}: has the splits {', '.join(tables)}; training needs a split train")
    return tables


def table_directory(recipe: Recipe) -> Path:
    """Where the recipe's table is, or will be."""
    return Path(recipe.data.table) if recipe.data.table else recipe.training.output_path / "table"


# CLIP


def load_backbone(recipe: Recipe) -> ClipBackbone:
    """The recipe's CLIP model; the stand-in is made first if it is not there yet."""
    if recipe.clip.tiny is None:
        return ClipBackbone.from_pretrained(recipe.clip.source)
    directory = recipe.training.output_path / "clip"
    if not directory.exists():
        tiny, seed = recipe.clip.tiny, recipe.training.seed
        slices = phantom_slices(tiny, seed) if tiny.images == "phantom" else _slices_for_clip(recipe)
        logger.warning(
            "%s: making a tiny stand-in for BiomedCLIP, trained on slices of the %s; it knows no medicine",
            directory,
            tiny.images,
        )
        logger.info("stand-in: %s", make_tiny_clip(tiny, directory, seed, slices))
    return ClipBackbone.from_pretrained(directory)


def _slices_for_clip(recipe: Recipe) -> tuple[np.ndarray, list[str], list[str]]:
    """The captioned training slices of the recipe's table; GalipError where it streams."""
    tiny = recipe.clip.tiny
    assert tiny is not None  # for the type checker
    if recipe.data.streaming is not None:
        raise GalipError("clip.tiny: images is table, but the data is a stream; set images to phantom")
    config = initial_config(recipe) if recipe.training.initial_model else GalipConfig.from_dict(recipe.model)
    prompts = dict(zip(config.domain_names, config.prompts, strict=True))
    return captioned_slices(prepare_table(recipe, config)["train"], prompts, tiny.image_size)


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
    """The configuration of `training.initial_model`; what the recipe says of the model must agree with it.

    Only `image_size` may be another: no weight depends on it, and training on small slices first is cheaper.
    """
    config = GalipConfig.from_pretrained(str(recipe.training.initial_model))
    config.image_size = recipe.model.get("image_size", config.image_size)
    for key, value in recipe.model.items():
        if getattr(config, key) != value:
            raise GalipError(
                f"model.{key} is {value!r}, that of {recipe.training.initial_model} is "
                f"{getattr(config, key)!r}; leave `model` out with training.initial_model"
            )
    return config


def load_initial_model(recipe: Recipe) -> GalipForImageTranslation:
    """`training.initial_model` in float32, whatever it was saved in."""
    config = initial_config(recipe)
    source = str(recipe.training.initial_model)
    return GalipForImageTranslation.from_pretrained(source, config=config, dtype=torch.float32)


@dataclass(frozen=True)
class Materials:
    """What a run reads from its node's disk or from the Hub.

    Attributes:
        backbone: the CLIP model.
        config: of the model.
        model: `training.initial_model`; None where new weights are trained.
        table: the slices; of a stream, its validation split alone, or None where there is no validation.
    """

    backbone: ClipBackbone
    config: GalipConfig
    model: GalipForImageTranslation | None
    table: datasets.DatasetDict | None


def prepare_materials(recipe: Recipe) -> Materials:
    """Make or download what is not there yet, and load it. Not to be run by several processes at once.

    Raises:
        GalipError: something cannot be had, or does not fit.
    """
    backbone = load_backbone(recipe)
    model = load_initial_model(recipe) if recipe.training.initial_model else None
    config = model.config if model else make_config(recipe, backbone)
    if recipe.data.streaming is None:
        table: datasets.DatasetDict | None = prepare_table(recipe, config)
    else:
        table = _streamed_validation(recipe) if recipe.training.validation_steps else None
    return Materials(backbone, config, model, table)


def _streamed_validation(recipe: Recipe) -> datasets.DatasetDict:
    """The validation split of a streamed table, downloaded."""
    stream = recipe.data.streaming
    assert stream is not None  # for the type checker
    try:
        split = datasets.load_dataset(stream.source, split="validation", revision=stream.revision)
    except (ValueError, OSError) as error:
        raise GalipError(
            f"data.streaming: {stream.source} has no readable validation split "
            f"({' '.join(str(error).split())[:200]}); set validation_steps to 0"
        ) from None
    return datasets.DatasetDict(validation=split)


# The run


def make_dataset(
    recipe: Recipe, materials: Materials, processor: GalipImageProcessor, processes: ProcessGroup
) -> UnpairedSlices | StreamedSlices:
    """The training items: of the table, or of the recipe's stream."""
    training = recipe.training
    domains = materials.config.domain_names
    options: dict[str, Any] = {
        "domains": domains,
        "seed": training.seed,
        "horizontal_flip": training.horizontal_flip,
        "augmentation": training.augmentation,
        "fixed_scale": [name for name in domains if processor.fixed_window(name)],
    }
    stream = recipe.data.streaming
    if stream is None:
        assert materials.table is not None  # for the type checker
        share = training.paired_share if training.loss_weights.paired else 0.0
        return UnpairedSlices(materials.table["train"], paired_share=share, **options)
    if training.loss_weights.paired:
        raise GalipError("data.streaming: a stream has no registered pairs; set loss_weights.paired to 0")
    # Every worker gives as many whole batches as the others.
    unit = training.batch_size * max(1, training.num_workers)
    return StreamedSlices(
        open_stream(stream.source, "train", stream.revision),
        length=stream.items // processes.size // unit * unit,
        buffer_size=stream.buffer_size,
        process_index=processes.state.process_index,
        num_processes=processes.size,
        **options,
    )


def make_validation(
    recipe: Recipe, materials: Materials, processor: GalipImageProcessor
) -> Validation | None:
    """What scores the model every `validation_steps`; None where that is 0."""
    if not recipe.training.validation_steps:
        return None
    assert materials.table is not None  # for the type checker
    return Validation(materials.table, materials.config.domain_names, processor, materials.backbone)


def make_trainer(recipe: Recipe, processes: ProcessGroup) -> GalipTrainer:
    """Prepare the data, load the CLIP model, and make the trainer of a recipe.

    Raises:
        GalipError: see `run_recipe`.
    """
    from accelerate.utils import set_seed

    training = recipe.training
    processes.together(training.make_output_directory)

    def prepare() -> Materials:
        with told_if_full(training.output_path):
            return prepare_materials(recipe)

    materials = processes.in_turns(prepare)
    config, table = materials.config, materials.table
    processor = GalipImageProcessor.from_config(config)
    if recipe.data.phantom is not None:
        processor.set_not_for_real_scans(PHANTOM_ONLY)
    if table is not None:
        require_same_tensor(processes, table_sample(table), "table of slices")
    if table is not None and recipe.data.streaming is None:
        domains, train = config.domain_names, table["train"]
        processor.set_statistics(processes.on_main(lambda: measure_statistics(train, domains)))
        directory = table_directory(recipe)
        in_hounsfield = [
            domain["name"] for domain in config.domains if domain["modality"] in HOUNSFIELD_MODALITIES
        ]
        processor.set_geometry(processes.on_main(lambda: measure_geometry(train, directory, in_hounsfield)))
    validate = processes.together(lambda: make_validation(recipe, materials, processor))
    dataset = processes.together(lambda: make_dataset(recipe, materials, processor, processes))
    facts = recipe_facts(recipe, table if recipe.data.streaming is None else None)
    set_seed(training.seed)
    model = materials.model or GalipForImageTranslation(config)
    pictures = validate.save_pictures if validate else None
    trainer = GalipTrainer(
        model, processor, materials.backbone, training, dataset, validate, pictures, facts, processes
    )
    heads = training.initial_heads
    if heads:
        discriminator = trainer.state.discriminator
        kept = processes.on_main(lambda: load_heads(discriminator, heads, config.domain_names))
        processes.broadcast(discriminator)
        if processes.state.is_main_process:
            logger.info("heads kept from %s: %s", heads, ", ".join(kept))
    return trainer


def run_recipe(recipe: Recipe) -> GalipTrainer:
    """Prepare the data, load the CLIP model, train; returns the trainer, `train` having ended.

    Raises:
        GalipError: what the recipe names cannot be had, does not fit or cannot be written, or is not the same
            on all processes; see `GalipTrainer.train` too.
    """
    training = with_launcher_precision(recipe.training)
    recipe = dataclasses.replace(recipe, training=training)
    processes = ProcessGroup(training.process_timeout)
    with told_if_full(training.output_path), processes.told_if_lost(), told_if_killed():
        trainer = make_trainer(recipe, processes)
        trainer.train()
    return trainer


__all__ = ["Recipe", "load_recipe", "run_recipe"]
