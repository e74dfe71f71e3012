"""Rows kept in the run's scratch folder as they come, so that a run that was killed goes on where it stood.

A part is what one block of questions gave: NUMBER-TABLE.parquet for each table it feeds. The file of the last table is
written last, so where it is, the part is whole.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from metamoe_backend.jobs.durable import replace_file
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.stage import Context


def save_part(context: Context, tables: Sequence[str], frames: Mapping[str, pd.DataFrame]) -> None:
    """Keep a part in scratch, then emit it. `tables`: what a part may feed; the last one it always feeds."""
    context.scratch.mkdir(parents=True, exist_ok=True)
    number = len(_find_parts(context.scratch, tables)) + 1
    for table in tables:
        path = context.scratch / f"{number:05d}-{table}.parquet"
        path.unlink(missing_ok=True)  # what a kill before the last table left under this number
        if table in frames:
            replace_file(path, frames[table].to_parquet)
    for table in tables:
        if table in frames:
            context.emit(table, frames[table])


def restore_parts(context: Context, tables: Sequence[str], key: Sequence[str]) -> pd.DataFrame:
    """Emit what earlier attempts saved and is not in the run's output; the keys of all rows of the last table.

    Output of a broken-off attempt may or may not have been kept, so each table is looked at by itself.
    """
    run = RunFolder(context.scratch.parent)
    emitted = {table: [_read_keys(part.path, key) for part in run.parts(table)] for table in tables}
    there = {table: {row for keys in found for row in _rows(keys)} for table, found in emitted.items()}
    finished = emitted[tables[-1]]
    for last in _find_parts(context.scratch, tables):
        finished.append(_read_keys(last, key))
        number = last.name.partition("-")[0]
        for table in tables:
            path = context.scratch / f"{number}-{table}.parquet"
            if path.is_file() and _rows(_read_keys(path, key).head(1))[0] not in there[table]:
                context.emit(table, pd.read_parquet(path))
    return pd.concat([pd.DataFrame(columns=list(key), dtype=object), *finished], ignore_index=True).drop_duplicates()


def _find_parts(scratch: Path, tables: Sequence[str]) -> list[Path]:
    return sorted(scratch.glob(f"*-{tables[-1]}.parquet"))


def _read_keys(path: Path, key: Sequence[str]) -> pd.DataFrame:
    return pd.read_parquet(path, columns=list(key)).drop_duplicates()


def _rows(keys: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(keys.itertuples(index=False, name=None))
