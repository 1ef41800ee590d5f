"""A tokenizer whose answers are written down, and one that gives them again, so that a replay needs no model's files.

`tokenizer.jsonl` holds one line for the start tokens, then one for each text that was encoded, each list of ids that
was decoded and each chat that was laid out, sorted. Neighbours are alike, so a line names how much it shares with the
one before.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_bytes, write_atomic
from ..models.engine import Tokenizer, Turn
from .difference import shared

Ids = tuple[int, ...]
Chat = tuple[tuple[tuple[str, str], ...], str]  # turns (role, content), and the prefill


@dataclass
class Asked:
    """What a tokenizer was asked, with its answers."""

    start: Ids = ()
    encoded: dict[str, Ids] = field(default_factory=dict)
    decoded: dict[Ids, str] = field(default_factory=dict)
    chats: dict[Chat, str] = field(default_factory=dict)


class NotRecorded(Exception):
    """The tokenizer was asked for something that was not written down. `known`: the texts that were."""

    def __init__(self, text: str, known: Sequence[str]) -> None:
        super().__init__(text)
        self.text, self.known = text, known


class RecordingTokenizer:
    """Answers as `inner` does, and notes it in `asked`. It may be called from several threads at once."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.asked = Asked(start=inner.start())

    def encode(self, text: str) -> Ids:
        """See `Tokenizer.encode`."""
        ids = self._inner.encode(text)
        with self._lock:
            self.asked.encoded[text] = ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        text = self._inner.decode(ids)
        with self._lock:
            self.asked.decoded[tuple(ids)] = text
        return text

    def chat(self, turns: Sequence[Turn], prefill: str = "") -> str:
        """See `Tokenizer.chat`."""
        text = self._inner.chat(turns, prefill)
        with self._lock:
            self.asked.chats[_key(turns, prefill)] = text
        return text

    def start(self) -> Ids:
        """See `Tokenizer.start`."""
        return self.asked.start


class ReplayTokenizer:
    """Answers what was written down. Raises `NotRecorded` for anything else."""

    def __init__(self, asked: Asked, folder: Path) -> None:
        self._asked = asked
        self._folder = folder
        self._texts = {ids: text for text, ids in asked.encoded.items()}

    def encode(self, text: str) -> Ids:
        """See `Tokenizer.encode`."""
        if text not in self._asked.encoded:
            raise NotRecorded(text, list(self._asked.encoded))
        return self._asked.encoded[text]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`. The empty list, and what nobody decoded, is looked up among the encoded texts."""
        found = self._asked.decoded.get(tuple(ids), self._texts.get(tuple(ids)))
        if found is None and ids:
            raise InputError(f"{len(ids)} tokens were not decoded when the calls were recorded", path=self._folder)
        return found or ""

    def chat(self, turns: Sequence[Turn], prefill: str = "") -> str:
        """See `Tokenizer.chat`."""
        found = self._asked.chats.get(_key(turns, prefill))
        if found is None:
            raise NotRecorded(_flat(_key(turns, prefill)), [_flat(chat) for chat in self._asked.chats])
        return found

    def start(self) -> Ids:
        """See `Tokenizer.start`."""
        return self._asked.start

    def text(self, ids: Ids) -> str:
        """The text that had these ids, special tokens included."""
        return self._texts.get(ids, "")


def write_asked(path: Path, asked: Asked) -> None:
    """Write `tokenizer.jsonl`, whole or not at all. Raises `RunError`."""
    lines: list[dict[str, Any]] = [{"start": asked.start}]
    before, before_ids = "", ()  # type: tuple[str, Ids]
    for text, ids in sorted(asked.encoded.items()):
        same, same_ids = shared(before, text), shared(before_ids, ids)
        lines.append({"encode": [same, text[same:]], "ids": [same_ids, ids[same_ids:]]})
        before, before_ids = text, ids
    lines += [{"decode": ids, "text": text} for ids, text in sorted(asked.decoded.items())]
    turns_before: tuple[tuple[str, str], ...] = ()
    before = ""
    for (turns, prefill), text in sorted(asked.chats.items()):
        same, same_text = shared(turns_before, turns), shared(before, text)
        lines.append({"chat": [same, turns[same:], prefill], "text": [same_text, text[same_text:]]})
        turns_before, before = turns, text
    content = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    write_atomic(path, content.encode("utf-8", "surrogatepass"))


def read_asked(path: Path) -> Asked:
    """Read what `write_asked` wrote. Raises `InputError` for anything else."""
    asked = Asked()
    text, ids = "", ()  # type: tuple[str, Ids]
    said, turns = "", ()  # type: tuple[str, tuple[tuple[str, str], ...]]
    for number, line in enumerate(read_bytes(path).decode("utf-8", "surrogatepass").split("\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            if "start" in record:
                asked.start = tuple(record["start"])
            elif "encode" in record:
                text = text[: record["encode"][0]] + record["encode"][1]
                ids = ids[: record["ids"][0]] + tuple(record["ids"][1])
                asked.encoded[text] = ids
            elif "decode" in record:
                asked.decoded[tuple(record["decode"])] = record["text"]
            else:
                same, rest, prefill = record["chat"]
                turns = turns[:same] + tuple((role, content) for role, content in rest)
                said = said[: record["text"][0]] + record["text"][1]
                asked.chats[turns, prefill] = said
        except (ValueError, TypeError, LookupError) as error:
            raise InputError("not a record of a tokenizer", path=path, line=number, hint="Record again.") from error
    return asked


def _key(turns: Sequence[Turn], prefill: str) -> Chat:
    return tuple((turn.role, turn.content) for turn in turns), prefill


def _flat(chat: Chat) -> str:
    """A chat as text for people."""
    turns, prefill = chat
    return "\n".join([*(f"{role}: {content}" for role, content in turns), f"assistant: {prefill}"])
