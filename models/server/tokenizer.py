"""The tokenizer of a served model: local files where the user names them, else the server's own endpoints.

Token ids must be the model's own, so a local tokenizer is compared with the server where the server tells: equal text
must have equal ids. A local one is much faster, since asking a server is a round trip for every text.

Endpoints: vLLM and SGLang have `/tokenize` and `/detokenize`, and give a chat as token ids; llama.cpp has `/tokenize`,
`/detokenize` and `/apply-template`.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol

from ...errors import InputError
from ..catalogue import CATALOGUE
from ..engine import Tokenizer, Turn
from ..pull import pulled
from ..tokenizer import HFTokenizer
from .client import Client, Refused

REMEMBERED = 4096  # texts whose ids are kept
SAMPLES = ("A customer was charged 1,234.50 twice.\n\n- yes: naïve café, 漢字 🙂", '  {"a": [1, 2]}\tend ')
ASKED = (Turn("system", "Be brief."), Turn("user", "Hello, how are you?"))

Endpoints = Literal["vllm", "sglang", "llamacpp"]


class ModelTokenizer(Tokenizer, Protocol):
    """A tokenizer that also writes special tokens out, and names itself."""

    def text(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens written out."""

    def digest(self) -> str:
        """A hash that two tokenizers share when they do the same."""


