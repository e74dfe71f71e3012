"""Files, benchmark formats, hub data sets and reasoning-gym generators become questions."""

from metamoe_backend.ingest.stage import (
    Preview,
    RejectedRowsError,
    compute,
    make_question_id,
    make_task_name,
    prepare,
    read_preview,
)

__all__ = [
    "Preview",
    "RejectedRowsError",
    "compute",
    "make_question_id",
    "make_task_name",
    "prepare",
    "read_preview",
]
