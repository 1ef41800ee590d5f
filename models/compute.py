"""The one thread in which torch computes.

OpenMP keeps a pool of workers for every thread that calls it. With more than one pool there are more workers than
cores, and libgomp then stops letting them spin, which halves the speed of decoding on a CPU; and the allocator keeps an
arena for each. So models are loaded, tried and run in this thread, whoever asks.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from .allocator import keep_memory

NAME = "cuecard-compute"

P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def _executor() -> ThreadPoolExecutor:
    keep_memory()
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=NAME)


def compute(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function(*args, **kwargs)` in the computing thread: its result, or what it raises."""
    if threading.current_thread().name.startswith(NAME):
        return function(*args, **kwargs)
    return _executor().submit(function, *args, **kwargs).result()


def in_compute(function: Callable[P, T]) -> Callable[P, T]:
    """A function that runs in the computing thread."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return compute(function, *args, **kwargs)

    return run
