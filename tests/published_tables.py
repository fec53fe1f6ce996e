"""A small table of slices, and its publication as Parquet files: what the tests of streams read."""

from pathlib import Path

import datasets
import numpy as np

from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table

DOMAINS = ["T1", "T2", "CT"]
FILES = 4


def publish(table: datasets.Dataset, folder: Path, split: str = "train", files: int = FILES) -> str:
    """Parquet files as `push_to_hub` lays them out."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for index in range(files):
        name = f"data/{split}-{index:05d}-of-{files:05d}.parquet"
        table.shard(files, index, contiguous=True).to_parquet(str(folder / name))
    return str(folder)


def make_table(directory: Path) -> datasets.Dataset:
    """Eight subjects, three domains, five slices each: 120 slices of 6 x 6, each of its own value."""
    volumes = []
    for subject in range(8):
        for label, domain in enumerate(DOMAINS):
            value = 0.1 + 0.005 * (subject * 15 + label * 5 + np.arange(5))
            array = np.broadcast_to(value[:, None, None], (5, 6, 6)).astype(np.float32)
            array[:, -1, -1] = 0.9  # a slice of one value everywhere would be left out
            volumes.append(SubjectVolume(array, domain, f"s{subject}", "train"))
    return load_table(write_table(volumes, directory, domains=DOMAINS, image_size=None))["train"]
