"""How alike the adapters of a bank are: in their weight changes, layer by layer, and in the mistakes they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metamoe_backend.evaluate.answers import require_one_regime, require_systems
from metamoe_backend.models.adapters import AdapterWeights, find_layer, read_adapter
from metamoe_backend.skills.agreement import Agreement, compute_kappa, kappa_of_tables

if TYPE_CHECKING:
    import torch

Square = NDArray[np.float64]
"""[adapters, adapters], symmetric."""


@dataclass(frozen=True)
class Similarity:
    """Cosines of the weight changes of adapters, -1 to 1. Rows and columns are in the order of `names`."""

    names: list[str]
    overall: Square
    """Mean over layers."""
    layers: dict[int, Square]
    """Per layer, mean over the modules that either adapter changes; NaN where neither changes any."""

    def list_pairs(self) -> pd.DataFrame:
        """adapter, other, similarity of each pair once, in order of `names`."""
        return _list_pairs(self.names, self.overall, "similarity")

    def list_layers(self, first: str, second: str) -> pd.DataFrame:
        """layer, similarity of one pair; layers that neither adapter changes are left out."""
        one, two = self.names.index(first), self.names.index(second)
        rows = [(layer, matrix[one, two]) for layer, matrix in self.layers.items()]
        return pd.DataFrame(rows, columns=["layer", "similarity"]).dropna(ignore_index=True)


def compute_similarity(bank: Sequence[AdapterWeights]) -> Similarity:
    """Cosine of B_1 A_1 and B_2 A_2 per module for every two adapters, averaged per layer, then over layers.

    <B_1 A_1, B_2 A_2> = sum((B_1^T B_2) * (A_1 A_2^T)): products of r x r, the deltas are never formed (METHODS.md §1,
    after arXiv 2408.15915 section 3.2). All A's of a module are multiplied at once, and so are all B's. A module that
    only one adapter changes counts as 0, and so does a zero delta. In double precision; ranks may differ.
    """
    sums: dict[int, Square] = {}
    counts: dict[int, Square] = {}
    for module in dict.fromkeys(module for weights in bank for module in weights.a):
        layer, has = find_layer(module), np.array([module in weights.a for weights in bank])
        cosine = _compute_module_cosines([weights for weights in bank if module in weights.a], module)
        whole = np.zeros((len(bank), len(bank)))
        whole[np.ix_(has, has)] = cosine
        sums[layer] = sums.get(layer, 0) + whole
        counts[layer] = counts.get(layer, 0) + (has[:, None] | has[None, :])
    layers = {layer: _divide(sums[layer], counts[layer]) for layer in sorted(sums)}
    return Similarity([weights.name for weights in bank], _mean_of_layers(layers, len(bank)), layers)


def compute_raw_similarity(bank: Sequence[AdapterWeights]) -> Square:
    """Mean of |cos(A_1, A_2)| and |cos(B_1, B_2)| over all modules that either adapter changes, 0 to 1.

    What the code published with arXiv 2408.15915 uses instead of the cosine of B A (there as a sum): another basis of
    the same weight change gives another value. NaN where the ranks differ, for then it is not defined.
    """
    sums, counts = np.zeros((len(bank), len(bank))), np.zeros((len(bank), len(bank)))
    for module in dict.fromkeys(module for weights in bank for module in weights.a):
        has = np.array([module in weights.a for weights in bank])
        counts += 2 * (has[:, None] | has[None, :])
        for rank in {weights.rank for weights in bank}:
            alike = has & np.array([weights.rank == rank for weights in bank])
            of_rank = [weights for weights in bank if weights.rank == rank and module in weights.a]
            if of_rank:
                for part in ([weights.a[module] for weights in of_rank], [weights.b[module] for weights in of_rank]):
                    sums[np.ix_(alike, alike)] += _compute_absolute_cosines(part)
    ranks = np.array([weights.rank for weights in bank])
    return np.where(ranks[:, None] == ranks[None, :], _divide(sums, counts), np.nan)


def compare_folders(folders: Mapping[str, Path]) -> Similarity:
    """How alike the adapters in these PEFT folders, {name: folder}, are. Raises `InputError` for a damaged one."""
    return measure_folders(folders)[0]


def compute_norms(bank: Sequence[AdapterWeights]) -> list[float]:
    """Frobenius norm of each adapter's weight change, scale * B A, summed over its modules: from products of r x r."""
    return [
        weights.scale
        * sum(
            float(
                (
                    (weights.b[module].double().T @ weights.b[module].double())
                    * (weights.a[module].double() @ weights.a[module].double().T)
                )
                .sum()
                .clamp(min=0)
                .sqrt()
            )
            for module in weights.a
        )
        for weights in bank
    ]


def measure_folders(folders: Mapping[str, Path]) -> tuple[Similarity, dict[str, float]]:
    """`compare_folders` and `compute_norms` by name, each folder read once."""
    bank = [read_adapter(folder) for folder in folders.values()]
    found = compute_similarity(bank)
    norms = dict(zip(folders, compute_norms(bank), strict=True))
    return Similarity(list(folders), found.overall, found.layers), norms


