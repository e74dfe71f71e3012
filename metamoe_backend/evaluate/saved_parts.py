"""Answers kept in the run's scratch folder as they come, so that a run that was killed goes on where it stood.

A part is a few hundred questions of one system: NUMBER-TABLE.parquet for each table it feeds. The file of the
predictions is written last, so where it is, the part is whole. What an earlier attempt of the run handed over already
is not emitted again.
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
        if table in frames:
            replace_file(context.scratch / f"{number:05d}-{table}.parquet", frames[table].to_parquet)
    _emit(context, frames)


def restore_parts(context: Context) -> pd.DataFrame:
    """Emit the parts that earlier attempts saved but did not hand over; system, question_id of all there are."""
    handed_over = [
        pd.read_parquet(part.path, columns=_KEY) for part in RunFolder(context.scratch.parent).parts("prediction")
    ]
    known = pd.concat(handed_over, ignore_index=True) if handed_over else pd.DataFrame(columns=_KEY, dtype=object)
    there = set(known.itertuples(index=False, name=None))
    restored = [known]
    for predictions in _find_parts(context.scratch):
        keys = pd.read_parquet(predictions, columns=_KEY)
        if next(keys.itertuples(index=False, name=None)) in there:
            continue
        number = predictions.name.partition("-")[0]
        files = {table: context.scratch / f"{number}-{table}.parquet" for table in TABLES}
        _emit(context, {table: pd.read_parquet(path) for table, path in files.items() if path.is_file()})
        restored.append(keys)
    return pd.concat(restored, ignore_index=True)


def _find_parts(scratch: Path) -> list[Path]:
    return sorted(scratch.glob("*-prediction.parquet"))


def _emit(context: Context, frames: Mapping[str, pd.DataFrame]) -> None:
    for table in TABLES:
        if table in frames:
            context.emit(table, frames[table])
