"""What a mask promises, for random types: every text it accepts is read as a value, and every value's text is accepted."""

from __future__ import annotations

import json
import math
import random
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import llguidance
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from llguidance._tokenizer import TokenizerWrapper
from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime, StringConstraints, create_model

from cuecard.errors import InputError
from cuecard.signatures import check_value, choices, grammar, read, text_terminal, write
from cuecard.signatures.types import shape

PIECES = '{"|["|", "|": |": "|"]|"}|], |null|true|false|tr|\\u|\\n|\\"|00|12|-1|.5|e-|E+|2024-|-0|T1|:30|  |, |ab|é|漢'


class Tokens:
    """A tokenizer of the bytes and of some longer pieces, which cross the borders of lexemes."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>", *(piece.encode() for piece in PIECES.split("|")))

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = llguidance.LLTokenizer(TokenizerWrapper(Tokens()))


class Color(Enum):
    RED = "red"
    TWO = 2
    QUOTE = 'a"b'


class Tree(BaseModel):
    name: Annotated[str, Field(max_length=3)]
    children: list[Tree] = []


def matcher(expression: str) -> llguidance.LLMatcher:
    lark = llguidance.LLMatcher.grammar_from_lark(f"start: ({expression})")
    assert llguidance.LLMatcher.validate_grammar(lark, TOKENIZER) == "", expression
    return llguidance.LLMatcher(TOKENIZER, lark, log_level=0)


def accepts(expression: str, text: str) -> bool:
    state = matcher(expression)
    tokens = list(text.encode())
    return state.try_consume_tokens(tokens) == len(tokens) and state.is_accepting()


def walk(expression: str, source: random.Random, patience: int = 40, stops: bool = True, most: int = 3000) -> str:
    """A random text of the grammar, chosen token by token; after `patience` bytes what closes a value is chosen first.

    `stops`: it may end wherever the grammar lets it. Fails where the text is not complete after `most` bytes.
    """
    state, written = matcher(expression), bytearray()
    while len(written) < most:
        late = len(written) > patience
        allowed = [token for token, bias in enumerate(state.compute_logit_bias()) if bias and token != 256]
        if state.is_accepting() and (not allowed or (stops and (late or source.random() < 0.2))):
            return written.decode(errors="strict")
        assert allowed, bytes(written)
        plain = [token for token in allowed if token < 128] or allowed
        closing = [byte for byte in b'"]}l' if byte in allowed][:1] if late and source.random() < 0.7 else []
        token = source.choice(closing or (allowed if source.random() < 0.2 else plain))
        assert state.consume_token(token)
        written += Tokens.tokens[token]
    raise AssertionError(f"not complete: {bytes(written[-80:])!r}")


def as_json(value: Any, type_: Any) -> str:
    """The value as a member of a JSON object, as the format `json` writes it."""
    if isinstance(value, Enum):
        return json.dumps(value.value if isinstance(value.value, str | int | float) else value.name)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    text = write(value, type_)
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return json.dumps(text)


def from_json(text: str, type_: Any) -> Any:
    """The value of a member of a JSON object, as the format `json` reads it."""
    value = json.loads(text)
    if value is None and shape(type_).optional:
        return None
    if isinstance(value, str) and type_ is str:
        return value
    return read(write(value, type_) if isinstance(value, str) else json.dumps(value, ensure_ascii=False), type_)


# ---- random types, each with its values

Typed = tuple[Any, "st.SearchStrategy[Any]"]
PATTERNS = [
    "^[a-z]+$",
    "[0-9]",
    r"^\d{3}-\d{2}$",
    "^cat|^dog",
    r"^(a|b$)",
    r"^\w+( \w+)*$",
    "(?i)^no?$",
    "^[^a/]{2,5}$",
]
LETTERS = st.characters(exclude_categories=["Cs", "Cc", "Z"])


@st.composite
def bounded(draw: st.DrawFn, low: int = -(10**6), high: int = 10**6) -> tuple[dict[str, Any], int | None, int | None]:
    """Random bounds: as arguments of `Field`, and as the inclusive range that whole numbers have."""
    first, last = sorted(draw(st.lists(st.integers(low, high), min_size=2, max_size=2, unique=True)))
    least, most = (
        draw(st.sampled_from([("ge", 0), ("gt", 1), (None, 0)])),
        draw(st.sampled_from([("le", 0), ("lt", 1), (None, 0)])),
    )
    assume(first + least[1] <= last - most[1])
    arguments = {name: value for name, value in ((least[0], first), (most[0], last)) if name}
    return arguments, first + least[1] if least[0] else None, last - most[1] if most[0] else None


@st.composite
def whole_numbers(draw: st.DrawFn) -> Typed:
    arguments, low, high = draw(bounded())
    low, high = -(10**17) if low is None else low, 10**17 if high is None else high
    if draw(st.booleans()):
        step = draw(st.sampled_from([2, 5, 7, 60]))
        first, last = -(-low // step), high // step
        assume(first <= last)
        return Annotated[int, Field(**arguments, multiple_of=step)], st.integers(first, last).map(lambda n: n * step)
    return Annotated[int, Field(**arguments)] if arguments else int, st.integers(low, high)


@st.composite
def floats(draw: st.DrawFn) -> Typed:
    arguments, _, _ = draw(bounded())
    arguments = {name: value / draw(st.sampled_from([1, 8, 1000, 10**9])) for name, value in arguments.items()}
    low, high = arguments.get("ge", arguments.get("gt")), arguments.get("le", arguments.get("lt"))
    assume(low is None or high is None or low < high)
    if draw(st.booleans()):
        step = draw(st.sampled_from([0.5, 0.25, 0.05]))
        least, most = -1000.0 if low is None else low, 1000.0 if high is None else high
        first, last = math.floor(least / step) + 1, math.ceil(most / step) - 1
        assume(first <= last)
        return Annotated[float, Field(**arguments, multiple_of=step)], st.integers(first, last).map(
            lambda n: round(n * step, 2)
        )
    values = st.floats(-1e90 if low is None else low, 1e90 if high is None else high)
    inside = values.filter(lambda x: (x != 0 or math.copysign(1, x) > 0) and (x == 0 or abs(x) > 1e-90))
    strict = inside.filter(lambda x: x != arguments.get("gt") and x != arguments.get("lt"))
    return Annotated[float, Field(**arguments)] if arguments else float, strict


@st.composite
def decimals(draw: st.DrawFn) -> Typed:
    arguments, low, high = draw(bounded(-999, 999))
    places = draw(st.sampled_from([None, 0, 2]))
    if places is not None:
        arguments["decimal_places"] = places
    if draw(st.booleans()):
        arguments["max_digits"] = 6
    values = st.decimals(
        -999 if low is None else low, 999 if high is None else high, places=2 if places is None else places
    )
    return Annotated[Decimal, Field(**arguments)] if arguments else Decimal, values


@st.composite
def texts(draw: st.DrawFn) -> Typed:
    low, high = sorted(draw(st.tuples(st.integers(0, 6), st.integers(1, 9))))
    arguments = draw(
        st.sampled_from([{"min_length": low}, {"max_length": high}, {"min_length": low, "max_length": high}])
    )
    least, most = max(arguments.get("min_length", 0), 1), arguments.get("max_length", 12)
    return Annotated[str, Field(**arguments)], st.text(LETTERS, min_size=least, max_size=most)


@st.composite
def days(draw: st.DrawFn) -> Typed:
    first, last = sorted(draw(st.lists(st.dates(), min_size=2, max_size=2, unique=True)))
    arguments = draw(st.sampled_from([{}, {"ge": first}, {"le": last}, {"gt": first, "le": last}]))
    low = first + timedelta(days="gt" in arguments) if "le" not in arguments or "gt" in arguments else date.min
    return (
        Annotated[date, Field(**arguments)] if arguments else date,
        st.dates(low if arguments else date.min, last if "le" in arguments else date.max),
    )


def patterns() -> st.SearchStrategy[Typed]:
    def typed(pattern: str) -> Typed:
        found = st.from_regex(
            pattern, fullmatch=False, alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])
        )
        type_ = Annotated[str, Field(pattern=pattern)]
        return type_, found.map(str.strip).filter(lambda text: text != "" and _valid(text, type_))

    return st.sampled_from(PATTERNS).map(typed)


def _valid(value: Any, type_: Any) -> bool:
    try:
        return bool(check_value(value, type_, field="x") == value)
    except Exception:
        return False


aware = st.datetimes(timezones=st.timezones()).map(lambda when: datetime.fromisoformat(when.isoformat()))
labels = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=4, unique=True)
leaves: st.SearchStrategy[Typed] = st.one_of(
    st.sampled_from(
        [
            (bool, st.booleans()),
            (date, st.dates()),
            (datetime, st.datetimes()),
            (NaiveDatetime, st.datetimes()),
            (time, st.times()),
            (UUID, st.uuids()),
            (Color, st.sampled_from(Color)),
            (Literal[1, 10, "x", True], st.sampled_from([1, 10, "x", True])),
        ]
    ),
    whole_numbers(),
    floats(),
    decimals(),
    texts(),
    patterns(),
    days(),
    labels.map(lambda some: (Literal[tuple(some)], st.sampled_from(some))),
)


@st.composite
def lists(draw: st.DrawFn, inner: st.SearchStrategy[Typed]) -> Typed:
    type_, values = draw(inner)
    low, high = sorted(draw(st.tuples(st.integers(0, 2), st.integers(1, 4))))
    arguments = draw(
        st.sampled_from([{}, {"min_length": low}, {"max_length": high}, {"min_length": low, "max_length": high}])
    )
    found = st.lists(values, min_size=arguments.get("min_length", 0), max_size=arguments.get("max_length", 4))
    return Annotated[list[type_], Field(**arguments)] if arguments else list[type_], found  # type: ignore[valid-type]


@st.composite
def mappings(draw: st.DrawFn, inner: st.SearchStrategy[Typed]) -> Typed:
    type_, values = draw(inner)
    arguments = draw(st.sampled_from([{}, {"min_length": 1}, {"max_length": 2}]))
    found = st.dictionaries(st.text(max_size=3), values, min_size=arguments.get("min_length", 0), max_size=2)
    return Annotated[dict[str, type_], Field(**arguments)] if arguments else dict[str, type_], found  # type: ignore[valid-type]


@st.composite
def models(draw: st.DrawFn, inner: st.SearchStrategy[Typed]) -> Typed:
    fields = draw(st.lists(inner, min_size=1, max_size=3))
    given = draw(st.lists(st.booleans(), min_size=len(fields), max_size=len(fields)))
    definitions: dict[str, Any] = {
        f"f{here}": (type_ | None, None) if free else (type_, ...)
        for here, ((type_, _), free) in enumerate(zip(fields, given, strict=True))
    }
    model = create_model("Random", **definitions)
    built = {
        f"f{here}": st.none() | values if free else values
        for here, ((_, values), free) in enumerate(zip(fields, given, strict=True))
    }
    return model, st.builds(model, **built)


def optionals(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    plain = inner.filter(lambda typed: "null" not in (choices(typed[0]) or ()))
    return plain.map(lambda typed: (typed[0] | None, st.none() | typed[1]))


def held(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    return st.one_of(lists(inner), mappings(inner), models(inner), optionals(inner))


TYPES = st.recursive(leaves, held, max_leaves=4)
many = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@many
@given(TYPES, st.integers(0, 10**6), st.booleans(), st.booleans())
def test_what_a_mask_accepts_is_read(typed: Typed, seed: int, one_line: bool, in_json: bool) -> None:
    type_, _ = typed
    text = walk(grammar(type_, one_line=one_line, json=in_json), random.Random(seed))
    value = from_json(text, type_) if in_json else read(text, type_)
    check_value(value, type_, field="value")


@many
@given(TYPES, st.data(), st.booleans(), st.booleans())
def test_what_is_written_a_mask_accepts(typed: Typed, data: st.DataObject, one_line: bool, in_json: bool) -> None:
    type_, values = typed
    value = data.draw(values)
    text = as_json(value, type_) if in_json else write(value, type_)
    assert accepts(grammar(type_, one_line=one_line, json=in_json), text), text


# ---- types by name: what random ones seldom are


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(ge=0, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    friends: list[Pet] = []


class Pet(BaseModel):
    animal: Annotated[Cat | Dog, Field(discriminator="kind")]


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow", str_strip_whitespace=True)

    name: Annotated[str, Field(min_length=2, max_length=3)]
    size: float = 1.0


class Free(BaseModel):
    a: int = 0
    b: bool | None = None
    c: Annotated[str, Field(alias='c/"d"', max_length=1)] = ""


class Nothing(BaseModel):
    pass


class Link(BaseModel):
    value: bool
    next: Link | None = None


class Pair(NamedTuple):
    first: int
    second: bool = True


NAMED: list[Any] = [
    Any, list, dict, Tree, Pet, list[Pet], Loose, Free, Nothing, Link, Pair, tuple[int, bool], tuple[bool, ...], tuple[()],
    Decimal | int, list[date | UUID], set[int], frozenset[Literal["a", "b"]], int | str, list[int | str | None], int | bool | None, list[Color],
    dict[int, bool], dict[Color, int], dict[date, int], dict[bool, int], dict[Decimal, int], dict[str, Any],
    dict[Annotated[str, Field(pattern="^[a-z]{2}$")], int], list[NaiveDatetime], str | None,
    Annotated[str, StringConstraints(strip_whitespace=True, min_length=2, to_upper=True)],
    list[Annotated[str, StringConstraints(strip_whitespace=True, min_length=2, pattern="^[a-c ]+$")]],
    Annotated[str | None, Field(max_length=6)], Annotated[str | None, Field(min_length=5)],
    Annotated[float, Field(multiple_of=0.3)], Annotated[float, Field(gt=0, lt=1e-7)], Annotated[float, Field(ge=1e100)],
    Annotated[int, Field(ge=10**20)], Annotated[Decimal, Field(gt=Decimal("0.1"), lt=1)], Annotated[Decimal, Field(max_digits=20)],
    list[Annotated[Decimal, Field(multiple_of=Decimal("0.07"), ge=0)]],
]  # fmt: skip


@pytest.mark.parametrize("type_", NAMED, ids=repr)
@pytest.mark.parametrize("one_line", [True, False])
def test_what_a_mask_of_a_named_type_accepts_is_read(type_: Any, one_line: bool) -> None:
    for seed in range(6):
        text = walk(grammar(type_, one_line=one_line), random.Random(seed))
        check_value(read(text, type_), type_, field="value")
        text = walk(grammar(type_, one_line=one_line, json=True), random.Random(seed))
        check_value(from_json(text, type_), type_, field="value")


CLOSED: list[tuple[Any, int]] = [
    (int, 20), (float, 60), (Decimal, 60), (Annotated[float, Field(ge=0)], 60), (Annotated[float, Field(gt=0, lt=1e-5)], 60),
    (Annotated[Decimal, Field(le=-1)], 60), (Annotated[float, Field(multiple_of=0.05)], 25),
    (Annotated[int, Field(multiple_of=3)], 25), (date, 10), (datetime, 40), (time, 25), (UUID, 36), (bool, 5),
    (Annotated[list[float], Field(max_length=2)], 200), (Annotated[list[Decimal], Field(max_length=2)], 200),
    (tuple[int, Decimal], 150), (Annotated[str, Field(max_length=5)], 25), (list[Literal["a"]] | None, 10**6),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "most"), CLOSED[:-1], ids=repr)
@pytest.mark.parametrize("in_json", [True, False])
def test_what_is_bounded_ends_by_itself(type_: Any, most: int, in_json: bool) -> None:
    for seed in range(5):
        text = walk(grammar(type_, one_line=False, json=in_json), random.Random(seed), patience=10**6, stops=False)
        assert len(text) <= most * (6 if in_json else 1)  # a character may be an escape


@pytest.mark.parametrize("type_", [list[int], list[float], list[Decimal], dict[str, Any], list[Any], Any], ids=repr)
def test_no_number_has_endless_digits_and_no_white_space_goes_on(type_: Any) -> None:
    expression = grammar(type_, json=True)
    around = '{"a": [%s]}' if type_ == dict[str, Any] else "[%s]"
    assert accepts(expression, around % "1, -2")
    for text in ("1" * 300, "0." + "1" * 300, "1e" + "1" * 300, "  1", "1  ", "1,  2"):
        assert not accepts(expression, around % text), text


def test_what_holds_itself_is_held_so_often() -> None:
    def nested(depth: int) -> str:
        return '{"value":true,"next":' * (depth - 1) + '{"value":true}' + "}" * (depth - 1)

    assert accepts(grammar(Link), nested(32))
    assert not accepts(grammar(Link), nested(33))
    assert accepts(grammar(Any, json=True), "[" * 32 + "1" + "]" * 32)
    assert not accepts(grammar(Any, json=True), "[" * 33 + "1" + "]" * 33)


def test_a_declared_key_is_not_taken_for_another() -> None:
    loose = grammar(Loose)
    assert accepts(loose, '{"name":"ab","more":[1]}')
    assert accepts(loose, '{"name":"ab","size":2,"names":"x"}')
    assert not accepts(loose, '{"name":"ab","name":5}')
    assert not accepts(loose, '{"name":"ab","n\\u0061me":5}')


def test_the_tag_of_a_union_is_written_though_it_has_a_default() -> None:
    assert accepts(grammar(Pet), '{"animal":{"kind":"cat","lives":9}}')
    assert accepts(grammar(Cat), '{"lives":9}')
    assert not accepts(grammar(Pet), '{"animal":{"lives":9}}')


# ---- texts that a lexeme ends lazily


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (str, ["a", " two\nlines\n"], [""]),
        (str | None, ["a", "null"], [""]),
        (Annotated[str, Field(max_length=5)], ["abcde", "a\nb"], ["abcdef", " a", "a\n"]),
        (Annotated[str, Field(min_length=9)], ["123456789"], ["1\nB: 34567"]),
        (Annotated[str | None, Field(pattern="^[0-9]+$")], ["12", "null"], ["a"]),
    ],
)
def test_text_up_to_what_follows(type_: Any, good: list[str], bad: list[str]) -> None:
    lark = f'start: "A: " part "1"\npart[suffix="\\nB: "]: {text_terminal(type_, before=chr(10) + "B: ")}'

    def taken(text: str) -> bool:
        state = llguidance.LLMatcher(TOKENIZER, llguidance.LLMatcher.grammar_from_lark(lark), log_level=0)
        assert not state.is_error(), state.get_error()
        tokens = list(f"A: {text}\nB: 1".encode())
        return state.try_consume_tokens(tokens) == len(tokens) and state.is_accepting()

    assert [text for text in good if not taken(text)] == []
    assert [text for text in bad if taken(text)] == []


def test_text_terminal_is_for_text() -> None:
    with pytest.raises(InputError) as caught:
        text_terminal(int, field="label")
    assert str(caught.value) == "label: found the type int; expected str"


# ---- what a mask cannot hold

OTHER = "Without a mask, the read-out `text` checks any pattern once the answer is there."


class Coded(BaseModel):
    codes: list[Annotated[str, Field(pattern=r"\bx")]]


class Looking(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")

    code: Annotated[str, Field(pattern="^(?!x)")]


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        (Annotated[str, Field(pattern=r"\bcat\b")], f"label: found the pattern '\\\\bcat\\\\b', with a word boundary (\\b), which a mask cannot hold; expected a pattern without it\n  {OTHER}"),
        (Annotated[str, Field(pattern="a(^b)")], f"label: found the pattern 'a(^b)', with an anchor in the middle, which a mask cannot hold; expected a pattern without it\n  {OTHER}"),
        (Annotated[str, Field(pattern="(?m)^a$")], f"label: found the pattern '(?m)^a$', with the flag (?m), which a mask cannot hold; expected a pattern without it\n  {OTHER}"),
        (Coded, f"label.codes: found the pattern '\\\\bx', with a word boundary (\\b), which a mask cannot hold; expected a pattern without it\n  {OTHER}"),
        (Looking, f"label.code: found the pattern '^(?!x)', with a look-around ((?!), which a mask cannot hold; expected a pattern without it\n  {OTHER}"),
        (Annotated[str, Field(pattern="^a$", min_length=2)], "label: found the pattern '^a$', which no text meets; expected constraints that leave a value"),
        (Annotated[str, Field(max_length=0)], "label: found constraints on str that no value meets; expected room for a value"),
        (Annotated[int, Field(ge=5, le=3)], "label: found constraints on int that no value meets; expected room for a value"),
        (Annotated[int, Field(multiple_of=10, ge=11, le=19)], "label: found constraints on int that no value meets; expected room for a value"),
        (list[Annotated[date, Field(gt=date.max)]], None),
        (Annotated[list[Annotated[date, Field(gt=date.max)]], Field(min_length=1)], "label: found constraints on list[date] that no value meets; expected room for a value"),
        (Annotated[float, Field(multiple_of=0.1, ge=10**7)], "label: found multiple_of=0.1 with bounds that leave no float in reach; expected numbers below a million, or Decimal"),
        (Annotated[Decimal, Field(multiple_of=5, max_digits=3)], "label: found multiple_of beside max_digits or decimal_places, which a mask cannot hold at once; expected one of them"),
    ],
)  # fmt: skip
def test_what_a_mask_cannot_hold_is_refused_by_name(type_: Any, message: str | None) -> None:
    if message is None:
        assert accepts(grammar(type_), "[]")
        return
    with pytest.raises(InputError) as caught:
        grammar(type_, field="label")
    assert str(caught.value) == message


def test_a_step_with_too_many_digits_is_refused() -> None:
    with pytest.raises(InputError, match="^x: found multiple_of=1.23456789012, which a mask cannot count by"):
        grammar(Annotated[float, Field(multiple_of=1.23456789012)], field="x")


@pytest.mark.parametrize("most", [0.0, 0.001, 0.06])
def test_zero_is_written_where_it_is_the_largest_multiple(most: float) -> None:
    expression = grammar(Annotated[float, Field(le=most, multiple_of=0.05)])
    assert [text for text in ("0", "0.0", "0.00", "-0.05", "0.1") if accepts(expression, text)] == [
        "0", "0.0", "0.00", "-0.05",
    ]  # fmt: skip
