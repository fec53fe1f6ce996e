"""The main job end to end: no download, no GPU, no medical CLIP model.

1. A real head that no training saw, in three contrasts: translate each to the others, compare with the truth.
2. Phantom subjects made on the spot, and the small model of them: the same, with baselines.
3. Train the phantom's recipe from scratch for about two minutes, save, load, and show what it gained.
4. Say where everything lies.

python examples/demo.py [--short] [--output outputs/demo]
"""

import argparse
import dataclasses
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor, __version__
from galip_hf.cli import quiet_libraries
from galip_hf.commands.demo import describe, translate_head
from galip_hf.data import phantom
from galip_hf.data.normalization import normalize_scan
from galip_hf.data.phantom_table import PhantomRecipe, phantom_subject_seed, phantom_volumes
from galip_hf.evaluation.evaluate import evaluate
from galip_hf.evaluation.metrics import slice_psnr
from galip_hf.figures import FigureRow, save_loss_curves, save_translation_figure
from galip_hf.files import write_report
from galip_hf.inference.slices import translate_slices
from galip_hf.training.recipe import Recipe, load_recipe
from galip_hf.training.run_recipe import run_recipe

EXAMPLES = Path(__file__).resolve().parent
MODEL = EXAMPLES / "phantom_model"
RECIPE = EXAMPLES / "configs" / "phantom.yaml"

Translate = Callable[[np.ndarray, str, str], np.ndarray]


