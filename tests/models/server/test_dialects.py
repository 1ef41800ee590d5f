"""Each server's words: what is sent for each setting, what is refused, and how answers are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from cuecard.models.engine import Decoding, Failure, GenerateRequest, Generation, ScoreRequest, Scores
from cuecard.models.local import LocalEngine
from cuecard.models.server import ServerEngine, server_target
from cuecard.models.server.dialect import cut, ordered
from cuecard.seeds import derive_seed
from tiny import build_tiny_tokenizer

from ..helpers import engine_over, plain_logprobs, random_model
from .fake import FakeLlamaCpp, FakeVLLM, is_unknown

EVERYTHING = Decoding(max_tokens=9, temperature=0.7, top_p=0.9, top_k=40, min_p=0.1, stop=("a", "longer"), seed=3)
SENT = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1}
SEED = derive_seed(3, 0)


class Scripted:
    """A server that answers from a table of `METHOD /path` to JSON, or to a function of the body."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.table = table
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self.table.get(f"{request.method} {request.url.path}")
        if answer is None:
            return httpx.Response(404, json={"detail": "Not Found"})
        body = json.loads(request.content) if request.content else {}
        if request.method == "POST":
            self.bodies.append(body)
        return httpx.Response(200, json=answer(body) if callable(answer) else answer)

    def open(self, **options: Any) -> ServerEngine:
        engine = server_target("http://server", transport=httpx.MockTransport(self), **options).engine
        self.bodies.clear()
        return engine


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    return engine_over(random_model("llama"))


def error(engine: ServerEngine, request: GenerateRequest | ScoreRequest) -> str:
    (result,) = engine.generate([request]) if isinstance(request, GenerateRequest) else engine.score([request])
    assert isinstance(result, Failure), result
    return result.error


def sample(engine: ServerEngine, request: GenerateRequest) -> Any:
    (result,) = engine.generate([request])
    assert isinstance(result, Generation), result
    return result.samples[0]


# Stop strings


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [("abcd", ("bcd", "ab"), ""), ("abcd", ("d", "bc"), "a"), ("abc", (), "abc"), ("abc", ("x",), "abc")],
)
def test_a_text_is_cut_at_the_first_stop_in_it(text: str, stops: tuple[str, ...], left: str) -> None:
    assert cut(text, stops) == left


def test_long_stops_go_first() -> None:
    assert ordered(("a", "abc", "ab")) == ("abc", "ab", "a")


# vLLM


@pytest.fixture
def vllm(local: LocalEngine) -> Iterator[Callable[..., tuple[ServerEngine, FakeVLLM]]]:
    running = []

    def open_(options: dict[str, Any] | None = None, **about: Any) -> tuple[ServerEngine, FakeVLLM]:
        fake = FakeVLLM(local, context=local.context_window, **about)
        context = fake.running()
        running.append(context)
        engine = server_target(context.__enter__(), **(options or {})).engine
        fake.seen.clear()
        return engine, fake

    yield open_
    for context in running:
        context.__exit__(None, None, None)


def test_vllm_is_sent_every_setting(vllm: Any) -> None:
    engine, fake = vllm()
    penalties = {"frequency_penalty": 0.5, "presence_penalty": 0.25, "repetition_penalty": 1.5}
    engine.generate([GenerateRequest((5, 6), EVERYTHING.model_copy(update=penalties))])
    (body,) = fake.seen
    assert body.items() >= {**SENT, **penalties, "prompt": [5, 6], "max_tokens": 9, "seed": SEED, "n": 1}.items()
    assert body["stop"] == ["longer", "a"]
    engine.generate([GenerateRequest((5, 6), Decoding(max_tokens=1))])
    neutral = {"temperature": 0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "frequency_penalty": 0.0,
               "presence_penalty": 0.0, "repetition_penalty": 1.0}  # fmt: skip
    assert fake.seen[-1].items() >= neutral.items(), "a server has defaults of its own"


def test_every_sample_has_its_own_seed_and_greedy_ones_are_one(vllm: Any) -> None:
    engine, fake = vllm()
    engine.generate([GenerateRequest((5,), Decoding(max_tokens=1, temperature=1.0, n=3, seed=8))])
    assert {body["seed"] for body in fake.seen} == {derive_seed(8, number) for number in range(3)}
    fake.seen.clear()
    (result,) = engine.generate([GenerateRequest((5,), Decoding(max_tokens=1, n=3))])
    assert len(result.samples) == 3
    assert len(fake.seen) == 1


