"""`hub_repo_id` of a training run: may we push, asked before the first step; the push, after the last."""

import logging
import shlex
from pathlib import Path

from ..hub.push import check_push, push_model_directory
from ..model.errors import GalipError
from .training_args import GalipTrainingArguments

logger = logging.getLogger(__name__)


def check_final_push(arguments: GalipTrainingArguments) -> None:
    """Make the repository and see that it may be pushed to.

    Raises:
        GalipError: it may not.
    """
    check_push(str(arguments.hub_repo_id), private=arguments.hub_private or None)


def push_final_model(arguments: GalipTrainingArguments) -> None:
    """Push the best model, or the last one where no metric was chosen; both are on the disk by now.

    Raises:
        GalipError: the push failed; the message says how to push by hand.
    """
    directory: Path = arguments.output_path / "best"
    if not arguments.metric_for_best or not directory.is_dir():
        directory = arguments.output_path / "model"
    repo, private = str(arguments.hub_repo_id), arguments.hub_private
    try:
        commit = push_model_directory(directory, repo, private=private or None)
    except GalipError as error:
        command = shlex.join(["galip-hf", "push", str(directory), repo, *["--private"] * private])
        raise GalipError(
            f"{error}; training is over and the model whole in {directory}: push it by hand with {command}"
        ) from None
    logger.info("pushed %s: %s", directory, commit.commit_url)


__all__ = ["check_final_push", "push_final_model"]
