"""llama.cpp's server, by its own `/completion`
(https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md), which speaks token ids.

Its samplers come in an order that a request may name; named in ours, and all others left out, they are those of
`engine.Decoding`. The repetition penalty is told to look at the whole window. Frequency and presence penalties count
the prompt's tokens too, where ours count the output's, and are refused.

The server can't score a prompt, but it tells the log-probability of the token that it chose, under temperature 1 and
before anything is done to the logits. So a continuation is scored by forcing its tokens, one a request, with a logit
bias; what stands before comes from the slot's cache. Continuations share their common tokens' requests. A token that is
no whole character is told only among the likeliest, so there the whole vocabulary's log-probabilities are asked for; in
a drawn text its log-probability is `UNKNOWN`.

A seed has 32 bits, and the last is kept for "any". Each open connection holds one of the server's few threads (as many
as slots, and four), and one that finds none waits for seconds, so no more are opened than can be used.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from ..engine import Failure, FinishReason, GenerateRequest, Sample, ScoreRequest, Scores
from .cards import card_of, window_of
from .client import Client, Refused
from .dialect import UNKNOWN, Dialect, Drawn, Scored, Served, read
from .grammars import Spelling

PATH = "/completion"
SAMPLERS = ("penalties", "temperature", "top_k", "top_p", "min_p")
SEEDS = 2**32 - 1
WAITING = 2  # requests that wait for a slot, so that none stands idle
FORCED = 1e9  # added to a logit, it leaves no other token a chance
WHOLE = "a"  # a text whose first token is whole characters


class LlamaCpp(Dialect):
    """llama.cpp's `llama-server`."""

    name: ClassVar[str] = "llama.cpp"
    scores: ClassVar[bool] = True
    scores_at_once: ClassVar[bool] = False
    spellings: ClassVar[tuple[Spelling, ...]] = (
        Spelling("llguidance", lambda text: {"grammar": text}),
        Spelling("gbnf", lambda text: {"grammar": text}),
        Spelling("schema", lambda text: {"json_schema": json.loads(text)}),
    )

    @classmethod
    def describe(cls, client: Client, cards: list[dict[str, Any]], model: str | None) -> Served:
        """From the model's card and `/props`; a slot's window is what one request can use."""
        card = card_of(cards, model, client.url)
        props = client.get("/props")
        props = props if isinstance(props, dict) else {}
        meta = card.get("meta") or {}
        window = (props.get("default_generation_settings") or {}).get("n_ctx")
        return Served(
            model=str(card["id"]),
            version=str(props.get("build_info") or ""),
            root=str(props.get("model_path") or "").replace("\\", "/").rpartition("/")[2],
            context_window=window_of(window) or window_of(meta.get("n_ctx")),
            parameters=int(meta.get("n_params") or 0),
            dtype=str(meta.get("ftype") or props.get("model_ftype") or ""),
            at_once=slots + WAITING if (slots := window_of(props.get("total_slots"))) else None,
            facts={"vocabulary": meta.get("n_vocab"), "bytes": meta.get("size"), "trained": meta.get("n_ctx_train")},
        )

    def refuse(self, request: GenerateRequest) -> str | None:
        """What llama.cpp defines in another way."""
        reason = "its penalty counts the prompt's tokens too, where ours counts the output's"
        return self.refuse_set(request.decoding, {"frequency_penalty": reason, "presence_penalty": reason})

    def draw(
        self, request: GenerateRequest, seed: int, grammar: dict[str, Any], *, again: bool = True
    ) -> Drawn | Refused:
        """See `Dialect.draw`."""
        decoding = request.decoding
        body = {
            "n_predict": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k,
            "min_p": decoding.min_p,
            "stop": decoding.stop,
            "repeat_penalty": decoding.repetition_penalty,
            "repeat_last_n": self.served.context_window or len(request.prompt) + decoding.max_tokens,
            "seed": seed % SEEDS,
            **grammar,
        }
        answer = self._ask(request.prompt, body, again=again)
        return answer if isinstance(answer, Refused) else read(lambda: _drawn(answer))

    def score(self, request: ScoreRequest) -> Scored | Failure | Refused:
        """See `Dialect.score`."""
        known: dict[tuple[int, ...], float] = {}
        sent = cached = calls = 0
        vocabulary = self.served.facts.get("vocabulary")
        for continuation in request.continuations:
            if vocabulary and not 0 <= min(continuation) <= max(continuation) < vocabulary:
                return Failure(f"the model has tokens 0 to {vocabulary - 1} only, and {continuation} is to be scored")
            for end in range(1, len(continuation) + 1):
                path = continuation[:end]
                if path in known:
                    continue
                found = self._force(request.prompt + path[:-1], path[-1])
                if isinstance(found, Refused):
                    return found
                known[path], spent, shared, asked = found
                sent, cached, calls = sent + spent, cached + shared, calls + asked
        scores = Scores(tuple(tuple(known[c[:end]] for end in range(1, len(c) + 1)) for c in request.continuations))
        return Scored(scores, sent, cached, calls)

    def _force(self, prompt: tuple[int, ...], token: int) -> tuple[float, int, int, int] | Refused:
        """The log-probability of `token` after `prompt`, tokens sent, how many were cached, and calls."""
        body: dict[str, Any] = {"n_predict": 1, "temperature": 0, "logit_bias": [[token, FORCED]]}
        answer = self._ask(prompt, body)
        if isinstance(answer, Refused):
            return answer
        sent, cached = _usage(answer)
        for told in answer.get("completion_probabilities") or ():
            if told.get("id") == token:
                return float(told["logprob"]), sent, cached, 1
        whole = self.tokenizer.encode(WHOLE)[0]
        every = {**body, "logit_bias": [[whole, FORCED]], "n_probs": self.served.facts.get("vocabulary") or 1_000_000}
        answer = self._ask(prompt, every)
        if isinstance(answer, Refused):
            return answer
        for told in answer.get("completion_probabilities") or ():
            for likely in told.get("top_logprobs") or ():
                if likely.get("id") == token:
                    more, shared = _usage(answer)
                    return float(likely["logprob"]), sent + more, cached + shared, 2
        return Refused(200, f"the server does not tell the log-probability of token {token}")

    def _ask(self, prompt: tuple[int, ...], body: dict[str, Any], *, again: bool = True) -> dict[str, Any] | Refused:
        common = {"samplers": SAMPLERS, "n_probs": 1, "return_tokens": True, "cache_prompt": True, "stream": False}
        neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
        return self.client.post(PATH, {"prompt": prompt, **common, **neutral, **body}, again=again)


def _drawn(answer: dict[str, Any]) -> Drawn | Refused:
    tokens = [int(token) for token in answer["tokens"]]
    reason = answer["stop_type"]
    if reason not in ("limit", "eos", "word"):
        return Refused(200, f"the text ended with {reason!r}")
    told = iter([*(answer.get("completion_probabilities") or ()), None])
    current = next(told)
    logprobs = []
    for token in tokens:  # tokens that are no whole characters have no entry
        if current is not None and current["id"] == token:
            logprobs.append(float(current["logprob"]))
            current = next(told)
        else:
            logprobs.append(UNKNOWN)
    if reason == "eos":
        tokens, logprobs = tokens[:-1], logprobs[:-1]  # the token that ends a text is not part of it
    finish: FinishReason = "length" if reason == "limit" else "stop"
    return Drawn(Sample(str(answer["content"]), tuple(tokens), tuple(logprobs), finish), *_usage(answer))


def _usage(answer: dict[str, Any]) -> tuple[int, int]:
    return int(answer["tokens_evaluated"]), int((answer.get("timings") or {}).get("cache_n") or 0)
