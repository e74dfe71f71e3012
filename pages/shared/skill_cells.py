"""Skills as they appear in tables: chips in their own colours."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import streamlit as st


def skill_chips(skills: pd.DataFrame, label: str) -> Any:
    """Column settings for a column of lists of skill names; skills: name, colour."""
    return st.column_config.MultiselectColumn(
        label, options=skills["name"].tolist(), color=skills["colour"].tolist() or None
    )


def as_chips(names: Iterable[str | None]) -> list[list[str]]:
    """One list a row, empty where there is no skill."""
    return [[] if name is None or pd.isna(name) else [name] for name in names]
