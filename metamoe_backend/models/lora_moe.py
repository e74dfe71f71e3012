"""Many LoRA experts as one wide gated LoRA, attached to a model in place. E experts; B questions; S tokens.

y = W x + sum_e g_e(x) scale_e B_e A_e x, computed as one LoRA of rank R = sum of the experts' ranks: the A's one under
the other, the B's side by side, and the R hidden channels multiplied by their expert's gate times its scale. Exact for
any ranks; an expert that does not adapt a module has no channels there. Gates sit at sites: one per block (self_attn,
mlp; the gate reads the block's input, all its modules share the gate) or one per adapted module.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

# This module is little but subclasses of torch's modules, and is imported inside functions only.
import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional  # noqa: TID253

from metamoe_backend.models import gates
from metamoe_backend.models.adapters import AdapterWeights, check_fit, find_layer

Mode = Literal["token", "task", "two-level", "uniform"]
Granularity = Literal["block", "module"]
TASK_LEVEL_MODES = ("task", "two-level")
TOKEN_LEVEL_MODES = ("token", "two-level")


@dataclass(frozen=True)
class GateSettings:
    """How gates are computed; the fields mean what they mean in `MoeConfig`."""

    mode: Mode = "uniform"
    top_k: int = 1
    prior_strength: float = 1.0
    task_top_m: int | None = None
    granularity: Granularity = "block"


@dataclass
class GateRecord:
    """Gate weights of every forward pass while it was recorded, one tensor per site, in the model's order."""

    layers: list[int]
    sites: list[str]
    """Module the gate sits at, within its layer: `mlp`, `self_attn`, or `mlp.up_proj` …"""
    experts: list[str]
    parts: list[list[Tensor]] = field(repr=False)
    """Per site, one tensor [B, S, E] per forward pass."""

    @property
    def weights(self) -> list[Tensor]:
        """Per site [B, S, E], float32; several passes (prompt, then generated tokens) follow each other in S."""
        if len({part.shape[0] for parts in self.parts for part in parts}) > 1:
            raise ValueError("Batches of different sizes were recorded together; record each batch by itself.")
        return [torch.cat(parts, dim=1) for parts in self.parts if parts]


class Routing:
    """What the task level says about the questions of the current batch; shared by all sites of a mixture."""

    def __init__(self, settings: GateSettings, experts: int, device: torch.device) -> None:
        self.settings, self.experts, self.device = settings, experts, device
        self.fixed: Tensor | None = None
        self.log_prior: Tensor | None = None
        self.mask: Tensor | None = None
        self.live: Tensor | None = None
        self.forced: Tensor | None = None
        """Gates that stand instead of everything else, [1, 1, E] (see `Mixture.force`)."""
        if settings.mode == "uniform":
            self.fixed = gates.uniform(experts).to(device)

    def set(self, routes: np.ndarray | Tensor | None) -> None:
        """Take over task-level probabilities [B, E], or [B, E + 1] with the base model last; None forgets them."""
        mode = self.settings.mode
        if mode not in TASK_LEVEL_MODES:
            if routes is not None:
                raise ValueError(f"Routes were given to a mixture of mode {mode}, which has no task level.")
            return
        self.fixed = self.log_prior = self.mask = self.live = None
        if routes is None:
            return
        values = torch.as_tensor(routes, dtype=torch.float32, device=self.device)
        if values.ndim != 2 or values.shape[1] not in (self.experts, self.experts + 1):
            raise ValueError(f"Routes have the shape {tuple(values.shape)}; [rows, {self.experts} or +1] is needed.")
        probabilities = values[:, : self.experts]
        self.live = (~gates.goes_to_base(values, self.experts)).float()
        if mode == "task":
            self.fixed = (gates.task_level(probabilities, self.settings.top_k) * self.live[:, None]).unsqueeze(1)
            return
        self.log_prior = gates.compute_log_prior(probabilities)
        if self.settings.task_top_m is not None:
            self.mask = gates.top_m_mask(probabilities, self.settings.task_top_m)

    def compute_gates(self, logits: Tensor | None, rows: int) -> Tensor:
        """Gates of one site, [B, S, E] or broadcastable to it, from its token scores `logits` [B, S, E]."""
        if self.forced is not None:
            return self.forced
        settings = self.settings
        if settings.mode in TASK_LEVEL_MODES:
            if self.live is None:
                raise ValueError(f"A mixture of mode {settings.mode} needs set_routes before a forward pass.")
            if self.live.shape[0] != rows:
                raise ValueError(f"Routes were set for {self.live.shape[0]} rows, but the batch has {rows}.")
        if self.fixed is not None:
            return self.fixed
        assert logits is not None
        if settings.mode == "token":
            return gates.token_top_k(logits, settings.top_k)
        assert self.log_prior is not None and self.live is not None
        found = gates.two_level(logits, self.log_prior, settings.prior_strength, settings.top_k, self.mask)
        return found * self.live[:, None, None]


