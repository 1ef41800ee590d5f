"""Which instructions a predictor's search tries: the user's own, and what the principles and proposers make of them.

The user's own come first and are never cut: the signature's, then the other wordings that were given. What is left of
the limit is shared out in turns between proposed instructions (`proposers.py`) and the catalogue of principles
(`principles.py`, in its order). The catalogue is applied one principle at a time: for small models a wording moves less
than format and demos do, so few and different ones are worth more than their combinations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest

import dspy

from .principles import CATALOGUE, principles_named


def instructions_for(
    signature: type[dspy.Signature],
    limit: int,
    *,
    own: Sequence[str] = (),
    proposed: Sequence[str] = (),
    principles: Iterable[str] | None = None,
) -> tuple[str, ...]:
    """Up to `limit` instructions, at least the user's own, none twice.

    own: the user's other wordings; proposed: what a proposer gave; principles: names of the catalogue, in the order in
    which they are tried (None: all, in the catalogue's). Raises `InputError` for a name that it does not have.
    """
    catalogue = CATALOGUE if principles is None else principles_named(principles)
    found: dict[str, str] = {}
    for text in (signature.instructions, *own):
        found.setdefault(_key(text), text)
    made = (principle(signature.instructions, signature) for principle in catalogue.values())
    for text in _in_turns(proposed, (text for text in made if text is not None)):
        if len(found) >= limit:
            break
        found.setdefault(_key(text), text)
    return tuple(found.values())


def _in_turns(*sources: Iterable[str]) -> Iterator[str]:
    """One of each source after the other, until all are used up."""
    return (text for text in chain.from_iterable(zip_longest(*sources)) if text is not None)


def _key(text: str) -> str:
    """What makes two instructions the same: all but their white space."""
    return " ".join(text.split())
