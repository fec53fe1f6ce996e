"""Models to and from the Hugging Face Hub, in one commit each way, with errors that say what to do.

`push_model_directory` puts model, processor and card into one commit. `resolve_model` turns a
repository into a directory of the client's cache, whose files are compared with the Hub's checksums:
`from_pretrained` itself loads a same-size corruption silently. Tokens come from the client (HF_TOKEN or
`hf auth login`) and are in no message.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.dynamic_module_utils import get_relative_import_files

from .errors import GalipError
from .weight_files import file_names

CONFIG, PROCESSOR, CARD = "config.json", "preprocessor_config.json", "README.md"

# Where the Auto classes of transformers find the code in a repository that carries it.
CODE = {
    CONFIG: {
        "AutoConfig": "configuration_galip.GalipConfig",
        "AutoModelForImageToImage": "modeling_galip.GalipForImageTranslation",
    },
    PROCESSOR: {"AutoImageProcessor": "image_processing_galip.GalipImageProcessor"},
}

_ANSWERS = {
    401: "the Hub does not accept the token; log in again (`hf auth login`) or correct HF_TOKEN",
    403: "the token has no right to do this; use one that may, or another repository",
    404: "the Hub has no such page",
    409: "it exists already",
    412: "somebody else has pushed since; look at their change and push again",
    413: "the Hub finds a file too large",
    429: "too many requests; wait some minutes and try again",
}


class HubError(GalipError):
    """The Hub cannot be reached, refuses, or what it sent is damaged. One line, without the token."""


@contextmanager
def hub_errors(subject: str, token: str | bool | None = None) -> Iterator[None]:
    """Turn what the client raises inside the block into a HubError about `subject`."""
    try:
        yield
    except GalipError:
        raise
    except (HTTPError, OSError, EntryNotFoundError, ValueError, RuntimeError) as error:
        reason = " ".join(_reason(error).split())
        for secret in (token, get_token()):  # no client message holds one; should one ever, it stops here
            if isinstance(secret, str) and secret:
                reason = reason.replace(secret, "<token>")
        raise HubError(f"{subject}: {reason}") from None


def _reason(error: BaseException) -> str:
    """What happened and what to do, of an error of the client."""
    if isinstance(error, GatedRepoError):
        return "the repository is gated; ask for access on its page and log in (`hf auth login`)"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "no such repository on the Hub, or a private one; check the name, or log in (`hf auth login`, or "
            "HF_TOKEN) with a token that may read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision; expected a branch, a tag or a commit of it"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        said = (error.response.headers.get("X-Error-Message") or "")[:200]
        if status >= 500:
            reason = "the Hub is failing; try again later"
        else:
            reason = _ANSWERS.get(status, "the Hub refused")
        return f"{reason} (HTTP {status}{': ' + said if said else ''})"
    if isinstance(error, OfflineModeIsEnabled):
        return "it is not in the cache, and HF_HUB_OFFLINE is set; download it once with the network on"
    if isinstance(error, LocalEntryNotFoundError):
        if error.__cause__ is not None:
            return f"it is not in the cache, and {_reason(error.__cause__)}"
        return "it is not whole in the cache; download it once with the network on"
    if isinstance(error, HTTPError):
        return (
            f"the Hub cannot be reached ({type(error).__name__}: {error}); check the network or HF_ENDPOINT"
        )
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of an upload
        return f"{error} {_reason(error.__cause__)}"
    return str(error) or type(error).__name__


# Pull


def resolve_model(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    verify: bool | None = None,
    subfolder: str = "",
    variant: str | None = None,
) -> Path:
    """A directory with config.json, the weights and preprocessor_config.json of a model.

    A cached model needs no network. No code is downloaded, and no pickle.

    Args:
        source: a local directory, which is taken as it is, or a repository `user/name` of the Hub.
        revision: branch, tag or commit of the repository; `main` by default.
        token: access token, or True for the stored one, which is also the default.
        verify: None compares the files with the checksums that the Hub sent when they were downloaded; True
            asks the Hub for them anew; False compares nothing. A file that differs is taken out of the cache.
        subfolder: folder of the directory or repository that holds the model.
        variant: of the weights: `ema` stands for model.ema.safetensors.

    Raises:
        GalipError: no such directory; a subfolder or variant that names no place inside.
        HubError: no such repository, revision or model in it; no access; not reachable and not cached; a file
            differs from its checksum.
    """
    name = os.fspath(source)
    subfolder, weights = checked_subfolder(subfolder), weights_name(variant)
    if os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        directory = Path(name).expanduser() / subfolder
        if not directory.is_dir():
            raise GalipError(
                f"{directory}: no such model directory; expected one written by save_pretrained, or user/name"
            )
        if revision is not None or verify:
            option = "revision" if revision is not None else "verify"
            raise GalipError(f"{name}: {option} was given, but this is a local directory; leave it out")
        return directory
    files = [str(PurePosixPath(subfolder, file)) for file in (CONFIG, weights, PROCESSOR)]
    snapshot = _snapshot(name, files, revision, token)
    if verify:
        _verify_with_hub(name, snapshot, token)
    elif verify is None:
        _verify_blobs(name, [snapshot / file for file in files])
    return snapshot / subfolder


def _snapshot(name: str, files: Sequence[str], revision: str | None, token: str | bool | None) -> Path:
    """The folder of the cache with `files`, downloaded if the Hub has newer ones and can be asked."""

    def folder(**options: Any) -> Path:
        return Path(
            snapshot_download(name, revision=revision, token=token, allow_patterns=list(files), **options)
        )

    def whole(snapshot: Path) -> bool:
        return all((snapshot / file).is_file() for file in files)

    with hub_errors(name, token):
        try:
            snapshot = folder()
        except (
            HTTPError
        ) as error:  # the client looks into its cache for refused connections, not for cut ones
            with suppress(LocalEntryNotFoundError):
                if not isinstance(error, HfHubHTTPError) and whole(snapshot := folder(local_files_only=True)):
                    return snapshot
            raise
        for file in files:
            if not (snapshot / file).is_file():  # not in the repository, or the Hub could not be asked
                _download(name, file, snapshot.name, token)
    return snapshot


def _download(name: str, file: str, commit: str, token: str | bool | None) -> None:
    try:
        hf_hub_download(name, file, revision=commit, token=token)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise
        raise HubError(
            f"{name}: {file} is not in the repository; expected config.json, the weights and {PROCESSOR} "
            "beside each other (a pickle in place of safetensors could run code and is not loaded)"
        ) from None


def checked_subfolder(subfolder: str) -> str:
    """A folder inside a repository, as given; GalipError for one that could lead out or match several."""
    parts = PurePosixPath(subfolder).parts
    if ".." in parts or "/" in parts or re.search(r"[\\*?\[\]:\x00-\x1f]", subfolder):
        raise GalipError(f"subfolder {subfolder!r}: expected a folder of the repository, such as 'ema/best'")
    return subfolder


def weights_name(variant: str | None) -> str:
    """Name of the weights' file: `model.safetensors`, or `model.ema.safetensors` for the variant `ema`."""
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", variant):
        raise GalipError(f"variant {variant!r}: expected letters, digits, - and _, such as 'ema'")
    return file_names(variant)[0]


