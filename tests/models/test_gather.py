"""Gathering the calls of many threads: full batches, the same ones whatever the threads' timing, and no thread left waiting."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cuecard.errors import RunError
from cuecard.models.engine import Decoding, Failure, GenerateRequest, Generation, ScoreRequest, Scores
from cuecard.models.gather import EngineFailed, Gatherer, RequestFailed

from .helpers import ScriptedEngine

PATIENCE = 30.0  # seconds after which a thread counts as stuck


def request(*tokens: int) -> GenerateRequest:
    return GenerateRequest(tuple(tokens), Decoding(max_tokens=5))


def echo(request: GenerateRequest, sample: int) -> str:
    return " ".join(map(str, request.prompt))


def text(generation: Generation) -> str:
    return generation.samples[0].text


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Run each job in a thread of its own: what it returned, or the exception that it raised."""
    results: list[Any] = [None] * len(jobs)

    def run(place: int) -> None:
        try:
            results[place] = jobs[place]()
        except BaseException as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    return results


def work(
    gatherer: Gatherer, items: Sequence[int], calls: Callable[[int], int], workers: int, seed: int | None
) -> dict[int, list[str]]:
    """Items shared out among workers as they come free; item i makes `calls(i)` calls, one after the other."""
    answers: dict[int, list[str]] = {}
    queue, lock, ready = iter(items), threading.Lock(), threading.Barrier(workers)

    def worker(number: int) -> None:
        nap = random.Random(None if seed is None else seed * 100 + number)
        with gatherer.worker():
            ready.wait(PATIENCE)
            while True:
                with lock:
                    item = next(queue, None)
                if item is None:
                    return
                gatherer.working_on(item)
                answers[item] = []
                for call in range(calls(item)):
                    if seed is not None:
                        time.sleep(nap.choice([0, 0, 0.001, 0.004]))
                    answers[item].append(text(gatherer.generate(request(item, call))))

    for result in together(*(lambda number=number: worker(number) for number in range(workers))):
        if result is not None:
            raise result
    return answers


def prompts(engine: ScriptedEngine) -> list[list[tuple[int, ...]]]:
    return [[asked.prompt for asked in batch] for batch in engine.batches]


# Batches


def test_batches_are_full_and_in_the_order_of_the_items() -> None:
    engine = ScriptedEngine(echo)
    answers = work(Gatherer(engine), range(20), lambda item: 1, workers=8, seed=None)
    assert prompts(engine) == [[(item, 0) for item in range(low, high)] for low, high in ((0, 8), (8, 16), (16, 20))]
    assert answers == {item: [f"{item} 0"] for item in range(20)}


def test_batches_are_the_same_whatever_the_timing() -> None:
    def calls(item: int) -> int:
        return 1 + item * 7 % 4

    seen = []
    for seed in (None, 1, 2, 3, 4, 5):
        engine = ScriptedEngine(echo)
        answers = work(Gatherer(engine), range(30), calls, workers=6, seed=seed)
        assert answers == {item: [f"{item} {call}" for call in range(calls(item))] for item in range(30)}
        assert all(batch == sorted(batch) for batch in prompts(engine))
        seen.append(prompts(engine))
    assert all(batches == seen[0] for batches in seen[1:])
    assert [len(batch) for batch in seen[0][:-4]] == [6] * (len(seen[0]) - 4), "every batch but the last ones is full"


def test_items_that_make_no_calls_hold_nobody_up() -> None:
    engine = ScriptedEngine(echo)
    answers = work(Gatherer(engine), range(25), lambda item: item % 2, workers=4, seed=3)
    assert sum(map(len, answers.values())) == 12
    assert sorted(prompt for batch in prompts(engine) for prompt in batch) == [(i, 0) for i in range(25) if i % 2]


def test_more_workers_than_items() -> None:
    engine = ScriptedEngine(echo)
    work(Gatherer(engine), range(3), lambda item: 2, workers=9, seed=4)
    assert prompts(engine) == [[(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1), (2, 1)]]


def test_a_worker_that_leaves_or_breaks_holds_nobody_up() -> None:
    engine = ScriptedEngine(echo)
    gatherer, ready = Gatherer(engine), threading.Barrier(4)

    def calls(item: int) -> str:
        with gatherer.worker():
            gatherer.working_on(item)
            ready.wait(PATIENCE)
            return text(gatherer.generate(request(item)))

    def leaves() -> None:
        with gatherer.worker():
            ready.wait(PATIENCE)
            time.sleep(0.01)

    def breaks() -> None:
        with gatherer.worker():
            ready.wait(PATIENCE)
            time.sleep(0.02)
            raise ValueError("not the gatherer's affair")

    one, _, two, error = together(lambda: calls(2), leaves, lambda: calls(1), breaks)
    assert (one, two) == ("2", "1")
    assert isinstance(error, ValueError)
    assert prompts(engine) == [[(1,), (2,)]]


