"""Lark to GBNF: the same texts are accepted, as llguidance (which reads both) sees it."""

from __future__ import annotations

import datetime
import json
import string
from functools import cache
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.errors import InputError
from cuecard.models.server.gbnf import convert, literal
from cuecard.models.server.grammars import Speller, Spelling, check, schema_of
from cuecard.programs.formats import format_named
from cuecard.signatures import grammar

UNTIL = 'start: part_0 part_1\npart_0[suffix="</x>"]: /(?s:.*)/\npart_1: "\\n" | ""\n'
NESTED = 'start: "<" part ">" other\npart: %lark {\nstart: /\\[/ (part (/, ?/ part)*)? /\\]/\npart: /[0-9]+/\n}\nother: "7"\n'
SOME_UNTIL = 'start: part_0 /[0-9]+/\npart_0[suffix="abab"]: /(?s:.+)/\n'


@cache
def tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


@cache
def matcher(lark: str) -> Any:
    from llguidance import LLMatcher

    found = LLMatcher(tokenizer(), LLMatcher.grammar_from_lark(lark), log_level=0)
    assert not found.is_error(), found.get_error()
    return found


def accepts(lark: str, text: str) -> bool:
    state = matcher(lark).deep_copy()
    return bool(state.consume_tokens(tokenizer().tokenize_str(text)) and state.is_accepting())


def accepts_gbnf(gbnf: str, text: str) -> bool:
    from llguidance.gbnf_to_lark import any_to_lark

    return accepts(any_to_lark(gbnf), text)


SAME = {
    "labels": ('start: "yes" | "no" | "maybe later"\n', ["yes", "no", "maybe later", "maybe", "yesno", ""]),
    "scaffold": ('start: "Label: " part_0 "\\n"\npart_0: "a\\"b" | "c\\\\d"\n',
                 ['Label: a"b\n', "Label: c\\d\n", "Label: c\\d", 'a"b\n']),
    "line": ("start: /[^\\r\\n]+/\n", ["a", "a b ü 漢 🙂", "", "a\n", "\r"]),
    "text": ("start: /(?s:.+)/\n", ["a", "a\nb\n\n", ""]),
    "dot": ("start: /a.c/\n", ["abc", "a\nc", "ac", "aüc"]),
    "int": (f"start: {grammar(int)}\n", ["0", "-12", "01", "", "-", "123456789012345678", "1234567890123456789"]),
    "float": (f"start: {grammar(float)}\n", ["0.5", "1e5", "-1.25E-07", "1.", ".5", "1e555"]),
    "date": (f"start: {grammar(datetime.date)}\n", ["2024-02-29", "2023-02-29", "1999-12-31", "0000-01-01", "2024-13-01"]),
    "nested": (NESTED, ["<[1, 22]>7", "<[]>7", "<[1,]>7", "<[7]>", "[1]7"]),
    "codes": ("start: /[^\\x00-\\x1f\\x{fc}]\\x41/\n", ["bA", "üA", "\x1fA", "bB", "漢A"]),
    "until": (UNTIL, ["</x>", "a</x>\n", "a</x", "a</x></x>", "<</x>", "</</x>", "a</x>b"]),
    "some until": (SOME_UNTIL, ["xabab1", "ababab1", "abab1", "aabab12", "abaxabab1", "xabab", "ababxabab3"]),
    "options": ('start: a? (b | "-")* c{2,3}\na: "x"\nb: /[0-9]/\nc: "z"\n',
                ["zz", "x1-2zzz", "xzzzz", "z", "1x", "--zz"]),
    "lines": ('start: "a"\n  | "b"\n// said\n\nother: "c"\n', ["a", "b", "c"]),
    "marks": ("start: /[\\]\\\\\\/\\^a-c-]+/\n", ["]", "\\", "/", "^", "b-", "d", "["]),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_same_texts_are_accepted(name: str) -> None:
    lark, texts = SAME[name]
    gbnf = convert(lark)
    found = {text: accepts_gbnf(gbnf, text) for text in texts}
    assert found == {text: accepts(lark, text) for text in texts}
    assert set(found.values()) == {True, False}, "the texts must try both"


@pytest.mark.parametrize("lark", [UNTIL, SOME_UNTIL])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_text_up_to_a_suffix_is_the_same(lark: str, data: st.DataObject) -> None:
    pieces = ["</x>", "<", "/", "x", ">", "\n", "abab", "a", "b", "1"]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=6)))
    assert accepts_gbnf(convert(lark), text) == accepts(lark, text)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_literal_is_itself(text: str) -> None:
    gbnf = convert(f"start: {json.dumps(text, ensure_ascii=False)}\n")
    assert gbnf == f"root ::= {literal(text)}\n"
    if text.isprintable():
        assert accepts_gbnf(gbnf, text)
        assert not accepts_gbnf(gbnf, text + "x")