def test_an_old_vllm_tells_ids_in_its_tokens_texts(vllm: Any) -> None:
    request = GenerateRequest((5, 6, 7), Decoding(max_tokens=5))
    assert sample(vllm(tells_ids=False)[0], request) == sample(vllm()[0], request)


def test_masked_logprobs_are_not_taken_for_the_models_own(vllm: Any) -> None:
    engine, _ = vllm()
    masked = sample(engine, GenerateRequest((5, 6), Decoding(max_tokens=9), 'start: "yes" | "no"\n'))
    assert masked.text in ("yes", "no")
    assert len(masked.logprobs) == len(masked.tokens)
    assert all(map(is_unknown, masked.logprobs))


@pytest.mark.parametrize(
    ("version", "field"),
    [("0.32.0", "structured_outputs"), ("0.12.1", "structured_outputs"), ("dev", "structured_outputs")],
)
def test_a_grammar_goes_to_llguidance_as_it_is(vllm: Any, version: str, field: str) -> None:
    engine, fake = vllm(version=version)
    engine.generate([GenerateRequest((5, 6), Decoding(max_tokens=9), 'start: "yes"\n')])
    assert fake.seen[-1][field] == {"grammar": '%llguidance {}\nstart: "yes"\n'}


def test_a_vllm_that_could_die_of_it_is_not_asked_for_llguidance(vllm: Any) -> None:
    engine, fake = vllm(version="0.11.2")
    engine.generate([GenerateRequest((5, 6), Decoding(max_tokens=9), 'start: "yes"\n')])
    assert fake.seen[-1]["structured_outputs"] == {"grammar": 'root ::= "yes"\n'}
    assert not any("%llguidance" in json.dumps(body) for body in fake.seen)
    engine, fake = vllm(version="0.10.2")
    engine.generate([GenerateRequest((5, 6), Decoding(max_tokens=9), 'start: "yes"\n')])
    assert fake.seen[0]["guided_grammar"].startswith("root ::=")


def test_another_grammar_backend_gets_gbnf(vllm: Any) -> None:
    engine, fake = vllm(guidance=False)
    lark = 'start: "yes" | "no"\n'
    assert sample(engine, GenerateRequest((5, 6), Decoding(max_tokens=9), lark)).text in ("yes", "no")
    assert fake.seen[-1]["structured_outputs"] == {"grammar": 'root ::= "yes" | "no"\n'}
    before = len(fake.seen)
    said = error(engine, GenerateRequest((5, 6), Decoding(max_tokens=9), 'start: "a" /(?i:b)/\n'))
    assert "the vLLM server at http://127.0.0.1" in said
    assert "llguidance: HTTP 400: Invalid grammar specification." in said
    assert "gbnf: grammar: GBNF has no words for" in said
    assert len(fake.seen) == before, "what can't be sent is not asked for"


def test_grammars_can_be_forbidden(vllm: Any) -> None:
    engine, fake = vllm(options={"grammars": "none"})
    assert "no guided decoding" in error(engine, GenerateRequest((5,), Decoding(max_tokens=9), 'start: "yes"\n'))
    assert fake.seen == []


def test_a_broken_grammar_never_leaves_the_house(vllm: Any) -> None:
    """Servers are known to drop one and answer without a mask."""
    engine, fake = vllm()
    assert "unknown name" in error(engine, GenerateRequest((5,), Decoding(), "start: nothing\n"))
    assert fake.seen == []


@pytest.mark.parametrize("raw", [True, False])
def test_scores_are_right_whether_or_not_a_token_can_be_forced(vllm: Any, raw: bool) -> None:
    engine, fake = vllm(forced_is_raw=raw)
    model = random_model("llama")
    prompt, continuations = (5, 6, 7), ((8,), (9, 10), (9, 11, 12))
    (scores,) = engine.score([ScoreRequest(prompt, continuations)])
    for found, continuation in zip(scores.logprobs, continuations, strict=True):
        assert found == pytest.approx(plain_logprobs(model, prompt, continuation), abs=1e-4)
    forced = [bool(body.get("allowed_token_ids")) for body in fake.seen[2:]]
    assert forced == [raw] * 3
    if raw:
        assert "prompt_logprobs" not in fake.seen[2], (
            "one token alone needs nothing of the prompt, which is cached then"
        )


# SGLang

SGLANG = {
    "GET /v1/models": {"data": [{"id": "m", "owned_by": "sglang", "max_model_len": 100}]},
    "GET /server_info": {"version": "0.5.23", "max_req_input_len": 94, "enable_deterministic_inference": True},
    "GET /model_info": {"model_path": "org/m"},
}


