"""Systems: the bare base model, one adapter, or a mixture, opened on a loaded base model under one interface."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from metamoe_backend.config import BASE_EXPERT
from metamoe_backend.errors import ConfigError, NotFoundError, StorageError
from metamoe_backend.models.adapters import read_adapter
from metamoe_backend.models.base import LoadedBase
from metamoe_backend.models.baselines import SPEC_FILE, open_blocks
from metamoe_backend.models.mixtures import MOE_FILE, SavedMixture, read_experts, read_mixture
from metamoe_backend.models.routers import TaskRouter

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import pandas as pd

    from metamoe_backend.models.lora_moe import GateRecord, Mixture


class OpenSystem:
    """A system that answers: use `model` as the causal language model it is.

    Before each forward pass of a system with `routes_text`, call `set_routes` with one row per row of the batch.
    """

    def __init__(
        self,
        model: Any,
        experts: list[str],
        mixture: "Mixture | None" = None,
        task_router: TaskRouter | None = None,
        encoder: str | None = None,
        routes_text: Literal["question", "meta-question"] | None = None,
    ) -> None:
        self.model = model
        self.experts = experts
        self.routes_text = routes_text
        """Which text the task-level router reads; None without a task level."""
        self.route_names = list(task_router.names) if task_router else []
        """Names of the routes' columns: the experts, then perhaps `base`."""
        self._mixture, self._task_router, self._encoder = mixture, task_router, encoder

    @property
    def reads_once(self) -> bool:
        """Whether a key-value cache may stand for what was read; X-LoRA reads every text twice, and whole."""
        return self._mixture is None or self._mixture.settings.mode != "xlora"

    def compute_routes(self, texts: list[str]) -> np.ndarray | None:
        """Task-level probabilities [len(texts), len(route_names)]; None without a task level.

        Raises `UnavailableError` when the router's encoder is not there.
        """
        if self._task_router is None or self._encoder is None:
            return None
        from metamoe_backend.embed import load_encoder

        return self._task_router.compute_probabilities(load_encoder(self._encoder).encode(texts))

    def set_routes(self, routes: np.ndarray | None) -> None:
        """Route the next forward passes, one row per row of their batch. A question whose most probable column is
        `base` is answered by the bare base model exactly. Systems without a task level take None only.
        """  # fmt: skip
        if self._mixture is not None:
            self._mixture.set_routes(routes)
        elif routes is not None:
            raise ValueError("Routes were given to a system without a task level.")

    def force(self, name: str) -> "AbstractContextManager[None]":
        """Send every token of the forward passes inside to one expert with weight 1; `base`: to the bare base model.

        What `set_routes` said does not count meanwhile. Raises `NotFoundError` for a name that is no expert here.
        """
        if self._mixture is None or name not in [*self.experts, BASE_EXPERT]:
            raise NotFoundError(f"Expert {name!r} is not in this system (it has: {', '.join(self.experts) or 'none'}).")
        return self._mixture.force(None if name == BASE_EXPERT else self.experts.index(name))

    def record(self) -> "AbstractContextManager[GateRecord]":
        """Collect the gates of the forward passes inside; an empty record for systems other than mixtures."""
        from metamoe_backend.models.lora_moe import GateRecord

        if self._mixture is None or not self.experts:
            return nullcontext(GateRecord([], [], [], []))
        return self._mixture.record()


@contextmanager
def open_system(
    loaded: LoadedBase, system: "Mapping[str, Any] | pd.Series", workspace_root: Path
) -> Iterator[OpenSystem]:
    """Open a system on `loaded`; `system` has the columns of `rows.System`. The base model is left as it was found.

    Raises `ConfigError` when the system was made on another base model, `StorageError` when its files are not those it
    was made with, `InputError` for an adapter that cannot be used.
    """
    kind, name = system["kind"], system["system"]
    if kind == "base":
        yield OpenSystem(loaded.model, [])
        return
    if system["base"] != loaded.name:
        raise ConfigError(
            f"System {name!r} was made on the base model {system['base']!r}, not on {loaded.name!r}; load that one."
        )
    folder = workspace_root / str(system["path"])
    if not folder.is_dir():
        raise StorageError(f"{folder} of system {name!r} is missing; train or import it again.")
    if (folder / SPEC_FILE).is_file():
        with open_blocks(loaded.model, folder, str(system["sha256"])):
            yield OpenSystem(loaded.model, [])
        return
    if kind == "moe":
        saved = read_mixture(folder)
        _check_hash(system, saved.sha256, folder)
        opened = _open_mixture(loaded, saved, workspace_root)
    else:
        opened = _open_adapter(loaded, folder, system)
    try:
        yield opened
    finally:
        assert opened._mixture is not None
        opened._mixture.detach()


def attach_saved(loaded: LoadedBase, saved: SavedMixture, workspace_root: Path) -> "Mixture":
    """Attach a saved mixture's experts and gates to the base model."""
    from metamoe_backend.models.lora_moe import GateSettings, attach_experts

    spec = saved.spec
    settings = GateSettings.of(spec)
    mixture = attach_experts(loaded.model, read_experts(saved, workspace_root, loaded.model), settings)
    try:
        mixture.set_gate_weights(saved.gate_weights)
    except ValueError as error:
        mixture.detach()
        raise StorageError(
            f"Mixture {saved.folder.name} does not fit its base model ({error}); make it again."
        ) from None
    return mixture


def open_folder(loaded: LoadedBase, folder: Path) -> OpenSystem:
    """A system from a folder that holds all of it (see `sharing`): a mixture with its experts, or a PEFT adapter.

    It stays attached to `loaded`. Raises as `open_system` does.
    """
    if (folder / MOE_FILE).is_file():
        return _open_mixture(loaded, read_mixture(folder), folder)
    return _open_adapter(loaded, folder, None)


def _open_mixture(loaded: LoadedBase, saved: SavedMixture, workspace_root: Path) -> OpenSystem:
    mixture = attach_saved(loaded, saved, workspace_root)
    return OpenSystem(
        loaded.model, mixture.experts, mixture, saved.task_router, saved.spec.encoder,
        saved.spec.of if saved.task_router else None,
    )  # fmt: skip


def _open_adapter(loaded: LoadedBase, folder: Path, system: "Mapping[str, Any] | pd.Series | None") -> OpenSystem:
    from metamoe_backend.models.lora_moe import GateSettings, attach_experts

    weights = read_adapter(folder, loaded.model)
    if system is not None:
        _check_hash(system, weights.sha256, folder)
    return OpenSystem(loaded.model, [], attach_experts(loaded.model, [weights], GateSettings("uniform")))


def _check_hash(system: Any, found: str, folder: Path) -> None:
    if system["sha256"] != found:
        raise StorageError(
            f"The weights in {folder} are not those that system {system['system']!r} was recorded with; train or "
            "import it again, or put the recorded folder back."
        )
