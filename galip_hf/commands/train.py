"""`galip-hf train`: a model trained from a YAML recipe, by one or many processes."""

import argparse
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from ..model.errors import GalipError
from .startup import keep_freed_memory

STARTERS = ("phantom", "ixi", "brats", "ct-mr", "files")


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "train",
        help="train a model from a YAML recipe",
        description="Train a model from a YAML recipe. For several processes: "
        "accelerate launch -m galip_hf train RECIPE.yaml ...",
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE.yaml", help="see --init for one to start from")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="replaces a key of the recipe, such as training.max_steps=100",
    )
    parser.add_argument(
        "--init", choices=STARTERS, help="print a commented recipe to start from: --init ixi > mine.yaml"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print data, parameters, steps and an estimate of memory, and stop; nothing is written",
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="USER/NAME",
        help="push the model at the end; the same as training.hub_repo_id=USER/NAME",
    )
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    if arguments.init:
        if arguments.recipe or arguments.dry_run or arguments.push_to_hub:
            raise GalipError("--init prints a recipe and trains nothing; leave everything else out")
        print(starter(arguments.init), end="")
        return 0
    if not arguments.recipe:
        raise GalipError("no recipe was given; expected RECIPE.yaml, or --init to print one to start from")
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # open_clip logs each step of loading
    logging.getLogger("galip_hf").setLevel(logging.INFO)
    from ..training.recipe import load_recipe

    overrides = list(arguments.overrides)
    if arguments.push_to_hub:
        overrides.append(f"training.hub_repo_id={arguments.push_to_hub}")
    recipe = load_recipe(arguments.recipe, overrides)
    if arguments.dry_run:
        from ..training.dry_run import describe_run

        for line in describe_run(recipe):
            print(line)
        return 0
    from ..training.run_recipe import run_recipe

    trainer = run_recipe(recipe)
    is_main = trainer.processes.state.is_main_process
    if trainer.stopped_by:
        if is_main:
            print(f"galip-hf: {trainer.stopped_by}; go on with training.resume=true", file=sys.stderr)
        return 128 + signal.Signals[trainer.stopped_by]  # as a shell reports a signal
    if is_main:
        print(f"model: {recipe.training.output_path / 'model'}")
    return 0


def starter(name: str) -> str:
    """The text of a recipe to start from; `name` is one of `STARTERS`."""
    path = Path(__file__).parents[1] / "training" / "starters" / f"{name}.yaml"
    return path.read_text(encoding="utf-8")


__all__ = ["STARTERS", "add_parser", "starter"]