class LocalTokenizer(HFTokenizer):
    """A tokenizer from files."""

    def __init__(self, backend: Any, *, name: str) -> None:
        super().__init__(backend, name=name)
        self._files = backend

    def text(self, ids: Sequence[int]) -> str:
        """See `ModelTokenizer.text`."""
        return str(self._files.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def digest(self) -> str:
        """See `ModelTokenizer.digest`: of the tokenizer's whole definition, its template and its start."""
        core = getattr(self._files, "backend_tokenizer", None)
        definition = core.to_str() if core is not None else json.dumps(self._files.get_vocab(), sort_keys=True)
        return _digest([definition, self._files.chat_template, list(self.start())])


class ServerTokenizer:
    """The tokenizer behind a server's endpoints. `decode` leaves special tokens out where the server can: vLLM's
    `/detokenize` writes them.
    """

    def __init__(self, client: Client, endpoints: Endpoints, model: str) -> None:
        self._client, self._endpoints, self._model = client, endpoints, model
        self._ids: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._special: dict[int, bool] = {}
        self._lock = Lock()
        full, plain = self._tokenize("a", special=True), self._tokenize("a", special=False)
        places = (i for i in range(len(full)) if full[i : i + len(plain)] == plain)
        self._start = full[: next(places, 0)]

    def encode(self, text: str) -> tuple[int, ...]:
        """See `Tokenizer.encode`."""
        with self._lock:
            if text in self._ids:
                self._ids.move_to_end(text)
                return self._ids[text]
        ids = self._tokenize(text, special=False)
        with self._lock:
            self._ids[text] = ids
            if len(self._ids) > REMEMBERED:
                self._ids.popitem(last=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        known = [token for token in ids if token >= 0]
        if self._endpoints == "llamacpp":
            known = [token for token in known if not self._is_special(token)]
        return self._detokenize(known, skip=True)

    def text(self, ids: Sequence[int]) -> str:
        """See `ModelTokenizer.text`."""
        return self._detokenize(ids, skip=False)

    def chat(self, turns: Sequence[Turn], prefill: str = "") -> str:
        """See `Tokenizer.chat`. Raises `InputError` when the model has no chat template."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        start = self.text(self._start) if self._start else ""
        if self._endpoints == "llamacpp":
            return str(self._post("/apply-template", {"messages": messages}, "prompt")).removeprefix(start) + prefill
        body = {"messages": messages, "add_generation_prompt": True, "add_special_tokens": False}
        ids = _ids(self._post("/tokenize", body, "tokens"))
        text = self.text(ids)
        if self.encode(text) != ids:
            raise InputError(
                f"the chat template of {self._model!r} gives tokens that no text is read as",
                hint="Name a local tokenizer of the model with `tokenizer`.",
            )
        return text.removeprefix(start) + prefill

    def start(self) -> tuple[int, ...]:
        """See `Tokenizer.start`."""
        return self._start

    def digest(self) -> str:
        """See `ModelTokenizer.digest`: of what it does to texts and a chat, since its files are not at hand."""
        try:
            chat: str | None = self.chat(ASKED)
        except InputError:
            chat = None
        return _digest([[list(self.encode(text)) for text in SAMPLES], chat, list(self._start)])

    def _is_special(self, token: int) -> bool:
        """Whether llama.cpp reads the token's text as the token only when special tokens are read."""
        if token not in self._special:
            text = self._detokenize([token], skip=False)
            body = {"content": text, "add_special": False, "parse_special": False}
            read = self._tokenize(text, special=False)
            self._special[token] = read == (token,) and _ids(self._post("/tokenize", body, "tokens")) != read
        return self._special[token]

    def _tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        if not text:
            return ()
        if self._endpoints == "llamacpp":
            body: dict[str, Any] = {"content": text, "add_special": special, "parse_special": True}
        else:
            body = {"model": self._model, "prompt": text, "add_special_tokens": special}
        return _ids(self._post("/tokenize", body, "tokens"))

    def _detokenize(self, ids: Sequence[int], *, skip: bool) -> str:
        if not ids:
            return ""
        body: dict[str, Any] = {"tokens": list(ids)}
        if self._endpoints != "llamacpp":
            body["model"] = self._model
        if self._endpoints == "sglang":
            body["skip_special_tokens"] = skip
        field = {"llamacpp": "content", "vllm": "prompt", "sglang": "text"}[self._endpoints]
        return str(self._post("/detokenize", body, field))

    def _post(self, path: str, body: dict[str, Any], field: str) -> Any:
        answer = self._client.post(path, body)
        if isinstance(answer, Refused) or field not in answer:
            why = answer.message if isinstance(answer, Refused) else f"no {field!r} in its answer"
            raise InputError(
                f"{path} of the server at {self._client.url} fails: {why}",
                hint="Name a local tokenizer of the model with `tokenizer`: a folder, or a hub id.",
            )
        return answer[field]


def open_tokenizer(reference: str | PathLike[str]) -> LocalTokenizer:
    """The tokenizer of a folder, a model of the catalogue or a hub id; raises `InputError` where there is none."""
    from transformers import AutoTokenizer

    name = fspath(reference)
    folder = (
        pulled(name) if name in CATALOGUE else Path(name).expanduser() if Path(name).expanduser().is_dir() else None
    )
    try:
        backend = AutoTokenizer.from_pretrained(
            str(folder or name), local_files_only=folder is not None, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"no tokenizer can be read from {name!r}: {str(error).strip().partition(chr(10))[0]}",
            expected="a folder with tokenizer.json, a model that was pulled, or a hub id",
        ) from error
    return LocalTokenizer(backend, name=name)


def compare(local: LocalTokenizer, client: Client, endpoints: Endpoints, model: str) -> None:
    """Raise `InputError` when the server reads a text as other tokens than `local` does. A server that does not tell
    is taken at its word.
    """
    try:
        served = ServerTokenizer(client, endpoints, model)
        differing = next((text for text in SAMPLES if served.encode(text) != local.encode(text)), None)
    except InputError:
        return
    if differing is not None:
        raise InputError(
            f"the tokenizer given is not that of {model!r}: the server reads {differing!r} as "
            f"{list(served.encode(differing))}, the tokenizer as {list(local.encode(differing))}",
            hint="Name the tokenizer of the served model, or leave `tokenizer` out and the server is asked.",
        )


def _ids(tokens: Any) -> tuple[int, ...]:
    return tuple(int(token) for token in tokens)


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
