"""The command line shown beside a job does what the job does: it is parsed again, by the real parser and verbs."""

import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metamoe_backend.cli import VERB_GROUPS, build_parser, find_verb
from metamoe_backend.config import (
    DEFAULT_BASE,
    ClusterConfig,
    EmbedConfig,
    EvaluateConfig,
    ForceConfig,
    FreezeConfig,
    ImportAdapterConfig,
    IngestConfig,
    LoraSettings,
    MetaQuestionConfig,
    MoeConfig,
    OptimSettings,
    SelectConfig,
    SelectDataConfig,
    SequenceConfig,
    StageConfig,
    SuggestConfig,
    TrainConfig,
    parse_config,
)
from metamoe_backend.jobs.command_line import ON_SLURM, command_line, make_command_line
from metamoe_backend.jobs.run_folder import create_run
from metamoe_backend.pipeline import STAGES
from metamoe_backend.verbs import common, experts
from metamoe_backend.workspace import DEFAULT_WORKSPACE, Workspace

HERE = Workspace(DEFAULT_WORKSPACE)


class Asked(Exception):
    """What a verb asked for, instead of doing it."""


@pytest.fixture
def verbs_that_only_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ask(store: Any, stage: str, values: dict[str, Any], *_: Any) -> None:
        raise Asked(stage, parse_config(STAGES[stage].config, values))

    for name in VERB_GROUPS:
        module = import_module(f"metamoe_backend.verbs.{name}")
        monkeypatch.setattr(module, "run_now", ask, raising=False)
        monkeypatch.setattr(module, "open_store", lambda options: (tmp_path / "store").open("w"), raising=False)
    monkeypatch.setattr(common, "launch", ask)
    monkeypatch.setattr(experts, "newest_plan", lambda store: "the newest")