@given(st.text(string.ascii_letters + "-]\\^/ .+*?(){}|\"'\n\t", min_size=1, max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_class_holds_its_characters(characters: str, negated: bool) -> None:
    escaped = "".join({"\n": "\\n", "\t": "\\t"}.get(c) or (c if c.isalnum() else f"\\{c}") for c in characters)
    gbnf = convert(f"start: /[{'^' if negated else ''}{escaped}]/\n".replace("\\ ", " ").replace('\\"', '"'))
    for character in {*characters, "Z", "%"}:
        assert accepts_gbnf(gbnf, character) == ((character in characters) != negated)


@pytest.mark.parametrize(
    "lark",
    [
        'start: %json {"type": "integer"}\n',
        "start: T\nT: /a+/ & ~/aa/\n",
        'start: %lark {\nstart: "a"\n',
        'start: "a" part\npart: %json {"type": "array"}\n',
        'start: "a"i\n',
        "start: /a/i\n",
        "start: /(?i:a)/\n",
        "start: /\\d+/\n",
        "start: /\\bword/\n",
        "start: /^a$/\n",
        "start: /a+?/\n",
        "start: <|end|>\n",
        "start: <[5]>\n",
        'start[max_tokens=5]: "a"\n',
        'start[suffix="b"]: /[a-z]+/\n',
        'start: "a".."z"\n',
        "%ignore / +/\nstart: /a/\n",
        'start: ("a"\n',
    ],
)
def test_what_gbnf_has_no_words_for_is_refused(lark: str) -> None:
    with pytest.raises(InputError):
        convert(lark)


def test_a_rule_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="no rule 'nothing'"):
        convert("start: nothing\n")


class Route(dspy.Signature):
    """Route the ticket."""

    ticket: str = dspy.InputField()
    queue: Literal["billing", "technical"] = dspy.OutputField()
    urgent: bool = dspy.OutputField()
    count: int = dspy.OutputField()


@pytest.mark.parametrize("name", ["turns", "turns_labelled", "completion", "chat", "dspy", "json", "xml"])
def test_every_formats_scaffold_is_said(name: str) -> None:
    format_ = format_named(name)
    answer = format_.answer(Route, {"queue": "billing", "urgent": True, "count": 3})
    lark = format_.grammar(Route)
    gbnf = convert(lark)
    for text in (answer, answer.replace("billing", "other"), answer.replace("3", "three"), f"{answer}x"):
        assert accepts_gbnf(gbnf, text) == accepts(lark, text)
    assert accepts_gbnf(gbnf, answer)


# Checking and spelling


def test_a_grammar_is_checked() -> None:
    assert check('start: "a"\n') is None
    assert check(f"start: {grammar(list[int])}\n") is None
    assert "nothing" in str(check("start: nothing\n"))
    assert check("start: (") is not None


def test_a_schema_alone_is_taken_out() -> None:
    assert schema_of('start: %json {"type": "object"}\n') == {"type": "object"}
    for lark in ('start: "x" %json {"type": "object"}\n', 'start: "a"\n', 'start: %json {"a": 1} "x"\n'):
        with pytest.raises(InputError, match="more than one JSON schema"):
            schema_of(lark)
    with pytest.raises(InputError, match="white space"):
        schema_of('start: %json {"type": "object", "x-guidance": {"whitespace_pattern": " "}}\n')


SPELLINGS = tuple(Spelling(name, lambda text, name=name: {name: text}) for name in ("llguidance", "gbnf", "schema"))


def speller(follows: str) -> tuple[Speller, list[str]]:
    tried: list[str] = []

    def try_out(fields: dict[str, Any], most: int) -> str:
        (name,) = fields
        tried.append(name)
        return next(spelling for spelling in SPELLINGS if spelling.name == name).trial[1] if name in follows else "Well"

    return Speller(SPELLINGS, try_out, "the server"), tried


def test_what_the_server_follows_is_found_out_once() -> None:
    with_llguidance, tried = speller("llguidance gbnf")
    assert with_llguidance.fields('start: "a"\n') == {"llguidance": '%llguidance {}\nstart: "a"\n'}
    assert with_llguidance.fields('start: "b"\n') == {"llguidance": '%llguidance {}\nstart: "b"\n'}
    assert tried == ["llguidance"]


def test_each_grammar_goes_in_the_first_spelling_that_can_say_it() -> None:
    without, tried = speller("gbnf schema")
    assert without.fields('start: "a"\n') == {"gbnf": 'root ::= "a"\n'}
    assert without.fields('start: %json {"type": "object"}\n') == {"schema": '{"type": "object"}'}
    assert tried == ["llguidance", "gbnf", "schema"]
    refused = without.fields('start: "a: " part\npart: %json {"type": "integer"}\n')
    assert isinstance(refused, str)
    assert "the server can't follow this grammar" in refused
    assert "llguidance: the server took a grammar and did not follow it" in refused
    assert "gbnf: grammar: GBNF has no words for" in refused
    assert "schema: the grammar is more than one JSON schema" in refused


def test_a_server_without_grammars_says_so() -> None:
    none = Speller((), lambda fields, most: "", "the server")
    assert none.fields('start: "a"\n') == "the server can't follow this grammar: it has no guided decoding"
