"""Finite types: their labels, and which one a text means."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from cuecard.errors import InputError
from cuecard.signatures import choice_value, choices, write


class Size(Enum):
    SMALL = "small"
    TWO = 2
    HALF = 0.5
    PAIR = (1, 2)


@pytest.mark.parametrize(
    ("type_", "labels"),
    [
        (Literal["yes", "no"], ("yes", "no")),
        (Literal[3, -1, True, "x"], ("3", "-1", "true", "x")),
        (Size, ("small", "2", "0.5", "PAIR")),
        (bool, ("true", "false")),
        (Literal["a"] | None, ("a", "null")),
        (Annotated[Literal["a"], Field(description="x")], ("a",)),
        (str, None),
        (int, None),
        (list[Literal["a"]], None),
        (Any, None),
    ],
)
def test_choices(type_: Any, labels: tuple[str, ...] | None) -> None:
    assert choices(type_) == labels


@pytest.mark.parametrize("type_", [Literal["yes", 1, True], Size, bool, Literal["a"] | None])
def test_choice_value_is_what_write_wrote(type_: Any) -> None:
    labels = choices(type_)
    assert labels
    for label in labels:
        value = choice_value(type_, label)
        assert write(value, type_) == label


def test_choice_value_keeps_the_type() -> None:
    assert choice_value(Literal[1, True], "true") is True
    assert choice_value(Size, "small") is Size.SMALL


def test_choice_value_refuses_another_label() -> None:
    with pytest.raises(InputError) as caught:
        choice_value(Literal["billing", "technical"], "Biling")
    assert str(caught.value) == "found 'Biling'; expected one of: billing, technical (did you mean 'billing'?)"
    with pytest.raises(InputError) as caught:
        choice_value(str, "x")
    assert str(caught.value) == "found the type str; expected a Literal, an Enum or bool"
