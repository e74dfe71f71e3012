"""Stage "moe" from end to end on tiny models: routers learn, the folder holds what was made, and systems open again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from metamoe_backend.config import LoraSettings, MoeConfig, OptimSettings, TrainConfig, parse_config
from metamoe_backend.embed import hash_text
from metamoe_backend.errors import ConfigError, NotFoundError, StopRequested, StorageError
from metamoe_backend.models.base import LoadedBase, load_base
from metamoe_backend.models.mixtures import read_mixture
from metamoe_backend.models.routers import fit_task_router
from metamoe_backend.models.systems import open_system
from metamoe_backend.store.connection import Store
from metamoe_backend.train import expert, moe, sources
from tests.fake_encoder import FakeEncoder, install
from tests.recording import RecordingContext
from tests.tiny_models import make_tiny_adapter, make_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = {"colours": ("paint the wall", "red"), "sums": ("add the numbers", "42"), "towns": ("name a city", "Rome")}
MEMBERS = {"colours": "painter", "sums": "counter", "towns": "base"}
OPTIM = {"batch_size": 8, "learning_rate": 0.02, "max_tokens": 64, "save_every": 10}


@pytest.fixture(autouse=True)
def encoder(monkeypatch) -> FakeEncoder:
    return install(monkeypatch)


def make_questions(count: int = 20) -> pd.DataFrame:
    rows = [
        {
            "question_id": f"{skill}-{i}", "task": skill, "template": "Q: {prompt}\nA:", "answer": answer,
            "prompt": f"{words} {'x' * (i % 7)}", "skill": skill, "expert": MEMBERS[skill],
            "meta_question": f"{words} of something",
        }
        for skill, (words, answer) in WORDS.items()
        for i in range(count)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def bank(tmp_path_factory, base_folder) -> tuple[Path, pd.DataFrame]:
    """A workspace root with two trained experts, and their rows."""
    root = tmp_path_factory.mktemp("bank")
    questions, rows = make_questions(), []
    for name in ("painter", "counter"):
        config = TrainConfig(
            name=name, plan="p", base=str(base_folder), device="cpu", optim=OptimSettings(steps=40, **OPTIM),
            lora=LoraSettings(rank=4 if name == "painter" else 2),
        )  # fmt: skip
        inputs = {
            "questions": questions[questions["expert"] == name].reset_index(drop=True),
            "target": pd.DataFrame({"adapter": [name]}),
            "start": pd.DataFrame({"adapter": [], "sha256": []}),
        }
        context = RecordingContext(root, f"train-{name}")
        expert.compute(inputs, config, context)
        rows.append(context.rows("adapter"))
    return root, pd.concat(rows, ignore_index=True)


@pytest.fixture
def root(bank, tmp_path) -> Path:
    return Path(shutil.copytree(bank[0], tmp_path / "workspace"))


def make_config(base_folder: Path, **changes) -> MoeConfig:
    values = {
        "name": "both", "experts": ["painter", "counter"], "plan": "p", "base": str(base_folder), "device": "cpu",
        "optim": OptimSettings(steps=20, **OPTIM),
    }  # fmt: skip
    return MoeConfig(**(values | changes))


def make_inputs(bank, config: MoeConfig, questions: pd.DataFrame | None = None) -> dict[str, pd.DataFrame]:
    """What `prepare` would hand over; no vectors are stored, so that all are computed."""
    return {
        "questions": moe.assign_experts(make_questions() if questions is None else questions, bank[1], config),
        "adapters": bank[1],
        "vectors": pd.DataFrame({"question_id": [], "text_hash": [], "vector": []}),
        "target": pd.DataFrame({"mixture": [config.name]}),
    }


def make_mixture(root: Path, bank, config: MoeConfig, run_id: str = "run-1", **inputs) -> RecordingContext:
    context = RecordingContext(root, run_id)
    moe.compute(make_inputs(bank, config) | inputs, config, context)
    return context


def get_system(context: RecordingContext) -> dict:
    return context.rows("system").iloc[0].to_dict()


def adapter_system(root: Path, name: str, bank) -> dict:
    row = bank[1].set_index("adapter").loc[name]
    return {"system": name, "kind": "expert", "base": row["base"], "path": f"adapters/{name}", "sha256": row["sha256"]}


def compute_loss(loaded: LoadedBase, system: dict, root: Path, questions: pd.DataFrame) -> dict[str, float]:
    """Mean answer loss per task, in nats a token."""
    losses = {}
    with open_system(loaded, system, root) as opened, torch.no_grad():
        for row in questions.drop_duplicates("task").itertuples():
            opened.set_routes(opened.compute_routes([row.prompt]))
            before = loaded.tokenizer(row.template.replace("{prompt}", row.prompt))["input_ids"]
            answer = [*loaded.tokenizer(f" {row.answer}")["input_ids"], loaded.tokenizer.eos_token_id]
            logits = opened.model(input_ids=torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
            losses[row.task] = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
    return losses


def test_a_two_level_mixture_is_as_good_as_the_right_expert_on_each_task(root, bank, base_folder):
    context = make_mixture(root, bank, make_config(base_folder))
    system, questions = get_system(context), make_questions()
    loaded = load_base(str(base_folder), "cpu")
    mixture = compute_loss(loaded, system, root, questions)
    painter = compute_loss(loaded, adapter_system(root, "painter", bank), root, questions)
    counter = compute_loss(loaded, adapter_system(root, "counter", bank), root, questions)
    bare = compute_loss(loaded, {"system": "base", "kind": "base"}, root, questions)
    assert painter["colours"] < 1 and painter["sums"] > 3 and counter["sums"] < 1 and counter["colours"] > 3
    assert mixture["colours"] < 1 and mixture["sums"] < 1
    assert mixture["towns"] == bare["towns"]  # sent to the bare base model
    assert (system["kind"], system["path"], list(system["experts"])) == ("moe", "mixtures/both", ["painter", "counter"])
    assert json.loads(system["settings"])["mode"] == "two-level"


def test_metrics_and_words_about_the_run(root, bank, base_folder):
    context = make_mixture(root, bank, make_config(base_folder, balance=0.01))
    metrics = context.rows("metric")
    assert {"loss", "learning_rate", "tokens_per_s", "eval_loss", "auxiliary_loss"} <= set(metrics["name"])
    accuracy = metrics[metrics["name"] == "route_accuracy"]
    assert accuracy["value"].tolist() == [1.0] and accuracy["step"].tolist() == [0]
    assert any("right on 100.0% of questions it had not seen" in message for message in context.messages)


def test_the_same_seed_makes_the_same_mixture(root, bank, base_folder):
    config = make_config(base_folder)
    first = get_system(make_mixture(root, bank, config, "run-1"))
    second = get_system(make_mixture(root, bank, config, "run-2"))
    assert (first["path"], second["path"]) == ("mixtures/both", "mixtures/both-2")
    assert first["sha256"] == second["sha256"]
    other = make_config(base_folder, optim=OptimSettings(steps=20, seed=1, **OPTIM))
    assert get_system(make_mixture(root, bank, other, "run-3"))["sha256"] != first["sha256"]


def test_the_folder_holds_json_and_safetensors_and_nothing_else(root, bank, base_folder):
    make_mixture(root, bank, make_config(base_folder))
    folder = root / "mixtures" / "both"
    assert sorted(path.name for path in folder.iterdir()) == ["moe.json", "router.safetensors"]
    assert [path.name for path in (root / "mixtures").iterdir()] == ["both"]
    saved = json.loads((folder / "moe.json").read_text())
    assert saved["routes"] == ["painter", "counter", "base"]
    assert saved["sites"] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert saved["experts"][0]["sha256"] == bank[1]["sha256"][0]
    assert (saved["encoder"], saved["of"], saved["mode"], saved["top_k"]) == ("minilm", "question", "two-level", 2)


def test_what_is_saved_answers_as_what_was_trained(root, bank, base_folder, monkeypatch):
    seen = {}
    real = moe._publish

    def spy(mixture, *rest):
        mixture.set_routes(np.array([[0.3, 0.6, 0.1]]))
        with torch.no_grad():
            seen["logits"] = mixture.model(input_ids=torch.arange(40, 60)[None]).logits
        return real(mixture, *rest)

    monkeypatch.setattr(moe, "_publish", spy)
    system = get_system(make_mixture(root, bank, make_config(base_folder, train="router+experts")))
    loaded = load_base(str(base_folder), "cpu")
    with open_system(loaded, system, root) as opened, torch.no_grad():
        opened.set_routes(np.array([[0.3, 0.6, 0.1]]))
        assert torch.equal(opened.model(input_ids=torch.arange(40, 60)[None]).logits, seen["logits"])


def test_experts_trained_further_are_kept_inside_the_mixture(root, bank, base_folder):
    bank_before = {path: path.read_bytes() for path in (root / "adapters").rglob("*.safetensors")}
    config = make_config(base_folder, mode="uniform", train="router+experts")
    system = get_system(make_mixture(root, bank, config))
    own = root / system["path"] / "experts" / "painter" / "adapter_model.safetensors"
    assert own.read_bytes() != (root / "adapters" / "painter" / "adapter_model.safetensors").read_bytes()
    assert all(path.read_bytes() == content for path, content in bank_before.items())
    loaded = load_base(str(base_folder), "cpu")
    trained = compute_loss(loaded, system, root, make_questions())
    frozen = get_system(make_mixture(root, bank, make_config(base_folder, name="frozen", mode="uniform"), "run-2"))
    before = compute_loss(loaded, frozen, root, make_questions())
    assert trained["colours"] < before["colours"] and trained["sums"] < before["sums"]
    own.write_bytes((root / "adapters" / "painter" / "adapter_model.safetensors").read_bytes())
    with pytest.raises(StorageError, match=r"Expert painter .* is not the one that mixture both was made with"):
        compute_loss(loaded, system, root, make_questions())


def test_training_makes_a_token_router_better(root, bank, base_folder):
    questions, loaded = make_questions(), load_base(str(base_folder), "cpu")
    losses = {}
    for train in ("none", "router"):
        config = make_config(base_folder, name=train, mode="token", top_k=1, train=train)
        system = get_system(make_mixture(root, bank, config, train))
        losses[train] = compute_loss(loaded, system, root, questions)
    assert losses["router"]["colours"] + losses["router"]["sums"] < losses["none"]["colours"] + losses["none"]["sums"]


@pytest.mark.parametrize("mode", ["loramoe", "xlora", "phatgoose"])
@pytest.mark.parametrize("granularity", ["layer", "block", "module"])
def test_other_routers_learn_and_answer_as_they_were_trained(root, bank, base_folder, mode, granularity):
    config = make_config(base_folder, mode=mode, granularity=granularity, balance=0.01)
    context = make_mixture(root, bank, config)
    system, questions, loaded = get_system(context), make_questions(), load_base(str(base_folder), "cpu")
    saved = read_mixture(root / system["path"])
    assert any(weight.any() for weight in saved.gate_weights.values())
    assert saved.spec.granularity == granularity and saved.spec.mode == mode
    even = get_system(make_mixture(root, bank, make_config(base_folder, name="even", mode="uniform"), "run-2"))
    trained, before = (compute_loss(loaded, each, root, questions) for each in (system, even))
    assert trained["colours"] + trained["sums"] < before["colours"] + before["sums"]


@pytest.mark.parametrize("mode", ["token", "two-level", "loramoe", "xlora", "phatgoose"])
@pytest.mark.parametrize("granularity", ["layer", "block", "module"])
def test_gradient_checkpointing_changes_no_gate(root, bank, base_folder, mode, granularity):
    """Gates are computed again in the backward pass, and the balance loss and the owners still hold."""
    learns = "router" if mode == "phatgoose" else "router+experts"
    weights = []
    for again in (False, True):
        optim = OptimSettings(steps=4, gradient_checkpointing=again, **OPTIM)
        config = make_config(
            base_folder,
            name=f"again-{again}",
            mode=mode,
            granularity=granularity,
            balance=0.3,
            train=learns,
            optim=optim,
        )
        context = make_mixture(root, bank, config, f"run-{again}")
        losses = context.rows("metric").query("name == 'auxiliary_loss'")["value"]
        assert len(losses) and (losses > 0).all()
        folder = root / get_system(context)["path"]
        saved = read_mixture(folder)
        own = [load_file(path) for path in sorted(folder.rglob("adapter_model.safetensors"))]
        assert len(own) == (0 if mode == "phatgoose" else 2)
        weights.append([saved.gate_weights, *own])
    for before, after in zip(*weights, strict=True):
        assert before.keys() == after.keys()
        for name, values in before.items():
            torch.testing.assert_close(values, after[name])


def test_arrow_needs_no_training_and_no_questions(root, bank, base_folder):
    config = make_config(base_folder, mode="arrow", top_k=1, plan=None)
    context = make_mixture(root, bank, config, questions=make_questions(0).reindex(columns=sources.COLUMNS))
    system, loaded = get_system(context), load_base(str(base_folder), "cpu")
    assert "nothing trained by gradients" in context.messages[-1]
    with open_system(loaded, system, root) as opened, opened.record() as record, torch.no_grad():
        opened.model(input_ids=torch.arange(60, 80)[None])
    assert all((weights.sum(-1) == 1).all() for weights in record.weights)
    saved = read_mixture(root / system["path"]).gate_weights
    assert all(torch.allclose(weight.norm(dim=1), torch.ones(2)) for weight in saved.values())


def test_experts_can_begin_from_nothing(root, bank, base_folder):
    """Without the bank: experts of these names learn together with the gates, twice the same."""
    losses, hashes = [], []
    for attempt in range(2):
        config = make_config(
            base_folder, name=f"new-{attempt}", experts=["one", "two"], mode="token", top_k=1, train="router+experts",
            from_scratch=True, plan=None, tasks=["colours", "sums"], lora=LoraSettings(rank=3),
            optim=OptimSettings(steps=40, **OPTIM),
        )  # fmt: skip
        context = RecordingContext(root, f"run-{attempt}")
        inputs = make_inputs((root, bank[1].head(0)), config, make_questions())
        moe.compute(inputs, config, context)
        system, loaded = get_system(context), load_base(str(base_folder), "cpu")
        losses.append(compute_loss(loaded, system, root, make_questions()))
        own = read_mixture(root / system["path"]).spec.experts
        assert [entry.name for entry in own] == ["one", "two"] and all(entry.own for entry in own)
        hashes.append([entry.sha256 for entry in own])
    assert hashes[0] == hashes[1] and losses[0] == losses[1]
    loaded = load_base(str(base_folder), "cpu")
    bare = compute_loss(loaded, {"kind": "base", "system": "base"}, root, make_questions())
    assert losses[0]["colours"] < 0.5 * bare["colours"] and losses[0]["sums"] < 0.5 * bare["sums"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"from_scratch": True}, "fresh experts know nothing yet"),
        ({"mode": "arrow", "train": "router+experts"}, "mode arrow routes by what the experts are"),
        ({"mode": "phatgoose", "train": "none"}, "phatgoose teaches each finished expert a gate"),
        ({"mode": "task", "plan": None, "tasks": ["sums"]}, "mode task needs a plan"),
    ],
)
def test_settings_that_contradict_the_mode_are_refused(changes, sentence):
    values = {"name": "both", "experts": ["painter", "counter"], "plan": "p"} | changes
    with pytest.raises(ConfigError, match=sentence):
        parse_config(MoeConfig, values)


def test_questions_belong_to_the_expert_that_was_trained_on_their_task(bank, base_folder):
    config = make_config(base_folder, mode="phatgoose", plan=None, tasks=["colours", "sums", "riddles"])
    adapters = bank[1].assign(trained_on=[["colours"], ["sums", "colours"]])
    questions = make_questions().assign(expert=None)
    questions.loc[0, "task"] = "riddles"
    assigned = moe.assign_experts(questions, adapters, config)
    found = assigned.groupby("task")["expert"].agg(lambda names: set(names.dropna()))
    assert found.to_dict() == {"colours": {"painter"}, "sums": {"counter"}, "riddles": set(), "towns": set()}
    owners = moe.make_owners(assigned, config.experts)
    assert owners[0].tolist() == [0.5, 0.5] and set(owners.sum(axis=1)) == {1.0}


def test_phatgoose_wants_questions_of_every_expert(filled_store):
    config = MoeConfig(name="duo", experts=["logic", "arith"], plan="first", mode="phatgoose", split="validation")
    with pytest.raises(ConfigError, match="so its gate cannot learn"):
        moe.prepare(filled_store, config)


def test_an_untrained_two_level_mixture_routes_as_its_task_level(root, bank, base_folder):
    loaded = load_base(str(base_folder), "cpu")
    found = []
    for mode in ("two-level", "task"):
        config = make_config(base_folder, name=mode, mode=mode, train="none")
        system = get_system(make_mixture(root, bank, config, mode))
        found.append(compute_loss(loaded, system, root, make_questions()))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_an_open_system_says_what_it_reads_and_how_it_routes(root, bank, base_folder, encoder):
    config = make_config(base_folder, of="meta-question", train="none")
    system = get_system(make_mixture(root, bank, config))
    loaded = load_base(str(base_folder), "cpu")
    with open_system(loaded, system, root) as opened:
        assert opened.routes_text == "meta-question" and opened.experts == ["painter", "counter"]
        assert opened.route_names == ["painter", "counter", "base"]
        routes = opened.compute_routes(["paint the wall", "add the numbers", "name a city"])
        assert routes.argmax(axis=1).tolist() == [0, 1, 2]
        np.testing.assert_allclose(routes.sum(axis=1), 1, atol=1e-6)
        opened.set_routes(routes)
        with opened.record() as record:
            opened.model(input_ids=torch.zeros(3, 5, dtype=torch.long))
        assert record.experts == ["painter", "counter"] and record.sites == ["mlp", "mlp"]
        assert record.weights[0][:, 0].argmax(-1)[:2].tolist() == [0, 1] and (record.weights[0][2] == 0).all()
    assert set(encoder.encoded[:60]) == {f"{words} of something" for words, _ in WORDS.values()}


def test_systems_without_a_task_level(root, bank, base_folder):
    loaded = load_base(str(base_folder), "cpu")
    token = get_system(make_mixture(root, bank, make_config(base_folder, mode="token", train="none")))
    for system in (token, adapter_system(root, "painter", bank), {"system": "base", "kind": "base"}):
        with open_system(loaded, system, root) as opened:
            assert opened.compute_routes(["x"]) is None and opened.routes_text is None and opened.route_names == []
            opened.set_routes(None)
            with pytest.raises(ValueError, match="task level"):
                opened.set_routes(np.ones((1, 2)) / 2)
            with opened.record() as record:
                opened.model(input_ids=torch.zeros(1, 3, dtype=torch.long))
            assert len(record.weights) == (2 if system["kind"] == "moe" else 0)


def test_systems_that_changed_are_refused(root, bank, base_folder):
    loaded = load_base(str(base_folder), "cpu")
    system = get_system(make_mixture(root, bank, make_config(base_folder, train="none")))

    def check(sentence, error=StorageError, row=system):
        with pytest.raises(error, match=sentence), open_system(loaded, row, root):
            pass

    check("was made on the base model 'other'", ConfigError, system | {"base": "other"})
    check("is missing; train or import it again", row=system | {"path": "mixtures/none"})
    check("are not those that system 'both' was recorded with", row=system | {"sha256": "0" * 64})
    check("are not those", row=adapter_system(root, "painter", bank) | {"sha256": "0" * 64})
    shutil.move(root / "adapters" / "counter", root / "away")
    check("Expert counter of mixture both is missing")
    make_tiny_adapter(root / "adapters" / "counter", base_folder)
    check("Expert counter .* is not the one that mixture both was made with")
    shutil.rmtree(root / "adapters" / "counter")
    shutil.move(root / "away", root / "adapters" / "counter")
    check_damage(root / system["path"], check)
    assert not any("expert_gate" in name for name, _ in loaded.model.named_modules())


def check_damage(folder: Path, check) -> None:
    router = folder / "router.safetensors"
    content = router.read_bytes()
    router.write_bytes(content[:-1] + b"\x01")
    check("is not the file that .*moe.json was written with")
    router.unlink()
    check(r"router\.safetensors is missing; make the mixture both again")
    router.write_bytes(content)
    text = (folder / "moe.json").read_text()
    (folder / "moe.json").write_text(text.replace('"two-level"', '"three-level"'))
    check(r"moe\.json is damaged at mode")
    (folder / "moe.json").write_text(text[:50])
    check(r"moe\.json is damaged at its top")


def test_stored_vectors_are_used_unless_their_text_changed(root, bank, base_folder, encoder):
    config = make_config(base_folder, train="none")
    inputs = make_inputs(bank, config)
    texts = inputs["questions"]["prompt"].tolist()
    hashes = [hash_text(text) for text in texts]
    hashes[3] = "stale"
    vectors = list(FakeEncoder().encode(texts))
    inputs["vectors"] = inputs["questions"][["question_id"]].assign(text_hash=hashes, vector=vectors)
    moe.compute(inputs, config, RecordingContext(root))
    assert encoder.encoded == [texts[3]]


def test_stop_and_save_publishes_and_cancel_does_not(root, bank, base_folder):
    config = make_config(base_folder)

    def stop_at(step: int, save: bool):
        def act(done: int) -> None:
            if done >= step:
                raise StopRequested(save)

        return act

    cancelled = RecordingContext(root, "run-1", stop_at(3, save=False))
    with pytest.raises(StopRequested):
        moe.compute(make_inputs(bank, config), config, cancelled)
    assert not (root / "mixtures").exists() or not any((root / "mixtures").iterdir())
    assert "system" not in cancelled.emitted
    stopped = RecordingContext(root, "run-2", stop_at(3, save=True))
    with pytest.raises(StopRequested):
        moe.compute(make_inputs(bank, config), config, stopped)
    assert (root / "mixtures" / "both" / "moe.json").is_file() and len(stopped.rows("system")) == 1


def test_a_stopped_run_goes_on_to_the_same_mixture(root, bank, base_folder):
    config = make_config(base_folder)

    def act(done: int) -> None:
        if done >= 7:
            raise StopRequested(save=True)

    with pytest.raises(StopRequested):
        moe.compute(make_inputs(bank, config), config, RecordingContext(root, "run-1", act))
    resumed = RecordingContext(root, "run-1")
    moe.compute(make_inputs(bank, config), config, resumed)
    assert any("Going on from checkpoint-7" in message for message in resumed.messages)
    whole = make_mixture(root, bank, config, "run-2")
    assert get_system(resumed)["sha256"] == get_system(whole)["sha256"]


def test_an_expert_that_changed_in_the_bank_or_left_it_is_refused(root, bank, base_folder):
    make_tiny_adapter(root / "adapters" / "painter", base_folder)
    with pytest.raises(StorageError, match="expert 'painter' are not those recorded in the bank"):
        make_mixture(root, bank, make_config(base_folder))
    shutil.rmtree(root / "adapters" / "painter")
    with pytest.raises(StorageError, match="Expert 'painter' is missing from .*; put it back, or train or import it"):
        make_mixture(root, bank, make_config(base_folder))


def test_questions_find_their_member(bank, base_folder):
    """The plan's name first, then whoever was trained on the skill; base only where the task level may route there."""
    questions = make_questions(1)
    renamed = bank[1].assign(adapter=["painter-2", "counter"])
    config = make_config(base_folder, experts=["painter-2", "counter"])
    found = moe.assign_experts(questions, renamed, config)
    assert found["expert"].tolist() == ["painter-2", "counter", "base"]
    without = moe.assign_experts(questions, renamed, config.model_copy(update={"no_expert": False}))
    assert without["expert"].tolist() == ["painter-2", "counter"]
    alone = moe.assign_experts(questions, bank[1].head(1), make_config(base_folder, experts=["painter"], top_k=1))
    assert alone["expert"].tolist() == ["painter", "base"]


