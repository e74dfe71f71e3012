"""The hub: what a name that is no folder here means, and a quick word when no hub answers.

Its client by itself waits for an answer without end, so each use begins with one question under a short time limit.
HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE mean what they mean to the client.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from metamoe_backend.errors import InputError, NotFoundError, UnavailableError

PROBE_TIMEOUT_S = 5.0
HUB_ID = re.compile(r"[\w][\w.\-]*(/[\w][\w.\-]*)?")


class UnreachableError(UnavailableError):
    """No hub answers, or none that works: what an earlier download left may do."""


def find_model_folder(name: str, patterns: Sequence[str], what: str, remedy: str, *, subfolders: bool = False) -> Path:
    """The folder called `name`, else one with the files of the hub model `name` that match `patterns`.

    Files in `subfolders` are fetched only if asked for. Without a hub it is what an earlier download left.
    Errors begin with `what` and end with `remedy`: `InputError` for a name that can be neither, `UnavailableError`
    where the hub does not answer, does not know it, or does not give it out.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{what} is a file, not a folder; {remedy}.")
    if not HUB_ID.fullmatch(name):
        raise InputError(f"{what} is neither a folder here nor a hub id (OWNER/NAME); {remedy}.")
    return _download(name, patterns, [] if subfolders else ["*/*"], what, remedy)


def _download(repo: str, patterns: Sequence[str], ignored: Sequence[str], what: str, remedy: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    reason = ""
    try:
        probe(repo, "model")
    except UnreachableError as error:
        reason = str(error)
    except (NotFoundError, UnavailableError) as error:
        raise UnavailableError(f"{what} is no folder here, and {error}; {remedy}.") from None
    try:
        folder = snapshot_download(
            repo, allow_patterns=list(patterns), ignore_patterns=list(ignored), local_files_only=bool(reason)
        )
    except HFValidationError:
        raise InputError(f"{what} is neither a folder here nor a hub id (OWNER/NAME); {remedy}.") from None
    except Exception as error:  # the http client's own errors, which change with its version
        reason = reason or f"the download broke off ({_first_line(error)})"
        raise UnavailableError(f"{what} is no folder here, and {reason}; {remedy}.") from error
    return Path(folder)


def probe(repo: str, kind: Literal["model", "dataset"]) -> None:
    """Ask the hub once for a repository, under a time limit.

    Raises `UnreachableError` where none answers (or HF_HUB_OFFLINE is set), `NotFoundError` for an unknown repository,
    `UnavailableError` where its owner must give leave first; each message is half a sentence.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    noun = {"model": "model", "dataset": "data set"}[kind]
    try:
        HfApi().repo_info(repo, repo_type=kind, timeout=PROBE_TIMEOUT_S)
    except GatedRepoError:
        raise UnavailableError(f"the hub gives {repo!r} only with its owner's leave (ask, then set HF_TOKEN)") from None
    except RepositoryNotFoundError:
        raise NotFoundError(f"the hub has no {noun} {repo!r} (or it is private: set HF_TOKEN)") from None
    except HfHubHTTPError as error:
        raise UnreachableError(f"the hub cannot be reached (it answers {error.response.status_code})") from None
    except Exception as error:  # the http client's own errors, which change with its version
        raise UnreachableError(f"the hub cannot be reached ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__
