"""`hub_repo_id` of a training run: may we push, asked before the first step; the push, after the last."""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GalipError
from .hub import check_push, push_model_directory

if TYPE_CHECKING:
    from .trainer import GalipTrainer

logger = logging.getLogger(__name__)


def check_push_of_run(trainer: "GalipTrainer") -> None:
    """Make the repository and see that it may be pushed to; on the first process, the others fail with it.

    Raises:
        GalipError: it may not.
    """
    repo, private = str(trainer.arguments.hub_repo_id), trainer.arguments.hub_private or None
    trainer.processes.on_main(lambda: check_push(repo, private=private))


def push_run(trainer: "GalipTrainer") -> None:
    """Push the best model, or where none was looked for the last one; both are on the disk by now.

    Raises:
        GalipError: the push failed; it says how to push by hand.
    """
    arguments = trainer.arguments
    directory = arguments.output_path / "best"
    if not trainer.best or not directory.is_dir():
        directory = arguments.output_path / "model"
    trainer.processes.on_main(lambda: _push(directory, str(arguments.hub_repo_id), arguments.hub_private))


def _push(directory: Path, repo: str, private: bool) -> None:
    try:
        commit = push_model_directory(directory, repo, private=private or None)
    except GalipError as error:
        command = shlex.join(["galip-hf", "push", str(directory), repo, *["--private"] * private])
        raise GalipError(
            f"{error}; training is over and the model whole in {directory}: push it by hand with {command}"
        ) from None
    logger.info("pushed %s: %s", directory, commit.commit_url)


__all__ = ["check_push_of_run", "push_run"]