def sglang_answer(body: dict[str, Any]) -> dict[str, Any]:
    tokens = body["input_ids"]
    meta: dict[str, Any] = {"prompt_tokens": len(tokens), "cached_tokens": 1}
    if body["sampling_params"]["max_new_tokens"] == 0:
        start = body["logprob_start_len"]
        meta["input_token_logprobs"] = [
            [None, tokens[start], None],
            *([-0.1 * t, t, None] for t in tokens[start + 1 :]),
        ]
        return {"text": "", "meta_info": meta | {"finish_reason": {"type": "length", "length": 0}}}
    meta["output_token_logprobs"] = [[-1.0, 40, None], [-2.0, 41, None], [-3.0, 2, None]]
    return {"text": "hello", "meta_info": meta | {"finish_reason": {"type": "stop", "matched": 2}}}


def sglang(folder: str, answer: Any = sglang_answer, **changes: Any) -> tuple[ServerEngine, Scripted]:
    info = {**SGLANG["GET /server_info"], **changes}
    server = Scripted({**SGLANG, "GET /server_info": info, "POST /generate": answer})
    return server.open(tokenizer=folder), server


def test_sglang_speaks_ids_and_drops_the_end(tokenizer_folder: str) -> None:
    engine, server = sglang(tokenizer_folder)
    found = sample(engine, GenerateRequest((5, 6), EVERYTHING))
    assert (found.text, found.tokens, found.finish) == ("hello", (40, 41), "stop")
    assert all(map(is_unknown, found.logprobs)), "they are those at temperature 0.7"
    (body,) = server.bodies
    assert body["input_ids"] == [5, 6]
    assert body["sampling_params"].items() >= {**SENT, "max_new_tokens": 9, "sampling_seed": SEED}.items()
    assert sample(engine, GenerateRequest((5, 6), Decoding(temperature=1.0))).logprobs == (-1.0, -2.0)
    assert engine.context_window == 93
    assert engine.ledger.cached_tokens == 2


def test_sglang_keeps_the_tokens_of_a_stop_string(tokenizer_folder: str) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        told = sglang_answer(body)
        told["meta_info"]["finish_reason"] = {"type": "stop", "matched": "longer"}
        return {**told, "text": "so much longer"}

    found = sample(sglang(tokenizer_folder, answer)[0], GenerateRequest((5,), Decoding(stop=("longer", "much"))))
    assert (found.text, found.tokens) == ("so ", (40, 41, 2))


def test_sglang_scores_from_the_prompts_end(tokenizer_folder: str) -> None:
    engine, server = sglang(tokenizer_folder)
    (scores,) = engine.score([ScoreRequest((5, 6, 7), ((8,), (9, 10)))])
    assert isinstance(scores, Scores)
    assert scores.logprobs == (pytest.approx((-0.8,)), pytest.approx((-0.9, -1.0)))
    assert [body["logprob_start_len"] for body in server.bodies] == [2, 2]


def test_sglang_that_scores_other_tokens_is_not_believed(tokenizer_folder: str) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        told = sglang_answer(body)
        told["meta_info"]["input_token_logprobs"][-1][1] += 1
        return told

    assert "other tokens" in error(sglang(tokenizer_folder, answer)[0], ScoreRequest((5,), ((8,),)))


def test_sglang_refuses_what_it_defines_otherwise(tokenizer_folder: str) -> None:
    engine, server = sglang(tokenizer_folder)
    assert "repetition_penalty=1.5" in error(engine, GenerateRequest((5,), Decoding(repetition_penalty=1.5)))
    assert server.bodies == []
    sample(engine, GenerateRequest((5,), Decoding(frequency_penalty=0.5, presence_penalty=0.5)))


def test_sglang_without_seeds_does_not_sample_unasked(tokenizer_folder: str) -> None:
    engine, _ = sglang(tokenizer_folder, enable_deterministic_inference=False)
    said = error(engine, GenerateRequest((5,), Decoding(temperature=0.5)))
    assert "--enable-deterministic-inference" in said
    sample(engine, GenerateRequest((5,), Decoding()))
    info = {**SGLANG["GET /server_info"], "enable_deterministic_inference": False}
    server = Scripted({**SGLANG, "GET /server_info": info, "POST /generate": sglang_answer})
    sample(server.open(tokenizer=tokenizer_folder, unseeded=True), GenerateRequest((5,), Decoding(temperature=0.5)))
    assert "sampling_seed" not in server.bodies[0]["sampling_params"]


