"""The contrasts that BIDS, BraTS and nnU-Net data sets name, and the domains of a model that mean them."""

from __future__ import annotations

from collections.abc import Iterable

from ..model.errors import GalipError

# Contrast -> the names it goes by: as a domain, and as the ending of a BraTS file (2018-2021, since 2023).
_NAMES = {
    "T1": ("t1", "t1w", "t1n"),
    "T1c": ("t1c", "t1ce", "t1gd", "t1wce"),
    "T2": ("t2", "t2w"),
    "FLAIR": ("flair", "t2flair", "t2f"),
    "PD": ("pd", "pdw"),
    "CT": ("ct",),
}
CONTRASTS = tuple(_NAMES)


def contrast_of(name: str) -> str | None:
    """The contrast that a domain, a file's ending or a channel's name means; None where it is none of ours.

    Upper and lower case, `-`, `_` and spaces make no difference: `T1w`, `t1n` and `T1` are `T1`.
    """
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    return next((contrast for contrast, names in _NAMES.items() if plain in names), None)


def domains_by_contrast(domains: Iterable[str]) -> dict[str, str]:
    """Contrast -> the domain that means it; domains of no known contrast are left out.

    Raises:
        GalipError: two domains mean the same contrast, so a file could be either.
    """
    found: dict[str, str] = {}
    for domain in domains:
        contrast = contrast_of(domain)
        if contrast in found:
            raise GalipError(
                f"domains {found[contrast]} and {domain} both mean {contrast}; name the one that is meant"
            )
        if contrast is not None:
            found[contrast] = domain
    return found


__all__ = ["CONTRASTS", "contrast_of", "domains_by_contrast"]
