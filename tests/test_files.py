"""Writing whole or not at all."""

from pathlib import Path

import pytest

from galip_hf import GalipError
from galip_hf.extras import require
from galip_hf.files import atomic_write


@pytest.mark.parametrize("existing", [False, True])
def test_a_file_appears_when_the_block_ends(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "a.txt"
    if existing:
        path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt"
        assert path.exists() == existing
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_replaces_a_full_one(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "a"
    if existing:
        path.mkdir()
        (path / "old").touch()
    with atomic_write(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    (tmp_path / "b").mkdir()
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode  # the user's permissions


def test_an_error_leaves_all_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_missing_package_prints_the_line_that_installs_it() -> None:
    assert require("json", "dicom").dumps([]) == "[]"
    with pytest.raises(GalipError, match=r"pip install 'galip-hf\[dicom\]'"):
        require("no_such_module", "dicom")
