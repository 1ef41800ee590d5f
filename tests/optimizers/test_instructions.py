"""Instructions to try: the user's own first, then what principles and proposers make of them."""

from __future__ import annotations

from typing import Any

import pytest

import cuecard
from cuecard.errors import InputError
from cuecard.optimizers.instructions import instructions_for
from cuecard.optimizers.principles import CATALOGUE

LABELLED = cuecard.signature("ticket -> queue: Literal['billing', 'technical']", "Route the ticket")
TEXT = cuecard.signature("first_name, text -> note", "Write a note.")
EVERY = 99


@pytest.mark.parametrize("signature", [LABELLED, TEXT])
def test_the_users_own_comes_first_and_none_stands_twice(signature: Any) -> None:
    found = instructions_for(signature, EVERY)
    assert found[0] == signature.instructions
    assert len(set(found)) == len(found) > 8
    assert all(signature.instructions in text for text in found)


@pytest.mark.parametrize("limit", [0, 1, 3, 8])
def test_the_limit_counts_the_users_own_and_leaves_it(limit: int) -> None:
    found = instructions_for(LABELLED, limit)
    assert len(found) == max(1, limit)
    assert found[0] == "Route the ticket"


@pytest.mark.parametrize("limit", [0, 2, 5])
def test_other_wordings_of_the_user_are_never_cut(limit: int) -> None:
    own = ["Name its queue.", "Where does it go?", "Route  the ticket"]
    found = instructions_for(LABELLED, limit, own=own)
    assert found[:3] == ("Route the ticket", "Name its queue.", "Where does it go?")
    assert len(found) == max(3, limit)


def test_proposals_and_principles_take_turns() -> None:
    found = instructions_for(LABELLED, 6, proposed=["Proposed one.", "Proposed two."], principles=["one_of", "role"])
    assert found == (
        "Route the ticket",
        "Proposed one.",
        "Route the ticket. Answer with one of: billing, technical.",
        "Proposed two.",
        "You are an expert at choosing the queue for the ticket. Route the ticket.",
    )


def test_a_proposal_that_is_there_already_takes_no_place() -> None:
    found = instructions_for(LABELLED, 3, proposed=["Route the  ticket", "Another."], principles=["role"])
    assert len(found) == 3 and found[0] == "Route the ticket" and "Another." in found


def test_the_principles_can_be_named_and_left_out() -> None:
    assert instructions_for(LABELLED, EVERY, principles=[]) == ("Route the ticket",)
    assert instructions_for(LABELLED, EVERY, principles=["headed"])[1:] == ("### Instruction ###\nRoute the ticket",)
    with pytest.raises(InputError, match="unknown principle 'heded'"):
        instructions_for(LABELLED, EVERY, principles=["heded"])


def test_labels_are_named_where_there_are_some() -> None:
    assert instructions_for(LABELLED, 2)[1] == "Route the ticket. Answer with one of: billing, technical."
    assert not any("one of:" in text for text in instructions_for(TEXT, EVERY))


def test_a_signature_without_instructions_of_its_own_has_dspys() -> None:
    found = instructions_for(cuecard.signature("a -> b"), 2)
    assert found[0] == "Given the fields `a`, produce the fields `b`."


def test_each_principle_is_tried_by_itself() -> None:
    found = instructions_for(TEXT, EVERY)
    made = [text for principle in CATALOGUE.values() if (text := principle(TEXT.instructions, TEXT))]
    assert list(found[1:]) == made
