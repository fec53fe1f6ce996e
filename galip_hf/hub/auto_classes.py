"""Registers our classes with transformers' Auto classes, without importing transformers before it is needed.

To register, both sides must be imported: transformers' Auto class and ours. Plain registration at the import
of galip_hf would take 5.6 s of processor time instead of 0.04 s, and nearly double the start-up of
`galip-hf translate`, which needs no model class of transformers (6.1 s instead of 3.2 s; medians of 5, two
cores). So a class is registered when its Auto class is imported: at once if that was before galip_hf, else by
a finder on `sys.meta_path` that delegates the import and registers afterwards.

Some modules of transformers that ours import do themselves import the Auto classes. Registration is then
deferred until our module has finished importing.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, NoReturn

from ..model.errors import GalipError


class _NotForAutoModel:
    """Stands for our model in `AutoModel`, whose own message would list every class of transformers."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """GalipError, which names the class to use."""
        raise GalipError(
            "AutoModel is for models without a task, and this one translates images; use "
            "AutoModelForImageToImage or galip_hf.GalipForImageTranslation"
        )

    _from_config = from_pretrained


def _register_config(auto: Any, ours: Any) -> None:
    auto.AutoConfig.register("galip", ours.GalipConfig, exist_ok=True)


def _register_model(auto: Any, ours: Any) -> None:
    auto.AutoModelForImageToImage.register(ours.GalipConfig, ours.GalipForImageTranslation, exist_ok=True)
    auto.AutoModel.register(ours.GalipConfig, _NotForAutoModel, exist_ok=True)


def _register_image_processor(auto: Any, ours: Any) -> None:
    auto.AutoImageProcessor.register(
        ours.GalipConfig, image_processor_classes={"torchvision": ours.GalipImageProcessor}, exist_ok=True
    )


# Module of the Auto class, module of our class, what brings them together.
_REGISTRATIONS: list[tuple[str, str, Callable[[Any, Any], None]]] = [
    ("transformers.models.auto.configuration_auto", "galip_hf.model.configuration_galip", _register_config),
    ("transformers.models.auto.modeling_auto", "galip_hf.model.modeling_galip", _register_model),
    (
        "transformers.models.auto.image_processing_auto",
        "galip_hf.model.image_processing_galip",
        _register_image_processor,
    ),
]
_AUTO = {auto for auto, _, _ in _REGISTRATIONS}


class _RegisterAfterImport(MetaPathFinder):
    def __init__(self) -> None:
        self._imported = _AUTO & set(sys.modules)
        self._pending = list(_REGISTRATIONS)
        self._importing = 0  # modules of ours whose import has begun and not finished

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        is_ours = fullname.startswith(f"{__package__}.")
        if not is_ours and fullname not in _AUTO:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            self._importing += is_ours
            try:
                execute(module)
            finally:
                self._importing -= is_ours
            self._imported.add(fullname)
            self.register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec

    def register(self) -> None:
        """Register with every Auto class that is imported, unless a module of ours is being imported."""
        for registration in list(self._pending):
            auto, ours, register = registration
            if self._importing or auto not in self._imported:
                continue
            module = importlib.import_module(ours)  # which may register it on the way
            if registration in self._pending:
                self._pending.remove(registration)
                register(sys.modules[auto], module)


def register_with_transformers() -> None:
    """Register with the Auto classes that are imported, and with each other one when it is imported."""
    finder = _RegisterAfterImport()
    sys.meta_path.insert(0, finder)
    finder.register()


__all__ = ["register_with_transformers"]
