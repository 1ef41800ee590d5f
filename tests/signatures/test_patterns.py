"""From a pattern that is searched for to one that a whole text matches, against pydantic's own search."""

from __future__ import annotations

from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from cuecard.signatures.lark import fault, regex
from cuecard.signatures.patterns import Unsupported, whole_text

TEXTS = [
    "", "a", "b", "ab", "abc", "aab", "ba", "cat", "dog", "xdog", "12", "a1", "1a", "\u00e9", "A", "AB", "a b", " ", "a\nb", "\n",
    "a/b", "x]", "{", "a{2}", "-", "_", "\u0663", "ab12", "a-b", "\\", "^", "$", ".", '"',
]  # fmt: skip


def searched(pattern: str, text: str) -> bool:
    try:
        TypeAdapter(Annotated[str, Field(pattern=pattern)]).validate_python(text)
    except ValidationError:
        return False
    return True


def same(pattern: str, texts: list[str]) -> None:
    whole = whole_text(pattern)
    assert fault(regex(whole)) is None, whole
    for text in texts:
        assert searched(rf"\A(?:{whole})\z", text) == searched(pattern, text), (whole, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "a", "^a", "a$", "^a$", "^(a|b)$", "(^a$)|(^b$)", "^a|b$", "cat|^dog", r"\d+", r"^\w+$", r"^\W", r"^[\w-]+$", "^[^a]*$",
        "(?i)^ab$", "(?i:a)b", "^a{1,2}?b", "[]x]", "[^]a]$", "[[:alpha:]]$", r"\Aab\z", "^(?P<n>a|b)+$", "(?<n>a)$", "(?s)a.b",
        "a.b", "^$", "", "(|a)$", "^(a(b|$))", "a/b", r"a\/b", r"\p{Greek}|\x61\x{62}", r"[a-c&&[^b]]+$", r"^[a\n]+$", "a\nb",
        r"a\{2", "^(?:[a-z]+ ?)+$", r"[\]]", r"[^\]\d]$", r"(?i)a(?-i)B", r"\S$", r"^\s*$", "(?U)^a+?$", '"', "^^a$$", r"\\$",
    ],
)  # fmt: skip
def test_the_same_texts_match(pattern: str) -> None:
    same(pattern, TEXTS)


PIECES = [
    "a",
    "b",
    "ab",
    ".",
    r"\d",
    r"\W",
    "[ab]",
    "[^a]",
    r"[\d-]",
    "^",
    "$",
    "|",
    "(",
    ")",
    "(?:",
    "(?i)",
    "*",
    "?",
    "{1,2}",
    "/",
]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.lists(st.text("ab1-/ \n", max_size=5), max_size=5)
)
def test_any_pattern_is_rewritten_or_refused(pattern: str, texts: list[str]) -> None:
    try:
        TypeAdapter(Annotated[str, Field(pattern=pattern)])
    except SchemaError:
        return  # no pattern at all
    try:
        whole_text(pattern)
    except Unsupported as error:
        assert str(error).startswith(("a ", "an "))
    else:
        same(pattern, [*texts, "", "a", "b", "ab", "1"])


@pytest.mark.parametrize(
    ("pattern", "construct"),
    [
        ("x?^a", "an anchor in the middle"),
        ("a$b", "an anchor in the middle"),
        ("(^a)*", "an anchor in a repeated group"),
        ("^*a", "a repeated anchor"),
        ("(?m)^a", "the flag (?m)"),
        ("(?x: a b )", "the flag (?x)"),
        ("(?-u)a", "the flag (?-u)"),
        ("(?=a)", "a look-around ((?=)"),
        ("(?<!a)b", "a look-around ((?<!)"),
        (r"\ba", r"a word boundary (\b)"),
        (r"a\B", r"a word boundary (\B)"),
        (r"(a)\1", r"a back-reference (\1)"),
        ("(?P<n>a)(?P=n)", "a back-reference ((?P=)"),
        ("(?>a)", "a group that opens with (?>"),
        ("a++", "a possessive repetition"),
        ("|".join(["^a"] * 70), "anchors in too many alternatives"),
    ],
)
def test_what_is_refused_is_named(pattern: str, construct: str) -> None:
    with pytest.raises(Unsupported) as caught:
        whole_text(pattern)
    assert str(caught.value) == construct