def test_the_limit_shares_the_questions_evenly(bank, base_folder):
    config = make_config(base_folder, limit=10)
    questions = moe.assign_experts(make_questions(), bank[1], config)
    vectors = FakeEncoder().encode(questions["prompt"].tolist())
    fitted = fit_task_router(vectors, questions["expert"].tolist(), ["painter", "counter", "base"], 0)
    chosen, routes = moe._choose_questions(questions, fitted, config)
    assert chosen["expert"].value_counts().to_dict() == {"painter": 5, "counter": 5}
    assert routes.shape == (10, 3)
    assert (routes.argmax(axis=1) == chosen["expert"].map(["painter", "counter"].index)).all()


def test_the_task_router_is_judged_on_questions_it_has_not_seen():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 40)).astype(np.float32)
    vectors = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    fitted = fit_task_router(vectors, [["a", "b", "c"][i % 3] for i in range(60)], ["a", "b", "c"], 0)
    assert fitted.accuracy < 0.6  # nothing to learn, though the router knows its own questions by heart
    assert fitted.unseen.max(axis=1).mean() < fitted.router.compute_probabilities(vectors).max(axis=1).mean() + 0.2
    assert fitted.log_loss > 0.9


@pytest.mark.parametrize("names", [["only"], ["one", "two"], ["one", "two", "three"]])
def test_the_task_router_for_one_two_and_three_ways(names):
    vectors = np.eye(len(names), 5, dtype=np.float32).repeat(6, axis=0)
    fitted = fit_task_router(vectors, [name for name in names for _ in range(6)], names, 0)
    found = fitted.router.compute_probabilities(vectors)
    assert found.shape == (6 * len(names), len(names))
    assert found.argmax(axis=1).tolist() == [i for i in range(len(names)) for _ in range(6)]
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_a_class_with_one_question_is_learnt_but_not_judged():
    fitted = fit_task_router(np.eye(3, dtype=np.float32), ["a", "b", "b"], ["a", "b"], 0)
    assert fitted.accuracy is None and fitted.unseen.shape == (3, 2)
    with pytest.raises(ValueError, match=r"\['c'\]"):
        fit_task_router(np.eye(3, dtype=np.float32), ["a", "b", "b"], ["a", "b", "c"], 0)


