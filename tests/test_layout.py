"""The package's layout: no import loops, and a model folder that stands on its own."""

from pathlib import Path

from import_graph import arrows_out_of, import_graph, loops, without

import galip_hf
from galip_hf.hub.push import code_files

PACKAGE = Path(galip_hf.__file__).parent
# transformers' API demands `model.push_to_hub`, and pushing is the hub's.
UPWARD = ("model.modeling_galip", "hub.push")


def test_no_import_loops() -> None:
    """Imports inside functions and for type checking count too."""
    graph = import_graph(PACKAGE)
    assert len(graph) > 90 and "files" in graph["training.trainer"]  # it does read the imports
    assert loops(without(graph, {UPWARD})) == []


def test_the_model_folder_stands_on_its_own() -> None:
    assert arrows_out_of(import_graph(PACKAGE), "model") == [UPWARD]


def test_the_model_folder_is_what_travels_to_the_hub() -> None:
    files = {path.name for path in (PACKAGE / "model").glob("*.py")} - {"__init__.py"}
    assert set(code_files()) == files
    assert not [
        path for path in (PACKAGE / "model").iterdir() if path.is_dir() and path.name != "__pycache__"
    ]


def test_loops_are_found(tmp_path: Path) -> None:
    """A late import and one for type checking close a loop like any other."""
    (tmp_path / "one.py").write_text("def late():\n    from . import two\n")
    (tmp_path / "two.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .three import x\n"
    )
    (tmp_path / "three.py").write_text(
        f"import importlib\nx = importlib.import_module('{tmp_path.name}.one')\n"
    )
    graph = import_graph(tmp_path)
    assert loops(graph) == [["one", "three", "two"]]
    assert loops(without(graph, {("one", "two")})) == []
