"""`galip-hf push`: a model directory to a repository of the Hub, in one commit."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("push", help="push model, processor and card to the Hub in one commit")
    parser.add_argument("directory", help="model directory, with its preprocessor_config.json")
    parser.add_argument("repo", help="repository of the Hub, user/name; made if it is not there")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to; made if it is not there")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--tag", help="git tag to set on the commit")
    parser.add_argument("--subfolder", default="", help="folder of the repository to put everything in")
    parser.add_argument("--variant", help="push the weights as model.VARIANT.safetensors")
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="carry the code, so that transformers alone can load the model (trust_remote_code)",
    )
    parser.set_defaults(run=_push)


def _push(arguments: argparse.Namespace) -> None:
    from ..hub.push import push_model_directory

    commit = push_model_directory(
        arguments.directory,
        arguments.repo,
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        tag=arguments.tag,
        subfolder=arguments.subfolder,
        variant=arguments.variant,
        with_code=arguments.with_code,
    )
    print(commit.pr_url or commit.commit_url)
