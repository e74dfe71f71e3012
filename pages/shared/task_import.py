"""The import dialog: source, mapping with live preview, result with the rejected rows."""

import hashlib
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.config import IngestConfig, parse_config
from metamoe_backend.errors import ConfigError, UserError
from metamoe_backend.ingest.formats import FIELDS
from metamoe_backend.ingest.generators import list_generators
from metamoe_backend.ingest.stage import Preview, read_preview
from metamoe_backend.launch import run_now
from metamoe_backend.store.questions import count_ingested, fetch_rejected_rows
from pages.shared.i18n import _
from pages.shared.layout import confirm, plain
from pages.shared.state import get_person, get_store, get_workspace
from pages.shared.tables import show_table

SPLITS = ("train", "validation", "test")


def open_import_dialog() -> None:
    st.dialog(_("Import questions"), width="large")(_render_dialog)()


def _render_dialog() -> None:
    st.caption(_("1. Source"))
    source, options = _choose_source()
    columns = st.columns(4)
    with columns[0]:
        task = st.text_input(_("Task name"), key="import_task", placeholder=_("from the source"))
    with columns[1]:
        split = st.selectbox(_("Split"), SPLITS, index=2, key="import_split")
    with columns[2]:
        limit = st.number_input(
            _("At most"),
            min_value=1,
            value=100 if options is not None else None,
            key=f"import_limit_{options is not None}",
        )
    with columns[3]:
        seed = st.number_input(_("Seed"), min_value=0, value=0, key="import_seed", disabled=options is None)
    if not source:
        return
    values: dict[str, Any] = {"source": source, "task": task or None, "split": split, "limit": limit, "seed": int(seed)}
    try:
        values["options"] = json.loads(options) if options else {}
        values["mapping"] = st.session_state.get("import_mapping", {}).get(source, {})
        preview = read_preview(parse_config(IngestConfig, values))
    except json.JSONDecodeError as error:
        st.error(_("The settings are no JSON object: {reason}.").format(reason=plain(error)))
        return
    except UserError as error:
        st.error(plain(error))
        _offer_rejected(getattr(error, "rejected", []), "preview")
        return
    st.caption(_("2. Columns and preview"))
    _render_mapping(source, preview)
    _render_preview(preview)
    if preview.problem is None:
        _render_import(values, preview)


def _choose_source() -> tuple[str, str | None]:
    """The source as IngestConfig names it, and a generator's settings as JSON text (None for anything else)."""
    kinds = {"upload": _("Upload"), "path": _("Path"), "hub": _("Hub data set"), "generator": _("Generator")}
    kind = st.segmented_control(
        _("From"), list(kinds), default="upload", format_func=kinds.get, key="import_kind", label_visibility="collapsed"
    )
    if kind == "path":
        return st.text_input(_("Path of a .jsonl .json .csv .tsv .parquet file"), key="import_path").strip(), None
    if kind == "hub":
        name = st.text_input(_("Data set, as OWNER/NAME or OWNER/NAME:CONFIG"), key="import_hub").strip()
        return (f"hub:{name}" if name else ""), None
    if kind == "generator":
        generators = {one.name: one for one in list_generators()}
        name = st.selectbox(
            _("Generator"),
            list(generators),
            format_func=lambda name: f"{generators[name].category} · {name}",
            index=None,
            key="import_generator",
            placeholder=_("choose one of {n}").format(n=len(generators)),
        )
        if name is None:
            return "", None
        st.caption(plain(generators[name].summary))
        with st.popover(_("Settings of the generator")):
            st.json(generators[name].options, expanded=False)
            settings = st.text_area(_("Other settings, as JSON"), value="{}", key=f"import_options_{name}")
        return f"reasoning_gym:{name}", settings
    upload = st.file_uploader(
        _("A .jsonl .json .csv .tsv or .parquet file"),
        type=["jsonl", "json", "csv", "tsv", "parquet"],
        key="import_file",
    )
    return (str(keep_upload(upload.name, upload.getvalue())) if upload else ""), None


