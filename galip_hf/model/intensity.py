"""From file intensities to model space and back: one linear map an image or volume, set by its domain's rule.

    pixel_values = clamp((intensity - lower) / (upper - lower), 0, 1)
    intensity = pixel_values * (upper - lower) + lower

The rule of a domain says where the window (lower, upper) comes from: percentiles of the values (MR, whose
units are arbitrary), a fixed window in the file's units (CT in HU, PET in SUV), or none (values are in [0, 1]
already).

Values outside the window are clamped to its ends, in training and in inference alike: normalisation layers
take means over the whole slice, so a single voxel far outside would change the translation everywhere. What
was clamped is counted (`outside_fraction`, `far_outside_fraction`). Values inside the window come back from
the inverse: the map is computed in float64 and stored as float32, so integers up to 16 bits return exactly
after rounding, floats to within a float32 rounding of the value and the window.

Scanners and converters mark what lies outside the field of view by a value far below all others
(`PADDING_VALUES`). Such voxels are air: 0 in model space, and no part of the percentiles.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .domain_statistics import DomainStatistics
from .domains import readable_json, validate_domains, validate_intensity_rule
from .errors import GalipError
from .slice_geometry import SliceGeometry

# With the rule "none", how far a value may stray from [0, 1]: room for interpolation, not for units.
NO_RULE_TOLERANCE = 1e-3

# What marks voxels outside the field of view, where it is the smallest value of an image: GE writes -2000,
# Siemens and Philips -3024 (-1024 minus 2000), converters the smallest 16-bit integer.
PADDING_VALUES = (-2000.0, -3024.0, -32768.0)

# A value this share of the window's width outside the window is "far outside": noise of air below the lower
# end of a CT window, or a bright vessel above a percentile, is not.
FAR_OUTSIDE = 0.1

LONGEST_REASON = 200  # characters of `not_for_real_scans`, which stands in messages

# Keys that transformers itself writes into preprocessor_config.json.
_KEYS_OF_TRANSFORMERS = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}


@dataclass(frozen=True)
class NormalizedVolume:
    """A volume in model space, with what is needed to go back.

    Attributes:
        pixel_values: (S, 1, H, W) float32 in [0, 1].
        lower, upper: the window in the input's units.
        outside_fraction: fraction of voxels that lay outside the window and were clamped, without padding.
        far_outside_fraction: those more than `FAR_OUTSIDE` of the window's width outside it.
        padding_fraction: fraction of voxels that hold a padding value.
    """

    pixel_values: torch.Tensor
    lower: float
    upper: float
    outside_fraction: float
    far_outside_fraction: float
    padding_fraction: float


@dataclass(frozen=True)
class NormalizedValues:
    """As `NormalizedVolume`, for a numpy array of any shape: `values` is float32."""

    values: np.ndarray
    lower: float
    upper: float
    outside_fraction: float
    far_outside_fraction: float
    padding_fraction: float


class IntensityNormalizer:
    """Maps volumes of a domain to model space, and back, by the domains' intensity rules.

    It also carries what inference must know of the training slices: their statistics, their geometry, and
    whether they were real.

    Args:
        domains: the domains of a `GalipConfig`; their names and intensity rules are kept.
        intensity_rules: domain name to rule, as saved in preprocessor_config.json; in place of `domains`.
        domain_statistics: domain name to `DomainStatistics.to_dict`, of the training slices; a domain without
            them can be translated, but inputs cannot be compared with it. See `set_statistics`.
        slice_geometry: `SliceGeometry.to_dict` of the training slices. See `set_geometry`.
        not_for_real_scans: why the model must not be used on scans of people or animals ("it was trained on
            ..."), for a model that has seen synthetic images alone; None for any other. `GalipPipeline`
            then refuses scans that seem to be acquired ones, unless it is forced to translate them.

    Raises:
        GalipError: neither or both of the first two, a rule, statistics, a geometry or a reason that do not
            fit, or an unknown key.
    """

    def __init__(
        self,
        domains: Sequence[Mapping[str, Any]] | None = None,
        *,
        intensity_rules: Mapping[str, Mapping[str, Any]] | None = None,
        domain_statistics: Mapping[str, Mapping[str, Any]] | None = None,
        slice_geometry: Mapping[str, Any] | None = None,
        not_for_real_scans: str | None = None,
        **kwargs: Any,
    ) -> None:
        unknown = sorted(set(kwargs) - _KEYS_OF_TRANSFORMERS)
        if unknown:
            raise GalipError(f"GalipImageProcessor: unknown key {', '.join(unknown)}; expected domains")
        if (domains is None) == (intensity_rules is None):
            raise GalipError("GalipImageProcessor: expected either domains or intensity_rules")
        if domains is not None:
            validate_domains(domains)
            intensity_rules = {domain["name"]: domain["intensity"] for domain in domains}
        for name, values in (("intensity_rules", intensity_rules), ("domain_statistics", domain_statistics)):
            if values is not None and not isinstance(values, Mapping):
                raise GalipError(f"{name}: found {str(values)[:60]!r}; expected an object, domain by domain")
        super().__init__(**kwargs)  # of the image processor, which is this and transformers' class
        self.intensity_rules: dict[str, dict[str, Any]] = {}
        for name, rule in (intensity_rules or {}).items():
            validate_intensity_rule(rule, f"domain {name!r}")
            self.intensity_rules[name] = dict(rule)
        self.set_statistics(
            {
                name: DomainStatistics.from_dict(values, f"domain_statistics of {name!r}")
                for name, values in (domain_statistics or {}).items()
            }
        )
        self.set_geometry(
            None if slice_geometry is None else SliceGeometry.from_dict(slice_geometry, "slice_geometry")
        )
        self.set_not_for_real_scans(not_for_real_scans)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "IntensityNormalizer":
        """From the preprocessor_config.json of a model directory.

        Raises:
            GalipError: no such file, or one that does not fit.
        """
        path = os.path.join(directory, "preprocessor_config.json")
        try:
            with readable_json(path), open(path, encoding="utf-8") as file:
                return cls.from_values(json.load(file))
        except OSError as error:
            raise GalipError(
                f"{path}: not readable ({error.strerror}); expected a file written by save_pretrained"
            ) from None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "IntensityNormalizer":
        """From what a preprocessor_config.json holds.

        Raises:
            GalipError: values that do not fit.
        """
        return cls(**{key: value for key, value in values.items() if key not in _KEYS_OF_TRANSFORMERS})

    @property
    def statistics(self) -> dict[str, DomainStatistics]:
        """Statistics of the training slices by domain; empty where none were kept."""
        return {
            name: DomainStatistics.from_dict(values, f"domain_statistics of {name!r}")
            for name, values in self.domain_statistics.items()
        }

    def set_statistics(self, statistics: Mapping[str, DomainStatistics]) -> None:
        """Keep the statistics of domains' training slices; `save_pretrained` writes them.

        Raises:
            GalipError: an unknown domain.
        """
        for name in statistics:
            self._rule(name)
        self.domain_statistics = {name: known.to_dict() for name, known in statistics.items()}

    @property
    def geometry(self) -> SliceGeometry | None:
        """Geometry of the training slices; None where it was not kept."""
        if self.slice_geometry is None:
            return None
        return SliceGeometry.from_dict(self.slice_geometry, "slice_geometry")

    def set_geometry(self, geometry: SliceGeometry | None) -> None:
        """Keep the geometry of the training slices; `save_pretrained` writes it."""
        self.slice_geometry = None if geometry is None else geometry.to_dict()

    def set_not_for_real_scans(self, reason: str | None) -> None:
        """Keep why the model is not for real scans, None where it is; `save_pretrained` writes it.

        Raises:
            GalipError: not a text of one line, or a longer one than a message can hold.
        """
        fits = isinstance(reason, str) and 0 < len(reason) <= LONGEST_REASON and reason.isprintable()
        if reason is not None and not fits:
            raise GalipError(
                f"not_for_real_scans: found {str(reason)[:60]!r}; expected null, or one line of at most "
                f"{LONGEST_REASON} characters that says why"
            )
        self.not_for_real_scans = reason

    def fixed_window(self, domain: str) -> tuple[float, float] | None:
        """The window that the rule alone sets, in the file's units; None where it depends on the image.

        A translation into such a domain has a known scale: HU for CT, [0, 1] for the rule "none".
        """
        rule = self._rule(domain)
        if rule["rule"] == "percentile":
            return None
        return (0.0, 1.0) if rule["rule"] == "none" else (float(rule["lower"]), float(rule["upper"]))

    def normalize_volume(
        self, volume: Any, domain: str, region: tuple[slice, ...] | None = None
    ) -> NormalizedVolume:
        """Normalise a volume (S, H, W), numpy or torch, by one window.

        Percentiles are those of the whole volume, or of `region` alone: `galip_hf.data.normalization` takes
        the body's bounding box, as the training data of a model that keeps its slices' geometry did.

        Raises:
            GalipError: as `preprocess`; also when `volume` is not three-dimensional.
        """
        rule = self._rule(domain)
        array = real_array(volume)
        if array.ndim != 3:
            raise GalipError(f"volume: found the shape {array.shape}; expected (S, H, W)")
        normalized = normalize(array, rule, domain, region)
        return NormalizedVolume(
            torch.from_numpy(normalized.values)[:, None],
            normalized.lower,
            normalized.upper,
            normalized.outside_fraction,
            normalized.far_outside_fraction,
            normalized.padding_fraction,
        )

    def postprocess(self, pixel_values: Any, *, lower: Any, upper: Any) -> np.ndarray:
        """The way back: `pixel_values * (upper - lower) + lower`, as float32 of the same shape.

        Args:
            pixel_values: numpy or torch, (B, ...), in model space.
            lower: lower end of the window, one number for all or (B,), as the normalising methods return it.
            upper: upper end, likewise.
        """
        array = real_array(pixel_values)
        start, end = _per_image(lower, array, "lower"), _per_image(upper, array, "upper")
        return (array * (end - start) + start).astype(np.float32)

    def _rule(self, domain: str) -> dict[str, Any]:
        if domain not in self.intensity_rules:
            raise GalipError(
                f"domain {domain!r} is unknown; this model knows {', '.join(self.intensity_rules)}"
            )
        return self.intensity_rules[domain]


def real_array(values: Any) -> np.ndarray:
    """Any array or tensor of integers or floats, as float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "iuf" or not array.size:
        raise GalipError(f"image: found {array.dtype} of shape {array.shape}; expected integers or floats")
    return array.astype(np.float64)


def normalize(
    values: np.ndarray, rule: Mapping[str, Any], domain: str, region: tuple[slice, ...] | None = None
) -> NormalizedValues:
    """A float64 array of any shape in model space, by a domain's rule; percentiles are those of `region`.

    Raises:
        GalipError: NaN or infinity, no contrast, or values outside [0, 1] under the rule "none".
    """
    not_finite = values.size - int(np.isfinite(values).sum())
    if not_finite:
        raise GalipError(f"domain {domain!r}: {not_finite} of {values.size} values are NaN or infinite")
    padding = is_padding(values)
    padded = int(padding.sum())
    measured = values if region is None else values[region]
    if padded:
        measured = measured[~(padding if region is None else padding[region])]
    lower, upper = _window(measured if measured.size else values, rule, domain)
    margin = FAR_OUTSIDE * (upper - lower)
    outside = ((values < lower) & ~padding) | (values > upper)
    far_outside = ((values < lower - margin) & ~padding) | (values > upper + margin)
    scaled = np.clip((values - lower) / (upper - lower), 0.0, 1.0)
    return NormalizedValues(
        scaled.astype(np.float32),
        lower,
        upper,
        float(outside.mean()),
        float(far_outside.mean()),
        padded / values.size,
    )


def is_padding(values: np.ndarray) -> np.ndarray:
    """Where an image holds the value that marks voxels outside the field of view; a mask of its shape."""
    smallest = values.min()
    if smallest not in PADDING_VALUES or smallest == values.max():
        return np.zeros(values.shape, dtype=bool)
    return values == smallest


def _window(values: np.ndarray, rule: Mapping[str, Any], domain: str) -> tuple[float, float]:
    if rule["rule"] == "window":
        return float(rule["lower"]), float(rule["upper"])
    smallest, largest = float(values.min()), float(values.max())
    if rule["rule"] == "none":
        if smallest < -NO_RULE_TOLERANCE or largest > 1 + NO_RULE_TOLERANCE:
            raise GalipError(
                f"domain {domain!r}: values are {smallest:g}..{largest:g}, but its intensity rule is 'none' "
                "(already in 0..1); rescale them or give the domain a 'percentile' or 'window' rule"
            )
        return 0.0, 1.0
    lower, upper = (float(bound) for bound in np.percentile(values, (rule["lower"], rule["upper"])))
    if not lower < upper:
        raise GalipError(
            f"domain {domain!r}: percentiles {rule['lower']:g} and {rule['upper']:g} are both {lower:g} "
            f"(values {smallest:g}..{largest:g}), which leaves no contrast to normalise; leave this image out"
        )
    return lower, upper


def _per_image(bound: Any, array: np.ndarray, name: str) -> np.ndarray:
    """A window bound, shaped so that it broadcasts over the first axis of `array`."""
    bounds = real_array(bound)
    if bounds.ndim > 1 or (bounds.ndim == 1 and len(bounds) not in (1, len(array))):
        raise GalipError(f"{name}: found the shape {bounds.shape}; expected one number or ({len(array)},)")
    return bounds.reshape(-1, *[1] * (array.ndim - 1)) if bounds.ndim else bounds


__all__ = [
    "PADDING_VALUES",
    "IntensityNormalizer",
    "NormalizedValues",
    "NormalizedVolume",
    "is_padding",
    "normalize",
    "real_array",
]
