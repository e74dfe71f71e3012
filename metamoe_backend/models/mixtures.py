"""A mixture on disk: moe.json says what it is made of, router.safetensors holds its routers.

moe.json names every expert with its hash, and the hash of router.safetensors; the hash of moe.json therefore stands for
the whole mixture. Experts lie in the bank, or, when they were trained further inside the mixture, in experts/NAME.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metamoe_backend.config import Granularity, Name, RoutingMode
from metamoe_backend.errors import StorageError
from metamoe_backend.models.adapters import AdapterWeights, hash_adapter, read_adapter, write_adapter
from metamoe_backend.models.routers import TaskRouter
from metamoe_backend.rows import Of
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    import torch
    from torch import nn

MOE_FILE = "moe.json"
ROUTER_FILE = "router.safetensors"
EXPERTS_FOLDER = "experts"
GATE_PREFIX = "gate:"
TASK_WEIGHT, TASK_BIAS = "task.weight", "task.bias"


class ExpertEntry(BaseModel):
    """One expert of a mixture."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    own: bool = False
    """True where the mixture keeps its own, further trained copy."""


class MixtureSpec(BaseModel):
    """moe.json."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    base: str
    experts: list[ExpertEntry] = Field(min_length=1)
    mode: RoutingMode
    top_k: int = Field(ge=1)
    prior_strength: float = Field(ge=0)
    task_top_m: int | None = Field(None, ge=1)
    granularity: Granularity = "block"
    temperature: float = Field(1.0, gt=0)
    sites: list[str] = []
    """Modules whose input the token gates read, in the model's order; empty without a token level."""
    routes: list[str] = []
    """What the task-level router chooses among: the experts, then perhaps `base`; empty without a task level."""
    encoder: str | None = None
    of: Of | None = None
    router_sha256: str = ""


@dataclass
class SavedMixture:
    """A mixture as read from its folder."""

    folder: Path
    spec: MixtureSpec
    gate_weights: "dict[str, torch.Tensor]"
    """Site name to gate weights (see `Mixture.get_gate_weights`), float32."""
    task_router: TaskRouter | None
    sha256: str


def write_mixture(
    folder: Path,
    spec: MixtureSpec,
    gate_weights: "dict[str, torch.Tensor]",
    task_router: TaskRouter | None,
    trained: list[AdapterWeights] | None = None,
) -> str:
    """Write a mixture into `folder` (made if need be); `trained` are its own copies of the experts, in gate order.

    Returns the SHA-256 that stands for the mixture.
    """
    import torch
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    entries = list(spec.experts)
    for index, weights in enumerate(trained or []):
        own = folder / EXPERTS_FOLDER / weights.name
        write_adapter(own, weights, spec.base)
        entries[index] = ExpertEntry(name=weights.name, sha256=hash_adapter(own), own=True)
    tensors = {f"{GATE_PREFIX}{site}": weight.float().cpu().contiguous() for site, weight in gate_weights.items()}
    if task_router is not None:
        for key, values in ((TASK_WEIGHT, task_router.weight), (TASK_BIAS, task_router.bias)):
            tensors[key] = torch.tensor(values).contiguous()
    content = save(tensors)
    (folder / ROUTER_FILE).write_bytes(content)
    update = {
        "experts": entries,
        "sites": list(gate_weights),
        "routes": task_router.names if task_router else [],
        "router_sha256": hashlib.sha256(content).hexdigest(),
    }
    text = spec.model_copy(update=update).model_dump_json(indent=2) + "\n"
    (folder / MOE_FILE).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read_mixture(folder: Path) -> SavedMixture:
    """Read moe.json and router.safetensors; raises `StorageError` naming the file when they are damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path, router = folder / MOE_FILE, folder / ROUTER_FILE
    repair = f"make the mixture {folder.name} again with `train moe`"
    try:
        text = path.read_bytes()
        spec = MixtureSpec.model_validate_json(text)
        content = router.read_bytes()
    except FileNotFoundError as error:
        raise StorageError(f"{error.filename} is missing; {repair}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise StorageError(f"{path} is damaged at {'.'.join(map(str, first['loc'])) or 'its top'}; {repair}.") from None
    if hashlib.sha256(content).hexdigest() != spec.router_sha256:
        raise StorageError(f"{router} is not the file that {path} was written with; {repair}.")
    try:
        tensors = load(content)
        gate_weights = {site: tensors[f"{GATE_PREFIX}{site}"] for site in spec.sites}
        task_router = None
        if spec.routes:
            task_router = TaskRouter(spec.routes, tensors[TASK_WEIGHT].numpy(), tensors[TASK_BIAS].numpy())
    except (SafetensorError, KeyError) as error:
        raise StorageError(f"{router} lacks a router that {path} names ({error}); {repair}.") from None
    return SavedMixture(folder, spec, gate_weights, task_router, hashlib.sha256(text).hexdigest())


def read_experts(saved: SavedMixture, workspace_root: Path, model: "nn.Module") -> list[AdapterWeights]:
    """A mixture's experts in gate order, checked against `model` and against the hashes in moe.json.

    Raises `StorageError` when an expert is not the one the mixture was made with, `InputError` for a bad folder.
    """
    experts = []
    for entry in saved.spec.experts:
        folder = Workspace(workspace_root).adapters / entry.name
        if entry.own:
            folder = saved.folder / EXPERTS_FOLDER / entry.name
        if not folder.is_dir():
            raise StorageError(
                f"Expert {entry.name} of mixture {saved.folder.name} is missing from {folder}; put it back, or make "
                "the mixture again without it."
            )
        weights = read_adapter(folder, model)
        if weights.sha256 != entry.sha256:
            raise StorageError(
                f"Expert {entry.name} in {folder} is not the one that mixture {saved.folder.name} was made with (its "
                "weights' hash differs); make the mixture again with `train moe`."
            )
        experts.append(weights)
    return experts
