"""Stage "import", and the bank: adapters under adapters/, checked, and published whole or not at all."""

import errno
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain, count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from metamoe_backend.config import BASE_EXPERT, ImportAdapterConfig
from metamoe_backend.errors import ConfigError, ConflictError, StorageError
from metamoe_backend.hub import find_model_folder
from metamoe_backend.jobs.durable import replace_text, sync_folder
from metamoe_backend.jobs.run_folder import RunFolder, list_runs
from metamoe_backend.models.adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterWeights,
    hash_adapter,
    read_adapter,
    write_adapter,
)
from metamoe_backend.stage import Context, Inputs
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    from metamoe_backend.models.base import LoadedBase
    from metamoe_backend.store.connection import Store

_PUBLISHED = "published.txt"
"""In a run's scratch: which folder it published last, and which one that replaced."""
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""What a rename to a taken name fails of; it never replaces a filled folder."""


def prepare(store: "Store", config: ImportAdapterConfig) -> Inputs:
    """Nothing to read; raises `ConflictError` when the name is taken, `ConfigError` when it is `base`."""
    if config.name == BASE_EXPERT:
        raise ConfigError("The name 'base' means no adapter; choose another name for the import.")
    if config.name in fetch_taken_names(store):
        raise ConflictError(f"The name {config.name!r} is taken; choose another name for the import.")
    return {}


def compute(inputs: Inputs, config: ImportAdapterConfig, context: Context) -> None:  # noqa: ARG001 - a stage's form
    """Check a PEFT folder or hub adapter against its base, and put it into the bank.

    Raises `InputError` for a folder that is no plain LoRA of this base, `UnavailableError` for an unreachable hub.
    """
    from metamoe_backend.models.base import load_outline

    context.progress(0, 1)
    folder = _find_source(config.source)
    weights = read_adapter(folder, load_outline(config.base))
    context.progress(1, 1)
    name = publish_adapter(context, config.name, weights, config.base)
    emit_adapter(
        context, name, weights, config.base, source="imported", kind="expert", trained_on=config.trained_on,
        settings=config.model_dump_json(),
    )  # fmt: skip
    context.log(
        f"Adapter {name}: rank {weights.rank}, {weights.parameters:,} parameters, imported from {config.source}."
    )


def fetch_taken_names(store: "Store") -> set[str]:
    """Names that a new adapter may not take: those of adapters and of systems, and `base`."""
    from metamoe_backend.store.experts import fetch_adapters, fetch_systems

    return {*fetch_adapters(store)["adapter"], *fetch_systems(store)["system"], BASE_EXPERT}


def list_names(name: str) -> Iterator[str]:
    """`name`, `name-2`, `name-3` and so on."""
    return chain([name], (f"{name}-{number}" for number in count(2)))


def find_free_name(name: str, taken: Collection[str]) -> str:
    """The first of `name`, `name-2`, `name-3` … that is not taken."""
    return next(candidate for candidate in list_names(name) if candidate not in taken)


def publish_adapter(context: Context, name: str, weights: AdapterWeights, base: str) -> str:
    """Put an adapter into the bank as a PEFT folder; returns the name it got (see `publish_folder`)."""

    def write(folder: Path) -> None:
        # A folder's path says something about a machine and nothing to others.
        write_adapter(folder, weights, Path(base).name if Path(base).is_dir() else base)

    return publish_folder(context, Workspace(context.workspace_root).adapters, name, write)


def publish_folder(context: Context, parent: Path, name: str, write: Callable[[Path], object]) -> str:
    """Let `write` fill a hidden folder in `parent`, flush it, and rename it: it is seen whole or not at all.

    Returns the name it got: another run may have taken `name` meanwhile, then it is `name-2`, and so on. What an
    earlier attempt of this run published (at a stop, or before it was killed) is replaced, unless another run works
    with it; an attempt that is killed while it replaces that leaves it aside, and the next one puts it back first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    written, aside = parent / f".{context.run_id}", f".{context.run_id}.old."
    shutil.rmtree(written, ignore_errors=True)
    _put_back(parent, aside)
    earlier = _find_earlier(context, parent, name)
    try:
        write(written)
        for path in (*written.rglob("*"), written):
            sync_folder(path)
        ours = [written] if earlier is None else [written, earlier]
        replace_text(context.scratch / _PUBLISHED, "\n".join(map(_identify, ours)))
        if earlier is not None:
            earlier.rename(parent / f"{aside}{earlier.name}")
        published = _rename_to_free_name(written, earlier.name if earlier else name)
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        _put_back(parent, aside)
        raise
    sync_folder(parent)
    _put_back(parent, aside)
    return published


