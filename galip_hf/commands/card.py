"""`galip-hf card`: write the card of a model, or check that each of its numbers was measured."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError

if TYPE_CHECKING:
    from ..hub.card_rendering import CardFacts


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("card", help="write a model's card from what was measured, or check it")
    parser.add_argument(
        "source", help="model directory; or the recipe (.yaml) of a model that has no weights yet"
    )
    parser.add_argument(
        "--report",
        help="folder of `galip-hf evaluate` to take report.json and pictures from, or report.json alone",
    )
    parser.add_argument("--repo", help="repository that the usage names, user/name (default: the directory)")
    parser.add_argument("--license", help="licence of the weights, such as apache-2.0")
    parser.add_argument("--output", metavar="FILE.md", help="card to write of a recipe's model")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where a number is unfounded"
    )
    parser.set_defaults(run=_card)


def _card(arguments: argparse.Namespace) -> int:
    source = Path(arguments.source)
    is_recipe = source.suffix in (".yaml", ".yml")
    if bool(arguments.output) != is_recipe:
        raise GalipError("--output names the card of a recipe's model; a model directory's is its README.md")
    if is_recipe and (arguments.report or arguments.repo):
        raise GalipError(f"{source}: a model without weights has no report and no repository; leave them out")
    if not is_recipe and not (source / "config.json").is_file():
        raise GalipError(f"{source}: not a model directory (no config.json in it), nor a recipe (.yaml)")
    if arguments.check:
        return _check(source, Path(arguments.output) if is_recipe else None)
    return _write(arguments, source, is_recipe)


def _write(arguments: argparse.Namespace, source: Path, is_recipe: bool) -> int:
    from ..files import atomic_write
    from ..hub.card import evidence, model_card, read_card, updated_card
    from ..hub.model_directory import CARD

    path = Path(arguments.output) if is_recipe else source / CARD
    if is_recipe:
        text = str(updated_card(read_card(path), planned_facts(source), arguments.license))
    else:
        if arguments.report:
            _take_report(Path(arguments.report), source)
        text = model_card(source, repo=arguments.repo, license=arguments.license)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(path)
    if not is_recipe and (files := evidence(source)):
        print(f"a push publishes these files too, so check their content: {', '.join(files)}")
    return _check(source, path if is_recipe else None)


def _take_report(report: Path, directory: Path) -> None:
    """Copy a report and its pictures beside the weights, if it is of these weights."""
    from ..files import atomic_write, read_json
    from ..hub.card import check_report
    from ..hub.model_directory import REPORT

    path = report / REPORT if report.is_dir() else report
    check_report(directory, read_json(path), path)
    if path.resolve() == (directory / REPORT).resolve():
        return
    with atomic_write(directory / REPORT) as temporary:
        shutil.copyfile(path, temporary)
    if report.is_dir() and (report / "panels").is_dir():
        with atomic_write(directory / "panels") as temporary:
            shutil.copytree(path.parent / "panels", temporary)


def _check(source: Path, planned: Path | None) -> int:
    from ..files import read_text
    from ..hub.card import parse_card
    from ..hub.card_check import card_faults, check_card

    if planned is None:
        faults = check_card(source)
    else:
        card = parse_card(read_text(planned), str(planned))
        faults = card_faults(card, planned_facts(source), str(planned))
    for fault in faults:
        print(fault)
    if not faults:
        print("each number in the card is in the report" if planned is None else "the card claims no score")
    return 1 if faults else 0


def planned_facts(recipe_path: Path) -> "CardFacts":
    """What a recipe says for the card of the model that it would train: nothing that is measured.

    Raises:
        GalipError: the recipe cannot be read.
    """
    from ..hub.card_rendering import CardFacts
    from ..model.configuration_galip import GalipConfig
    from ..training.recipe import load_recipe
    from ..training.run_facts import recipe_facts

    recipe = load_recipe(recipe_path)
    training = {**recipe_facts(recipe, None), "settings": recipe.training.to_dict()}
    return CardFacts(GalipConfig.from_dict(recipe.model), training, recipe=recipe_path.name)
