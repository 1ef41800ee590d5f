"""What a server can do wrong, one thing at a time: each costs the request that it happened to, or ends the run."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from cuecard.errors import InputError, RunError
from cuecard.models.engine import Decoding, Failure, GenerateRequest, Generation, ScoreRequest, Scores
from cuecard.models.server import ServerEngine, server_target
from cuecard.models.server.client import Client, Refused, Retry

from ..helpers import engine_over, random_model
from .fake import FakeVLLM, Fault, drop, hang, junk, misshapen, status

GREEDY = Decoding(max_tokens=3)
REQUESTS = [GenerateRequest((5, 6, token), GREEDY) for token in range(10, 14)]


@pytest.fixture(scope="module")
def server() -> FakeVLLM:
    local = engine_over(random_model("llama"))
    return FakeVLLM(local, context=local.context_window)


@pytest.fixture(scope="module")
def url(server: FakeVLLM) -> Iterator[str]:
    with server.running() as url:
        yield url


Opened = Callable[..., tuple[ServerEngine, list[float]]]


@pytest.fixture
def opened(server: FakeVLLM, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Opens the server anew, with faults to come; gives the engine and the waits between tries."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.faults.clear()
    server.seen.clear()

    def open_(*faults: Fault, **options: Any) -> tuple[ServerEngine, list[float]]:
        waits: list[float] = []
        engine = server_target(url, sleep=waits.append, **options).engine
        server.faults.extend(faults)
        return engine, waits

    yield open_
    server.faults.clear()
    server.key, server.health = None, 200
    server.refuse = lambda body: False


def generations(engine: ServerEngine, requests: list[GenerateRequest] = REQUESTS) -> list[Generation]:
    results = engine.generate(requests)
    assert all(isinstance(result, Generation) for result in results), results
    return results


# What passes


@pytest.mark.parametrize(
    "faults",
    [
        [status(500), status(500)],
        [status(503), status(502), status(429)],
        [drop],
        [drop, drop, drop],
        [junk],
        [junk, drop, status(500), status(408)],
    ],
    ids=["500", "5xx-429", "drop", "drops", "junk", "all"],
)
def test_what_passes_is_tried_again(opened: Opened, faults: list[Fault]) -> None:
    engine, _ = opened()
    expected = generations(engine)
    engine, waits = opened(*faults)
    assert generations(engine) == expected
    assert len(waits) == len(faults)


def test_each_wait_may_be_twice_as_long_and_is_random(opened: Opened) -> None:
    engine, waits = opened(*[status(500)] * 4)
    generations(engine, REQUESTS[:1])
    assert all(0 <= wait <= 2**tried for tried, wait in enumerate(waits))
    assert len(set(waits)) == 4
    again, repeated = opened(*[status(500)] * 4)
    generations(again, REQUESTS[:1])
    assert repeated == waits, "the jitter is drawn with a seed"
    other, different = opened(*[status(500)] * 4, seed=1)
    generations(other, REQUESTS[:1])
    assert different != waits


@pytest.mark.parametrize(
    ("value", "wait"),
    [("7", 7.0), ("0", 0.0), ("Wed, 21 Oct 2026 07:28:09 GMT", 9.0), ("Wed, 21 Oct 2026 07:00:00 GMT", 0.0)],
)
def test_a_server_that_says_when_is_asked_then(value: str, wait: float) -> None:
    answers = iter([httpx.Response(429, headers={"Retry-After": value}), httpx.Response(200, json={"fine": 1})])
    waits: list[float] = []
    client = Client(
        "http://server",
        sleep=waits.append,
        now=lambda: datetime(2026, 10, 21, 7, 28, tzinfo=UTC),
        transport=httpx.MockTransport(lambda request: next(answers)),
    )
    assert client.post("/x", {}) == {"fine": 1}
    assert waits == [wait]


def test_a_wait_that_cant_be_read_is_our_own() -> None:
    answers = iter([httpx.Response(429, headers={"Retry-After": "soon"}), httpx.Response(200, json={})])
    waits: list[float] = []
    client = Client("http://s", sleep=waits.append, transport=httpx.MockTransport(lambda request: next(answers)))
    assert client.post("/x", {}) == {}
    assert len(waits) == 1


def test_retry_after_is_honoured_by_the_engine(opened: Opened) -> None:
    engine, waits = opened(status(429, "slow down", Retry_After="3"))
    generations(engine)
    assert waits == [3.0]


# What costs one request


def failed(results: list[Any], place: int) -> str:
    assert [isinstance(result, Failure) for result in results] == [i == place for i in range(len(results))], results
    return results[place].error


def test_a_refused_request_fails_alone_in_the_servers_words(server: FakeVLLM, opened: Opened) -> None:
    engine, waits = opened()
    server.refuse = lambda body: body["prompt"] == [5, 6, 12]
    assert "HTTP 400: I would rather not" in failed(engine.generate(REQUESTS), 2)
    assert waits == []


def test_a_refused_score_fails_alone(server: FakeVLLM, opened: Opened) -> None:
    engine, _ = opened()
    server.refuse = lambda body: body["prompt"][:3] == [5, 6, 12]
    requests = [ScoreRequest((5, 6, token), ((7, 8), (9,))) for token in range(10, 14)]
    results = engine.score(requests)
    assert [isinstance(result, Scores) for result in results] == [True, True, False, True]
    assert "I would rather not" in results[2].error


def test_the_samples_of_a_request_fail_together(server: FakeVLLM, opened: Opened) -> None:
    engine, _ = opened()
    warm = Decoding(max_tokens=3, temperature=1.0, n=3)
    seeds: list[int] = []
    server.refuse = lambda body: seeds.append(body["seed"]) or len(seeds) == 2  # type: ignore[func-returns-value]
    (result,) = engine.generate([GenerateRequest((5,), warm)])
    assert isinstance(result, Failure)
    assert len(set(seeds)) == 3


def test_what_stays_wrong_fails_after_so_many_tries(opened: Opened) -> None:
    engine, waits = opened(*[status(500, "no luck")] * 9, tries=3)
    (result,) = engine.generate(REQUESTS[:1])
    assert "HTTP 500: no luck (3 times tried)" in result.error
    assert len(waits) == 2
    assert isinstance(engine.generate(REQUESTS[:1])[0], Failure), "six faults are left"


def test_a_wait_that_is_too_long_is_not_waited(opened: Opened) -> None:
    engine, waits = opened(status(429, "come back tomorrow", Retry_After="86400"))
    (result,) = engine.generate(REQUESTS[:1])
    assert "come back tomorrow (once tried; it asks for a wait of 86400 s)" in result.error
    assert waits == []


def test_an_answer_that_stays_no_json_is_a_failure_that_shows_it(opened: Opened) -> None:
    engine, _ = opened(*[junk] * 2, tries=2)
    (result,) = engine.generate(REQUESTS[:1])
    assert "not a JSON object: '<html>hello</html>'" in result.error


def test_an_answer_of_another_form_is_a_failure(opened: Opened) -> None:
    engine, _ = opened(misshapen)
    assert "not of its dialect's form" in engine.generate(REQUESTS[:1])[0].error


def test_a_slow_answer_is_a_failure_that_says_how_long(opened: Opened) -> None:
    released = threading.Event()
    engine, waits = opened(*[hang(released)] * 2, timeout=0.2, tries=2)
    try:
        (result,) = engine.generate(REQUESTS[:1])
    finally:
        released.set()
    assert "no answer within 0.2 s (2 times tried)" in result.error
    assert len(waits) == 1


# What ends the run


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RunError) as caught:
        server_target(url)
    assert f"no model server answers at {url}" in str(caught.value)
    assert "vllm serve" in str(caught.value)


def test_a_server_that_dies_in_a_batch() -> None:
    local = engine_over(random_model("llama"))
    server = FakeVLLM(local, context=local.context_window)
    waits: list[float] = []
    with server.running() as url:
        engine = server_target(url, sleep=waits.append, concurrency=2).engine
        generations(engine)
    engine.close()  # connections that are still open would be answered
    engine = reopened(url, engine, waits)
    with pytest.raises(RunError, match=r"no model server answers at .* \(5 times tried\)"):
        engine.generate(REQUESTS)
    assert waits


def reopened(url: str, engine: ServerEngine, waits: list[float]) -> ServerEngine:
    """The engine with new connections, as after a pause."""
    dialect = engine._dialect
    dialect.client = Client(url, sleep=waits.append)
    return engine


def test_a_server_whose_engine_is_dead(server: FakeVLLM, opened: Opened) -> None:
    """vLLM goes on answering 500 for a while, and says 503 when it is asked how it is."""
    engine, _ = opened(*[status(500, "EngineCore encountered an issue")] * 30)
    server.health = 503
    with pytest.raises(RunError) as caught:
        engine.generate(REQUESTS)
    assert "EngineCore encountered an issue; GET /health says HTTP 503" in str(caught.value)


def test_an_engine_can_be_used_after_the_server_came_back(server: FakeVLLM, opened: Opened) -> None:
    engine, _ = opened(*[status(500)] * 20, tries=2)
    server.health = 503
    with pytest.raises(RunError):
        engine.generate(REQUESTS)
    server.health, server.faults[:] = 200, []
    generations(engine)


def test_a_server_that_still_loads_its_model() -> None:
    loading = httpx.Response(503, json={"error": {"message": "Loading model", "code": 503}})
    with pytest.raises(RunError, match="is not ready: GET /v1/models says HTTP 503: Loading model"):
        server_target("http://server", transport=httpx.MockTransport(lambda request: loading))


# Keys


def test_a_server_that_wants_a_key_says_so(server: FakeVLLM, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sesame"
    with pytest.raises(InputError) as caught:
        opened()
    assert "asks for an API key (HTTP 401: Incorrect API key provided)" in str(caught.value)
    assert "api_key_env" in str(caught.value)
    monkeypatch.setenv("MY_KEY", "wrong-secret")
    with pytest.raises(InputError) as caught:
        opened(api_key_env="MY_KEY")
    assert "does not take the API key in $MY_KEY" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "sesame")
    engine, _ = opened(api_key_env="MY_KEY")
    generations(engine)


def test_a_key_that_is_taken_away_ends_the_run(server: FakeVLLM, opened: Opened) -> None:
    engine, _ = opened()
    server.key = "new"
    with pytest.raises(InputError, match="HTTP 401"):
        engine.generate(REQUESTS)


def test_the_key_is_in_no_text(server: FakeVLLM, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.key = "sk-secret"
    engine, _ = opened()
    generations(engine)
    shown = [repr(engine._dialect.client._key), repr(vars(engine)), engine.identity]
    assert not any("sk-secret" in text for text in shown)


# How many at once


def test_no_more_requests_at_once_than_allowed(server: FakeVLLM, opened: Opened) -> None:
    engine, _ = opened(concurrency=3)
    server.most_at_once = 0
    generations(engine, [GenerateRequest((5, token), GREEDY) for token in range(3, 30)])
    assert 1 <= server.most_at_once <= 3


def test_requests_are_sent_side_by_side(server: FakeVLLM, opened: Opened) -> None:
    """Each of the first requests waits until all of them are there."""
    together = threading.Barrier(4)

    def wait(handler: Any) -> None:
        together.wait(10)
        handler.reply(500, {})

    engine, _ = opened(*[wait] * 4, concurrency=4)
    generations(engine)


def test_retries_have_a_stated_maximum() -> None:
    assert Retry() == Retry(tries=5, base=0.5, longest=60.0)


def test_a_refusal_without_json_is_told_by_its_text() -> None:
    answer = httpx.Response(404, text="<h1>nothing\nhere</h1>")
    client = Client("http://server", transport=httpx.MockTransport(lambda request: answer))
    assert client.post("/x", {}) == Refused(404, "HTTP 404: <h1>nothing here</h1>")
