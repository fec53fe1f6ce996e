"""The whole preparation: subjects in parallel, each kept on disk when done, then the table, in a fixed order.

Finished subjects wait in `.NAME.parts` beside the table, with a hash; a run that was killed takes up those
that are whole and were made with the same settings from the same files. The folder goes when the table is
there. The table's bytes depend on the scans, settings and split alone, not on workers or interruptions.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.table import SPLITS, SUMMARY_NAME
from ..data.table_writer import MINIMUM_FOREGROUND, SubjectVolume, write_table
from ..files import atomic_write, file_hash
from ..model.errors import GalipError
from ..shown_paths import short_names, with_short_names
from ..version import __version__
from .checks import domain_statistics, raw_duplicates, registration_warnings, save_pair_montage
from .sources import Scan, Source
from .splits import SPLITS_NAME, check_groups, collect_splits, read_splits, split_subjects, splits_document
from .subjects import Settings, prepare_subject

_MASK_PREFIX = "mask/"  # of the keys under which a finished subject's masks are kept

Task = tuple[str, list[Scan], Settings, Path, str]


def assign_splits(
    source: Source,
    subjects: Sequence[str],
    *,
    seed: int,
    wanted: Mapping[str, int | float] | None = None,
    split_file: str | Path | None = None,
) -> tuple[dict[str, list[str]], str]:
    """Subjects by split, and where that comes from: a file, the scans' own splits, or a draw.

    Raises:
        GalipError: two of these at once, a subject or group in two splits, or a draw that cannot be made.
    """
    groups = groups_of(source)
    stated = {(scan.split, scan.subject) for scan in source.scans if scan.split and scan.subject in subjects}
    if split_file is not None:
        assigned, origin = read_splits(split_file, subjects), f"file {Path(split_file).name}"
    elif stated:
        missing = sorted(set(subjects) - {subject for _, subject in stated})
        if missing:
            raise GalipError(
                f"split: {len(missing)} subjects have none, such as {missing[0]!r}; give all one"
            )
        if wanted:
            raise GalipError("split: the scans state their splits already; leave out --split and --preset")
        assigned = collect_splits([(str(split), subject) for split, subject in sorted(stated)], "scans")
        origin = "stated by the source"
    else:
        wanted = wanted or {"train": 0.7, "validation": 0.1, "test": 0.2}
        assigned = split_subjects(subjects, wanted, seed, groups)
        origin = f"drawn with seed {seed}, {json.dumps(dict(wanted))}"
    check_groups(assigned, groups)
    return assigned, origin


def groups_of(source: Source) -> dict[str, str]:
    """Subject to group, of those that have one."""
    return {scan.subject: scan.group for scan in source.scans if scan.group}


def complete_subjects(source: Source) -> tuple[list[str], list[dict[str, Any]]]:
    """The subjects to use, and why others are not: a source may ask for every domain."""
    domains: dict[str, set[str]] = {}
    for scan in source.scans:
        domains.setdefault(scan.subject, set()).add(scan.domain)
    excluded = []
    for subject in sorted(domains):
        missing = [name for name in source.domains if name not in domains[subject]]
        if source.complete and missing:
            reason = f"no {', '.join(missing)} scan"
            excluded.append({"subject": subject, "domain": None, "slices": None, "reason": reason})
            del domains[subject]
    if not domains:
        raise GalipError(f"no subject has all of {', '.join(source.domains)}; check the folder")
    return sorted(domains), excluded


def prepare(
    source: Source,
    directory: str | Path,
    settings: Settings,
    *,
    seed: int = 0,
    wanted: Mapping[str, int | float] | None = None,
    split_file: str | Path | None = None,
    minimum_foreground: float = MINIMUM_FOREGROUND,
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Prepare a data set as a table in `directory`; returns its summary, which `summary.json` holds too.

    Also writes `splits.json`, and `registration.png` where subjects have pairs.

    Raises:
        GalipError: a bad argument; `directory` exists; leakage (a subject, group, or byte-identical slice in
            two splits); a subject of which nothing could be used is listed, not raised.
    """
    directory = Path(directory)
    if directory.exists() and not (overwrite and (directory / "dataset_dict.json").is_file()):
        reason = (
            "not a table; name another folder" if overwrite else "name another, or overwrite it (--overwrite)"
        )
        raise GalipError(f"{directory}: exists already; {reason}")
    subjects, excluded = complete_subjects(source)
    excluded = [*source.notes, *excluded]
    assigned, origin = assign_splits(source, subjects, seed=seed, wanted=wanted, split_file=split_file)
    split_of = {subject: split for split, its in assigned.items() for subject in its}
    directory.parent.mkdir(parents=True, exist_ok=True)
    parts = directory.parent / f".{directory.name}.parts"
    parts.mkdir(exist_ok=True)
    tasks = [
        _task([scan for scan in source.scans if scan.subject == subject], settings, parts)
        for subject in sorted(split_of)
    ]
    records = _prepare_all(tasks, workers)
    for record in records.values():
        excluded += [{"subject": record["subject"], **entry} for entry in record["excluded"]]
    # The summary travels with the table, so files are named without the folders above the data.
    names = short_names(_folders_above(source))
    excluded = with_short_names(excluded, names)
    identical = raw_duplicates(records, split_of)

    def volumes() -> Iterator[SubjectVolume]:
        for task in tasks:
            record = records[task[0]]
            with np.load(_shard(task)) as arrays:
                for domain in settings.rules:
                    if domain in arrays.files:
                        plane = record["plane"]
                        yield SubjectVolume(
                            arrays[domain],
                            domain,
                            task[0],
                            split_of[task[0]],
                            record["first_slice"],
                            plane=plane,
                            pixel_size=tuple(record["spacing"][1:]) if plane else None,
                            centre=tuple(record["centre"]),
                            mask=arrays.get(_MASK_PREFIX + domain),
                        )

    written = write_table(
        volumes(),
        parts / "table" / directory.name,
        domains=list(settings.rules),
        image_size=settings.image_size,
        minimum_foreground=minimum_foreground,
        masks=any(scan.mask for scan in source.scans),
        overwrite=True,
    )
    summary = json.loads((written / SUMMARY_NAME).read_text(encoding="utf-8"))
    kept = {split: summary["splits"][split]["subjects"] for split in SPLITS if split in summary["splits"]}
    document = splits_document(kept, groups_of(source), subjects, origin)
    summary |= {
        "excluded": excluded + summary["excluded"],
        "split_hash": document["hash"],
        "settings": asdict(settings),
        "intensities": domain_statistics(records, settings.rules),
        "pairs": {subject: record["pairs"] for subject, record in records.items() if record["pairs"]},
        "warnings": with_short_names(registration_warnings(records) + identical, names),
        "version": __version__,
    }
    _write_json(written / SUMMARY_NAME, summary)
    _write_json(written / SPLITS_NAME, document)
    save_pair_montage(written / "registration.png", records, {task[0]: _shard(task) for task in tasks})
    with atomic_write(directory) as complete:
        os.replace(written, complete)
    shutil.rmtree(parts)
    return summary


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- subjects, each on disk when done ---


