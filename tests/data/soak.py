"""A long run of the mutants of `fuzz_files`, `make soak`: MINUTES of it, from FIRST_SEED on.

    python tests/data/soak.py MINUTES [FIRST_SEED]

Batches run in forked processes with 4 GB of further address space, so that a crash ends a batch alone. Each
mutant must be refused in one line, or read as the format's own library reads it in a clean process
(`reference_readers`). A volume whose notes say what was mended may differ, and is counted apart; so is one
that the library refuses. Recipes, and the JSON files of a table, are mutated too. Prints
the counts, and every failure with its seed; the exit code is 1 where there was one.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import fuzz_files
import numpy as np
import reference_readers

from galip_hf.cli import main as command_line
from galip_hf.data.child_process import ChildProcess, DecodingError
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.data.volumes import Volume
from galip_hf.model.errors import GalipError
from galip_hf.training.recipe import load_recipe

SEEDS_IN_BATCH = 20
ADDRESS_SPACE = 4 << 30  # beside that of the libraries, which are imported by then
RECIPE = Path(__file__).parents[2] / "examples" / "configs" / "phantom.yaml"
FORK = multiprocessing.get_context("fork")


class Differential:
    """Names the outcome of a mutant that was read, by comparing it with the format's own library."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child

    def __call__(self, path: Path, volumes: list[Volume]) -> str:
        if any(volume.notes for volume in volumes):
            return "volume with notes"
        try:
            _, expected = self.child.call(reference_readers.__name__, "values", str(path))
        except (DecodingError, GalipError):
            return "volume that the library refuses"
        found = np.sort(np.concatenate([volume.array.ravel() for volume in volumes]))
        assert found.size == expected.size, f"{found.size} values, the library has {expected.size}"
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg="not what the library reads")
        return "volume"


def scans(files: dict[str, Path], folder: Path, seeds: range, last: Path) -> Counter:
    """Outcomes of the scans' mutants."""
    with ChildProcess() as child:
        return fuzz_files.run(
            files, folder, seeds, lambda name, seed: last.write_text(f"{name} {seed}"), Differential(child)
        )


def texts(table: Path, folder: Path, seeds: range, last: Path) -> Counter:
    """Outcomes of mutated recipes and JSON files of a table."""
    counts: Counter = Counter()
    recipe = RECIPE.read_bytes()
    parts = ["dataset_dict.json", "summary.json", "train/dataset_info.json", "train/state.json"]
    for seed in seeds:
        path = folder / "recipe.yaml"
        path.write_bytes(fuzz_files.mutant("recipe.yaml", recipe, seed))
        last.write_text(f"recipe.yaml {seed}")
        counts["recipe.yaml", refused_or_read(path)] += 1
        path.unlink()
        for part in parts:
            copy = folder / "table"
            shutil.copytree(table, copy)
            (copy / part).write_bytes(fuzz_files.mutant(part, (copy / part).read_bytes(), seed))
            last.write_text(f"{part} {seed}")
            counts[part, inspected(copy, folder)] += 1
            shutil.rmtree(copy)
    return counts


def refused_or_read(path: Path) -> str:
    """What comes of a recipe."""
    try:
        load_recipe(path)
    except GalipError as error:
        assert "\n" not in str(error) and len(str(error)) <= 300 + len(str(path)), str(error)
        return "refused"
    return "read"


def inspected(table: Path, folder: Path) -> str:
    """What `galip-hf inspect` makes of a table."""
    errors, montage = io.StringIO(), folder / "montage.png"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = command_line(["inspect", str(table), "--montage", str(montage)])
    assert code in (0, 2), code
    if code == 2:
        told = errors.getvalue().splitlines()
        assert told[-1].startswith("galip-hf: error: ") and not montage.exists(), told
    montage.unlink(missing_ok=True)
    return "read" if code == 0 else "refused"


def batch(job: Any, source: Any, seeds: range, last: Path, answers: Any) -> None:
    """Run `job` in a child process; its counts, or the traceback, go to `answers`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, fuzz_files._hang)
    with tempfile.TemporaryDirectory() as work:
        try:
            answers.send(job(source, Path(work), seeds, last))
        except BaseException:
            answers.send(traceback.format_exc()[-800:])


def in_child(job: Any, source: Any, seeds: range, last: Path) -> Counter | str:
    """The counts of one batch; of a batch that failed, why."""
    answers, child_answers = FORK.Pipe(duplex=False)
    process = FORK.Process(target=batch, args=(job, source, seeds, last, child_answers))
    process.start()
    child_answers.close()
    try:
        found = answers.recv()
    except EOFError:
        process.join()
        found = f"ended with exit code {process.exitcode}"
    process.join()
    return found


def small_table(folder: Path) -> Path:
    """A table of two domains, to be mutated."""
    rng = np.random.default_rng(0)
    volumes = [
        SubjectVolume(rng.random((2, 16, 16)).astype(np.float32), domain, f"{domain}-{number}", "train")
        for number in range(2)
        for domain in ("T1", "T2")
    ]
    return write_table(volumes, folder / "table", domains=["T1", "T2"], image_size=None)


def soak(minutes: float, first: int) -> int:
    """Run batches until the time is over; returns the number of failures."""
    counts: Counter = Counter()
    failures = 0
    ends = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as valid:
        last = Path(valid, "last")
        (Path(valid) / "files").mkdir()
        files = fuzz_files.valid_files(Path(valid) / "files")
        jobs = [(scans, {name: path}) for name, path in files.items()] + [(texts, small_table(Path(valid)))]
        seed = first
        while time.monotonic() < ends:
            for job, source in jobs:
                found = in_child(job, source, range(seed, seed + SEEDS_IN_BATCH), last)
                if isinstance(found, str):
                    failures += 1
                    print(f"FAILURE at {last.read_text()}: {found}", flush=True)
                else:
                    counts += found
                if time.monotonic() > ends:
                    break
            seed += SEEDS_IN_BATCH
            print(f"{sum(counts.values())} mutants, {failures} failures", flush=True)
    for name in sorted({name for name, _ in counts}):
        print(name, {kind: count for (owner, kind), count in sorted(counts.items()) if owner == name})
    print(f"{sum(counts.values())} mutants, {failures} failures; seeds {first} to {seed - 1}")
    return failures


if __name__ == "__main__":
    sys.exit(1 if soak(float(sys.argv[1]), int((sys.argv[2:] or ["0"])[0])) else 0)
