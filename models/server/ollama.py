"""Ollama, by its own `/api/generate` (https://docs.ollama.com/api/generate).

It takes text only, so a prompt's tokens are put into words and sent raw, without a template. Whether they are read as
the same tokens is made sure of: the local tokenizer must read the text as the prompt's ids, and the server may not
count more tokens than were meant. The window is asked for with every request (`num_ctx`), since a prompt that does not
fit Ollama's own is cut in silence.

The window is the Modelfile's `num_ctx`, else at most 8192, since memory for all of it is taken at once.

It gives no token ids back, and only by text can log-probabilities be told apart, so a sample's tokens are those of its
text, their log-probabilities `UNKNOWN`. It can't score a given text. Penalties are refused: some of its runners take
and ignore them, the others count the prompt too. Grammars are JSON schemas alone (`format`).
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from ...errors import InputError
from ..engine import GenerateRequest, Sample
from .cards import card_of, window_of
from .client import Client, Refused
from .dialect import UNKNOWN, Dialect, Drawn, Served, finished, read
from .grammars import Spelling

PATH = "/api/generate"
SEEDS = 2**31
WINDOW = 8192


class Ollama(Dialect):
    """Ollama's server. It needs a local tokenizer."""

    name: ClassVar[str] = "Ollama"
    spellings: ClassVar[tuple[Spelling, ...]] = (Spelling("schema", lambda text: {"format": json.loads(text)}),)

    @classmethod
    def describe(cls, client: Client, cards: list[dict[str, Any]], model: str | None) -> Served:
        """From `/api/show`, `/api/tags` (the digest of its weights) and `/api/version`."""
        names = {str(card["id"]) for card in cards}
        named = f"{model}:latest" if model is not None and f"{model}:latest" in names else model
        card = card_of(cards, named, client.url)
        shown = client.post("/api/show", {"model": card["id"]})
        if isinstance(shown, Refused):
            raise InputError(f"the server at {client.url} does not describe {card['id']!r}: {shown.message}")
        info = shown.get("model_info") or {}
        tags = client.get("/api/tags")
        listed = tags.get("models") or [] if isinstance(tags, dict) else []
        digest = next((entry.get("digest") for entry in listed if entry.get("name") == card["id"]), None)
        version = client.get("/api/version")
        return Served(
            model=str(card["id"]),
            version=str(version.get("version", "")) if isinstance(version, dict) else "",
            root=str(digest or ""),
            context_window=_window(info, str(shown.get("parameters") or "")),
            parameters=int(info.get("general.parameter_count") or 0),
            dtype=str((shown.get("details") or {}).get("quantization_level") or ""),
            facts={"starts": bool(info.get("tokenizer.ggml.add_bos_token"))},
        )

    def refuse(self, request: GenerateRequest) -> str | None:
        """Penalties, and a prompt that no text stands for."""
        reason = "some of its runners ignore the penalty, the others count the prompt's tokens in it"
        refusal = self.refuse_set(
            request.decoding, dict.fromkeys(("frequency_penalty", "presence_penalty", "repetition_penalty"), reason)
        )
        if refusal is not None:
            return refusal
        text = self._text(request.prompt)
        if text is None:
            return f"{self.described} takes text only, and no text is read as just the tokens of this prompt"
        return None

    def draw(
        self, request: GenerateRequest, seed: int, grammar: dict[str, Any], *, again: bool = True
    ) -> Drawn | Refused:
        """See `Dialect.draw`."""
        decoding = request.decoding
        options = {
            "num_predict": decoding.max_tokens,
            "num_ctx": self.served.context_window,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k,
            "min_p": decoding.min_p,
            "stop": decoding.stop,
            "seed": seed % SEEDS,
            "repeat_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
        }
        body = {
            "model": self.served.model,
            "prompt": self._text(request.prompt),
            "raw": True,
            "stream": False,
            "truncate": False,
            "shift": False,
            "options": options,
            **grammar,
        }
        answer = self.client.post(PATH, body, again=again)
        if isinstance(answer, Refused):
            return answer
        return read(lambda: self._drawn(answer, len(request.prompt)))

    def _text(self, prompt: tuple[int, ...]) -> str | None:
        """The text that the server reads as `prompt`, None where there is none."""
        start = self.tokenizer.start()
        if self.served.facts.get("starts"):
            if not start or prompt[: len(start)] != start:
                return None
            prompt = prompt[len(start) :]
        text = self.tokenizer.text(prompt)
        return text if self.tokenizer.encode(text) == prompt else None

    def _drawn(self, answer: dict[str, Any], meant: int) -> Drawn | Refused:
        counted = int(answer.get("prompt_eval_count") or 0)
        if counted > meant:
            return Refused(
                200,
                f"it read {counted} tokens where the prompt has {meant}: the tokenizer is not this model's",
            )
        finish = finished(answer.get("done_reason"))
        if finish is None:
            return Refused(200, f"the text ended with {answer.get('done_reason')!r}")
        text = str(answer["response"])
        tokens = self.tokenizer.encode(text)
        return Drawn(Sample(text, tokens, (UNKNOWN,) * len(tokens), finish), meant, 0)


def _window(info: dict[str, Any], parameters: str) -> int | None:
    """The window of a model whose Modelfile says `parameters`, one a line."""
    trained = window_of(info.get(f"{info.get('general.architecture')}.context_length"))
    lines = (line.split() for line in parameters.splitlines())
    asked = next((int(words[1]) for words in lines if words[:1] == ["num_ctx"] and words[-1].isdigit()), None)
    return min((value for value in (asked or WINDOW, trained) if value), default=None) if asked or trained else None