def test_a_text_that_was_broken_off_is_a_failure(tokenizer_folder: str) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        told = sglang_answer(body)
        told["meta_info"]["finish_reason"] = {"type": "abort", "message": "out of memory"}
        return told

    assert "'abort': out of memory" in error(sglang(tokenizer_folder, answer)[0], GenerateRequest((5,)))


# llama.cpp


@pytest.fixture
def llamacpp(local: LocalEngine) -> Iterator[Callable[..., tuple[ServerEngine, FakeLlamaCpp]]]:
    running = []

    def open_(**about: Any) -> tuple[ServerEngine, FakeLlamaCpp]:
        fake = FakeLlamaCpp(local, context=local.context_window, **about)
        context = fake.running()
        running.append(context)
        engine = server_target(context.__enter__()).engine
        fake.seen.clear()
        return engine, fake

    yield open_
    for context in running:
        context.__exit__(None, None, None)


def test_llamacpp_is_sent_every_setting_and_our_order(llamacpp: Any) -> None:
    engine, fake = llamacpp()
    engine.generate([GenerateRequest((5, 6), EVERYTHING.model_copy(update={"repetition_penalty": 1.5}))])
    (body,) = fake.seen
    assert body["samplers"] == ["penalties", "temperature", "top_k", "top_p", "min_p"]
    assert body.items() >= {**SENT, "prompt": [5, 6], "n_predict": 9, "repeat_penalty": 1.5}.items()
    assert body["repeat_last_n"] == engine.context_window
    assert 0 <= body["seed"] < 2**32 - 1


@pytest.mark.parametrize("setting", ["frequency_penalty", "presence_penalty"])
def test_llamacpp_refuses_penalties_that_count_the_prompt(llamacpp: Any, setting: str) -> None:
    engine, fake = llamacpp()
    said = error(engine, GenerateRequest((5,), Decoding.model_validate({setting: 0.5})))
    assert f"can't honour {setting}=0.5: its penalty counts the prompt's tokens too" in said
    assert fake.seen == []


def test_llamacpp_scores_tokens_that_are_no_whole_characters(llamacpp: Any) -> None:
    engine, fake = llamacpp(whole=False)
    model = random_model("llama")
    tokens = [token for token in range(3, 300) if "\N{REPLACEMENT CHARACTER}" in fake.piece(token)][:2]
    assert len(tokens) == 2
    continuations = (tuple(tokens), (tokens[0], 40), (41,))
    (scores,) = engine.score([ScoreRequest((5, 6), continuations)])
    for found, continuation in zip(scores.logprobs, continuations, strict=True):
        assert found == pytest.approx(plain_logprobs(model, (5, 6), continuation), abs=1e-4)
    assert len(fake.seen) == 2 * 2 + 2, "shared tokens are asked for once, broken ones twice"


def test_llamacpp_leaves_open_what_it_does_not_tell(llamacpp: Any, local: LocalEngine) -> None:
    engine, fake = llamacpp(whole=False)
    told: list[bool] = []
    for first in range(5, 15):
        request = GenerateRequest((first, 6), Decoding(max_tokens=12))
        found, (whole,) = sample(engine, request), local.generate([request])
        assert found.tokens == whole.samples[0].tokens
        told += ["\N{REPLACEMENT CHARACTER}" not in fake.piece(token) for token in found.tokens]
        assert [not is_unknown(logprob) for logprob in found.logprobs] == told[-len(found.tokens) :]
    assert set(told) == {True, False}


def test_llamacpp_is_asked_for_no_more_at_once_than_it_has_threads(llamacpp: Any) -> None:
    engine, fake = llamacpp()
    engine.generate([GenerateRequest((5, token), Decoding(max_tokens=3)) for token in range(3, 30)])
    assert 1 <= fake.most_at_once <= 5, "three slots and two that wait"


def test_a_llamacpp_without_llguidance_gets_gbnf(llamacpp: Any) -> None:
    engine, fake = llamacpp(guidance=False)
    request = GenerateRequest((5,), Decoding(max_tokens=9), 'start: "yes" | "no"\n')
    assert sample(engine, request).text in ("yes", "no")
    assert fake.seen[-1]["grammar"] == 'root ::= "yes" | "no"\n'


# Ollama


