"""A workspace whose numbers are drawn, not computed: every table filled in seconds, for tests of pages and queries.

Rows take the same way in as real ones: run folders with manifests, and events. Nothing here is a result.
"""

import hashlib
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from metamoe_backend.experts.selection import choose_experts, mark_choice, measure_candidates, rank_candidates
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import create_run
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import save_plan
from metamoe_backend.store.ingestion import ingest_run
from metamoe_backend.store.reviews import leave_review
from metamoe_backend.store.skills import create_skill, label_questions
from metamoe_backend.workspace import Workspace

SKILLS = {
    "arithmetic": ["chain_sum", "leg_counting"],
    "logic": ["syllogism", "knights_knaves"],
    "letters": ["letter_counting", "spell_backward"],
    "general knowledge": ["general_knowledge"],
}
EXPERTS = ["arith", "logic", "letters"]
LAYERS, ENCODER_DIM = 6, 16


def build_workspace(folder: Path, per_split: int = 30, seed: int = 0) -> Workspace:
    """Fill `folder` with a workspace of 7 tasks, 4 skills, 3 experts, a baseline and a mixture."""
    rng = np.random.default_rng(seed)
    workspace = Workspace(folder).create()
    with Store.open(workspace, "synthetic") as store:
        questions = _questions(rng, per_split)
        for task, rows in questions.groupby("task"):
            regime = "choices" if rows["choices"].notna().all() else "exact"
            _run(store, "ingest", task, {"source": f"{task}.jsonl"}, task=_task(task, regime), question=rows)
        _embed_and_map(store, questions, rng)
        _label(store, questions, rng)
        _train(store)
        _select(store, questions, np.random.default_rng(seed))  # of its own: what is drawn below stays as it is
        _select_data(store, questions, np.random.default_rng(seed))
        _evaluate(store, questions, rng)
        _force(store, questions)
        leave_review(store, "expert", "arith", "approve", "Clear gain on its own skill.", "advisor")
    return workspace


def build_map_workspace(folder: Path, n: int, clusters: int = 24, seed: int = 0) -> Workspace:
    """Fill `folder` with `n` questions of eight tasks that lie on one map, a tenth of them suggested a skill.

    Nothing is made row by row: a million questions take seconds, not minutes.
    """
    rng = np.random.default_rng(seed)
    workspace = Workspace(folder).create()
    index = rng.integers(0, clusters, n)
    names = np.array([f"task_{number}" for number in range(8)])
    task = pd.Series(names[index % len(names)])
    number = pd.Series(np.arange(n)).astype(str)
    questions = pd.DataFrame(
        {
            "question_id": number.str.zfill(16),
            "task": task,
            "split": np.where(rng.random(n) < 0.8, "train", "test"),
            "prompt": "Question " + number + " of " + task + ": what follows from what was said in the story above?",
            "choices": None,
            "answer": number,
            "gold": None,
            "explanation": None,
            "metadata": None,
            "position": np.arange(n),
        }
    ).astype({"gold": "Int64"})
    places = rng.normal(size=(clusters, 2)) * 9
    xy = places[index] + rng.normal(size=(n, 2)) * rng.uniform(0.4, 2.0, clusters)[index, None]
    cluster = np.where(rng.random(n) < 0.04, -1, index)
    with Store.open(workspace, "synthetic") as store:
        tasks = pd.concat([_task(name, "exact") for name in names])
        _run(store, "ingest", "many", {"source": "many.jsonl"}, task=tasks, question=questions)
        _emit_map(store, questions, xy, cluster, places, [f"group {number}" for number in range(clusters)], rng)
        skill = create_skill(store, "reasoning", "ana")
        suggestions = questions[["question_id"]][::10].assign(
            skill_id=skill, probability=0.9, runner_up=None, margin=0.8
        )  # fmt: skip
        _run(store, "suggest", "minilm", {"encoder": "minilm"}, suggestion=suggestions)
    return workspace


