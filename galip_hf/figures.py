"""Pictures to judge a model by: translations beside their targets, montages of slices, training curves.

Every picture uses fixed scales (images 0 to 1 in gray, differences 0 to 0.5), so that two of them can be
compared. Figures are laid out in inches and drawn with matplotlib's Agg canvas, without pyplot's global
state; matplotlib is imported only when a figure is drawn.
"""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import atomic_write
from .model.errors import GalipError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 150
DIFFERENCE_LIMIT = 0.5
PANEL, GAP, MARGIN = 2.1, 0.1, 0.12  # inches, as all lengths here
ROW_TITLE, ROW_LABEL, HEADING, COLOUR_BARS, FOOTNOTE = 0.27, 0.44, 0.38, 0.6, 0.24
INK, FAINT, CURVE = "#1a1a1a", "#666666", "#1f5fa8"


@dataclass(frozen=True)
class FigureRow:
    """One translation to show. The slices are (H, W) in [0, 1], all of one shape.

    Attributes:
        label: what the row is, such as "subject 3 · T1→T2".
        source: the slice given to the translator, or None where it is not known.
        translation: the slice it returned.
        target: the acquired slice of the target domain, or None where there is none.
        source_name: the source domain, such as "T1".
        target_name: the target domain, such as "T2".
        psnr: dB of the slice shown, for the title of its difference; None leaves it out.
    """

    label: str
    source: np.ndarray | None
    translation: np.ndarray
    target: np.ndarray | None
    source_name: str
    target_name: str
    psnr: float | None = None


def save_translation_figure(
    rows: Sequence[FigureRow], path: str | os.PathLike[str], *, title: str | None = None
) -> Path:
    """One row per translation: source, translation and, where there is a target, target and |difference|.

    The column of sources is left out when no row has one.

    Args:
        rows: at least one; target and difference columns are left out when no row has a target.
        path: the PNG file to write; folders are made, an existing file is replaced.
        title: heading of the whole figure.

    Raises:
        GalipError: no rows, slices not finite (H, W) of one shape, or `path` does not end in .png.
    """
    path = _checked_path(path)
    if not rows:
        raise GalipError("rows: got none, expected at least one FigureRow")
    for index, row in enumerate(rows):
        _check_row(index, row)
    paired = any(row.target is not None for row in rows)
    first = 0 if any(row.source is not None for row in rows) else 1
    columns = (4 if paired else 2) - first
    heights = [PANEL * row.translation.shape[0] / row.translation.shape[1] for row in rows]
    rows_height = sum(heights) + len(rows) * (ROW_TITLE + GAP)
    top = HEADING if title else MARGIN
    width = ROW_LABEL + columns * (PANEL + GAP) - GAP + MARGIN
    figure = _figure(width, top + rows_height + COLOUR_BARS + (FOOTNOTE if paired else 0), title)
    images: dict[str, AxesImage] = {}
    for row, height in zip(rows, heights, strict=True):
        images |= _draw_row(figure, row, top + ROW_TITLE, height, first)
        top += ROW_TITLE + height + GAP
    _colour_bar(figure, images["translation"], 0, "intensity in model space", top)
    if paired:
        _colour_bar(figure, images["difference"], 3 - first, "|translation − target|", top)
        note = "PSNR of the slice shown: data range 1, no rescaling, background included."
        _text(figure, ROW_LABEL, top + COLOUR_BARS + 0.08, note, fontsize=7.5, color=FAINT, va="center")
    return _save(figure, path)


