"""Answers kept in the run's scratch folder as they come, so that a run that was killed goes on where it stood.

A part is a few hundred questions of one system: NUMBER-TABLE.parquet for each table it feeds. The file of the
predictions is written last, so where it is, the part is whole.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from metamoe_backend.jobs.durable import replace_file
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.stage import Context

TABLES = ("activation", "token_activation", "route", "prediction")
"""What a part may feed, in the order it is written and emitted."""
_KEY = ["system", "question_id"]


def save_part(context: Context, frames: Mapping[str, pd.DataFrame]) -> None:
    """Keep a part in scratch, then emit it."""
    context.scratch.mkdir(parents=True, exist_ok=True)
    number = len(_find_parts(context.scratch)) + 1
    for table in TABLES:
        path = context.scratch / f"{number:05d}-{table}.parquet"
        path.unlink(missing_ok=True)  # what a kill before the predictions left under this number
        if table in frames:
            replace_file(path, frames[table].to_parquet)
    for table in TABLES:
        if table in frames:
            context.emit(table, frames[table])


def restore_parts(context: Context) -> pd.DataFrame:
    """Emit what earlier attempts saved and is not in the run's output; system, question_id of all answers there are.

    Output of a broken-off attempt may or may not have been kept, so each table is looked at by itself.
    """
    run = RunFolder(context.scratch.parent)
    emitted = {table: [_read_keys(part.path) for part in run.parts(table)] for table in TABLES}
    there = {table: {key for keys in found for key in _rows(keys)} for table, found in emitted.items()}
    answered = emitted["prediction"]
    for predictions in _find_parts(context.scratch):
        answered.append(_read_keys(predictions))
        number = predictions.name.partition("-")[0]
        for table in TABLES:
            path = context.scratch / f"{number}-{table}.parquet"
            if path.is_file() and _rows(_read_keys(path).head(1))[0] not in there[table]:
                context.emit(table, pd.read_parquet(path))
    return pd.concat([pd.DataFrame(columns=_KEY, dtype=object), *answered], ignore_index=True).drop_duplicates()


def _find_parts(scratch: Path) -> list[Path]:
    return sorted(scratch.glob("*-prediction.parquet"))


def _read_keys(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path, columns=_KEY).drop_duplicates()


def _rows(keys: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(keys["system"], keys["question_id"], strict=True))
