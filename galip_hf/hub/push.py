"""Model, processor and card to the Hugging Face Hub, in one commit.

Tokens come from the client (HF_TOKEN or `hf auth login`) and are in no message.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_token, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..model.errors import GalipError
from ..model.intensity import IntensityNormalizer
from ..model.unet import load_generator
from .card import evidence, model_card
from .card_check import check_card
from .errors import HubError, check_online, hub_errors
from .model_directory import CARD, CONFIG, PROCESSOR
from .pull import checked_subfolder, weights_name

# Where the Auto classes of transformers find the code in a repository that carries it.
CODE = {
    CONFIG: {
        "AutoConfig": "configuration_galip.GalipConfig",
        "AutoModelForImageToImage": "modeling_galip.GalipForImageTranslation",
    },
    PROCESSOR: {"AutoImageProcessor": "image_processing_galip.GalipImageProcessor"},
}


def check_push(repo: str, *, private: bool | None = None, token: str | bool | None = None) -> None:
    """Make the repository if it is not there, and see that it may be pushed to: now, not after the training.

    Raises:
        HubError: no token, one that the Hub does not accept or that may not write there, or no Hub.
    """
    check_online(repo)
    if not isinstance(token, str) and get_token() is None:
        raise HubError(f"{repo}: no token to push with; log in (`hf auth login`) or set HF_TOKEN")
    api = HfApi(token=token)
    with hub_errors(repo, token):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        api.auth_check(repo, write=True)


def push_model_directory(
    directory: str | os.PathLike[str],
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    subfolder: str = "",
    variant: str | None = None,
    with_code: bool = False,
    card_tags: Sequence[str] = (),
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Push a model directory in one commit; without a change there is none, and the last is returned.

    Pushed are config.json, the weights (safetensors only), preprocessor_config.json, the card and what it
    rests upon (`evidence`: report.json, training.json, pictures) and, with `with_code`, the code;
    nothing else in the directory is.

    The card is generated again from the files (`model_card`). What people wrote in it stays: in the
    directory's README.md where somebody edited it, else in the repository's.

    Args:
        directory: as `save_pretrained` of model and processor leave it.
        repo: `user/name`; made if it is not there.
        private: visibility of a new repository; None for the owner's default.
        revision: branch to push to; made if it is not there.
        create_pr: open a pull request instead of changing the branch.
        tag: git tag to set on the commit.
        subfolder: folder of the repository to put everything in, the card too; code lies at the top, where
            transformers looks for it.
        variant: push the weights as model.VARIANT.safetensors; from that file, or else model.safetensors.
        with_code: carry this package's code for the model and processor, so that `trust_remote_code=True`
            can load them without the package. A config.json with an `auto_map` asks for the same.
        card_tags: tags to add to the card.
        commit_message, commit_description: of the commit.
        token: access token, or True for the stored one, which is also the default.

    Raises:
        GalipError: not a model directory, its weights do not fit its config.json, or its card holds a number
            that its report does not (`card_check`).
        HubError: no access, not reachable, somebody else has pushed meanwhile, or the tag exists.
    """
    directory = Path(directory)
    if tag is not None and create_pr:
        raise GalipError(f"tag {tag!r}: a pull request cannot be tagged; merge it first")
    check_online(repo)
    subfolder = checked_subfolder(subfolder)
    files = _files_to_push(directory, subfolder, variant, with_code)
    card = str(PurePosixPath(subfolder, CARD))
    api = HfApi(token=token)
    with hub_errors(repo, token):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        parent = api.model_info(repo, revision=revision).sha
        pushed_card = _pushed_card(repo, card, parent, token)
        files[card] = _checked_card(
            directory,
            repo=repo,
            pushed=pushed_card,
            loading={"subfolder": subfolder, "variant": variant},
            has_code=with_code,
            tags=card_tags,
        ).encode()
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in sorted(files.items())],
            commit_message=commit_message or "Upload model, processor and card",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )
    if tag is not None:
        with hub_errors(f"{repo}: tag {tag!r}", token):
            api.create_tag(repo, tag=tag, revision=commit.oid)
    return commit


def push_model(
    model: Any, repo: str, *, processor: Any = None, tags: Sequence[str] = (), **options: Any
) -> CommitInfo:
    """Push a `GalipForImageTranslation` and its processor; see `push_model_directory`.

    Args:
        processor: the model's; made of its domains by default, without statistics of training slices.
        tags: of the card, as in transformers.
    """
    from ..model.image_processing_galip import GalipImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        (processor or GalipImageProcessor.from_config(model.config)).save_pretrained(folder)
        return push_model_directory(folder, repo, card_tags=tags, **options)


def _pushed_card(repo: str, path: str, revision: str | None, token: str | bool | None) -> str | None:
    """The card that the repository has; None without one."""
    try:
        file = hf_hub_download(repo, path, revision=revision, token=token)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # it could not be asked for
            raise
        return None
    return Path(file).read_text(encoding="utf-8")


def _files_to_push(
    directory: Path, subfolder: str, variant: str | None, with_code: bool
) -> dict[str, bytes | str]:
    """Paths in the repository -> contents or local paths; checks that model and processor load."""
    weights = weights_name(variant)
    own = variant if (directory / weights).is_file() else None
    if not directory.is_dir():
        raise GalipError(f"{directory}: no such model directory; expected one written by save_pretrained")
    model = load_generator(directory, variant=own)
    for name in (PROCESSOR, weights_name(own)):
        if not (directory / name).is_file():  # of several weight files, `from_pretrained` reads a list
            raise GalipError(f"{directory}: {name} is missing; save the model and its processor there first")
    IntensityNormalizer.load(directory)
    files: dict[str, bytes | str] = {name: str(directory / name) for name in (CONFIG, PROCESSOR)}
    files[weights] = str(directory / weights_name(own))
    files |= {name: str(directory / name) for name in evidence(directory)}
    code: dict[str, bytes | str] = {}
    if with_code or hasattr(model.config, "auto_map"):
        code = code_files()
        files |= {name: _with_auto_map(directory / name, auto_map) for name, auto_map in CODE.items()}
    return {str(PurePosixPath(subfolder, name)): content for name, content in files.items()} | code


def code_files() -> dict[str, bytes | str]:
    """The code that model and processor need for inference, the folder `galip_hf/model`: names -> paths."""
    folder = Path(__file__).parents[1] / "model"
    return {path.name: str(path) for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"}


def _with_auto_map(path: Path, auto_map: dict[str, str]) -> bytes:
    """A configuration file, as transformers writes it, with the place of the code in it."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return (json.dumps({**values, "auto_map": auto_map}, indent=2, sort_keys=True) + "\n").encode()


def _checked_card(directory: Path, **options: Any) -> str:
    """`model_card`; an error where a score in it is not in the directory's report."""
    text = model_card(directory, **options)
    if faults := check_card(directory, text):
        more = f" (and {len(faults) - 1} more, see galip-hf card --check)" if len(faults) > 1 else ""
        raise GalipError(f"{directory}: not pushed; {faults[0]}{more}")
    return text


__all__ = ["check_push", "code_files", "push_model", "push_model_directory"]
