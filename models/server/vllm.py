"""vLLM (https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html).

Prompts are token ids, and ids come back (`return_token_ids`; from `token_id:N` texts before 0.10.2). Penalties are the
definitions of `engine.Decoding`; min-p cuts before top-k and top-p. Log-probabilities are the model's own whatever the
temperature (`--logprobs-mode raw_logprobs`, the default), save under a grammar, whose mask comes before them.

A continuation is scored by `prompt_logprobs`, which needs one token of room behind what is scored and computes the
prompt anew, whatever is cached. So the last token is not part of the prompt but forced, by `allowed_token_ids`: its
log-probability is that of the unmasked distribution. That a server keeps to that is seen once, by scoring one token in
both ways; where the two differ, nothing is forced, and the window is a token shorter.

One structured-output backend serves all requests of a server's life, chosen by the first with `auto`. Grammars are
exact with guidance (`vllm serve MODEL --structured-outputs-config '{"backend": "guidance"}'`).
"""

from __future__ import annotations

import re
import threading
from typing import Any, ClassVar

from ..engine import Failure, GenerateRequest, Sample, ScoreRequest, Scores
from .cards import card_of, window_of
from .client import Client, Refused
from .dialect import UNKNOWN, Dialect, Drawn, Options, Scored, Served, cut, finished, ordered, read
from .grammars import Spelling

PATH = "/v1/completions"
CLOSE = 0.05  # nats between two ways to compute one log-probability
PROBE = ((5, 6), 7)  # ids that every vocabulary has


def _structured(key: str) -> Any:
    return lambda text: {"structured_outputs": {key: text}}


def _guided(key: str) -> Any:
    return lambda text: {f"guided_{key}": text}


