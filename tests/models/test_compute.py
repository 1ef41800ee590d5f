"""The thread in which torch computes, and computations side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from cuecard.models.compute import NAME, compute, side_by_side


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_everything_is_computed_in_one_thread() -> None:
    names = {compute(lambda: threading.current_thread().name) for _ in range(3)}
    assert len(names) == 1 and names.pop().startswith(NAME)
    assert compute(lambda: compute(threading.current_thread)) is compute(threading.current_thread)


def test_jobs_run_at_the_same_time_and_come_back_in_order(two_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=30)

    def job(name: str) -> Callable[[], tuple[str, int, bool]]:
        def run() -> tuple[str, int, bool]:
            meeting.wait()
            return name, torch.get_num_threads(), torch.is_inference_mode_enabled()

        return run

    assert side_by_side([job("one"), job("two")]) == [("one", 1, True), ("two", 1, True)]
    assert torch.get_num_threads() == 2


def test_a_single_job_runs_where_it_is_called() -> None:
    assert side_by_side([threading.current_thread]) == [threading.current_thread()]
    assert side_by_side([]) == []


def test_what_fails_is_raised_when_all_have_ended(two_threads: None) -> None:
    ended = []

    def slow() -> None:
        time.sleep(0.2)
        ended.append("slow")

    def failing() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        side_by_side([failing, slow])
    assert ended == ["slow"]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("threads", "jobs", "share"), [(1, 4, 1), (2, 4, 1), (4, 4, 1), (2, 3, 2), (4, 2, 4), (3, 4, 3)]
)
def test_threads_that_can_not_be_shared_out_evenly_work_together(threads: int, jobs: int, share: int) -> None:
    before = torch.get_num_threads()
    running, most, lock = 0, 0, threading.Lock()

    def job() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return torch.get_num_threads()

    try:
        torch.set_num_threads(threads)
        assert side_by_side([job] * jobs) == [share] * jobs
        assert most <= threads // share
    finally:
        torch.set_num_threads(before)