def ollama(folder: str, **changes: Any) -> tuple[ServerEngine, Scripted]:
    answer = {"response": "hello there", "done": True, "done_reason": "stop", "prompt_eval_count": 2, **changes}
    info = {"general.architecture": "llama", "llama.context_length": 40960, "general.parameter_count": 135,
            "tokenizer.ggml.add_bos_token": False}  # fmt: skip
    server = Scripted(
        {
            "GET /v1/models": {"data": [{"id": "smol:latest", "owned_by": "library"}]},
            "GET /api/version": {"version": "0.40.12"},
            "GET /api/tags": {"models": [{"name": "smol:latest", "digest": "abc"}]},
            "POST /api/show": {"model_info": info, "details": {"quantization_level": "Q4_1"},
                               "parameters": 'stop    "<|im_end|>"\nnum_ctx    4096'},
            "POST /api/generate": answer,
        }
    )  # fmt: skip
    return server.open(tokenizer=folder), server


def test_ollama_is_sent_text_that_is_read_as_the_prompt(tokenizer_folder: str) -> None:
    engine, server = ollama(tokenizer_folder, prompt_eval_count=3)
    prompt = (1, *engine.tokenizer.encode("A customer"))
    found = sample(engine, GenerateRequest(prompt, EVERYTHING))
    assert (found.text, found.tokens) == ("hello there", engine.tokenizer.encode("hello there"))
    assert all(map(is_unknown, found.logprobs))
    (body,) = server.bodies
    assert (body["prompt"], body["raw"], body["stream"]) == ("<|im_start|>A customer", True, False)
    assert body["options"].items() >= {**SENT, "num_predict": 9, "num_ctx": 4096, "repeat_penalty": 1.0}.items()
    assert engine.context_window == 4096


def test_ollama_refuses_what_it_would_do_otherwise(tokenizer_folder: str) -> None:
    engine, server = ollama(tokenizer_folder)
    for setting in ("frequency_penalty", "presence_penalty", "repetition_penalty"):
        said = error(engine, GenerateRequest((5,), Decoding.model_validate({setting: 1.5})))
        assert f"can't honour {setting}=1.5" in said
    letters = tuple(token for letter in "customer" for token in engine.tokenizer.encode(letter))
    assert "no text is read as just the tokens" in error(engine, GenerateRequest(letters))
    assert "can't score" in error(engine, ScoreRequest((5,), ((6,),)))
    assert not engine.can_score
    assert "did not follow it" in error(engine, GenerateRequest((5,), Decoding(), 'start: %json {"type": "object"}\n'))
    assert [body["format"] for body in server.bodies] == [{"const": "4Qz"}], "only a grammar was tried"


def test_ollama_follows_a_schema(tokenizer_folder: str) -> None:
    engine, server = ollama(tokenizer_folder)
    plain = server.table["POST /api/generate"]
    server.table["POST /api/generate"] = lambda body: {**plain, "response": '"4Qz"'}
    sample(engine, GenerateRequest((5, 6), Decoding(), 'start: %json {"type": "object"}\n'))
    assert server.bodies[-1]["format"] == {"type": "object"}
    assert "more than one JSON schema" in error(engine, GenerateRequest((5,), Decoding(), 'start: "a"\n'))


def test_ollama_that_reads_more_tokens_is_not_believed(tokenizer_folder: str) -> None:
    engine, _ = ollama(tokenizer_folder, prompt_eval_count=7)
    assert "read 7 tokens where the prompt has 1" in error(engine, GenerateRequest((5,)))


# Plain OpenAI


def openai(folder: str, **options: Any) -> tuple[ServerEngine, Scripted]:
    answer = {"choices": [{"text": "hello", "finish_reason": "length"}], "usage": {"prompt_tokens": 1}}
    cards = {"data": [{"id": "gpt", "owned_by": "me", "created": 5}]}
    server = Scripted({"GET /v1/models": cards, "POST /v1/completions": answer})
    return server.open(tokenizer=folder, context_window=100, **options), server


def test_the_plain_protocol_has_few_words(tokenizer_folder: str) -> None:
    engine, server = openai(tokenizer_folder)
    for setting, value in {"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.5}.items():
        said = error(engine, GenerateRequest((5,), Decoding.model_validate({setting: value})))
        assert f"the OpenAI server at http://server can't honour {setting}={value:g}" in said
    assert "takes 4 stop strings" in error(engine, GenerateRequest((5,), Decoding(stop=tuple("abcde"))))
    assert "can't score" in error(engine, ScoreRequest((5,), ((6,),)))
    assert "no guided decoding" in error(engine, GenerateRequest((5,), Decoding(), 'start: "a"\n'))
    assert server.bodies == []
    found = sample(engine, GenerateRequest((5,), Decoding(temperature=0.5, top_p=0.9, stop=("x",))))
    assert (found.text, found.finish) == ("hello", "length")
    assert server.bodies[0].items() >= {"prompt": [5], "temperature": 0.5, "top_p": 0.9, "stop": ["x"]}.items()