class VLLM(Dialect):
    """vLLM's OpenAI-compatible server."""

    name: ClassVar[str] = "vLLM"
    scores: ClassVar[bool] = True

    def __init__(self, client: Client, served: Served, options: Options) -> None:
        super().__init__(client, served, options)
        self._forces: bool | None = None
        self._lock = threading.Lock()

    @classmethod
    def describe(cls, client: Client, cards: list[dict[str, Any]], model: str | None) -> Served:
        """From the model's card and `/version`."""
        card = card_of(cards, model, client.url)
        version = client.get("/version")
        return Served(
            model=str(card["id"]),
            version=str(version.get("version", "")) if isinstance(version, dict) else "",
            root=str(card.get("root") or ""),
            context_window=window_of(card.get("max_model_len")),
            facts={"parent": card.get("parent")},
        )

    @property
    def spellings(self) -> tuple[Spelling, ...]:  # type: ignore[override]
        """`structured_outputs` since 0.11, `guided_*` before 0.12. What llguidance reads is tried since 0.12 only:
        before, a grammar that the backend in use can't compile could end the whole server.
        """
        release = _release(self.served.version)
        field = _guided if (0,) < release < (0, 11) else _structured
        names = {"llguidance": "grammar", "gbnf": "grammar", "schema": "json"}
        if (0,) < release < (0, 12) and self.options.grammars == "auto":
            del names["llguidance"]
        return tuple(Spelling(name, field(key)) for name, key in names.items())

    def refuse(self, request: GenerateRequest) -> str | None:
        """Nothing is refused."""
        return None

    def draw(
        self, request: GenerateRequest, seed: int, grammar: dict[str, Any], *, again: bool = True
    ) -> Drawn | Refused:
        """See `Dialect.draw`."""
        decoding = request.decoding
        body = {
            "prompt": request.prompt,
            "max_tokens": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k or -1,
            "min_p": decoding.min_p,
            "stop": ordered(decoding.stop),
            "include_stop_str_in_output": bool(decoding.stop),
            "frequency_penalty": decoding.frequency_penalty,
            "presence_penalty": decoding.presence_penalty,
            "repetition_penalty": decoding.repetition_penalty,
            "seed": seed,
            **grammar,
        }
        answer = self._ask(body, again=again)
        if isinstance(answer, Refused):
            return answer
        return read(lambda: self._drawn(answer, decoding.stop, masked=bool(grammar)))

    def score(self, request: ScoreRequest) -> Scored | Failure | Refused:
        """See `Dialect.score`."""
        forces = self._learn_to_force()
        if isinstance(forces, Refused):
            return forces
        found: list[tuple[float, ...]] = []
        sent = cached = 0
        for continuation in request.continuations:
            part = self._score_one(request.prompt, continuation, forces)
            if isinstance(part, Refused):
                return part
            logprobs, spent, shared = part
            found.append(logprobs)
            sent, cached = sent + spent, cached + shared
        return Scored(Scores(tuple(found)), sent, cached, len(found))

    def _ask(self, body: dict[str, Any], *, again: bool = True) -> dict[str, Any] | Refused:
        common = {
            "model": self.served.model,
            "n": 1,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        return self.client.post(PATH, {**common, **body}, again=again)

    def _drawn(self, answer: dict[str, Any], stops: tuple[str, ...], *, masked: bool) -> Drawn | Refused:
        choice = answer["choices"][0]
        finish = finished(choice["finish_reason"])
        if finish is None:
            return Refused(200, f"the text ended with {choice['finish_reason']!r}")
        tokens, logprobs = _tokens(choice), [float(value) for value in choice["logprobs"]["token_logprobs"]]
        text = str(choice["text"])
        if isinstance(choice.get("stop_reason"), str):
            text = cut(text, stops)
        elif finish == "stop":
            tokens, logprobs = tokens[:-1], logprobs[:-1]  # the token that ends a text is not part of it
        if masked:
            logprobs = [UNKNOWN] * len(tokens)
        if len(tokens) != len(logprobs):
            raise ValueError(f"{len(tokens)} tokens and {len(logprobs)} log-probabilities")
        sample = Sample(text, tuple(tokens), tuple(logprobs), finish)
        return Drawn(sample, *_usage(answer))

    def _learn_to_force(self) -> bool | Refused:
        """Whether a forced token has the log-probability that it has in a prompt."""
        with self._lock:
            if self._forces is None:
                prompt, token = PROBE
                forced = self._score_one(prompt, (token,), True)
                plain = self._score_one(prompt, (token,), False)
                if isinstance(plain, Refused):
                    return plain
                self._forces = not isinstance(forced, Refused) and abs(forced[0][0] - plain[0][0]) < CLOSE
            return self._forces

    def _score_one(
        self, prompt: tuple[int, ...], continuation: tuple[int, ...], forces: bool
    ) -> tuple[tuple[float, ...], int, int] | Refused:
        """The continuation's log-probabilities, the tokens sent, and how many were cached."""
        whole = prompt + continuation
        read_from_prompt = continuation[:-1] if forces else continuation
        body: dict[str, Any] = {"max_tokens": 1, "temperature": 0}
        body |= {"prompt": whole[:-1], "allowed_token_ids": whole[-1:]} if forces else {"prompt": whole}
        if read_from_prompt:
            body["prompt_logprobs"] = 0
        answer = self._ask(body)
        if isinstance(answer, Refused):
            return answer
        choice = answer["choices"][0]
        try:
            found = []
            if read_from_prompt:
                rows = choice["prompt_logprobs"][-len(read_from_prompt) :]
                pairs = zip(rows, read_from_prompt, strict=True)
                found = [float(row[str(token)]["logprob"]) for row, token in pairs]
            if forces:
                found.append(float(choice["logprobs"]["token_logprobs"][0]))
            return tuple(found), *_usage(answer)
        except (LookupError, TypeError, ValueError) as error:
            return Refused(200, f"the answer has no log-probabilities of the prompt: {type(error).__name__}: {error}")


def _tokens(choice: dict[str, Any]) -> list[int]:
    ids = choice.get("token_ids")
    if ids is None:
        ids = [str(token).removeprefix("token_id:") for token in choice["logprobs"]["tokens"]]
    return [int(token) for token in ids]


def _usage(answer: dict[str, Any]) -> tuple[int, int]:
    """The prompt's tokens, and how many of them were cached (told only with `--enable-prompt-tokens-details`)."""
    usage = answer["usage"]
    return int(usage["prompt_tokens"]), int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else ()