class GateSite(nn.Module):
    """Computes the gates that the wide LoRAs under one host module use: x W_g by a bias-free linear, in float32."""

    def __init__(self, name: str, routing: Routing, inputs: int, device: torch.device) -> None:
        super().__init__()
        self.name, self.routing = name, routing
        self.weight: nn.Parameter | None = None
        if routing.settings.mode in TOKEN_LEVEL_MODES:
            self.weight = nn.Parameter(torch.zeros(routing.experts, inputs, device=device), requires_grad=False)
        self.gates: Tensor | None = None
        self.logits: Tensor | None = None
        self.parts: list[Tensor] | None = None

    def read_input(self, _host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the host: its first input [B, S, inputs] decides the gates."""
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        self.logits = None if self.weight is None else functional.linear(x.float(), self.weight)
        self.gates = self.routing.compute_gates(self.logits, x.shape[0])
        if self.parts is not None:
            shape = (x.shape[0], x.shape[1], self.routing.experts)
            self.parts.append(self.gates.detach().float().expand(shape))


class WideLora(nn.Module):
    """A linear module with the LoRAs of all experts that adapt it."""

    def __init__(
        self, linear: nn.Linear, module: str, adapters: Sequence[AdapterWeights], site: GateSite | None
    ) -> None:
        super().__init__()
        self.linear, self.module = linear, module
        self._site = [site]  # in a list, so that the host's own submodule is not registered here a second time
        place, dtype = linear.weight.device, linear.weight.dtype
        there = [(index, adapter) for index, adapter in enumerate(adapters) if module in adapter.a]
        self.a = nn.Parameter(torch.cat([adapter.a[module].to(place, dtype) for _, adapter in there], 0), False)
        self.b = nn.Parameter(torch.cat([adapter.b[module].to(place, dtype) for _, adapter in there], 1), False)
        self.channels: dict[int, slice] = {}
        spread = torch.zeros(len(adapters), self.a.shape[0], device=place)
        start = 0
        for index, adapter in there:
            self.channels[index] = slice(start, start + adapter.rank)
            spread[index, self.channels[index]] = adapter.scale
            start += adapter.rank
        self.register_buffer("spread", spread, persistent=False)
        self.spread: Tensor
        """[E, R]: the expert's scale at its channels, 0 elsewhere; gates @ spread multiplies the hidden channels."""

    @property
    def weight(self) -> Tensor:
        """The frozen base weight, for model code that asks its linear modules for it."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def set_site(self, site: GateSite) -> None:
        self._site[0] = site

    def forward(self, x: Tensor) -> Tensor:
        site = self._site[0]
        assert site is not None and site.gates is not None
        hidden = functional.linear(x.to(self.a.dtype), self.a)
        hidden = hidden * (site.gates @ self.spread).to(hidden.dtype)
        y = self.linear(x)
        return y + functional.linear(hidden, self.b).to(y.dtype)


class Mixture:
    """Experts attached to a model. Made by `attach_experts`; `detach` gives the bare model back, bit for bit."""

    def __init__(self, model: nn.Module, adapters: Sequence[AdapterWeights], settings: GateSettings) -> None:
        self.model, self.settings = model, settings
        self.experts = [adapter.name for adapter in adapters]
        self.adapters = list(adapters)
        self.routing = Routing(settings, len(adapters), next(model.parameters()).device)
        self.sites: list[GateSite] = []
        self.loras: dict[str, WideLora] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def set_routes(self, routes: np.ndarray | Tensor | None) -> None:
        """Task-level probabilities, one row per row of the next forward passes' batch (see `Routing.set`)."""
        self.routing.set(routes)

    @contextmanager
    def force(self, expert: int | None) -> Iterator[None]:
        """Send every token of the forward passes inside to one expert with weight 1; None: to the bare base model."""
        forced = torch.zeros(1, 1, len(self.experts), device=self.routing.device)
        if expert is not None:
            forced[..., expert] = 1.0
        self.routing.forced = forced
        try:
            yield
        finally:
            self.routing.forced = None

    @contextmanager
    def record(self) -> Iterator[GateRecord]:
        """Collect the gates of the forward passes inside."""
        parts: list[list[Tensor]] = [[] for _ in self.sites]
        layers = [find_layer(site.name) for site in self.sites]
        record = GateRecord(layers, [_name_in_layer(site.name) for site in self.sites], list(self.experts), parts)
        for site, kept in zip(self.sites, parts, strict=True):
            site.parts = kept
        try:
            yield record
        finally:
            for site in self.sites:
                site.parts = None

    def get_gate_weights(self) -> dict[str, Tensor]:
        """Site name to W_g [E, inputs]; empty where no token level is."""
        return {site.name: site.weight.detach() for site in self.sites if site.weight is not None}

    def set_gate_weights(self, weights: dict[str, Tensor]) -> None:
        """Take over saved gate weights; raises `ValueError` when sites or shapes differ."""
        own = {site.name: site.weight for site in self.sites if site.weight is not None}
        if set(own) != set(weights):
            raise ValueError(f"gate sites differ: {sorted(set(own) ^ set(weights))[:4]}")
        for name, weight in own.items():
            if weight.shape != weights[name].shape:
                raise ValueError(f"gate {name} is {tuple(weights[name].shape)}, {tuple(weight.shape)} is needed")
            weight.data.copy_(weights[name])

    def draw_gate_weights(self, seed: int, size: float = 0.02) -> None:
        """Small random gate weights (normal, standard deviation `size`), so that untrained experts share the tokens."""
        generator = torch.Generator().manual_seed(seed)
        for site in self.sites:
            if site.weight is not None:
                drawn = torch.randn(site.weight.shape, generator=generator) * size
                site.weight.data.copy_(drawn)

    def unfreeze(self, experts: bool) -> list[nn.Parameter]:
        """Let the gates learn, and with `experts` the LoRAs too (then in float32); returns what learns."""
        learning = [site.weight for site in self.sites if site.weight is not None]
        if experts:
            for lora in self.loras.values():
                lora.a.data, lora.b.data = lora.a.data.float(), lora.b.data.float()
                learning += [lora.a, lora.b]
        for parameter in learning:
            parameter.requires_grad_(True)
        return learning

    def compute_balance_loss(self, real: Tensor) -> Tensor:
        """Mean over sites of `gates.balance_loss` for the last forward pass; `real` [B, S] is true but on padding.

        Tokens of questions that went to the bare base model do not count.
        """
        counted = real.bool()
        if self.routing.live is not None:
            counted = counted & self.routing.live.bool()[:, None]
        losses = []
        for site in self.sites:
            assert site.logits is not None and site.gates is not None
            losses.append(gates.balance_loss(site.logits, site.gates, counted))
        return torch.stack(losses).mean()

    def get_expert(self, index: int, dtype: torch.dtype) -> AdapterWeights:
        """The present weights of one expert, on the CPU; `sha256` is still that of the adapter it came from."""
        first = self.adapters[index]
        a, b = {}, {}
        for module in first.a:
            lora = self.loras[module]
            a[module] = lora.a.detach()[lora.channels[index]].to("cpu", dtype, copy=True)
            b[module] = lora.b.detach()[:, lora.channels[index]].to("cpu", dtype, copy=True)
        return AdapterWeights(first.name, first.rank, first.alpha, first.scale, first.targets, first.sha256, a, b)

    def detach(self) -> None:
        """Put the model's own modules back and remove hooks and gates."""
        for hook in self._hooks:
            hook.remove()
        for module, lora in self.loras.items():
            parent, child = _split(module)
            setattr(self.model.get_submodule(parent), child, lora.linear)
        for site in self.sites:
            if self.settings.granularity == "block" and find_layer(site.name) >= 0:
                delattr(self.model.get_submodule(site.name), GATE_NAME)
        self._hooks, self.sites, self.loras = [], [], {}


GATE_NAME = "expert_gate"
"""Name of the gate's submodule in its host."""


def attach_experts(model: nn.Module, adapters: Sequence[AdapterWeights], settings: GateSettings) -> Mixture:
    """Wrap the adapted linear modules of `model` in place; gate weights start at 0 (see `draw_gate_weights`).

    Raises `InputError` when an adapter does not fit the model, `ValueError` when experts are attached already.
    """
    if any(isinstance(module, WideLora) for module in model.modules()):
        raise ValueError("The model already carries experts; detach them first.")
    for adapter in adapters:
        check_fit(
            adapter.name, {name: (adapter.a[name].shape[1], adapter.b[name].shape[0]) for name in adapter.a}, model
        )
    config: Any = model.config
    mixture = Mixture(model, adapters, settings)
    adapted = {module for adapter in adapters for module in adapter.a}
    hosts: dict[str, GateSite] = {}
    for module in [name for name, _ in model.named_modules() if name in adapted]:
        parent, child = _split(module)
        linear = model.get_submodule(module)
        assert isinstance(linear, nn.Linear)
        lora = WideLora(linear, module, adapters, None)
        setattr(model.get_submodule(parent), child, lora)
        mixture.loras[module] = lora
        own = settings.granularity == "module" or find_layer(module) < 0
        host_name = module if own else parent
        if host_name not in hosts:
            inputs = linear.in_features if own else config.hidden_size
            hosts[host_name] = _add_site(mixture, host_name, inputs)
        lora.set_site(hosts[host_name])
    mixture.sites = list(hosts.values())
    return mixture


def _add_site(mixture: Mixture, name: str, inputs: Any) -> GateSite:
    host = mixture.model.get_submodule(name)
    site = GateSite(name, mixture.routing, int(inputs), mixture.routing.device)
    host.add_module(GATE_NAME, site)
    mixture._hooks.append(host.register_forward_pre_hook(site.read_input, with_kwargs=True))
    return site


def _split(module: str) -> tuple[str, str]:
    """Name of the parent and of the child in it."""
    parent, _, child = module.rpartition(".")
    return parent, child


def _name_in_layer(name: str) -> str:
    parts = name.split(".")
    index = next((place for place, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[index + 1 :])
