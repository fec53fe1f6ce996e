"""Results of the benchmark as one table of text and one figure, the time-to-quality curve."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.quality.scoring import MEASURES, Scores, mean_of

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # system -> results of its seeds


def seed_mean(results: Sequence[Mapping[str, Any]]) -> Scores:
    """The last scores of a system; each number, the ends of an interval too, is a mean over the seeds."""
    finals = [result["curve"][-1]["directions"] for result in results]
    mean: Scores = {}
    for direction, first in finals[0].items():
        cells = [final[direction] for final in finals]
        mean[direction] = {name: sum(cell[name] for cell in cells) / len(cells) for name in MEASURES}
        intervals = [cell["psnr_ci95"] for cell in cells]
        mean[direction]["psnr_ci95"] = (
            None if None in intervals else [sum(ends) / len(ends) for ends in zip(*intervals, strict=True)]
        )
        mean[direction]["n"] = first["n"]
    return mean


def table_of(floors: Mapping[str, Scores], results: Results) -> str:
    """Every baseline and system for each direction, then the means over the directions and what they cost."""
    rows = {**floors, **{name: seed_mean(of_seeds) for name, of_seeds in results.items()}}
    width = max(len(name) for name in rows)
    lines = [
        "protocol fixed, masked; means over subjects [95 % interval of PSNR] and, of systems, over seeds",
        f"{'direction':12}{'system':{width + 2}}{'PSNR dB':>8}  {'interval':14}{'SSIM':>7}{'MAE':>8}",
    ]
    for direction in next(iter(rows.values())):
        for name, scores in rows.items():
            cell = scores.get(direction)
            if cell is None:
                continue
            ends = cell["psnr_ci95"]
            interval = f"[{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""
            lines.append(
                f"{direction:12}{name:{width + 2}}{cell['psnr']:8.2f}  {interval:14}{cell['ssim']:7.3f}"
                f"{cell['mae']:8.4f}"
            )
    for name, scores in rows.items():
        means = [mean_of(scores, measure) for measure in MEASURES]
        line = f"{'mean':12}{name:{width + 2}}{means[0]:8.2f}  {'':14}{means[1]:7.3f}{means[2]:8.4f}"
        lines.append(line + _cost(results.get(name, ())))
    return "\n".join(lines)


def _cost(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return ""
    last = [result["curve"][-1] for result in results]
    figures = [mean_of_key(last, key) for key in ("cpu_seconds", "step", "images")]
    finals = [mean_of(entry["directions"], "psnr") for entry in last]
    seeds = ", ".join(f"{value:.2f}" for value in finals)
    return f"  {figures[0]:.0f} CPU s, {figures[1]:.0f} steps, {figures[2]:.0f} images; seeds {seeds} dB"


def mean_of_key(entries: Sequence[Mapping[str, Any]], key: str) -> float:
    """The mean of a number over some entries."""
    return float(sum(entry[key] for entry in entries) / len(entries))


def save_curve(floors: Mapping[str, Scores], results: Results, title: str, path: Path) -> None:
    """Mean PSNR over the directions against CPU seconds: a line a seed, dashed lines for the baselines."""
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for number, (name, of_seeds) in enumerate(results.items()):
        for index, result in enumerate(of_seeds):
            seconds = [entry["cpu_seconds"] for entry in result["curve"]]
            psnr = [mean_of(entry["directions"], "psnr") for entry in result["curve"]]
            axes.plot(seconds, psnr, f"C{number}.-", label=None if index else name)
    for number, name in enumerate(("copy", "lookup")):
        if name in floors:
            level = mean_of(floors[name], "psnr")
            axes.axhline(level, color="0.5", linestyle=("--", ":")[number], label=f"{name} ({level:.1f} dB)")
    axes.set(xlabel="CPU seconds of training", ylabel="PSNR inside the body, dB", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
