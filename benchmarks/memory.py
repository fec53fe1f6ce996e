"""Resident memory of the data path over 2,000 steps: from a memory-mapped table, and from a stream.

python benchmarks/memory.py DIR [table|stream]

Makes, in DIR, a table of 4,000 slices of 256 x 256 (1 GB) once, and Parquet files of it. Prints, every 250
steps of 4 pairs, the process's anonymous memory and the mapped pages of files that are resident (these belong
to the page cache: the kernel takes them back when memory is short). Not a test: run it by hand.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from galip_hf.data.loading import StepLoader
from galip_hf.data.sampling import UnpairedSlices
from galip_hf.data.streaming import StreamedSlices, open_stream
from galip_hf.data.table import SubjectVolume, load_table, write_table
from galip_hf.training_args import GalipTrainingArguments

DOMAINS = ["T1", "T2"]
SUBJECTS, SLICES, STEPS = 20, 100, 2000


def volumes() -> Iterator[SubjectVolume]:
    for subject in range(SUBJECTS):
        for label, domain in enumerate(DOMAINS):
            rng = np.random.default_rng([subject, label])
            yield SubjectVolume(
                rng.random((SLICES, 256, 256), dtype=np.float32), domain, f"s{subject}", "train"
            )


def resident() -> dict[str, int]:
    """Megabytes, anonymous and of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith("Rss")}


def main() -> None:
    directory, kind = Path(sys.argv[1]), sys.argv[2]
    if not (directory / "table").exists():
        write_table(volumes(), directory / "table", domains=DOMAINS, image_size=None)
    table = load_table(directory / "table")["train"]
    if kind == "table":
        dataset: UnpairedSlices | StreamedSlices = UnpairedSlices(table, domains=DOMAINS, seed=0)
    else:
        (directory / "hub" / "data").mkdir(parents=True, exist_ok=True)
        for index in range(8):
            path = directory / "hub" / "data" / f"train-{index:05d}-of-00008.parquet"
            if not path.exists():
                table.shuffle(seed=0).shard(8, index).to_parquet(str(path), batch_size=50)
        stream = open_stream(str(directory / "hub"), "train")
        dataset = StreamedSlices(stream, domains=DOMAINS, seed=0, length=len(table) // 2, buffer_size=500)
    arguments = GalipTrainingArguments(str(directory / "run"))
    steps = StepLoader(dataset, arguments, 1, 0, torch.device("cpu")).steps(0)
    for step in range(1, STEPS + 1):
        (batch,) = next(steps)
        assert batch.sources.shape == (8, 1, 256, 256)
        if step % 250 == 0 or step == 10:
            print(step, resident(), flush=True)


if __name__ == "__main__":
    main()