def _run(store: Store, stage: str, name: str, config: dict, **tables: pd.DataFrame) -> str:
    run = create_run(store.workspace, stage, name, config, "ana", {})
    context = RunContext(run)
    context.start()
    for table, frame in tables.items():
        context.emit(table, frame)
    context.progress(1, 1)
    context.finish("finished")
    ingest_run(store, run)
    return run.path.name


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def _task(task: str, regime: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "task": task,
                "regime": regime,
                "template": "Question: {prompt}\nAnswer:",
                "source": f"{task}.jsonl",
                "created_at": datetime(2026, 11, 1),
            }
        ]
    )


def _questions(rng: np.random.Generator, per_split: int) -> pd.DataFrame:
    rows = []
    for tasks in SKILLS.values():
        for task in tasks:
            for split, n in (("train", per_split), ("test", per_split)):
                for position in range(n):
                    a, b = rng.integers(2, 99, 2)
                    word = "".join(rng.choice(list("abcdefgh"), 6))
                    choices = ["yes", "no"] if task in ("syllogism", "knights_knaves") else None
                    if task == "general_knowledge":
                        choices = ["Paris", "Rome", "Berlin", "Madrid"]
                    prompt = f"{task.replace('_', ' ')}: what follows from {a}, {b} and “{word}”?"
                    gold = int(rng.integers(len(choices))) if choices else None
                    answer = choices[gold] if choices else str(a + b)
                    rows.append(
                        {
                            "question_id": _hash(task, split, position, prompt),
                            "task": task,
                            "split": split,
                            "prompt": prompt,
                            "choices": choices,
                            "answer": answer,
                            "gold": gold,
                            "explanation": None,
                            "metadata": None,
                            "position": position,
                        }
                    )
    return pd.DataFrame(rows).astype({"gold": "Int64"})


def _embed_and_map(store: Store, questions: pd.DataFrame, rng: np.random.Generator) -> None:
    metas = questions[["question_id"]].assign(
        method="template",
        text=questions["task"].map(
            lambda task: f"{task.replace('_', ' ')}: what follows from [number], [number] and [text]?"
        ),
        source_hash=[_hash(i) for i in questions["question_id"]],
    )
    _run(store, "meta-questions", "template", {"method": "template"}, meta_question=metas)
    names = sorted(questions["task"].unique())
    centres = rng.normal(size=(len(names), ENCODER_DIM))
    index = questions["task"].map(names.index).to_numpy()
    vectors = centres[index] + rng.normal(size=(len(questions), ENCODER_DIM)) * 0.4
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    frame = questions[["question_id"]].assign(
        encoder="minilm", of="question", text_hash=questions["question_id"], vector=list(vectors.astype("float32"))
    )
    _run(store, "embed", "minilm", {"encoder": "minilm"}, embedding=frame)
    places = rng.normal(size=(len(names), 2)) * 8
    xy = places[index] + rng.normal(size=(len(questions), 2))
    cluster = np.where(rng.random(len(questions)) < 0.04, -1, index)
    _emit_map(store, questions, xy, cluster, places, [name.replace("_", " ") for name in names], rng)


def _emit_map(
    store: Store,
    questions: pd.DataFrame,
    xy: np.ndarray,
    cluster: np.ndarray,
    places: np.ndarray,
    names: list[str],
    rng: np.random.Generator,
) -> None:
    run = create_run(store.workspace, "cluster", "minilm", {"encoder": "minilm"}, "ana", {})
    context = RunContext(run)
    context.start()
    map_row = {
        "map_id": run.path.name, "of": "question", "encoder": "minilm", "neighbours": 15, "min_dist": 0.1,
        "min_cluster_size": 15, "seed": 0, "questions": len(questions), "clusters": len(names), "noise_share": float((cluster < 0).mean()),
        "nmi": 0.96, "ari": 0.93, "dbcv": 0.4, "silhouette": 0.5, "created_at": datetime(2026, 11, 2),
    }  # fmt: skip
    context.emit("map", pd.DataFrame([map_row]))
    points = questions[["question_id"]].assign(
        map_id=run.path.name, x=xy[:, 0], y=xy[:, 1], cluster=cluster, strength=rng.random(len(questions))
    )
    context.emit("map_point", points)
    groups = [
        {
            "map_id": run.path.name,
            "cluster": number,
            "size": int((cluster == number).sum()),
            "x": float(places[number, 0]),
            "y": float(places[number, 1]),
            "keywords": [*names[number].split(), "follows"],
            "samples": points[points["cluster"] == number]["question_id"].head(5).tolist(),
        }
        for number in range(len(names))
    ]
    context.emit("cluster", pd.DataFrame(groups))
    context.finish("finished")
    ingest_run(store, run)


