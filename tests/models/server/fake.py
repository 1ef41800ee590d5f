"""Model servers in this process: HTTP over the local engine, in vLLM's words and in llama.cpp's, with faults to order.

They answer as the real ones were seen to: vLLM 0.32 (ids and log-probabilities in and out, the end token among the
tokens, masked log-probabilities under a grammar, unknown fields ignored) and llama.cpp of October 2026 (the raw
log-probability of the chosen token, none for a token that is no whole character, a grammar that it can't read dropped).
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cuecard.models.engine import Decoding, Engine, Failure, GenerateRequest, Generation, Sample, ScoreRequest, Scores
from cuecard.models.server.grammars import HEADER

END = 2
Reply = tuple[int, Any]
Fault = Callable[["Handler"], None]


class BadRequest(Exception):
    """A request that the server answers with HTTP 400."""


@dataclass
class FakeServer:
    """What the servers have in common. Subclasses answer `get` and `post`.

    faults: what happens instead of the next generations, in order; seen: bodies of generations, as they came;
    key: the only one that is let in; refuse: a text in a body that is answered with 400; posts: paths.
    """

    engine: Engine
    model: str = "tiny"
    context: int = 512
    vocabulary: int = 512
    faults: list[Fault] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    key: str | None = None
    health: int = 200
    refuse: Callable[[dict[str, Any]], bool] = lambda body: False
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_once: int = 0
    most_at_once: int = 0
    generation: str = "/v1/completions"

    def get(self, path: str) -> Reply:
        raise NotImplementedError

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        raise NotImplementedError

    def card(self) -> dict[str, Any]:
        raise NotImplementedError

    def models(self) -> Reply:
        return 200, {"object": "list", "data": [self.card()]}

    def check(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise BadRequest("You must pass at least one prompt")
        if not all(0 <= token < self.vocabulary for token in prompt):
            raise BadRequest("Token id is out of vocabulary")

    def generate(self, request: GenerateRequest) -> Sample:
        with self.lock:
            (result,) = self.engine.generate([request])
        if isinstance(result, Failure):
            raise BadRequest(result.error)
        assert isinstance(result, Generation)
        return result.samples[0]

    def score(self, prompt: Sequence[int], *continuations: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
        with self.lock:
            (result,) = self.engine.score([ScoreRequest(tuple(prompt), continuations)])
        if isinstance(result, Failure):
            raise BadRequest(result.error)
        assert isinstance(result, Scores)
        return result.logprobs

    def ids(self, text: str, special: bool) -> list[int]:
        words = self.engine.tokenizer
        return [*(words.start() if special else ()), *words.encode(text)]

    def text(self, ids: Sequence[int]) -> str:
        backend = self.engine.tokenizer._backend  # type: ignore[attr-defined]
        return str(backend.decode(list(ids), skip_special_tokens=False))

    def chat(self, messages: list[dict[str, str]]) -> str:
        backend = self.engine.tokenizer._backend  # type: ignore[attr-defined]
        return str(backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    @contextmanager
    def running(self) -> Iterator[str]:
        """The server's address while it runs."""
        handler = type("Bound", (Handler,), {"fake": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """HTTP around a `FakeServer`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else headers and body wait for each other
    fake: FakeServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self._let_in():
            self.fake.paths.append(self.path)
            self.reply(*((self.fake.health, {}) if self.path == "/health" else self.fake.get(self.path)))

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._let_in():
            return
        fake.paths.append(self.path)
        if self.path == fake.generation:
            with fake.lock:
                fake.seen.append(body)
                fault = fake.faults.pop(0) if fake.faults else None
                fake.at_once += 1
                fake.most_at_once = max(fake.at_once, fake.most_at_once)
            try:
                if fault is not None:
                    fault(self)
                    return
                self._answer(body)
            finally:
                with fake.lock:
                    fake.at_once -= 1
        else:
            self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        try:
            if self.fake.refuse(body):
                raise BadRequest("I would rather not")
            self.reply(*self.fake.post(self.path, body))
        except BadRequest as error:
            self.reply(400, {"error": {"message": str(error), "type": "BadRequestError", "code": 400}})

    def _let_in(self) -> bool:
        if self.fake.key is None or self.headers.get("Authorization") == f"Bearer {self.fake.key}":
            return True
        self.reply(401, {"error": {"message": "Incorrect API key provided", "code": 401}})
        return False


def status(code: int, message: str = "it failed", **headers: str) -> Fault:
    """Answer with this HTTP status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.reply(code, {"error": {"message": message}}, named)


def drop(handler: Handler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


def junk(handler: Handler) -> None:
    """Answer with something that is not JSON."""
    handler.reply(200, b"<html>hello</html>")


def misshapen(handler: Handler) -> None:
    """Answer with JSON of another form."""
    handler.reply(200, {"choices": []})


def hang(until: threading.Event) -> Fault:
    """Say nothing until the event is set, then hang up."""

    def fault(handler: Handler) -> None:
        until.wait(30)
        handler.close_connection = True

    return fault


@dataclass
class FakeVLLM(FakeServer):
    """vLLM. guidance: whether its grammar backend is llguidance, else one that takes GBNF alone; forced_is_raw:
    whether the log-probability of a forced token is that of the unmasked distribution (it is 0 in old versions).
    """

    version: str = "0.32.0"
    guidance: bool = True
    forced_is_raw: bool = True
    tells_ids: bool = True

    def card(self) -> dict[str, Any]:
        return {"id": self.model, "owned_by": "vllm", "root": "org/tiny", "parent": None, "max_model_len": self.context,
                "created": len(self.paths)}  # fmt: skip

    def get(self, path: str) -> Reply:
        found = {"/v1/models": self.models(), "/version": (200, {"version": self.version})}
        return found.get(path, (404, {"detail": "Not Found"}))

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        if path == "/tokenize":
            text = body["prompt"] if "prompt" in body else self.chat(body["messages"])
            return 200, {"tokens": self.ids(text, body.get("add_special_tokens", True))}
        if path == "/detokenize":
            return 200, {"prompt": self.text(body["tokens"])}
        if path == "/v1/completions":
            return 200, self.complete(body)
        return 404, {"detail": "Not Found"}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        self.check(prompt)
        if len(prompt) + 1 > self.context:
            raise BadRequest("The decoder prompt plus the number of requested output tokens is longer than the maximum")
        if body.get("allowed_token_ids"):
            sample, reason = self.forced(prompt, body["allowed_token_ids"])
        else:
            sample, reason = self.sampled(prompt, body)
        tokens, logprobs = list(sample.tokens), list(sample.logprobs)
        if sample.finish != "length" and reason is None:
            tokens, logprobs = [*tokens, END], [*logprobs, -0.5]
        choice: dict[str, Any] = {
            "index": 0,
            "text": sample.text,
            "finish_reason": "length" if sample.finish == "length" else "stop",
            "stop_reason": reason,
            "logprobs": {"token_logprobs": logprobs, "tokens": [f"token_id:{token}" for token in tokens]},
            "prompt_logprobs": self.of_prompt(prompt) if body.get("prompt_logprobs") == 0 else None,
        }
        if self.tells_ids:
            choice["token_ids"] = tokens
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens), "prompt_tokens_details": None}
        return {"object": "text_completion", "choices": [choice], "usage": usage}

    def forced(self, prompt: list[int], allowed: list[int]) -> tuple[Sample, None]:
        if not 0 <= allowed[0] < self.vocabulary:
            raise BadRequest("allowed_token_ids contains out-of-vocab token id!")
        logprob = self.score(prompt, (allowed[0],))[0][0] if self.forced_is_raw else 0.0
        return Sample(self.engine.tokenizer.decode(allowed), tuple(allowed), (logprob,), "length"), None

    def of_prompt(self, prompt: list[int]) -> list[dict[str, Any] | None]:
        logprobs = self.score(prompt[:1], tuple(prompt[1:]))[0] if len(prompt) > 1 else ()
        rows = zip(prompt[1:], logprobs, strict=True)
        return [None, *({str(token): {"logprob": logprob, "rank": 1}} for token, logprob in rows)]

    def sampled(self, prompt: list[int], body: dict[str, Any]) -> tuple[Sample, str | None]:
        names = set(Decoding.model_fields) - {"top_k", "n"}
        settings = {name: body[name] for name in names & body.keys()}
        decoding = Decoding(**settings, top_k=max(body.get("top_k", -1), 0), n=1)
        grammar = (body.get("structured_outputs") or {}).get("grammar")
        request = GenerateRequest(tuple(prompt), decoding, None if grammar is None else self.lark(grammar))
        sample = self.generate(request)
        whole = self.engine.tokenizer.decode(sample.tokens)
        found = next((stop for stop in decoding.stop if stop in whole), None) if sample.finish == "stop" else None
        if found is None:
            return sample, None
        text, stop, _ = whole.partition(found)  # the first of the list, not of the text
        return replace(sample, text=text + (stop if body.get("include_stop_str_in_output") else "")), found

    def lark(self, grammar: str) -> str:
        from llguidance.gbnf_to_lark import any_to_lark

        if not self.guidance and grammar.startswith(HEADER):
            raise BadRequest("Invalid grammar specification.")
        return str(any_to_lark(grammar)).removeprefix(HEADER)


@dataclass
class FakeLlamaCpp(FakeServer):
    """llama.cpp's server. guidance: whether it was built with llguidance; whole: whether every token is taken for whole
    characters, so that all log-probabilities are told.
    """

    guidance: bool = True
    whole: bool = True
    generation: str = "/completion"

    def card(self) -> dict[str, Any]:
        meta = {"n_vocab": self.vocabulary, "n_ctx": self.context, "n_params": 1000, "size": 4000, "ftype": "all F32"}
        return {"id": self.model, "owned_by": "llamacpp", "created": len(self.paths), "meta": meta}

    def get(self, path: str) -> Reply:
        props = {"default_generation_settings": {"n_ctx": self.context}, "build_info": "b1-abc", "total_slots": 3,
                 "model_path": "/models/tiny.gguf", "model_ftype": "all F32"}  # fmt: skip
        found = {"/v1/models": self.models(), "/props": (200, props)}
        return found.get(path, (404, {"error": {"message": "File Not Found", "code": 404}}))

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        if path == "/tokenize":
            text = body["content"]
            if not body["parse_special"]:
                text = text.replace("<|", "<​|")
            return 200, {"tokens": self.ids(text, body["add_special"])}
        if path == "/detokenize":
            return 200, {"content": self.text(body["tokens"])}
        if path == "/apply-template":
            return 200, {"prompt": self.chat(body["messages"])}
        return (200, self.complete(body)) if path == self.generation else (404, {"error": "not found"})

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        self.check(prompt)
        if len(prompt) >= self.context:
            raise BadRequest("request exceeds the available context size, try increasing it")
        ended = "limit"
        if body.get("logit_bias"):
            token = body["logit_bias"][0][0]
            sample = Sample(self.piece(token), (token,), self.score(prompt, (token,))[0], "length")
        else:
            sample, ended = self.sampled(prompt, body)
        tokens, logprobs = list(sample.tokens), list(sample.logprobs)
        if ended == "eos":
            tokens, logprobs = [*tokens, END], [*logprobs, -0.5]
        told = [
            {"id": token, "logprob": logprob, "top_logprobs": self.likeliest(prompt, body["n_probs"])}
            for token, logprob in zip(tokens, logprobs, strict=True)
            if self.whole or "\N{REPLACEMENT CHARACTER}" not in self.piece(token)
        ]
        answer = {"content": sample.text, "tokens": tokens, "stop_type": ended, "tokens_evaluated": len(prompt),
                  "timings": {"cache_n": 1}}  # fmt: skip
        return {**answer, **({"completion_probabilities": told} if told else {})}

    def piece(self, token: int) -> str:
        return self.engine.tokenizer.decode([token])

    def likeliest(self, prompt: list[int], count: int) -> list[dict[str, Any]]:
        if count == 1:
            return []
        every = self.score(prompt, *((token,) for token in range(self.vocabulary)))
        ranked = sorted(range(self.vocabulary), key=lambda token: -every[token][0])
        return [{"id": token, "logprob": every[token][0]} for token in ranked[:count]]

    def sampled(self, prompt: list[int], body: dict[str, Any]) -> tuple[Sample, str]:
        names = ("temperature", "top_p", "top_k", "min_p", "stop", "seed")
        decoding = Decoding(
            **{name: body[name] for name in names},
            max_tokens=body["n_predict"],
            repetition_penalty=body["repeat_penalty"],
        )
        request = GenerateRequest(tuple(prompt), decoding, self.lark(body.get("grammar")))
        sample = self.generate(request)
        if sample.finish == "length":
            return sample, "limit"
        return sample, "word" if sample.text != self.engine.tokenizer.decode(sample.tokens) else "eos"

    def lark(self, grammar: str | None) -> str | None:
        from llguidance.gbnf_to_lark import any_to_lark

        if grammar is None or grammar.startswith(HEADER):
            if grammar is not None and not self.guidance:
                raise BadRequest("Failed to initialize samplers: failed to parse grammar")
            return None if grammar is None else grammar.removeprefix(HEADER)
        return str(any_to_lark(grammar))


def is_unknown(value: float) -> bool:
    """Whether a log-probability is one that the server did not tell."""
    return math.isnan(value)