def _verify_blobs(name: str, paths: Sequence[Path]) -> None:
    """Compare cached files with the checksums they are named by: sha256 for large files, git's for others."""
    for path in paths:
        blob = path.resolve()
        if not path.is_symlink() or len(blob.name) not in (40, 64):
            continue  # a cache without links (Windows) has no names to compare with
        content = blob.read_bytes()
        digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % len(content))
        digest.update(content)
        if digest.hexdigest() != blob.name:
            _discard(name, path)


def _verify_with_hub(name: str, snapshot: Path, token: str | bool | None) -> None:
    with hub_errors(name, token):
        verified = HfApi().verify_repo_checksums(name, revision=snapshot.name, token=token)
    for mismatch in verified.mismatches:
        _discard(name, snapshot / mismatch["path"])


def _discard(name: str, path: Path) -> None:
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)
    raise HubError(
        f"{name}: {path.name} differs from the Hub's checksum: damaged on the way or on this disk; it was "
        "taken out of the cache, so run the command again"
    )


# Push


def check_push(repo: str, *, private: bool | None = None, token: str | bool | None = None) -> None:
    """Make the repository if it is not there, and see that it may be pushed to: now, not after the training.

    Raises:
        HubError: no token, one that the Hub does not accept or that may not write there, or no Hub.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repo}: cannot be pushed to while HF_HUB_OFFLINE is set; unset it")
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
    rests upon (`cards.evidence`: report.json, training.json, pictures) and, with `with_code`, the code;
    nothing else in the directory is.

    The card is made anew from the files (`cards.model_card`). What people wrote in it stays: in the
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
        loading = {"subfolder": subfolder, "variant": variant}
        files[card] = _checked_card(
            directory,
            repo=repo,
            pushed=pushed_card,
            loading={name: value for name, value in loading.items() if value},
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
    from .image_processing_galip import GalipImageProcessor

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
    from .cards import evidence
    from .image_processing_galip import GalipImageProcessor
    from .modeling_galip import GalipForImageTranslation

    weights = weights_name(variant)
    own = variant if (directory / weights).is_file() else None
    if not directory.is_dir():
        raise GalipError(f"{directory}: no such model directory; expected one written by save_pretrained")
    model = GalipForImageTranslation.from_pretrained(directory, variant=own)
    for name in (PROCESSOR, weights_name(own)):
        if not (directory / name).is_file():  # of several weight files, `from_pretrained` reads a list
            raise GalipError(f"{directory}: {name} is missing; save the model and its processor there first")
    GalipImageProcessor.from_pretrained(directory)
    files: dict[str, bytes | str] = {name: str(directory / name) for name in (CONFIG, PROCESSOR)}
    files[weights] = str(directory / weights_name(own))
    files |= {name: str(directory / name) for name in evidence(directory)}
    code: dict[str, bytes | str] = {}
    if with_code or hasattr(model.config, "auto_map"):
        code = code_files()
        files |= {name: _with_auto_map(directory / name, auto_map) for name, auto_map in CODE.items()}
    return {str(PurePosixPath(subfolder, name)): content for name, content in files.items()} | code


def code_files() -> dict[str, bytes | str]:
    """The modules that model and processor need for inference: names -> paths.

    They are those that `register_for_auto_class` makes `save_pretrained` copy.
    """
    package = Path(__file__).parent
    modules: set[str] = set()
    for auto_map in CODE.values():
        for reference in auto_map.values():
            module = str(package / f"{reference.partition('.')[0]}.py")
            modules |= {module, *get_relative_import_files(module)}
    return {Path(module).name: module for module in sorted(modules)}


def _with_auto_map(path: Path, auto_map: dict[str, str]) -> bytes:
    """A configuration file, as transformers writes it, with the place of the code in it."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return (json.dumps({**values, "auto_map": auto_map}, indent=2, sort_keys=True) + "\n").encode()


def _checked_card(directory: Path, **options: Any) -> str:
    """`cards.model_card`, every number of which is in the directory's report."""
    from .card_check import check_card
    from .cards import model_card

    text = model_card(directory, **options)
    if faults := check_card(directory, text):
        more = f" (and {len(faults) - 1} more, see galip-hf card --check)" if len(faults) > 1 else ""
        raise GalipError(f"{directory}: not pushed; {faults[0]}{more}")
    return text


__all__ = ["HubError", "check_push", "hub_errors", "push_model", "push_model_directory", "resolve_model"]
