"""What a person looks for: kept for the session, and in the address by codes that no language changes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from metamoe_backend.errors import ConfigError
from metamoe_backend.evaluate.outcomes import OUTCOMES
from metamoe_backend.store.finding import Filters
from pages.shared.state import open_page, went_through_history

PARTS = {
    "q": "text", "task": "tasks", "skill": "skills", "cluster": "clusters", "author": "authors", "outcome": "outcomes",
    "like": "like",
}  # fmt: skip
"""Name in the address -> part of `Filters`; `confidence` stands for two parts."""
_FILTERS = "filters"
_FILTERED_PAGES = ("map", "skills")
_RANGE = re.compile(r"(0(?:\.\d+)?|1(?:\.0+)?)?\.\.(0(?:\.\d+)?|1(?:\.0+)?)?")


def get_filters() -> Filters:
    return st.session_state.get(_FILTERS, Filters())


def put_filters(filters: Filters) -> None:
    """Look for this from now on."""
    st.session_state[_FILTERS] = filters
    _write_to_address(filters)


def restore_filters() -> list[str]:
    """Take what the address asks for when a person arrives or goes back or forward; return what it cannot ask for.

    Otherwise the session knows better: a browser may still send the address of the act before.
    """
    if _FILTERS in st.session_state and not went_through_history():
        _write_to_address(get_filters())
        return []
    filters, wrong = read_address({name: st.query_params.get_all(name) for name in (*PARTS, "confidence")})
    put_filters(filters)
    return wrong


def to_address(filters: Filters) -> dict[str, list[str]]:
    """Query parameters; a parameter stands there once for each of its values."""
    found: dict[str, list[str]] = {}
    for name, part in PARTS.items():
        value = getattr(filters, part)
        if value:
            found[name] = [value] if isinstance(value, str) else list(value)
    low, below = filters.confidence_from, filters.confidence_below
    if low is not None or below is not None:
        found["confidence"] = [f"{'' if low is None else low}..{'' if below is None else below}"]
    return found


def read_address(wanted: Mapping[str, Sequence[str]]) -> tuple[Filters, list[str]]:
    """The filters, and values that cannot be one, such as an outcome there is not."""
    parts: dict[str, Any] = {}
    for name, part in PARTS.items():
        values = wanted.get(name, ())
        if isinstance(getattr(Filters(), part), tuple):
            parts[part] = tuple(dict.fromkeys(values))
        elif values:
            parts[part] = values[-1]
    wrong = [outcome for outcome in parts["outcomes"] if outcome not in OUTCOMES]
    filters = Filters(**parts | {"outcomes": tuple(outcome for outcome in parts["outcomes"] if outcome in OUTCOMES)})
    for value in wanted.get("confidence", ())[-1:]:
        try:
            filters = replace(filters, **_read_range(value))
        except ConfigError:
            wrong.append(value)
    return filters, wrong


def _read_range(text: str) -> dict[str, float]:
    """Parts of `Filters` for "LOW..BELOW", where either may be missing; raises `ConfigError`."""
    ends = _RANGE.fullmatch(text)
    if ends is None:
        raise ConfigError(f"{text!r} is no range of confidence; write 0.5..0.9, 0.5.. or ..0.9.")
    names = ("confidence_from", "confidence_below")
    return {name: float(end) for name, end in zip(names, ends.groups(), strict=True) if end}


def _write_to_address(filters: Filters) -> None:
    address = to_address(filters)
    for name in (*PARTS, "confidence"):
        values = address.get(name, [])
        if st.query_params.get_all(name) != values:
            if values:
                st.query_params[name] = values
            else:
                st.query_params.pop(name, None)


def look_for_similar(question_id: str) -> None:
    """Show what is like this question: among what is shown already, else among all, on the map."""
    here = st.session_state.get("page") in _FILTERED_PAGES
    put_filters(replace(get_filters() if here else Filters(), like=question_id))
    if here:
        st.rerun()
    open_page("map")