def test_a_worker_may_come_back() -> None:
    """In the same thread: what it said of its item is forgotten when it leaves."""
    engine = ScriptedEngine(echo)
    gatherer = Gatherer(engine)
    for item in (4, 5):
        assert gatherer.item is None
        with gatherer.worker():
            gatherer.working_on(item)
            assert gatherer.item == item
            assert text(gatherer.generate(request(item))) == str(item)
    assert gatherer.item is None
    assert text(gatherer.generate(request(6))) == "6"
    assert prompts(engine) == [[(4,)], [(5,)], [(6,)]]


def test_generations_and_scores_of_one_moment_are_two_batches() -> None:
    engine = ScriptedEngine(echo)
    gatherer, ready = Gatherer(engine), threading.Barrier(4)

    def job(item: int) -> Any:
        with gatherer.worker():
            gatherer.working_on(item)
            ready.wait(PATIENCE)
            if item % 2:
                return gatherer.score(ScoreRequest((item,), ((item, 2), (3,))))
            return text(gatherer.generate(request(item)))

    results = together(*(lambda item=item: job(item) for item in range(4)))
    assert results == ["0", Scores(((-1.0, -2.0), (-3.0,))), "2", Scores(((-3.0, -2.0), (-3.0,)))]
    assert prompts(engine) == [[(0,), (2,)], [(1,), (3,)]]


