"""From file intensities to model space and back: one linear map an image or volume, set by its domain's rule.

    pixel_values = (intensity - lower) / (upper - lower)
    intensity = pixel_values * (upper - lower) + lower

The rule of a domain says where the window (lower, upper) comes from: percentiles of the values (MR, whose
units are arbitrary), a fixed window in the file's units (CT, in HU), or none (values are in [0, 1] already).
Nothing is ever clipped: values outside the window lie outside [0, 1], are counted in `outside_fraction`, and
come back from the inverse like all others. The map is computed in float64 and stored as float32: integers up
to 16 bits come back exactly after rounding, floats to within a float32 rounding of the value and the window.
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

# With the rule "none", how far a value may stray from [0, 1]: room for interpolation, not for units.
NO_RULE_TOLERANCE = 1e-3

# Keys that transformers itself writes into preprocessor_config.json.
_KEYS_OF_TRANSFORMERS = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}


@dataclass(frozen=True)
class NormalizedVolume:
    """A volume in model space, with what is needed to go back.

    `pixel_values` is (S, 1, H, W) float32, [0, 1] inside the window. `lower` and `upper` are the window in
    the input's units. `outside_fraction` is the fraction of voxels outside the window.
    """

    pixel_values: torch.Tensor
    lower: float
    upper: float
    outside_fraction: float


class IntensityNormalizer:
    """Maps volumes of a domain to model space, and back, by the domains' intensity rules.

    Args:
        domains: the domains of a `GalipConfig`; their names and intensity rules are kept.
        intensity_rules: domain name to rule, as saved in preprocessor_config.json; in place of `domains`.
        domain_statistics: domain name to `DomainStatistics.to_dict`, of the training slices; a domain without
            them can be translated, but inputs cannot be compared with it. See `set_statistics`.

    Raises:
        GalipError: neither or both of the first two, a rule or statistics that do not fit, or an unknown key.
    """

    def __init__(
        self,
        domains: Sequence[Mapping[str, Any]] | None = None,
        *,
        intensity_rules: Mapping[str, Mapping[str, Any]] | None = None,
        domain_statistics: Mapping[str, Mapping[str, Any]] | None = None,
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

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "IntensityNormalizer":
        """From the preprocessor_config.json of a model directory.

        Raises:
            GalipError: no such file, or one that does not fit.
        """
        path = os.path.join(directory, "preprocessor_config.json")
        try:
            with readable_json(path), open(path, encoding="utf-8") as file:
                values = json.load(file)
                return cls(
                    **{key: value for key, value in values.items() if key not in _KEYS_OF_TRANSFORMERS}
                )
        except OSError as error:
            raise GalipError(
                f"{path}: not readable ({error.strerror}); expected a file written by save_pretrained"
            ) from None

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

    def fixed_window(self, domain: str) -> tuple[float, float] | None:
        """The window that the rule alone sets, in the file's units; None where it depends on the image.

        A translation into such a domain has a known scale: HU for CT, [0, 1] for the rule "none".
        """
        rule = self._rule(domain)
        if rule["rule"] == "percentile":
            return None
        return (0.0, 1.0) if rule["rule"] == "none" else (float(rule["lower"]), float(rule["upper"]))

    def normalize_volume(self, volume: Any, domain: str) -> NormalizedVolume:
        """Normalise a volume (S, H, W), numpy or torch, by one window, with percentiles of the whole volume.

        Raises:
            GalipError: as `preprocess`; also when `volume` is not three-dimensional.
        """
        rule = self._rule(domain)
        array = real_array(volume)
        if array.ndim != 3:
            raise GalipError(f"volume: found the shape {array.shape}; expected (S, H, W)")
        values, lower, upper, outside_fraction = normalize(array, rule, domain)
        return NormalizedVolume(torch.from_numpy(values)[:, None], lower, upper, outside_fraction)

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
    values: np.ndarray, rule: Mapping[str, Any], domain: str
) -> tuple[np.ndarray, float, float, float]:
    """(values in model space as float32, lower, upper, fraction outside the window) of a float64 array."""
    not_finite = values.size - int(np.isfinite(values).sum())
    if not_finite:
        raise GalipError(f"domain {domain!r}: {not_finite} of {values.size} values are NaN or infinite")
    lower, upper = _window(values, rule, domain)
    outside_fraction = float(np.mean((values < lower) | (values > upper)))
    return ((values - lower) / (upper - lower)).astype(np.float32), lower, upper, outside_fraction


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


__all__ = ["IntensityNormalizer", "NormalizedVolume", "normalize", "real_array"]
