"""Registered pairs in a table: rows of one subject and one slice number in two domains.

The table says nothing about registration: whoever writes volumes of one subject in several domains into it
gives slices of one number to mean one position.
"""

import datasets
import numpy as np

from .table import domain_rows


def registered_rows(table: datasets.Dataset, source: str, target: str) -> np.ndarray:
    """Rows (N, 2) of the slices that `source` and `target` share, by subject, then by slice number."""
    subjects = np.unique(table.data.column("subject").to_numpy(), return_inverse=True)[1].astype(np.int64)
    slices = table.data.column("slice").to_numpy().astype(np.int64)
    keys = subjects * (slices.max(initial=0) + 1) + slices
    source_rows, target_rows = domain_rows(table, source), domain_rows(table, target)
    _, at_source, at_target = np.intersect1d(keys[source_rows], keys[target_rows], return_indices=True)
    return np.stack([source_rows[at_source], target_rows[at_target]], axis=1)


__all__ = ["registered_rows"]
