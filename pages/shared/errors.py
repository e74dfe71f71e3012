"""The one error handler: a person's mistake becomes a sentence, a bug becomes a reference that stands in the log."""

import functools
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import streamlit as st

from metamoe_backend.errors import StorageError, UserError
from pages.shared.i18n import _
from pages.shared.text import plain

P = ParamSpec("P")
logger = logging.getLogger("metamoe.dashboard")
_KEPT = "error_of_callback"


@contextmanager
def error_boundary() -> Iterator[None]:
    """Whatever goes wrong inside is shown in place; what was drawn before stays. Also a decorator of fragments."""
    render_kept_error()
    try:
        yield
    except (UserError, StorageError) as error:
        st.error(plain(error), icon=":material/error:")
    except Exception:
        reference = _new_reference()
        logger.exception("Reference %s", reference)
        st.error(_say(reference), icon=":material/bug_report:")


def guarded(function: Callable[P, object]) -> Callable[P, None]:
    """For callbacks, which run before the page and outside of any boundary.

    A callback has no place on the page, so its error is kept, and shown where the next boundary begins.
    """

    @functools.wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (UserError, StorageError) as error:
            st.session_state[_KEPT] = plain(error)
        except Exception:
            reference = _new_reference()
            logger.exception("Reference %s", reference)
            st.session_state[_KEPT] = _say(reference)

    return inner


def render_kept_error() -> None:
    """What went wrong in a callback, once."""
    message = st.session_state.pop(_KEPT, None)
    if message:
        st.error(message, icon=":material/error:")


def _new_reference() -> str:
    return uuid.uuid4().hex[:6]


def _say(reference: str) -> str:
    return _("Something went wrong that should not have. The log has the details under reference {reference}.").format(
        reference=reference
    )
