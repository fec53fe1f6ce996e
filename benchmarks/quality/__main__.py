"""How good a model is after how much processor time: galip_hf against CycleGAN and simple baselines.

python -m benchmarks.quality DATA [--source FOLDER] [--systems galip cyclegan] [--name NAME]
                             [--seeds 0 1] [--cpu-minutes 25] [--output FOLDER] [--set key=value ...]

DATA is `phantom`, `brainweb` or `open_ms` (see `data`); the latter two need `--source`. The table of slices
and the scores of the baselines are made once, in OUTPUT/DATA. `galip` is the recipe of the file
examples/configs/phantom.yaml with some keys replaced (`--set`), trained in OUTPUT/DATA/NAME/seed-N;
`cyclegan` is one CycleGAN for each pair of domains, with the same processor time in total, in
OUTPUT/DATA/cyclegan-WIDTH/seed-N. A run that ended is not repeated; one that was stopped goes on. At the end
the table of all results in OUTPUT/DATA is printed, and results.json and curve.png are written there.

Processor time is that of the process, all threads, without scoring.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.quality import cyclegan
from benchmarks.quality.data import DATA_SETS, DataSet
from benchmarks.quality.galip import quality_recipe, train_galip
from benchmarks.quality.report import save_curve, table_of
from benchmarks.quality.scoring import Scorer
from galip_hf import GalipError
from galip_hf.data.table import load_table
from galip_hf.files import atomic_write

SYSTEMS = ("galip", "cyclegan")
RESULT = "result.json"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("data", choices=DATA_SETS)
    parser.add_argument("--source", type=Path, help="folder of the raw data, for brainweb and open_ms")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--name", default="paper", help="of the recipe, in the table (default: paper)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cpu-minutes", type=float, default=25.0, help="of training, each system and seed")
    parser.add_argument("--cyclegan-width", type=int, default=cyclegan.WIDTH)
    parser.add_argument("--cyclegan-identity", type=float, default=0.0, help="weight relative to the cycle's")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("outputs", "benchmarks", "quality"))
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", metavar="key=value")
    return parser


def prepared(data: DataSet, source: Path | None, folder: Path) -> tuple[Any, Scorer, dict[str, Any]]:
    """The table, its scorer and the scores of the baselines; made where they are not there yet."""
    if not (folder / "table").exists():
        if data.needs and source is None:
            raise GalipError(f"{folder / 'table'}: is not there; give {data.needs} by --source")
        data.write(source, folder / "table")
    table = load_table(folder / "table")
    scorer = Scorer(table, [domain["name"] for domain in data.domains])
    if not (folder / "floors.json").exists():
        write_json(folder / "floors.json", scorer.floors())
    return table, scorer, json.loads((folder / "floors.json").read_text(encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def run_system(
    system: str, data: DataSet, table: Any, scorer: Scorer, folder: Path, seed: int, arguments: Any
) -> None:
    """Train one system with one seed, unless its result is there."""
    if (folder / RESULT).exists():
        return
    if system == "galip":
        recipe = quality_recipe(
            data, folder.parents[1] / "table", folder, seed, arguments.cpu_minutes, arguments.overrides
        )
        result = train_galip(recipe, scorer)
    else:
        result = cyclegan.train_cyclegan(
            table,
            scorer.domains,
            scorer,
            folder,
            seed,
            arguments.cpu_minutes,
            arguments.cyclegan_width,
            arguments.cyclegan_identity,
        )
    budget = {"cpu_minutes": arguments.cpu_minutes, "seed": seed, "overrides": arguments.overrides}
    write_json(folder / RESULT, {"environment": common.environment(), **budget, **result})


def read_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """System -> results of its seeds, of all that have ended."""
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"*/seed-*/{RESULT}")):
        results.setdefault(path.parents[1].name, []).append(json.loads(path.read_text(encoding="utf-8")))
    return results


def run(arguments: argparse.Namespace) -> str:
    """Everything; returns the table.

    Raises:
        GalipError: the data cannot be had, or a recipe does not fit.
    """
    torch.set_num_threads(arguments.threads)
    data, folder = DATA_SETS[arguments.data], arguments.output / arguments.data
    table, scorer, floors = prepared(data, arguments.source, folder)
    for system in arguments.systems:
        name = arguments.name if system == "galip" else f"cyclegan-{arguments.cyclegan_width}"
        for seed in arguments.seeds:
            run_system(system, data, table, scorer, folder / name / f"seed-{seed}", seed, arguments)
    results = read_results(folder)
    write_json(folder / "results.json", {"floors": floors, "systems": results})
    save_curve(floors, results, f"{arguments.data}: mean of all directions", folder / "curve.png")
    return table_of(floors, results)


def main() -> int:
    logging.basicConfig(format="%(message)s")
    arguments = make_parser().parse_args()
    try:
        print(run(arguments))
    except GalipError as error:
        print(f"benchmarks.quality: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
