"""Training of a galip_hf recipe under a budget of processor time, scored along the way."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from benchmarks.quality.data import DataSet
from benchmarks.quality.scoring import CpuClock, Scorer, mean_of
from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.inference.slices import translate_slices
from galip_hf.training.distributed import ProcessGroup
from galip_hf.training.recipe import Recipe, load_recipe
from galip_hf.training.run_recipe import make_dataset, prepare_materials
from galip_hf.training.trainer import GalipTrainer

BASE = Path("examples", "configs", "phantom.yaml")
CURVE = "curve.jsonl"


def quality_recipe(
    data: DataSet, table: Path, folder: Path, seed: int, minutes: float, overrides: Sequence[str]
) -> Recipe:
    """The recipe `phantom` on another table, with a budget of processor minutes; `overrides` change it."""
    return load_recipe(
        BASE,
        [
            "data.phantom=null",
            f"data.table={table}",
            f"model.image_size={data.image_size}",
            f"model.domains={json.dumps(data.domains)}",
            "training.max_steps=1000000",
            "training.validation_steps=100",
            "training.checkpoint_steps=100",
            *overrides,
            f"training.output_dir={folder}",
            f"training.seed={seed}",
            f"training.max_hours={minutes / 60}",
            "training.resume=true",
        ],
    )


def train_galip(recipe: Recipe, scorer: Scorer) -> dict[str, Any]:
    """Train to the end of the budget, or go on where an earlier call stopped; returns the result.

    The making of the CLIP stand-in counts towards the budget; scoring does not.

    Raises:
        GalipError: as `run_recipe`; or the budget is used up before the first step.
    """
    clock, started = CpuClock(), time.time()
    folder = recipe.training.output_path
    recipe.training.make_output_directory()
    trainer = _make_trainer(recipe)
    trainer.clock = clock
    trainer.state.seconds = clock()  # a resumed run takes it from its checkpoint
    if recipe.training.is_over(0, trainer.state.seconds):
        raise GalipError(
            f"{folder}: making the CLIP stand-in took {trainer.state.seconds:.0f} s of processor time, "
            "all of the budget; give more --cpu-minutes, or a lower clip.tiny.steps"
        )
    curve = folder / CURVE

    def score(model: GalipForImageTranslation) -> dict[str, float]:
        with clock.paused():
            scores = scorer.scores(lambda volume, _, target: translate_slices(model, volume, target))
            step = trainer.state.step
            entry = {
                "step": step,
                "images": step * trainer.images_per_step,
                "cpu_seconds": trainer.state.seconds,
                "wall_seconds": time.time() - started,
                "directions": scores,
            }
            with curve.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        return {"psnr": mean_of(scores, "psnr"), "ssim": mean_of(scores, "ssim")}

    trainer.validate = score
    trainer.train()
    entries = read_curve(curve)
    if trainer.stopped_by:
        raise SystemExit(f"{folder}: stopped by {trainer.stopped_by}; the same command goes on")
    return {
        "settings": recipe.training.to_dict(),
        "model": recipe.model,
        "clip": dataclasses.asdict(recipe.clip),
        "parameters": sum(p.numel() for p in trainer.state.generator.parameters()),
        "curve": entries,
    }


def _make_trainer(recipe: Recipe) -> GalipTrainer:
    """As `run_recipe` makes it, without the package's own validation, which needs a split of its own."""
    processes = ProcessGroup()
    materials = prepare_materials(recipe)
    processor = GalipImageProcessor.from_config(materials.config)
    dataset = make_dataset(recipe, materials, processor, processes)
    set_seed(recipe.training.seed)
    model = materials.model or GalipForImageTranslation(materials.config)
    return GalipTrainer(model, processor, materials.backbone, recipe.training, dataset, processes=processes)


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The entries of a curve in the order of their steps; of a step that was scored twice, the later one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    by_step = {entry["step"]: entry for entry in map(json.loads, lines)}
    return [by_step[step] for step in sorted(by_step)]
