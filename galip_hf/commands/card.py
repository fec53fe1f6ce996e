"""`galip-hf card`: write the card of a model, or check that each of its numbers was measured."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError

if TYPE_CHECKING:
    from ..training.recipe import Recipe


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
    from ..hub.card import evidence, model_card
    from ..hub.model_directory import CARD

    if arguments.report:
        _take_report(Path(arguments.report), source)
    path = Path(arguments.output) if is_recipe else source / CARD
    if is_recipe:
        text = planned_card(source, path, arguments.license)
    else:
        text = model_card(source, repo=arguments.repo, license=arguments.license)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(path)
    if not is_recipe and (files := evidence(source)):
        print(f"pushed with it, so look whether they may be: {', '.join(files)}")
    return _check(source, path if is_recipe else None)


def _take_report(report: Path, directory: Path) -> None:
    """Copy a report and its pictures beside the weights, if it is of these weights."""
    from ..files import atomic_write
    from ..hub.card import check_report
    from ..hub.model_directory import REPORT, read_json

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
    from ..hub.card_check import check_card

    faults = check_planned_card(source, planned) if planned else check_card(source)
    for fault in faults:
        print(fault)
    if not faults:
        print("each number in the card is in the report" if planned is None else "the card claims no score")
    return 1 if faults else 0


# The card of a model that a recipe would make


def planned_card(recipe_path: str | Path, path: str | Path, license: str | None = None) -> str:
    """The card of a model that a recipe would make: marked as without weights, and without any score.

    Args:
        recipe_path: the recipe.
        path: of the card, whose text written by hand is kept if it is there.
        license: as in `model_card`.

    Raises:
        GalipError: the recipe or the card cannot be read.
    """
    from ..hub.card import merged_text, parse_card
    from ..hub.card_rendering import render_card
    from ..hub.model_directory import read_text
    from ..model.configuration_galip import GalipConfig
    from ..training.recipe import load_recipe

    path, recipe_path = Path(path), Path(recipe_path)
    base = parse_card(read_text(path), str(path)) if path.is_file() else None
    if base is not None and license is not None:
        base.data.license = license
    recipe = load_recipe(recipe_path)
    config = GalipConfig.from_dict(recipe.model)
    fresh = render_card(config, base, license, plan=_plan(recipe, recipe_path.name))
    return merged_text(base, fresh, ())


def _plan(recipe: "Recipe", name: str) -> dict[str, Any]:
    from ..training.run_facts import recipe_facts

    facts = recipe_facts(recipe, None)
    return {
        "recipe": name,
        "data": facts["data"]["description"],
        "clip": facts["clip"],
        "settings": recipe.training.to_dict(),
    }


def check_planned_card(recipe_path: str | Path, path: str | Path) -> list[str]:
    """What is wrong with the card of a model without weights: scores, sections the recipe does not give.

    Raises:
        GalipError: the recipe or the card cannot be read.
    """
    from ..hub.card import parse_card
    from ..hub.card_check import scores_by_hand
    from ..hub.model_directory import read_text

    path = Path(path)
    card = parse_card(read_text(path), str(path))
    faults = [
        f"{path}, text by hand: {number}, but there are no weights; a quotation links to its source"
        for number in scores_by_hand(card.text)
    ]
    if str(card).rstrip() != planned_card(recipe_path, path).rstrip():
        faults.append(f"{path}: not what {recipe_path} gives; write it again (galip-hf card)")
    return faults
