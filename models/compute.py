"""The one thread in which torch computes, and those that it shares a large computation out to.

OpenMP keeps a pool of workers for every thread that calls it. With more than one pool there are more workers than
cores, and libgomp then stops letting them spin, which halves the speed of decoding on a CPU; and the allocator keeps an
arena for each. So models are loaded, tried and run in this thread, whoever asks.

Two cores that work on every operation together meet after each, and what goes through memory between two products is
no faster for it. Two halves of a large batch, each on a core of its own, meet once. That is `side_by_side`; each of its
threads computes alone, so that OpenMP has no workers for it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
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


@functools.cache
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=count, thread_name_prefix=f"{NAME}-side")


def side_by_side(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """The results of the jobs, each computed by one thread, without gradients, as many at once as torch has threads.
    Where these can't be shared out evenly, the jobs are computed in turn, each with all of them.

    When all have ended, what the first of those that failed has raised is raised.
    """
    import torch

    threads = torch.get_num_threads()
    if threads == 1 or len(jobs) % threads:
        return [job() for job in jobs]

    def run(job: Callable[[], T]) -> T:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return job()

    try:
        running = [_workers(threads).submit(run, job) for job in jobs]
        wait(running)
    finally:
        torch.set_num_threads(threads)  # some libraries have one number for all threads
    return [one.result() for one in running]
