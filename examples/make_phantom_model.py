"""Make examples/phantom_model from nothing: train the phantom recipe, score the model, write its card.

A second, shorter run goes on with slices that lose resolution, a loss that keeps edges in place and a
discriminator of pixels, which corrects the contrasts that the first run left half inverted; a weighted mean
of the weights before and after it is kept, which scores best over the six directions.

python examples/make_phantom_model.py [--keep-weights] [key=value ...]

Interrupted, it goes on from the last checkpoint in the recipe's output_dir. With --keep-weights it does not
train: it measures the input statistics of the training slices again, scores the model and writes its card.
"""

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from demo import save_figure, test_subjects
from safetensors.torch import load_file, save_file

from galip_hf import GalipConfig, GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.cli import main as galip_hf
from galip_hf.data import phantom
from galip_hf.data.input_statistics import measure_statistics
from galip_hf.data.phantom_table import phantom_subject_seed, phantom_volumes
from galip_hf.data.slice_geometry import measure_geometry
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.training.recipe import Recipe, load_recipe
from galip_hf.training.run_recipe import prepare_table, run_recipe, table_directory

EXAMPLES = Path(__file__).resolve().parent
TARGET = Path("examples", "phantom_model")  # from the repository's root: card and report name it
TEST_SUBJECTS = 12
SECOND_RUN = (
    "training.resume=true",
    "training.max_steps=1500",
    "training.learning_rate=2.5e-4",
    "training.discriminator_learning_rate=1.0e-3",
    "training.patch_learning_rate=4.0e-4",
    "training.loss_weights={cycle: 10.0, adversarial: 1.0, patch: 2.0, structure: 1.0, identity: 2.0, "
    "clip: 0.25, class_token: 0.25}",
    "training.augmentation={resolution: 0.3}",
)
SECOND_SHARE = 0.6  # of the second run's weights in the mean
BASELINE_SUBJECTS = 30  # of the training subjects of each contrast: enough for a mean slice


def evaluation_volumes(recipe: Recipe, processor: GalipImageProcessor) -> Iterator[SubjectVolume]:
    """Some training subjects, for the baselines, and test subjects that no training saw."""
    data, seed = recipe.data.phantom, recipe.training.seed
    if data is None:
        raise GalipError("the phantom model's recipe must have data.phantom")
    some = min(BASELINE_SUBJECTS, data.train_subjects)
    training = dataclasses.replace(data, train_subjects=some, validation_subjects=0)
    yield from phantom_volumes(training, processor, seed)
    for index, subject in enumerate(test_subjects(processor, data, TEST_SUBJECTS, seed)):
        name = f"phantom-{phantom_subject_seed('test', index, seed)}"
        for contrast, volume in subject.items():
            yield SubjectVolume(volume, contrast, name, "test")


def measure_input_statistics(recipe: Recipe, directory: Path) -> None:
    """Measure statistics and geometry of the training slices again, into the processor beside the weights."""
    processor = GalipImageProcessor.from_pretrained(directory)
    config = GalipConfig.from_pretrained(directory)
    table = prepare_table(recipe, config)
    processor.set_statistics(measure_statistics(table["train"], config.domain_names))
    processor.set_geometry(measure_geometry(table["train"], table_directory(recipe)))
    processor.save_pretrained(directory)


def train_both(recipe: Recipe) -> None:
    """Both runs, each going on where it was stopped, and the weighted mean of their weights into `TARGET`."""
    first = recipe.training.output_path
    second = load_recipe(
        EXAMPLES / "configs" / "phantom.yaml",
        ["model={}", *SECOND_RUN, f"training.output_dir={first}/second"],
    )
    training = dataclasses.replace(second.training, initial_model=str(first / "model"))
    for one in (recipe, dataclasses.replace(second, training=training)):
        trainer = run_recipe(one)
        if trainer.stopped_by:
            raise GalipError(f"{trainer.stopped_by}: stopped; the same command goes on")
    for name in ("config.json", "preprocessor_config.json", "training.json"):
        shutil.copy(first / "model" / name, TARGET)  # the card's text by hand stays
    before, after = (
        load_file(folder / "model.safetensors") for folder in (first / "model", first / "second" / "model")
    )
    mean = {name: (1 - SECOND_SHARE) * before[name] + SECOND_SHARE * after[name] for name in before}
    save_file(mean, TARGET / "model.safetensors", metadata={"format": "pt"})


def run(*arguments: object) -> None:
    """A command of galip-hf; what it says stands on stderr."""
    if galip_hf([str(argument) for argument in arguments]) != 0:
        raise GalipError(f"galip-hf {arguments[0]} failed")


def score_and_describe(recipe: Recipe, directory: Path) -> None:
    """`galip-hf evaluate`, the figure, `galip-hf card`."""
    output = recipe.training.output_path
    output.mkdir(parents=True, exist_ok=True)
    processor = GalipImageProcessor.from_pretrained(directory)
    table, report = output / "phantom", output / "report"
    # All slices, the near-empty ones too: these are scores of volumes.
    write_table(
        evaluation_volumes(recipe, processor),
        table,
        domains=phantom.CONTRASTS,
        image_size=None,
        minimum_foreground=0,
        overwrite=True,
    )
    run("evaluate", "--model", directory, "--data", table, "--output", report, "--overwrite")
    model = GalipForImageTranslation.from_pretrained(directory)
    subjects = test_subjects(processor, recipe.data.phantom, TEST_SUBJECTS, recipe.training.seed)
    save_figure(model, subjects, directory / "figure.png")
    run("card", directory, "--report", report / "report.json", "--license", "apache-2.0")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make examples/phantom_model.")
    parser.add_argument("--keep-weights", action="store_true", help="train nothing, score what is there")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    os.chdir(EXAMPLES.parent)
    try:
        recipe = load_recipe(
            EXAMPLES / "configs" / "phantom.yaml", ["training.resume=true", *arguments.overrides]
        )
        if not arguments.keep_weights:
            train_both(recipe)
            (TARGET / "report.json").unlink(missing_ok=True)  # of the weights before
        else:
            measure_input_statistics(recipe, TARGET)
        score_and_describe(recipe, TARGET)
    except GalipError as error:
        print(f"make_phantom_model.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