def _task(scans: list[Scan], settings: Settings, parts: Path) -> Task:
    """A subject's work, with a key of what it depends on: settings, scans, the files' sizes and times."""
    states = []
    for scan in scans:
        path = Path(scan.path)
        files = [Path(file) for file in scan.files] or (sorted(path.iterdir()) if path.is_dir() else [path])
        files += [Path(scan.mask)] if scan.mask else []
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
        states.append([asdict(scan), stats])
    text = json.dumps([__version__, asdict(settings), states], sort_keys=True)
    return scans[0].subject, scans, settings, parts, hashlib.sha256(text.encode()).hexdigest()


def _folders_above(source: Source) -> list[str]:
    """The folder that holds all scans of a data set, where they were named by absolute paths."""
    folders = [os.path.dirname(scan.path) for scan in source.scans if os.path.isabs(scan.path)]
    return [os.path.commonpath(folders)] if folders else []


def _shard(task: Task) -> Path:
    return task[3] / f"{task[4][:32]}.npz"


def _prepare_all(tasks: Sequence[Task], workers: int) -> dict[str, dict[str, Any]]:
    """The records of all subjects, in the order of the tasks; only those not on disk yet are prepared."""
    records = {task[0]: record for task in tasks if (record := _finished(task))}
    remaining = [task for task in tasks if task[0] not in records]
    with tqdm(total=len(tasks), initial=len(records), unit="subject", desc="prepare", disable=None) as bar:
        for subject, record in _run(remaining, workers):
            records[subject] = record
            bar.update()
    return {task[0]: records[task[0]] for task in tasks}


def _run(tasks: Sequence[Task], workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield task[0], _prepare_task(task)
        return
    # Workers are forked from a clean server process that has imported what they need.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    count = min(workers, len(tasks))
    with ProcessPoolExecutor(count, mp_context=context, initializer=_follow_parent) as pool:
        try:
            waiting = {pool.submit(_prepare_task, task): task[0] for task in tasks}
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            raise GalipError(
                "prepare: a worker process was killed, as happens when memory is short; run the command "
                "again, with fewer --workers: what is done is kept"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _follow_parent() -> None:
    """End this worker when the run is killed: a pool's workers would wait for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare_task(task: Task) -> dict[str, Any]:
    _, scans, settings, _, _ = task
    prepared = prepare_subject(scans, settings)
    shard = _shard(task)
    with atomic_write(shard) as temporary, temporary.open("wb") as file:
        masks = {_MASK_PREFIX + domain: mask for domain, mask in prepared.masks.items()}
        np.savez(file, **prepared.volumes, **masks)  # type: ignore[arg-type]
    record = {**prepared.record, "hash": file_hash(shard)}
    with atomic_write(shard.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")
    return json.loads(json.dumps(record))


def _finished(task: Task) -> dict[str, Any] | None:
    """The record of a subject that an earlier run finished, if its file is whole."""
    shard = _shard(task)
    try:
        record = json.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))
        return record if record["hash"] == file_hash(shard) else None
    except (OSError, ValueError, KeyError):
        return None


__all__ = ["assign_splits", "complete_subjects", "groups_of", "prepare"]
