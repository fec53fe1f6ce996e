"""Mutated files: a volume or one line, never a traceback, a hang or half an output. `fuzz_files.py` has the
long run."""

from pathlib import Path

import pytest
from fuzz_files import run, valid_files

SEEDS = range(80)
SEEDS_IN_CHILD = range(8)  # of the formats decoded in a child process, whose start takes a quarter second
IN_CHILD = (".mat", ".mha", ".nrrd", ".tif", "jpeg.dcm", "j2k.dcm", "rle.dcm")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return valid_files(tmp_path_factory.mktemp("valid"))


@pytest.mark.filterwarnings("ignore")
def test_mutants(files: dict[str, Path], tmp_path: Path) -> None:
    plain = {name: path for name, path in files.items() if not name.endswith(IN_CHILD)}
    in_child = {name: path for name, path in files.items() if name.endswith(IN_CHILD)}
    counts = run(plain, tmp_path, SEEDS, lambda name, seed: None)
    counts += run(in_child, tmp_path, SEEDS_IN_CHILD, lambda name, seed: None)
    assert sum(counts.values()) == len(plain) * len(SEEDS) + len(in_child) * len(SEEDS_IN_CHILD)
    for name in ("a.nii", "b.nii.gz", "a.mgz", "a.npy", "native.dcm"):
        assert counts[name, "volume"] and counts[name, "refused"]  # the mutations are neither mild nor wild


def test_a_decoder_that_crashes_is_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    """Mutant 81 of the JPEG file made GDCM abort the process when it was found."""
    run({"jpeg.dcm": files["jpeg.dcm"]}, tmp_path, range(81, 82), lambda name, seed: None)
