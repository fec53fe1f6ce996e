"""Does the advice on trust hold? Phantom scans of the wrong contrast, and with structures unseen in training,
against scans like those of the training: area under the ROC curve (AUC) of the input check and of the
cycle error, and how often each raises its warning.

python -m benchmarks.inference.reliability [--subjects 40] [--first 1000] [--output outputs/trust.json]

Subjects are those of the phantom's test block from `--first` on: the descriptor was chosen on 0..39.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import mannwhitneyu

from galip_hf import GalipPipeline, __version__
from galip_hf.data import phantom
from galip_hf.data.phantom import TISSUES, PhantomSubject
from galip_hf.data.phantom_table import phantom_subject_seed
from galip_hf.figures import save_montage
from galip_hf.files import write_report

MODEL = Path(__file__).resolve().parents[2] / "examples" / "phantom_model"
NOISE = 0.015  # of the 99.5th percentile, as the phantom's


def noisy(level: np.ndarray | float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Rician noise about a level, in units of the scan's 99.5th percentile."""
    real, imaginary = NOISE * rng.standard_normal((2, *shape))
    return np.hypot(level + real, imaginary)


def ball(shape: tuple[int, ...], radius: float, rng: np.random.Generator) -> np.ndarray:
    """Coverage (S, H, W) of an ellipsoid somewhere inside the brain; `radius` as a fraction of the width."""
    slices, height, width = shape
    z, y, x = np.mgrid[0:slices, 0:height, 0:width].astype(float)
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.2) * width
    centre = (
        rng.uniform(0.35, 0.65) * slices,
        height / 2 + distance * np.sin(angle),
        width / 2 + distance * np.cos(angle),
    )
    scaled = (
        (z - centre[0]) / (1.6 * radius * slices),
        (y - centre[1]) / (radius * width),
        (x - centre[2]) / (radius * width),
    )
    return np.clip((1 - np.sqrt(sum(part**2 for part in scaled))) * radius * width + 0.5, 0, 1)


