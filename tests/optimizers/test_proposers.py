"""Proposed instructions: how a model is asked, what is read from its texts, what is dropped, whom to improve."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest
from fakes import FakeEngine, examples
from gepa.gepa_utils import remove_dominated_programs
from hypothesis import assume, given
from hypothesis import strategies as st

import cuecard
from cuecard.errors import InputError
from cuecard.metrics import Measurement
from cuecard.models.lm import language_model
from cuecard.optimizers.base import Outcome, Step
from cuecard.optimizers.grounding import Attempt, Ground, Miss, misses_of
from cuecard.optimizers.proposals import Proposals, read_proposals, sieve
from cuecard.optimizers.proposers import Asking, pareto_parent, pareto_weights, propose, reflect

QUEUE = cuecard.signature("ticket -> queue: Literal['billing', 'technical']", "Route the ticket.")
CITY = cuecard.signature("passage, question -> place", "Answer the question.")
ROWS = [
    {"passage": f"The town of {place} was founded by {who}.", "question": f"Where did {who} go?", "place": place}
    for place, who in (("Troyville", "Ann"), ("Springfield", "Ben"), ("Camelot", "Cid"), ("Rome", "Dee"))
]
GOOD = "Find the town that the passage names, and give its name alone."


class Recorder:
    """Called like a `dspy.LM`; answers come from a function of the prompt."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self.answer, self.prompts, self.settings = answer, [], []
        self._lock = threading.Lock()

    def __call__(self, prompt: str, **settings: Any) -> Sequence[Any]:
        with self._lock:
            self.prompts.append(prompt)
            self.settings.append(settings)
        return [self.answer(prompt)]


def says(*texts: str) -> Recorder:
    """Says each text in the place of its tip, the last one for the rest."""
    from cuecard.optimizers.proposers import TIPS

    def answer(prompt: str) -> str:
        place = next(place for place, tip in enumerate(TIPS) if tip in prompt)
        return texts[min(place, len(texts) - 1)]

    return Recorder(answer)


def ground(**changes: Any) -> Ground:
    return Ground(**{"signatures": {"main": CITY}, "step": "main", "rows": ROWS, **changes})


# ---- reading


@pytest.mark.parametrize(
    "text",
    [
        f"<instruction>{GOOD}</instruction>",
        f"Sure!\n<Instruction>\n{GOOD}\n</Instruction>\nI hope this helps.",
        f"<think>They want <instruction>less</instruction>.</think>\n<instruction>{GOOD}</instruction>",
        f"<instruction>{GOOD} And when the passage",
        f"{GOOD}</instruction>",
        f"```\n{GOOD}\n```",
        f"Here it is:\n```text\n{GOOD}\n```\nDone.",
        f'{{"instruction": "{GOOD}"}}',
        f'Of course:\n{{"new_instruction": "{GOOD}", "why": "it is better"}}',
        f"New instruction: {GOOD}",
        f"**Improved Instruction:** {GOOD}",
        f"It was vague.\n\nInstruction: {GOOD}",
        f"Here is a better instruction:\n\n{GOOD}",
        f"Sure, I can do that.\n{GOOD}",
        f"```\n{GOOD}",
        f'"{GOOD}"',
        f"\u201c{GOOD}\u201d",
        f"**{GOOD}**",
        f"  {GOOD}  \n",
    ],
)
def test_small_models_are_read_leniently(text: str) -> None:
    assert read_proposals(text) == [GOOD]


def test_several_tags_are_several_proposals_and_lines_are_kept() -> None:
    text = "<instruction>One is here.</instruction>\n<instruction>Do:\n\n1. this\n2. that  \n</instruction>"
    assert read_proposals(text) == ["One is here.", "Do:\n1. this\n2. that"]


def test_what_was_cut_off_before_a_sentence_ended_is_nothing() -> None:
    assert read_proposals("<instruction>Find the town that") == [""]


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    found = read_proposals(text)
    assert found and all(part == part.strip() for part in found)


