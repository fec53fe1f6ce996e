"""One scan in one target domain: its values, what is known about how far to believe them, and its files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.own_outputs import cycle_path, figure_path, report_path
from ..files import write_report
from ..model.errors import GalipError
from ..version import DISCLAIMER, __version__

if TYPE_CHECKING:
    from ..data.pictures import GreyScale
    from ..data.volumes import Volume


@dataclass(frozen=True, eq=False)
class Translation:
    """One scan in one target domain.

    Attributes:
        volume: the translation on the input's grid, in the target's units: HU for a CT window, [0, 1] for
            the rule "none", the input's own scale for MR.
        source_volume: the input.
        report: what `report.json` holds: domains, intensity rule and window, trust measures, warnings, model,
            settings and version.
        cycle_map: |input translated there and back - input|, in the input's units, (S, H, W); None when it
            was not asked for.
    """

    volume: "Volume"
    source_volume: "Volume"
    report: dict[str, Any]
    cycle_map: np.ndarray | None = field(default=None, repr=False)

    @property
    def array(self) -> np.ndarray:
        """The translation in the axis order and shape of the input, float32, in the target's units."""
        return self.volume.to_source_array()

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the translation, a sentence each; empty does not mean that it is right."""
        return self.report["warnings"]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the scan, its report and its cycle map: `save_translations`."""
        return save_translations([self], path, overwrite=overwrite)

    def save_figure(self, path: str | os.PathLike[str]) -> Path:
        """A PNG of three slices, a quarter, half and three quarters up: the input, and the translation."""
        from ..figures import FigureRow, save_translation_figure

        window, source_window = self.report["window"], self.report["source_window"]
        count = len(self.volume.array)
        rows = []
        for number in sorted({round(share * (count - 1)) for share in (0.25, 0.5, 0.75)}):
            source = _shown(self.source_volume.array[number], source_window)
            translation = _shown(self.volume.array[number], window)
            rows.append(
                FigureRow(
                    f"slice {number}", source, translation, None, self.report["source"], self.report["target"]
                )
            )
        title = f"{self.report['source']} → {self.report['target']}, {DISCLAIMER}"
        return save_translation_figure(rows, path, title=title)


def _shown(image: np.ndarray, window: Sequence[float]) -> np.ndarray:
    return np.clip((image - window[0]) / (window[1] - window[0]), 0, 1)


def outputs_of(
    path: str | os.PathLike[str], *, cycle: bool = False, figure: bool = False
) -> tuple[Path, list[Path]]:
    """The scan at `path` as a Path, and every file (or DICOM folder) that is written for it, itself included.

    Args:
        cycle: whether a cycle map is written.
        figure: whether a picture is written.
    """
    from ..data.file_checks import has_suffix
    from ..data.writers import files_of

    scan = Path(path)
    outputs = [report_path(scan)]
    if cycle and has_suffix(scan):  # of DICOM no map is written
        outputs += files_of(cycle_path(scan))
    if figure:
        outputs.append(figure_path(scan))
    return scan, [*outputs, *(files_of(scan) if has_suffix(scan) else [scan])]


def save_translations(
    translations: Sequence[Translation],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    figure: bool = False,
) -> Path:
    """Write what came of one scan: of a 4-D series all volumes, in one file again.

    Beside the scan come its report as `NAME.json` (of several volumes their list, as `volumes`), the cycle
    map, if there is one, as `NAME_cycle`, and the picture `NAME_figure.png`. They appear together or not at
    all. A picture format of whole numbers (PNG, or TIFF where the source was one) stores the translation's
    window over its whole scale; the report says so as `stored_scale`, with the number of voxels clipped.

    Args:
        figure: whether to write the picture, of the first volume.

    Raises:
        GalipError: as `write_scan`; also an existing file, and volumes that the format cannot hold.
    """
    from ..data.writers import check_output_path, check_series, encode, written_whole

    path = check_output_path(Path(path), overwrite=overwrite)
    cycle = any(translation.cycle_map is not None for translation in translations)
    path, outputs = outputs_of(path, cycle=cycle, figure=figure)
    _check_absent(outputs, overwrite)
    volumes = [translation.volume for translation in translations]
    check_series(volumes, path)
    with written_whole(path) as folder:
        _write_sidecars(translations, path, folder, figure)
        if cycle:
            maps = [
                one.source_volume.with_array(one.cycle_map, own_scale=True)
                for one in translations
                if one.cycle_map is not None
            ]
            target = cycle_path(path)
            encode(maps, folder / target.name, target, _cycle_window(translations[0]))
        encode(volumes, folder / path.name, path, _window(translations[0]))
    return path


