"""Scan in, scan out: `GalipPipeline` translates a scan on its own grid and says how far to believe it."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.normalization import scan_body
from ..devices import chosen_device, chosen_precision
from ..foreground import body_box, body_mask
from ..model.configuration_galip import GalipConfig
from ..model.domains import HOUNSFIELD_MODALITIES
from ..model.errors import GalipError
from ..model.intensity import IntensityNormalizer, NormalizedVolume
from ..model.unet import GalipGenerator, load_generator
from ..version import DISCLAIMER, __version__
from . import reliability
from .placement import Placement, place_as_trained, place_natively
from .slices import PRECISIONS, precision_in_words, translate_to_targets
from .translation import Translation

if TYPE_CHECKING:
    from ..data.volumes import Volume
    from .runtimes import ExportedModel

Advance = Callable[[int], object]
GEOMETRIES = ("model", "native")


def load_model(
    source: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    verify: bool | None = None,
    subfolder: str = "",
    variant: str | None = None,
) -> tuple[GalipGenerator, IntensityNormalizer]:
    """A model's network and intensity rules from a directory or a Hub repository.

    They are what inference needs, and are there two seconds sooner than `GalipForImageTranslation` and
    `GalipImageProcessor`, for which transformers imports its model classes. Options as in
    `hub.pull.resolve_model`.

    Raises:
        GalipError: nothing there, damaged, or not a model of ours.
    """
    from ..hub.pull import resolve_model

    directory = resolve_model(
        source, revision=revision, token=token, verify=verify, subfolder=subfolder, variant=variant
    )
    try:
        return load_generator(directory, variant), IntensityNormalizer.load(directory)
    except OSError as error:
        raise GalipError(f"{source}: not a model that can be loaded ({str(error).splitlines()[0]})") from None


class GalipPipeline:
    """Translates whole scans.

    ```python
    pipe = GalipPipeline.from_pretrained("user/model")
    translation = pipe("scan.nii.gz", target="T2")
    translation.save("t2.nii.gz")
    ```

    A generator is moved to `device` and converted to float32, whatever its weights were saved as; `precision`
    says what is computed in. Of an exported model both are its own.

    A model that has seen synthetic images alone (`not_for_real_scans` of its processor) translates scans that
    look like these, and small arrays, with a warning in each report. Any other scan of 80 pixels or more a
    side is taken for an acquired one and refused with a GalipError, unless `force` is true.
    """

    def __init__(
        self,
        model: "GalipGenerator | ExportedModel",
        processor: IntensityNormalizer,
        *,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        name: str | None = None,
        force: bool = False,
    ) -> None:
        if precision not in (*PRECISIONS, "auto"):
            raise GalipError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}, auto")
        self.model = model
        self._force = force
        self._autocast = "fp32"  # PyTorch's part in an exported model is to hand over the slices
        if isinstance(model, GalipGenerator):
            place = chosen_device(str(device))
            self.model = model.to(device=place, dtype=torch.float32).eval()
            self._autocast = chosen_precision(precision, place)
        self.processor = processor
        given = name or model.config.name_or_path or "unnamed"
        # Of a directory its own name only: reports travel, and the folders above are nobody's business.
        self.name = Path(given).resolve().name if os.path.isdir(given) else given
        self._statistics = processor.statistics
        self._geometry = processor.geometry
        self._targets: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        verify: bool | None = None,
        subfolder: str = "",
        variant: str | None = None,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        runtime: str = "torch",
        force: bool = False,
    ) -> "GalipPipeline":
        """From a model directory or a repository of the Hub (`user/name`, at `revision`).

        Args:
            token, verify, subfolder, variant: as in `hub.pull.resolve_model`.
            device: of torch, or `auto`, see `galip_hf.devices.chosen_device`.
            precision: `fp32` (the reference), or `bf16` or `fp16` under autocast; `auto`, see
                `galip_hf.devices.chosen_precision`. With another runtime, see `inference.runtimes`.
            runtime: `torch`; `onnxruntime` or `openvino` for `model.onnx`, which `galip-hf export` wrote into
                the directory, or for a `.onnx` file that is given as `model`.
            force: translate scans that seem to be acquired ones with a model that is not for real scans.

        Raises:
            GalipError: no such model, weights or configuration that do not fit, an unusable device, an
                unknown precision or runtime, a runtime without its package or its file.
        """
        options: dict[str, Any] = {
            "revision": revision, "token": token, "verify": verify, "subfolder": subfolder, "variant": variant
        }  # fmt: skip
        name = os.fspath(model)
        if runtime == "torch":
            loaded, processor = load_model(name, **options)
            return cls(loaded, processor, device=device, precision=precision, name=name, force=force)
        from .runtimes import load_exported

        exported = load_exported(name, runtime, precision=precision, device=str(device), **options)
        return cls(exported, exported.processor, name=name, force=force)

    @property
    def config(self) -> GalipConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def precision(self) -> str:
        """What slices are computed in: `fp32`, `bf16` or `fp16`."""
        return self._autocast if isinstance(self.model, GalipGenerator) else self.model.precision

    @property
    def arithmetic(self) -> str:
        """`precision` in words, with what it really means on this device and in this runtime."""
        if isinstance(self.model, GalipGenerator):
            return precision_in_words(self.model.device, self._autocast)
        return self.model.arithmetic

    def source_domain(self, source: str | None, slices: "Volume | None" = None) -> str:
        """The domain whose intensity rule the input follows: `source`, or where all rules are the same the
        domain that the input looks like (the first one if the model cannot tell).

        Raises:
            GalipError: an unknown domain, or None with domains of different rules.
        """
        names = self.config.domain_names
        if source is not None:
            if source not in names:
                raise GalipError(f"source {source!r} is unknown to this model; it has {', '.join(names)}")
            return source
        rules = {tuple(sorted(self.processor.intensity_rules[name].items())) for name in names}
        if len(rules) > 1:
            raise GalipError(
                "source (--from) is missing: this model's domains have different intensity rules; "
                f"give one of {', '.join(names)}"
            )
        if slices is None or not self._statistics:
            return names[0]
        values = self._normalize(slices, names[0])[0].pixel_values[:, 0].numpy()
        look = reliability.check_source(values, next(iter(self._statistics)), self._statistics)
        return look["looks_like"] or names[0]

    def __call__(
        self,
        scan: Any,
        target: str | Sequence[str],
        source: str | None = None,
        *,
        batch_size: int = 4,
        cycle: bool = False,
        geometry: str = "model",
        crop: bool = False,
        resample: float | None = None,
        axis: str | None = None,
        nan_background: bool = False,
        advance: Advance = lambda count: None,
    ) -> Any:
        """Translate one scan, or a list of scans.

        Args:
            scan: a path, a folder with one DICOM series, a `Volume`, a nibabel or SimpleITK image, a numpy
                array or torch tensor (S, H, W) or (H, W), or a grey PIL image; or a list of these.
            target: a domain's name, or several.
            source: the domain of the input; None where the domains share one intensity rule.
            batch_size: slices translated at once.
            cycle: also translate back to the source, for the cycle map and error.
            geometry: `model` brings the scan into the form of the training slices (plane, pixel size, body in
                the middle of the canvas) and the translation back onto the scan's grid; `native` takes the
                scan as it is, as does a model that keeps no geometry of its training slices.
            crop: with `native`, translate the foreground's bounding box only, grown to a multiple of 32.
            resample: pixel size in mm at which to translate (undone afterwards); None for the training's, or
                with `native` for the scan's own.
            axis: plane of the slices, `axial`, `coronal` or `sagittal`; None: the training's plane, or with
                `native` axial by the scan's affine.
            nan_background: take NaN in the scan as air.
            advance: called with the number of slices done since the last call; there are
                S * targets * (2 with `cycle`) of them.

        Returns:
            A `Translation` for one scan and one target; a list for several scans or targets, scan by scan.

        Raises:
            GalipError: an unreadable scan, an unknown domain, values that do not fit the source's rule.
        """
        targets = [target] if isinstance(target, str) else list(target)
        if not targets or len(set(targets)) != len(targets):
            raise GalipError(f"target: found {targets}; expected at least one domain, each once")
        if batch_size < 1:
            raise GalipError(f"batch_size is {batch_size}; expected 1 or more")
        if geometry not in GEOMETRIES:
            raise GalipError(f"geometry is {geometry!r}; expected one of {', '.join(GEOMETRIES)}")
        if resample is not None and not 0 < resample < math.inf:
            raise GalipError(f"resample is {resample}; expected a pixel size in mm, more than 0")
        several = isinstance(scan, (list, tuple))
        translations = [
            translation
            for one in (scan if several else [scan])
            for translation in self._translate(
                _single_volume(one, axis, nan_background),
                targets,
                source,
                _Settings(batch_size, cycle, geometry, crop, resample, axis, advance),
            )
        ]
        return translations if several or not isinstance(target, str) else translations[0]

    def _target(self, name: str) -> Any:
        if name not in self._targets:
            with torch.inference_mode():
                self._targets[name] = self.model.prepare_target(name)
        return self._targets[name]

    def _normalize(self, volume: "Volume", domain: str) -> tuple[NormalizedVolume, np.ndarray]:
        """The scan in model space, and its body mask."""
        if self.processor.fixed_window(domain) is not None:
            normalized = self._normalize_in(volume, domain, None)
            return normalized, body_mask([normalized.pixel_values[:, 0].numpy()])
        body = scan_body(volume.array)
        # Models that keep a geometry were trained with windows measured in the body's box, older ones not.
        region = None if self._geometry is None else body_box(body)
        return self._normalize_in(volume, domain, region), body

    def _normalize_in(
        self, volume: "Volume", domain: str, region: tuple[slice, ...] | None
    ) -> NormalizedVolume:
        try:
            return self.processor.normalize_volume(volume.array, domain, region)
        except GalipError as error:
            raise GalipError(f"{volume.path or 'scan'}: {error}") from None

    def _translate(
        self, volume: "Volume", names: list[str], source: str | None, settings: "_Settings"
    ) -> list[Translation]:
        targets = [self._target(name) for name in names]
        volume = self._in_training_plane(volume, settings)
        given, source = source is not None, self.source_domain(source, volume)
        normalized, body = self._normalize(volume, source)
        slices = normalized.pixel_values[:, 0].numpy()
        hounsfield = self._modality(source) in HOUNSFIELD_MODALITIES
        placement = self._place(volume, slices, body, settings)
        resized = placement.resize(slices)
        source_report: dict[str, Any] = {
            "source": source,
            "source_given": given,
            "source_rule": self.processor.intensity_rules[source],
            "source_window": [normalized.lower, normalized.upper],
            "outside_fraction": normalized.outside_fraction,
            "far_outside_fraction": normalized.far_outside_fraction,
            "padding_fraction": normalized.padding_fraction,
            "metal_slices": reliability.metal_slices(volume.array) if hounsfield else [],
            "geometry": placement.report,
            "input_check": reliability.check_source(
                resized, source, self._statistics, body if resized is slices else None
            ),
        }
        notes = [*volume.notes, *placement.notes]
        if self.processor.not_for_real_scans:
            reason = f"the model is not for real scans: {self.processor.not_for_real_scans}"
            if not self._force:
                reliability.refuse_acquired_scan(volume, source_report["input_check"], reason)
            notes.insert(0, reason)
        if self._geometry is not None:
            notes += reliability.doubts_of_kind(volume, slices, body, self._geometry, hounsfield=hounsfield)
        translations = []
        for name, translated in zip(names, self._run(placement, slices, targets, settings), strict=True):
            # A percentile window belongs to one scan: an MR translation keeps the input's scale.
            fixed = self.processor.fixed_window(name)
            lower, upper = fixed or (normalized.lower, normalized.upper)
            report: dict[str, Any] = {
                **source_report,
                "target": name,
                "target_modality": self._modality(name),
                "slices": len(slices),
                "rule": self.processor.intensity_rules[name],
                "window": [lower, upper],
                "identity": reliability.identity_check(slices, translated, body),
                "cycle_error": None,
            }
            cycle_map = None
            if settings.cycle:
                (returned,) = self._run(placement, translated, [self._target(source)], settings)
                report["cycle_error"] = reliability.cycle_error(slices, returned, body)
                cycle_map = np.abs(returned - slices) * (normalized.upper - normalized.lower)
            of_model = [] if isinstance(self.model, GalipGenerator) else self.model.notes
            report["warnings"] = [*reliability.warnings_of(report), *notes, *of_model]
            report |= self._provenance(volume, settings)
            array = self.processor.postprocess(translated, lower=lower, upper=upper)
            translated_volume = volume.with_array(array, own_scale=fixed is not None)
            translations.append(Translation(translated_volume, volume, report, cycle_map))
        return translations

    def _modality(self, domain: str) -> str:
        return self.config.domains[self.config.domain_index(domain)]["modality"]

    def _in_training_plane(self, volume: "Volume", settings: "_Settings") -> "Volume":
        """The scan in the plane asked for; else, of the planes trained on, in that of its finest pixels."""
        if settings.axis is not None:
            return volume.in_plane(settings.axis)
        if settings.geometry == "native" or self._geometry is None or not self._geometry.planes:
            return volume
        choices = [volume.in_plane(plane) for plane in self._geometry.planes]
        return min(choices, key=lambda choice: max(choice.spacing[1:]))

    def _place(
        self, volume: "Volume", slices: np.ndarray, body: np.ndarray, settings: "_Settings"
    ) -> Placement:
        if settings.geometry == "model" and self._geometry is not None:
            return place_as_trained(volume, body, self._geometry, settings.resample)
        why = (
            "asked for"
            if settings.geometry == "native"
            else "the model keeps no geometry of its training slices, so the scan was taken as it is"
        )
        return place_natively(volume, slices, settings.resample, settings.crop, why)

    def _run(
        self, placement: Placement, slices: np.ndarray, targets: list[Any], settings: "_Settings"
    ) -> list[np.ndarray]:
        """Slices in model space to the targets, on the canvas and back."""
        tiles, done = placement.tiles(slices), 0

        def advance(count: int) -> None:
            nonlocal done
            before, done = done // len(placement.corners), done + count
            settings.advance((done // len(placement.corners) - before) * len(targets))

        translated = translate_to_targets(
            self.model,
            tiles,
            targets,
            batch_size=settings.batch_size,
            precision=self._autocast,
            advance=advance,
        )
        return [placement.restore(tiles_of_target) for tiles_of_target in translated]

    def _provenance(self, volume: "Volume", settings: "_Settings") -> dict[str, Any]:
        return {
            "input": volume.path.name if volume.path else None,
            "model": self.name,
            "settings": {
                "device": str(self.model.device),
                "precision": self.precision,
                "arithmetic": self.arithmetic,
                "batch_size": settings.batch_size,
                "geometry": settings.geometry,
                "crop": settings.crop,
                "resample": settings.resample,
            },
            "galip_hf": __version__,
            "note": DISCLAIMER,
        }


@dataclass(frozen=True)
class _Settings:
    """How to translate; see `GalipPipeline.__call__`."""

    batch_size: int
    cycle: bool
    geometry: str
    crop: bool
    resample: float | None
    axis: str | None
    advance: Advance


def _single_volume(scan: Any, axis: str | None, nan_background: bool) -> "Volume":
    from ..data.scans import read_scan

    volumes = read_scan(scan, axis=axis, nan_background=nan_background)
    if len(volumes) > 1:
        raise GalipError(
            f"scan: holds {len(volumes)} volumes; pass galip_hf.data.scans.read_scan(scan), a list of them, "
            "and write what comes of it with galip_hf.inference.translation.save_translations"
        )
    return volumes[0]


__all__ = ["GalipPipeline", "load_model"]
