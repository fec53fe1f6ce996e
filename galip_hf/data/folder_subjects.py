"""Subjects that lie in folders of volumes and are matched by file name.

Places are compared, not arrays: every volume is brought to display order by its own affine, and a prediction
(or source) whose voxels then do not lie where the target's do is refused, or resampled on request.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..model.domains import MR_PERCENTILE
from ..model.errors import GalipError
from .file_checks import SUFFIXES, one_of_each_pair
from .grid import Grid, grid_of
from .masks import check_same_place, is_mask, mask_of, name_without_suffix, read_labels, read_mask
from .paired_subjects import Subject
from .readers import read_volume
from .volumes import Volume

# (volume, grid to sample on) -> (S, H, W) on that grid, in the volume's units
Resample = Callable[[Volume, Grid], np.ndarray]
_REMEDY = "resample one of them, or pass --resample-prediction"


class FolderSubjects(Sequence[Subject]):
    """Volumes of several folders that have one name, suffix aside: a lazy sequence of paired subjects.

    Files keep their own scale; in model space the target's 99.5th percentile is 1 for its prediction too (CT:
    the window), and the source's own is 1 for the source. The protocols do not see the common factor.

    Args:
        predictions: a folder per system.
        target: the folder of acquired volumes.
        source: the folder of the volumes that were translated, or None.
        masks: a folder of body masks of the targets' names, or None: masks that lie beside the targets and
            are named after them (`galip_hf.data.masks`) are used.
        domains: names of the source's and target's domains.
        windows: CT domain -> (HU at 0, HU at 1).
        resample: brings a prediction or source onto the target's grid; None: other grids are refused.

    Attributes:
        names: of the volumes that every folder holds, in order.
        unmatched: folder -> names that another folder lacks.
        notes: what was found while reading and belongs into the report, a sentence each.

    Raises:
        GalipError: a folder is absent, holds no volume, two of one name, or the folders share no name; when a
            subject is read: a volume lies elsewhere than its target.
    """

    def __init__(
        self,
        predictions: Sequence[str | Path],
        target: str | Path,
        source: str | Path | None,
        *,
        domains: tuple[str, str],
        windows: Mapping[str, tuple[float, float]],
        masks: str | Path | None = None,
        resample: Resample | None = None,
    ) -> None:
        self._domains, self._windows, self._resample = domains, windows, resample
        self._predictions = [volumes_in(folder) for folder in predictions]
        self._target = volumes_in(target)
        self._source = None if source is None else volumes_in(source)
        self._highest: dict[Path, float] = {}  # what is 1 in model space, of files read already
        self._grids: dict[Path, Grid] = {}  # of the targets read already
        self.notes: list[str] = []
        listed = dict(zip(map(str, predictions), self._predictions, strict=True))
        listed |= {str(target): self._target}
        listed |= {} if self._source is None else {str(source): self._source}
        shared = set.intersection(*(set(files) for files in listed.values()))
        self.names = sorted(shared)
        self.unmatched = {
            folder: sorted(set(files) - shared) for folder, files in listed.items() if set(files) - shared
        }
        if not shared:
            raise GalipError(
                f"{', '.join(listed)}: share no name; expected volumes of the same names (suffix aside)"
            )
        self._masks = self._find_masks(masks)
        self._lesions: dict[str, Path] = {}
        self._segmentations: list[dict[str, Path]] = []  # of the targets, then of each system

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Subject:  # type: ignore[override]
        name = self.names[index]
        subject = {}
        target = self._read_target(name)
        if self._source is not None:
            own = self._source[name]
            array = self._on_target(own, name)
            subject[self._domains[0]] = self._scaled(array, self._scale(own, 0, array))
        subject[self._domains[1]] = self._scaled(
            target.array, self._scale(self._target[name], 1, target.array)
        )
        return subject

    @property
    def has_sources(self) -> bool:
        """Whether the volumes that were translated are there."""
        return self._source is not None

    def prediction(self, index: int, system: int = 0) -> np.ndarray:
        """(S, H, W) float32: the prediction of one system for a subject, on the grid and scale of its target.

        Raises:
            GalipError: its voxels lie elsewhere than the target's, and nothing resamples them.
        """
        name = self.names[index]
        array = self._on_target(self._predictions[system][name], name)
        return self._scaled(array, self._scale(self._target[name], 1))

    def mask(self, index: int) -> np.ndarray | None:
        """(S, H, W) bool: the body mask given for a subject, or None."""
        name = self.names[index]
        path = self._masks.get(name)
        return None if path is None else read_mask(path, self._grid(name), self._target[name])

    def lesions(self, index: int) -> np.ndarray | None:
        """(S, H, W) bool: the lesions of a subject, None where none are given; without lesions all False."""
        path = self._lesions.get(name := self.names[index])
        if path is None:
            return None
        return read_labels(path, self._grid(name), self._target[name]) != 0

    def labels(self, index: int, system: int = 0) -> tuple[np.ndarray, np.ndarray] | None:
        """Segmentations of a system's prediction and of the target, (S, H, W) each; None where not given."""
        if not self._segmentations:
            return None
        name = self.names[index]
        found = [folder.get(name) for folder in (self._segmentations[1 + system], self._segmentations[0])]
        if None in found:
            return None
        prediction, target = (
            read_labels(path, self._grid(name), self._target[name]) for path in found if path is not None
        )
        return prediction, target

    def give_lesions(self, folder: str | Path) -> None:
        """Take the lesion masks in a folder, of the targets' names (or NAME_mask)."""
        self._lesions = self._of_targets(folder, "lesion mask")

    def give_segmentations(self, target: str | Path, predictions: Sequence[str | Path]) -> None:
        """Take label maps of the targets, and of each system, from folders with files of the same names."""
        folders = [target, *predictions]
        self._segmentations = [self._of_targets(folder, "segmentation") for folder in folders]

    def files(self, index: int) -> dict[str, Path]:
        """What a subject was read from: "prediction", "prediction 2", "target", "source", "mask"."""
        name = self.names[index]
        files = {
            "prediction" if number == 0 else f"prediction {number + 1}": found[name]
            for number, found in enumerate(self._predictions)
        }
        files["target"] = self._target[name]
        if self._source is not None:
            files["source"] = self._source[name]
        return files | ({"mask": self._masks[name]} if name in self._masks else {})

    def spacing(self, index: int) -> tuple[float, float, float]:
        """mm between slices, rows and columns of a subject's target; 1 where the file has no geometry."""
        return self._grid(self.names[index]).spacing

    def _find_masks(self, folder: str | Path | None) -> dict[str, Path]:
        if folder is not None:
            found = self._of_targets(folder, "mask")
        else:
            found = {}
            for name in self.names:
                path = self._target[name]
                if mask := mask_of(path, list(path.parent.iterdir())):
                    found[name] = mask
        if found:
            rest = len(self.names) - len(found)
            self.notes.append(
                f"Body masks were given for {len(found)} of {len(self.names)} subjects"
                + ("; those of the others were measured." if rest else ".")
            )
        return found

    def _of_targets(self, folder: str | Path, what: str) -> dict[str, Path]:
        """Files of a folder by the names of the targets that they belong to."""
        given = volumes_in(folder, masks=True)
        found = {n: path for n in self.names if (path := given.get(n) or given.get(f"{n}_mask"))}
        if not found:
            raise GalipError(
                f"{folder}: holds no {what} of {self.names[0]!r} or another target; expected volumes of the "
                "targets' names"
            )
        return found

    def _read_target(self, name: str) -> Volume:
        volume = read_volume(self._target[name])
        self._grids[self._target[name]] = grid_of(volume)
        return volume

    def _grid(self, name: str) -> Grid:
        path = self._target[name]
        if path not in self._grids:
            self._read_target(name)
        return self._grids[path]

    def _on_target(self, path: Path, name: str) -> np.ndarray:
        """A volume's array, whose voxels lie where the target's do."""
        volume, target = read_volume(path), self._grid(name)
        own = grid_of(volume)
        try:
            if (
                not check_same_place(own, path, target, self._target[name], _REMEDY)
                and own.known != target.known
            ):
                bare = path if target.known else self._target[name]
                self._note(
                    f"{bare.name}: has no geometry, so its voxels are taken to lie where the other's do."
                )
        except GalipError:
            if self._resample is None or not (own.known and target.known):
                raise
            self._note(f"{path}: resampled onto the grid of {self._target[name].name}.")
            return self._resample(volume, target)
        return volume.array

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _scale(self, path: Path, side: int, array: np.ndarray | None = None) -> tuple[float, float]:
        """What is 0 and 1 in model space for the volumes scaled like the file `path`."""
        low, high = self._windows.get(self._domains[side], (0.0, 0.0))
        if high == low:
            if path not in self._highest:
                values = read_volume(path).array if array is None else array
                self._highest[path] = float(np.percentile(values.astype(np.float64), MR_PERCENTILE))
            high = self._highest[path]
        return low, high

    def _scaled(self, array: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
        low, high = scale
        # A blank volume keeps its zeros: the evaluation counts it as excluded.
        step = high - low if high > low else 1.0
        return ((array.astype(np.float64) - low) / step).astype(np.float32)


class FolderScans:
    """Volumes of one folder, without partners: each scaled by its own 99.5th percentile, or by the HU window.

    Args:
        folder: of the volumes.
        window: HU at 0 and at 1 of model space, for CT.

    Attributes:
        names: of the volumes, suffix aside, in order.
    """

    def __init__(self, folder: str | Path, window: tuple[float, float] | None) -> None:
        self._files, self._window = volumes_in(folder), window
        self.names = sorted(self._files)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> np.ndarray:
        """(S, H, W) float32 in model space."""
        array = read_volume(self._files[name]).array.astype(np.float64)
        low, high = self._window or (0.0, float(np.percentile(array, MR_PERCENTILE)))
        if high <= low:
            raise GalipError(f"{self._files[name]}: its 99.5th percentile is {high:g}; expected a scan")
        return ((array - low) / (high - low)).astype(np.float32)

    def path(self, name: str) -> Path:
        """The file of a volume."""
        return self._files[name]

    def slices(self, count: int) -> np.ndarray:
        """(N, H, W): about `count` slices of the first size met, evenly taken from all volumes."""
        share, found = -(-count // len(self)), list[np.ndarray]()
        for name in self.names:
            volume = self[name]
            rows = np.unique(np.linspace(0, len(volume) - 1, share).astype(int))
            found += [volume[row] for row in rows if not found or volume[row].shape == found[0].shape]
        return np.stack(found)


def volumes_in(folder: str | Path, *, masks: bool = False) -> dict[str, Path]:
    """Name without suffix -> file, of every volume in a folder; files named as masks count only with `masks`.

    Raises:
        GalipError: the folder is absent, holds no volume, or two of one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GalipError(f"{folder}: no such folder; expected one of volumes ({', '.join(SUFFIXES)})")
    found: dict[str, Path] = {}
    for name, path in _named_files(folder):
        if is_mask(path) and not masks:
            continue
        if name in found:
            raise GalipError(f"{folder}: {path.name} and {found[name].name} share a name; keep one of them")
        found[name] = path
    if not found:
        raise GalipError(f"{folder}: holds no volume; expected files ending in {', '.join(SUFFIXES)}")
    return found


def _named_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in one_of_each_pair(sorted(folder.iterdir())):
        name = name_without_suffix(path)
        if name is not None and path.is_file() and not path.name.startswith("."):
            yield name, path


__all__ = ["FolderScans", "FolderSubjects", "Resample", "volumes_in"]