def test_requests_that_are_made_at_once_stand_in_one_batch_each_after_the_other() -> None:
    engine = ScriptedEngine(echo)
    gatherer, ready = Gatherer(engine), threading.Barrier(3)

    def job(item: int) -> Any:
        with gatherer.worker():
            gatherer.working_on(item)
            ready.wait(PATIENCE)
            return gatherer.score_all([ScoreRequest((item, place), ((place + 1,),)) for place in range(item + 1)])

    results = together(*(lambda item=item: job(item) for item in range(3)))
    assert results == [[Scores(((-float(place + 1),),)) for place in range(item + 1)] for item in range(3)]
    assert prompts(engine) == [[(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]]
    assert gatherer.score_all([]) == []


# Threads that did not announce themselves


def test_a_stray_is_answered_while_workers_wait() -> None:
    engine = ScriptedEngine(echo)
    gatherer, ready, answered = Gatherer(engine), threading.Barrier(3), threading.Event()

    def job(item: int) -> str:
        with gatherer.worker():
            gatherer.working_on(item)
            ready.wait(PATIENCE)
            if item == 0:
                assert answered.wait(PATIENCE), "the stray is not answered"
            return text(gatherer.generate(request(item)))

    def stray() -> str:
        while len(gatherer._calls) < 2:
            time.sleep(0.001)
        found = text(gatherer.generate(request(9)))
        answered.set()
        return found

    assert together(*(lambda item=item: job(item) for item in range(3)), stray) == ["0", "1", "2", "9"]
    assert prompts(engine) == [[(9,)], [(0,), (1,), (2,)]]


def test_strays_that_come_while_the_engine_is_busy_share_the_next_batch() -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(request: GenerateRequest, sample: int) -> str:
        if request.prompt == (0,):
            started.set()
            assert go_on.wait(PATIENCE)
        return echo(request, sample)

    engine = ScriptedEngine(slow)
    gatherer = Gatherer(engine)

    def later(number: int) -> str:
        assert started.wait(PATIENCE)
        return text(gatherer.generate(request(number)))

    def release() -> None:
        assert started.wait(PATIENCE)
        while len(gatherer._strays) < 5:
            time.sleep(0.001)
        go_on.set()

    results = together(
        lambda: text(gatherer.generate(request(0))), *(lambda n=n: later(n) for n in range(1, 6)), release
    )
    assert results == ["0", "1", "2", "3", "4", "5", None]
    assert prompts(engine)[0] == [(0,)]
    assert len(engine.batches) == 2
    assert sorted(prompts(engine)[1]) == [(1,), (2,), (3,), (4,), (5,)]


def test_a_worker_may_wait_for_threads_of_its_own() -> None:
    """As `dspy.Parallel` inside a program does: its threads are strays, and the worker itself does not call."""
    engine = ScriptedEngine(echo)
    gatherer, ready = Gatherer(engine), threading.Barrier(2)

    def spreads_out() -> list[Any]:
        with gatherer.worker():
            gatherer.working_on(0)
            ready.wait(PATIENCE)
            return together(*(lambda n=n: text(gatherer.generate(request(n))) for n in (7, 8)))

    def calls() -> str:
        with gatherer.worker():
            gatherer.working_on(1)
            ready.wait(PATIENCE)
            return text(gatherer.generate(request(1)))

    assert together(spreads_out, calls) == [["7", "8"], "1"]
    assert prompts(engine)[-1] == [(1,)]


def test_a_worker_without_an_item_is_answered_at_once() -> None:
    engine = ScriptedEngine(echo)
    gatherer = Gatherer(engine)
    with gatherer.worker():
        (result,) = together(lambda: text(gatherer.generate(request(3))))
        assert result == "3"
        assert text(gatherer.generate(request(4))) == "4"


# Failures


def test_a_failure_is_raised_to_its_own_caller_only() -> None:
    def script(request: GenerateRequest, sample: int) -> str | Failure:
        return Failure("the prompt is too long") if request.prompt[0] == 2 else echo(request, sample)

    engine = ScriptedEngine(script)
    gatherer, ready = Gatherer(engine), threading.Barrier(4)

    def job(item: int) -> str:
        with gatherer.worker():
            gatherer.working_on(item)
            ready.wait(PATIENCE)
            return text(gatherer.generate(request(item)))

    results = together(*(lambda item=item: job(item) for item in range(4)))
    assert [results[i] for i in (0, 1, 3)] == ["0", "1", "3"]
    assert isinstance(results[2], RequestFailed)
    assert "the prompt is too long" in str(results[2])
    assert len(engine.batches) == 1


def in_one_batch(gatherer: Gatherer, count: int) -> list[Any]:
    ready = threading.Barrier(count)

    def job(item: int) -> str:
        with gatherer.worker():
            gatherer.working_on(item)
            ready.wait(PATIENCE)
            return text(gatherer.generate(request(item)))

    return together(*(lambda item=item: job(item) for item in range(count)))


def test_an_engine_that_breaks_is_told_to_every_caller_and_can_be_asked_again() -> None:
    engine = ScriptedEngine(echo, trouble=RuntimeError("CUDA error: out of memory"))
    gatherer = Gatherer(engine)
    results = in_one_batch(gatherer, 5)
    for error in results:
        assert isinstance(error, EngineFailed)
        assert "RuntimeError: CUDA error: out of memory" in str(error)
        assert isinstance(error.__cause__, RuntimeError)
    assert in_one_batch(gatherer, 3) == ["0", "1", "2"]
    assert text(gatherer.generate(request(8))) == "8"


def test_an_error_that_is_told_already_is_told_as_it_is() -> None:
    """A full disk, say: the journal's own words."""
    trouble = RunError("can't write the record of model calls: no space left")
    results = in_one_batch(Gatherer(ScriptedEngine(echo, trouble=trouble)), 3)
    assert results == [trouble] * 3


def test_an_interrupt_in_the_engine_reaches_one_thread_and_frees_the_others() -> None:
    gatherer = Gatherer(ScriptedEngine(echo, trouble=KeyboardInterrupt()))
    results = in_one_batch(gatherer, 4)
    assert sorted(type(error).__name__ for error in results) == ["EngineFailed"] * 3 + ["KeyboardInterrupt"]
    assert in_one_batch(gatherer, 2) == ["0", "1"]


def test_a_caller_that_is_interrupted_while_it_waits_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(echo)
    gatherer = Gatherer(engine)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gatherer._condition, "wait", interrupted)
        patch.setattr(gatherer, "_announced", 2)
        gatherer.working_on(1)
        gatherer.generate(request(1))
    gatherer._local.order = None
    assert in_one_batch(gatherer, 2) == ["0", "1"]
    assert prompts(engine) == [[(0,), (1,)]]


def test_an_engine_that_loses_an_answer_is_broken() -> None:
    class Forgetful(ScriptedEngine):
        def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
            return super().generate(requests)[:-1]

    results = in_one_batch(Gatherer(Forgetful(echo)), 3)
    assert isinstance(results[-1], EngineFailed)
    assert all(result == str(i) or isinstance(result, EngineFailed) for i, result in enumerate(results))


def test_scores_that_break_leave_the_generations_of_their_batch_alone() -> None:
    class NoScores(ScriptedEngine):
        def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
            raise RuntimeError("no scores here")

    gatherer, ready = Gatherer(NoScores(echo)), threading.Barrier(2)

    def job(item: int) -> Any:
        with gatherer.worker():
            gatherer.working_on(item)
            ready.wait(PATIENCE)
            return text(gatherer.generate(request(item))) if item else gatherer.score(ScoreRequest((1,), ((1,),)))

    broken, fine = together(lambda: job(0), lambda: job(1))
    assert isinstance(broken, EngineFailed)
    assert fine == "1"


def test_a_copy_is_the_gatherer_itself() -> None:
    gatherer = Gatherer(ScriptedEngine())
    assert copy.deepcopy(gatherer) is gatherer
    assert copy.deepcopy({"inside": [gatherer]})["inside"][0] is gatherer
