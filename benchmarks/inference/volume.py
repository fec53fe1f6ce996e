"""A whole volume through `galip-hf translate`: seconds, memory, and the share of them inside the generator.

python -m benchmarks.inference.volume [--shape 182 218 182] [--model DIR]

Makes a NIfTI volume of the size of the MNI template at 1 mm (an ellipsoid of noise) and translates it with
the default generator, random weights, in a process of its own, start-up included. Then one slice of
256 x 256, likewise.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks import common
from galip_hf import GalipImageProcessor

# The command in its process, with a clock around the generator's calls; the result is the last line.
PROGRAM = """
import json, sys, time
from galip_hf import cli
seconds = []
def load(arguments, load=cli.translate._load):
    pipeline = load(arguments)
    translate = pipeline.model.translate
    def timed(*given):
        started = time.perf_counter()
        translated = translate(*given)
        seconds.append(time.perf_counter() - started)
        return translated
    pipeline.model.translate = timed
    return pipeline
cli.translate._load = load
code = cli.main(sys.argv[1:])
status = open("/proc/self/status").read()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e9
print(json.dumps({"generator_s": sum(seconds), "peak_memory_gb": peak}))
sys.exit(code)
"""


def head(shape: tuple[int, ...]) -> np.ndarray:
    """float32: noise in an ellipsoid of a head's proportions, air around it.

    It reaches through all slices, as the head does in the MNI template: none of its slices is air alone.
    """
    axes = [np.linspace(-1, 1, length) if length > 1 else np.zeros(1) for length in shape]
    grid = np.meshgrid(*axes, indexing="ij")
    inside = sum((axis / reach) ** 2 for axis, reach in zip(grid, (0.8, 0.8, 1.05), strict=True)) < 1
    return np.where(inside, np.random.default_rng(0).normal(600, 60, shape), 0).astype(np.float32)


def run(scan: Path, model: Path, folder: Path, threads: int) -> dict[str, float]:
    """Seconds of the whole process, of the generator in it, and its peak memory."""
    arguments = [scan, "--model", model, "--from", "T1", "--to", "T2"]
    arguments += ["--output", folder / f"translated_{scan.name}", "--overwrite"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "translate", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    total = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    row: dict[str, Any] = {"total_s": total, **json.loads(done.stdout.splitlines()[-1])}
    return {**row, "share_in_generator": row["generator_s"] / total}


def main() -> None:
    parser = common.parser(__doc__, "volume.json")
    parser.set_defaults(repeats=1)
    parser.add_argument("--shape", type=int, nargs=3, default=[182, 218, 182])
    parser.add_argument("--model", type=Path, help="model directory (default: the default generator)")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or folder / "model"
        if not arguments.model:
            generator = common.full_size_generator()
            generator.save_pretrained(model)
            GalipImageProcessor.from_config(generator.config).save_pretrained(model)
        for title, shape in (("volume", tuple(arguments.shape)), ("slice", (256, 256, 1))):
            scan = folder / f"{title}.nii.gz"
            nib.save(nib.Nifti1Image(head(shape), np.eye(4)), scan)
            for _ in range(arguments.repeats):
                row = {"scan": title, "shape": shape, **run(scan, model, folder, arguments.threads)}
                rows.append(row)
                size, share = "x".join(map(str, shape)), row["share_in_generator"]
                print(
                    f"{title:7s}{size:12s}{row['total_s']:8.1f} s, {row['generator_s']:.1f} s ({share:.0%}) "
                    f"in the generator, {row['peak_memory_gb']:.2f} GB",
                    flush=True,
                )
    common.write({"benchmark": "volume", "precision": "fp32", "rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