# ---- dropping


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("<instruction></instruction>", "empty"),
        ("Do it.", "too short"),
        ("Find the town. " * 200, "too long"),
        ("answer THE question", "a copy"),
        ("Name the town,  quickly!", "a copy"),
        ("I'm sorry, but I can't help with that.", "a refusal"),
        ("Read this. [[ ## place ## ]] Name it.", "laid out like an example"),
        ("Find the town, such as Springfield, in the passage.", "holds a gold answer"),
        ("Say where it is, e.g. CAMELOT.", "holds a gold answer"),
        ("Say what 'The town of Rome was founded by Dee.' tells.", "holds a gold answer"),
        ("Passage: an old town.\nPlace: its name", "laid out like an example"),
        ("Read 'Where did Ann go?' well and find the town.", "holds an example's input"),
        ("Begin with the role that suits the task. Find it.", "repeats what it was asked"),
        ("Describe the task so clearly that someone who has never seen it can do it.", "repeats what it was asked"),
        ("Name the town quickly. Give its name alone.", None),
        (GOOD, None),
    ],
)
def test_what_cannot_be_used_is_dropped_and_counted(text: str, reason: str | None) -> None:
    attempts = [Attempt("Name the town quickly.", 0.5)]
    made = propose(Recorder(lambda prompt: text), ground(attempts=attempts), 1)
    expected = Proposals(dropped={reason: 1}) if reason else Proposals((text,))
    assert made == expected


def test_an_examples_input_is_dropped_and_its_label_is_not() -> None:
    rows = [{"ticket": "My screen went black after the update", "queue": "technical"}]
    sifted = sieve(QUEUE, rows, [])
    assert sifted.reason("Send 'my screen went  black after the update' on.") == "holds an example's input"
    assert sifted.reason("Choose technical where a thing is broken, else billing.") is None


def test_answers_that_several_rows_share_or_the_task_names_give_nothing_away() -> None:
    rows = [{"passage": f"p{n}", "question": "q", "place": place} for n, place in enumerate(["true", "true", "Rome"])]
    named = CITY.with_instructions("Answer Rome or another town.")
    assert sieve(CITY, rows, []).reason("Say true where it holds.") is None
    assert sieve(CITY, rows, []).reason("Say Rome where it holds.") == "holds a gold answer"
    assert sieve(named, rows, []).reason("Say Rome where it holds.") is None
    assert sieve(CITY, [rows[2], dict(rows[2])], []).reason("Say Rome where it holds.") == "holds a gold answer"


def test_every_reference_and_every_item_is_looked_for() -> None:
    listed = cuecard.signature("text -> names: list[str]")
    rows = [{"passage": "p", "question": "q", "place": ["Troyville", "the old town"]}]
    assert sieve(CITY, rows, []).reason("Write the old town when asked.") == "holds a gold answer"
    assert sieve(listed, [{"text": "t", "names": ["Zelda"]}], []).reason("Names like Zelda count.") == (
        "holds a gold answer"
    )


# ---- proposing


def test_proposals_come_in_the_order_of_their_prompts_and_none_twice() -> None:
    lm = says("<instruction>Name the town.</instruction>", "Name the town!", "Where is it? Say so.")
    made = propose(lm, ground(), 3)
    assert made == Proposals(("Name the town.", "Where is it? Say so."), {"a copy": 1})
    assert len(lm.prompts) == 3


def test_no_more_than_was_asked_for() -> None:
    lm = says("<instruction>Name the town.</instruction><instruction>Give the place.</instruction>")
    assert propose(lm, ground(), 1) == Proposals(("Name the town.",), {"more than asked for": 1})
    assert propose(lm, ground(), 0) == Proposals()


def test_a_failed_call_is_counted_with_its_reason_and_ends_nothing() -> None:
    def answer(prompt: str) -> str:
        if "plain" in prompt:
            raise RuntimeError("quota exceeded\nfor today")
        return GOOD

    assert propose(Recorder(answer), ground(), 2) == Proposals((GOOD,), {"call failed: quota exceeded": 1})


@pytest.mark.parametrize("odd", [None, 3, {"reasoning": "x"}, ["nested"]])
def test_what_is_no_text_is_a_failed_call(odd: Any) -> None:
    made = propose(Recorder(lambda prompt: odd), ground(), 1)
    assert made.instructions == () and list(made.dropped.values()) == [1]
    assert next(iter(made.dropped)).startswith("call failed: found a ")


def test_a_completion_may_be_a_mapping_with_its_text() -> None:
    assert propose(Recorder(lambda prompt: {"text": GOOD}), ground(), 1).instructions == (GOOD,)


