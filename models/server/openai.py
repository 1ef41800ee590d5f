"""A server that speaks OpenAI's completions and nothing more (https://platform.openai.com/docs/api-reference).

Prompts are token ids, which the protocol takes. It gives no ids back, so a sample's tokens are those of its text, their
log-probabilities `UNKNOWN`. It can't score a given text, and has no top-k, min-p, repetition penalty or grammars. What
a seed is worth there, the protocol leaves open ("best effort").
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..engine import GenerateRequest, Sample
from .cards import card_of, window_of
from .client import Client, Refused
from .dialect import UNKNOWN, Dialect, Drawn, Served, finished, read

PATH = "/v1/completions"
STOPS = 4


class OpenAI(Dialect):
    """The plain protocol. It needs a local tokenizer."""

    name: ClassVar[str] = "OpenAI"

    @classmethod
    def describe(cls, client: Client, cards: list[dict[str, Any]], model: str | None) -> Served:
        """From the model's card. Its date is left out: many servers write the time of the answer there."""
        card = card_of(cards, model, client.url)
        window = window_of(card.get("max_model_len")) or window_of(card.get("context_length"))
        return Served(
            model=str(card["id"]),
            root=str(card.get("root") or ""),
            context_window=window,
            facts={"owner": card.get("owned_by")},
        )

    def refuse(self, request: GenerateRequest) -> str | None:
        """What the protocol has no word for."""
        reason = "OpenAI's protocol has no such setting; if the server has, name its dialect"
        if len(request.decoding.stop) > STOPS:
            return f"{self.described} takes {STOPS} stop strings, and there are {len(request.decoding.stop)}"
        return self.refuse_set(request.decoding, dict.fromkeys(("top_k", "min_p", "repetition_penalty"), reason))

    def draw(
        self, request: GenerateRequest, seed: int, grammar: dict[str, Any], *, again: bool = True
    ) -> Drawn | Refused:
        """See `Dialect.draw`."""
        decoding = request.decoding
        body = {
            "model": self.served.model,
            "prompt": request.prompt,
            "max_tokens": decoding.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "frequency_penalty": decoding.frequency_penalty,
            "presence_penalty": decoding.presence_penalty,
            "seed": seed,
            "n": 1,
            **({"stop": decoding.stop} if decoding.stop else {}),
        }
        answer = self.client.post(PATH, body, again=again)
        return answer if isinstance(answer, Refused) else read(lambda: self._drawn(answer))

    def _drawn(self, answer: dict[str, Any]) -> Drawn | Refused:
        choice = answer["choices"][0]
        finish = finished(choice["finish_reason"])
        if finish is None:
            return Refused(200, f"the text ended with {choice['finish_reason']!r}")
        text = str(choice["text"])
        tokens = self.tokenizer.encode(text)
        usage = answer.get("usage") or {}
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        return Drawn(
            Sample(text, tokens, (UNKNOWN,) * len(tokens), finish), int(usage.get("prompt_tokens") or 0), cached
        )