def save_montage(
    slices: np.ndarray,
    path: str | os.PathLike[str],
    *,
    titles: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """A near-square grid of slices in gray, 0 to 1, in reading order.

    Args:
        slices: (N, H, W) in [0, 1], N at least 1.
        path: the PNG file to write; folders are made, an existing file is replaced.
        titles: one short text per slice.
        title: heading of the whole figure.

    Raises:
        GalipError: slices are not a finite (N, H, W), titles are too few or many, or `path` is no .png.
    """
    path = _checked_path(path)
    slices = np.asarray(slices)
    if slices.ndim != 3 or slices.size == 0 or not np.isfinite(slices).all():
        raise GalipError(
            f"slices: got shape {slices.shape}, expected finite values of shape (N, H, W), N at least 1"
        )
    if titles is not None and len(titles) != len(slices):
        raise GalipError(f"titles: got {len(titles)}, expected {len(slices)}, one per slice")
    columns = math.ceil(math.sqrt(len(slices)))
    panel = min(PANEL, 12 / columns)
    height = panel * slices.shape[1] / slices.shape[2]
    row_title = ROW_TITLE if titles is not None else 0
    top, row_count = HEADING if title else MARGIN, math.ceil(len(slices) / columns)
    figure = _figure(
        2 * MARGIN + columns * (panel + GAP) - GAP,
        top + row_count * (row_title + height + GAP) - GAP + MARGIN,
        title,
    )
    for index, image in enumerate(slices):
        row, column = divmod(index, columns)
        left, row_top = MARGIN + column * (panel + GAP), top + row * (row_title + height + GAP) + row_title
        axes = _panel(
            figure, left, row_top, panel, height, _shorten(titles[index], panel) if titles else None
        )
        _show_image(axes, image)
    return _save(figure, path)


def save_grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    path: str | os.PathLike[str],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
) -> Path:
    """A table of slices in gray, 0 to 1, with a heading for each column and a label for each row.

    Args:
        rows: each with one (H, W) slice a column, or None for an empty place; all slices of one shape.
        path: the PNG file to write; folders are made, an existing file is replaced.
        row_labels: one a row.
        column_labels: one a column.

    Raises:
        GalipError: labels and slices do not fit, or `path` does not end in .png.
    """
    path = _checked_path(path)
    shapes = {np.shape(image) for row in rows for image in row if image is not None}
    if len(shapes) != 1 or len(rows) != len(row_labels) or {len(row) for row in rows} != {len(column_labels)}:
        raise GalipError(
            f"rows: got {len(rows)} of {[len(row) for row in rows]} slices with shapes {sorted(shapes)}; "
            f"expected {len(row_labels)} of {len(column_labels)}, of one shape"
        )
    ((slice_height, slice_width),) = shapes
    height = PANEL * slice_height / slice_width
    width = ROW_LABEL + len(column_labels) * (PANEL + GAP) - GAP + MARGIN
    figure = _figure(width, ROW_TITLE + len(rows) * (height + GAP) + MARGIN, None)
    for row, (images, label) in enumerate(zip(rows, row_labels, strict=True)):
        top = ROW_TITLE + row * (height + GAP)
        label = _shorten(label, height)
        _text(
            figure,
            ROW_LABEL / 2,
            top + height / 2,
            label,
            fontsize=8.5,
            rotation=90,
            ha="center",
            va="center",
        )
        for column, image in enumerate(images):
            if image is not None:
                _show_image(
                    _panel(figure, ROW_LABEL + column * (PANEL + GAP), top, PANEL, height, None), image
                )
    for column, label in enumerate(column_labels):
        left = ROW_LABEL + column * (PANEL + GAP) + PANEL / 2
        _text(figure, left, ROW_TITLE / 2, _shorten(label, PANEL), fontsize=8.5, ha="center", va="center")
    return _save(figure, path)


def save_loss_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """One small panel per logged quantity over the steps; long curves faint, their running mean on top.

    Args:
        history: log entries, each with "step" and any numbers; other values, such as text, are passed over.
        path: the PNG file to write; folders are made, an existing file is replaced.

    Raises:
        GalipError: no entry has a step and a finite number, or `path` does not end in .png.
    """
    path = _checked_path(path)
    curves = _curves(history)
    if not curves:
        raise GalipError(
            "history: got no entry with a 'step' and a finite number; log the training at least once"
        )
    columns = min(3, len(curves))
    row_count = math.ceil(len(curves) / columns)
    figure = _figure(3.1 * columns + 0.2, 2.1 * row_count + 0.25, None)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        axes = figure.add_subplot(row_count, columns, index + 1)
        _draw_curve(axes, name, steps, values)
        if index + columns >= len(curves):  # the lowest panel of its column
            axes.set_xlabel("step", fontsize=8, color=INK)
    return _save(figure, path)


# --- drawing ---


