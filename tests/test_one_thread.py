"""Small matrices on one thread: every library's, and only inside."""

import pytest
import threadpoolctl

from metamoe_backend.one_thread import one_thread


def count_threads() -> set[int]:
    return {library["num_threads"] for library in threadpoolctl.threadpool_info()}


def test_all_libraries_have_one_thread_inside_and_theirs_again_behind_it():
    with one_thread():
        pass  # from now on all of them are loaded
    with threadpoolctl.threadpool_limits(2):
        with pytest.raises(ValueError, match="inside"), one_thread():
            assert count_threads() == {1}
            raise ValueError("inside")
        assert count_threads() == {2}
