"""Our classes among transformers' Auto classes, without importing transformers before it is needed.

`AutoConfig`, `AutoModelForImageToImage` and `AutoImageProcessor` live in modules of their own. A class of
ours is registered with one of them as soon as its module has been imported: at once if that was before
`import galip_hf`, else by a finder on `sys.meta_path`, which lets Python import a module as always and looks
what can be registered afterwards. Some modules of transformers that ours import do themselves import the Auto
classes, in the midst of ours: then it is done when ours is whole.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any


def _register_config(auto: Any, ours: Any) -> None:
    auto.AutoConfig.register("galip", ours.GalipConfig, exist_ok=True)


def _register_model(auto: Any, ours: Any) -> None:
    auto.AutoModelForImageToImage.register(ours.GalipConfig, ours.GalipForImageTranslation, exist_ok=True)


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
        self._in_the_midst = 0  # modules of ours whose import has begun

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        is_ours = fullname.startswith(f"{__package__}.")
        if not is_ours and fullname not in _AUTO:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            self._in_the_midst += is_ours
            try:
                execute(module)
            finally:
                self._in_the_midst -= is_ours
            self._imported.add(fullname)
            self.register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec

    def register(self) -> None:
        """Register with every Auto class that is there, if all of ours that are imported are whole."""
        for registration in list(self._pending):
            auto, ours, register = registration
            if self._in_the_midst or auto not in self._imported:
                continue
            module = importlib.import_module(ours)  # may itself come to register it
            if registration in self._pending:
                self._pending.remove(registration)
                register(sys.modules[auto], module)


def register_with_transformers() -> None:
    """Register now with the Auto classes that are imported, and with the others when they will be."""
    finder = _RegisterAfterImport()
    sys.meta_path.insert(0, finder)
    finder.register()


__all__ = ["register_with_transformers"]
