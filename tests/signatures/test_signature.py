"""Making signatures: from inline text, from mappings, from classes; and every way in which that is refused."""

from __future__ import annotations

import datetime
from enum import Enum
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cuecard.errors import InputError
from cuecard.signatures import dump, field_types, signature, type_name

TYPES = (
    "str, bool, int, float, Decimal, date, datetime, time, UUID, Any, Literal[...], list[...], dict[str, ...], "
    "Optional[...] or Annotated[...]"
)
INLINE = "inputs -> outputs, such as 'question -> answer: str'"


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Person(BaseModel):
    name: str
    age: int


class Routing(dspy.Signature):
    """Route the ticket."""

    ticket: str = dspy.InputField(desc="what the customer wrote")
    received: datetime.date | None = dspy.InputField()
    queue: Literal["billing", "technical"] = dspy.OutputField(desc="who takes it")
    people: list[Person] = dspy.OutputField()
    sender: Person = dspy.OutputField()


def types_of(made: type[dspy.Signature]) -> dict[str, Any]:
    return {name: field.annotation for name, field in made.fields.items()}


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("str", str),
        ("bool", bool),
        ("int", int),
        ("float", float),
        ("Any", Any),
        ("date", datetime.date),
        ("datetime", datetime.datetime),
        ("time", datetime.time),
        ("list", list),
        ("dict", dict),
        ("Literal['yes', 'no']", Literal["yes", "no"]),
        ("Literal['a, b', 'c -> d', 'e: f', '[']", Literal["a, b", "c -> d", "e: f", "["]),
        ("Literal[1, -1, True, 'x']", Literal[1, -1, True, "x"]),
        ("list[str]", list[str]),
        ("List[str]", list[str]),
        ("list[list[Literal['a', 'b']]]", list[list[Literal["a", "b"]]]),
        ("dict[str, list[int]]", dict[str, list[int]]),
        ("Optional[int]", int | None),
        ("int | None", int | None),
        ("None | int", int | None),
        ("Union[int, None]", int | None),
        ("Literal['a'] | None", Literal["a"] | None),
        ("Color", Color),
        ("list[Person]", list[Person]),
    ],
)
def test_types_of_inline_fields(text: str, type_: Any) -> None:
    made = signature(f"question, context: list[str] -> answer: {text}, why", types={"Color": Color, "Person": Person})
    assert types_of(made) == {"question": str, "context": list[str], "answer": type_, "why": str}
    assert list(made.input_fields) == ["question", "context"]
    assert list(made.output_fields) == ["answer", "why"]


def test_type_names_read_back_as_the_type() -> None:
    names = {"Color": Color, "Person": Person}
    for type_ in [
        str, bool, int, float, Any, list, dict, datetime.date, datetime.datetime, datetime.time, Color, Person,
        Literal["a'b", 'c"d', 1, True], list[Color], dict[str, Person], int | None, Literal["x"] | None,
        list[dict[str, Any] | None],
    ]:  # fmt: skip
        assert types_of(signature(f"a -> b: {type_name(type_)}", types=names))["b"] == type_


def test_default_instructions_are_those_of_dspy() -> None:
    assert signature("question -> answer: int").instructions == dspy.Signature("question -> answer: int").instructions


def test_instructions_and_descriptions() -> None:
    made = signature("question -> answer", "Be brief.", descriptions={"answer": "one word"})
    assert made.instructions == "Be brief."
    assert made.fields["answer"].json_schema_extra["desc"] == "one word"
    assert made.fields["question"].json_schema_extra["desc"] == "${question}"


def test_a_class_is_returned_as_it_is() -> None:
    assert signature(Routing) is Routing


def test_a_class_gets_new_instructions_and_descriptions_without_being_changed() -> None:
    made = signature(Routing, "Other.", descriptions={"sender": "who wrote"})
    assert (made.instructions, Routing.instructions) == ("Other.", "Route the ticket.")
    assert made.fields["sender"].json_schema_extra["desc"] == "who wrote"
    assert Routing.fields["sender"].json_schema_extra["desc"] == "${sender}"
    assert types_of(made) == types_of(Routing)


