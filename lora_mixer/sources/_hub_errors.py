"""What went wrong at the Hub, in this package's words: what was asked for, and what to do now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub import errors as hub

from lora_mixer.errors import SourceError, SourceNotFoundError
from lora_mixer.problem import Remedy

if TYPE_CHECKING:
    from lora_mixer.sources._types import Request

OFFLINE = Remedy(
    "Load it once online (it is offline by local_files_only=True or HF_HUB_OFFLINE=1), or pass cache_dir=.",
    "Load it once online, without HF_HUB_OFFLINE=1.",
    "Load it once online: this page was started with HF_HUB_OFFLINE=1.",
)
"""What can be done where nothing may be downloaded and the cache has not got it."""
_LOG_IN = "For a private one run 'hf auth login'."


def translate(  # noqa: PLR0911  (one way out per kind of error)
    error: Exception, repo_id: str, request: Request, name: str | None = None
) -> SourceError:
    """
    Return the SourceError for an error of huggingface_hub or of the network below it.

    Args:
        error: What was raised.
        repo_id: The repository that was asked for.
        request: What the caller said about it.
        name: The file that was asked for, where it was one.
    """
    revision = request.revision or "main"
    label = f"{repo_id}: {name}" if name else repo_id
    # GatedRepoError is a RepositoryNotFoundError, and offline a missing file is both an entry and an error of access.
    if isinstance(error, hub.GatedRepoError):
        return SourceError(
            "is gated: its owner wants its terms accepted first. Accept them on its page at the Hub.",
            remedy=Remedy(
                "Then pass token= or run 'hf auth login'.",
                "Then run 'hf auth login'.",
                "Then run 'hf auth login' on the machine of this page.",
            ),
            file=repo_id,
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return SourceNotFoundError(
            "There is no such repository at the Hub, or it is private and the token is missing or wrong; "
            "nor is there a file or folder of that name here. Check the name.",
            remedy=Remedy("For a private one pass token=.", _LOG_IN, _LOG_IN),
            file=repo_id,
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return SourceNotFoundError(
            f"has no revision {revision!r}. Check the branch, tag or commit.", file=repo_id
        )
    if isinstance(error, hub.LocalEntryNotFoundError):
        return _not_cached(error, label, revision, request)
    if isinstance(error, hub.EntryNotFoundError):
        return SourceNotFoundError(
            f"There is no such file at revision {revision!r}.",
            remedy=Remedy(
                "Check weight_name= and subfolder=, or leave them out to have the files listed.",
                "Name the repository alone to have the files listed.",
                "Leave the file out to have the files listed.",
            ),
            file=label,
        )
    if isinstance(error, hub.HfHubHTTPError):
        status = getattr(error.response, "status_code", "no status")
        return SourceError(
            f"The Hub refused it: HTTP {status}. It said: {_first_line(error)}",
            remedy=_advice(status),
            file=label,
        )
    return SourceError(
        f"could not be fetched from the Hub: {type(error).__name__}: {_first_line(error)} Check the network.",
        remedy=Remedy(
            "Or use what is cached with local_files_only=True.",
            "Or set HF_HUB_OFFLINE=1 to use what is cached.",
        ),
        file=label,
    )


def _not_cached(error: Exception, label: str, revision: str, request: Request) -> SourceError:
    where = f"the cache ({request.cache_dir or 'its usual place'})"
    if request.local_files_only:
        return SourceNotFoundError(
            f"is not in {where} at revision {revision!r}, and nothing may be downloaded.",
            remedy=OFFLINE,
            file=label,
        )
    cause = error.__cause__ or error
    return SourceError(
        f"The Hub did not answer, and {where} does not have it: {type(cause).__name__}: "
        f"{_first_line(cause)} Check the network and try again.",
        file=label,
    )


def _advice(status: object) -> Remedy:
    if status in (401, 403):
        log_in = "Log in as one who may read it, by 'hf auth login'."
        return Remedy("Pass a token= that may read it.", log_in, log_in)
    if status == 429:
        return Remedy.same("Too many requests: wait a little.")
    return Remedy.same("Try again later.")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n", 1)[0]
    return text if text.endswith(".") else f"{text}."
