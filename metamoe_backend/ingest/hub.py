"""Data sets from a model hub, read through `datasets` as a stream: data files only, no code from the repository."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from metamoe_backend.errors import InputError, NotFoundError, UnavailableError
from metamoe_backend.hub import HUB_ID, probe
from metamoe_backend.ingest.records import Record, Records

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_REMEDY = "use a packaged generator such as reasoning_gym:chain_sum, or a local file"


def read_hub(repo: str, config_name: str | None, split: str) -> Records:
    """Rows of one split of a data set.

    With HF_HUB_OFFLINE set, what an earlier download left in the cache. Raises `NotFoundError` for a repository that
    does not exist, `InputError` for an unknown configuration or split, `UnavailableError` where no hub answers.
    """
    if not HUB_ID.fullmatch(repo):
        raise InputError(f"{repo[:80]!r} is no hub data set; write hub:OWNER/NAME or hub:OWNER/NAME:CONFIG.")
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    if not offline:
        _probe(repo)
    rows = _load(repo, config_name, split, stream=not offline)
    return _read_rows(repo, rows)


def _probe(repo: str) -> None:
    """Ask the hub once, with a short time limit: `datasets` itself would retry for half a minute first."""
    try:
        probe(repo, "dataset")
    except NotFoundError as error:
        raise NotFoundError(f"hub:{repo} cannot be read: {error}; check the name.") from None
    except UnavailableError as error:
        raise UnavailableError(f"hub:{repo} cannot be read because {error}; {_REMEDY}.") from None


def _unreachable(repo: str, error: Exception) -> UnavailableError:
    why = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
    return UnavailableError(f"hub:{repo} cannot be read because the hub cannot be reached ({why}); {_REMEDY}.")


def _load(repo: str, config_name: str | None, split: str, stream: bool) -> "Dataset | IterableDataset":
    import datasets

    try:
        return datasets.load_dataset(repo, name=config_name, split=split, streaming=stream)
    except (ConnectionError, TimeoutError) as error:
        raise _unreachable(repo, error) from None
    except (ValueError, RuntimeError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        # An unknown configuration or split, a repository without data files, one that holds a loading script.
        why = " ".join(str(error).split())[:300]
        raise InputError(
            f"hub:{repo} cannot be read ({why}); name another split, or a configuration as hub:{repo}:CONFIG."
        ) from None


def _read_rows(repo: str, rows: "Dataset | IterableDataset") -> Iterator[Record]:
    iterator: Iterator[Any] = iter(rows)
    number = 0
    while True:
        try:
            values = next(iterator, None)
        except ValueError as error:
            why = " ".join(str(error).split())[:300]
            raise InputError(f"hub:{repo} holds a damaged file ({why}); choose another data set.") from None
        except Exception as error:  # the connection broke: any of the http client's errors
            raise _unreachable(repo, error) from error
        if values is None:
            return
        number += 1
        yield Record(number, dict(values))
