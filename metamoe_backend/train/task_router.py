"""Teaching the task-level router of a mixture: which expert each question of a plan goes to, read from its vector."""

import numpy as np
import pandas as pd

from metamoe_backend.config import BASE_EXPERT, MoeConfig
from metamoe_backend.embed import hash_text, load_encoder
from metamoe_backend.models.routers import FittedRouter, fit_task_router
from metamoe_backend.stage import Context


def teach_task_router(
    questions: pd.DataFrame, vectors: pd.DataFrame, config: MoeConfig, context: Context
) -> FittedRouter:
    """Fit the router on `questions` (column expert says where each belongs); `vectors` are those that are stored."""
    names = [*config.experts, *([BASE_EXPERT] if BASE_EXPERT in set(questions["expert"]) else [])]
    matrix = _collect_vectors(questions, vectors, config, context)
    fitted = fit_task_router(matrix, questions["expert"].tolist(), names, config.optim.seed)
    how = "" if fitted.accuracy is None else f"; right on {fitted.accuracy:.1%} of questions it had not seen"
    context.log(f"Task-level router: {len(questions):,} questions, {len(names)} ways{how}.")
    return fitted


def _collect_vectors(questions: pd.DataFrame, vectors: pd.DataFrame, config: MoeConfig, context: Context) -> np.ndarray:
    """[questions, dimension], float32: the stored vector where it is of the present text, else a new one."""
    texts = questions["prompt" if config.of == "question" else "meta_question"].tolist()
    keys = zip(vectors["question_id"], vectors["text_hash"], strict=True)
    stored = dict(zip(keys, vectors["vector"], strict=True))
    found = [stored.get((name, hash_text(text))) for name, text in zip(questions["question_id"], texts, strict=True)]
    missing = [index for index, vector in enumerate(found) if vector is None]
    if missing:
        context.log(f"Embedding {len(missing):,} questions that {config.encoder} has not embedded yet.")
        for index, vector in zip(
            missing, load_encoder(config.encoder).encode([texts[i] for i in missing]), strict=True
        ):
            found[index] = vector
    return np.stack([np.asarray(vector, dtype=np.float32) for vector in found])
