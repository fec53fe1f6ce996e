"""Resident memory over 2,000 steps of training: from a memory-mapped table, and from a stream.

python -m benchmarks.training.memory [--steps 2000] [--folder DIR]

A table of 4,000 slices of 32 x 32 (16 MB), and Parquet files of it. A real trainer, a tiny model, batch
size 1, so that 2,000 steps are one epoch. Each kind runs in a process of its own. Kept, every 250 steps:
megabytes (2^20 bytes) of anonymous memory, and of resident pages of mapped files, which belong to the page
cache: the kernel takes them back when memory is short.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import common
from galip_hf import GalipConfig, GalipForImageTranslation, GalipImageProcessor
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.clip.tiny_clip import build_tiny_clip
from galip_hf.data.streamed_dataset import StreamedSlices, open_stream
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.model.domains import IXI_DOMAINS
from galip_hf.training.trainer import GalipTrainer
from galip_hf.training.training_args import GalipTrainingArguments

DOMAINS = IXI_DOMAINS[:2]
NAMES = [domain["name"] for domain in DOMAINS]
SUBJECTS, SLICES, SIZE, FILES, EVERY = 20, 100, 32, 8, 250


def volumes() -> Iterator[SubjectVolume]:
    for subject in range(SUBJECTS):
        for label, name in enumerate(NAMES):
            rng = np.random.default_rng([subject, label])
            array = rng.random((SLICES, SIZE, SIZE), dtype=np.float32)
            yield SubjectVolume(array, name, f"s{subject}", "train")


def resident() -> dict[str, float]:
    """Megabytes, anonymous and of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"anonymous": found["RssAnon"], "mapped_files": found["RssFile"]}


def make_data(folder: Path) -> None:
    """The table, and the Parquet files that `push_to_hub` would make of it; once."""
    if (folder / "table").exists():
        return
    (folder / "hub" / "data").mkdir(parents=True)
    write_table(volumes(), folder / "table", domains=NAMES, image_size=None)
    mixed = load_table(folder / "table")["train"].shuffle(seed=0)
    for index in range(FILES):
        path = folder / "hub" / "data" / f"train-{index:05d}-of-{FILES:05d}.parquet"
        mixed.shard(FILES, index).to_parquet(str(path), batch_size=50)


def open_data(folder: Path, kind: str) -> UnpairedSlices | StreamedSlices:
    if kind == "table":
        return UnpairedSlices(load_table(folder / "table")["train"], domains=NAMES, seed=0)
    length = SUBJECTS * SLICES * len(NAMES) // 2
    stream = open_stream(str(folder / "hub"), "train")
    return StreamedSlices(stream, domains=NAMES, seed=0, length=length, buffer_size=500)


def tiny_model(backbone: ClipBackbone) -> GalipForImageTranslation:
    config = GalipConfig(
        base_channels=8,
        channel_multipliers=[1, 2],
        blocks_per_level=1,
        attention_rates=[2],
        attention_head_width=8,
        norm_groups=4,
        label_width=16,
        image_size=SIZE,
        text_width=backbone.text_width,
        text_length=backbone.context_length,
        text_embedding_width=backbone.embedding_width,
        domains=DOMAINS,
    )
    return GalipForImageTranslation(config)


def measure(folder: Path, kind: str, steps: int) -> dict[int, dict[str, float]]:
    """Memory by step."""
    dataset = open_data(folder, kind)
    prompts = [str(domain["prompt"]) for domain in DOMAINS]
    with tempfile.TemporaryDirectory() as scratch:
        clip = build_tiny_clip(
            Path(scratch) / "clip", prompts, image_size=32, patch_size=8, width=32, depth=4
        )
        backbone = ClipBackbone.from_pretrained(clip)
        model = tiny_model(backbone)
        arguments = GalipTrainingArguments(
            str(Path(scratch) / "run"), max_steps=steps, batch_size=1, validation_steps=EVERY
        )
        processor = GalipImageProcessor.from_config(model.config)
        # Called every 250 steps, at a moment when nothing of a step is held.
        GalipTrainer(model, processor, backbone, arguments, dataset, lambda _: resident()).train()
        lines = (Path(scratch) / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return {entry["step"]: entry["validation"] for entry in entries if "validation" in entry}


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0] if __doc__ else None, "memory.json", timed=False)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--folder", type=Path, help="where the data is made, or was; default: a temporary one"
    )
    parser.add_argument("--kind", choices=("table", "stream"), help="measure this alone, in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.kind:
        found = measure(arguments.folder, arguments.kind, arguments.steps)
        arguments.output.write_text(json.dumps(found), encoding="utf-8")
        return
    result = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "data"
        make_data(folder)
        for kind in ("table", "stream"):
            part = Path(scratch) / f"{kind}.json"
            options = {"kind": kind, "folder": folder, "output": part, "steps": arguments.steps}
            options["threads"] = arguments.threads
            command = [sys.executable, "-m", "benchmarks.training.memory"]
            command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
            subprocess.run(command, check=True)
            result[kind] = json.loads(part.read_text(encoding="utf-8"))
            for step, megabytes in result[kind].items():
                print(kind, step, {name: round(value) for name, value in megabytes.items()}, flush=True)
    common.write({"steps": arguments.steps, "megabytes": result}, arguments.output)


if __name__ == "__main__":
    main()