def compute_error_agreement(predictions: pd.DataFrame, systems: Sequence[str]) -> pd.DataFrame:
    """How far every two systems make the same mistakes: adapter, other, n, same, kappa; each pair once.

    n: questions that both answered. same: share of them on which both are right or both wrong. kappa: Cohen's kappa of
    right and wrong (Cohen 1960), 1 the same mistakes, 0 as chance would have it; NaN where it is not defined, as for
    two systems that are always right. Kappa as a measure of error diversity: Dietterich (2000), Machine Learning 40,
    139-157; Kuncheva and Whitaker (2003), Machine Learning 51, 181-207. Raises as `compute_answer_table` does.
    """
    table = _table_answers(predictions, systems)
    right, wrong = (table == 1).to_numpy(float), (table == 0).to_numpy(float)
    cells = np.stack(
        [np.stack([one.T @ two for two in (wrong, right)], axis=-1) for one in (wrong, right)], axis=-2
    )  # [systems, systems, 2, 2]
    n = cells.sum(axis=(2, 3))
    names = table.columns.tolist()
    with np.errstate(invalid="ignore", divide="ignore"):
        same = np.einsum("ijkk->ij", cells) / n
        kappa = kappa_of_tables(cells.reshape(-1, 2, 2)).reshape(n.shape)
    frames = [_list_pairs(names, matrix, name) for matrix, name in ((n, "n"), (same, "same"), (kappa, "kappa"))]
    found = frames[0].assign(same=frames[1]["same"], kappa=frames[2]["kappa"])
    return found.astype({"n": int})


def compute_pair_agreement(predictions: pd.DataFrame, first: str, second: str) -> Agreement:
    """Cohen's kappa of right and wrong of two systems with its bootstrap interval (see `compute_error_agreement`)."""
    table = _table_answers(predictions, [first, second]).dropna()
    return compute_kappa(table[first].to_numpy(), table[second].to_numpy())


def make_square(pairs: pd.DataFrame, names: Sequence[str], value: str, diagonal: float = 1.0) -> pd.DataFrame:
    """Pairs (adapter, other, value; each once) as a symmetric table of `names`; NaN for a pair that is not there."""
    place = {name: index for index, name in enumerate(names)}
    square = np.full((len(names), len(names)), np.nan)
    for one, two, number in zip(pairs["adapter"], pairs["other"], pairs[value], strict=True):
        square[place[one], place[two]] = square[place[two], place[one]] = number
    np.fill_diagonal(square, diagonal)
    return pd.DataFrame(square, index=list(names), columns=list(names))


@dataclass(frozen=True)
class Tree:
    """A dendrogram: the order of its leaves, and the corners of each join."""

    order: list[str]
    """Names, so that alike ones stand together."""
    places: list[list[float]]
    """Per join, four places along the leaves: leaf number i of the order stands at i."""
    distances: list[list[float]]
    """Per join, the distances (1 - similarity) at these places."""


def grow_tree(similarity: pd.DataFrame, method: Literal["average", "complete", "single"] = "average") -> Tree:
    """Hierarchical clustering of at least two adapters by 1 - similarity (UPGMA, Sokal and Michener 1958).

    similarity: a symmetric table. Missing values count as 0: nothing is known to be alike.
    """
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - similarity.fillna(0.0).to_numpy(float), 0, None)
    np.fill_diagonal(distance, 0.0)
    joins = linkage(squareform((distance + distance.T) / 2, checks=False), method, optimal_ordering=True)
    drawn = dendrogram(joins, no_plot=True)
    places = [[(place - 5) / 10 for place in join] for join in drawn["icoord"]]  # scipy's leaves stand at 5, 15, 25 …
    return Tree([similarity.index[leaf] for leaf in drawn["leaves"]], places, drawn["dcoord"])


def _compute_module_cosines(bank: Sequence[AdapterWeights], module: str) -> Square:
    import torch

    a = torch.cat([weights.a[module].double() for weights in bank])  # [all ranks, inputs]
    b = torch.cat([weights.b[module].double() for weights in bank], dim=1)  # [outputs, all ranks]
    products = ((a @ a.T) * (b.T @ b)).numpy()
    starts = np.cumsum([0, *(weights.rank for weights in bank)])[:-1]
    dots = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
    lengths = np.sqrt(np.clip(np.diag(dots), 0, None))
    return _divide(dots, np.outer(lengths, lengths), otherwise=0.0)


def _compute_absolute_cosines(matrices: "Sequence[torch.Tensor]") -> Square:
    import torch

    flat = torch.stack([matrix.double().flatten() for matrix in matrices])
    dots = (flat @ flat.T).numpy()
    lengths = np.sqrt(np.diag(dots))
    return _divide(np.abs(dots), np.outer(lengths, lengths), otherwise=0.0)


def _mean_of_layers(layers: Mapping[int, Square], count: int) -> Square:
    if not layers:
        return np.full((count, count), np.nan)
    stacked = np.stack(list(layers.values()))
    return _divide(np.nansum(stacked, axis=0), (~np.isnan(stacked)).sum(axis=0))


def _divide(above: NDArray[np.float64], below: NDArray[np.float64], otherwise: float = np.nan) -> Square:
    below = np.asarray(below, dtype=float)
    return np.divide(above, below, out=np.full(below.shape, otherwise), where=below > 0)


def _table_answers(predictions: pd.DataFrame, systems: Sequence[str]) -> pd.DataFrame:
    """1 right, 0 wrong, NaN not answered: [questions, systems]."""
    require_systems(predictions, systems)
    kept = predictions[predictions["system"].isin(list(systems))]
    require_one_regime(kept)
    return kept.pivot(index=["task", "question_id"], columns="system", values="correct")[list(systems)].astype(float)


def _list_pairs(names: Sequence[str], square: Square, value: str) -> pd.DataFrame:
    rows = [(names[i], names[j], square[i, j]) for i, j in combinations(range(len(names)), 2)]
    return pd.DataFrame(rows, columns=["adapter", "other", value])
