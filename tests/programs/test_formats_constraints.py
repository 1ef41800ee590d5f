"""Outputs with constraints in every format: whatever a mask lets through is read back as a value that meets them."""

from __future__ import annotations

import itertools
import random
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import dspy
import llguidance
import pytest
from llguidance._tokenizer import TokenizerWrapper
from pydantic import BaseModel, Field, TypeAdapter

from cuecard.errors import InputError, ReadError
from cuecard.programs.formats import format_named, names
from cuecard.programs.formats.fields import requirement
from cuecard.signatures import field_types
from cuecard.signatures.types import shape

every_format = pytest.mark.parametrize("choice", names())

# What readers may stumble over, but for whole labels, tags and markers, which may cut a text off.
PIECES = (
    *("\nAnswe", "\n**", "**", "__", ":", ": ", "\n\n", "\n", "\n ", "</answer", "<note>", "&lt;", "&amp;", "[[ ## "),
    *('{"', '", "note": ', '"}', "}", "```", "null", "none", "None", " ", "12", "ab", "x1", "-", "é", "漢"),
)


class Tokens:
    """A tokenizer of the bytes, and of pieces that formats look for."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>", *(piece.encode() for piece in PIECES))

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = llguidance.LLTokenizer(TokenizerWrapper(Tokens()))


def matcher(grammar: str) -> llguidance.LLMatcher:
    lark = llguidance.LLMatcher.grammar_from_lark(grammar)
    assert not llguidance.LLMatcher.validate_grammar(lark, TOKENIZER), grammar
    return llguidance.LLMatcher(TOKENIZER, lark, log_level=0)


def accepts(grammar: str, text: str) -> bool:
    state, tokens = matcher(grammar), list(text.encode())
    return state.try_consume_tokens(tokens) == len(tokens) and state.is_accepting()


def walk(grammar: str, source: random.Random, ends: tuple[str, ...], patience: int = 60, most: int = 2000) -> str:
    """A random text of the grammar, chosen token by token; after `patience` bytes what closes it is tried first."""
    state, written = matcher(grammar), bytearray()
    while len(written) < most:
        late = len(written) > patience
        allowed = [token for token, bias in enumerate(state.compute_logit_bias()) if bias and token != 256]
        if state.is_accepting() and (not allowed or late or source.random() < 0.1):
            return written.decode()
        for end in closing(bytes(written), ends) if late and source.random() < 0.7 else ():
            if state.deep_copy().try_consume_tokens(list(end)) == len(end):
                state.consume_tokens(list(end))
                written += end
                break
        else:
            assert allowed, f"nothing can follow {bytes(written)!r}: {state.get_error()}"
            pieces = [token for token in allowed if token > 256]
            token = source.choice(pieces if pieces and source.random() < 0.4 else allowed)
            assert state.consume_token(token)
            written += Tokens.tokens[token]
    raise AssertionError(f"not complete: {bytes(written[-80:])!r}")


def closing(written: bytes, ends: tuple[str, ...]) -> list[bytes]:
    """The first of `ends` that is not written yet, and what closes JSON."""
    missing = (end.encode() for end in ends if end.encode() not in written)
    return [*itertools.islice(missing, 1), b'"', b"]", b"}"]


class Part(BaseModel):
    name: Annotated[str, Field(min_length=2, max_length=6)]
    share: Annotated[float, Field(ge=0, le=1)]


LONG = Annotated[str, Field(min_length=12)]
SHORT = Annotated[str, Field(min_length=2, max_length=30)]
CODE = Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3}$")]
TWO_LINES = Annotated[str, Field(pattern=r"^[a-z ]+\n[a-z ]+$")]
SEARCHED = Annotated[str, Field(pattern="x[0-9]")]
TYPES: tuple[Any, ...] = (
    LONG,
    SHORT,
    CODE,
    TWO_LINES,
    SEARCHED,
    Annotated[int, Field(ge=1, le=5)],
    Annotated[int, Field(multiple_of=7, gt=0)],
    Annotated[float, Field(gt=0, lt=1)],
    Annotated[Decimal, Field(ge=0, decimal_places=2, max_digits=8)],
    Annotated[date, Field(ge=date(2020, 1, 1), lt=date(2024, 3, 1))],
    Annotated[list[Annotated[int, Field(ge=0, le=9)]], Field(min_length=1, max_length=3)],
    list[Annotated[str, Field(max_length=4)]],
    Part,
)
# DSPy reads these in its own way: an optional text that looks like a number, a UUID's digits, None as a text.
NOT_DSPY: tuple[Any, ...] = (
    UUID,
    Decimal,
    Optional[SHORT],  # noqa: UP045
    Optional[LONG],  # noqa: UP045
    Optional[CODE],  # noqa: UP045
    Optional[Annotated[int, Field(ge=1, le=5)]],  # noqa: UP045
)


def signature_of(*types: Any) -> Any:
    named = dict(zip(("answer", "note", "rest"), types, strict=False))
    fields = {name: (type_, dspy.OutputField()) for name, type_ in named.items()}
    return dspy.Signature({"question": (str, dspy.InputField()), **fields}, "Answer.")


def ends_of(choice: str, signature: Any) -> tuple[str, ...]:
    """What closes the values in this format, one after the other."""
    first, *others = signature.output_fields
    if choice == "xml":
        opened = [f"</{name}>\n<{after}>" for name, after in itertools.pairwise([first, *others])]
        return (*opened, f"</{[first, *others][-1]}>")
    if choice == "dspy":
        return tuple(f"\n\n[[ ## {name} ## ]]\n" for name in (*others, "completed"))
    return tuple(f'", "{name}": ' if choice == "json" else f"\n{name.title()}:" for name in others)


@every_format
@pytest.mark.parametrize("type_", [*TYPES, *NOT_DSPY], ids=str)
def test_what_a_mask_lets_through_is_read_back(choice: str, type_: Any) -> None:
    if choice == "dspy" and type_ in NOT_DSPY:
        pytest.skip("DSPy's own reading")
    format_, source = format_named(choice), random.Random(str(type_))
    for types in ((type_,), (type_, str), (type_, SHORT), (SHORT, type_), (int, type_, CODE)):
        signature = signature_of(*types)
        grammar = format_.grammar(signature)
        for _ in range(2):
            text = walk(grammar, source, ends_of(choice, signature))
            values = format_.parse(signature, text)
            for name, declared in field_types(signature).items():
                text_of_dspy = choice == "dspy" and shape(declared).kind == "str"  # it changes ends of lines
                if name in signature.output_fields and not text_of_dspy:
                    TypeAdapter(declared).validate_python(values[name], strict=True)


@every_format
@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (SHORT, "a b"),
        (SHORT, 'say "yes" & <no>'),
        (LONG, "one line\nand another\n- and a third"),
        (CODE, "AB-123"),
        (TWO_LINES, "a line\nanother"),
        (SEARCHED, "find x1 here"),
        (Annotated[int, Field(ge=1, le=5)], 5),
        (Annotated[Decimal, Field(ge=0, decimal_places=2, max_digits=8)], Decimal("12.50")),
        (Decimal, Decimal("-0.00000000001")),
        (Part, Part(name="half", share=0.5)),
    ],
)
def test_a_value_that_meets_its_constraints_gets_through(choice: str, type_: Any, value: Any) -> None:
    format_ = format_named(choice)
    for signature, values in (
        (signature_of(type_), {"answer": value}),
        (signature_of(type_, str), {"answer": value, "note": "Fine."}),
        (signature_of(str, type_), {"answer": "Fine.", "note": value}),
    ):
        text = format_.answer(signature, values)
        assert accepts(format_.grammar(signature), text), text
        assert format_.parse(signature, text) == values


@every_format
@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (SHORT, "a"),
        (SHORT, "a" * 31),
        (CODE, "AB-12"),
        (TWO_LINES, "one line"),
        (Annotated[int, Field(ge=1, le=5)], 6),
        (Annotated[Decimal, Field(decimal_places=1)], Decimal("0.25")),
    ],
)
def test_a_value_outside_its_constraints_does_not(choice: str, type_: Any, value: Any) -> None:
    format_ = format_named(choice)
    for signature, values in (
        (signature_of(type_), {"answer": value}),
        (signature_of(type_, str), {"answer": value, "note": "Fine."}),
    ):
        text = format_.answer(signature, values)
        assert not accepts(format_.grammar(signature), text)
        if choice != "dspy":  # DSPy does not look at what a declaration adds
            with pytest.raises(ReadError):
                format_.parse(signature, text)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("Answer: AB-123", True),
        ("Answer: AB-123\n", True),
        ("Answer: AB-123\n\n", True),
        ("Answer: AB-123\n\nx", False),
    ],
)
def test_a_masked_completion_may_end_its_block_after_a_text_with_constraints(answer: str, accepted: bool) -> None:
    assert accepts(format_named("completion").grammar(signature_of(CODE)), answer) is accepted


@pytest.mark.parametrize(
    ("choice", "answer"),
    [
        ("turns", "AB-123\n"),
        ("turns_labelled", "Answer: AB-123 \nNote: x"),
        ("completion", "Answer: AB-123\n\nNote: x\n\n"),
        ("xml", "<answer>AB-123\n</answer>"),
        ("dspy", "[[ ## answer ## ]]\nAB-123\n\n\n[[ ## completed ## ]]\n"),
    ],
)
def test_white_space_may_follow_a_text_with_constraints(choice: str, answer: str) -> None:
    signature = signature_of(CODE, str) if "Note" in answer else signature_of(CODE)
    assert accepts(format_named(choice).grammar(signature), answer)
    assert format_named(choice).parse(signature, answer)["answer"] == "AB-123"


@every_format
def test_a_constraint_that_a_mask_cannot_hold_names_its_field(choice: str) -> None:
    format_ = format_named(choice)
    for type_ in (Annotated[str, Field(pattern=r"\bcat\b")], list[Annotated[str, Field(pattern=r"\bcat\b")]]):
        for signature in (signature_of(str, type_), signature_of(str, type_, int)):
            with pytest.raises(InputError, match=r"^note.*: found the pattern '\\\\bcat\\\\b', with a word boundary"):
                format_.grammar(signature)


def test_a_prompt_says_what_the_declaration_adds() -> None:
    signature = dspy.Signature(
        {
            "question": (str, dspy.InputField()),
            "stars": (int, dspy.OutputField(ge=1, le=5)),
            "code": (str, dspy.OutputField(desc="the code", pattern="^[A-Z]+$")),
            "mood": (Literal["good", "bad"], dspy.OutputField()),
        }
    )
    assert requirement(signature, "stars") == "a whole number from 1 to 5"
    assert requirement(signature, "code") == "the code; text, matching the regular expression ^[A-Z]+$"
    assert requirement(signature, "mood") == "one of: good, bad"
    for choice in ("turns", "chat", "json", "xml"):
        head = format_named(choice).head(signature, [], {"question": "q"})
        assert "a whole number from 1 to 5" in "".join(turn.content for turn in head.turns)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Decimal("12.50"), "12.5"),
        (Decimal("123456789012345"), "123456789012345"),
        (Decimal("1234567890123456"), '"1234567890123456"'),
        (Decimal("0.1234567890123456"), '"0.1234567890123456"'),
        (Decimal("1E-400"), '"1E-400"'),
    ],
)
def test_a_decimal_in_json_keeps_its_digits(value: Decimal, written: str) -> None:
    format_, signature = format_named("json"), signature_of(Decimal)
    assert format_.write(signature, "answer", value) == f" {written}"
    assert format_.parse(signature, format_.answer(signature, {"answer": value})) == {"answer": value}
