"""The command line that does what a run does, to copy: only what differs from the defaults is said."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from metamoe_backend.config import StageConfig, parse_config
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.pipeline import STAGES
from metamoe_backend.workspace import DEFAULT_WORKSPACE, Workspace

Style = Literal["value", "repeated", "list", "commas", "pairs", "switch"]
"""How several values follow an option: `--task a --task b`, `--task a b`, `--experts a,b`, `--map a=b c=d`."""


@dataclass(frozen=True, slots=True)
class _Verb:
    """How the settings of one stage are written; whatever has no place of its own follows as --set KEY=VALUE."""

    words: tuple[str, ...]
    """The verb, and in braces the settings that follow it without an option."""
    options: dict[str, tuple[str, Style]] = field(default_factory=dict)
    always: tuple[str, ...] = ()
    """Settings that are said even if they are the default: the command's own default is another."""


ON_SLURM = ("meta-questions", "embed", "train", "sequence", "moe", "evaluate", "select", "force")
"""Stages whose verbs take --on PROFILE."""

_TASKS: dict[str, tuple[str, Style]] = {"tasks": ("--task", "repeated")}
_VECTORS: dict[str, tuple[str, Style]] = {
    "encoder": ("--encoder", "value"), "of": ("--of", "value"), "method": ("--method", "value"),
}  # fmt: skip
_SHARDS: dict[str, tuple[str, Style]] = {"device": ("--device", "value"), "shards": ("--shards", "value")}
_TRAINING: dict[str, tuple[str, Style]] = {
    "plan": ("--plan", "value"), "tasks": ("--task", "list"), "data": ("--data", "value"),
    "base": ("--base", "value"), "optim.steps": ("--steps", "value"),
    "device": ("--device", "value"), "limit": ("--limit", "value"), "optim.seed": ("--seed", "value"),
}  # fmt: skip
_VERBS = {
    "ingest": _Verb(("ingest", "{source}"), {
        "task": ("--task", "value"), "split": ("--split", "value"), "limit": ("--limit", "value"),
        "seed": ("--seed", "value"), "mapping": ("--map", "pairs"), "options": ("--option", "pairs"),
        "choices": ("--choices", "list"), "keep_good": ("--keep-good", "switch"), "template": ("--template", "value"),
    }),
    "meta-questions": _Verb(("meta-questions",), {
        "method": ("--method", "value"), "model": ("--model", "value"), "base_url": ("--base-url", "value"), **_TASKS,
        **_SHARDS,
    }),
    "embed": _Verb(("embed",), {**_VECTORS, **_TASKS, **_SHARDS}),
    "cluster": _Verb(("cluster",), {
        **_VECTORS, "min_cluster_size": ("--min-cluster-size", "value"), "neighbours": ("--neighbours", "value"),
        "seed": ("--seed", "value"), **_TASKS,
    }),
    "suggest": _Verb(("suggest",), {**_VECTORS, "seed": ("--seed", "value")}),
    "freeze": _Verb(("freeze", "{labelling}"), {"threshold": ("--threshold", "value")}, always=("threshold",)),
    "import": _Verb(("import", "{source}", "{name}"), {
        "base": ("--base", "value"), "trained_on": ("--trained-on", "list"),
    }),
    "select-data": _Verb(("select-data",), {
        "task": ("--task", "value"), "pool": ("--pool", "value"), "tasks": ("--pool-task", "repeated"),
        "budget": ("--budget", "value"), "tau": ("--tau", "value"), "k": ("--k", "value"),
        "encoder": ("--encoder", "value"), "limit": ("--limit", "value"), "seed": ("--seed", "value"),
        "mapping": ("--map", "pairs"), "keep_good": ("--keep-good", "switch"),
    }, always=("budget",)),
    "select": _Verb(("select",), {
        "task": ("--task", "value"), "k": ("--k", "value"), "shortlist": ("--shortlist", "value"),
        "experts": ("--experts", "value"), "draws": ("--draws", "value"), "candidates": ("--candidates", "commas"),
        "base": ("--base", "value"), "split": ("--split", "value"), "device": ("--device", "value"),
        "seed": ("--seed", "value"),
    }, always=("task", "k", "shortlist", "experts")),
    "train": _Verb(("train", "{kind}", "{name}"), _TRAINING, always=("plan",)),
    "sequence": _Verb(("train", "sequence", "{name}"), {
        "order": ("--order", "list"), "replay": ("--replay", "value"),
        **{name: option for name, option in _TRAINING.items() if name not in ("tasks", "data")},
    }, always=("order",)),
    "moe": _Verb(("train", "moe", "{name}"), {
        "experts": ("--experts", "commas"), **_TRAINING, "mode": ("--mode", "value"), "top_k": ("--top-k", "value"),
    }, always=("plan", "experts")),
    "evaluate": _Verb(("evaluate",), {
        "systems": ("--system", "list"), "tasks": ("--task", "list"), "split": ("--split", "value"),
        "limit": ("--limit", "value"), "n_shot": ("--n-shot", "value"), **_SHARDS,
    }, always=("systems", "tasks")),
    "force": _Verb(("force",), {
        "system": ("--system", "value"), "questions": ("--question", "list"), "device": ("--device", "value"),
    }, always=("system", "questions")),
}  # fmt: skip