def test_names_are_never_looked_up_in_the_caller() -> None:
    local_type = Person
    with pytest.raises(InputError, match="found the type 'local_type'"):
        signature("a -> b: local_type")
    assert local_type is Person


def test_mapping() -> None:
    made = signature(
        {
            "inputs": {"ticket": "str", "note": None, "when": {"type": "date", "description": "the day"}},
            "outputs": {
                "queue": {"type": "Literal['a','b']", "description": "who"},
                "person": {"type": {"name": "str", "born": {"type": "date", "description": "birthday"}}},
                "others": "list[Place]",
            },
            "types": {"Place": {"city": "str", "kind": "Kind"}, "Kind": "Literal['home', 'work']"},
            "instructions": "Do it.",
        }
    )
    types = types_of(made)
    assert types["ticket"] is types["note"] is str
    assert types["when"] is datetime.date
    assert types["queue"] == Literal["a", "b"]
    assert made.fields["queue"].json_schema_extra["desc"] == "who"
    assert types["person"].__name__ == "Person"
    person = types["person"](name="Ann", born="2000-01-02")
    assert person.born == datetime.date(2000, 1, 2)
    assert types["person"].model_fields["born"].description == "birthday"
    assert types["others"].__args__[0](city="x", kind="home").kind == "home"
    assert made.instructions == "Do it."


def test_instructions_given_beside_a_mapping_win() -> None:
    assert signature({"outputs": {"a": "str"}, "instructions": "One."}, "Two.").instructions == "Two."


def test_field_types_keep_constraints() -> None:
    class Rating(dspy.Signature):
        """Rate."""

        text: str = dspy.InputField()
        stars: int = dspy.OutputField(ge=1, le=5)

    types = field_types(Rating)
    assert types["text"] is str
    assert [type(condition).__name__ for condition in types["stars"].__metadata__] == ["Ge", "Le"]


@pytest.mark.parametrize(
    "source",
    [
        "question, context -> answer: Literal['yes', 'no'], score: float",
        "-> story",
        "a: list[dict[str, Any]] -> b: Literal['x', 1] | None, c: time",
        {"inputs": {"a": {"type": "str", "description": "an a"}}, "outputs": {"p": {"type": {"x": "int", "y": "str"}}}},
        {"outputs": {"p": "list[P]"}, "types": {"P": {"x": {"type": "int", "description": "an x"}, "q": "Q | None"}, "Q": {"z": "bool"}}},
        Routing,
    ],
)  # fmt: skip
def test_dump_reads_back_as_an_equal_signature(source: Any) -> None:
    made = signature(source)
    dumped = dump(made)
    back = signature(dumped)
    assert back.equals(made)
    assert [type_name(type_) for type_ in types_of(back).values()] == [
        type_name(type_) for type_ in types_of(made).values()
    ]
    assert list(back.input_fields) == list(made.input_fields)
    assert dump(back) == dumped


def test_dump_is_the_short_form_where_it_can_be() -> None:
    assert dump(Routing) == {
        "inputs": {
            "ticket": {"type": "str", "description": "what the customer wrote"},
            "received": "date | None",
        },
        "outputs": {
            "queue": {"type": "Literal['billing', 'technical']", "description": "who takes it"},
            "people": "list[Person]",
            "sender": "Person",
        },
        "instructions": "Route the ticket.",
        "types": {"Person": {"name": "str", "age": "int"}},
    }


def test_dump_writes_an_enum_as_the_literal_of_its_values() -> None:
    made = signature("a -> b: Color, c: list[Color]", types={"Color": Color})
    assert dump(made)["outputs"] == {"b": "Literal['red', 'blue']", "c": "list[Literal['red', 'blue']]"}