def keep_upload(name: str, content: bytes) -> Path:
    """An uploaded file under its hash, so that the run's settings name what was read."""
    folder = get_workspace().uploads / hashlib.sha256(content).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(name).name
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.rename(path)
    return path


def _render_mapping(source: str, preview: Preview) -> None:
    """Say the format, or let the person say which column is which."""
    if preview.format_name:
        st.markdown(
            _("Format: **{format}**; scored by {regime}.").format(
                format=plain(preview.format_name), regime=plain(preview.regime or "–")
            )
        )
    if preview.problem:
        st.warning(plain(preview.problem))
        show_table(preview.records.head(5).astype(str), "import_records")
    if not preview.columns or source.startswith("reasoning_gym:"):
        return
    with st.expander(_("Say which column is which"), expanded=bool(preview.problem)):
        chosen: dict[str, str] = {}
        for column, field in zip(st.columns(len(FIELDS)), FIELDS, strict=True):
            with column:
                wanted = preview.mapping.get(field)
                index = preview.columns.index(wanted) if wanted in preview.columns else None
                found = st.selectbox(
                    field, preview.columns, index=index, key=f"import_map_{field}_{source}", placeholder="–"
                )
                if found:
                    chosen[field] = found
        if st.button(_("Use these columns"), key="import_use_mapping"):
            st.session_state.setdefault("import_mapping", {})[source] = chosen
            st.rerun(scope="fragment")


def _render_preview(preview: Preview) -> None:
    if len(preview.rows):
        shown = preview.rows.drop(columns=["line"], errors="ignore").head(8)
        show_table(
            shown,
            "import_preview",
            labels={
                "split": _("Split"),
                "prompt": _("Question"),
                "choices": _("Options"),
                "answer": _("Answer"),
                "explanation": _("Explanation"),
            },
            height=240,
        )
    if preview.rejected:
        st.warning(_("{n} of the first rows cannot be used.").format(n=len(preview.rejected)))
        _offer_rejected(preview.rejected, "first")


def _render_import(values: dict[str, Any], preview: Preview) -> None:
    keep_good = st.toggle(
        _("Keep the good rows even if some are rejected"),
        key="import_keep_good",
        help=_("Otherwise nothing is imported while a single row is bad."),
    )
    if not st.button(_("3. Import as {task}").format(task=preview.task), type="primary", key="import_go"):
        return
    bar = st.progress(0.0, text=_("Reading …"))

    def on_progress(done: int, total: int) -> None:
        bar.progress(min(1.0, done / max(total, 1)), text=_("{done} of {total} rows").format(done=done, total=total))

    try:
        run = run_now(get_store(), "ingest", {**values, "keep_good": keep_good}, get_person(), on_progress)
    except (UserError, ConfigError) as error:
        bar.empty()
        st.error(plain(error))
        _offer_rejected(getattr(error, "rejected", []), "import")
        return
    st.session_state["import_result"] = (run.run_id, preview.task)
    st.rerun()


def _offer_rejected(rejected: list[Any], key: str) -> None:
    if not rejected:
        return
    rows = [asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row) for row in rejected]
    frame = pd.DataFrame(rows)[["line", "reason", "text"]]
    show_table(
        frame.head(20), f"import_rejected_{key}", labels={"line": _("Line"), "reason": _("Reason"), "text": _("Row")}
    )
    st.download_button(
        _("Download the rejected rows"),
        frame.to_csv(index=False).encode("utf-8-sig"),
        file_name="rejected.csv",
        mime="text/csv",
        key=f"import_download_{key}",
    )


def render_import_result() -> None:
    """After an import: what came in, what was left out. Stays until the next import."""
    result = st.session_state.get("import_result")
    if result is None:
        return
    run_id, task = result
    store = get_store()
    if st.session_state.get("import_told") != run_id:
        st.session_state["import_told"] = run_id
        added = count_ingested(store, run_id)
        confirm(_("{n} questions imported into {task}.").format(n=f"{added:,}", task=plain(task)))
    rejected = fetch_rejected_rows(store, run_id)
    if len(rejected):
        with st.expander(_("{n} rows were rejected").format(n=len(rejected)), icon=":material/report:"):
            _offer_rejected(rejected.to_dict("records"), "result")
