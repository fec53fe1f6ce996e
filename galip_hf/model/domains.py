"""The image domains of a model: name, prompt, modality and intensity rule, and their validation."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import GalipError

# MR units are arbitrary: this percentile of a volume is what 1 in model space, and in a metric, stands for.
MR_PERCENTILE = 99.5
# The intensity rule of a modality for which none is stated: percentiles that no single voxel can move where
# units are arbitrary, else a window in the units of the modality.
_ARBITRARY_UNITS: dict[str, Any] = {"rule": "percentile", "lower": 0.5, "upper": MR_PERCENTILE}
_HOUNSFIELD_UNITS: dict[str, Any] = {"rule": "window", "lower": -1000.0, "upper": 1000.0}
DEFAULT_RULES: dict[str, dict[str, Any]] = {
    "MR": _ARBITRARY_UNITS,
    "CT": _HOUNSFIELD_UNITS,
    "CBCT": _HOUNSFIELD_UNITS,
    "PET": {"rule": "window", "lower": 0.0, "upper": 10.0},  # SUV (g/ml): the range of whole-body displays
}
# Modalities whose values are Hounsfield units, so that air is known by its value.
HOUNSFIELD_MODALITIES = ("CT", "CBCT")


def default_rule(modality: str) -> dict[str, Any]:
    """The intensity rule of a domain of this modality; percentiles, as for MR, for one not listed."""
    return dict(DEFAULT_RULES.get(modality, _ARBITRARY_UNITS))


# The paper's IXI prompts, verbatim: the method is sensitive to the wording.
IXI_DOMAINS: tuple[dict[str, Any], ...] = tuple(
    {
        "name": name,
        "prompt": f"this MRI is {name}-weighted",
        "modality": "MR",
        "intensity": DEFAULT_RULES["MR"],
    }
    for name in ("T1", "T2", "PD")
)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def validate_intensity_rule(rule: Any, where: str) -> None:
    """Check one domain's intensity rule.

    The rules are `{"rule": "percentile", "lower": P, "upper": Q}` (percentiles of the volume,
    0 <= P < Q <= 100), `{"rule": "window", "lower": A, "upper": B}` (the file's units, HU for CT, A < B) and
    `{"rule": "none"}` (values are in [0, 1] already).

    Raises:
        GalipError: naming `where` and what does not fit.
    """
    keys = {"percentile": {"rule", "lower", "upper"}, "window": {"rule", "lower", "upper"}, "none": {"rule"}}
    if not isinstance(rule, dict) or rule.get("rule") not in list(keys):  # a list: it may be unhashable
        raise GalipError(
            f"{where}: intensity is {rule!r}; expected a dict with 'rule' one of {', '.join(keys)}"
        )
    if set(rule) != keys[rule["rule"]]:
        raise GalipError(
            f"{where}: intensity rule {rule['rule']!r} has keys {sorted(rule)}; "
            f"expected {sorted(keys[rule['rule']])}"
        )
    if rule["rule"] == "none":
        return
    lower, upper = rule["lower"], rule["upper"]
    if not (_is_number(lower) and _is_number(upper) and lower < upper):
        raise GalipError(
            f"{where}: intensity window is {lower!r}..{upper!r}; expected two finite numbers, lower < upper"
        )
    if rule["rule"] == "percentile" and not (lower >= 0 and upper <= 100):
        raise GalipError(f"{where}: percentiles are {lower}..{upper}; expected 0 <= lower < upper <= 100")


def validate_modality(modality: Any, where: str) -> None:
    """Check the name of a modality: `MR`, `CT`, `CBCT`, `PET`, or another in capitals, such as `US`.

    Raises:
        GalipError: naming `where`.
    """
    if not isinstance(modality, str) or not re.fullmatch(r"[A-Z][A-Z0-9]{1,15}", modality):
        raise GalipError(
            f"{where}: modality is {modality!r}; expected {', '.join(DEFAULT_RULES)}, or the name of another "
            "in capitals"
        )


def validate_domains(domains: Any) -> None:
    """Check a list of domains (`name`, `prompt`, `modality`, `intensity`); GalipError at the first fault."""
    if not isinstance(domains, (list, tuple)) or not domains:
        raise GalipError(f"domains: found {domains!r}; expected a list of at least one domain")
    expected = {"name", "prompt", "modality", "intensity"}
    for index, domain in enumerate(domains):
        where = f"domains[{index}]"
        if not isinstance(domain, dict) or set(domain) != expected:
            found = sorted(domain) if isinstance(domain, dict) else domain
            raise GalipError(
                f"{where}: found {found!r}; expected a dict with exactly the keys {sorted(expected)}"
            )
        for key in ("name", "prompt"):
            if not isinstance(domain[key], str) or not domain[key].strip():
                raise GalipError(f"{where}: {key} is {domain[key]!r}; expected a non-empty string")
        # Names become parts of file names and of lists with commas.
        if re.search(r"[/\\,\x00-\x1f]", domain["name"]):
            raise GalipError(
                f"{where}: name is {domain['name']!r}; expected neither slash, backslash, comma nor control "
                "character"
            )
        validate_modality(domain["modality"], where)
        validate_intensity_rule(domain["intensity"], where)
    names = [domain["name"] for domain in domains]
    if len(set(names)) != len(names):
        raise GalipError(f"domains: names {names} are not distinct; give each domain its own name")


@contextmanager
def readable_json(where: str) -> Iterator[None]:
    """Around the reading of a file by transformers; GalipError for what is no JSON object."""
    try:
        yield
    except GalipError:
        raise
    except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
        raise GalipError(
            f"{where}: not readable ({type(error).__name__}: {str(error)[:100]}); expected a JSON object"
        ) from None


__all__ = [
    "DEFAULT_RULES",
    "HOUNSFIELD_MODALITIES",
    "IXI_DOMAINS",
    "MR_PERCENTILE",
    "default_rule",
    "readable_json",
    "validate_domains",
    "validate_intensity_rule",
    "validate_modality",
]