def _draw_row(
    figure: "Figure", row: FigureRow, top: float, height: float, first: int
) -> dict[str, "AxesImage"]:
    """Draws the panels of one row, from column `first` on, and returns the images whose colour scales the
    bars below explain."""
    label = textwrap.fill(row.label, max(10, int(height / 0.072)), max_lines=2, placeholder="…")
    _text(
        figure, ROW_LABEL - 0.07, top + height / 2, label, fontsize=8.5, rotation=90, ha="right", va="center",
        multialignment="center",
    )  # fmt: skip
    panels = [
        (f"source: {row.source_name}", row.source),
        (f"translation: {row.target_name}", row.translation),
        (f"target: {row.target_name}", row.target),
    ]
    images = {}
    for column, (name, image) in enumerate(panels):
        if image is None:
            continue
        left = ROW_LABEL + (column - first) * (PANEL + GAP)
        axes = _panel(figure, left, top, PANEL, height, _shorten(name, PANEL))
        images[("source", "translation", "target")[column]] = _show_image(axes, image)
    if row.target is not None:
        difference = np.abs(np.asarray(row.translation, np.float64) - row.target)
        name = "|difference|" + (f" · PSNR {row.psnr:.1f} dB" if row.psnr is not None else "")
        axes = _panel(figure, ROW_LABEL + (3 - first) * (PANEL + GAP), top, PANEL, height, name)
        images["difference"] = axes.imshow(difference, cmap="magma", vmin=0, vmax=DIFFERENCE_LIMIT)
    return images


def _show_image(axes: "Axes", image: np.ndarray) -> "AxesImage":
    return axes.imshow(image, cmap="gray", vmin=0, vmax=1)


def _panel(
    figure: "Figure", left: float, top: float, width: float, height: float, title: str | None
) -> "Axes":
    """Axes without ticks, placed in inches from the upper left corner."""
    figure_width, figure_height = figure.get_size_inches()
    axes = figure.add_axes(
        (
            left / figure_width,
            1 - (top + height) / figure_height,
            width / figure_width,
            height / figure_height,
        )
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, fontsize=8.5, color=INK, pad=3.5)
    return axes


def _colour_bar(figure: "Figure", image: "AxesImage", column: int, label: str, top: float) -> None:
    left = ROW_LABEL + column * (PANEL + GAP)
    axes = _panel(figure, left, top + 0.06, PANEL, 0.09, None)
    extend = "max" if column else "neither"
    bar = figure.colorbar(image, cax=axes, orientation="horizontal", extend=extend, extendfrac=0.04)
    limit = image.get_clim()[1] or 1.0
    bar.set_ticks([0, limit / 2, limit])
    bar.set_label(label, fontsize=8, color=INK, labelpad=2)
    bar.ax.tick_params(labelsize=7.5, length=2, pad=1.5, colors=INK)
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]


def _draw_curve(axes: "Axes", name: str, steps: np.ndarray, values: np.ndarray) -> None:
    window = len(values) // 20
    smoothed = window > 1
    width, alpha = (0.8, 0.3) if smoothed else (1.4, 1.0)
    marker = "o" if len(values) < 3 else ""
    axes.plot(steps, values, color=CURVE, linewidth=width, alpha=alpha, marker=marker, markersize=3)
    if smoothed:
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window // 2 : window // 2 + len(mean)], mean, color=CURVE, linewidth=1.5)
    axes.set_title(_shorten(name.replace("_", " "), 2.6), fontsize=9, color=INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=7.5, colors=FAINT)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (steps, values) of every finite number logged, in the order of first appearance."""
    points: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        step = entry.get("step")
        for name, value in entry.items():
            if (
                step is not None
                and name != "step"
                and isinstance(value, int | float)
                and math.isfinite(value)
            ):
                points.setdefault(name, []).append((step, value))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}


def _figure(width: float, height: float, title: str | None) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        _text(
            figure, width / 2, HEADING / 2, _shorten(title, width, 11), fontsize=11, ha="center", va="center"
        )
    return figure


def _text(figure: "Figure", left: float, top: float, text: str, **style: Any) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, **{"color": INK, **style})


def _shorten(text: str, width: float, fontsize: float = 8.5) -> str:
    """Cuts text that would run over `width` inches (a letter is about 0.6 of the font size wide)."""
    letters = int(width * 72 / (0.6 * fontsize))
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _save(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path


# --- checks ---


def _checked_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise GalipError(f"path: got {path}, expected a file name ending in .png")
    return path


def _check_row(index: int, row: FigureRow) -> None:
    named = (("source", row.source), ("translation", row.translation), ("target", row.target))
    slices = {name: image for name, image in named if image is not None}
    reference, first = next(iter(slices.items()))
    for name, image in slices.items():
        if np.ndim(image) != 2 or np.shape(image) != np.shape(first) or np.size(image) == 0:
            raise GalipError(
                f"rows[{index}].{name}: got shape {np.shape(image)}, expected (H, W) as the {reference}'s "
                f"{np.shape(first)}"
            )
        if not np.isfinite(image).all():
            raise GalipError(f"rows[{index}].{name}: got NaN or infinite values, expected finite ones")
