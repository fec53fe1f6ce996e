"""How long an evaluation takes and how much memory it needs: folders of 256x256 volumes, both protocols.

Each row runs in a process of its own: 100 slices a subject, read from .npy files, scored under `paper` and
`fixed` (masked and full). "baselines" scores the copied and the histogram-matched source besides. The bar is
2,000 slices in 60 s on 2 cores.

python -m benchmarks.evaluation.evaluate [--json FILE]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

SLICES, SIZE = 100, 256
ROWS = ((5, False), (20, False), (20, True))  # subjects, baselines: 500, 2,000 and 2,000 slices


def write_volumes(folder: Path, subjects: int) -> None:
    """Head-like volumes: smooth texture in an ellipse, noise around it; a prediction is blurred and noisy."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    inside = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    for name in ("source", "prediction", "target"):
        (folder / name).mkdir()
    for subject in range(subjects):
        rng = np.random.default_rng([subject])
        noise = rng.normal(size=(SLICES, SIZE, SIZE)).astype(np.float32)
        target = np.where(inside, 0.5 + ndimage.gaussian_filter(noise, 3) * 8, 0.0) + 0.003 * np.abs(noise)
        prediction = ndimage.gaussian_filter(target, (0, 1, 1)) + 0.01 * rng.normal(size=target.shape)
        for name, array in (
            ("target", target),
            ("prediction", prediction),
            ("source", np.where(inside, 1 - target, 0)),
        ):
            np.save(folder / name / f"sub-{subject:03d}.npy", array.astype(np.float32))


def measure(folder: Path, baselines: bool) -> dict[str, float]:
    """Evaluates the folder in this process."""
    from galip_hf.data.folder_subjects import FolderSubjects
    from galip_hf.evaluation.evaluate import evaluate_folders

    source = folder / "source" if baselines else None
    domains = ("source", "target")
    start, cpu = time.perf_counter(), time.process_time()
    subjects = FolderSubjects([folder / "prediction"], folder / "target", source, domains=domains, windows={})
    report = evaluate_folders(subjects, domains)
    return {
        "subjects": report["subjects"],
        "slices": report["slices"],
        "baselines": baselines,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "psnr": report["summary"]["model"]["psnr"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "BASELINES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(Path(arguments.one[0]), arguments.one[1] == "True")))
        return
    rows = []
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before the start")
    print("subjects  slices  baselines  wall s  CPU s  peak MiB")
    for subjects, baselines in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            write_volumes(Path(folder), subjects)
            command = [
                sys.executable,
                "-m",
                "benchmarks.evaluation.evaluate",
                "--one",
                folder,
                str(baselines),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{row['subjects']:8}{row['slices']:8}{row['baselines']!s:>11}{row['wall_seconds']:8}"
            f"{row['cpu_seconds']:7}{row['peak_mib']:10}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
