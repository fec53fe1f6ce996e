"""Best, median and worst subject of each direction as pictures: a mean hides its failures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..figures import FigureRow, save_translation_figure
from ..foreground import above_air
from .metrics import slice_psnr

PredictSlices = Callable[[int, str, str, slice], np.ndarray]


def choose_cases(report: Mapping[str, Any], direction: str) -> dict[str, tuple[int, float]]:
    """Name of the case -> (position in `per_subject`, PSNR), by the PSNR of `fixed`, masked.

    Few subjects give fewer cases: one is "only", two are "best" and "worst".
    """
    scored = [
        (index, entry["directions"][direction]["model"]["fixed"]["masked"]["psnr"])
        for index, entry in enumerate(report["per_subject"])
        if "model" in entry["directions"].get(direction, {})
    ]
    ranked = sorted(scored, key=lambda case: -case[1])
    if len(ranked) < 2:
        return {"only": ranked[0]} if ranked else {}
    names = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    return names if len(ranked) > 2 else {name: names[name] for name in ("best", "worst")}


def save_cases(
    report: Mapping[str, Any],
    subjects: Sequence[Mapping[str, np.ndarray]],
    predict: PredictSlices,
    folder: Path,
    *,
    progress: bool = True,
) -> dict[str, Path]:
    """One picture per direction: its cases, each at the slice with most foreground, on fixed scales.

    Args:
        report: of `evaluate`, whose `per_subject` follows the order of `subjects`.
        subjects: as given to `evaluate`, indexable; they are read again.
        predict: (index of the subject, source domain, target domain, the slices wanted) -> translation of
            those slices, (1, H, W) in model space.
        folder: where the PNG files go.
        progress: show a progress bar (never when stderr is not a terminal).

    Returns:
        Direction -> file.
    """
    files = {}
    directions = list(report["protocols"]["fixed"]["masked"]["directions"])
    for direction in tqdm(directions, unit="picture", disable=None if progress else True):
        source, target = direction.split("->")
        rows = []
        for case, (index, psnr) in choose_cases(report, direction).items():
            subject = subjects[index]
            wanted = _fullest_slice(subject[target])
            translation, truth = predict(index, source, target, wanted)[0], subject[target][wanted][0]
            rows.append(
                FigureRow(
                    f"{case}: {report['per_subject'][index]['subject']}, {psnr:.1f} dB",
                    subject[source][wanted][0] if source in subject else None,
                    translation,
                    truth,
                    source,
                    target,
                    slice_psnr(translation, truth),
                )
            )
        if rows:
            # Domain names are free text; a file name is not.
            name = "".join(letter if letter.isalnum() else "_" for letter in f"{source}-to-{target}")
            title = f"{source} → {target}: cases by the volume's PSNR (fixed, masked)"
            files[direction] = save_translation_figure(rows, folder / f"{name}.png", title=title)
    return files


def _fullest_slice(volume: np.ndarray) -> slice:
    index = int(above_air(volume).sum(axis=(1, 2)).argmax())
    return slice(index, index + 1)


__all__ = ["choose_cases", "save_cases"]
