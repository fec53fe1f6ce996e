"""One scan in one target domain: its values, what is known about how far to believe them, and its files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_report
from ..model.errors import GalipError
from ..version import DISCLAIMER, __version__

if TYPE_CHECKING:
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


def _split_suffix(path: Path) -> tuple[str, str]:
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    return path.name[: len(path.name) - len(suffix)], suffix


def report_path(path: Path) -> Path:
    """Where the report of the scan at `path` lies."""
    return path.with_name(f"{_split_suffix(path)[0]}.json")


def cycle_path(path: Path) -> Path:
    """Where the cycle map of the scan at `path` lies."""
    stem, suffix = _split_suffix(path)
    return path.with_name(f"{stem}_cycle{suffix}")


def save_translations(
    translations: Sequence[Translation], path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write what came of one scan: of a 4-D NIfTI all volumes, in one file again.

    Beside the scan come its report as `NAME.json` (of several volumes their list, as `volumes`) and the cycle
    map, if there is one, as `NAME_cycle`. The scan comes last: when it is there, the rest is whole.

    Raises:
        GalipError: as `write_scan`; also an existing file.
    """
    from ..data.scans import write_scan
    from ..data.writers import check_output_path

    path = check_output_path(Path(path), overwrite=overwrite)
    _write_reports(translations, path, overwrite)
    cycles = [
        translation.source_volume.with_array(translation.cycle_map, own_scale=True)
        for translation in translations
        if translation.cycle_map is not None
    ]
    if cycles:
        write_scan(cycles, cycle_path(path), overwrite=overwrite)
    return write_scan([translation.volume for translation in translations], path, overwrite=overwrite)


def save_dicom(
    translation: Translation,
    folder: str | os.PathLike[str],
    *,
    keep_patient_tags: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a translation of a DICOM series as a derived series, and its report as `NAME.json` beside.

    Raises:
        GalipError: as `write_dicom_series`; also an existing report.
    """
    from ..data.scans import write_dicom_series

    folder, report = Path(folder), translation.report
    _write_reports([translation], folder, overwrite)
    return write_dicom_series(
        translation.volume,
        folder,
        description=f"{report['source']} to {report['target']} by {report['model']}, galip_hf {__version__}",
        modality=report["target_modality"],
        keep_patient_tags=keep_patient_tags,
        overwrite=overwrite,
    )


def _write_reports(translations: Sequence[Translation], path: Path, overwrite: bool) -> None:
    if report_path(path).exists() and not overwrite:
        raise GalipError(
            f"{report_path(path)}: already exists; choose another name or allow overwriting (--overwrite)"
        )
    reports = [translation.report for translation in translations]
    write_report(reports[0] if len(reports) == 1 else {"volumes": reports}, report_path(path))


__all__ = [
    "Translation",
    "cycle_path",
    "report_path",
    "save_dicom",
    "save_translations",
]
