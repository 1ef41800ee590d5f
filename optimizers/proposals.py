"""From a model's text to an instruction, or to the reason why it is none.

Small models seldom keep to a form. So a proposal is read leniently: between tags, from a code fence, from JSON, after
a label such as "New instruction:", and else the whole text without its opening words. What is read may still be of no
use, and is then dropped with one of the reasons below, which are counted and told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..programs.formats.fields import description, kind, labels
from ..signatures import choices, write
from ..signatures.types import shape
from .wording import Signature

EMPTY, SHORT, LONG = "empty", "too short", "too long"
COPY, REFUSAL, SCAFFOLDING, ECHO = "a copy", "a refusal", "laid out like an example", "repeats what it was asked"
GOLD, INPUT, SURPLUS = "holds a gold answer", "holds an example's input", "more than asked for"

FEWEST, MOST = 12, 1500  # characters of an instruction
LEAK = 4  # characters from which on a gold answer is one that no other text holds by chance
LONG_INPUT, INPUT_WORDS = 12, 3  # characters and words from which on an input is one that only a copy would hold
SENTENCE = 20  # characters from which on a sentence is one that only an echo would hold

THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
TAGGED = re.compile(r"<instructions?>(.*?)</instructions?>", re.DOTALL | re.IGNORECASE)
OPENED = re.compile(r"<instructions?>", re.IGNORECASE)
CLOSED = re.compile(r"</instructions?>", re.IGNORECASE)
LABEL = re.compile(
    r"^[\s#>*_]*(?:the |my |a )?(?:(?:new|improved|better|proposed|revised|updated)\s+)*instructions?[*_]*\s*:[*_]*",
    re.I,
)
LABELLED = re.compile(LABEL.pattern, re.I | re.M)
OPENING = re.compile(
    r"\A[^\n]{0,160}:[ \t]*\n+(?=\S)|\A(?:sure|certainly|of course|okay|ok)\b[^\n]{0,160}\n+(?=\S)", re.I
)
REFUSED = re.compile(r"(?:i'?m sorry|i am sorry|sorry,|i can(?:no|')t\b|i am unable|i'm unable|as an ai\b)", re.I)
LEFT_OVER = re.compile(r"\[\[ ##|</?instructions?>|<\|\w+\|>|^score [\d.]+:", re.I | re.M)
ENDS = re.compile(r"\n|(?<=[.!?])\s")


@dataclass(frozen=True)
class Proposals:
    """instructions: what can be tried, none twice; dropped: reason -> how many proposals were dropped for it."""

    instructions: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


def read_proposals(text: str) -> list[str]:
    """The instructions that a model's text holds; at least one text, which may be empty."""
    text = THOUGHT.sub("", text).strip()
    tagged = TAGGED.findall(text)
    if tagged:
        return list(map(_bare, tagged))
    if opened := OPENED.search(text):  # the answer was cut off: what is left up to the last whole sentence
        return [_bare(_whole_sentences(text[opened.end() :]))]
    text = CLOSED.split(text)[0].strip()
    if (given := _from_json(text)) is not None:
        return [_bare(given)]
    if text.count("```") >= 2:
        return [_bare(re.sub(r"\A[\w-]*\n", "", text[text.find("```") + 3 : text.rfind("```")]))]
    if labelled := LABELLED.search(text):
        return [_bare(text[labelled.end() :])]
    return [_bare(OPENING.sub("", text))]