def abdomen(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Another body part: a wide ellipse with fat, liver, kidneys, spine and a vessel."""
    height, width = shape[1:]
    y, x = np.mgrid[0:height, 0:width]
    y, x = (y + 0.5) / height * 2 - 1, (x + 0.5) / width * 2 - 1
    muscle = rng.uniform(0.3, 0.6)
    edge = (x / rng.uniform(0.78, 0.9)) ** 2 + (y / rng.uniform(0.55, 0.7)) ** 2
    image = np.where(edge < 1, rng.uniform(0.7, 1.0), 0.0)
    image[edge < 0.8] = muscle
    image[(((x + 0.3) / 0.38) ** 2 + ((y + 0.05) / 0.33) ** 2 < 1) & (edge < 0.75)] = 1.3 * muscle
    image[((np.abs(x) - 0.35) / 0.12) ** 2 + ((y - 0.25) / 0.16) ** 2 < 1] = 0.7 * muscle
    image[(x / 0.12) ** 2 + ((y - 0.38) / 0.12) ** 2 < 1] = 0.25
    image[((x - 0.05) / 0.06) ** 2 + ((y - 0.15) / 0.06) ** 2 < 1] = 0.05
    return noisy(ndimage.gaussian_filter(np.broadcast_to(image, shape), (0, 0.6, 0.6)), shape, rng)


def cases(
    subject: PhantomSubject, contrast: str, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Scans (S, H, W) of a subject that are handed over as `contrast`; the first is what it should be."""
    image = phantom.render(subject, contrast)
    unit = np.percentile(image, 99.5)
    image = image / unit
    shape = image.shape
    yield "as in training", image
    for other in phantom.CONTRASTS:
        if other != contrast:
            yield "wrong contrast", phantom.render(subject, other)
    mass = ball(shape, 0.13, rng)
    yield "bright mass", image * (1 - mass) + mass * noisy(1.0, shape, rng)
    yield "dark mass", image * (1 - mass) + mass * noisy(0.12, shape, rng)
    grey = float(np.median(image[image > 0.2]))
    yield "mass as bright as tissue", image * (1 - mass) + mass * noisy(grey, shape, rng)
    small = ball(shape, 0.05, rng)
    yield "small bright spot", image * (1 - small) + small * noisy(1.0, shape, rng)
    void = ball(shape, 0.11, rng)
    blurred = ndimage.gaussian_filter(void, (0, 1, 1))
    rim = np.clip(4 * blurred * (1 - blurred) - 0.3, 0, 1) * (void < 0.9)
    yield "metal void", (image * (1 - void) + void * noisy(0, shape, rng)) * (1 - rim) + 1.6 * rim
    skull = subject.fractions[TISSUES.index("scalp")] + subject.fractions[TISSUES.index("bone")]
    yield "missing skull", image * (1 - skull) + skull * noisy(0, shape, rng)
    yield "another organ", abdomen(shape, rng)


def measure(subjects: int, first: int) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A row a scan, and a slice of each case to look at."""
    pipeline, rows, examples = GalipPipeline.from_pretrained(MODEL, force=True), [], {}
    for index in range(first, first + subjects):
        subject = phantom.make_subject(phantom_subject_seed("test", index, 0))
        for number, contrast in enumerate(phantom.CONTRASTS):
            target = phantom.CONTRASTS[(number + 1) % 3]
            for case, scan in cases(subject, contrast, np.random.default_rng([index, number])):
                translation = pipeline(scan.astype(np.float32), target, contrast, cycle=True)
                report, look = translation.report, translation.report["input_check"]
                rows.append(
                    {
                        "subject": index, "contrast": contrast, "case": case, "score": look["score"],
                        "verdict": look["verdict"], "looks_like": look["looks_like"],
                        "cycle_error": report["cycle_error"]["mean"],
                        "worst_slice_cycle_error": max(e for e in report["cycle_error"]["slices"] if e),
                    }
                )  # fmt: skip
                if index == first:
                    lower, upper = report["source_window"]
                    shown = (translation.source_volume.array[6] - lower) / (upper - lower)
                    examples[f"{contrast} {case}"] = np.clip(shown, 0, 1)
    return rows, examples


def auc(usual: list[float], strange: list[float]) -> float:
    return float(mannwhitneyu(strange, usual).statistic / (len(usual) * len(strange)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("outputs/trust.json"))
    arguments = parser.parse_args()
    rows, examples = measure(arguments.subjects, arguments.first)
    measures = ("score", "cycle_error", "worst_slice_cycle_error")
    table = []
    print(f"{'contrast':9}{'case':26}{'input check':>12}{'cycle':>8}{'worst cycle':>12}{'warned':>8}")
    for contrast in phantom.CONTRASTS:
        of = [row for row in rows if row["contrast"] == contrast]
        for case in dict.fromkeys(row["case"] for row in of):
            these = [row for row in of if row["case"] == case]
            usual = [row for row in of if row["case"] == "as in training"]
            values = {m: auc([r[m] for r in usual], [r[m] for r in these]) for m in measures}
            warned = float(np.mean([row["verdict"] == "unlike" for row in these]))
            table.append({"contrast": contrast, "case": case, "auc": values, "warned": warned})
            print(
                f"{contrast:9}{case:26}" + "".join(
                    f"{values[m]:{w}.3f}" for m, w in zip(measures, (12, 8, 12), strict=True)
                ) + f"{warned:8.0%}"
            )  # fmt: skip
    usual = [row for row in rows if row["case"] == "as in training"]
    known = float(np.mean([row["looks_like"] == row["contrast"] for row in usual]))
    print(f"contrast recognised in scans as in training: {known:.1%} of {len(usual)}")
    report = {
        "table": table, "recognised": known, "rows": rows, "model": "examples/phantom_model",
        "subjects": arguments.subjects, "first": arguments.first, "device": "cpu", "galip_hf": __version__,
        "torch": torch.__version__,
    }  # fmt: skip
    write_report(report, arguments.output)
    save_montage(
        np.stack(list(examples.values())), arguments.output.with_suffix(".png"), titles=list(examples)
    )


if __name__ == "__main__":
    main()
