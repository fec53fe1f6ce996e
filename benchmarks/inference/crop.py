"""What `--crop` gains and changes: time and difference inside the foreground, cropped against whole slices.

python -m benchmarks.inference.crop [--repeats 5] [--output outputs/crop.json]

Phantom heads on a wide field of view (64-pixel heads on 128 pixels of air with noise), translated by the
phantom model; whole and cropped runs alternate, and the ratio is that of the medians.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from galip_hf import GalipPipeline, __version__
from galip_hf.data import phantom
from galip_hf.data.phantom_table import phantom_subject_seed
from galip_hf.evaluation.metrics import fixed_scores
from galip_hf.files import write_report
from galip_hf.foreground import above_air
from galip_hf.inference.slices import foreground_box

MODEL = Path(__file__).resolve().parents[2] / "examples" / "phantom_model"


def wide_scans(index: int) -> tuple[np.ndarray, np.ndarray]:
    """T1 and T2 of a subject, (S, 64, 64) inside (S, 128, 128) of noise."""
    subject, scans = phantom.make_subject(phantom_subject_seed("test", index, 0)), []
    for contrast in ("T1", "T2"):
        head = phantom.render(subject, contrast)
        rng = np.random.default_rng([index, len(scans)])
        real, imaginary = 0.015 * np.percentile(head, 99.5) * rng.standard_normal((2, len(head), 128, 128))
        wide = np.hypot(real, imaginary).astype(np.float32)
        wide[:, 32:96, 32:96] = head
        scans.append(wide)
    return scans[0], scans[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("outputs/crop.json"))
    arguments = parser.parse_args()
    pipeline = GalipPipeline.from_pretrained(MODEL, force=True)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    differences, psnr = [], {False: [], True: []}
    for index in range(1000, 1000 + arguments.subjects):
        scan, target = wide_scans(index)
        found = {}
        for repeat in range(arguments.repeats):
            for crop in (False, True) if repeat % 2 else (True, False):
                started = time.perf_counter()
                found[crop] = pipeline(scan, "T2", "T1", geometry="native", crop=crop)
                seconds[crop].append(time.perf_counter() - started)
        lower, upper = found[True].report["source_window"]
        slices = (scan - lower) / (upper - lower)
        difference = np.abs(found[True].array - found[False].array) / (upper - lower)
        differences.append(float(difference[above_air(slices)].mean()))
        scale = np.percentile(target, 99.5) / upper
        for crop, translation in found.items():
            psnr[crop].append(fixed_scores(translation.array * scale, target)["masked"].psnr)
    rows, columns = foreground_box(slices)
    ratio = float(np.median(seconds[True]) / np.median(seconds[False]))
    report = {
        "box": [rows.stop - rows.start, columns.stop - columns.start], "slice": [128, 128],
        "time_ratio": ratio, "seconds_whole": float(np.median(seconds[False])),
        "mean_difference_inside": float(np.mean(differences)),
        "psnr_whole": float(np.mean(psnr[False])), "psnr_cropped": float(np.mean(psnr[True])),
        "subjects": arguments.subjects, "repeats": arguments.repeats, "device": "cpu",
        "galip_hf": __version__,
    }  # fmt: skip
    for name, value in report.items():
        print(f"{name}: {value}")
    write_report(report, arguments.output)


if __name__ == "__main__":
    main()
