"""An engine as a `dspy.LM`, so that DSPy's own modules, adapters and optimizers run on it.

`language_model(engine)` gives the LM. Ordinary DSPy calls (chat messages) go through `complete`; our own predictors
find the `Gatherer` behind the LM and send token ids.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dspy
from dspy import lm15
from pydantic import ValidationError

from ..seeds import derive_seed
from .engine import Decoding, Engine, GenerateRequest, Turn
from .gather import Gatherer, RequestFailed

EXTENSION = "cuecard"
EXTENSIONS = ("min_p", "repetition_penalty", "grammar", "prefill", "raw")
UNSUPPORTED = ("logprobs", "probabilities", "reasoning")
DEFAULT_MAX_TOKENS = 256


class EngineBridge:
    """DSPy's engine contract (`complete(Request) -> Response`) over a gathered engine.

    What DSPy's `Config` has no word for goes into `Config.extensions["cuecard"]`: `min_p`, `repetition_penalty`,
    `grammar` (Lark), `prefill` (the start of the assistant's turn), `raw` (true: the messages' text without a chat
    template). A request that is repeated word for word at a temperature above 0 gets a fresh seed each time, derived
    from how often it was made (for the same item, see `Gatherer.working_on`), because DSPy asks for `n` samples as `n`
    equal requests.
    """

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = True
    supported_params = frozenset(
        {"temperature", "max_tokens", "top_p", "top_k", "stop", "seed", "frequency_penalty", "presence_penalty",
         "response_format"}
    )  # fmt: skip

    def __init__(self, engine: Engine, defaults: Decoding | None = None) -> None:
        self.gatherer = Gatherer(engine)
        self.defaults = defaults or Decoding(max_tokens=DEFAULT_MAX_TOKENS)
        self._repeats: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> EngineBridge:
        return self

    @property
    def engine(self) -> Engine:
        """The engine that answers."""
        return self.gatherer.engine

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one DSPy request. A request the engine can't answer raises lm15's own error with the reason."""
        extra = dict((request.config.extensions or {}).get(EXTENSION) or {})
        unknown = sorted(set(extra) - set(EXTENSIONS))
        if unknown:
            raise lm15.InvalidRequestError(f"unknown extension {unknown[0]!r}; expected one of {', '.join(EXTENSIONS)}")
        if request.tools:
            raise lm15.UnsupportedFeatureError("a Cuecard target has no native tool calls")
        for name in UNSUPPORTED:
            if getattr(request.config, name) is not None:
                raise lm15.UnsupportedFeatureError(f"a Cuecard target has no {name}")
        text = self._text(request, bool(extra.pop("raw", False)), str(extra.pop("prefill", "")))
        grammar = extra.pop("grammar", None) or _grammar(request.config.response_format)
        tokenizer = self.engine.tokenizer
        ids = tokenizer.start() + tokenizer.encode(text)
        decoding = self._fit(self._decoding(request, extra, text), len(ids))
        try:
            sample = self.gatherer.generate(GenerateRequest(ids, decoding, grammar)).samples[0]
        except RequestFailed as error:
            raise lm15.InvalidRequestError(str(error)) from error
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant([lm15.TextPart(sample.text)]),
            finish_reason="length" if sample.finish == "length" else "stop",
            usage=lm15.Usage(input_tokens=len(ids), output_tokens=len(sample.tokens)),
        )

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """The whole answer as one stream of events."""
        yield from lm15.response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing to close: the engine is borrowed."""

    def _text(self, request: lm15.Request, raw: bool, prefill: str) -> str:
        system = request.system if isinstance(request.system, str) else _text_of(request.system or ())
        turns = [Turn("system", system)] if system else []
        for message in request.messages:
            content = _text_of(message.parts)
            if message.role == "developer":
                turns.append(Turn("system", content))
            elif message.role == "assistant":
                turns.append(Turn("assistant", content))
            else:
                turns.append(Turn("user", content))
        if raw:
            return "".join(turn.content for turn in turns) + prefill
        return self.engine.tokenizer.chat(turns, prefill)

    def _decoding(self, request: lm15.Request, extra: dict[str, Any], text: str) -> Decoding:
        config = request.config
        given = {
            name: value
            for name in ("max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")
            if (value := getattr(config, name)) is not None
        }
        if config.stop:
            given["stop"] = config.stop
        try:
            decoding = Decoding.model_validate({**self.defaults.model_dump(), **given, **extra})
        except ValidationError as error:
            first = error.errors()[0]
            raise lm15.InvalidRequestError(f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error
        if decoding.temperature == 0:
            return decoding
        with self._lock:
            asked = json.dumps([self.gatherer.item, text, decoding.model_dump()], sort_keys=True)
            key = hashlib.blake2b(asked.encode(), digest_size=16).digest()  # prompts are long, and there are many
            count = self._repeats[key]
            self._repeats[key] += 1
        return decoding.model_copy(update={"seed": derive_seed(decoding.seed, count)})

    def _fit(self, decoding: Decoding, prompt_tokens: int) -> Decoding:
        """DSPy asks for more tokens than are left as a matter of course; what is left is what it gets."""
        room = self.engine.context_window - prompt_tokens
        if room < 1:
            raise lm15.ContextLengthError(
                f"the prompt has {prompt_tokens} tokens, and the context window holds {self.engine.context_window}"
            )
        return decoding.model_copy(update={"max_tokens": min(decoding.max_tokens, room)})


def language_model(engine: Engine, defaults: Decoding | None = None) -> dspy.LM:
    """A `dspy.LM` over `engine`. DSPy's own response cache is off: it knows no engine identity.

    >>> dspy.configure(lm=language_model(engine))
    """
    return dspy.LM(f"cuecard/{engine.identity}", engine=EngineBridge(engine, defaults), cache=False, num_retries=0)


def bridge_of(lm: Any) -> EngineBridge | None:
    """The bridge behind a `dspy.LM` that `language_model` made; None for any other LM."""
    engine = getattr(lm, "engine", None)
    return engine if isinstance(engine, EngineBridge) else None


def _text_of(parts: Any) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, lm15.TextPart):
            raise lm15.UnsupportedFeatureError(f"a Cuecard target takes text only, not {type(part).__name__}")
        texts.append(part.text)
    return "".join(texts)


def _grammar(response_format: Any) -> str | None:
    if response_format is None:
        return None
    schema = response_format.get("schema") if response_format["type"] == "json_schema" else {"type": "object"}
    return f"start: %json {json.dumps(schema)}\n"