def test_dump_names_two_models_of_one_name_apart() -> None:
    first = signature({"outputs": {"p": "list[P]"}, "types": {"P": {"x": "int"}}})
    second = signature({"outputs": {"q": "list[P]"}, "types": {"P": {"y": "int"}}})
    both = first.append("q", dspy.OutputField(), types_of(second)["q"])
    assert dump(both)["types"] == {"P": {"x": "int"}, "P2": {"y": "int"}}
    assert signature(dump(both)).equals(both)


def test_dump_of_a_model_that_holds_itself_ends() -> None:
    class Node(BaseModel):
        label: str
        children: list[Node]

    made = signature("a -> tree: Node", types={"Node": Node})
    dumped = dump(made)
    assert dumped["outputs"] == {"tree": "Node"}
    assert dumped["types"] == {"Node": {"label": "str", "children": "list[Node]"}}
    assert types_of(signature(dumped, types={"Node": Node}))["tree"] is Node
    with pytest.raises(InputError, match="types: found types that need one another: Node -> Node"):
        signature(dumped)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", f"found no '->' in ''; expected {INLINE}"),
        ("question answer", f"found no '->' in 'question answer'; expected {INLINE}"),
        ("a => b", f"found no '->' in 'a => b'; expected {INLINE} (did you mean '->'?)"),
        ("a -> b -> c", f"found 2 times '->' in 'a -> b -> c'; expected {INLINE}"),
        ("a -> ", "found no output field; expected at least one, such as 'question -> answer'"),
        ("a, -> b", "found no field between the commas of 'a,'; expected a field name"),
        ("a -> b:", f"b: found no type; expected {TYPES}"),
        ("a -> b: int: str", "b: found 2 colons in 'b: int: str'; expected name: type"),
        ("a -> first name", "found the field name 'first name'; expected letters, digits and underscores, a letter first (did you mean 'first_name'?)"),
        ("a -> 1st", "found the field name '1st'; expected letters, digits and underscores, a letter first"),
        ("a -> _b", "found the field name '_b'; expected letters, digits and underscores, a letter first (did you mean 'b'?)"),
        ("class -> b", "found the field name 'class', a word of Python; expected another name, such as class_"),
        ("a -> labels", "found the field name 'labels', which DSPy keeps for itself; expected another name, such as labels_"),
        ("config -> b", "found the field name 'config', which DSPy keeps for itself; expected another name, such as config_"),
        ("a -> model_dump", "found the field name 'model_dump', which pydantic keeps for itself; expected another name, such as model_dump_"),
        ("a -> a", "found the field name 'a' in both inputs and outputs; expected every name once"),
        ("a, b, a -> c", "found the field name 'a' twice among the inputs; expected every name once"),
        ("a -> b: Color", f"b: found the type 'Color'; expected {TYPES}"),
        ("a -> b: strng", f"b: found the type 'strng'; expected {TYPES} (did you mean 'str'?)"),
        ("a -> b: integer", f"b: found the type 'integer'; expected {TYPES} (did you mean 'int'?)"),
        ("a -> b: number", f"b: found the type 'number'; expected {TYPES} (did you mean 'float'?)"),
        ("a -> b: list[boolean]", f"b: found the type 'boolean'; expected {TYPES} (did you mean 'bool'?)"),
        ("a -> b: Litral['x']", f"b: found the type 'Litral'; expected {TYPES} (did you mean 'Literal'?)"),
        ("a -> b: os.system", f"b: found the type 'os.system'; expected {TYPES}"),
        ("a -> b: print('x')", f"b: found \"print('x')\", which is not a type; expected {TYPES}"),
        ("a -> b: int str", f"b: found 'int str', which is not a type; expected {TYPES}"),
        ("a -> b: int # whole", "b: found '#' in ' int # whole'; expected a type expression without comments"),
        ("a -> b: Literal[]", "b: found Literal with nothing between its brackets; expected Literal['a', 'b']"),
        ("a -> b: Literal[()]", "b: found Literal with nothing between its brackets; expected Literal['a', 'b']"),
        ("a -> b: list[]", "b: found list with nothing between its brackets; expected list[str]"),
        ("a -> b: Literal", "b: found Literal with nothing in brackets; expected something like Literal['a', 'b']"),
        ("a -> b: Optional", "b: found Optional with nothing in brackets; expected something like Optional[str]"),
        ("a -> b: Literal[yes, no]", "b: found the label yes without quotes; expected 'yes'"),
        ("a -> b: Literal['x', 'x']", "b: found the label 'x' twice in Literal; expected every label once"),
        ("a -> b: Literal[1, '1']", "b: found the label '1' twice in Literal; expected every label once"),
        ("a -> b: Literal['x', ' ']", "b: found an empty label in Literal; expected labels with at least one character"),
        ("a -> b: Literal[None]", "b: found the label None; expected Literal[...] | None"),
        ("a -> b: Literal[1.5]", "b: found the label '1.5'; expected text in quotes, a whole number, True or False"),
        ("a -> b: Literal['null'] | None", "b: found the label 'null' in an optional type, where null stands for None; expected another label"),
        ("a -> b: 'yes'", "b: found the text 'yes' where a type belongs; expected Literal['yes']"),
        ("a -> b: 'yes' | 'no'", "b: found the texts \"'yes' | 'no'\" where a type belongs; expected Literal['yes', 'no']"),
        ("a -> b: int | str", "b: found the union 'int | str'; expected one type, or one type and None"),
        ("a -> b: None | None", "b: found the union 'None | None'; expected one type, or one type and None"),
        ("a -> b: dict[int, str]", "b: found a dict with keys of type 'int'; expected dict[str, ...]"),
        ("a -> b: dict[str]", "b: found dict with 1 type in brackets; expected 2, such as dict[str, int]"),
        ("a -> b: list[int, str]", "b: found list with 2 types in brackets; expected 1, such as list[str]"),
        ("a -> b: int[str]", "b: found brackets after int, which takes none; expected int"),
        ("a -> b: list[int", "found '[' that is never closed in 'a -> b: list[int'; expected ']'"),
        ("a -> b: int]", "found ']' without '[' before it in 'a -> b: int]'"),
        ("a -> b: Literal['x]", "found a quote that is never closed in \"a -> b: Literal['x]\"; expected another '"),
        (3, "found 3 (int); expected text such as 'question -> answer', a mapping with inputs and outputs, or a dspy.Signature class"),
        (dspy.Signature, "found no output field in Signature; expected at least one dspy.OutputField()"),
        ({"inputs": {"a": "str"}}, "found no output field; expected at least one, such as 'question -> answer'"),
        ({"input": {}, "outputs": {}}, "found the key 'input' in a signature; expected inputs, outputs, instructions, types (did you mean 'inputs'?)"),
        ({"outputs": ["a"]}, "outputs: found ['a'] (list); expected a mapping such as {ticket: str}"),
        ({"outputs": {True: "str"}}, "found the field name True; expected text\n  YAML reads an unquoted yes, no, on and off as true and false."),
        ({"outputs": {"a": 3}}, "a: found 3 (int); expected a type expression such as list[str], or a mapping"),
        ({"outputs": {"a": ["x", "y"]}}, "a: found ['x', 'y'] (list); expected a type expression such as list[str], or a mapping\n  Labels are written Literal['x', 'y']."),
        ({"outputs": {"p": {"name": "str"}}}, "p: found the keys name; expected type, description\n  A record is written {type: {name: ...}}."),
        ({"outputs": {"a": {"typ": "str"}}}, "a: found the key 'typ' in a field; expected type, description (did you mean 'type'?)"),
        ({"outputs": {"a": {"type": "str", "description": 3}}}, "a.description: found 3 (int); expected text"),
        ({"outputs": {"a": "str"}, "instructions": ["x"]}, "instructions: found ['x'] (list); expected text"),
        ({"outputs": {"a": {"type": {}}}}, "a: found a record without fields; expected a mapping such as {name: str, age: int}"),
        ({"outputs": {"a": {"type": {"x": {"type": {"y": "strin"}}}}}}, f"a.x.y: found the type 'strin'; expected {TYPES} (did you mean 'str'?)"),
        ({"outputs": {"a": {"type": {"json": "str"}}}}, "a: found the field name 'json', which pydantic keeps for itself; expected another name, such as json_"),
        ({"outputs": {"a": "list[Persn]"}, "types": {"Person": {"x": "int"}}}, f"a: found the type 'Persn'; expected {TYPES}, Person (did you mean 'Person'?)"),
        ({"outputs": {"a": "A"}, "types": {"A": "list[B]", "B": {"c": "A"}}}, "types: found types that need one another: A -> B -> A; expected no circle"),
    ],
)  # fmt: skip
def test_refusals(source: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        signature(source)
    assert str(caught.value) == message


def test_refusals_say_where() -> None:
    with pytest.raises(InputError) as caught:
        signature("a -> b: strng", path="triage.yaml", line=7)
    assert str(caught.value).startswith("triage.yaml:7: b: found the type 'strng'")
    assert (caught.value.path, caught.value.line, caught.value.field) == ("triage.yaml", 7, "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"descriptions": {"answr": "x"}}, "found a description of 'answr', which is no field; expected question, answer (did you mean 'answer'?)"),
        ({"descriptions": {"answer": 3}}, "answer: found the description 3 (int); expected text"),
        ({"instructions": 3}, "instructions: found 3 (int); expected text"),
        ({"types": {"X": "str"}}, "found 'str' as the type X; expected an Enum or a pydantic model"),
        ({"types": {"X": Enum("X", {"a": 1, "b": "1"})}}, "found the label '1' twice in X; expected every label once"),
    ],
)  # fmt: skip
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        signature("question -> answer", **arguments)
    assert str(caught.value) == message


