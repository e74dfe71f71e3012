"""Sharing what was made: a mixture or an adapter as a folder of its own, and reading such a folder in a few lines.

    from metamoe_backend import load_system

    system = load_system("two-level")
    print(system.generate(["Question: What barks?\\nAnswer:"]))

Three forms (verb `publish`). routed: the mixture with its routers and copies of its experts; any mixture. adapter: one
PEFT adapter that equals the mixture; only where the weights are constant (mode uniform), or for a single expert. model:
that adapter added into the base model's weights, for whoever has neither PEFT nor MetaMoE.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metamoe_backend.config import BASE_EXPERT
from metamoe_backend.errors import ConfigError, InputError, UnavailableError
from metamoe_backend.evaluate.generation import Stop, find_stop_tokens, iterate_outputs
from metamoe_backend.evaluate.prompts import encode_prompt
from metamoe_backend.masking import mask_question
from metamoe_backend.models.adapters import CONFIG_FILE, AdapterWeights, hash_adapter, read_adapter, write_adapter
from metamoe_backend.models.mixtures import (
    EXPERTS_FOLDER,
    MOE_FILE,
    ROUTER_FILE,
    ExpertEntry,
    SavedMixture,
    read_experts,
    read_mixture,
)
from metamoe_backend.models.systems import OpenSystem, open_folder

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from metamoe_backend.models.base import LoadedBase

Form = Literal["routed", "adapter", "model"]
USE: dict[Form, str] = {
    "routed": 'from metamoe_backend import load_system\n\nprint(load_system(".").generate(["…"]))',
    "adapter": 'from peft import AutoPeftModelForCausalLM\n\nmodel = AutoPeftModelForCausalLM.from_pretrained(".")',
    "model": 'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(".")',
}
"""How each form is read again."""


class LoadedSystem:
    """A shared system on its base model: it generates, and says where a question would go."""

    def __init__(self, loaded: "LoadedBase", system: OpenSystem) -> None:
        self.loaded, self.system = loaded, system

    @property
    def experts(self) -> list[str]:
        """Names of the experts, in gate order; empty for a single adapter."""
        return list(self.system.experts)

    def route(self, prompts: Sequence[str]) -> "pd.DataFrame":
        """Probability of each expert (and perhaps `base`) per prompt: [prompts, routes].

        Without a task level there is no column. The router reads the question as it was asked in training: without the
        template around it.
        """
        import pandas as pd

        texts = list(prompts)
        if self.system.routes_text == "meta-question":
            texts = [mask_question(text) for text in texts]
        routes = self.system.compute_routes(texts)
        return pd.DataFrame(index=list(prompts)) if routes is None else pd.DataFrame(
            routes, index=list(prompts), columns=self.system.route_names
        )  # fmt: skip

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        stop: str = "\n\n",
        questions: Sequence[str] | None = None,
    ) -> list[str]:
        """The greedy continuation of each prompt, up to `stop` (not included), the end of text or `max_new_tokens`.

        `questions` is what the task-level router reads where the prompts hold more than the question.
        """
        routes = self.route(questions or prompts).to_numpy() if self.system.routes_text else None
        encoded = [encode_prompt(self.loaded.tokenizer, prompt) for prompt in prompts]
        limits = Stop(find_stop_tokens(self.loaded.model, self.loaded.tokenizer), (stop,), max_new_tokens)
        found: dict[int, str] = {}
        for rows, texts in iterate_outputs(self.system, self.loaded.tokenizer, encoded, limits, 4096, routes):
            found |= {row: text for row, text in zip(rows, texts, strict=True) if text is not None}
        if len(found) < len(prompts):
            raise UnavailableError("The model gave no number (NaN) for what comes next; load it with dtype float32.")
        return [found[row] for row in range(len(prompts))]


def load_system(
    folder: str | Path, base: str | None = None, device: str = "auto", dtype: str = "float32"
) -> LoadedSystem:
    """Load a shared mixture or a PEFT adapter; `base` names the base model where it lies elsewhere than for its maker.

    Raises `InputError` for a folder that is neither, `StorageError` for a damaged one, `UnavailableError` when the base
    model or the device is not there.
    """
    from metamoe_backend.models.base import load_base

    path = Path(folder).expanduser()
    loaded = load_base(base or _find_base(path), device, dtype)
    return LoadedSystem(loaded, open_folder(loaded, path))


def _find_base(folder: Path) -> str:
    import json

    if (folder / MOE_FILE).is_file():
        return read_mixture(folder).spec.base
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"{folder} holds neither {MOE_FILE} nor {CONFIG_FILE}; name a shared mixture or a PEFT folder."
        )
    return str(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path"))


def publish_system(system: "Mapping[str, Any] | pd.Series", workspace_root: Path, out: Path, form: Form) -> None:
    """Write a system (columns of rows.System) as the folder `out`, whole or not at all.

    Raises `InputError` when `out` exists, `ConfigError` where the system has no such form, `StorageError` when an
    expert is not the one it was made with.
    """
    from metamoe_backend.models.base import load_base

    name, kind = system["system"], system["kind"]
    if out.exists():
        raise InputError(f"{out} exists; name a folder that does not, so that nothing is overwritten.")
    if kind not in ("moe", "expert", "mixed"):
        raise ConfigError(f"System {name!r} is of the kind {kind!r}; only adapters and mixtures are published.")
    if kind != "moe" and form == "routed":
        raise ConfigError(f"System {name!r} is one adapter and routes nothing; publish it as adapter or model.")
    folder = workspace_root / str(system["path"])
    written = out.parent / f".{out.name}.part"
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir(parents=True)
    try:
        loaded = load_base(str(system["base"]), "cpu")
        shown = Path(loaded.name).name if Path(loaded.name).is_dir() else loaded.name
        if form == "routed":
            _write_routed(read_mixture(folder), workspace_root, loaded.model, shown, written)
        else:
            merged = _merge(system, folder, workspace_root, loaded.model)
            if form == "adapter":
                write_adapter(written, merged, shown)
            else:
                _write_model(loaded, merged, written)
        (written / "README.md").write_text(_describe(system, shown, form), encoding="utf-8")
        written.rename(out)
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        raise


def merge_experts(name: str, experts: Sequence[AdapterWeights], weights: Sequence[float]) -> AdapterWeights:
    """One adapter equal to the weighted sum of `experts`: exact for any ranks and modules (PEFT calls it `cat`).

    A: the experts' A's one under the other. B: their B's side by side, times weight and scale. Where an expert does not
    adapt a module its channels there are 0, so that the rank, the sum of the experts', is the same everywhere.
    """
    import torch

    rank = sum(expert.rank for expert in experts)
    modules = list(dict.fromkeys(module for expert in experts for module in expert.a))
    a: dict[str, torch.Tensor] = {}
    b: dict[str, torch.Tensor] = {}
    for module in modules:
        inputs, outputs = next((e.a[module].shape[1], e.b[module].shape[0]) for e in experts if module in e.a)
        downs, ups = [], []
        for expert, weight in zip(experts, weights, strict=True):
            there = module in expert.a
            downs.append(expert.a[module].float() if there else torch.zeros(expert.rank, inputs))
            ups.append(
                expert.b[module].float() * (weight * expert.scale) if there else torch.zeros(outputs, expert.rank)
            )
        a[module], b[module] = torch.cat(downs, 0), torch.cat(ups, 1)
    targets = sorted({target for expert in experts for target in expert.targets})
    return AdapterWeights(name, rank, float(rank), 1.0, targets, "", a, b)


def _merge(system: Any, folder: Path, workspace_root: Path, model: "nn.Module") -> AdapterWeights:
    """The system as one adapter; raises `ConfigError` where its weights are not constant."""
    if system["kind"] != "moe":
        return read_adapter(folder, model)
    saved = read_mixture(folder)
    if saved.spec.mode != "uniform":
        raise ConfigError(
            f"Mixture {system['system']!r} weighs its experts anew for every token or question (mode "
            f"{saved.spec.mode}), so no single adapter equals it; publish it as routed, or make one of mode uniform."
        )
    experts = read_experts(saved, workspace_root, model)
    return merge_experts(str(system["system"]), experts, [1 / len(experts)] * len(experts))


def _write_routed(saved: SavedMixture, workspace_root: Path, model: "nn.Module", base: str, out: Path) -> None:
    """The mixture with its own copies of its experts; the routers' file stays as it is."""
    entries = []
    for weights in read_experts(saved, workspace_root, model):
        own = out / EXPERTS_FOLDER / weights.name
        write_adapter(own, weights, base)
        entries.append(ExpertEntry(name=weights.name, sha256=hash_adapter(own), own=True))
    shutil.copy2(saved.folder / ROUTER_FILE, out / ROUTER_FILE)
    spec = saved.spec.model_copy(update={"experts": entries, "base": base})
    (out / MOE_FILE).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _write_model(loaded: "LoadedBase", adapter: AdapterWeights, out: Path) -> None:
    import torch

    modules = dict(loaded.model.named_modules())
    with torch.no_grad():
        for module in adapter.a:
            weight: Any = modules[module].weight
            weight += adapter.scale * (adapter.b[module].float() @ adapter.a[module].float()).to(weight)
    loaded.model.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)


def _describe(system: Any, base: str, form: Form) -> str:
    """README.md of a shared folder."""
    members = list(system["experts"]) or [str(system["system"])]
    return (
        f"# {system['system']}\n\nBase model: {base}. Experts: {', '.join(members)} "
        f"(`{BASE_EXPERT}` means none of them).\nPublished by MetaMoE as {form}.\n\n```python\n{USE[form]}\n```\n\n"
        f"Settings that made it:\n\n```json\n{system['settings']}\n```\n"
    )
