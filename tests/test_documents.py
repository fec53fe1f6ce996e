"""The documents about the code name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATHS = re.compile(r"(?:galip_hf|tests|benchmarks|docs|examples)/[\w./-]*\w(?:\.\w+)?")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_path_exists(name: str) -> None:
    named = set(PATHS.findall((ROOT / name).read_text(encoding="utf-8")))
    assert len(named) > 10
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_every_module_named_by_the_documents_exists() -> None:
    """`galip_hf.a.b` in text and code of README and docs is a module, or a name in one."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for dotted in re.findall(r"galip_hf((?:\.\w+)+)", path.read_text(encoding="utf-8")):
            parts = dotted.strip(".").split(".")
            found = any(
                (ROOT / "galip_hf" / Path(*parts[:end])).with_suffix(".py").is_file()
                or (ROOT / "galip_hf" / Path(*parts[:end])).is_dir()
                for end in range(len(parts), 0, -1)
            )
            assert found, f"{path.name}: galip_hf{dotted}"
