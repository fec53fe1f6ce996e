"""What the package and the command line import, and when. No timing: module names only."""

import gc
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import galip_hf
from galip_hf.commands.startup import collector_paused

HEAVY = (
    "numpy scipy torch torchvision transformers huggingface_hub datasets nibabel h5py PIL skimage matplotlib"
)
# Not among them: pydicom, which nibabel imports where it is installed.
UNUSED_BY_TRANSLATE = (
    "torchvision accelerate torch._dynamo torch.distributed.tensor sympy transformers.modeling_utils "
    "transformers.image_processing_utils "
    "open_clip timm datasets pandas pyarrow sklearn matplotlib SimpleITK scipy.stats "
    "galip_hf.clip.backbone galip_hf.evaluation.evaluate galip_hf.training.trainer galip_hf.figures"
)
AFTER = "\nimport sys; print([name for name in {names!r}.split() if name in sys.modules])"


def in_a_process(code: str, *arguments: object) -> tuple[int, str, str]:
    """Exit code, the last line of stdout, and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    return done.returncode, (done.stdout.splitlines() or [""])[-1], done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["translate", "--help"], 0),
        (["evaluate", "--no-such-option"], 2),
        (["no-such-command"], 2),
        (["translate", "x.nii", "--model", "m", "--to", "T2", "--output", "y.nii", "--batch-size", "0"], 2),
    ],
)
def test_help_and_mistakes_in_arguments_import_nothing_heavy(arguments: list[str], code: int) -> None:
    program = (
        "import sys\nfrom galip_hf.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code\n"
        f"print([name for name in {HEAVY!r}.split() if name in sys.modules])\nsys.exit(code)"
    )
    found, modules, errors = in_a_process(program, *arguments)
    assert (found, modules) == (code, "[]"), errors


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert in_a_process("import galip_hf" + AFTER.format(names=HEAVY))[:2] == (0, "[]")


def test_a_translation_imports_only_what_it_uses(model_directory: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).random((1, 16, 16), dtype=np.float32))
    program = "import sys\nfrom galip_hf.cli import main\ncode = main(sys.argv[1:])"
    arguments = [tmp_path / "scan.npy", "--model", model_directory, "--from", "T1", "--to", "T2"]
    found, modules, errors = in_a_process(
        program + AFTER.format(names=UNUSED_BY_TRANSLATE) + "\nsys.exit(code)",
        *["translate", *arguments, "--output", tmp_path / "out.npy"],
    )
    assert (found, modules) == (0, "[]"), errors
    assert (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    "imports",
    [
        "import galip_hf\nfrom transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage",
        "from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage\nimport galip_hf",
        # The model's module imports, halfway through, transformers' module of Auto classes.
        "from galip_hf import GalipForImageTranslation\n"
        "from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage",
        # So does one that the model's module imports.
        "import galip_hf.model.unet_blocks\n"
        "from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage",
        "import transformers, galip_hf\nfrom transformers import AutoConfig\n"
        "from galip_hf import GalipPipeline\n"
        "from transformers import AutoImageProcessor, AutoModelForImageToImage",
    ],
    ids=["ours first", "theirs first", "a class of ours first", "a part of it first", "mixed"],
)
def test_the_auto_classes_know_ours_in_every_order_of_imports(imports: str, model_directory: Path) -> None:
    program = (
        f"{imports}\nimport sys\n"
        "autos = AutoConfig, AutoImageProcessor, AutoModelForImageToImage\n"
        "print(*(type(auto.from_pretrained(sys.argv[1])).__name__ for auto in autos))"
    )
    found, names, errors = in_a_process(program, model_directory)
    assert (found, names) == (0, "GalipConfig GalipImageProcessor GalipForImageTranslation"), errors


def test_the_names_of_the_package() -> None:
    assert set(galip_hf.__all__) <= set(dir(galip_hf))
    for name in galip_hf.__all__:
        assert getattr(galip_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'GalipNothing'"):
        galip_hf.GalipNothing  # noqa: B018
    with pytest.raises(ImportError, match="GalipNothing"):
        from galip_hf import GalipNothing  # noqa: F401


def test_the_collector_is_paused_in_the_block_alone_and_leaves_its_objects_be() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ZeroDivisionError), collector_paused():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]  # type: list[list[int]]
        1 / 0  # noqa: B018
    assert gc.isenabled() and gc.get_freeze_count() >= before + len(kept)
    gc.unfreeze()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")
def test_freed_memory_is_kept() -> None:
    """In a process of its own: the pages of a block that was freed are there again without new faults."""
    program = (
        "import numpy, resource\nfrom galip_hf.commands.startup import keep_freed_memory\n{call}\n"
        "def faults():\n    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "numpy.ones(8_000_000)\nbefore = faults()\nnumpy.ones(8_000_000)\nprint(faults() - before)"
    )
    usual, kept = (int(in_a_process(program.format(call=call))[1]) for call in ("", "keep_freed_memory()"))
    assert usual > 100 > 2 * kept, (usual, kept)  # 64 MB are 15,625 pages of 4 kB, or 32 of 2 MB
