"""Which data a report was made from: each subject's files, or slices of a table, with their SHA-256."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import file_hash

if TYPE_CHECKING:
    from ..data.paired_subjects import TableSubjects


def file_entry(subject: str, files: dict[str, Path]) -> dict[str, Any]:
    """A subject that was read from files: role, such as "target", -> file."""
    data = {role: {"read_from": str(path), "sha256": file_hash(path)} for role, path in files.items()}
    return {"subject": subject, "data": data}


def table_manifest(subjects: "TableSubjects", table: str) -> list[dict[str, Any]]:
    """A table's subjects: the hash of each domain's slices, (S, H, W) float32 as they were scored."""
    entries = []
    for index, name in enumerate(subjects.names):
        data = {
            domain: {
                "read_from": f"{table}, {len(volume)} slices",
                "sha256": hashlib.sha256(np.ascontiguousarray(volume, np.float32).tobytes()).hexdigest(),
            }
            for domain, volume in subjects[index].items()
        }
        entries.append({"subject": name, "data": data})
    return entries


__all__ = ["file_entry", "table_manifest"]
