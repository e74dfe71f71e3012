"""Forms made from the settings classes: help is the field's description, bounds are its constraints.

A form returns the values as they stand; whoever shows it checks them with `parse_config`, as the command line does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import streamlit as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pages.shared.i18n import _

_OPEN = 1e-9
"""How far a number field keeps from a bound that itself is not allowed."""


@dataclass(frozen=True, slots=True)
class FormOptions:
    """What a form knows beyond its class. Fields are named as in the class, nested ones with a dot: lora.rank."""

    key: str
    """Beginning of every widget's key."""
    initial: Mapping[str, Any] = field(default_factory=dict)
    """Values to begin with instead of the defaults (nested like the class)."""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What a text or list field offers to choose from."""
    free: frozenset[str] = frozenset()
    """Fields with choices that take other texts, too."""
    shown_as: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Words for the choices of a field."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an annotation comes down to."""

    base: type
    literals: tuple[str, ...] = ()
    optional: bool = False


def field_label(name: str) -> str:
    """A field's name in a person's words."""
    return field_labels().get(name, name.replace("_", " ").capitalize())


def field_labels() -> dict[str, str]:
    """The names of all settings that forms show."""
    return {
        "name": _("Name"), "plan": _("Plan"), "base": _("Base model"), "device": _("Device"), "split": _("Split"),
        "limit": _("At most, questions"), "rank": _("Rank r"), "alpha": _("Alpha"), "dropout": _("Dropout"),
        "targets": _("Adapted modules"), "steps": _("Steps"), "epochs": _("Epochs"), "batch_size": _("Batch size, questions"),
        "learning_rate": _("Learning rate"), "warmup_share": _("Warm-up, share of steps"), "final_share": _("Final rate, share of peak"),
        "weight_decay": _("Weight decay"), "max_tokens": _("Longest question, tokens"), "dtype": _("Precision"), "save_dtype": _("Saved as"),
        "seed": _("Seed"), "save_every": _("Checkpoint every, steps"), "eval_share": _("Held back, share"),
        "experts": _("Experts"), "mode": _("Routing"), "top_k": _("Experts per token"),
        "prior_strength": _("Prior strength λ"), "task_top_m": _("Keep the m most probable"),
        "granularity": _("Gates"), "no_expert": _("Base model may answer"), "encoder": _("Encoder"),
        "of": _("Router reads"), "train": _("What learns"), "balance": _("Load-balance weight"), "temperature": _("Temperature"), "from_scratch": _("Fresh experts"),
        "systems": _("Systems"), "tasks": _("Tasks"), "n_shot": _("Examples shown"),
        "scoring": _("Scoring"), "explained": _("Explained answers"), "chat": _("Chat template"),
        "batch_tokens": _("Tokens per pass"), "max_new_tokens": _("Longest answer, tokens"),
        "max_program_tokens": _("Longest program, tokens"),
        "activations": _("Record the routers"), "token_sample": _("Questions kept token by token"),
        "start_from": _("Start from"), "part_from": _("Questions from, share"), "part_to": _("Questions to, share"),
        "task": _("Task"), "k": _("Shots, K"), "draws": _("Draws"), "shortlist": _("Shortlist, M"), "candidates": _("Candidates"),
        "data": _("Data selection"), "order": _("Learnt in this order"), "replay": _("Replayed, share of earlier questions"),
        "method": _("What is trained"), "blocks": _("New blocks"), "four_bit": _("Base model in 4 bits (QLoRA)"),
        "gradient_checkpointing": _("Gradient checkpointing"), "processes": _("GPUs together"), "report_to": _("Report to"),
        "shards": _("Shards"), "source": _("Source"), "trained_on": _("Trained on"), "kind": _("Kind"),
        "budget": _("Rows to choose"), "tau": _("Alike above τ"), "consider": _("Rows compared, at least"),
        "guard": _("Guarded questions"), "leak_ngrams": _("Leak: share of word sequences"),
        "leak_similarity": _("Leak: cosine"), "keep_good": _("Keep good rows"),
        "pick": _("Rows to take"), "bank": _("Bank"), "pool_tasks": _("Pool of data, tasks"), "ablations": _("Ablations on"),
        "own_experts": _("Experts of the target itself"), "full_limit": _("Full train set, at most"),
        "mixed_limit": _("Mixed data, questions"), "eval_limit": _("Test questions"),
        "neighbours": _("Neighbours"), "min_dist": _("Minimal distance"), "min_cluster_size": _("Smallest cluster"),
    }  # fmt: skip


def render_fields(cls: type[BaseModel], names: Sequence[str], options: FormOptions, columns: int = 3) -> dict[str, Any]:
    """One widget a field, in a grid; returns {field: value}."""
    return _render_grid(cls, names, _start(cls, options.initial), "", options, columns)