def test_an_interrupt_is_no_failed_call() -> None:
    def answer(prompt: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        propose(Recorder(answer), ground(), 2)


def test_the_prompt_shows_task_rows_attempts_and_other_steps() -> None:
    steps = {"find": cuecard.signature("question -> passage"), "main": CITY.with_updated_fields("place", desc="a town")}
    attempts = [Attempt("The best one.", 0.75), Attempt("The worst one.", 0.125)]
    misses = [Miss({"passage": "Old Bree.", "question": "Where?"}, {"place": "Bree"}, {"place": "Shire"})]
    lm = says(GOOD)
    propose(lm, ground(signatures=steps, attempts=attempts, misses=misses, description="Towns from history."), 1)
    (prompt,) = lm.prompts
    for part in (
        "What the program is for: Towns from history.",
        "- find: question -> passage\n- main: passage, question -> place (the one to write for)",
        "- Passage (input)\n- Question (input)\n- Place (output): a town",
        "The instruction now: Answer the question.",
        "Score 0.12: The worst one.\nScore 0.75: The best one.",
        "Passage: Old Bree.\nQuestion: Where?\nPlace given: Shire\nPlace wanted: Bree",
    ):
        assert part in prompt
    assert sum(row["passage"] in prompt for row in ROWS) == 3
    assert lm.settings == [{"temperature": 0.7, "max_tokens": 256}]


def test_prompts_differ_and_the_seed_decides() -> None:
    asked = []
    for seed in (1, 1, 2):
        lm = says(GOOD)
        propose(lm, ground(), 4, seed=seed)
        assert len(set(lm.prompts)) == 4
        asked.append(sorted(lm.prompts))
    assert asked[0] == asked[1] != asked[2]


def test_only_the_best_attempts_are_shown() -> None:
    attempts = [Attempt(f"Attempt number {n}.", n / 10) for n in range(10)]
    lm = says(GOOD)
    propose(lm, ground(attempts=attempts), 1, asking=Asking(attempts=2))
    assert "Attempt number 9." in lm.prompts[0] and "Attempt number 7." not in lm.prompts[0]


# ---- on an engine of ours


def test_all_prompts_are_one_batch() -> None:
    engine = FakeEngine(lambda prompt, decoding, sample: f"{GOOD}")
    made = propose(language_model(engine), ground(), 5)
    assert made == Proposals((GOOD,), {"a copy": 4})
    assert [len(batch) for batch in engine.batches] == [5]


def test_the_same_run_gives_the_same_batch() -> None:
    def requests() -> list[Any]:
        engine = FakeEngine()
        propose(language_model(engine), ground(), 4, seed=3)
        return engine.batches

    assert requests() == requests()


def test_an_engine_that_fails_or_breaks_is_counted() -> None:
    def broken(batch: Any) -> None:
        raise OSError("out of memory")

    failing = FakeEngine(failure=lambda request: "no room in the cache")
    for engine, said in ((failing, "no room in the cache"), (FakeEngine(before=broken), "out of memory")):
        made = propose(language_model(engine), ground(), 3)
        assert made.instructions == ()
        assert sum(made.dropped.values()) == 3
        assert all(said in reason for reason in made.dropped)


@pytest.mark.parametrize("chat_template", [True, False])
def test_the_answer_is_begun_for_the_model_and_ends_with_the_tag(chat_template: bool) -> None:
    engine = FakeEngine(
        lambda prompt, decoding, sample: f"{GOOD}</instruction> And so on.", chat_template=chat_template
    )
    assert propose(language_model(engine), ground(), 1) == Proposals((GOOD,))
    (prompt,) = engine.prompts()
    assert prompt.endswith("<instruction>")
    assert ("<|user|>" in prompt) == chat_template


def test_an_answer_that_never_ends_is_cut_at_a_whole_sentence() -> None:
    engine = FakeEngine(lambda prompt, decoding, sample: f"{GOOD} And" + " so on" * 99)
    assert propose(language_model(engine), ground(), 1, asking=Asking(max_tokens=40)) == Proposals((GOOD,))


def test_less_is_shown_where_the_context_window_is_small() -> None:
    engine = FakeEngine(lambda prompt, decoding, sample: GOOD, context_window=340)
    assert propose(language_model(engine), ground(), 1, asking=Asking(max_tokens=64, rows=4)).instructions == (GOOD,)
    (prompt,) = engine.prompts()
    assert 0 < sum(row["passage"] in prompt for row in ROWS) < 4
    assert "</instruction>" in prompt


def test_a_dspy_lm_of_any_kind_can_be_asked() -> None:
    lm = dspy.utils.DummyLM([{"text": "x"}] * 2)
    made = propose(lm, ground(), 1)
    assert len(made.instructions) + sum(made.dropped.values()) == 1


# ---- reflecting


def test_reflection_shows_what_went_wrong_and_asks_to_improve_the_parent() -> None:
    misses = [
        Miss({"ticket": f"Ticket {n}"}, {"queue": "billing"}, None, f"queue: found 'bills {n}'") for n in range(9)
    ]
    lm = Recorder(lambda prompt: "<instruction>Say billing for invoices.</instruction>")
    made = reflect(lm, ground(signatures={"main": QUEUE}, rows=(), misses=misses), "Route it well.", 2)
    assert made == Proposals(("Say billing for invoices.",), {"a copy": 1})
    assert len(set(lm.prompts)) == 2
    for prompt in lm.prompts:
        assert "The instruction now: Route it well." in prompt
        assert prompt.count("The answer could not be read.\nQueue wanted: billing\nFeedback: queue: found 'bills") == 3


def test_the_parent_itself_is_no_improvement() -> None:
    misses = [Miss({"ticket": "t"}, {"queue": "billing"}, {"queue": "technical"})]
    made = reflect(
        Recorder(lambda p: "Route it well!"), ground(signatures={"main": QUEUE}, misses=misses), "route it well"
    )
    assert made == Proposals(dropped={"a copy": 1})


def test_without_misses_nothing_is_asked() -> None:
    lm = Recorder(lambda prompt: GOOD)
    assert reflect(lm, ground(), "Answer.", 3) == Proposals()
    assert lm.prompts == []


def outcome(row: Any, score: float | None, place: str | None = None, **rest: Any) -> Outcome:
    made = {"place": place}
    steps = (Step("main", {"passage": "p", "question": "q"}, made),) if place else ()
    measurement = None if score is None else Measurement(score)
    return Outcome(row, measurement, made if place else None, steps=steps, **rest)


def test_misses_are_what_scored_low_or_could_not_be_read() -> None:
    rows = examples(5, place=lambda n: f"town {n}")
    columns = {"passage": "text", "question": "text", "place": "place"}
    seen = {"passage": "p", "question": "q"}
    outcomes = [
        outcome(rows[0], 1.0, "town 0"),
        outcome(rows[1], 0.0, "city"),
        outcome(rows[2], 0.0, unread="place: the answer does not hold this field"),
        outcome(rows[3], None, error="the call failed"),
        outcome(rows[4], 0.0, "a later step broke", unread="verdict: found 'maybe'"),
    ]
    found = misses_of(outcomes, "main", CITY, columns, below=1.0)
    assert found == [
        Miss(seen, {"place": "town 1"}, {"place": "city"}),
        Miss(
            {"passage": "row 2", "question": "row 2"},
            {"place": "town 2"},
            None,
            "place: the answer does not hold this field",
        ),
    ]


def test_a_step_without_gold_values_is_told_how_the_program_ended() -> None:
    (row,) = examples(1, verdict=lambda n: "yes")
    step = Step("main", {"passage": "p", "question": "q"}, {"place": "Rome"})
    ended = Outcome(row, Measurement(0.0), {"verdict": "no"}, steps=(step,))
    (miss,) = misses_of([ended], "main", CITY, {"passage": "text"}, below=0.5)
    assert miss.error == "the program gave verdict: no; wanted was verdict: yes"


# ---- whom to improve


def test_the_one_that_is_best_somewhere_is_kept_and_the_one_that_others_cover_is_not() -> None:
    assert pareto_weights([[1, 0, 0], [0, 1, 1], [1, 0, 1]]) == (0, 2, 2)
    assert pareto_weights([[0.9, 0.0], [0.5, 0.5], [0.0, 0.8]]) == (1, 0, 1)
    assert pareto_weights([[0.5]]) == (1,)


def test_the_parent_is_drawn_by_weight() -> None:
    generator = random.Random(0)
    drawn = [pareto_parent([[1, 1, 1, 0], [0, 0, 0, 0.5], [0.9, 0.9, 0.9, 0]], generator) for _ in range(400)]
    assert set(drawn) == {0, 1}
    assert 250 < drawn.count(0) < 350


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], [1.0, 0.0]]])
def test_scores_of_other_examples_are_refused(scores: list[list[float]]) -> None:
    with pytest.raises(InputError, match="the same examples for every candidate"):
        pareto_weights(scores)


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1, max_size=6)
    )
)
def test_the_pool_is_that_of_the_reference_implementation(scores: list[list[int]]) -> None:
    means = [sum(row) / len(row) for row in scores]
    assume(len(set(means)) == len(means))  # it breaks ties by the order of its sets
    fronts = {}
    for place, column in enumerate(zip(*scores, strict=True)):
        fronts[place] = {index for index, score in enumerate(column) if score == max(column)}
    kept = remove_dominated_programs(fronts, scores=means)
    counts = tuple(sum(index in front for front in kept.values()) for index in range(len(scores)))
    assert pareto_weights(scores) == counts
