"""How long `galip-hf prepare` takes a subject, and how much memory it needs, by subjects and workers.

Each row prepares a folder in IXI's layout, made on the spot: T1, T2 and PD of 60 slices of 256x256, T1 turned
and moved, so that it is registered, resampled and checked. The command runs in a process of its own; all its
processes are sampled every 50 ms. "anonymous" is memory of their own (RssAnon). "resident" counts the mapped
pages of files besides (the table's, which the kernel takes back when memory is short) and counts what
processes share once each.

python -m benchmarks.prepare.prepare [--subjects 4 12] [--workers 1 2] [--output FILE]
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from benchmarks import common
from galip_hf.data import phantom
from galip_hf.data.grid import Grid
from galip_hf.prepare.images import ScanImage, to_itk
from galip_hf.prepare.registration import resample

SIZE, SLICES, SPACING = 256, 60, (2.4, 0.9375, 0.9375)  # mm between slices, rows and columns


def write_scans(folder: Path, subjects: range) -> None:
    """Add subjects to a folder in IXI's layout."""
    steps = np.diag(SPACING)[:, ::-1].copy()
    where = Grid((SLICES, SIZE, SIZE), np.array([-120.0, -120.0, -70.0]), steps)
    moved = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.03, -0.02, 0.05, (3.0, -5.0, 4.0))
    for index in subjects:
        subject = phantom.make_subject(index, size=SIZE, slices=SLICES)
        for contrast in phantom.CONTRASTS:
            array = phantom.render(subject, contrast)
            if contrast == "T1":
                array = resample(ScanImage(array, where), where, moved)
            path = folder / f"IXI-{contrast}" / f"IXI{index:03d}-Guys-{index:04d}-{contrast}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.Cast(to_itk(array, where), sitk.sitkInt16), str(path))
            assert nib.load(path).shape == (SIZE, SIZE, SLICES)


def descendants(process: int) -> Iterator[int]:
    """A process and all that it started, directly or not."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text(encoding="utf-8").split():
            yield from descendants(int(child))


def resident(process: int) -> dict[str, int]:
    """Bytes, summed over a process and its descendants."""
    total = {"RssAnon": 0, "VmRSS": 0}
    for one in descendants(process):
        for line in Path(f"/proc/{one}/status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in total:
                total[name] += int(value.split()[0]) * 1024
    return total


def measure(folder: Path, table: Path, subjects: int, workers: int) -> dict[str, float]:
    """Run the command on a folder."""
    command = [sys.executable, "-m", "galip_hf.cli", "prepare", "ixi", str(folder), "--output", str(table)]
    options = ["--split", f"{subjects},0,0", "--slices", "all", "--workers", str(workers)]
    peaks = {"RssAnon": 0, "VmRSS": 0}
    started = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            now = resident(process.pid)
        except (OSError, ValueError):  # a process ended while it was read
            continue
        peaks = {name: max(value, now[name]) for name, value in peaks.items()}
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"prepare ended with code {process.returncode}")
    return {
        "wall_seconds": round(time.perf_counter() - started, 1),
        "anonymous_mib": round(peaks["RssAnon"] / 2**20),
        "resident_mib": round(peaks["VmRSS"] / 2**20),
        "table_mib": round(sum(path.stat().st_size for path in table.rglob("*.arrow")) / 2**20),
    }


def main() -> None:
    parser = common.parser(__doc__, "prepare.json")
    parser.add_argument("--subjects", type=int, nargs="+", default=[4, 12])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rows = []
    print("subjects  workers  wall s  s/subject  anonymous MiB  resident MiB  table MiB")
    with tempfile.TemporaryDirectory() as directory:
        folder, made = Path(directory) / "ixi", 0
        for subjects in sorted(arguments.subjects):
            write_scans(folder, range(made, subjects))
            made = subjects
            for workers in arguments.workers:
                row = measure(folder, Path(directory) / f"{subjects}-{workers}", subjects, workers)
                row |= {"subjects": subjects, "workers": workers}
                rows.append(row)
                print(
                    f"{subjects:8}{workers:9}{row['wall_seconds']:8}{row['wall_seconds'] / subjects:11.1f}"
                    f"{row['anonymous_mib']:15}{row['resident_mib']:14}{row['table_mib']:11}",
                    flush=True,
                )
    common.write({"rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
