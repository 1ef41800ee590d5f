"""Demos nearest to the input: what is near, what a call shows, and what a saved program keeps of it."""

from __future__ import annotations

from typing import Any

import dspy
import numpy as np
import pytest
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.models.lm import language_model
from cuecard.programs.graph import build
from cuecard.programs.neighbours import Neighbours
from cuecard.programs.predictor import Predictor
from cuecard.programs.spec import read_spec
from cuecard.programs.state import NearestDemos, PredictorState
from cuecard.programs.yaml_source import parse_yaml

ROUTE = cuecard.signature("ticket -> queue: Literal['billing', 'technical']")
POOL: tuple[dict[str, Any], ...] = (
    {"ticket": "the printer is on fire", "queue": "technical"},
    {"ticket": "I was charged twice", "queue": "billing"},
    {"ticket": "charged for a printer I never got", "queue": "billing"},
    {"ticket": "the login page is blank", "queue": "technical"},
)


def tickets(found: Any) -> list[str]:
    return [demo["ticket"] for demo in found]


def test_the_nearest_stands_last() -> None:
    found = Neighbours(ROUTE, POOL).nearest({"ticket": "why was I charged twice for it?"}, 2)
    assert tickets(found) == ["charged for a printer I never got", "I was charged twice"]


def test_an_example_never_answers_itself() -> None:
    found = Neighbours(ROUTE, POOL).nearest({"ticket": "I was charged twice"}, 4)
    assert len(found) == 3
    assert "I was charged twice" not in tickets(found)


def test_of_equally_near_ones_the_first_in_the_pool_are_nearer() -> None:
    assert tickets(Neighbours(ROUTE, POOL).nearest({"ticket": "zebra"}, 2)) == tickets([POOL[1], POOL[0]])


def test_an_empty_pool_and_an_empty_text() -> None:
    assert Neighbours(ROUTE, ()).nearest({"ticket": "x"}, 3) == []
    assert len(Neighbours(ROUTE, ({"ticket": "", "queue": "billing"}, *POOL)).nearest({"ticket": "printer"}, 9)) == 5


words = st.lists(st.sampled_from(["a", "b", "c", "d", "!", "Zwölf"]), max_size=6).map(" ".join)


@given(texts=st.lists(words, min_size=1, max_size=8), asked=words, count=st.integers(1, 9))
@settings(deadline=None)
def test_near_is_the_cosine_of_tf_idf(texts: list[str], asked: str, count: int) -> None:
    """Against the definition, written out with dictionaries."""
    import math
    import re
    from collections import Counter

    def terms(text: str) -> Counter[str]:
        found = re.findall(r"\w+|[^\w\s]", text.casefold())
        return Counter(found + [f"{a} {b}" for a, b in zip(found, found[1:], strict=False)])

    documents = Counter(term for text in texts for term in terms(text))

    def vector(text: str) -> dict[str, float]:
        weights = {
            term: (1 + math.log(n)) * (math.log((1 + len(texts)) / (1 + documents[term])) + 1)
            for term, n in terms(text).items()
            if term in documents
        }
        norm = math.sqrt(sum(value**2 for value in weights.values())) or 1.0
        return {term: value / norm for term, value in weights.items()}

    def cosine(text: str) -> float:
        ours, theirs = vector(text), vector(asked)
        return sum(value * theirs.get(term, 0.0) for term, value in ours.items())

    pool = [{"ticket": text, "queue": str(place)} for place, text in enumerate(texts)]
    found = Neighbours(ROUTE, pool).nearest({"ticket": asked}, count)
    others = [text for text in texts if text != asked]
    assert len(found) == min(count, len(others))
    expected = sorted((cosine(text) for text in others), reverse=True)[: len(found)]
    assert [cosine(demo["ticket"]) for demo in reversed(found)] == pytest.approx(expected, abs=1e-9)


def test_a_call_shows_the_fixed_demos_and_then_the_nearest() -> None:
    state = PredictorState(format="completion", demos=(POOL[3],), nearest=NearestDemos(count=1, pool=POOL))
    predictor, engine = Predictor(ROUTE, state), FakeEngine(lambda prompt, *_: "billing")
    with dspy.context(lm=language_model(engine)):
        assert predictor(ticket="my printer burns").queue == "billing"
        shown = predictor.prompt(ticket="my printer burns").text
    (sent,) = engine.prompts()
    assert shown in sent
    places = [shown.index(text) for text in ("login page", "the printer is on fire", "my printer burns")]
    assert places == sorted(places)
    assert "charged" not in shown


def test_a_new_state_has_a_new_pool() -> None:
    predictor = Predictor(ROUTE, PredictorState(format="completion", nearest=NearestDemos(count=1, pool=POOL[:1])))
    lm = language_model(FakeEngine())
    assert "on fire" in predictor.prompt(lm=lm, ticket="x").text
    predictor.state = predictor.state.model_copy(update={"nearest": NearestDemos(count=1, pool=POOL[1:2])})
    assert "charged twice" in predictor.prompt(lm=lm, ticket="x").text
    predictor.state = predictor.state.model_copy(update={"nearest": None})
    assert predictor.prompt(lm=lm, ticket="x").demos == 0


def test_it_is_saved_and_read_back() -> None:
    state = PredictorState(nearest=NearestDemos(count=2, pool=POOL))
    again = Predictor(ROUTE).load_state(Predictor(ROUTE, state).dump_state())
    assert again.state.nearest == state.nearest


SPEC = """
signature: "ticket -> queue: Literal['billing', 'technical']"
nearest:
  count: 1
  pool:
  - {ticket: the printer is on fire, queue: technical}
  - {ticket: I was charged twice, queue: billing}
"""


def test_a_spec_holds_it() -> None:
    program = build(read_spec(parse_yaml(SPEC, "spec.yaml")))
    text = program.main.prompt(lm=language_model(FakeEngine()), ticket="charged again").text
    assert "charged twice" in text
    assert "on fire" not in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("count: 1", "count: 0"), "nearest.count"),
        (("queue: technical", "queue: sales"), "nearest.pool"),
        (("count: 1", "cuont: 1"), "did you mean 'count'"),
    ],
)
def test_a_spec_that_holds_it_wrongly(change: tuple[str, str], expected: str) -> None:
    with pytest.raises(cuecard.InputError) as caught:
        build(read_spec(parse_yaml(SPEC.replace(*change), "spec.yaml")))
    assert expected in str(caught.value)


def test_the_weights_are_finite_for_a_pool_of_one() -> None:
    index = Neighbours(ROUTE, POOL[:1])
    assert np.isfinite(index._weights).all()
