"""Training step: the trainer's against the plain form, at full size, alternating in one run.

python benchmarks/train_step.py [--batch-sizes 1 2] [--repeats 5]

256 x 256 slices, the default generator, ViT-B/16 and BERT-base with random weights, fp32. Both sides start
from the same weights and take the same batch; their losses at the first step must agree to 1e-4. Peak memory
is measured in a process of its own for each side.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from plain import PlainTraining

from galip_hf import GalipImageProcessor
from galip_hf.clip_backbone import ClipBackbone
from galip_hf.data.sampling import UnpairedSlices
from galip_hf.data.table import SubjectVolume, load_table, write_table
from galip_hf.trainer import GalipTrainer
from galip_hf.training_args import GalipTrainingArguments

TOLERANCE = 1e-4


def make_trainer(folder: Path, batch_size: int, backbone: ClipBackbone) -> GalipTrainer:
    """A real trainer at full size, on slices of noise: what they show does not matter here."""
    model = common.full_size_generator()
    generator = np.random.default_rng(0)
    names = model.config.domain_names
    volumes = (
        SubjectVolume(generator.random((2 * batch_size, 256, 256), np.float32), name, f"{name}-0", "train")
        for name in names
    )
    table = write_table(volumes, folder / "table", domains=names, image_size=None)
    arguments = GalipTrainingArguments(output_dir=str(folder / "run"), batch_size=batch_size)
    dataset = UnpairedSlices(load_table(table)["train"], domains=names, seed=0)
    return GalipTrainer(model, GalipImageProcessor.from_config(model.config), backbone, arguments, dataset)


def sides(
    folder: Path, batch_size: int, backbone: ClipBackbone
) -> dict[str, Callable[[], dict[str, torch.Tensor]]]:
    """One training step of each form."""
    trainer = make_trainer(folder, batch_size, backbone)
    batches = next(trainer.loader.steps(0))
    domains = sorted(set(batches[0].target_domains))
    plain = PlainTraining(trainer.generator, trainer.discriminator, backbone, trainer.arguments)
    return {
        "plain": lambda: plain.training_step(batches[0]),
        "trainer": lambda: trainer.training_step(batches, domains)["losses"],
    }


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of the losses."""
    assert set(first) == set(second), (sorted(first), sorted(second))
    return max(abs(float(first[name] / second[name]) - 1) for name in first)


def compare(batch_size: int, repeats: int, backbone: ClipBackbone) -> dict[str, Any]:
    """Losses and times of both sides at one batch size."""
    with tempfile.TemporaryDirectory() as folder:
        steps = sides(Path(folder), batch_size, backbone)
        relative = difference(steps["plain"](), steps["trainer"]())
        if relative > TOLERANCE:
            sys.exit(f"the losses differ by {relative:.2e}, more than {TOLERANCE}: no comparison")
        times = common.summary(common.alternate(steps, repeats), "plain")
    return {"batch_size": batch_size, "largest_relative_difference": relative, "sides": times}


def peak_memory(side: str, batch_size: int, threads: int) -> float:
    """Peak resident memory, GB, of two steps of one side in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", side, "--batch-sizes", str(batch_size)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def main() -> None:
    parser = common.parser(__doc__, "train_step.json")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--memory-of", choices=["plain", "trainer"], help="print one side's peak memory, GB")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    backbone = common.full_size_backbone()
    if arguments.memory_of:
        with tempfile.TemporaryDirectory() as folder:
            step = sides(Path(folder), arguments.batch_sizes[0], backbone)[arguments.memory_of]
            step(), step()
        print(common.peak_memory_gb())
        return
    rows = []
    for batch_size in arguments.batch_sizes:
        row = compare(batch_size, arguments.repeats, backbone)
        for side, times in row["sides"].items():
            times["peak_memory_gb"] = peak_memory(side, batch_size, arguments.threads)
            print(
                f"batch {batch_size}  {side:8s} {times['median_s']:7.2f} s  x{times['speedup']:.2f}  "
                f"{times['peak_memory_gb']:.2f} GB",
                flush=True,
            )
        print(f"batch {batch_size}  losses differ by {row['largest_relative_difference']:.1e} at most")
        rows.append(row)
    common.write({"benchmark": "train_step", "precision": "fp32", "rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