def _from_json(text: str) -> str | None:
    """The first value of a JSON object whose key says that it is an instruction."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        data = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return None
    values = [value for key, value in data.items() if "instruction" in key.casefold()] if isinstance(data, dict) else []
    return next((value for value in values if isinstance(value, str)), None)


def _bare(text: str) -> str:
    """An instruction without a label, quotes or marks of emphasis around it, its lines without space at their ends."""
    text = text.strip()
    if text.count("```") == 1:
        text = re.sub(r"\A```\w*\n|```\Z", "", text)
    text = LABEL.sub("", text).strip()
    for left, right in (("**", "**"), ('"""', '"""'), ("```", "```"), ('"', '"'), ("\u201c", "\u201d"), ("`", "`")):
        inside = text[len(left) : -len(right)]
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            text = inside.strip() if left not in inside and right not in inside else text
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def _whole_sentences(text: str) -> str:
    ends = [found.end() for found in re.finditer(r"[.!?\u3002](?=\s|\Z)", text)]
    return text[: ends[-1]] if ends else ""


@dataclass(frozen=True)
class Sieve:
    """Says why a proposal is dropped. `known`: instructions that a new one must not repeat; `labels`: those of the
    fields, which begin the lines of an example; `golds` and `inputs`: texts of examples that it must not hold.
    """

    known: frozenset[str]
    labels: frozenset[str] = frozenset()
    golds: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()

    def reason(self, text: str, echoed: Set[str] = frozenset()) -> str | None:
        """Why `text` is no instruction to try; None when it is one. `echoed`: sentences that it must not hold."""
        if not text:
            return EMPTY
        if REFUSED.match(text):
            return REFUSAL
        heads = {_flat(line.partition(":")[0]) for line in text.splitlines() if ":" in line}
        if LEFT_OVER.search(text) or heads & self.labels:
            return SCAFFOLDING
        if len(text) > MOST:
            return LONG
        if key(text) in self.known:
            return COPY
        if len(text) < FEWEST:
            return SHORT
        flat = _flat(text)
        if any(_within(gold, flat) for gold in self.golds):
            return GOLD
        if any(given in flat for given in self.inputs):
            return INPUT
        return ECHO if _sentences(text) & echoed else None


def echoes(prompt: str, own: Iterable[str]) -> set[str]:
    """The longer sentences of a prompt, without those of the task's `own` texts, which a proposal may well keep."""
    return _sentences(prompt) - {sentence for text in own for sentence in _sentences(text)}


def _sentences(text: str) -> set[str]:
    return {flat for part in ENDS.split(text) if len(flat := _flat(part)) >= SENTENCE}


def sieve(signature: Signature, rows: Iterable[Mapping[str, Any]], known: Sequence[str]) -> Sieve:
    """The sieve for a predictor. rows: its fields' values, gold ones for its outputs.

    A gold answer that stands for a type's label, that several rows share (a label in all but type), that the task
    itself names, or that is very short gives nothing away.
    """
    told = _flat(" ".join([signature.instructions, *(description(signature, name) for name in signature.fields)]))
    golds: dict[str, int] = {}
    inputs = set()
    seen = set()
    for row in rows:
        if (same := repr(sorted(row.items()))) in seen:  # a row that went wrong may be one of the rows shown
            continue
        seen.add(same)
        texts = {text for name in signature.output_fields if name in row for text in _texts(signature, name, row[name])}
        for text in texts:
            golds[text] = golds.get(text, 0) + 1
        given = [_flat(row[name]) for name in signature.input_fields if isinstance(row.get(name), str)]
        inputs |= {text for text in given if len(text) >= LONG_INPUT and len(text.split()) >= INPUT_WORDS}
    secret = {text for text, count in golds.items() if count == 1 and len(text) >= LEAK and not _within(text, told)}
    heads = frozenset(map(_flat, labels(signature).values()))
    return Sieve(frozenset(map(key, known)), heads, frozenset(secret), frozenset(inputs))


def _texts(signature: Signature, name: str, value: Any) -> list[str]:
    """The texts of an output's gold value, one for each of its references or items; none for a type's labels."""
    type_ = kind(signature, name)
    if choices(type_) or (shape(type_).kind == "list" and choices(shape(type_).item)):
        return []
    values = value if isinstance(value, list | tuple) else [value]
    return [_flat(text) for item in values if (text := _written(item))]


def _written(value: Any) -> str:
    try:
        return write(value)
    except InputError:  # a value without a text cannot stand in one
        return ""


def _within(part: str, whole: str) -> bool:
    return part in whole and re.search(rf"(?<!\w){re.escape(part)}(?!\w)", whole) is not None


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


def key(text: str) -> str:
    """What makes two instructions the same: their words, in order."""
    return " ".join(re.findall(r"\w+", text.casefold()))
