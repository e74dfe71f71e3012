"""Small matrices on one thread."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, numpy, SciPy and scikit-learn compute on one thread.

    For many products of small matrices: their threads wait for each other after every one. Where something else wants
    the same cores, such as a browser beside the dashboard, that took up to 20 times as long as one thread does.
    """
    import sklearn.cluster  # noqa: F401 - only libraries that are loaded can be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield
