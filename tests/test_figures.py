"""Figures: the file written, its pixel size, what its panels show, and refusals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from galip_hf.figures import DPI, FigureRow, save_loss_curves, save_montage, save_translation_figure
from galip_hf.model.errors import GalipError


def make_row(target: bool = True, shape: tuple[int, int] = (32, 32), error: float = 0.1) -> FigureRow:
    image = np.full(shape, 0.25, dtype=np.float32)
    return FigureRow("subject 3 · T1→T2", image, image + error, image if target else None, "T1", "T2")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_translation_figure_size_follows_rows_and_columns(tmp_path: Path) -> None:
    one = pixels(save_translation_figure([make_row()], tmp_path / "one.png"))
    two = pixels(save_translation_figure([make_row(), make_row()], tmp_path / "two.png"))
    flat = pixels(save_translation_figure([make_row(shape=(16, 32))], tmp_path / "flat.png"))
    unpaired = pixels(save_translation_figure([make_row(target=False)], tmp_path / "new" / "unpaired.png"))
    titled = pixels(save_translation_figure([make_row()], tmp_path / "titled.png", title="Validation"))
    panel = 2.1 * DPI
    assert one.shape[1] == two.shape[1] == pytest.approx(0.56 * DPI + 4 * panel + 0.3 * DPI, abs=1)
    assert unpaired.shape[1] == pytest.approx(one.shape[1] - 2 * panel - 0.2 * DPI, abs=1)
    assert two.shape[0] - one.shape[0] == pytest.approx(panel + 0.37 * DPI, abs=1)
    assert one.shape[0] - flat.shape[0] == pytest.approx(panel / 2, abs=1)
    assert titled.shape[0] > one.shape[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "flat.png",
        "new",
        "one.png",
        "titled.png",
        "two.png",
    ]


def test_translation_figure_uses_fixed_scales(tmp_path: Path) -> None:
    """A constant panel has the colour of its value, whatever else is in the picture."""
    image = pixels(save_translation_figure([make_row(error=0.5)], tmp_path / "row.png"))
    middle = int((0.12 + 0.27 + 1.05) * DPI)
    centres = [int((0.44 + 1.05 + column * 2.2) * DPI) for column in range(4)]
    source, translation, target, difference = (image[middle, centre] for centre in centres)
    np.testing.assert_allclose(source, [64] * 3, atol=1)
    np.testing.assert_allclose(translation, [191] * 3, atol=1)
    np.testing.assert_allclose(target, source)
    np.testing.assert_allclose(difference, [252, 253, 191], atol=1)  # the top of magma, at 0.5


def test_no_text_reaches_the_border(tmp_path: Path) -> None:
    long = FigureRow(
        "sub-CC00507XX09 run 2 · FLAIR→T1 contrast-enhanced", *[np.ones((24, 32))] * 3, "FLAIR" * 9, "T1" * 30
    )
    path = save_translation_figure([long, make_row(target=False)], tmp_path / "long.png", title="worst " * 40)
    image = pixels(path)
    for border in (image[:4], image[-4:], image[:, :4], image[:, -4:]):
        assert border.min() == 255


def test_montage_is_a_near_square_grid(tmp_path: Path) -> None:
    slices = np.linspace(0, 1, 5)[:, None, None] * np.ones((5, 20, 20))
    image = pixels(save_montage(slices, tmp_path / "montage.png"))
    assert image.shape[:2] == (round((0.24 + 2 * 2.1 + 0.1) * DPI), round((0.24 + 3 * 2.1 + 0.2) * DPI))
    centre_of_last = image[int((0.12 + 2.2 + 1.05) * DPI), int((0.12 + 2.2 + 1.05) * DPI)]
    np.testing.assert_array_equal(centre_of_last, [255] * 3)
    np.testing.assert_array_equal(image[int(1.17 * DPI), int(1.17 * DPI)], [0] * 3)
    labelled = save_montage(slices, tmp_path / "labelled.png", titles=list("abcde"), title="Subject 3")
    assert pixels(labelled).shape[0] > image.shape[0]


def test_loss_curves_have_a_panel_per_quantity(tmp_path: Path) -> None:
    history = [{"step": k, "loss_cycle": 1 / (k + 1), "loss_clip": 0.3, "note": "text"} for k in range(100)]
    history[3]["loss_clip"] = float("nan")
    two = pixels(save_loss_curves(history, tmp_path / "two.png"))
    four = pixels(save_loss_curves([{**e, "a": 1, "b": e["step"]} for e in history], tmp_path / "four.png"))
    assert two.shape[1] == round((2 * 3.1 + 0.2) * DPI)
    assert four.shape[1] == round((3 * 3.1 + 0.2) * DPI) and four.shape[0] > 1.8 * two.shape[0]


def test_bad_input_is_refused_and_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    with pytest.raises(GalipError, match="rows: got none"):
        save_translation_figure([], path)
    row = make_row()
    with pytest.raises(GalipError, match=r"rows\[1\].translation: got shape \(16, 32\)"):
        save_translation_figure([row, FigureRow("x", row.source, row.source[:16], None, "T1", "T2")], path)
    with pytest.raises(GalipError, match=r"rows\[0\].target: got NaN"):
        save_translation_figure([FigureRow("x", row.source, row.source, row.source * np.nan, "a", "b")], path)
    with pytest.raises(GalipError, match=r"ending in \.png"):
        save_translation_figure([row], tmp_path / "figure.jpg")
    with pytest.raises(GalipError, match="slices: got shape"):
        save_montage(row.source, path)
    with pytest.raises(GalipError, match="titles: got 1, expected 2"):
        save_montage(np.zeros((2, 8, 8)), path, titles=["only one"])
    for history in ([], [{"step": 1, "loss": float("nan")}], [{"loss": 1.0}]):
        with pytest.raises(GalipError, match="history: got no entry"):
            save_loss_curves(history, path)
    assert list(tmp_path.iterdir()) == []
