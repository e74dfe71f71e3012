"""How alike adapters are: against deltas that are formed, answers that are counted, and trees drawn by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from metamoe_backend.errors import InputError, NotFoundError
from metamoe_backend.experts.similarity import (
    compare_folders,
    compute_error_agreement,
    compute_norms,
    compute_pair_agreement,
    compute_raw_similarity,
    compute_similarity,
    grow_tree,
    make_square,
    measure_folders,
)
from metamoe_backend.models.adapters import AdapterWeights, read_adapter
from tests.tiny_models import make_tiny_adapter, make_tiny_base


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def bank(tmp_path: Path, base_folder: Path) -> list[AdapterWeights]:
    """Three adapters: two of unlike rank and modules, and one that changes only attention."""
    made = [
        make_tiny_adapter(tmp_path / "a", base_folder, rank=3, seed=1),
        make_tiny_adapter(tmp_path / "b", base_folder, rank=5, seed=2, targets=("up_proj", "q_proj")),
        make_tiny_adapter(tmp_path / "c", base_folder, rank=3, seed=3, targets=("q_proj",)),
    ]
    return [read_adapter(folder) for folder in made]


def slow_layers(one: AdapterWeights, two: AdapterWeights) -> dict[int, float]:
    """The cosines of the formed deltas, layer by layer."""
    layers: dict[int, list[float]] = {}
    for module in {**one.a, **two.a}:
        cosine = 0.0
        if module in one.a and module in two.a:
            deltas = [(weights.b[module] @ weights.a[module]).flatten().double() for weights in (one, two)]
            cosine = torch.nn.functional.cosine_similarity(*deltas, dim=0).item()
        layers.setdefault(int(module.split(".")[2]), []).append(cosine)
    return {layer: sum(values) / len(values) for layer, values in layers.items()}


def test_it_is_the_cosine_of_the_formed_deltas(bank: list[AdapterWeights]) -> None:
    found = compute_similarity(bank)
    for i, one in enumerate(bank):
        for j, two in enumerate(bank):
            layers = slow_layers(one, two)
            assert [found.layers[layer][i, j] for layer in (0, 1)] == pytest.approx([layers[0], layers[1]], abs=1e-6)
            assert found.overall[i, j] == pytest.approx((layers[0] + layers[1]) / 2, abs=1e-6)
    assert found.overall[0, 2] == 0  # no module in common
    shown = found.list_layers("a", "b")
    assert shown["layer"].tolist() == [0, 1] and shown["similarity"].tolist() == [
        m[0, 1] for m in found.layers.values()
    ]
    assert found.list_pairs()["similarity"].tolist() == [found.overall[i, j] for i, j in ((0, 1), (0, 2), (1, 2))]


def test_the_norm_is_that_of_the_formed_deltas(bank: list[AdapterWeights], tmp_path: Path) -> None:
    slow = [
        sum((each.scale * each.b[module].double() @ each.a[module].double()).norm().item() for module in each.a)
        for each in bank
    ]
    assert compute_norms(bank) == pytest.approx(slow, rel=1e-6)
    found, norms = measure_folders({name: tmp_path / name for name in "cab"})
    assert norms == pytest.approx({"a": slow[0], "b": slow[1], "c": slow[2]}, rel=1e-6)
    assert found.names == ["c", "a", "b"]


def test_itself_its_opposite_and_nothing(bank: list[AdapterWeights], tmp_path: Path) -> None:
    opposite, nothing = read_adapter(tmp_path / "a"), read_adapter(tmp_path / "a")
    opposite.b = {module: -matrix for module, matrix in opposite.b.items()}
    nothing.b = {module: matrix * 0 for module, matrix in nothing.b.items()}
    assert compute_similarity([bank[0], opposite, nothing]).overall[0] == pytest.approx([1, -1, 0])
    assert compute_similarity([]).overall.shape == (0, 0)


def test_layers_that_neither_changes_are_left_out(bank: list[AdapterWeights]) -> None:
    for weights in bank[:2]:
        weights.a = {module: matrix for module, matrix in weights.a.items() if "layers.0" in module}
    found = compute_similarity(bank)
    assert found.list_layers("a", "b")["layer"].tolist() == [0] and np.isnan(found.layers[1][0, 1])
    assert found.overall[0, 1] == found.layers[0][0, 1]


def test_the_published_variant_compares_a_and_b_by_themselves(bank: list[AdapterWeights], tmp_path: Path) -> None:
    found = compute_raw_similarity(bank)
    assert np.isnan(found[0, 1]) and found[0, 2] == 0 and np.allclose(np.diag(found), 1)
    turned = read_adapter(tmp_path / "a")  # the same weight change in another basis: the first two channels swapped
    order = [1, 0, 2]
    turned.a = {module: matrix[order] for module, matrix in turned.a.items()}
    turned.b = {module: matrix[:, order] for module, matrix in turned.b.items()}
    assert compute_similarity([bank[0], turned]).overall[0, 1] == pytest.approx(1)
    raw = compute_raw_similarity([bank[0], turned])[0, 1]
    flat = [(weights.a, weights.b) for weights in (bank[0], turned)]
    expected = [
        abs(torch.nn.functional.cosine_similarity(flat[0][part][m].flatten(), flat[1][part][m].flatten(), dim=0).item())
        for part in (0, 1)
        for m in bank[0].modules
    ]
    assert raw == pytest.approx(np.mean(expected), abs=1e-6) and raw < 0.9


def test_folders_are_compared_under_the_names_they_are_given(tmp_path: Path, base_folder: Path) -> None:
    folder = make_tiny_adapter(tmp_path / "a", base_folder)
    found = compare_folders({"one": folder, "two": folder})
    assert found.names == ["one", "two"] and found.overall[0, 1] == pytest.approx(1)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        compare_folders({"one": folder})


def make_predictions(answers: dict[str, dict[str, bool]]) -> pd.DataFrame:
    rows = [
        {"system": name, "question_id": question, "task": "t", "regime": "exact", "n_shot": 0, "correct": correct}
        for name, given in answers.items()
        for question, correct in given.items()
    ]
    return pd.DataFrame(rows)


def test_agreement_of_errors_is_kappa_over_the_questions_both_answered() -> None:
    rng = np.random.default_rng(0)
    answers = {
        name: {f"q{n}": bool(rng.random() < 0.5) for n in range(60) if rng.random() < 0.8} for name in ("x", "y", "z")
    }
    predictions = make_predictions(answers)
    found = compute_error_agreement(predictions, ["x", "y", "z"]).set_index(["adapter", "other"])
    assert found.index.tolist() == [("x", "y"), ("x", "z"), ("y", "z")]
    for (one, two), row in found.iterrows():
        common = sorted(set(answers[one]) & set(answers[two]))
        first, second = [answers[one][q] for q in common], [answers[two][q] for q in common]
        assert row["n"] == len(common)
        assert row["same"] == pytest.approx(np.mean(np.equal(first, second)))
        assert row["kappa"] == pytest.approx(cohen_kappa_score(first, second))
    pair = compute_pair_agreement(predictions, "x", "y")
    assert pair.value == pytest.approx(found.loc[("x", "y"), "kappa"]) and pair.low < pair.value < pair.high


def test_agreement_at_its_edges() -> None:
    same = {"q0": True, "q1": False}
    predictions = make_predictions({"x": same, "y": same, "always": {"q0": True}, "never": {"q2": False}})
    found = compute_error_agreement(predictions, ["x", "y", "always", "never"]).set_index(["adapter", "other"])
    assert found.loc[("x", "y"), "kappa"] == 1
    assert np.isnan(found.loc[("x", "always"), "kappa"]) and found.loc[("x", "always"), "same"] == 1
    assert found.loc[("x", "never"), "n"] == 0 and np.isnan(found.loc[("x", "never"), "same"])
    with pytest.raises(NotFoundError, match="evaluate it first"):
        compute_error_agreement(predictions, ["x", "nobody"])


def test_the_tree_puts_alike_ones_together() -> None:
    pairs = pd.DataFrame(
        [("a", "b", 0.1), ("a", "c", 0.9), ("b", "d", 0.8), ("c", "d", np.nan)],
        columns=["adapter", "other", "similarity"],
    )
    square = make_square(pairs, ["a", "b", "c", "d"], "similarity")
    assert square.loc["c", "a"] == 0.9 and square.loc["b", "b"] == 1 and np.isnan(square.loc["c", "d"])
    tree = grow_tree(square)
    assert {frozenset(tree.order[:2]), frozenset(tree.order[2:])} == {frozenset("ac"), frozenset("bd")}
    heights = sorted(max(join) for join in tree.distances)
    # a-c at 1 - 0.9, b-d at 1 - 0.8; the two groups at the mean of 0.9, 1, 1, 1 (what is missing is not alike).
    assert heights == pytest.approx([0.1, 0.2, 0.975])
    assert sorted({place for join in tree.places for place in join if place == int(place)})[:4] == [0, 1, 2, 3]
