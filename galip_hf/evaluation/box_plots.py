"""Box plots of an evaluation as SVG, in the colour of the page's text: legible on light and on dark."""

import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHORT = {"model": "model", "copy": "copy", "histogram": "hist.", "mean": "mean", "lookup": "lookup"}
INK_SENTINEL = "#123456"  # becomes currentColor in the SVG


FEWEST_FOR_BOX = 6  # scores; quartiles of fewer are mere interpolation, so there are dots alone


def box_plot(
    direction: str, values: Mapping[str, Mapping[str, list[float]]], limits: Mapping[str, tuple[float, float]]
) -> str:
    """An inline SVG: PSNR and SSIM of every candidate, a dot a subject, and boxes from six subjects on.

    Args:
        direction: "T1->T2", the heading.
        values: "psnr" and "ssim" -> candidate -> scores of the subjects.
        limits: "psnr" and "ssim" -> range of the axis.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.4), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    figure.suptitle(direction.replace("->", " → "), fontsize=10, color=INK_SENTINEL)
    for position, (measure, name) in enumerate((("psnr", "PSNR, dB"), ("ssim", "SSIM"))):
        axes = figure.add_subplot(1, 2, position + 1)
        _draw_boxes(axes, values[measure])
        axes.set_ylim(*limits[measure])
        axes.set_title(name, fontsize=8.5, color=INK_SENTINEL)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": direction}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK_SENTINEL, "currentColor")
    label = f"Box plots of PSNR and SSIM, {html.escape(direction, quote=True)}"
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _draw_boxes(axes: "Axes", values: Mapping[str, Sequence[float]]) -> None:
    axes.patch.set_alpha(0)
    ink = {"color": INK_SENTINEL, "linewidth": 0.8}
    for position, (candidate, scores) in enumerate(values.items()):
        colour = "#4c8fd6" if candidate == "model" else "#9aa2ab"
        boxed = len(scores) >= FEWEST_FOR_BOX
        if boxed:
            axes.boxplot(
                [scores], positions=[position], widths=0.55, patch_artist=True, showfliers=False,
                boxprops={"facecolor": colour, "edgecolor": INK_SENTINEL, "linewidth": 0.8, "alpha": 0.6},
                medianprops=ink | {"linewidth": 1.4}, whiskerprops=ink, capprops=ink,
            )  # fmt: skip
        axes.plot(
            [position] * len(scores), scores, "o", markersize=2.5 if boxed else 5,
            color=INK_SENTINEL if boxed else colour, markeredgewidth=0, alpha=0.65,
        )  # fmt: skip
    axes.set_xticks(range(len(values)), [SHORT[candidate] for candidate in values])
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.tick_params(labelsize=7.5, colors=INK_SENTINEL, width=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=INK_SENTINEL, linewidth=0.6)


__all__ = ["box_plot"]
