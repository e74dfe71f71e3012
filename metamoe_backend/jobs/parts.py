"""What a stage emits, as Parquet: one file a part, its columns and types those of `rows.columns(table)`."""

from typing import TYPE_CHECKING, Any

from metamoe_backend.rows import RUN_TABLES, Column, columns

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def arrow_schema(table: str) -> "pa.Schema":
    """Columns of a table with their Arrow types, e.g. FLOAT[] as list<float32>."""
    import pyarrow as pa

    types = {
        "VARCHAR": pa.string(),
        "BIGINT": pa.int64(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "TIMESTAMP": pa.timestamp("us"),
        "VARCHAR[]": pa.list_(pa.string()),
        "BIGINT[]": pa.list_(pa.int64()),
        "FLOAT[]": pa.list_(pa.float32()),
    }
    return pa.schema([pa.field(c.name, types[c.sql_type], nullable=c.nullable) for c in columns(table)])


def make_arrow_table(table: str, frame: "pd.DataFrame", run_id: str) -> "pa.Table":
    """Rows of `table` with its exact columns: run_id is filled in, nullable columns left out become NULL.

    Raises `ValueError` naming table and column when a column is unknown, missing, of another type, or NULL where it
    may not be: that is a bug in the stage, not a person's mistake.
    """
    import pyarrow as pa

    if table not in RUN_TABLES:
        raise ValueError(f"{table}: runs do not feed this table (they feed {', '.join(RUN_TABLES)})")
    wanted = columns(table)
    if unknown := sorted(set(frame.columns) - {column.name for column in wanted}):
        raise ValueError(f"{table}: unexpected columns {', '.join(map(str, unknown))}")
    schema = arrow_schema(table)
    arrays = []
    for column, field in zip(wanted, schema, strict=True):
        if column.name == "run_id":
            arrays.append(pa.array([run_id] * len(frame), type=field.type))
        elif column.name in frame.columns:
            arrays.append(_array(table, column, frame[column.name], field.type))
        elif column.nullable:
            arrays.append(pa.nulls(len(frame), type=field.type))
        else:
            raise ValueError(f"{table}: column {column.name} is missing")
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(table: str, column: Column, values: "pd.Series[Any]", kind: "pa.DataType") -> "pa.Array":
    import pyarrow as pa

    # A NaN in a DOUBLE that may not be NULL is a number (a loss that diverged); anywhere else it means "none".
    nan_is_null = column.nullable or column.sql_type != "DOUBLE"
    try:
        if column.sql_type.endswith("[]"):
            array = pa.array(_lists(values, column.sql_type), type=kind)
        else:
            if column.sql_type == "TIMESTAMP" and getattr(values.dtype, "tz", None) is not None:
                values = values.dt.tz_convert("UTC").dt.tz_localize(None)
            array = pa.array(values, type=kind, from_pandas=nan_is_null)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"{table}.{column.name}: {error}") from error
    if array.null_count and not column.nullable:
        raise ValueError(f"{table}.{column.name}: NULL in {array.null_count} of {len(array)} rows, where none may be")
    return array


def _lists(values: "pd.Series[Any]", sql_type: str) -> list[Any]:
    """Lists as Arrow takes them: float vectors as float32 arrays, a missing list (None or NaN) as None."""
    import numpy as np

    missing = [value is None or (isinstance(value, float) and np.isnan(value)) for value in values]
    if sql_type == "FLOAT[]":
        return [None if gone else np.asarray(v, dtype=np.float32) for v, gone in zip(values, missing, strict=True)]
    return [None if gone else list(v) for v, gone in zip(values, missing, strict=True)]