def _label(store: Store, questions: pd.DataFrame, rng: np.random.Generator) -> None:
    ids = {skill: create_skill(store, skill, "ana") for skill in SKILLS}
    labelled: list[str] = []
    for skill, tasks in SKILLS.items():
        chosen = questions[questions["task"].isin(tasks)].sample(8, random_state=1)["question_id"].tolist()
        label_questions(store, ids[skill], chosen, "ana", "question")
        labelled += chosen
    rest = questions[~questions["question_id"].isin(labelled)]
    skill_of = {task: skill for skill, tasks in SKILLS.items() for task in tasks}
    probability = rng.beta(8, 2, len(rest))
    suggestions = rest[["question_id"]].assign(
        skill_id=rest["task"].map(lambda task: ids[skill_of[task]]),
        probability=probability,
        runner_up=ids["logic"],
        margin=probability * 0.7,
    )
    _run(store, "suggest", "minilm", {"encoder": "minilm"}, suggestion=suggestions)
    items = questions[["question_id"]].assign(
        labelling="v1",
        skill=questions["task"].map(skill_of),
        source=np.where(questions["question_id"].isin(labelled), "label", "suggestion"),
        probability=1.0,
    )
    head = {
        "labelling": "v1", "labels": len(labelled), "suggestions": len(rest), "threshold": 0.5, "author": "ana",
        "created_at": datetime(2026, 11, 3),
    }  # fmt: skip
    _run(store, "freeze", "v1", {"labelling": "v1"}, labelling=pd.DataFrame([head]), labelling_item=items)
    entries = [("arithmetic", "arith"), ("logic", "logic"), ("letters", "letters"), ("general knowledge", "base")]
    save_plan(store, "first", "v1", entries, "ana")


def _system(name: str, kind: str, path: str, experts: list[str] = ()) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "system": name, "kind": kind, "base": "smollm2-135m", "path": path, "experts": list(experts),
                "settings": "{}", "sha256": _hash(name), "created_at": datetime(2026, 11, 4),
            }
        ]
    )  # fmt: skip


def _train(store: Store) -> None:
    by_expert = {"arith": "arithmetic", "logic": "logic", "letters": "letters", "mixed": None}
    for name, skill in by_expert.items():
        skills = [skill] if skill else ["arithmetic", "letters", "logic"]
        adapter = {
            "adapter": name, "base": "smollm2-135m", "rank": 8, "alpha": 16.0, "targets": ["up_proj", "down_proj"],
            "parameters": 1_843_200, "sha256": _hash(name), "source": "trained", "plan": "first", "skills": skills,
            "trained_on": [task for s in skills for task in SKILLS[s]], "created_at": datetime(2026, 11, 4),
        }  # fmt: skip
        metrics = pd.DataFrame(
            [(s, "loss", 2.5 * 0.98**s + 0.1) for s in range(0, 100, 5)]
            + [(s, "eval_loss", 2.5 * 0.98**s + 0.2) for s in range(0, 100, 20)],
            columns=["step", "name", "value"],
        )
        kind = "mixed" if name == "mixed" else "expert"
        config = {"kind": kind, "name": name, "plan": "first"}
        _run(
            store, "train", name, config, adapter=pd.DataFrame([adapter]),
            system=_system(name, kind, f"adapters/{name}"), metric=metrics,
        )  # fmt: skip
    _run(
        store, "moe", "moe", {"name": "moe", "experts": EXPERTS, "plan": "first"},
        system=_system("moe", "moe", "mixtures/moe", EXPERTS),
    )  # fmt: skip


