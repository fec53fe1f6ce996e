"""What the Hub's client raises, as one line that says what to do; tokens are in no message."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_token
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

from ..model.errors import GalipError

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


def check_online(repo: str) -> None:
    """HubError where HF_HUB_OFFLINE forbids to push to `repo`."""
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repo}: cannot be pushed to while HF_HUB_OFFLINE is set; unset it")


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
        if isinstance(error.__cause__, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
            return _reason(error.__cause__)  # which says of the cache what there is to say
        if error.__cause__ is not None:
            return f"it is not in the cache, and {_reason(error.__cause__)}"
        return "it is not whole in the cache; download it once with the network on"
    if isinstance(error, HTTPError):
        return (
            f"the Hub cannot be reached ({type(error).__name__}: {error}); check the network or HF_ENDPOINT"
        )
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of an upload
        return f"{error} {_reason(error.__cause__)}"
    if "force_download" in str(error):  # of the client, which knows no option of ours
        return f"{str(error).split(' Please retry')[0].rstrip('. ')}; run the command again"
    return str(error) or type(error).__name__


__all__ = ["HubError", "check_online", "hub_errors"]
