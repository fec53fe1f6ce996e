"""Make examples/phantom_model from nothing: train the phantom recipe, score the model, write its card.

python examples/make_phantom_model.py [key=value ...]

Interrupted, it goes on from the last checkpoint in the recipe's output_dir.
"""

import json
import shutil
import string
import sys
from pathlib import Path
from typing import Any

import torch
from demo import mean_psnr, save_figure, test_subjects, training_slices, translator

from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor, __version__, phantom
from galip_hf.evaluation import evaluate
from galip_hf.files import write_report
from galip_hf.recipe import Recipe, load_recipe, run_recipe

EXAMPLES = Path(__file__).resolve().parent
TEMPLATE = EXAMPLES.parent / "model_cards" / "phantom_model.md"
TEST_SUBJECTS = 12


def score_rows(report: dict[str, Any]) -> str:
    """The table of directions."""
    table = report["protocols"]["fixed"]["masked"]
    columns = [table["directions"], *(table["baselines"][name] for name in ("copy", "histogram", "mean"))]
    rows = []
    for direction in table["directions"]:
        cells = [f"{column[direction]['psnr']:.2f} ({column[direction]['ssim']:.3f})" for column in columns]
        rows.append(f"| {direction} | {' | '.join(cells)} |")
    means = mean_psnr(report)
    rows.append(
        "| mean | "
        + " | ".join(f"{means[name]:.2f}" for name in ("model", "copy", "histogram", "mean"))
        + " |"
    )
    return "\n".join(rows)


def card(
    recipe: Recipe, model: GalipForImageTranslation, report: dict[str, Any], log: list[dict[str, Any]]
) -> str:
    """The model card: every number in it was measured in this run."""
    entries = [entry for entry in log if "losses" in entry]
    first, last = entries[0]["losses"], entries[-1]["losses"]
    seconds = sum(entry["seconds_per_step"] * recipe.training.logging_steps for entry in entries)
    paper = list(report["protocols"]["paper"]["full"]["directions"].values())
    data, clip = recipe.data.phantom, recipe.clip.tiny
    if data is None or clip is None:
        raise GalipError("the phantom model's recipe must have data.phantom and clip.tiny")
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        parameters=f"{model.num_parameters():,}",
        prompts=", ".join(f"`{prompt}`" for prompt in model.config.prompts),
        seed=recipe.training.seed,
        version=__version__,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        minutes=f"{seconds / 60:.0f}",
        steps=recipe.training.max_steps,
        logging_steps=recipe.training.logging_steps,
        train_subjects=data.train_subjects,
        clip_steps=clip.steps,
        losses="\n".join(f"| {name} | {first[name]:.3f} | {last[name]:.3f} |" for name in last),
        subjects=report["subjects"],
        slices=report["slices"],
        scores=score_rows(report),
        paper_psnr=f"{sum(cell['psnr'] for cell in paper) / len(paper):.2f}",
        paper_ssim=f"{sum(cell['ssim'] for cell in paper) / len(paper):.3f}",
    )


def main() -> int:
    recipe_path = EXAMPLES / "configs" / "phantom.yaml"
    try:
        recipe = load_recipe(recipe_path, ["training.resume=true", *sys.argv[1:]])
        trainer = run_recipe(recipe)
        if trainer.stopped_by:
            raise GalipError(f"{trainer.stopped_by}: stopped; the same command goes on")
        model: Any = trainer.ema.module
        data = recipe.data.phantom
        if data is None:
            raise GalipError(f"{recipe_path}: data.phantom is missing")
        output = recipe.training.output_path
        processor = GalipImageProcessor.from_pretrained(output / "model")
        subjects = test_subjects(processor, data, TEST_SUBJECTS, recipe.training.seed)
        slices = training_slices(processor, data, recipe.training.seed)
        report = evaluate(subjects, translator(model), slices, domains=phantom.CONTRASTS)
        write_report(report, output / "report.json")
        log = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        save_figure(model, subjects, output / "model" / "figure.png")
        (output / "model" / "README.md").write_text(card(recipe, model, report, log), encoding="utf-8")
    except GalipError as error:
        print(f"make_phantom_model.py: {error}", file=sys.stderr)
        return 2
    target = EXAMPLES / "phantom_model"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(output / "model", target)
    print(f"{target}: " + ", ".join(f"{name} {value:.2f} dB" for name, value in mean_psnr(report).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
