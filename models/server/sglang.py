"""SGLang, by its own `/generate` (https://docs.sglang.ai/basic_usage/native_api.html), which speaks token ids.

A prompt is scored from `logprob_start_len` on, so what lies before comes from the cache. The log-probabilities of a
drawn text are those after temperature, penalties and masks, unless the server runs with
`SGLANG_RETURN_ORIGINAL_LOGPROB`, which it does not tell: they are kept only where the two are the same.

A seed counts with `--enable-deterministic-inference` alone, which `/server_info` tells. The repetition penalty looks at
the output only, where ours is over prompt and output too, and is refused. Grammars are exact with
`--grammar-backend llguidance`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..engine import Failure, GenerateRequest, Sample, ScoreRequest, Scores
from .cards import card_of, window_of
from .client import Client, Refused
from .dialect import NEUTRAL, UNKNOWN, Dialect, Drawn, Scored, Served, cut, finished, ordered, read
from .grammars import Spelling

PATH = "/generate"


class SGLang(Dialect):
    """SGLang's runtime server."""

    name: ClassVar[str] = "SGLang"
    scores: ClassVar[bool] = True
    spellings: ClassVar[tuple[Spelling, ...]] = (
        Spelling("llguidance", lambda text: {"ebnf": text}),
        Spelling("gbnf", lambda text: {"ebnf": text}),
        Spelling("schema", lambda text: {"json_schema": text}),
    )

    @classmethod
    def describe(cls, client: Client, cards: list[dict[str, Any]], model: str | None) -> Served:
        """From the model's card, `/server_info` and `/model_info` (`/get_...` before 0.5)."""
        card = card_of(cards, model, client.url)
        server = client.get("/server_info") or client.get("/get_server_info")
        server = server if isinstance(server, dict) else {}
        about = client.get("/model_info") or client.get("/get_model_info")
        about = about if isinstance(about, dict) else {}
        most = window_of(server.get("max_req_input_len"))
        window = window_of(card.get("max_model_len")) or window_of(server.get("context_length"))
        return Served(
            model=str(card["id"]),
            version=str(server.get("version") or ""),
            root=str(about.get("model_path") or card.get("root") or ""),
            # A prompt must be shorter than `max_req_input_len`, and a scored text is all prompt.
            context_window=min(value for value in (most - 1, window) if value) if most and most > 1 else window,
            dtype=str(server.get("dtype") or "").replace("auto", ""),
            facts={
                "seeded": bool(server.get("enable_deterministic_inference")),
                "quantization": server.get("quantization"),
                "weights": about.get("weight_version"),
            },
        )

    def refuse(self, request: GenerateRequest) -> str | None:
        """What SGLang defines in another way."""
        refusal = self.refuse_set(
            request.decoding, {"repetition_penalty": "its penalty does not look at the prompt, as ours does"}
        )
        if refusal is None and not self.served.facts.get("seeded"):
            refusal = self.refuse_unseeded(
                request.decoding, "start it with `--enable-deterministic-inference`"
            )  # fmt: skip
        return refusal

    def draw(
        self, request: GenerateRequest, seed: int, grammar: dict[str, Any], *, again: bool = True
    ) -> Drawn | Refused:
        """See `Dialect.draw`."""
        decoding = request.decoding
        sampling = {
            "max_new_tokens": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k or -1,
            "min_p": decoding.min_p,
            "stop": ordered(decoding.stop),
            "no_stop_trim": bool(decoding.stop),
            "frequency_penalty": decoding.frequency_penalty,
            "presence_penalty": decoding.presence_penalty,
            "repetition_penalty": 1.0,
            **grammar,
        }
        if self.served.facts.get("seeded"):
            sampling["sampling_seed"] = seed
        answer = self._ask(request.prompt, sampling, -1, again=again)
        if isinstance(answer, Refused):
            return answer
        raw = not grammar and decoding.temperature in (0.0, 1.0)
        raw = raw and decoding.frequency_penalty == NEUTRAL.frequency_penalty
        raw = raw and decoding.presence_penalty == NEUTRAL.presence_penalty
        return read(lambda: _drawn(answer, decoding.stop, raw=raw))

    def score(self, request: ScoreRequest) -> Scored | Failure | Refused:
        """See `Dialect.score`."""
        found: list[tuple[float, ...]] = []
        sent = cached = 0
        for continuation in request.continuations:
            answer = self._ask(
                request.prompt + continuation, {"max_new_tokens": 0, "temperature": 0}, len(request.prompt) - 1
            )
            if isinstance(answer, Refused):
                return answer
            try:
                rows = answer["meta_info"]["input_token_logprobs"][-len(continuation) :]
                if [int(row[1]) for row in rows] != list(continuation):
                    raise ValueError("it tells log-probabilities of other tokens")
                found.append(tuple(float(row[0]) for row in rows))
                spent, shared = _usage(answer)
            except (LookupError, TypeError, ValueError) as error:
                return Refused(200, f"the answer has no log-probabilities of the prompt: {error}")
            sent, cached = sent + spent, cached + shared
        return Scored(Scores(tuple(found)), sent, cached, len(found))

    def _ask(
        self, ids: tuple[int, ...], sampling: dict[str, Any], start: int, *, again: bool = True
    ) -> dict[str, Any] | Refused:
        """start: the place in the prompt where log-probabilities begin; -1: the output's only."""
        body = {"input_ids": ids, "sampling_params": sampling, "return_logprob": True, "logprob_start_len": start}
        return self.client.post(PATH, body, again=again)


def _drawn(answer: dict[str, Any], stops: tuple[str, ...], *, raw: bool) -> Drawn | Refused:
    meta = answer["meta_info"]
    reason = meta["finish_reason"]
    finish = finished(reason["type"])
    if finish is None:
        return Refused(200, f"the text ended with {reason['type']!r}: {reason.get('message', '')}")
    rows = [(float(row[0]), int(row[1])) for row in meta["output_token_logprobs"]]
    text = str(answer["text"])
    if isinstance(reason.get("matched"), str):
        text = cut(text, stops)
    elif finish == "stop":
        rows = rows[:-1]  # the token that ends a text is not part of it
    logprobs = tuple(logprob if raw else UNKNOWN for logprob, _ in rows)
    return Drawn(Sample(text, tuple(token for _, token in rows), logprobs, finish), *_usage(answer))


def _usage(answer: dict[str, Any]) -> tuple[int, int]:
    meta = answer["meta_info"]
    return int(meta["prompt_tokens"]), int(meta.get("cached_tokens") or 0)
