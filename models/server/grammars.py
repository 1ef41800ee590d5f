"""Grammars for servers: checked here, spelled as a server takes them, and tried once before they are relied on.

Ours are llguidance's Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md). A server that has
llguidance takes them as they are, after a `%llguidance` line that no other parser accepts, so that none can take them
for another language and mask by something else. Where only a GBNF parser is (llama.cpp's own, XGrammar's in vLLM and
SGLang), `gbnf` converts; see there for what it can't. A schema alone goes as JSON schema.

Some servers drop a grammar that they can't read and answer without a mask (llama.cpp built with llguidance does), and
most drop a field that they do not know. So a grammar is checked here first, and the first one sent to a server is a
small one whose only text no model would write by itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from .client import Refused
from .gbnf import convert

HEADER = "%llguidance {}\n"
TRIED_TEXT = "=~4Qz~="
TRIED = f'start: "{TRIED_TEXT}"\n'
TRIED_SCHEMA = 'start: %json {"const": "4Qz"}\n'
TRIED_SCHEMA_TEXT = '"4Qz"'
TRIED_TOKENS = 24


@dataclass(frozen=True)
class Spelling:
    """One way to send a grammar. name: `llguidance`, `gbnf` or `schema`; fields: the request's fields that carry the
    text; write: our Lark in this spelling, which raises `InputError` for what it has no words for.
    """

    name: str
    fields: Callable[[str], dict[str, Any]]

    def write(self, lark: str) -> str:
        """`lark` in this spelling. Raises `InputError` for what can't be said in it."""
        if self.name == "llguidance":
            return HEADER + lark
        if self.name == "gbnf":
            return convert(lark)
        return json.dumps(schema_of(lark))

    @property
    def trial(self) -> tuple[str, str]:
        """A small grammar, and the only text that it accepts."""
        return (TRIED_SCHEMA, TRIED_SCHEMA_TEXT) if self.name == "schema" else (TRIED, TRIED_TEXT)


def check(lark: str) -> str | None:
    """Why `lark` is no grammar, or None when it is one."""
    from llguidance import LLMatcher

    try:
        found = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark), None)
    except ValueError as error:
        return str(error)
    return str(found) or None


def schema_of(lark: str) -> dict[str, Any]:
    """The JSON schema that is the whole of `lark`. Raises `InputError` where there is more, or less.

    Ours may say where white space stands (`x-guidance`), which only llguidance reads: those are not taken.
    """
    head, _, rest = lark.strip().partition("%json")
    try:
        schema = json.loads(rest) if head.strip() == "start:" else None
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise InputError("the grammar is more than one JSON schema")
    if "x-guidance" in json.dumps(schema):
        raise InputError("the JSON schema says where white space may stand, which only llguidance reads")
    return schema


Try = Callable[[dict[str, Any], int], str | Refused]


@dataclass
class Speller:
    """Finds out, at the first grammar, which spellings a server really follows, and spells with the first that can.

    spellings: those of the dialect, best first; try_out: generates from fields at most so many tokens of text, without
    trying again; server: for messages.
    """

    spellings: tuple[Spelling, ...]
    try_out: Try
    server: str
    _working: list[Spelling] | None = None
    _why: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fields(self, lark: str) -> dict[str, Any] | str:
        """The request's fields that carry `lark`, or why it can't be sent."""
        with self._lock:
            if self._working is None:
                self._working = self._find()
        reasons = list(self._why)
        for spelling in self._working:
            try:
                return spelling.fields(spelling.write(lark))
            except InputError as error:
                reasons.append(f"{spelling.name}: {error}")
        return f"{self.server} can't follow this grammar: {'; '.join(reasons) or 'it has no guided decoding'}"

    def _find(self) -> list[Spelling]:
        """The spellings that the server follows; llguidance alone where it has it, since nothing is lost in it."""
        working: list[Spelling] = []
        for spelling in self.spellings:
            if self._follows(spelling):
                working.append(spelling)
                if spelling.name == "llguidance":
                    break
        return working

    def _follows(self, spelling: Spelling) -> bool:
        """Whether the server's text is the only one that the trial grammar accepts."""
        lark, text = spelling.trial
        said = self.try_out(spelling.fields(spelling.write(lark)), TRIED_TOKENS)
        if isinstance(said, Refused):
            self._why.append(f"{spelling.name}: {said.message}")
            return False
        followed = said.strip() == text
        if not followed:
            self._why.append(f"{spelling.name}: the server took a grammar and did not follow it")
        return followed
