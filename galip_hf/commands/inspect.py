"""`galip-hf inspect`: what is in a table, in words and as a picture."""

import argparse
from pathlib import Path
from typing import Any

from ..model.errors import GalipError


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("inspect", help="print what is in a table of slices, and draw a montage")
    parser.add_argument(
        "dataset", help="table made by galip-hf prepare, or a data set of the Hub (user/name)"
    )
    parser.add_argument("--montage", metavar="FILE.png", help="picture to write (default: NAME.png)")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    from ..figures import save_montage
    from ..files import read_json
    from ..prepare.describe import count_table, describe_summary, sample_slices
    from ..prepare.splits import split_hash

    directory = Path(arguments.dataset)
    tables = _load(arguments.dataset)
    counted = count_table(tables)
    counted["split_hash"] = split_hash({name: its["subjects"] for name, its in counted["splits"].items()})
    summary = counted
    if (directory / "summary.json").is_file():
        stored = read_json(directory / "summary.json")
        if stored.get("split_hash") not in (None, counted["split_hash"]):
            raise GalipError(
                f"{directory}: the subjects in the table are not those of its summary.json (split hash "
                f"{counted['split_hash'][:12]}, stated {str(stored['split_hash'])[:12]}); prepare it again"
            )
        summary = {**stored, **counted}
    print(arguments.dataset)
    print(describe_summary(summary))
    for domain, values in counted["intensities_in_table"].items():
        print(
            f"  {domain} in the table: {values['min']:.3f}..{values['max']:.3f}, mean {values['mean']:.3f}, "
            f"SD {values['sd']:.3f}"
        )
    montage = arguments.montage or f"{directory.name}.png"
    slices, titles = sample_slices(tables)
    print(f"  montage: {save_montage(slices, montage, titles=titles, title=directory.name)}")


def _load(dataset: str) -> Any:
    from ..data.table import COLUMNS, load_table

    if Path(dataset).exists() or dataset.count("/") != 1 or dataset.startswith((".", "/", "~")):
        return load_table(dataset)
    import datasets

    try:
        tables = datasets.load_dataset(dataset)
    except (OSError, ValueError) as error:  # the Hub's errors are OSErrors
        raise GalipError(
            f"{dataset}: neither a folder nor a data set of the Hub ({' '.join(str(error).split())[:160]})"
        ) from None
    if any(not set(COLUMNS) <= set(table.column_names) for table in tables.values()):
        raise GalipError(f"{dataset}: not a table of slices; expected the columns {', '.join(COLUMNS)}")
    return tables
