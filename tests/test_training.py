"""Training: what a model is taught, in which order, and what is left when a run is stopped, killed or goes wrong."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend.config import LoraSettings, OptimSettings, TrainConfig
from metamoe_backend.errors import ConfigError, StopRequested, StorageError, UnavailableError
from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.models.adapters import AdapterWeights, read_adapter
from metamoe_backend.models.base import load_base
from metamoe_backend.train import expert
from metamoe_backend.train.checkpoints import find_checkpoint
from metamoe_backend.train.examples import (
    collate,
    compute_padding_share,
    count_steps,
    hold_back,
    join_answer,
    make_examples,
    make_prompt,
    plan_batches,
)
from metamoe_backend.train.loop import run_training
from metamoe_backend.train.sampling import balanced_sample, share_evenly, take_part
from metamoe_backend.train.trainer import choose_evaluate_every, compute_answer_loss, compute_learning_rate_factor
from metamoe_backend.workspace import Workspace
from tests.recording import RecordingContext
from tests.tiny_models import make_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

NO_START = pd.DataFrame({"adapter": [], "sha256": []})


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def loaded(base_folder: Path):
    return load_base(str(base_folder), "cpu")


def make_questions(count: int = 60) -> pd.DataFrame:
    """Questions whose answer is the word asked for: learnable from few rows."""
    words = ["red", "green", "blue"]
    rows = [
        {
            "question_id": f"q{i}", "task": f"task{i % 2}", "template": "Q: {prompt}\nA:", "skill": "copying",
            "prompt": f"say {words[i % 3]} {'x' * (i % 11)}", "answer": words[i % 3], "expert": "copy",
        }
        for i in range(count)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def make_config(base_folder: Path, lora: dict | None = None, **optim) -> TrainConfig:
    settings = {"steps": 20, "batch_size": 8, "learning_rate": 0.01, "max_tokens": 64, "save_every": 5} | optim
    return TrainConfig(
        name="copy",
        plan="p",
        base=str(base_folder),
        device="cpu",
        lora=lora or {"rank": 4},
        optim=OptimSettings(**settings),
    )


def train(
    root: Path, config: TrainConfig, act=lambda done: None, run_id: str = "run-1", start: pd.DataFrame = NO_START
) -> RecordingContext:
    context = RecordingContext(root, run_id, act)
    inputs = {"questions": make_questions(), "target": pd.DataFrame({"adapter": [config.name]}), "start": start}
    try:
        expert.compute(inputs, config, context)
    except StopRequested as stop:
        context.messages.append(f"stopped, save={stop.save}")
    return context


def weights_of(root: Path, name: str = "copy") -> bytes:
    return (root / "adapters" / name / "adapter_model.safetensors").read_bytes()


def stop_at(step: int, save: bool):
    def act(done: int) -> None:
        if done >= step:
            raise StopRequested(save)

    return act


def kill_at(step: int):
    def act(done: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return act


def test_an_expert_goes_on_from_another_adapter(tmp_path: Path, base_folder: Path) -> None:
    first = train(tmp_path, make_config(base_folder, steps=40), run_id="first")
    further = make_config(base_folder, steps=5, warmup_share=0.0)
    context = train(tmp_path, further, run_id="second", start=first.rows("adapter"))

    before, after = (next(m["loss"] for _, _, m in run.reports if "loss" in m) for run in (first, context))
    assert after < 0.5 * before, "the first loss is that of the adapter it started from"
    assert "Starting from adapter" in " ".join(context.messages)


def test_a_changed_adapter_is_no_start(tmp_path: Path, base_folder: Path) -> None:
    start = train(tmp_path, make_config(base_folder, steps=2), run_id="first").rows("adapter").assign(sha256="other")
    with pytest.raises(StorageError, match="not those recorded in the bank"):
        train(tmp_path, make_config(base_folder, steps=2), run_id="second", start=start)


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 3))
def test_parts_of_the_questions_join_without_overlap(count: int, tenths: int, seed: int) -> None:
    questions = pd.DataFrame(
        {"question_id": [f"q{i}" for i in range(count)], "task": [f"t{i % 3}" for i in range(count)]}
    )
    first, second = take_part(questions, 0, tenths / 10, seed), take_part(questions, tenths / 10, 1, seed)
    assert sorted([*first["question_id"], *second["question_id"]]) == sorted(questions["question_id"])
    pd.testing.assert_frame_equal(take_part(questions, 0, 1, seed), questions.reset_index(drop=True))
    for task, whole in questions.groupby("task").size().items():
        assert abs((first["task"] == task).sum() - whole * tenths / 10) <= 0.5


# ---- what a model is taught ------------------------------------------------------------------------------------------


def test_loss_falls_and_the_adapter_is_a_plain_peft_folder(tmp_path: Path, base_folder: Path, loaded) -> None:
    context = train(tmp_path, make_config(base_folder, steps=40))

    losses = [metrics["loss"] for _, _, metrics in context.reports if "loss" in metrics]
    held_back = [metrics["eval_loss"] for _, _, metrics in context.reports if "eval_loss" in metrics]
    assert len(losses) == 40 and losses[-1] < 0.5 * losses[0]
    assert len(held_back) == 8 and held_back[-1] < held_back[0]

    folder = tmp_path / "adapters" / "copy"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert [path.name for path in folder.parent.iterdir()] == ["copy"]

    from peft import PeftModel

    examples = expert.make_question_examples(loaded.tokenizer, make_questions(12), 64)
    batch = collate(examples, 256)
    with torch.no_grad():
        before = compute_answer_loss(loaded.model, batch).item()
        after = compute_answer_loss(PeftModel.from_pretrained(loaded.model, folder), batch).item()
    assert after < 0.5 * before


def test_rows_of_a_trained_adapter(tmp_path: Path, base_folder: Path) -> None:
    context = train(tmp_path, make_config(base_folder, steps=6))
    adapter, system = context.rows("adapter").iloc[0], context.rows("system").iloc[0]
    weights = read_adapter(tmp_path / "adapters" / "copy")
    assert (adapter["adapter"], adapter["source"], adapter["plan"]) == ("copy", "trained", "p")
    assert adapter["sha256"] == system["sha256"] == weights.sha256
    assert (adapter["rank"], adapter["alpha"], adapter["parameters"]) == (4, 16.0, weights.parameters)
    assert list(adapter["skills"]) == ["copying"] and list(adapter["trained_on"]) == ["task0", "task1"]
    assert (system["system"], system["kind"], system["path"]) == ("copy", "expert", "adapters/copy")
    assert json.loads(system["settings"])["optim"]["steps"] == 6
    metrics = context.rows("metric")
    assert set(metrics["name"]) == {"loss", "eval_loss", "learning_rate", "tokens_per_s", "memory_mb"}
    assert metrics.loc[metrics["name"] == "loss", "step"].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_long_run_reports_the_mean_loss_since_the_last_report(
    tmp_path: Path, loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reports_of(most: int, root: Path) -> list[tuple[int, float]]:
        monkeypatch.setattr("metamoe_backend.train.trainer.MOST_REPORTS", most)
        context = RecordingContext(root)
        fresh = load_base(loaded.name, "cpu")
        model = expert.add_lora(fresh.model, LoraSettings(rank=2), 0)
        examples = expert.make_question_examples(fresh.tokenizer, make_questions(), 64)
        run_training(
            model, examples, [], OptimSettings(steps=8, batch_size=8), context, device=fresh.device, pad_token=256
        )
        return [(done, metrics["loss"]) for done, _, metrics in context.reports if metrics]

    each, pairs = reports_of(400, tmp_path / "a"), reports_of(4, tmp_path / "b")
    assert [done for done, _ in pairs] == [2, 4, 6, 8]
    assert [loss for _, loss in pairs] == pytest.approx(
        [(each[i][1] + each[i + 1][1]) / 2 for i in range(0, 8, 2)], rel=1e-6
    )


def test_answer_loss_is_the_loss_of_the_answer_tokens(loaded) -> None:
    prompts, answers = ["Q: one?\nA:", "Q: a longer one?\nA:"], ["yes", "maybe not"]
    examples = make_examples(loaded.tokenizer, prompts, answers, 64)
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        assert loaded.tokenizer.decode(example.tokens[: example.answer_start]) == prompt
        assert loaded.tokenizer.decode(example.tokens[example.answer_start :]) == f" {answer}<eos>"
    expected = []
    for example in examples:
        tokens = torch.tensor(example.tokens[None].astype(np.int64))
        logits = loaded.model(input_ids=tokens).logits[0, example.answer_start - 1 : -1]
        expected += torch.nn.functional.cross_entropy(
            logits, tokens[0, example.answer_start :], reduction="none"
        ).tolist()
    assert compute_answer_loss(loaded.model, collate(examples, 256)).item() == pytest.approx(
        np.mean(expected), rel=1e-5
    )


def test_prompts_keep_braces_and_long_ones_lose_their_beginning(loaded) -> None:
    assert make_prompt("Q: {prompt}\nA:", "what is {x} or {prompt} in {}?") == "Q: what is {x} or {prompt} in {}?\nA:"
    with pytest.raises(ConfigError, match="prompt"):
        make_prompt("no place", "question")
    (example,) = make_examples(loaded.tokenizer, ["a" * 100 + "end"], ["yes"], 16)
    assert len(example.tokens) == 16 and loaded.tokenizer.decode(example.tokens) == "a" * 8 + "end yes<eos>"
    assert loaded.tokenizer.decode(example.tokens[example.answer_start :]) == " yes<eos>"
    (example,) = make_examples(loaded.tokenizer, ["short"], ["b" * 100], 16)
    assert len(example.tokens) == 16 and example.answer_start == 1


@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=120),
    batch_size=st.integers(1, 20),
    steps=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_every_example_comes_up_equally_often(lengths: list[int], batch_size: int, steps: int, seed: int) -> None:
    planned = plan_batches(np.array(lengths), batch_size, steps, seed)
    assert planned.shape == (steps, min(batch_size, len(lengths)))
    times = np.bincount(planned.ravel(), minlength=len(lengths))
    assert times.max() - times.min() <= 1
    assert np.array_equal(planned, plan_batches(np.array(lengths), batch_size, steps, seed))


def test_batches_of_like_length_hold_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(20, 200, 2000)
    shuffled = np.random.default_rng(1).permutation(2000)[:1600].reshape(100, 16)
    padding = compute_padding_share(lengths, plan_batches(lengths, 16, 100, 0))
    assert padding < 0.1 < 0.3 < compute_padding_share(lengths, shuffled)


def test_steps_and_held_back_questions() -> None:
    assert count_steps(100, None, 2.0, 16) == 13
    assert count_steps(5, None, 2.0, 16) == 2
    assert count_steps(100, 7, 2.0, 16) == 7
    train_rows, held = hold_back(100, 0.1, 3)
    assert len(held) == 10 and sorted([*train_rows, *held]) == list(range(100))
    assert len(hold_back(100_000, 0.5, 0)[1]) == 256
    assert len(hold_back(5, 0.05, 0)[1]) == 0


def test_learning_rate_warms_up_and_falls_without_a_wasted_step() -> None:
    factors = [compute_learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11) and factors[10] == 1.0 and factors[-1] > 0
    assert factors[:11] == sorted(factors[:11]) and factors[10:] == sorted(factors[10:], reverse=True)
    ended = compute_learning_rate_factor(99, 100, 0.1, final_share=0.5)
    assert ended == pytest.approx(0.5, abs=1e-3) and compute_learning_rate_factor(10, 100, 0.1, 0.5) == 1.0


def test_evaluation_costs_little_beside_training() -> None:
    assert choose_evaluate_every(40, 8, 3) == 5
    assert choose_evaluate_every(4, 8, 0) == 1
    assert 256 / choose_evaluate_every(1000, 16, 256) <= 0.05 * 3 * 16


def test_vectors_of_the_rows_reach_the_hook_before_each_forward_pass(tmp_path: Path, loaded) -> None:
    questions = make_questions()
    prompts = [make_prompt("{prompt}", prompt) for prompt in questions["prompt"]]
    routes = np.array([[index, len(prompt)] for index, prompt in enumerate(prompts)])
    examples = make_examples(loaded.tokenizer, prompts, questions["answer"].tolist(), 64, routes)
    model = expert.add_lora(loaded.model, LoraSettings(rank=2), 0)
    seen, auxiliary = [], []

    def before_forward(batch) -> None:
        seen.append(batch)

    def auxiliary_loss() -> torch.Tensor:
        auxiliary.append(len(seen))
        return torch.tensor(0.25)

    context = RecordingContext(tmp_path)
    run_training(
        model, examples[:50], examples[50:], OptimSettings(steps=4, batch_size=8), context, device=loaded.device,
        pad_token=256, before_forward=before_forward, auxiliary_loss=auxiliary_loss,
    )  # fmt: skip
    assert len(auxiliary) == 4 and len(seen) > 4
    for batch in seen:
        for row, (index, length) in enumerate(batch["extra"].int().tolist()):
            text = loaded.tokenizer.decode(batch["input_ids"][row][batch["real"][row]])
            whole = join_answer(prompts[index], questions["answer"][index])
            assert text == f"{whole}<eos>" and length == len(prompts[index])
    assert {metrics["auxiliary_loss"] for _, _, metrics in context.reports if metrics} == {0.25}


# ---- equal runs, and runs that end early -----------------------------------------------------------------------------


def test_equal_seeds_give_equal_bytes(tmp_path: Path, base_folder: Path) -> None:
    train(tmp_path / "a", make_config(base_folder, {"rank": 4, "dropout": 0.1}))
    train(tmp_path / "b", make_config(base_folder, {"rank": 4, "dropout": 0.1}))
    train(tmp_path / "c", make_config(base_folder, {"rank": 4, "dropout": 0.1}, seed=1))
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b") != weights_of(tmp_path / "c")


@pytest.mark.parametrize("damage", ["none", "truncated", "unsealed"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, base_folder: Path, damage: str) -> None:
    config = make_config(base_folder, {"rank": 4, "dropout": 0.1})
    whole = train(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, kill_at(13))
    scratch = tmp_path / "cut" / "runs" / "run-1" / "checkpoints"
    assert sorted(path.name for path in scratch.iterdir()) == ["checkpoint-10", "checkpoint-5"]
    if damage == "truncated":
        file = scratch / "checkpoint-10" / "trained.safetensors"
        file.write_bytes(file.read_bytes()[:-20])
    if damage == "unsealed":
        (scratch / "checkpoint-10" / "COMPLETE.json").unlink()
    assert find_checkpoint(scratch) == scratch / ("checkpoint-10" if damage == "none" else "checkpoint-5")

    resumed = train(tmp_path / "cut", config)
    assert resumed.reports[0][0] == (10 if damage == "none" else 5)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    named = [
        context.rows("metric").query("name in ['loss', 'eval_loss', 'learning_rate']") for context in (whole, resumed)
    ]
    pd.testing.assert_frame_equal(named[0], named[1])
    assert sorted(path.name for path in scratch.glob("checkpoint-*")) == ["checkpoint-15", "checkpoint-20"]


def stop_and_hand_over(root: Path, config: TrainConfig, step: int) -> AdapterWeights:
    """Train, stop and save at `step`, and emit the system for real; returns what was published."""
    stopped = train(root, config, stop_at(step, save=True))
    assert stopped.messages[-1] == "stopped, save=True"
    run = RunFolder(stopped.scratch.parent)
    run.output.mkdir(exist_ok=True)
    run.emit("system", stopped.rows("system").drop(columns="run_id"))
    early = read_adapter(root / "adapters" / "copy")
    assert stopped.rows("adapter")[["adapter", "sha256"]].to_numpy().tolist() == [["copy", early.sha256]]
    return early


@pytest.mark.parametrize("step", [7, 20])
def test_stop_and_save_publishes_what_there_is_and_a_resumed_run_replaces_it(
    tmp_path: Path, base_folder: Path, step: int
) -> None:
    config = make_config(base_folder)
    train(tmp_path / "whole", config)
    early = stop_and_hand_over(tmp_path / "cut", config, step)
    assert any(matrix.abs().sum() > 0 for matrix in early.b.values())

    resumed = train(tmp_path / "cut", config)
    assert resumed.rows("adapter")["adapter"].tolist() == ["copy"]
    assert [path.name for path in (tmp_path / "cut" / "adapters").iterdir()] == ["copy"]
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    if step < 20:
        assert resumed.rows("metric")["step"].min() == step + 1, "what the stop handed over comes a second time"


def test_what_another_run_works_with_is_not_replaced(tmp_path: Path, base_folder: Path) -> None:
    config = make_config(base_folder)
    early = stop_and_hand_over(tmp_path, config, 7)
    bank = pd.DataFrame({"adapter": ["copy"], "sha256": [early.sha256]})
    other = create_run(Workspace(tmp_path), "moe", "a mixture", {}, "ana", {"adapters": bank}, "run-2")
    resumed = train(tmp_path, config)
    assert resumed.rows("adapter")["adapter"].tolist() == ["copy-2"]
    assert read_adapter(tmp_path / "adapters" / "copy").sha256 == early.sha256
    assert any(message.startswith(f"Run {other.run_id} works with copy as") for message in resumed.messages)


def test_a_stop_asked_for_before_the_first_step_still_saves(tmp_path: Path, base_folder: Path) -> None:
    context = train(tmp_path, make_config(base_folder), stop_at(0, save=True))
    assert context.rows("metric")["step"].max() == 1
    assert read_adapter(tmp_path / "adapters" / "copy").rank == 4


def test_cancel_publishes_nothing(tmp_path: Path, base_folder: Path) -> None:
    context = train(tmp_path, make_config(base_folder), stop_at(7, save=False))
    assert context.messages[-1] == "stopped, save=False"
    assert context.emitted == {}
    assert not (tmp_path / "adapters").exists()


def test_a_name_that_was_taken_meanwhile_gets_a_number(tmp_path: Path, base_folder: Path) -> None:
    train(tmp_path, make_config(base_folder, steps=2), run_id="run-1")
    second = train(tmp_path, make_config(base_folder, steps=2, seed=1), run_id="run-2")
    assert second.rows("system")["path"].tolist() == ["adapters/copy-2"]
    assert weights_of(tmp_path) != weights_of(tmp_path, "copy-2")


def test_gradient_checkpointing_changes_no_number(tmp_path: Path, base_folder: Path) -> None:
    lora = {"rank": 4, "dropout": 0.1}
    train(tmp_path / "a", make_config(base_folder, lora))
    train(tmp_path / "b", make_config(base_folder, lora, gradient_checkpointing=True))
    a, b = (read_adapter(tmp_path / run / "adapters" / "copy") for run in "ab")
    for module in a.a:
        torch.testing.assert_close(a.a[module], b.a[module])
        torch.testing.assert_close(a.b[module], b.b[module])


def test_blocks_are_computed_again_under_gradient_checkpointing(tmp_path: Path, loaded) -> None:
    passes = []
    loaded.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    model = expert.add_lora(loaded.model, LoraSettings(rank=2), 0)
    examples = expert.make_question_examples(loaded.tokenizer, make_questions(), 64)
    settings = OptimSettings(steps=3, batch_size=8, gradient_checkpointing=True)
    run_training(model, examples, [], settings, RecordingContext(tmp_path), device=loaded.device, pad_token=256)
    assert len(passes) == 6, "each block is read twice a step"
    assert not model.is_activation_checkpointing


def test_reports_reach_the_trackers_that_were_asked_for(tmp_path: Path, loaded, monkeypatch) -> None:
    from transformers import TrainerCallback, trainer

    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest) -> None:
            told.append((state.global_step, sorted(logs)))

    settings = OptimSettings(steps=2, batch_size=8, report_to=["tensorboard"])
    model = expert.add_lora(loaded.model, LoraSettings(rank=2), 0)
    examples = expert.make_question_examples(loaded.tokenizer, make_questions(), 64)
    about = {"device": loaded.device, "pad_token": 256}
    monkeypatch.setattr("metamoe_backend.train.loop.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tensorboard is not installed; run `pip install tensorboard`"):
        run_training(model, examples, [], settings, RecordingContext(tmp_path / "a"), **about)
    monkeypatch.setattr("metamoe_backend.train.loop.find_spec", lambda name: name)
    monkeypatch.setattr(trainer, "get_reporting_integration_callbacks", lambda names: [Tracker] * len(names))
    run_training(model, examples, [], settings, RecordingContext(tmp_path / "b"), **about)
    assert told == [(step, ["learning_rate", "loss", "memory_mb", "tokens_per_s"]) for step in (1, 2)]


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_loss_that_becomes_nan_ends_the_run_with_the_step(tmp_path: Path, loaded) -> None:
    model = expert.add_lora(loaded.model, LoraSettings(rank=2), 0)
    examples = expert.make_question_examples(loaded.tokenizer, make_questions(), 64)
    passes = []

    def poison(batch) -> None:
        passes.append(batch)
        if len(passes) == 3:
            next(parameter for parameter in model.parameters() if parameter.requires_grad).data.fill_(float("nan"))

    kept = r"the last good checkpoint is checkpoint-2 in .*checkpoints\. Lower the learning rate \(it is 0.001\)"
    context = RecordingContext(tmp_path)
    with pytest.raises(ConfigError, match=rf"NaN at step 3; {kept}"):
        run_training(
            model, examples, [], OptimSettings(steps=8, batch_size=8, save_every=1), context,
            device=loaded.device, pad_token=256, before_forward=poison,
        )  # fmt: skip
    found = find_checkpoint(context.scratch)
    assert found is not None and found.name == "checkpoint-2"


def test_an_update_that_breaks_the_weights_is_never_saved(tmp_path: Path, loaded) -> None:
    model = expert.add_lora(loaded.model, LoraSettings(rank=2), 0)
    examples = expert.make_question_examples(loaded.tokenizer, make_questions(), 64)
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    seen: list[int] = []

    def poison_gradient(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return gradient * float("nan") if len(seen) == 3 else gradient

    first.register_hook(poison_gradient)
    context = RecordingContext(tmp_path)
    with pytest.raises(ConfigError, match="NaN at step 3; the last good checkpoint is checkpoint-2 in"):
        run_training(
            model, examples, [], OptimSettings(steps=8, batch_size=8, save_every=1), context,
            device=loaded.device, pad_token=256,
        )  # fmt: skip
    found = find_checkpoint(context.scratch)
    assert found is not None and found.name == "checkpoint-2"


def test_too_little_memory_is_a_sentence(tmp_path: Path, loaded) -> None:
    model = expert.add_lora(loaded.model, LoraSettings(rank=2), 0)
    examples = expert.make_question_examples(loaded.tokenizer, make_questions(), 64)

    def exhaust(batch) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match=r"batches of 8 questions of up to \d+ tokens; lower optim.batch_size"):
        run_training(
            model, examples, [], OptimSettings(steps=2, batch_size=8), RecordingContext(tmp_path),
            device=loaded.device, pad_token=256, before_forward=exhaust,
        )  # fmt: skip


def test_unknown_targets_name_the_modules_there_are(tmp_path: Path, base_folder: Path) -> None:
    config = make_config(base_folder, {"targets": ["q_proj", "query", "mlp"]})
    with pytest.raises(ConfigError, match=r"query, mlp matches no linear module.*q_proj, k_proj, v_proj, o_proj"):
        train(tmp_path, config)


def test_no_questions_is_a_sentence(tmp_path: Path, loaded) -> None:
    with pytest.raises(ConfigError, match="no questions to train on"):
        run_training(
            loaded.model, [], [], OptimSettings(), RecordingContext(tmp_path), device=loaded.device, pad_token=256
        )


def test_half_precision_is_trained_and_saved(tmp_path: Path, base_folder: Path) -> None:
    lora = {"rank": 4, "save_dtype": "bfloat16"}
    context = train(tmp_path, make_config(base_folder, lora, steps=30, dtype="bfloat16"))
    losses = [metrics["loss"] for _, _, metrics in context.reports if "loss" in metrics]
    assert losses[-1] < 0.6 * losses[0]
    weights = read_adapter(tmp_path / "adapters" / "copy")
    assert {matrix.dtype for matrix in weights.a.values()} == {torch.bfloat16}


# ---- which questions -------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), total=st.integers(0, 120))
def test_shares_are_even_and_within_bounds(sizes: list[int], total: int) -> None:
    shares = share_evenly(sizes, total)
    assert sum(shares) == min(total, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    not_exhausted = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert not not_exhausted or min(not_exhausted) >= max(shares) - 1


def test_a_mixed_sample_is_the_union_of_the_experts_samples() -> None:
    rng = np.random.default_rng(0)
    experts = rng.choice(["a", "b", "c"], 900, p=[0.7, 0.2, 0.1])
    questions = pd.DataFrame({"question_id": [f"q{i}" for i in range(900)], "expert": experts})
    questions["skill"] = questions["expert"] + rng.choice(["1", "2"], 900, p=[0.8, 0.2])
    questions["task"] = questions["skill"] + rng.choice(["x", "y"], 900)
    mixed = balanced_sample(questions, 120, seed=3)
    parts = [balanced_sample(questions[questions["expert"] == name], 40, seed=3) for name in "abc"]
    assert set(mixed["question_id"]) == {name for part in parts for name in part["question_id"]}
    times = mixed["task"].value_counts()
    assert (times[[task for task in times.index if task[0] in "ab"]] == 10).all()
    assert times["c2y"] == (questions["task"] == "c2y").sum() < 10, "a small task gives all it has"
    assert mixed["question_id"].tolist() == sorted(mixed["question_id"], key=lambda name: int(name[1:]))
    assert set(mixed["question_id"]) != set(balanced_sample(questions, 120, seed=4)["question_id"])
    assert len(balanced_sample(questions, None, 0)) == 900


@pytest.mark.model
def test_the_packaged_model_learns(tmp_path: Path) -> None:
    config = make_config(Path("unused")).model_copy(
        update={
            "base": "smollm2-135m",
            "optim": OptimSettings(steps=6, batch_size=4, learning_rate=2e-3, max_tokens=48, eval_share=0),
        }
    )
    context = train(tmp_path, config)
    losses = [metrics["loss"] for _, _, metrics in context.reports if metrics]
    assert losses[-1] < 0.6 * losses[0]
    assert context.rows("adapter")["base"].tolist() == ["smollm2-135m"]
    weights = read_adapter(tmp_path / "adapters" / "copy", load_base("smollm2-135m", "cpu").model)
    assert len(weights.modules) == 3 * 30


def test_four_bits_need_bitsandbytes(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="4 bits \\(QLoRA\\) need bitsandbytes; run: pip install"):
        train(tmp_path, make_config(base_folder, {"rank": 4, "four_bit": True}))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.model
def test_an_adapter_learns_over_a_base_model_in_four_bits(tmp_path: Path, device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    base = load_base("smollm2-135m", device, four_bit=True)
    held = {type(module).__name__ for name, module in base.model.named_modules() if name.endswith("_proj")}
    assert held == {"Linear4bit"}
    whole = load_base("smollm2-135m", device).model.get_memory_footprint()
    assert base.model.get_memory_footprint() < 0.4 * whole
    optim = OptimSettings(steps=6, batch_size=4, learning_rate=2e-3, max_tokens=48, eval_share=0)
    config = make_config(Path("unused"), {"rank": 4, "four_bit": True}).model_copy(
        update={"base": "smollm2-135m", "device": device, "optim": optim}
    )
    losses = train(tmp_path, config).rows("metric").query("name == 'loss'")["value"].tolist()
    assert losses[-1] < losses[0]
    assert read_adapter(tmp_path / "adapters" / "copy", load_base("smollm2-135m", "cpu").model).rank == 4