def _put_back(parent: Path, aside: str) -> None:
    """What was set aside, its name behind `aside`, gets its name again; where that is taken, it was replaced."""
    for folder in parent.glob(f"{aside}*"):
        try:
            folder.rename(parent / folder.name.removeprefix(aside))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            shutil.rmtree(folder, ignore_errors=True)


def _find_earlier(context: Context, parent: Path, name: str) -> Path | None:
    """The folder that this run published as `name` (or `name-2` …) before, if nobody else works with it."""
    workspace = Workspace(context.workspace_root)
    emitted = [pd.read_parquet(part.path) for part in RunFolder(workspace.runs / context.run_id).parts("system")]
    handed_over = pd.concat([pd.DataFrame({"system": [], "sha256": []}), *emitted])
    record = context.scratch / _PUBLISHED
    ours = record.read_text().splitlines() if record.is_file() else []
    for candidate in takewhile(Path.exists, (parent / each for each in list_names(name))):
        hashes = handed_over.loc[handed_over["system"] == candidate.name, "sha256"]
        if hashes.empty and _identify(candidate) not in ours:
            continue
        user = _find_user(workspace, context.run_id, set(hashes))
        if user is None:
            return candidate
        context.log(f"Run {user} works with {candidate.name} as this run left it: what follows gets another name.")
    return None


def _find_user(workspace: Workspace, run_id: str, hashes: set[str]) -> str | None:
    """The newest run prepared since `run_id` was that was given a system with one of these hashes.

    That is a later one, or an older one that waited for others.
    """
    import pyarrow.parquet as pq

    for run in list_runs(workspace) if hashes else []:
        if run.run_id == run_id or (run.run_id < run_id and not run.read_state().after):
            continue
        for path in run.inputs.glob("*.parquet"):
            if "sha256" in pq.read_schema(path).names:
                given = pq.read_table(path, columns=["sha256"])["sha256"].to_pylist()
                if not hashes.isdisjoint(given):
                    return run.run_id
    return None


def _identify(folder: Path) -> str:
    """What stays of a folder when it is renamed, and is no other's."""
    status = folder.stat()
    return f"{status.st_ino} {status.st_mtime_ns}"


def _rename_to_free_name(written: Path, name: str) -> str:
    """Rename a folder to `name`, `name-2` … beside it, whichever is free."""
    for candidate in list_names(name):
        try:
            written.rename(written.with_name(candidate))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return candidate
    raise AssertionError("unreachable: the names never end")


def read_banked(adapters: pd.DataFrame, loaded: "LoadedBase", workspace_root: Path) -> list[AdapterWeights]:
    """The weights of adapters of the bank (rows.Adapter), in order, checked against the base model they stand on.

    Raises `StorageError` when the weights on disk are not those that were recorded, or gone.
    """
    bank = []
    for name, sha256 in zip(adapters["adapter"], adapters["sha256"], strict=True):
        folder = Workspace(workspace_root).adapters / name
        if not folder.is_dir():
            raise StorageError(f"Expert {name!r} is missing from {folder}; put it back, or train or import it again.")
        weights = read_adapter(folder, loaded.model)
        if weights.sha256 != sha256:
            raise StorageError(
                f"The weights of expert {name!r} are not those recorded in the bank; train or import it again."
            )
        bank.append(weights)
    return bank


def emit_adapter(
    context: Context,
    name: str,
    weights: AdapterWeights,
    base: str,
    *,
    source: str,
    kind: str,
    settings: str,
    plan: str | None = None,
    skills: Sequence[str] = (),
    trained_on: Sequence[str] = (),
) -> None:
    """Emit the rows `adapter` and `system` of a published adapter."""
    folder = Workspace(context.workspace_root).adapters / name
    sha256 = hash_adapter(folder)
    adapter = {
        "adapter": name, "base": base, "rank": weights.rank, "alpha": weights.alpha, "targets": weights.targets,
        "parameters": weights.parameters, "sha256": sha256, "source": source, "plan": plan, "skills": list(skills),
        "trained_on": list(trained_on), "created_at": context.created_at,
    }  # fmt: skip
    system = {
        "system": name, "kind": kind, "base": base, "path": folder.relative_to(context.workspace_root).as_posix(),
        "experts": [], "settings": settings, "sha256": sha256, "created_at": context.created_at,
    }  # fmt: skip
    context.emit("adapter", pd.DataFrame([adapter]))
    context.emit("system", pd.DataFrame([system]))


def _find_source(source: str) -> Path:
    """The local folder, else what the hub has under this id (the two files of an adapter, nothing else)."""
    remedy = f"name a local PEFT folder, one that holds {CONFIG_FILE} and {WEIGHTS_FILE}"
    return find_model_folder(source, [CONFIG_FILE, WEIGHTS_FILE], f"Adapter {source!r}", remedy)
