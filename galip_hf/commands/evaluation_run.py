"""What `galip-hf evaluate` computes before it writes, on a table or on folders, with or without pairs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..model.domains import HOUNSFIELD_MODALITIES
from ..model.errors import GalipError

if TYPE_CHECKING:
    import numpy as np

    from ..evaluation.panels import Panels
    from ..model.unet import GalipGenerator

Windows = dict[str, tuple[float, float]]


@dataclass
class Run:
    """What one evaluation gave, and what the pictures and the provenance need.

    `reports`: the model's, then that of --compare. `subjects` and `predict` are for the pictures of cases.
    """

    title: str
    reports: dict[str, dict[str, Any]]
    dataset: str
    panels: "Panels"
    split: str = "test"
    subjects: Sequence[Mapping[str, "np.ndarray"]] = ()
    predict: Callable[[int, str, str, slice], "np.ndarray"] | None = None
    manifest: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def parse_windows(texts: Sequence[str]) -> Windows:
    """`--ct-window` arguments; GalipError for a malformed one."""
    windows = {}
    for text in texts:
        number = r"([-+]?\d+(?:\.\d+)?)"
        match = re.fullmatch(rf"(.+)={number},{number}", text)
        if not match or float(match[2]) >= float(match[3]):
            raise GalipError(f"--ct-window {text}: expected DOMAIN=LOW,HIGH in HU, such as CT=-1000,1000")
        windows[match[1]] = (float(match[2]), float(match[3]))
    return windows


def usable_device(name: str) -> str:
    """The torch device, of `auto` the one it stands for; GalipError when it cannot be used."""
    from ..devices import chosen_device

    return str(chosen_device(name))


def check_measures(measures: Sequence[str], windows: Windows) -> None:
    """GalipError when a measure of CT is wanted and there is no CT."""
    if "synthrad2025" in measures and not windows:
        raise GalipError(
            "--protocol synthrad2025: scores CT in HU, and no domain here is known to be CT; give "
            "--ct-window DOMAIN=LOW,HIGH, or a model with a CT domain"
        )


def model_windows(model: "GalipGenerator", notes: list[str]) -> Windows:
    """CT domain -> HU window of the model's configuration."""
    windows = {}
    for domain in model.config.domains:
        if domain["modality"] not in HOUNSFIELD_MODALITIES:
            continue
        if domain["intensity"]["rule"] == "window":
            windows[domain["name"]] = (domain["intensity"]["lower"], domain["intensity"]["upper"])
        else:
            notes.append(f"{domain['name']}: a CT domain without a HU window, so it is scored as MR is.")
    return windows


def model_identity(source: str | None, role: str) -> dict[str, Any]:
    """SHA-256 of a model's weights and configuration, from the files that were loaded."""
    if source is None:
        return {}
    from transformers.utils import cached_file

    from ..files import file_hash

    identity: dict[str, Any] = {role: source}
    for key, name in (("weights_sha256", "model.safetensors"), ("config_sha256", "config.json")):
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        identity[f"{role}_{key}"] = file_hash(path) if path else None
    return identity


def shared_domains(
    known: Sequence[str], models: Mapping[str, "GalipGenerator"]
) -> tuple[list[str], list[str]]:
    """The domains that the table and every model have, in the first model's order, and what is left out."""
    listed = [model.config.domain_names for model in models.values()]
    order = listed[0] if listed else list(known)
    domains = [domain for domain in order if all(domain in names for names in (known, *listed))]
    if len(domains) < 2:
        raise GalipError(
            f"the table has the domains {', '.join(known)}, the model {', '.join(order)}; expected two or "
            "more of the same names"
        )
    left_out = sorted({*known, *(name for names in listed for name in names)} - set(domains))
    if not left_out:
        return domains, []
    return domains, [f"Domains left out: {', '.join(left_out)} (not in the table and every model)."]


__all__ = [
    "Run",
    "Windows",
    "check_measures",
    "model_identity",
    "model_windows",
    "parse_windows",
    "shared_domains",
    "usable_device",
]
