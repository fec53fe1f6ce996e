"""Every command of docs/prepare.md as it stands there, on tiny data laid out as each data set is."""

import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import smooth_volume

from galip_hf.cli import main
from galip_hf.data.volumes import Volume
from galip_hf.data.writers import write_volume

pytest.importorskip("SimpleITK", reason="pip install 'galip-hf[prepare]'")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "prepare.md"
CUT_SHORT = ("--image-size", "16", "--workers", "1", "--register", "header")  # registration has its own tests


def write(path: Path, seed: int, scale: float = 1000.0, lowest: float = 0.0) -> None:
    """A scan of 4 slices of 16 x 16, of which no two are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = smooth_volume(seed) * scale + lowest
    if path.suffix == ".mat":
        write_volume(Volume.from_array(array), path)
        return
    nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([-2.5, -2.5, 5.0, 1.0])).to_filename(path)


def write_data_sets() -> None:
    """All that the page names, in the working directory."""
    for number in range(40):
        for label, name in enumerate(("T1", "T2", "PD")):
            write(Path(f"IXI/IXI-{name}/IXI{number:03d}-Guys-{number:04d}-{name}.nii.gz"), 3 * number + label)
    for number in range(14):
        patient = Path(f"ATLAS/{number // 7 + 1}_{number % 7 + 1:02d}_P")
        write(patient / "ct.nii.gz", 200 + number, 2000.0, -1000.0)
        for label, name in enumerate(("T1", "T2")):
            write(patient / f"mr_{name}.nii.gz", 220 + 2 * number + label)
    for number, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(("T1", "T2")):
            write(Path(f"MAT/data_{split}_{name}.mat"), 260 + 2 * number + label)
    rows = []
    for number in range(10):
        subject = f"BraTS2021_{number:05d}"
        for label, name in enumerate(("t1", "t1ce", "t2", "flair")):
            path = Path("BRATS", subject, f"{subject}_{name}.nii.gz")
            write(path, 280 + 4 * number + label)
            if name in ("t1", "t2"):
                rows.append(f"{path},{name.upper()},{subject}")
                folder = Path("DIR", name.upper())
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / f"{subject}.nii.gz")
    Path("scans.csv").write_text("\n".join(["path,domain,subject", *rows, ""]), encoding="utf-8")


def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_data_sets()
    (block,) = re.findall(r"```bash\n(galip-hf prepare.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    printed = {}
    for command in block.splitlines():
        _, *arguments = shlex.split(command, comments=True)
        if arguments[0] == "prepare":
            shutil.rmtree("TABLE", ignore_errors=True)
            arguments += CUT_SHORT
        assert main(arguments) == 0, command
        printed[arguments[0] if arguments[0] == "inspect" else arguments[1]] = capsys.readouterr().out
    expected = {
        "ixi": (25, 5, 10), "gold-atlas": (9, 1, 4), "syndiff": (1, 1, 1), "brats": (7, 1, 2),
        "manifest": (7, 1, 2), "folders": (7, 1, 2), "inspect": (7, 1, 2),
    }  # fmt: skip
    assert list(printed) == list(expected)
    for source, counts in expected.items():
        for split, count in zip(("train", "validation", "test"), counts, strict=True):
            assert f"{split}: {count} subjects" in printed[source], (source, printed[source])
    assert "window -1000..1000" in printed["gold-atlas"]
    assert Path("TABLE.png").stat().st_size > 10_000  # the montage