def _select_data(store: Store, questions: pd.DataFrame, rng: np.random.Generator) -> None:
    """Rows of other tasks for syllogism: 4 shots, 2 leaks, 12 chosen, 3 too similar, 9 beyond the budget; fewer of few."""
    train = questions[questions["split"] == "train"]
    shots = train[train["task"] == "syllogism"].head(4)
    pool = train[train["task"].isin(["knights_knaves", "leg_counting"])].head(26)
    ids = shots["question_id"].tolist()
    rows = pool[["prompt", "answer", "explanation"]].assign(
        position=range(len(pool)), score=np.sort(rng.uniform(0.2, 0.95, len(pool)))[::-1],
        nearest=[ids[row % len(ids)] for row in range(len(pool))],
        decision=(["leak"] * 2 + ["selected"] * 12 + ["similar"] * 3 + ["beyond"] * 9)[: len(pool)],
    )  # fmt: skip
    held_out = questions.loc[(questions["split"] == "test") & (questions["task"] == "syllogism"), "question_id"].iloc[0]
    reasons = {
        "leak": ("It is a held-out question of syllogism, word for word.", held_out),
        "similar": ("Its similarity to a better row is 0.93, above tau.", "row 2"),
        "beyond": ("The budget was spent on better rows.", None),
    }
    rows["reason"] = [reasons.get(decision, (None, None))[0] for decision in rows["decision"]]
    rows["other"] = [reasons.get(decision, (None, None))[1] for decision in rows["decision"]]
    chosen = shots[["prompt", "answer", "explanation"]].assign(
        position=range(len(shots)), score=1.0, nearest=ids, decision="shot", reason=None, other=None
    )
    _run(
        store, "select-data", "syllogism", {"task": "syllogism", "k": 4, "tasks": ["knights_knaves", "leg_counting"]},
        selected_row=pd.concat([chosen, rows]).assign(task="syllogism"),
    )  # fmt: skip


def _select(store: Store, questions: pd.DataFrame, rng: np.random.Generator) -> None:
    """Two draws of three shots of one task; the experts of its skill do best."""
    shots = questions[(questions["task"] == "syllogism") & (questions["split"] == "train")].head(6)
    names = [*EXPERTS, "mixed"]
    likely = {"logic": 0.9, "mixed": 0.7}
    scored = [
        {
            "adapter": name, "draw": number // 3, "shot": number % 3, "question_id": shot.question_id,
            "nll": float(rng.gamma(2, 1 - likely.get(name, 0.3))), "tokens": 4, "explained": False, "output": "yes",
            "correct": bool(rng.random() < likely.get(name, 0.3)),
        }
        for name in names
        for number, shot in enumerate(shots.itertuples())
    ]  # fmt: skip
    frame = pd.DataFrame(scored)
    pairs = [
        {"adapter": one, "other": two, "similarity": float(rng.uniform(-0.1, 0.6)), "raw_similarity": None}
        for index, one in enumerate(names)
        for two in names[index + 1 :]
    ]
    pair_frame = pd.DataFrame(pairs).astype({"raw_similarity": "float64"})
    ranking = rank_candidates(measure_candidates(frame))
    chosen = choose_experts(ranking, pair_frame, 3, 2)
    candidates = mark_choice(ranking, chosen, 3).assign(
        task="syllogism",
        base="smollm2-135m",
        shots=3,
        draws=2,
        adapter_hash=[_hash(name) for name in ranking["adapter"]],
    )
    config = {"task": "syllogism", "k": 3, "draws": 2, "shortlist": 3, "experts": 2, "candidates": names}
    _run(
        store, "select", "syllogism", config, candidate_shot=frame, candidate=candidates, candidate_pair=pair_frame
    )  # fmt: skip