def test_every_name_that_dspy_cannot_carry_is_refused() -> None:
    for name in ["signature", "demos", "lm", "self", "instructions", "fields", "items", "keys", "completions", "copy"]:
        with pytest.raises(InputError, match="keeps for itself"):
            signature(f"{name} -> answer")


WORDS = ["a", "b", "->", ",", ":", " ", "[", "]", "'", '"', "str", "Literal", "list", "dict", "Optional", "None", "|",
         "1", "-", "(", ")", "\\", "\n", "#", ".", "int", "lambda", "{", "\0", "\u00e9"]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map("".join), st.lists(st.sampled_from(WORDS)).map(lambda words: "a -> b: " + "".join(words))))  # fmt: skip
def test_text_gives_a_signature_or_an_input_error(source: str) -> None:
    try:
        made = signature(source)
    except InputError as error:
        assert str(error)
    else:
        assert made.output_fields


DATA = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["str", "int", "list[T]", "a", "T"]), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(["type", "description", "x", "T"]), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional={"inputs": DATA, "outputs": st.dictionaries(st.text("xyz", min_size=1, max_size=2), DATA), "types": DATA, "instructions": DATA}))  # fmt: skip
def test_a_mapping_gives_a_signature_or_an_input_error(source: dict[str, Any]) -> None:
    try:
        made = signature(source)
    except InputError as error:
        assert str(error)
    else:
        assert dump(signature(dump(made))) == dump(made)


def test_long_and_deep_expressions_are_refused_or_read() -> None:
    for text in ["list[" * 5000 + "]" * 5000, " | ".join(["int"] * 5000), "-" * 5000 + "1", "1" * 5000, "(" * 500]:
        with pytest.raises(InputError):
            signature(f"a -> b: {text}")
