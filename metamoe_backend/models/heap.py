"""glibc's malloc, told to keep what a forward pass frees for the next one.

By itself it gives blocks of some MB back to the system at once, and each pass asks for them again: a fresh page costs a
fault and zeros. Of SmolLM2-135M's passes over 1,000 to 2,000 tokens on two cores this was 10 to 20 % of the time.
"""

import ctypes
from functools import cache

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
KEPT_BYTES = 1 << 30
"""So much of freed memory may stay with the process: a pass's logits alone can have 600 MB."""


@cache
def keep_freed_memory() -> bool:
    """Returns whether there is a malloc that takes these settings (glibc's); elsewhere nothing changes."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
