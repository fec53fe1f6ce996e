"""The wheel: accepted by the tools that publish it, and usable where the repository is not."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA_FILES = (
    "galip_hf/py.typed",
    "galip_hf/hub/card_template.md",
    "galip_hf/training/starters/phantom.yaml",
    "galip_hf/web/static/niivue/LICENSES.txt",
    "galip_hf/web/static/viewer.js",
)


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is packaged: building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "galip_hf", source / "galip_hf", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_the_wheel_is_accepted_and_holds_every_file(wheel: Path) -> None:
    assert "PASSED" in run(sys.executable, "-m", "twine", "check", "--strict", wheel, cwd=wheel.parent)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert set(DATA_FILES) <= names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "galip_hf").rglob("*.py")}
    assert modules <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples"))]


def test_the_installed_wheel_translates_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", code, cwd=tmp_path).strip())
    # The dependencies come from this environment; its .pth files, and so the repository, are not followed.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    zipfile.ZipFile(wheel).extractall(packages)  # what installing a pure wheel does
    where = run(python, "-c", "import galip_hf; print(galip_hf.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(environment)
    shutil.copytree(ROOT / "examples" / "phantom_model", tmp_path / "model")
    scan = np.random.default_rng(0).random((40, 36, 3), dtype=np.float32) * 900
    nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "scan.nii.gz")
    command = ["translate", "scan.nii.gz", "--model", "model", "--force", "--from", "T1", "--to", "T2"]
    run(python, "-m", "galip_hf", *command, "--output", "t2.nii.gz", cwd=tmp_path)
    translated = nib.load(tmp_path / "t2.nii.gz")
    assert translated.shape == scan.shape and np.isfinite(translated.get_fdata()).all()
    assert "training:" in run(python, "-m", "galip_hf", "train", "--init", "phantom", cwd=tmp_path)