def ask_again(line: str) -> tuple[str, StageConfig]:
    """The stage and settings that a command line asks for."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "metamoe_backend"]
    options = build_parser().parse_args(words[3:])
    with pytest.raises(Asked) as asked:
        find_verb(options.verb)(options)
    return asked.value.args


@pytest.mark.parametrize("stage", ON_SLURM)
def test_a_run_on_slurm_says_so(
    stage: str, verbs_that_only_ask: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_profiles: list[Any] = []

    def ask(
        store: Any, stage: str, values: dict[str, Any], by: str, profile: str | None = None, after: Any = ()
    ) -> None:
        given_profiles.append(profile)
        raise Asked(stage, parse_config(STAGES[stage].config, values))

    monkeypatch.setattr(common, "launch", ask)
    monkeypatch.setattr("metamoe_backend.verbs.data.run_now", lambda *asked: ask(*asked[:4]))
    config = next(config for name, config, _ in CASES if name == stage)
    run = create_run(Workspace(tmp_path / "ws").create(), stage, "a run", config, "ana", {})
    run.write_state(run.read_state_file().model_copy(update={"profile": "a100", "job": "12"}))
    line = command_line(run)
    assert line.endswith(" --on a100") and ask_again(line) == (stage, config)
    ask_again(line.removesuffix(" --on a100"))
    assert given_profiles == ["a100", None]


CASES: list[tuple[str, StageConfig, str]] = [
    ("ingest", IngestConfig(source="reasoning_gym:chain_sum", limit=9), "ingest reasoning_gym:chain_sum --limit 9"),
    (
        "ingest",
        IngestConfig(
            source="my file.csv", task="a/b", mapping={"prompt": "the question", "answer": "12"}, keep_good=True
        ),
        """ingest 'my file.csv' --task a/b --map 'prompt=the question' 'answer="12"' --keep-good""",
    ),
    (
        "ingest",
        IngestConfig(source="x.tsv", options={"min_terms": 2, "words": ["a"]}, choices=["yes", "no"]),
        """ingest x.tsv --option min_terms=2 'words=["a"]' --choices yes no""",
    ),
    (
        "meta-questions",
        MetaQuestionConfig(method="llm", tasks=["a", "b"], prompt="Say it's $HOME: {question}"),
        """meta-questions --method llm --task a --task b --set 'prompt=Say it'"'"'s $HOME: {question}'""",
    ),
    ("embed", EmbedConfig(encoder="e5", of="meta-question"), "embed --encoder e5 --of meta-question"),
    ("embed", EmbedConfig(device="cuda:1", shards=4), "embed --device cuda:1 --shards 4"),
    ("cluster", ClusterConfig(neighbours=30, min_dist=0.0), "cluster --neighbours 30 --set min_dist=0.0"),
    ("suggest", SuggestConfig(seed=3), "suggest --seed 3"),
    ("suggest", SuggestConfig(of="meta-question", method="llm"), "suggest --of meta-question --method llm"),
    ("freeze", FreezeConfig(labelling="v1"), "freeze v1 --threshold 1.01"),
    (
        "import",
        ImportAdapterConfig(source="hub:x", name="arith", trained_on=["t", "u"]),
        "import hub:x arith --trained-on t u",
    ),
    ("select", SelectConfig(task="rg/a"), "select --task rg/a --k 50 --shortlist 8 --experts 4"),
    (
        "select",
        SelectConfig(task="t", k=5, experts=2, draws=1, candidates=["a", "b"], max_new_tokens=8),
        "select --task t --k 5 --shortlist 8 --experts 2 --draws 1 --candidates a,b --set max_new_tokens=8",
    ),
    (
        "select-data",
        SelectDataConfig(task="t", pool="my pool.tsv", budget=1000, mapping={"prompt": "1"}, leak_ngrams=0.5),
        """select-data --task t --pool 'my pool.tsv' --budget 1000 --map 'prompt="1"' --set leak_ngrams=0.5""",
    ),
    (
        "select-data",
        SelectDataConfig(task="t", tasks=["a", "rg/b"], budget=9, tau=1, k=5),
        "select-data --task t --pool-task a --pool-task rg/b --budget 9 --tau 1.0 --k 5",
    ),
    ("train", TrainConfig(name="logic", plan="one"), "train expert logic --plan one"),
    (
        "train",
        TrainConfig(
            kind="mixed", name="mixed", plan="one", device="cuda:1", optim=OptimSettings(steps=5, warmup_share=0)
        ),
        "train mixed mixed --plan one --steps 5 --device cuda:1 --set optim.warmup_share=0.0",
    ),
    (
        "train",
        TrainConfig(name="logic", plan="one", lora=LoraSettings(targets=["q_proj"])),
        """train expert logic --plan one --set 'lora.targets=["q_proj"]'""",
    ),
    ("train", TrainConfig(name="new", tasks=["a", "rg/b"]), "train expert new --task a rg/b"),
    ("train", TrainConfig(name="new", data="run-7", limit=9), "train expert new --data run-7 --limit 9"),
    (
        "sequence",
        SequenceConfig(name="seq", order=["a", "b/c"], replay=0.1, optim=OptimSettings(steps=9)),
        "train sequence seq --order a b/c --replay 0.1 --steps 9",
    ),
    ("sequence", SequenceConfig(name="seq", plan="p", order=["x", "y"]), "train sequence seq --order x y --plan p"),
    ("moe", MoeConfig(name="both", experts=["a", "b"], plan="one"), "train moe both --experts a,b --plan one"),
    (
        "moe",
        MoeConfig(name="both", experts=["a", "b"], mode="uniform"),
        "train moe both --experts a,b --mode uniform",
    ),
    (
        "moe",
        MoeConfig(name="both", experts=["a", "b"], mode="arrow", train="none"),
        "train moe both --experts a,b --mode arrow --set train=none",
    ),
    (
        "moe",
        MoeConfig(name="both", experts=["a", "b"], plan="one", top_k=1, optim=OptimSettings(steps=60, seed=3)),
        "train moe both --experts a,b --plan one --steps 60 --seed 3 --top-k 1",
    ),
    (
        "moe",
        MoeConfig(name="both", experts=["a", "b"], plan="one", optim=OptimSettings()),
        "train moe both --experts a,b --plan one --set optim.steps=null",
    ),
    (
        "force",
        ForceConfig(system="both", questions=["a", "b"], device="cpu", max_new_tokens=64),
        "force --system both --question a b --device cpu --set max_new_tokens=64",
    ),
    (
        "evaluate",
        EvaluateConfig(systems=["base", "logic"], tasks=["t", "rg/u"], limit=50, activations=False),
        "evaluate --system base logic --task t rg/u --limit 50 --set activations=false",
    ),
]


@pytest.mark.parametrize(("stage", "config", "line"), CASES)
@pytest.mark.usefixtures("verbs_that_only_ask")
def test_the_line_is_short_and_asks_for_the_same(stage: str, config: StageConfig, line: str) -> None:
    assert make_command_line(HERE, stage, config) == f"python -m metamoe_backend {line}"
    assert ask_again(make_command_line(HERE, stage, config)) == (stage, config)


def test_every_stage_has_a_line() -> None:
    assert {stage for stage, _, _ in CASES} == set(STAGES)


names = st.from_regex(r"[a-zA-Z0-9äß中][a-z0-9_.\-]{0,8}", fullmatch=True)
shares = st.floats(0, 0.5)
optims = st.builds(
    OptimSettings,
    steps=st.none() | st.integers(1, 99),
    learning_rate=st.floats(1e-6, 1),
    warmup_share=shares,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 9),
)
loras = st.builds(
    LoraSettings,
    rank=st.integers(1, 64),
    dropout=shares,
    targets=st.lists(st.text("qv_proj '\"$\\", min_size=1), min_size=1, max_size=3),
)
trainings = st.builds(
    TrainConfig,
    kind=st.sampled_from(["expert", "mixed"]),
    name=names,
    plan=names,
    base=st.sampled_from([DEFAULT_BASE, "./my models/llama", "12", "null"]),
    device=st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
    limit=st.none() | st.integers(1, 99),
    lora=loras,
    optim=optims,
)
mixtures = st.builds(
    MoeConfig,
    name=names,
    plan=names,
    experts=st.lists(names, min_size=2, max_size=4, unique=True),
    mode=st.sampled_from(["token", "task", "two-level", "uniform"]),
    task_top_m=st.none() | st.integers(1, 3),
    no_expert=st.booleans(),
    balance=shares,
    optim=optims,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trainings | mixtures)
@pytest.mark.usefixtures("verbs_that_only_ask")
def test_any_training_asks_for_the_same(config: StageConfig) -> None:
    stage = "train" if isinstance(config, TrainConfig) else "moe"
    assert ask_again(make_command_line(HERE, stage, config)) == (stage, config)


@pytest.mark.usefixtures("verbs_that_only_ask")
def test_the_line_of_a_run_names_its_workspace(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "my work; rm -rf").create()
    run = create_run(workspace, "train", "logic", TrainConfig(name="logic", plan="one"), "ana", {})
    line = command_line(run)
    assert line == f"python -m metamoe_backend --workspace '{workspace.root}' train expert logic --plan one"
    assert build_parser().parse_args(shlex.split(line)[3:]).workspace == str(workspace.root)
