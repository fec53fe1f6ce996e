"""Training step: the trainer's against the plain form, at full size, alternating in one run.

python -m benchmarks.training.train_step [--batch-sizes 1 2] [--repeats 5] [--sides plain trainer ...]

256 x 256 slices, the default generator, ViT-B/16 and BERT-base with random weights. Each side has a process
of its own, in which its peak memory is read; one of them computes at a time. All start from the same weights
and take the same batch: the losses of their first step must agree to 1e-4 (bf16: are printed).

Sides: `plain`; `plain-kept`, with the allocator told to keep what is freed, as `examples/train.py` does;
`trainer`, as `examples/train.py` trains; `trainer-default`, with the allocator left alone; `trainer-bf16`;
`trainer-checkpointing`, with gradient checkpointing; `trainer-cached`, with the real images' features kept.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.plain import PlainTraining
from galip_hf import GalipForImageTranslation, GalipImageProcessor
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.commands.startup import keep_freed_memory
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.training.trainer import GalipTrainer
from galip_hf.training.training_args import GalipTrainingArguments

TOLERANCE = 1e-4
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain-kept": {},
    "trainer": {},
    "trainer-default": {},
    "trainer-bf16": {"mixed_precision": "bf16"},
    "trainer-checkpointing": {"gradient_checkpointing": True},
    "trainer-cached": {"cache_image_features": True},
}
SIDES = tuple(OPTIONS)


def make_trainer(
    folder: Path,
    size: int,
    backbone: ClipBackbone,
    domains: int,
    *,
    model: GalipForImageTranslation | None = None,
    **arguments: Any,
) -> GalipTrainer:
    """A real trainer, at full size unless `model` is another one, on slices of noise: what they show does not
    matter here."""
    model = model or common.full_size_generator(domains=common.domains(domains))
    generator = np.random.default_rng(0)
    names = model.config.domain_names
    count = 2 * arguments["batch_size"]
    volumes = (
        SubjectVolume(generator.random((count, size, size), np.float32), name, f"{name}-0", "train")
        for name in names
    )
    table = write_table(volumes, folder / "table", domains=names, image_size=None)
    dataset = UnpairedSlices(load_table(table)["train"], domains=names, seed=0)
    settings = GalipTrainingArguments(output_dir=str(folder / "run"), **arguments)
    return GalipTrainer(model, GalipImageProcessor.from_config(model.config), backbone, settings, dataset)


def make_step(side: str, folder: Path, batch_size: int, size: int, domains: int) -> Callable[[], Any]:
    """One training step of a side; returns its losses."""
    if not side.endswith("default") and side != "plain":
        keep_freed_memory()
    backbone = common.full_size_backbone()
    trainer = make_trainer(folder, size, backbone, domains, batch_size=batch_size, **OPTIONS[side])
    batches = next(trainer.loader.steps(0))
    present = sorted(set(batches[0].target_domains))
    if side.startswith("plain"):
        plain = PlainTraining(
            trainer.state.generator, trainer.state.discriminator, backbone, trainer.arguments
        )
        del trainer
        return lambda: plain.training_step(batches[0])
    return lambda: trainer.training_step(batches, present)["losses"]


def work(arguments: Any) -> None:
    """The process of a side: a step, or its operations counted."""
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(
            arguments.work, Path(folder), arguments.batch_sizes[0], arguments.size, arguments.domains
        )

        def figures(what: str) -> dict[str, Any]:
            if what == "count":
                with FlopCounterMode(display=False) as counter:
                    step()
                return {"flops": counter.get_total_flops()}
            started = time.perf_counter()
            losses = {name: float(value) for name, value in step().items()}
            return {"seconds": time.perf_counter() - started, "losses": losses}

        common.answer(figures)


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Largest relative difference of the losses."""
    assert set(first) == set(second), (sorted(first), sorted(second))
    return max(abs(first[name] / second[name] - 1) for name in first)


def compare(names: Sequence[str], batch_size: int, arguments: Any) -> dict[str, Any]:
    """Losses, times, memory and operations of some sides at one batch size."""
    sides = [
        common.Side(
            "benchmarks.training.train_step",
            name,
            batch_sizes=batch_size,
            size=arguments.size,
            domains=arguments.domains,
            threads=arguments.threads,
        )
        for name in names
    ]
    first = {side.name: side.ask("step") for side in sides}
    reference = names[0]
    differences = {name: difference(first[reference]["losses"], first[name]["losses"]) for name in names}
    for name, relative in differences.items():
        if relative > TOLERANCE and not name.endswith("bf16"):
            sys.exit(f"{name}: the losses differ by {relative:.2e}, more than {TOLERANCE}: no comparison")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    last: dict[str, dict[str, Any]] = {}
    for _ in range(arguments.repeats):
        for side in sides:
            last[side.name] = side.ask("step")
            seconds[side.name].append(last[side.name]["seconds"])
    table: dict[str, Any] = common.summary(seconds, reference)
    for side in sides:
        row = table[side.name]
        row |= {
            "peak_memory_gb": last[side.name]["peak_memory_gb"],
            "loss_difference": differences[side.name],
            "gflop": side.ask("count")["flops"] / 1e9,
        }
        row["gflop_per_s"] = row["gflop"] / statistics.median(seconds[side.name])
        side.close()
    return {"batch_size": batch_size, "size": arguments.size, "domains": arguments.domains, "sides": table}


def main() -> None:
    parser = common.parser(__doc__, "train_step.json")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["plain", "trainer"])
    parser.add_argument("--size", type=int, default=256, help="height and width of the slices")
    parser.add_argument("--domains", type=int, default=3, help="number of domains")
    parser.add_argument("--work", choices=SIDES, help="be the process of a side")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.work:
        work(arguments)
        return
    peak = common.machine_peak()
    rows = []
    for batch_size in arguments.batch_sizes:
        rows.append(compare(arguments.sides, batch_size, arguments))
        for side, row in rows[-1]["sides"].items():
            print(
                f"batch {batch_size}  {side:22s} {row['median_s']:7.2f} s  x{row['speedup']:.2f}  "
                f"{row['peak_memory_gb']:5.2f} GB  {row['gflop']:6.0f} GFLOP  "
                f"{row['gflop_per_s'] / peak['gemm']:.0%} of peak  losses {row['loss_difference']:.0e}",
                flush=True,
            )
    common.write({"benchmark": "train_step", "machine_peak": peak, "rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
