"""Slices a second from a prepared table through the trainer's loader.

python -m benchmarks.data.data_loading [--workers 0 1 2] [--seconds 5]

A table of 256 x 256 slices in two domains, made in a temporary folder (half a gigabyte: the page cache holds
it, as it would a table in its second epoch). The bar is 200 slices a second.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from galip_hf.data.augmentation import SliceAugmentation
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.training.step_loader import StepLoader
from galip_hf.training.training_args import GalipTrainingArguments

DOMAINS = ["T1", "T2"]
BAR = 200


def volumes(subjects: int = 10, slices: int = 100) -> Iterator[SubjectVolume]:
    for subject, (label, domain) in itertools.product(range(subjects), enumerate(DOMAINS)):
        values = np.random.default_rng([subject, label]).random((slices, 256, 256), dtype=np.float32)
        yield SubjectVolume(values, domain, f"s{subject}", "train")


AUGMENTATIONS = {
    "none": SliceAugmentation(),
    "affine": SliceAugmentation(rotation=10, translation=0.05, scale=0.1, intensity=0.1),
}


def rates(
    table: Any, folder: Path, workers: int, augmentation: str, repeats: int, seconds: float
) -> list[float]:
    """Slices a second, of each measurement; the first second, in which workers start, is not counted."""
    arguments = GalipTrainingArguments(str(folder / "run"), batch_size=4, num_workers=workers)
    dataset = UnpairedSlices(table, domains=DOMAINS, seed=0, augmentation=AUGMENTATIONS[augmentation])
    steps = StepLoader(dataset, arguments, 1, 0, torch.device("cpu")).steps(0)
    measured = []
    for repeat in range(repeats + 1):
        started, slices = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < (seconds if repeat else 1):
            slices += sum(len(batch.sources) for batch in next(steps))
        if repeat:
            measured.append(slices / elapsed)
    steps.close()
    return measured


def main() -> None:
    parser = common.parser(__doc__, "data_loading.json")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (default: 3)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = load_table(write_table(volumes(), folder / "table", domains=DOMAINS, image_size=None))[
            "train"
        ]
        for workers, augmentation in itertools.product(arguments.workers, AUGMENTATIONS):
            measured = rates(table, folder, workers, augmentation, arguments.repeats, arguments.seconds)
            median = statistics.median(measured)
            rows.append(
                {"workers": workers, "augmentation": augmentation, "slices_per_s": median, "all": measured}
            )
            verdict = "" if median >= BAR else f"  below {BAR}"
            print(
                f"{workers} workers, augmentation {augmentation:6s}{median:8.0f} slices/s{verdict}",
                flush=True,
            )
    common.write({"benchmark": "data_loading", "bar": BAR, "rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
