"""The three data sets of the benchmark, each a table of slices with the splits `train` and `test`.

In `train` each contrast of the phantom and of BrainWeb has anatomies of its own, so that nothing is paired;
in `test` each anatomy has all contrasts. Of the open_ms heads, all contrasts of a person are in `train`;
`UnpairedSlices` never couples two slices of one subject there. All seeds are fixed.
"""

import csv
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.brainweb import Sampling, read_fractions, simulate
from galip_hf import GalipError
from galip_hf.cli import main as galip_hf
from galip_hf.data import phantom
from galip_hf.data.normalization import normalize_scan
from galip_hf.data.phantom_table import PhantomRecipe, phantom_subject_seed, phantom_volumes
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.model.domains import IXI_DOMAINS
from galip_hf.model.intensity import IntensityNormalizer

SEED = 0
PHANTOM = PhantomRecipe(train_subjects=150, validation_subjects=0, size=64, slices=12)
PHANTOM_TEST_SUBJECTS = 6
BRAINWEB_TEST_ANATOMIES = 3
BRAINWEB_TEST_STEP = 3  # of the test anatomies, every third slice is scored: neighbours are alike

# The heads of the open_ms longitudinal set (Lesjak et al., Neuroinformatics 2016), by person and date.
OPEN_MS_TRAIN = ("MSl01s1", "MSl01s2", "MSl12s1", "MSl12s2", "MSl19s2", "MSl20s2")
OPEN_MS_TEST = ("MSl03s1",)  # it has no T1; the T1 of MSl03s2 is rotated against its other contrasts
OPEN_MS_DOMAINS = ("T1", "T2", "FLAIR")


@dataclass(frozen=True)
class DataSet:
    """One of the benchmark's data sets.

    Attributes:
        image_size: side of the slices, pixels.
        domains: as in `GalipConfig`.
        write: (where the raw data lies or None, folder of the table): writes the table.
        needs: what `--source` must name; None where nothing is needed.
    """

    image_size: int
    domains: list[dict[str, Any]]
    write: Callable[[Path | None, Path], None]
    needs: str | None = None


def write_phantom(source: Path | None, table: Path, recipe: PhantomRecipe = PHANTOM) -> None:
    """The procedural phantom as the recipe `phantom` has it, and test subjects that show all contrasts."""
    normalizer = IntensityNormalizer(list(IXI_DOMAINS))

    def volumes() -> Iterator[SubjectVolume]:
        yield from phantom_volumes(recipe, normalizer, SEED)
        for index in range(PHANTOM_TEST_SUBJECTS):
            seed = phantom_subject_seed("test", index, SEED)
            subject = phantom.make_subject(seed, size=recipe.size, slices=recipe.slices)
            for contrast in phantom.CONTRASTS:
                array = normalized(normalizer, phantom.render(subject, contrast), contrast)
                pixel = phantom.FIELD_OF_VIEW / recipe.size
                yield SubjectVolume(
                    array, contrast, f"phantom-{seed}", "test", plane="axial", pixel_size=(pixel, pixel)
                )

    write_table(volumes(), table, domains=phantom.CONTRASTS, image_size=None)


def write_brainweb(source: Path | None, table: Path, sampling: Sampling | None = None) -> None:
    """BrainWeb's anatomies simulated in T1, T2 and PD; the last three, by name, are kept for the test.

    Raises:
        GalipError: fewer label maps than one for each contrast and the test anatomies.
    """
    sampling = sampling or Sampling()
    paths = sorted((source or Path()).glob("*.nii*"))
    if len(paths) < len(phantom.CONTRASTS) + BRAINWEB_TEST_ANATOMIES:
        raise GalipError(
            f"{source}: found {len(paths)} label maps (.nii, .nii.gz); expected at least "
            f"{len(phantom.CONTRASTS) + BRAINWEB_TEST_ANATOMIES}"
        )
    normalizer = IntensityNormalizer(list(IXI_DOMAINS))
    training, test = paths[:-BRAINWEB_TEST_ANATOMIES], paths[-BRAINWEB_TEST_ANATOMIES:]

    def volumes() -> Iterator[SubjectVolume]:
        for number, path in enumerate(paths):
            fractions = read_fractions(path, sampling)
            is_test = path in test
            own = phantom.CONTRASTS if is_test else [phantom.CONTRASTS[number % len(phantom.CONTRASTS)]]
            for contrast in own:
                array = normalized(normalizer, simulate(fractions, contrast, (SEED, number)), contrast)
                yield SubjectVolume(
                    array[::BRAINWEB_TEST_STEP] if is_test else array,
                    contrast,
                    path.name.split("_")[0].split(".")[0],
                    "test" if is_test else "train",
                    plane="axial",
                    pixel_size=(sampling.pixel, sampling.pixel),
                )

    assert training  # each contrast has at least one anatomy, see above
    write_table(volumes(), table, domains=phantom.CONTRASTS, image_size=None)


def write_open_ms(source: Path | None, table: Path) -> None:
    """The open_ms heads, prepared by `galip-hf prepare manifest` from folders MSl../MSl.._CONTRAST.nii.gz."""
    source = source or Path()
    rows = []
    for split, subjects in (("train", OPEN_MS_TRAIN), ("test", OPEN_MS_TEST)):
        for subject in subjects:
            for domain in OPEN_MS_DOMAINS:
                path = source.resolve() / subject / f"{subject}_{domain}.nii.gz"
                if path.is_file():
                    rows.append((path, domain, subject, split, subject[:5]))
    if not rows:
        raise GalipError(f"{source}: no head such as MSl01s1/MSl01s1_T1.nii.gz; expected the open_ms heads")
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.csv"
        with manifest.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "domain", "subject", "split", "group"))
            writer.writerows(rows)
        arguments = ["prepare", "manifest", str(manifest), "--output", str(table), "--image-size", "128"]
        options = ["--domains", ",".join(OPEN_MS_DOMAINS), "--slices", "all", "--workers", "1"]
        if galip_hf([*arguments, *options]) != 0:
            raise GalipError(f"{source}: galip-hf prepare failed; its message says why")


def normalized(normalizer: IntensityNormalizer, array: np.ndarray, domain: str) -> np.ndarray:
    """(S, H, W) float32 of a scan in model space."""
    return np.asarray(normalize_scan(normalizer, array, domain).pixel_values[:, 0])


def _mr_domain(name: str, prompt: str) -> dict[str, Any]:
    rule = {"rule": "percentile", "lower": 0.0, "upper": 99.5}
    return {"name": name, "prompt": prompt, "modality": "MR", "intensity": rule}


DATA_SETS = {
    "phantom": DataSet(PHANTOM.size, [dict(domain) for domain in IXI_DOMAINS], write_phantom),
    "brainweb": DataSet(
        Sampling().size,
        [dict(domain) for domain in IXI_DOMAINS],
        write_brainweb,
        needs="the folder of BrainWeb's label maps",
    ),
    "open_ms": DataSet(
        128,
        [_mr_domain(name, f"this MRI is {name}-weighted") for name in OPEN_MS_DOMAINS],
        write_open_ms,
        needs="the folder of the open_ms heads",
    ),
}
