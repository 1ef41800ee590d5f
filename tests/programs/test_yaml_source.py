"""YAML in and out: plain data, lines, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.errors import InputError
from cuecard.programs.yaml_source import dump_yaml, parse_yaml


def read(text: str) -> Any:
    return parse_yaml(text, "a.yaml").data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("1_000", "1_000"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("1.2.3", "1.2.3"),
        ("'null'", "null"),
        ("=", "="),
        ("!!str 12", "12"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = read(f"a: {text}\n")["a"]
    assert (type(found), found) == (type(value), value)


def test_every_key_and_item_has_its_line() -> None:
    source = parse_yaml("a: 1\nb:\n  - x: 1\n    y: [1,\n      2]\n  - z\n\nc: {d: e}\n", "a.yaml")
    lines = {(): 1, ("a",): 1, ("b",): 2, ("b", 0, "x"): 3, ("b", 0, "y"): 4, ("b", 0, "y", 1): 5, ("b", 1): 6}
    assert {keys: source.line(keys) for keys in lines} == lines
    assert source.line(("c", "d")) == 8
    assert source.line(("b", 0, "none", "deeper")) == 3  # the nearest parent that stands somewhere
    assert source.line(("none",)) == 1


def test_anchors_and_merge_keys() -> None:
    source = parse_yaml(
        "base: &b {x: 1, y: 2}\nmore:\n  <<: *b\n  y: 3\nagain: *b\nboth: {<<: [{x: 0}, *b]}\n", "a.yaml"
    )
    assert source.data["more"] == {"y": 3, "x": 1}
    assert source.data["again"] == {"x": 1, "y": 2}
    assert source.data["both"] == {"x": 0, "y": 2}
    assert (source.line(("more", "y")), source.line(("more", "x")), source.line(("again",))) == (4, 1, 5)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yaml: the file is empty"),
        ("# nothing\n", "a.yaml: the file is empty"),
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3: a: this key stands twice, first in line 1"),
        (
            "a: 1\na: 2\nb: {c: 1, c: 2}\n",
            "a.yaml:2: a: this key stands twice, first in line 1\n"
            "a.yaml:3: b.c: this key stands twice, first in line 3",
        ),
        (
            "a: b: c",
            "a.yaml:1: not valid YAML: mapping values are not allowed here, at 'a: b: c'\n"
            "  Text that holds ': ' goes in quotes.",
        ),
        (
            "a:\n\tb: c",
            "a.yaml:2: not valid YAML: while scanning for the next token, found character '\\t' that cannot start any "
            "token, at 'b: c'\n  Indent with spaces, not with tabs.",
        ),
        (
            "inputs: {tags: list[str], n: int}",
            "a.yaml:1: not valid YAML: while parsing a flow mapping, expected ',' or '}', but got '[', at "
            "'inputs: {tags: list[str], n: int}'\n"
            "  Between braces or brackets, text that holds one of , [ ] { } goes in quotes.",
        ),
        ("a: *b", "a.yaml:1: not valid YAML: found undefined alias 'b', at 'a: *b'"),
        (
            "a: 'b",
            'a.yaml:1: not valid YAML: while scanning a quoted scalar, found unexpected end of stream, at "a: \'b"',
        ),
        (
            "a: 1\n---\nb: 2\n",
            "a.yaml:2: not valid YAML: expected a single document in the stream, but found another document, at '---'",
        ),
        ("a: 1\nb: \x01\n", "a.yaml:2: holds the control character U+0001"),
        ("1: a\n", "a.yaml:1: found '1' as a key; expected text\n  Put the key in quotes."),
        ("? [a]\n: b\n", "a.yaml:1: found a list or mapping as a key; expected text\n  Put the key in quotes."),
        ("a: !!int x\n", "a.yaml:1: a: found 'x'; expected a whole number"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "a.yaml:1: a: the tag !!python/object/apply:os.system is not allowed; "
            "expected plain text, numbers, lists or mappings",
        ),
        (
            "a: !secret b\n",
            "a.yaml:1: a: the tag !secret is not allowed; expected plain text, numbers, lists or mappings",
        ),
        ("a: &a [*a]\n", "a.yaml:1: a[0]: an anchor holds itself"),
        ("&a {<<: *a}\n", "a.yaml:1: an anchor holds itself"),
        ("<<: x\n", "a.yaml:1: <<: found something else; expected an alias of a mapping"),
        ("[" * 100, f"a.yaml:1: not valid YAML: nested more than 64 deep, at '{'[' * 60}'"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        read(text)
    assert str(raised.value) == message


def test_aliases_must_not_multiply_the_file() -> None:
    with pytest.raises(InputError, match="aliases repeat too much"):
        read(BOMB)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)
AWKWARD = st.text(
    st.sampled_from("a \n\t\r:#-'\"\\|>&*!%@`{}[],?=~<0123.eE_+yesnoYN\x85\u2028\ufeff\x00é😀"), max_size=30
)


@settings(max_examples=200, deadline=None)
@given(PLAIN | AWKWARD | st.lists(AWKWARD) | st.dictionaries(AWKWARD, AWKWARD | st.lists(AWKWARD)))
def test_what_is_written_reads_back_equal(data: Any) -> None:
    text = dump_yaml(data)
    found = read(text)
    assert repr(found) == repr(data)
    assert dump_yaml(found) == text


def test_text_is_written_for_people() -> None:
    data = {
        "zeta": "Two lines,\none after the other.\n",
        "alpha": "Grüße, 世界",
        "signature": "a -> b: Literal['yes', 'no']",
        "label": "no",
        "items": ({"name": "x"}, [1, 2]),
    }
    assert dump_yaml(data) == (
        "zeta: |\n  Two lines,\n  one after the other.\n"
        "alpha: Grüße, 世界\n"
        "signature: \"a -> b: Literal['yes', 'no']\"\n"
        "label: 'no'\n"
        "items:\n  - name: x\n  - - 1\n    - 2\n"
    )