def test_subjects(
    processor: GalipImageProcessor, recipe: PhantomRecipe, count: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Phantom subjects of the test block, rendered in all contrasts and normalised as in training."""
    subjects = []
    for index in range(count):
        subject = phantom.make_subject(
            phantom_subject_seed("test", index, seed), size=recipe.size, slices=recipe.slices
        )
        subjects.append(
            {
                contrast: normalize_scan(processor, phantom.render(subject, contrast), contrast)
                .pixel_values[:, 0]
                .numpy()
                for contrast in phantom.CONTRASTS
            }
        )
    return subjects


def training_slices(
    processor: GalipImageProcessor, recipe: PhantomRecipe, seed: int
) -> dict[str, np.ndarray]:
    """Slices of the recipe's training subjects, for the baselines."""
    slices: dict[str, list[np.ndarray]] = {contrast: [] for contrast in phantom.CONTRASTS}
    for volume in phantom_volumes(dataclasses.replace(recipe, validation_subjects=0), processor, seed):
        slices[volume.domain].append(volume.array)
    return {contrast: np.concatenate(volumes) for contrast, volumes in slices.items()}


def translator(model: GalipForImageTranslation) -> Translate:
    """The model as `evaluate` wants it: the source's domain need not be known."""
    return lambda volume, source, target: translate_slices(model, volume, target)


def save_figure(model: GalipForImageTranslation, subjects: list[dict[str, np.ndarray]], path: Path) -> None:
    """One middle slice a direction, a subject each."""
    rows = []
    directions = [(a, b) for a in phantom.CONTRASTS for b in phantom.CONTRASTS if a != b]
    for number, (source, target) in enumerate(directions):
        index = number % len(subjects)
        subject = subjects[index]
        middle = len(subject[source]) // 2
        translation = translate_slices(model, subject[source][middle : middle + 1], target)[0]
        rows.append(
            FigureRow(
                f"test subject {index} · {source}→{target}",
                subject[source][middle],
                translation,
                subject[target][middle],
                source,
                target,
                slice_psnr(translation, subject[target][middle]),
            )
        )
    save_translation_figure(rows, path, title="Phantom subjects that no training saw")


def mean_psnr(report: dict[str, Any]) -> dict[str, float]:
    """Mean PSNR over the six directions, protocol `fixed`, masked: of the model and of each baseline."""
    table = report["protocols"]["fixed"]["masked"]

    def mean(cells: dict[str, Any]) -> float:
        return float(np.mean([cell["psnr"] for cell in cells.values()]))

    return {
        "model": mean(table["directions"]),
        **{name: mean(cells) for name, cells in table["baselines"].items()},
    }


def train_from_scratch(
    recipe: Recipe, output: Path
) -> tuple[GalipForImageTranslation, GalipForImageTranslation]:
    """Run the recipe; returns the untrained network (same seed and prompts) and the trained one, loaded."""
    shutil.rmtree(output, ignore_errors=True)
    run_recipe(recipe)
    model = GalipForImageTranslation.from_pretrained(output / "model")
    torch.manual_seed(recipe.training.seed)
    untrained = GalipForImageTranslation(model.config).eval()
    untrained.prompt_states.copy_(model.prompt_states)
    return untrained, model


def short_recipe(output: Path, steps: int, clip_steps: int) -> Recipe:
    """The phantom recipe, cut to `steps` steps and to a briefly trained stand-in for the CLIP model."""
    return load_recipe(
        RECIPE,
        [
            f"training.output_dir={output}",
            f"training.max_steps={steps}",
            "training.logging_steps=10",
            "training.validation_steps=0",
            "training.checkpoint_steps=0",
            # A moving average over 1,000 steps would still hold the untrained network.
            "training.ema_decay=0.9",
            f"clip.tiny.steps={clip_steps}",
            "clip.tiny.subjects=8",
            "data.phantom.train_subjects=20",
            "data.phantom.validation_subjects=0",
        ],
    )


def run(output: Path, subjects_count: int, steps: int, clip_steps: int) -> None:
    """The four parts of the demo."""
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(RECIPE)
    data, seed = recipe.data.phantom, recipe.training.seed
    if data is None:
        raise GalipError(f"{RECIPE}: data.phantom is missing; the demo needs the phantom")

    print("1/4  translating a real head with examples/open_ms_model", flush=True)
    head = translate_head(output)
    print("     " + describe(head).replace("\n", "\n     "))
    print(
        f"2/4  translating {subjects_count} test subjects with {MODEL.relative_to(EXAMPLES.parent)}",
        flush=True,
    )
    model = GalipForImageTranslation.from_pretrained(MODEL)
    processor = GalipImageProcessor.from_pretrained(MODEL)
    subjects = test_subjects(processor, data, subjects_count, seed)
    slices = training_slices(
        processor, dataclasses.replace(data, train_subjects=min(20, data.train_subjects)), seed
    )
    report = evaluate(subjects, translator(model), slices, domains=phantom.CONTRASTS)
    save_figure(model, subjects, output / "figure.png")
    scores = mean_psnr(report)
    print(
        "     mean PSNR, fixed protocol, masked: "
        + ", ".join(f"{name} {value:.2f} dB" for name, value in scores.items())
    )

    print(f"3/4  training from scratch: {steps} steps", flush=True)
    training_started = time.perf_counter()
    untrained, trained = train_from_scratch(
        short_recipe(output / "training", steps, clip_steps), output / "training"
    )
    training_seconds = time.perf_counter() - training_started
    log = [
        json.loads(line)
        for line in (output / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    save_loss_curves([{"step": entry["step"], **entry["losses"]} for entry in log], output / "losses.png")
    few = subjects[:2]
    gained = {
        name: mean_psnr(evaluate(few, translator(network), slices, domains=phantom.CONTRASTS))["model"]
        for name, network in (("untrained", untrained), ("trained", trained))
    }
    first, last = log[0]["losses"], log[-1]["losses"]
    for name in ("cycle", "identity"):
        print(f"     {name} loss {first[name]:.3f} -> {last[name]:.3f}")
    print(
        f"     mean PSNR {gained['untrained']:.2f} -> {gained['trained']:.2f} dB in {training_seconds:.0f} s"
    )

    report |= {
        "head": head,
        "model": str(MODEL.relative_to(EXAMPLES.parent)),
        "mean_psnr_fixed_masked": scores,
        "from_scratch": {
            "steps": steps,
            "seconds": round(training_seconds, 1),
            "losses_first": first,
            "losses_last": last,
            "mean_psnr_fixed_masked": gained,
        },
        "seed": seed,
        "versions": {"galip_hf": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_report(report, output / "report.json")
    print(
        f"4/4  done in {report['seconds']:.0f} s: {output}/head.png and {output}/figure.png (translations of "
        f"the head and of the phantom), {output}/report.json (numbers), "
        f"{output}/losses.png, {output}/training/model (the model trained just now)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/demo"), help="folder (default: outputs/demo)"
    )
    parser.add_argument(
        "--short", action="store_true", help="fewer subjects and steps: a check, about a minute"
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    quiet_libraries()
    try:
        if arguments.short:
            run(arguments.output, subjects_count=2, steps=10, clip_steps=20)
        else:
            run(arguments.output, subjects_count=12, steps=200, clip_steps=100)
    except GalipError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