@pytest.fixture
def filled_store(synthetic):
    with Store.open(synthetic, "a test") as opened:
        yield opened


def test_prepare_hands_over_questions_experts_and_vectors(filled_store):
    inputs = moe.prepare(filled_store, MoeConfig(name="duo", experts=["logic", "arith"], plan="first"))
    assert list(inputs["questions"].columns) == sources.COLUMNS
    assert set(inputs["questions"]["expert"]) == {"logic", "arith", "base"}
    assert inputs["adapters"]["adapter"].tolist() == ["logic", "arith"]
    assert set(inputs["vectors"]["question_id"]) == set(inputs["questions"]["question_id"])
    assert inputs["target"]["mixture"].tolist() == ["duo"]
    taken = moe.prepare(filled_store, MoeConfig(name="arith", experts=["logic", "arith"], plan="first", mode="uniform"))
    assert taken["target"]["mixture"].tolist() == ["arith-2"] and taken["vectors"].empty


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"plan": "none"}, NotFoundError, "Plan 'none' does not exist"),
        ({"experts": ["logic", "nobody"]}, NotFoundError, "Expert 'nobody' does not exist"),
        ({"experts": ["logic", "base"]}, ConfigError, "The name 'base' means no adapter"),
        ({"base": "someone/model"}, ConfigError, "Expert 'logic' was made on the base model 'smollm2-135m'"),
        ({"split": "validation"}, ConfigError, "no questions of the split 'validation' for logic, arith"),
        ({"split": "validation", "mode": "token"}, ConfigError, "so nothing can be trained"),
    ],
)
def test_prepare_refuses_what_does_not_go_together(filled_store, changes, error, sentence):
    config = MoeConfig(**({"name": "duo", "experts": ["logic", "arith"], "plan": "first"} | changes))
    with pytest.raises(error, match=sentence):
        moe.prepare(filled_store, config)
