"""Does training in bfloat16 end where float32 does? The demo's training, longer, in both; PSNR of each run.

python -m benchmarks.training.precision [--steps 800] [--seeds 0 1 2] [--threads 1]

The demo trains 200 steps, after which float32 runs with one thread and with two were 1 dB apart. So the
protocol, fixed before the first run: four times its steps, the learning rate's schedule stretched with them;
for each seed (of weights, sampling and training subjects) one run in float32, one in bfloat16, and a
control: float32 with a learning rate larger by a millionth. Scored is the model that a run saves, on the
demo's 12 test subjects: mean masked PSNR over the six directions, protocol `fixed`. The bar: means over the
seeds within 0.5 dB. The file is written again after each run.
"""

import dataclasses
import logging
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from galip_hf import GalipImageProcessor
from galip_hf.cli import quiet_libraries
from galip_hf.data import phantom
from galip_hf.evaluation.evaluate import evaluate
from galip_hf.training.recipe import ClipRecipe, load_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import demo

BAR = 0.5
SUBJECTS, CLIP_STEPS = 12, 100  # the demo's
ARMS: dict[str, dict[str, Any]] = {
    "fp32": {"mixed_precision": "no"},
    "bf16": {"mixed_precision": "bf16"},
    "fp32_control": {"mixed_precision": "no", "learning_rate_factor": 1 + 1e-6},
}


def train_and_score(arm: str, seed: int, steps: int, clip: Path) -> dict[str, float]:
    """One run; PSNR in dB and seconds. The CLIP stand-in is made by the first run of a seed, in `clip`."""
    choice = dict(ARMS[arm])
    with tempfile.TemporaryDirectory() as folder:
        recipe = demo.short_recipe(Path(folder) / "run", steps, CLIP_STEPS)
        rate = recipe.training.learning_rate * choice.pop("learning_rate_factor", 1.0)
        training = dataclasses.replace(recipe.training, seed=seed, learning_rate=rate, **choice)
        recipe = dataclasses.replace(recipe, training=training)
        if clip.exists():
            recipe = dataclasses.replace(recipe, clip=ClipRecipe(source=str(clip)))
        started = time.perf_counter()
        _, model = demo.train_from_scratch(recipe, training.output_path)
        seconds = time.perf_counter() - started
        if not clip.exists():
            shutil.copytree(training.output_path / "clip", clip)
        processor = GalipImageProcessor.from_pretrained(training.output_path / "model")
    data = load_recipe(demo.RECIPE).data.phantom
    assert data is not None  # for the type checker: it is the phantom's recipe
    subjects = demo.test_subjects(processor, data, SUBJECTS, seed)
    report = evaluate(subjects, demo.translator(model), None, domains=phantom.CONTRASTS, baselines=False)
    return {"psnr": demo.mean_psnr(report)["model"], "seconds": round(seconds, 1)}


def summary(runs: dict[str, dict[int, dict[str, float]]]) -> dict[str, Any]:
    """Over the seeds that an arm shares with float32: both means and each seed's difference, in dB."""
    found = {}
    for arm, its in runs.items():
        seeds = [seed for seed in its if seed in runs["fp32"]]
        if arm == "fp32" or not seeds:
            continue
        differences = {seed: its[seed]["psnr"] - runs["fp32"][seed]["psnr"] for seed in seeds}
        mean = statistics.mean(differences.values())
        found[arm] = {
            "mean_psnr": statistics.mean(its[seed]["psnr"] for seed in seeds),
            "mean_psnr_fp32": statistics.mean(runs["fp32"][seed]["psnr"] for seed in seeds),
            "differences": differences,
            "mean_difference": mean,
            "within_bar": abs(mean) <= BAR,
        }
    return found


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0] if __doc__ else None, "precision.json", timed=False)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    quiet_libraries()
    # The comparison first; the control, by which it is judged, afterwards.
    order = [(arm, seed) for seed in arguments.seeds for arm in ("fp32", "bf16")]
    order += [("fp32_control", seed) for seed in arguments.seeds]
    protocol = {"steps": arguments.steps, "subjects": SUBJECTS, "bar_db": BAR, "device": "cpu"}
    runs: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for arm, seed in order:
            found = train_and_score(arm, seed, arguments.steps, Path(folder) / f"clip-{seed}")
            runs[arm][seed] = found
            print(f"seed {seed} {arm}: {found['psnr']:.2f} dB, {found['seconds']:.0f} s", flush=True)
            common.write({**protocol, "runs": runs, "against_fp32": summary(runs)}, arguments.output)


if __name__ == "__main__":
    main()
