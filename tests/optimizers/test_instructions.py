"""Instructions to try: the user's own first, then what prompting principles make of it."""

from __future__ import annotations

import pytest

import cuecard
from cuecard.optimizers.instructions import PRINCIPLES, instructions_for

LABELLED = cuecard.signature("ticket -> queue: Literal['billing', 'technical']", "Route the ticket")
TEXT = cuecard.signature("first_name, text -> note", "Write a note.")


@pytest.mark.parametrize("signature", [LABELLED, TEXT])
def test_the_users_own_comes_first_and_none_stands_twice(signature: type) -> None:
    found = instructions_for(signature, 99)
    assert found[0] == signature.instructions  # type: ignore[attr-defined]
    assert len(set(found)) == len(found) > 3
    assert all(signature.instructions.rstrip(".") in text for text in found)  # type: ignore[attr-defined]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_limit_counts_the_users_own_and_leaves_it(limit: int) -> None:
    found = instructions_for(LABELLED, limit)
    assert len(found) == max(1, limit)
    assert found[0] == "Route the ticket"


def test_labels_are_named_where_there_are_some() -> None:
    assert "Route the ticket. Answer with one of: billing, technical." in instructions_for(LABELLED, 99)
    assert not any("one of" in text for text in instructions_for(TEXT, 99))


def test_inputs_are_named_as_people_say_them() -> None:
    assert any("First read the first name, text carefully." in text for text in instructions_for(TEXT, 99))


@pytest.mark.parametrize("principle", PRINCIPLES)
def test_a_principle_writes_whole_sentences(principle: object) -> None:
    for own in ("Route the ticket", "Route the ticket.", "Which queue?", " Say: "):
        made = principle(own, LABELLED)  # type: ignore[operator]
        assert made is None or (made[-1] in ".!?:" and ".." not in made and "?." not in made and " ." not in made)


def test_a_signature_without_instructions_of_its_own_has_dspys() -> None:
    found = instructions_for(cuecard.signature("a -> b"), 2)
    assert found[0] == "Given the fields `a`, produce the fields `b`."