def _evaluate(store: Store, questions: pd.DataFrame, rng: np.random.Generator) -> None:
    test = questions[questions["split"] == "test"]
    skill_of = {task: skill for skill, tasks in SKILLS.items() for task in tasks}
    own = {"arith": "arithmetic", "logic": "logic", "letters": "letters"}
    frames = []
    for system in ["base", *EXPERTS, "mixed", "moe"]:
        for question in test.itertuples():
            skill = skill_of[question.task]
            chance = 0.55 if skill == "general knowledge" else 0.1
            if system in ("mixed", "moe") or own.get(system) == skill:
                chance = {"mixed": 0.5, "moe": 0.6}.get(system, 0.65)
            elif system in own and skill == "general knowledge":
                chance = 0.42
            right = bool(rng.random() < chance)
            regime = "choices" if question.choices is not None else "exact"
            frames.append(
                {
                    "system": system, "question_id": question.question_id, "regime": regime, "n_shot": 0,
                    "output": question.answer if right else "something else", "choice": None, "correct": right,
                    "score": float(right), "logliks": None if question.choices is None else list(rng.normal(-5, 1, len(question.choices))),
                    "prompt_hash": _hash(question.prompt), "system_hash": _hash(system), "base_hash": "b", "dtype": "float32",
                }
            )  # fmt: skip
    activation, tokens, route = _gates(test, skill_of, own, rng)
    _run(
        store, "evaluate", "all", {"systems": ["base", *EXPERTS, "mixed", "moe"], "tasks": sorted(test["task"].unique())},
        system=_system("base", "base", ""), prediction=pd.DataFrame(frames).astype({"choice": "Int64"}),
        activation=activation, token_activation=tokens, route=route,
    )  # fmt: skip


def _force(store: Store, questions: pd.DataFrame) -> None:
    """What each expert alone says to one question."""
    question = questions[(questions["split"] == "test") & questions["choices"].isna()].iloc[0]
    rows = [
        {
            "system": "moe", "question_id": question["question_id"], "expert": way, "regime": "exact",
            "output": question["answer"] if way in ("routed", "arith") else "something else", "choice": None,
            "correct": way in ("routed", "arith"), "score": float(way in ("routed", "arith")), "logliks": None,
            "system_hash": _hash("moe"),
        }
        for way in ["routed", *EXPERTS, "base"]
    ]  # fmt: skip
    config = {"system": "moe", "questions": [question["question_id"]]}
    _run(store, "force", "moe", config, counterfactual=pd.DataFrame(rows).astype({"choice": "Int64"}))


def _gates(
    test: pd.DataFrame, skill_of: dict[str, str], own: dict[str, str], rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    activation, tokens, route = [], [], []
    expert_of = {skill: expert for expert, skill in own.items()}
    for number, question in enumerate(test.itertuples()):
        expected = expert_of.get(skill_of[question.task])
        lean = np.array([4.0 if expert == expected else 1.0 for expert in EXPERTS])
        for layer in range(LAYERS):
            weight = rng.dirichlet(lean)
            for expert, value in zip(EXPERTS, weight, strict=True):
                row = {"system": "moe", "question_id": question.question_id, "layer": layer, "expert": expert}
                activation.append({**row, "site": "mlp", "weight": value, "share": value, "tokens": 20, "chosen": 1.0})
                if number % 10 == 0:
                    words = question.prompt.split()
                    gates = rng.dirichlet(lean, len(words))[:, EXPERTS.index(expert)]
                    tokens += [
                        {**row, "position": p, "token": f" {word}", "weight": gates[p]} for p, word in enumerate(words)
                    ]
        prior = rng.dirichlet([*(lean * 3), 6.0 if expected is None else 1.0])
        route += [
            {"system": "moe", "question_id": question.question_id, "expert": expert, "probability": p}
            for expert, p in zip([*EXPERTS, "base"], prior, strict=True)
        ]
    return pd.DataFrame(activation), pd.DataFrame(tokens), pd.DataFrame(route)


if __name__ == "__main__":
    import sys

    build_workspace(Path(sys.argv[1]))
