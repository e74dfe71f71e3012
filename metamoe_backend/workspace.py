"""Where everything of one workspace lies on disk. The one place that knows file names."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from metamoe_backend.config import NAME_PATTERN
from metamoe_backend.errors import InputError, NotFoundError

DEFAULT_WORKSPACE = Path("data/workspaces/default")


@dataclass(frozen=True, slots=True)
class Workspace:
    """One folder.

    metamoe.duckdb    everything the pages query
    holder.lock       locked by the process that has the database open; says who
    events/           what people did, one JSON object a line, fsynced before the database commit
    runs/RUN_ID/      one run (see `jobs.run_folder`)
    adapters/NAME/    PEFT folders: adapter_config.json + adapter_model.safetensors
    mixtures/NAME/    moe.json + router.safetensors
    expanded/NAME/    blocks.json + blocks.safetensors: base models with new blocks between their own
    published/        read-only copies of the database for the SQL console
    uploads/          files a person uploaded, by content hash
    selections/       sets of questions that pages hand on, by content hash
    studies/NAME.json what a study compares (see `study.studies`)
    profiles/NAME.toml what Slurm is asked for (see `jobs.profile`)
    alerts.toml       what is told when a run stands wrong, and to whom (see `jobs.alerts`)
    vectors/          vectors of texts that are no questions, by encoder and content hash: a cache, may be deleted
    """

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "metamoe.duckdb"

    @property
    def holder_lock(self) -> Path:
        return self.root / "holder.lock"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def mixtures(self) -> Path:
        return self.root / "mixtures"

    @property
    def expanded(self) -> Path:
        return self.root / "expanded"

    @property
    def published(self) -> Path:
        return self.root / "published"

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def selections(self) -> Path:
        return self.root / "selections"

    @property
    def studies(self) -> Path:
        return self.root / "studies"

    @property
    def profiles(self) -> Path:
        return self.root / "profiles"

    @property
    def alerts(self) -> Path:
        return self.root / "alerts.toml"

    @property
    def vectors(self) -> Path:
        return self.root / "vectors"

    @property
    def name(self) -> str:
        return self.root.resolve().name

    def run(self, run_id: str) -> Path:
        """Folder of a run; raises `NotFoundError` for an id that is no run id or names no folder."""
        if not re.match(NAME_PATTERN, run_id) or not (self.runs / run_id).is_dir():
            raise NotFoundError(
                f"Run {run_id!r} does not exist in workspace {self.name}; see the Jobs page for its runs."
            )
        return self.runs / run_id

    def create(self) -> "Workspace":
        """Make the folders; raises `InputError` where that is not allowed."""
        try:
            for folder in (self.events, self.runs, self.adapters, self.mixtures, self.published, self.uploads):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The workspace {self.root} cannot be made ({error.strerror}); "
                "choose a folder you may write to with --workspace."
            ) from None
        return self


def find_workspace(path: str | os.PathLike[str] | None = None) -> Workspace:
    """The workspace named by `path`, else by METAMOE_WORKSPACE, else data/workspaces/default."""
    return Workspace(Path(path or os.environ.get("METAMOE_WORKSPACE") or DEFAULT_WORKSPACE))


def cache_folder() -> Path:
    """Where dequantised models and the like are kept: METAMOE_CACHE, else ~/.cache/metamoe."""
    return Path(os.environ.get("METAMOE_CACHE") or Path.home() / ".cache" / "metamoe")
