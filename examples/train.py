"""Train a model from a YAML recipe, on one or many processes.

python examples/train.py --config examples/configs/phantom.yaml training.max_steps=100
accelerate launch examples/train.py --config examples/configs/phantom.yaml --push-to-hub USER/NAME
"""

import argparse
import logging
import signal
import sys

from galip_hf.cli import quiet_libraries
from galip_hf.commands.startup import keep_freed_memory
from galip_hf.model.errors import GalipError
from galip_hf.training.recipe import load_recipe
from galip_hf.training.run_recipe import run_recipe


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a model from a YAML recipe.")
    parser.add_argument("--config", required=True, help="recipe, for example examples/configs/phantom.yaml")
    parser.add_argument(
        "--push-to-hub", metavar="USER/NAME", help="push the model at the end: training.hub_repo_id=USER/NAME"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example training.max_steps=100"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # open_clip tells every step of loading
    logging.getLogger("galip_hf").setLevel(logging.INFO)
    quiet_libraries()
    keep_freed_memory()
    try:
        pushing = [f"training.hub_repo_id={arguments.push_to_hub}"] if arguments.push_to_hub else []
        recipe = load_recipe(arguments.config, [*arguments.overrides, *pushing])
        stopped_by = run_recipe(recipe).stopped_by
    except GalipError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the training began, or twice
        print("train.py: interrupted", file=sys.stderr)
        return 130
    if stopped_by:
        print(f"train.py: {stopped_by}; go on with training.resume=true", file=sys.stderr)
        return 128 + signal.Signals[stopped_by]  # as a shell tells it
    print(f"model: {recipe.training.output_path / 'model'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
