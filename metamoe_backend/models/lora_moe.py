"""Many LoRA experts as one wide gated LoRA, attached to a model in place. E experts; B questions; S tokens.

y = W x + sum_e g_e(x) scale_e B_e A_e x, computed as one LoRA of rank R = sum of the experts' ranks: the A's one under
the other, the B's side by side, and the R hidden channels multiplied by their expert's gate times its scale. Exact for
any ranks; an expert that does not adapt a module has no channels there. Gates sit at sites: one per transformer layer,
one per block (self_attn, mlp) or one per adapted module; a gate reads its site's input, all modules within share it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

# This module is little but subclasses of torch's modules, and is imported inside functions only.
import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from metamoe_backend.config import (
    LEARNT_GATE_MODES,
    PER_MODULE_MODES,
    TASK_LEVEL_MODES,
    TOKEN_LEVEL_MODES,
    Granularity,
    RoutingMode,
)
from metamoe_backend.models import gates, onednn
from metamoe_backend.models.adapters import AdapterWeights, check_fit, find_layer


@dataclass(frozen=True)
class GateSettings:
    """How gates are computed; the fields mean what they mean in `MoeConfig`."""

    mode: RoutingMode = "uniform"
    top_k: int = 1
    prior_strength: float = 1.0
    task_top_m: int | None = None
    granularity: Granularity = "block"
    temperature: float = 1.0

    @classmethod
    def of(cls, source: Any) -> "GateSettings":
        """The settings of a `MoeConfig` or of a mixture's moe.json."""
        return cls(**{setting.name: getattr(source, setting.name) for setting in fields(cls)})

    @property
    def places(self) -> Granularity:
        """Where gates sit: some modes compare a token with each module's own directions."""
        return "module" if self.mode in PER_MODULE_MODES else self.granularity


@dataclass
class GateRecord:
    """Gate weights of every forward pass while it was recorded, one tensor per site, in the model's order."""

    layers: list[int]
    sites: list[str]
    """Module the gate sits at, within its layer: `mlp`, `self_attn`, `mlp.up_proj` …, or `layer` for all of it."""
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
        self.owners: Tensor | None = None
        """1 for the experts that each question belongs to, else 0, [B, E]: some gates learn by it."""
        self.learning = False
        self.silent = False
        """True during X-LoRA's first pass, in which the bare base model reads."""
        self.state: Tensor | None = None
        """What that pass made of every token, [B, S, hidden]."""
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

    @property
    def is_uniform(self) -> bool:
        """Whether every token has the same gates, for as long as the mixture is attached."""
        return self.settings.mode == "uniform" and self.forced is None

    def set_owners(self, owners: np.ndarray | Tensor | None) -> None:
        """Which experts the questions of the next forward passes belong to, [B, E] of 0 and 1; None: not known."""
        self.owners = None if owners is None else torch.as_tensor(owners, dtype=torch.float32, device=self.device)

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
        if settings.mode == "phatgoose" and self.learning:
            if self.owners is None:
                raise ValueError("The gates of phatgoose learn from each expert's own questions; call set_owners.")
            return gates.own_sigmoid(logits, self.owners)
        if settings.mode == "loramoe":
            return gates.dense(logits)
        if settings.mode != "two-level":
            return gates.token_top_k(logits / settings.temperature, settings.top_k)
        assert self.log_prior is not None and self.live is not None
        found = gates.two_level(logits, self.log_prior, settings.prior_strength, settings.top_k, self.mask)
        return found * self.live[:, None, None]


