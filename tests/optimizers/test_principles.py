"""The catalogue of principles: what every operator keeps to, and what each one says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cuecard
from cuecard.errors import InputError
from cuecard.optimizers.principles import CATALOGUE, applied, principles_named
from cuecard.signatures import choices, field_types
from cuecard.signatures.types import shape

NAMES = tuple(f"zq{letter}_{other}x" for letter in "abcdefgh" for other in "uv")
TYPES = (
    "str", "str | None", "int", "bool", "list[str]", "Annotated[str, Field(max_length=9)]", "Literal['kip', 'kop']",
    "Literal['kip', 'other'] | None", "list[Literal['kip', 'kop']]", "date", "dict[str, int]",
)  # fmt: skip
LABELS = {"kip", "kop", "other", "true", "false", "null"}
SOURCES = re.compile(r"Bsharat \d+|Fulford and Ng|arXiv \d{4}\.\d{5}")
# Nouns for fields that a text about another signature would use.
STRANGERS = {"question", "context", "passage", "document", "input", "output", "label", "reasoning", "examples"}

LABELLED = cuecard.signature("ticket -> queue: Literal['billing', 'technical']", "Route the ticket")
TEXT = cuecard.signature("first_name, text -> note", "Write a note.")
NUMBER = cuecard.signature("question -> score: Annotated[int, Field(ge=0, le=10)]", "Score it.")
THOUGHT = cuecard.signature("question -> reasoning, verdict: bool", "Judge it.")
SIGNATURES = (LABELLED, TEXT, NUMBER, THOUGHT)

instructions = st.one_of(
    st.sampled_from(["Route it", "Which one?", "Say:", "Do it:\n- well\n- soon", "Please do it, please.", "", "1. Do"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=60),
)


@st.composite
def signatures(draw: st.DrawFn) -> Any:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    inputs = draw(st.integers(0, len(names) - 1))
    types = [draw(st.sampled_from(TYPES)) for _ in names]
    fields = [f"{name}: {type_}" for name, type_ in zip(names, types, strict=True)]
    made = cuecard.signature(f"{', '.join(fields[:inputs])} -> {', '.join(fields[inputs:])}")
    if draw(st.booleans()):
        made = made.with_updated_fields(names[0], desc="what it holds")
    return made


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def kept_in_order(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


# ---- what holds for all


@given(instruction=instructions, signature=signatures())
def test_the_instruction_stays_whole(instruction: str, signature: Any) -> None:
    for name, principle in CATALOGUE.items():
        made = principle(instruction, signature)
        if made is not None and name == "direct":
            assert words(made) and kept_in_order(words(made), words(instruction))
        elif made is not None:
            assert instruction.strip() in made, name
            assert len(made) > len(instruction.strip()), name


@given(instruction=instructions, signature=signatures())
def test_none_works_twice(instruction: str, signature: Any) -> None:
    for name, principle in CATALOGUE.items():
        made = principle(instruction, signature)
        assert made is None or principle(made, signature) in (None, made), name


@given(signature=signatures())
def test_only_fields_and_labels_of_the_signature_are_named(signature: Any) -> None:
    own = {word for field in signature.fields for word in field.split("_")}
    types = [shape(type_) for type_ in field_types(signature).values()]
    admitted = {label for type_ in types for label in choices(type_.inner) or choices(type_.item) or ()}
    admitted |= {"null"} if any(type_.optional for type_ in types) else set()
    for name, principle in CATALOGUE.items():
        said = set(words(principle("", signature) or "") + words(principle("Do it now.", signature) or ""))
        assert {word for word in said if re.fullmatch(r"zq\w|\wx", word)} <= own, name
        assert not STRANGERS & said, name
        assert said & LABELS <= admitted, name


@given(instruction=instructions, signature=signatures(), names=st.permutations(list(CATALOGUE)))
def test_all_of_them_together_lose_nothing(instruction: str, signature: Any, names: list[str]) -> None:
    made = applied(instruction, signature, names)
    assert kept_in_order(words(CATALOGUE["direct"](instruction, signature) or instruction), words(made))


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_names_its_source(name: str) -> None:
    assert CATALOGUE[name].__name__ == name
    assert SOURCES.search(CATALOGUE[name].__doc__ or "")


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("own", ["Route the ticket", "Route the ticket.", "Which queue?", " Say: "])
def test_whole_sentences_are_written(name: str, own: str) -> None:
    for signature in SIGNATURES:
        made = CATALOGUE[name](own, signature)
        assert made is None or (".." not in made and "?." not in made and " ." not in made and "  " not in made)


def test_the_documentation_lists_them_in_their_order() -> None:
    text = (Path(__file__).parents[2] / "docs" / "instructions.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(CATALOGUE)


def test_every_principle_applies_somewhere() -> None:
    described = LABELLED.with_updated_fields("ticket", desc="what the customer wrote")
    other = cuecard.signature("ticket -> queue: Literal['billing', 'other']", "Please route it.")
    everywhere = (*SIGNATURES, described, other)
    silent = [name for name, p in CATALOGUE.items() if not any(p(s.instructions, s) for s in everywhere)]
    assert silent == []


# ---- what each one says

SAID = {
    ("one_of", LABELLED): "Route the ticket. Answer with one of: billing, technical.",
    ("one_of", THOUGHT): "Judge it. The verdict is one of: true, false.",
    ("one_of", TEXT): None,
    ("output_format", NUMBER): "Score it. Write the score as a whole number from 0 to 10.",
    ("output_format", LABELLED): None,
    ("answer_only", LABELLED): "Route the ticket. Give the queue only.",
    ("answer_only", THOUGHT): "Judge it. Give the reasoning and verdict only.",
    ("your_task", TEXT): "Your task: Write a note. You MUST do exactly this.",
    ("role", LABELLED): "You are an expert at choosing the queue for the ticket. Route the ticket.",
    ("role", TEXT): "You are an expert at writing the note for the first name and text. Write a note.",
    ("role", NUMBER): "You are an expert at finding the score for the question. Score it.",
    ("read_first", TEXT): "First read the first name and text carefully. Then do this: Write a note.",
    ("think", THOUGHT): "Judge it. Think step by step before you settle on the verdict.",
    ("think", LABELLED): None,
    ("think", NUMBER): None,
    ("own_solution", THOUGHT): "Judge it. Work out your own solution first, and only then settle on the verdict.",
    ("own_solution", LABELLED): None,
    ("brief", TEXT): "Write a note. Use as few words as needed for the note.",
    ("brief", THOUGHT): None,
    ("complete", LABELLED): None,
    ("numbered_steps", THOUGHT): "Judge it.\nTake these steps:\n1. Read the question.\n2. Write the reasoning.\n3. Choose the verdict.",
    ("condition_check", TEXT): 'Write a note. If the first name and text cannot settle the note, write "not given" for it.',
    ("condition_check", LABELLED): None,
    ("headed", TEXT): "### Instruction ###\nWrite a note.",
    ("repeated", TEXT): "Write a note.\nOnce more: Write a note.",
    ("explained", LABELLED): None,
    ("audience", LABELLED): None,
}  # fmt: skip


@pytest.mark.parametrize(("name", "signature", "text"), [(*case, text) for case, text in SAID.items()])
def test_what_is_said(name: str, signature: Any, text: str | None) -> None:
    assert CATALOGUE[name](signature.instructions, signature) == text


def test_what_the_instruction_says_already_is_not_said_again() -> None:
    assert CATALOGUE["one_of"]("Is it Billing or technical?", LABELLED) is None
    assert CATALOGUE["role"]("You are a clerk. Route it.", LABELLED) is None
    assert CATALOGUE["think"]("Go step by step.", TEXT) is None
    assert CATALOGUE["numbered_steps"]("1. Read.\n2. Write.", TEXT) is None


def test_what_does_not_fit_is_null_or_the_types_own_label() -> None:
    check = CATALOGUE["condition_check"]
    other = cuecard.signature("ticket -> queue: Literal['billing', 'Not_enough_info']")
    optional = cuecard.signature("ticket -> amount: int | None")
    assert (check("Route.", other) or "").endswith(
        "If nothing else fits the ticket, choose Not_enough_info as the queue."
    )
    assert (check("Find it.", optional) or "").endswith("If the ticket cannot settle the amount, write null for it.")


@pytest.mark.parametrize(
    ("own", "bare"),
    [
        ("Please route it.", "Route it."),
        ("Read it. Kindly, please route it, please.", "Read it. Route it."),
        ("I would like you to route it. Thank you!", "Route it."),
        ("Route it.", None),
        ("Say please.", None),
        ("Answer 'please' or 'thanks'.", None),
        ("Please", None),
    ],
)
def test_courtesies_go_and_the_rest_stays(own: str, bare: str | None) -> None:
    assert CATALOGUE["direct"](own, LABELLED) == bare


def test_descriptions_are_listed_and_placeholders_are_not() -> None:
    described = LABELLED.with_updated_fields("queue", desc="where it goes")
    assert CATALOGUE["explained"]("Route it.", described) == "Route it.\n- queue: where it goes"


def test_labels_with_commas_stand_in_quotes_and_very_many_are_left_out() -> None:
    commas = cuecard.signature("a -> b: Literal['x, y', 'z']", "Go.")
    many = cuecard.signature(f"a -> b: Literal[{', '.join(repr(f'label number {n}') for n in range(150))}]", "Go.")
    assert CATALOGUE["one_of"]("Go.", commas) == 'Go. Answer with one of: "x, y", z.'
    assert CATALOGUE["one_of"]("Go.", many) is None


def test_several_are_applied_one_after_the_other() -> None:
    made = applied("Route the ticket", LABELLED, ["role", "think", "one_of"])
    expert = "You are an expert at choosing the queue for the ticket."
    assert made == f"{expert} Route the ticket. Answer with one of: billing, technical."


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="principles: unknown principle 'rol'.*did you mean 'role'"):
        principles_named(["one_of", "rol"])
