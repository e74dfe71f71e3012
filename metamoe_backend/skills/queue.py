"""What to label next, and what was already labelled nearby."""

import numpy as np
import pandas as pd

NOISE = -1


def order_queue(questions: pd.DataFrame) -> list[str]:
    """Ids of the unlabelled questions, the most useful first.

    questions: question_id, cluster (-1: none), strength (membership, may be NaN), labelled (bool), margin of the
    suggestion (NaN without one). Turn by turn each cluster gives one question, so that a few labels reach every group:
    within a cluster what has no suggestion first (most typical first: high strength), then the least certain
    suggestion (smallest margin: Settles 2009, margin sampling). Within a turn the smallest margin leads, then the
    cluster with the fewest labels; questions in no cluster come last.
    """
    labels = questions.groupby("cluster")["labelled"].sum()
    waiting = questions[~questions["labelled"].to_numpy(bool)]
    waiting = waiting.assign(
        sureness=waiting["margin"].astype(float).fillna(-1.0),
        untypical=-waiting["strength"].astype(float).fillna(0.0),
        noise=waiting["cluster"].eq(NOISE),
        labels=waiting["cluster"].map(labels),
    )
    waiting = waiting.sort_values(["cluster", "sureness", "untypical", "question_id"], kind="stable")
    waiting = waiting.assign(turn=waiting.groupby("cluster").cumcount())
    order = ["noise", "turn", "sureness", "labels", "cluster"]
    return waiting.sort_values(order, kind="stable")["question_id"].tolist()


def find_labelled_neighbours(
    vectors: pd.DataFrame, question_id: str, labels: pd.DataFrame, count: int = 3
) -> pd.DataFrame:
    """The labelled questions most like this one: question_id, skill, similarity (cosine, -1 to 1), nearest first.

    vectors: question_id, vector (unit length); labels: question_id, skill. Empty where the question has no vector.
    """
    known = vectors[vectors["question_id"].isin(labels["question_id"]) & vectors["question_id"].ne(question_id)]
    own = vectors.loc[vectors["question_id"].eq(question_id), "vector"]
    if own.empty or known.empty:
        return pd.DataFrame({"question_id": [], "skill": [], "similarity": []})
    similarity = np.stack(known["vector"].to_list()).astype(float) @ np.asarray(own.iloc[0], dtype=float)
    near = known[["question_id"]].assign(similarity=similarity)
    near = near.merge(labels[["question_id", "skill"]].drop_duplicates("question_id"), on="question_id")
    near = near.sort_values(["similarity", "question_id"], ascending=[False, True]).head(count)
    return near[["question_id", "skill", "similarity"]].reset_index(drop=True)