class GateSite(nn.Module):
    """Computes the gates that the wide LoRAs under one host module use, in float32."""

    def __init__(self, name: str, routing: Routing, inputs: int, device: torch.device) -> None:
        super().__init__()
        self.name, self.routing = name, routing
        self.weight: nn.Parameter | None = None
        """[E, inputs]: W_g, or one direction per expert."""
        self.bias: nn.Parameter | None = None
        """[E], for X-LoRA's classifier only."""
        mode = routing.settings.mode
        if mode in TOKEN_LEVEL_MODES:
            self.weight = nn.Parameter(torch.zeros(routing.experts, inputs, device=device), requires_grad=False)
        if mode == "xlora":
            self.bias = nn.Parameter(torch.zeros(routing.experts, device=device), requires_grad=False)
        self.gates: Tensor | None = None
        self.logits: Tensor | None = None
        self.parts: list[Tensor] | None = None

    def read_input(self, _host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the host: its first input [B, S, inputs] decides the gates."""
        if self.routing.silent:
            return
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        self.logits = None if self.weight is None else self._score(x, self.weight)
        self.gates = self.routing.compute_gates(self.logits, x.shape[0])
        if self.parts is not None:
            shape = (x.shape[0], x.shape[1], self.routing.experts)
            self.parts.append(self.gates.detach().float().expand(shape))

    def _score(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, S, E]: what the experts are chosen by."""
        routing = self.routing
        if routing.settings.mode == "arrow":
            return gates.score_arrow(x, weight)
        if routing.settings.mode == "phatgoose" and not routing.learning:
            return gates.score_phatgoose(x, weight)
        if routing.settings.mode == "xlora":
            if routing.state is None:  # forced: the first pass was left out
                return torch.zeros(*x.shape[:2], routing.experts, device=x.device)
            return gates.score_linear(routing.state, weight, self.bias)
        return gates.score_linear(x, weight)


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
        self._merged = onednn.KeptWeight()

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
        assert site is not None
        if site.routing.silent:
            return self.linear(x)
        assert site.gates is not None
        if site.routing.is_uniform and onednn.keeps_copies(self.linear, x):
            weight = self._merged.take([self.linear.weight, self.a, self.b], lambda: self._merge(site))
            return onednn.multiply(x, weight, self.linear.bias)
        hidden = onednn.linear(x.to(self.a.dtype), self.a)
        hidden = hidden * (site.gates @ self.spread).to(hidden.dtype)
        y = self.linear(x)
        return y + onednn.linear(hidden, self.b).to(y.dtype)

    def _merge(self, site: GateSite) -> Tensor:
        """W + sum_e g_e scale_e B_e A_e, for gates that are the same for all tokens."""
        assert site.gates is not None
        # W's own kept copy makes room: it is made again where an expert is forced, or under the bare base model.
        self.linear.kept.drop()  # type: ignore[operator, union-attr]
        channels = (site.gates @ self.spread).view(-1)
        return torch.addmm(self.linear.weight, (self.b * channels).to(self.b.dtype), self.a)


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

    def set_owners(self, owners: np.ndarray | Tensor | None) -> None:
        """Which experts the questions of the next forward passes belong to (see `Routing.set_owners`)."""
        self.routing.set_owners(owners)

    def read_first(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model, for X-LoRA: the bare base model reads everything before the experts do.

        Raises `ValueError` with a filled key-value cache: the tokens in it cannot be read a first time again.
        """
        routing = self.routing
        routing.state = None
        if routing.forced is not None:
            return
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError("A mixture of mode xlora reads everything twice; call it with use_cache=False.")
        names = ("input_ids", "attention_mask", "position_ids", "inputs_embeds")
        inputs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if args:
            inputs["input_ids"] = args[0]
        decoder: Any = getattr(self.model, str(self.model.base_model_prefix))
        routing.silent = True
        try:
            with torch.no_grad():
                routing.state = decoder(**inputs, use_cache=False).last_hidden_state.float()
        finally:
            routing.silent = False

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
        """Site name to W_g or directions [E, inputs], X-LoRA's with the bias as last column [E, hidden + 1].

        Empty where no token level is.
        """
        return {site.name: _join(site).detach() for site in self.sites if site.weight is not None}

    def set_gate_weights(self, weights: dict[str, Tensor]) -> None:
        """Take over saved gate weights; raises `ValueError` when sites or shapes differ."""
        own = {site.name: site for site in self.sites if site.weight is not None}
        if set(own) != set(weights):
            raise ValueError(f"gate sites differ: {sorted(set(own) ^ set(weights))[:4]}")
        for name, site in own.items():
            shape, found = tuple(_join(site).shape), tuple(weights[name].shape)
            if shape != found:
                raise ValueError(f"gate {name} is {found}, {shape} is needed")
            assert site.weight is not None
            site.weight.data.copy_(weights[name][:, : site.weight.shape[1]])
            if site.bias is not None:
                site.bias.data.copy_(weights[name][:, -1])

    def point_at_experts(self) -> None:
        """Let each expert's gate be the direction its change answers to most (mode arrow): nothing to learn."""
        for site in self.sites:
            assert site.weight is not None
            for index, adapter in enumerate(self.adapters):
                if site.name in adapter.a:
                    site.weight.data[index] = gates.find_directions(adapter.a[site.name], adapter.b[site.name])

    def draw_gate_weights(self, seed: int, size: float = 0.02) -> None:
        """Small random gate weights (normal, standard deviation `size`), so that untrained experts share the tokens."""
        generator = torch.Generator().manual_seed(seed)
        for site in self.sites:
            if site.weight is not None:
                drawn = torch.randn(site.weight.shape, generator=generator) * size
                site.weight.data.copy_(drawn)

    def unfreeze(self, experts: bool) -> list[nn.Parameter]:
        """Let the gates learn, and with `experts` the LoRAs too (then in float32); returns what learns."""
        learnt = self.sites if self.settings.mode in LEARNT_GATE_MODES else []
        learning = [part for site in learnt for part in (site.weight, site.bias) if part is not None]
        self.routing.learning = True
        if experts:
            for lora in self.loras.values():
                lora.a.data, lora.b.data = lora.a.data.float(), lora.b.data.float()
                learning += [lora.a, lora.b]
        for parameter in learning:
            parameter.requires_grad_(True)
        return learning

    def compute_balance_loss(self, real: Tensor) -> Tensor:
        """Mean over sites of the mode's balance loss for the last forward pass; `real` [B, S] is true but on padding.

        LoRAMoE's is `gates.localised_balance_loss` (by `set_owners`), all others' `gates.balance_loss`. Tokens of
        questions that went to the bare base model do not count.
        """
        counted = real.bool()
        if self.routing.live is not None:
            counted = counted & self.routing.live.bool()[:, None]
        losses = []
        for site in self.sites:
            assert site.logits is not None and site.gates is not None
            if self.settings.mode == "loramoe":
                losses.append(gates.localised_balance_loss(site.gates, counted, self.routing.owners, OWN_KIND))
            else:
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
            host = self.model.get_submodule(site.name)
            if hasattr(host, GATE_NAME):  # a wide LoRA that was a host itself is gone already
                delattr(host, GATE_NAME)
        self._hooks, self.sites, self.loras = [], [], {}


GATE_NAME = "expert_gate"
"""Name of the gate's submodule in its host."""
OWN_KIND = 0.1
"""delta of the localised balance loss, as in LoRAMoE's experiments."""


def attach_experts(model: nn.Module, adapters: Sequence[AdapterWeights], settings: GateSettings) -> Mixture:
    """Wrap the adapted linear modules of `model` in place; gate weights start at 0 (see `draw_gate_weights`), those of
    mode arrow where the experts put them.

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
        host_name = _find_host(module, settings.places)
        if host_name not in hosts:
            own = host_name == module and settings.mode != "xlora"
            hosts[host_name] = _add_site(mixture, host_name, linear.in_features if own else config.hidden_size)
        lora.set_site(hosts[host_name])
    mixture.sites = list(hosts.values())
    if settings.mode == "xlora":
        mixture._hooks.append(model.register_forward_pre_hook(mixture.read_first, with_kwargs=True))
    if settings.mode == "arrow":
        mixture.point_at_experts()
    return mixture


def _find_host(module: str, places: Granularity) -> str:
    """The module at whose input the gate of an adapted module sits; one outside the layers has a gate of its own."""
    if places == "module" or find_layer(module) < 0:
        return module
    if places == "block":
        return _split(module)[0]
    parts = module.split(".")
    return ".".join(parts[: next(place for place, part in enumerate(parts) if part.isdigit()) + 1])


def _join(site: GateSite) -> Tensor:
    """A site's weight, with its bias as last column where it has one."""
    assert site.weight is not None
    return site.weight if site.bias is None else torch.cat([site.weight, site.bias[:, None]], dim=1)


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
    return ".".join(parts[index + 1 :]) or "layer"