def render_nested(
    cls: type[BaseModel], name: str, options: FormOptions, label: str, columns: int = 2
) -> dict[str, Any]:
    """The settings class that field `name` holds, in a popover; returns its values."""
    nested: Any = cls.model_fields[name].annotation
    start = _start(cls, options.initial)[name]
    with st.popover(label, icon=":material/tune:", key=f"{options.key}_{name}_box"):
        return _render_grid(nested, list(nested.model_fields), start, f"{name}.", options, columns)


def _render_grid(
    cls: type[BaseModel],
    names: Sequence[str],
    start: Mapping[str, Any],
    prefix: str,
    options: FormOptions,
    columns: int,
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for first in range(0, len(names), columns):
        for column, name in zip(
            st.columns(columns, vertical_alignment="bottom"), names[first : first + columns], strict=False
        ):
            with column:
                values[name] = _render_field(cls.model_fields[name], prefix + name, start[name], options)
    return values


def _render_field(info: FieldInfo, path: str, value: Any, options: FormOptions) -> Any:
    kind = _kind_of(info.annotation)
    about: dict[str, Any] = {
        "key": f"{options.key}_{path}",
        "help": _(info.description) if info.description else None,
    }
    label = field_label(path.rpartition(".")[2])
    if path in options.choices or kind.literals:
        return _render_choice(label, kind, value, path, options, about)
    if kind.base is bool:
        return st.toggle(label, value=bool(value), **about)
    if kind.base in (int, float):
        return _render_number(label, kind, value, info, about)
    if kind.base is list:
        return st.multiselect(
            label,
            list(value or []),
            default=list(value or []),
            accept_new_options=True,
            placeholder=_("not set"),
            **about,
        )
    text = st.text_input(label, value=str(value or ""), **about).strip()
    return text or None if kind.optional else text


def _render_choice(label: str, kind: _Kind, value: Any, path: str, options: FormOptions, about: dict[str, Any]) -> Any:
    offered = list(options.choices.get(path, kind.literals))
    words = options.shown_as.get(path, {})
    free = path in options.free
    about |= {
        "format_func": lambda choice: words.get(choice, choice),
        "accept_new_options": free,
        "placeholder": _("not set"),
    }
    if kind.base is list:
        chosen = [each for each in value or [] if each in offered or free]
        return st.multiselect(label, list(dict.fromkeys([*offered, *chosen])), default=chosen, **about)
    if value not in offered and value and free:
        offered.append(value)
    index = offered.index(value) if value in offered else (0 if offered and not kind.optional else None)
    return st.selectbox(label, offered, index=index, **about)


def _render_number(label: str, kind: _Kind, value: Any, info: FieldInfo, about: dict[str, Any]) -> Any:
    low, high = _bounds(info)
    if kind.base is int:
        return st.number_input(
            label,
            min_value=None if low is None else math.ceil(low),
            max_value=None if high is None else math.floor(high),
            value=None if value is None else int(value),
            step=1,
            placeholder=_("all") if about["key"].endswith("limit") else _("not set"),
            **about,
        )
    return st.number_input(
        label, min_value=low, max_value=high, value=value if value is None else float(value), step=_step(value),
        format="%g", **about,
    )  # fmt: skip


def _bounds(info: FieldInfo) -> tuple[float | None, float | None]:
    """Least and greatest value the constraints of a number allow."""
    low = high = None
    for rule in info.metadata:
        if getattr(rule, "ge", None) is not None:
            low = float(rule.ge)
        if getattr(rule, "gt", None) is not None:
            low = float(rule.gt) + _OPEN
        if getattr(rule, "le", None) is not None:
            high = float(rule.le)
        if getattr(rule, "lt", None) is not None:
            high = float(rule.lt) - _OPEN
    return low, high


def _step(value: float | None) -> float:
    """A step that fits the size of the number: 0.001 for 0.001, 0.01 for 0.06, 1 for 16."""
    return 10.0 ** min(0, math.floor(math.log10(abs(value)))) if value else 0.05


def _start(cls: type[BaseModel], initial: Mapping[str, Any]) -> dict[str, Any]:
    """What each field begins with: the value given, else the default, else nothing."""
    start: dict[str, Any] = {}
    for name, info in cls.model_fields.items():
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            start[name] = default.model_dump() | dict(initial.get(name) or {})
        else:
            start[name] = initial.get(name, default)
    return start


def _kind_of(annotation: Any) -> _Kind:
    optional = False
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, UnionType):
            optional = True
            annotation = next(arm for arm in get_args(annotation) if arm is not NoneType)
        elif origin is Literal:
            return _Kind(str, tuple(get_args(annotation)), optional)
        else:
            return _Kind(origin or annotation, (), optional)