def command_line(run: RunFolder) -> str:
    """The command that asks for the same as a run did; raises `StorageError` or `ConfigError` for a damaged spec."""
    spec = run.read_spec()
    config = parse_config(STAGES[spec.stage].config, spec.config)
    return make_command_line(run.workspace, spec.stage, config, run.read_state_file().profile)


def make_command_line(workspace: Workspace, stage: str, config: StageConfig, profile: str | None = None) -> str:
    """The command that runs `stage` with these settings, here or on Slurm, quoted for a shell."""
    verb = _VERBS[stage]
    settings = dict(_flatten(config, ""))
    words = ["python", "-m", "metamoe_backend"]
    if workspace.root != DEFAULT_WORKSPACE:
        words += ["--workspace", str(workspace.root)]
    for word in verb.words:
        words.append(str(settings.pop(word[1:-1])[0]) if word[0] == "{" else word)
    for key, (option, style) in verb.options.items():
        value, is_default = settings[key]
        if value is not None and (key in verb.always or not is_default):
            words += _write_option(option, style, value)
            del settings[key]
    for key, (value, is_default) in settings.items():
        if not is_default:
            words += ["--set", f"{key}={_write_value(value)}"]
    if profile is not None and stage in ON_SLURM:
        words += ["--on", profile]
    return shlex.join(words)


def _flatten(
    config: StageConfig, prefix: str, default: StageConfig | None = None
) -> Iterator[tuple[str, tuple[Any, bool]]]:
    """(dotted name, (value, whether it goes without saying)) of every setting.

    `default` is what stands in a nested settings' place when nothing is said. It may differ from the defaults of their
    class, which count as soon as one of them is said: then only what equals both goes without saying.
    """
    values = config.model_dump(mode="json")
    for name, info in type(config).model_fields.items():
        own_default = info.get_default(call_default_factory=True)
        value = getattr(config, name)
        if isinstance(value, StageConfig):
            yield from _flatten(value, f"{prefix}{name}.", own_default)
            continue
        unsaid = value == own_default if default is None else value == own_default == getattr(default, name)
        yield f"{prefix}{name}", (values[name], unsaid or config == default)


def _write_option(option: str, style: Style, value: Any) -> list[str]:
    match style:
        case "switch":
            return [option]
        case "repeated":
            return [word for each in value for word in (option, str(each))]
        case "list":
            return [option, *map(str, value)]
        case "commas":
            return [option, ",".join(value)]
        case "pairs":
            return [option, *(f"{key}={_write_value(each)}" for key, each in value.items())]
        case "value":
            return [option, str(value)]


def _write_value(value: Any) -> str:
    """As the command line reads it: JSON where it parses as JSON, else text."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value, ensure_ascii=False)