def save_dicom(
    translation: Translation,
    folder: str | os.PathLike[str],
    *,
    keep_patient_tags: bool = False,
    overwrite: bool = False,
    figure: bool = False,
) -> Path:
    """Write a translation of a DICOM series as a derived series, its report as `NAME.json` beside, and the
    picture `NAME_figure.png` if `figure` says so; all together or not at all.

    Raises:
        GalipError: as `write_dicom_series`; also an existing report.
    """
    from ..data.dicom_writer import check_output_folder
    from ..data.scans import write_dicom_series
    from ..data.writers import written_whole

    path, outputs = outputs_of(check_output_folder(Path(folder), overwrite), figure=figure)
    _check_absent(outputs, overwrite)
    report = translation.report
    with written_whole(path) as temporary:
        _write_sidecars([translation], path, temporary, figure)
        try:
            write_dicom_series(
                translation.volume,
                temporary / path.name,
                description=f"{report['source']} to {report['target']} by {report['model']}, "
                f"galip_hf {__version__}",
                modality=report["target_modality"],
                keep_patient_tags=keep_patient_tags,
            )
        except GalipError as error:  # it names the place where the series was prepared
            raise GalipError(str(error).replace(str(temporary / path.name), str(path))) from None
    return path


def _check_absent(outputs: Sequence[Path], overwrite: bool) -> None:
    for path in outputs:
        if path.exists() and not overwrite:
            raise GalipError(
                f"{path}: already exists; choose another name or allow overwriting (--overwrite)"
            )


def _write_sidecars(translations: Sequence[Translation], path: Path, folder: Path, figure: bool) -> None:
    """Write the report and the picture of the scan that is to become `path` into `folder`."""
    reports = [_report_of_file(translation, path) for translation in translations]
    joined = reports[0] if len(reports) == 1 else {"volumes": reports}
    write_report({"output": path.name, **joined}, folder / report_path(path).name)
    if figure:
        translations[0].save_figure(folder / figure_path(path).name)


def _report_of_file(translation: Translation, path: Path) -> dict[str, Any]:
    """The report with what is said of one file: how it stores the values, where not as they are."""
    from ..data.file_checks import has_suffix
    from ..data.writers import grey_scale

    report = dict(translation.report)
    scale = grey_scale(translation.volume, path, _window(translation)) if has_suffix(path) else None
    if scale is None:
        return report
    report["stored_scale"] = _stored(scale, translation.volume.array)
    if translation.cycle_map is not None:
        of_map = grey_scale(translation.volume, path, _cycle_window(translation))
        assert of_map is not None
        report["cycle_map_stored_scale"] = _stored(of_map, translation.cycle_map)
    return report


def _stored(scale: "GreyScale", array: np.ndarray) -> dict[str, Any]:
    stored = {"0": scale.lower, str(scale.largest): scale.upper}
    return {"grey_values": stored, "clipped_voxels": scale.clipped(array), "voxels": int(array.size)}


def _window(translation: Translation) -> tuple[float, float]:
    lower, upper = translation.report["window"]
    return float(lower), float(upper)


def _cycle_window(translation: Translation) -> tuple[float, float]:
    """Of a difference in the source's units: from none to the width of the source's window."""
    lower, upper = translation.report["source_window"]
    return 0.0, float(upper) - float(lower)


__all__ = [
    "Translation",
    "cycle_path",
    "figure_path",
    "outputs_of",
    "report_path",
    "save_dicom",
    "save_translations",
]
