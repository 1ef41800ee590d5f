"""Evaluation: outcomes in order and kept apart, full batches, and errors that end up where they belong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy.utils.dummies import DummyLM
from fakes import LABELS, FakeEngine, WordLearner, indifferent, says, tickets

import cuecard
from cuecard.compiler.data import from_dspy
from cuecard.compiler.evaluate import run_program
from cuecard.compiler.evaluator import ProgramEvaluator, apply, candidate_of, predictors_of, same_names
from cuecard.compiler.examples import Example
from cuecard.errors import InputError, ReadError, RunError
from cuecard.metrics import Measurement, Metric
from cuecard.metrics import metric as metric_of
from cuecard.models.engine import Decoding, GenerateRequest
from cuecard.models.lm import language_model
from cuecard.optimizers.base import Candidate, Outcome
from cuecard.programs.graph import build
from cuecard.programs.predictor import Predictor, adopt
from cuecard.programs.spec import read_spec
from cuecard.programs.state import Calibration, PredictorState, ReadOut
from cuecard.programs.yaml_source import parse_yaml

ROUTE = cuecard.signature("ticket -> queue: Literal['billing', 'technical', 'account']")
EXACT = metric_of("exact_match")


def state(kind: Any = "text", **changes: Any) -> PredictorState:
    return PredictorState(format="completion", readout=ReadOut(kind=kind), **changes)


class Echo(dspy.Module):
    """Answers with what the model says to a row's text, or does what `act` does."""

    def __init__(self, act: Callable[[str], Any] | None = None) -> None:
        super().__init__()
        self.say = Predictor(cuecard.signature("text -> answer"), state())
        self.act = act

    def forward(self, text: str) -> Any:
        done = self.act(text) if self.act else None
        return self.say(text=text) if done is None else done


def rows(count: int, **labels: Any) -> list[Example]:
    return [Example({"text": f"row {n}"}, {"answer": f"said {n}", **labels}, n) for n in range(count)]


def echoing(prompt: str, decoding: Decoding, sample: int) -> str:
    return f" said {prompt.rpartition('row ')[2].split()[0]}"


def run(program: dspy.Module, given: Any, engine: FakeEngine | None = None, metric: Any = EXACT) -> list[Outcome]:
    return run_program(program, given, lm=language_model(engine or FakeEngine(echoing)), metric=metric)


def kinds(outcomes: list[Outcome]) -> str:
    """One letter an outcome: measured, unread, failed."""
    return "".join("f" if o.error else "u" if o.unread else "m" for o in outcomes)


# ---- order and batches


@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_outcomes_stand_in_the_rows_order(count: int) -> None:
    given = rows(count)
    outcomes = run(Echo(), given)
    assert [outcome.row for outcome in outcomes] == given
    assert [outcome.prediction for outcome in outcomes] == [{"answer": f"said {n}"} for n in range(count)]
    assert all(outcome.measurement == Measurement(1.0) for outcome in outcomes)


def test_all_rows_meet_in_one_batch_in_their_order() -> None:
    engine = FakeEngine(echoing)
    run(Echo(), rows(40), engine)
    (batch,) = engine.batches
    texts = [engine.tokenizer.text(request.prompt).rpartition("row ")[2].split()[0] for request in batch]
    assert texts == [str(n) for n in range(40)]


def test_batches_are_the_same_each_time_however_long_each_row_takes() -> None:
    class Uneven(Echo):
        def forward(self, text: str) -> Any:
            for _ in range(int(text.split()[1]) % 3):
                self.say(text=f"{text} again")
            return self.say(text=text)

    seen = []
    for _ in range(3):
        engine = FakeEngine(echoing)
        run(Uneven(), rows(300), engine)
        seen.append(engine.batches)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) < 20


def test_a_row_that_fails_early_does_not_hold_up_the_others() -> None:
    def act(text: str) -> None:
        if text.endswith(("1", "3")):
            raise KeyError("no")

    engine = FakeEngine(echoing)
    assert kinds(run(Echo(act), rows(5), engine)) == "mfmfm"
    assert [len(batch) for batch in engine.batches] == [3]


def test_the_observer_hears_of_every_row() -> None:
    heard: list[int] = []
    run_program(Echo(), rows(30), lm=language_model(FakeEngine(echoing)), metric=EXACT, observer=heard.append)
    assert len(heard) == 30
    assert max(heard) == 30


def test_no_worker_is_left_running_and_nothing_configured() -> None:
    before, running = dspy.settings.lm, set(threading.enumerate())
    run(Echo(), rows(20))
    left = [thread.name for thread in threading.enumerate() if thread not in running]
    own = ("cuecard-engine", "cuecard-compute")
    assert not [name for name in left if not name.startswith(own)], "an engine and torch keep a thread each"
    assert dspy.settings.lm is before


# ---- what became of a row


def test_unread_failed_and_measured_are_kept_apart() -> None:
    program = Predictor(ROUTE, state())

    def answer(prompt: str, decoding: Decoding, sample: int) -> str:
        return " I would not know" if "n1x1" in prompt else " billing"

    def failure(request: GenerateRequest) -> str | None:
        return "too long" if len(request.prompt) > 60 else None

    given = [*from_dspy(tickets(3, 1)), Example({"ticket": "long " * 60}, {"queue": "billing"}, 3)]
    outcomes = run(program, given, FakeEngine(answer, failure=failure))
    assert kinds(outcomes) == "mumf"
    read, unread, _, failed = outcomes
    assert read.prediction == {"queue": "billing"} and read.measurement == Measurement(1.0)
    assert unread.prediction is None and unread.measurement == Measurement(0.0) and unread.error is None
    assert unread.unread is not None and unread.unread.startswith("queue: found 'I would not know'")
    assert failed.measurement is None and failed.prediction is None and failed.error == "too long"


def test_an_unread_answer_weighs_on_a_corpus_metric() -> None:
    program = Predictor(cuecard.signature("text -> answer: int"), state())
    (outcome,) = run(
        program, [Example({"text": "x"}, {"answer": "a b c d"}, 0)], FakeEngine(says(" none")), metric_of("bleu")
    )
    assert outcome.unread
    assert outcome.measurement is not None
    assert outcome.measurement.statistics, "the reference's length counts"


def test_a_prompt_that_is_too_long_fails_its_row_only() -> None:
    given = rows(3)
    given[1] = Example({"text": "many " * 200}, {"answer": "x"}, 1)
    outcomes = run(Echo(), given, FakeEngine(echoing, context_window=100))
    assert kinds(outcomes) == "mfm"
    assert outcomes[1].error is not None and "the prompt has" in outcomes[1].error


def test_a_program_that_breaks_on_a_row_fails_that_row_with_the_reason() -> None:
    def act(text: str) -> None:
        if text == "row 2":
            raise ValueError("two\nlines")

    outcomes = run(Echo(act), rows(4))
    assert kinds(outcomes) == "mmfm"
    assert outcomes[2].error == "the program broke: ValueError: two lines"


@pytest.mark.parametrize("made", ["text", 3, None, [1, 2], object()], ids=lambda made: type(made).__name__)
def test_a_program_that_gives_no_prediction_fails_the_row(made: Any) -> None:
    class Odd(Echo):
        def forward(self, text: str) -> Any:
            return made if text == "row 1" else self.say(text=text)

    outcomes = run(Odd(), rows(3))
    assert kinds(outcomes) == "mfm"
    assert outcomes[1].error is not None
    assert f"gave a {type(made).__name__}" in outcomes[1].error


def test_a_program_may_give_a_dict() -> None:
    outcomes = run(Echo(lambda text: {"answer": text.replace("row", "said")}), rows(3))
    assert [o.measurement for o in outcomes] == [Measurement(1.0)] * 3


def test_without_a_metric_nothing_is_measured() -> None:
    outcomes = run(Echo(), [Example({"text": "row 1"}, {}, 0)], metric=None)
    assert outcomes[0].measurement is None
    assert outcomes[0].prediction == {"answer": "said 1"}


def test_a_read_error_of_the_programs_own_is_an_unread_answer() -> None:
    def act(text: str) -> None:
        raise ReadError("nothing there", field="answer")

    outcomes = run(Echo(act), rows(2))
    assert kinds(outcomes) == "uu"
    assert outcomes[0].measurement == Measurement(0.0)


def test_an_answer_that_dspy_cannot_read_is_unread_too() -> None:
    class Own(dspy.Predict):
        pass

    program = Own(cuecard.signature("text -> answer: int"))
    assert kinds(run(program, rows(2), FakeEngine(says("no number at all")))) == "uu"


# ---- what is not one row's affair


def test_an_engine_that_dies_ends_the_evaluation_with_its_cause() -> None:
    def before(batch: Any) -> None:
        raise RuntimeError("the card is gone")

    with pytest.raises(RunError, match="the engine broke: RuntimeError: the card is gone"):
        run(Echo(), rows(5), FakeEngine(before=before))


def test_an_engine_that_dies_on_a_later_step_ends_it_too() -> None:
    class Twice(Echo):
        def forward(self, text: str) -> Any:
            self.say(text=text)
            return self.say(text=f"{text} again")

    def before(batch: Any) -> None:
        if len(engine.batches) == 1:
            raise RuntimeError("gone")

    engine = FakeEngine(echoing, before=before)
    with pytest.raises(RunError, match="gone"):
        run(Twice(), rows(5), engine)


def test_an_engine_that_dies_under_plain_dspy_calls_ends_it_too() -> None:
    class Own(dspy.Predict):
        pass

    def before(batch: Any) -> None:
        raise RuntimeError("the card is gone")

    with pytest.raises(RunError, match="the card is gone"):
        run(Own(cuecard.signature("text -> answer")), rows(3), FakeEngine(before=before))


def test_wrong_input_that_concerns_every_row_ends_it() -> None:
    def act(text: str) -> None:
        if text == "row 1":
            raise InputError("the program has no input 'txt'")

    with pytest.raises(InputError, match="no input 'txt'"):
        run(Echo(act), rows(3))


def test_a_metric_function_that_raises_names_the_example_and_the_place() -> None:
    def broken(example: Any, prediction: Any) -> float:
        if example.answer == "said 1":
            raise KeyError("score")
        return 1.0

    with pytest.raises(InputError, match="metric 'broken' raised KeyError: 'score'") as caught:
        run(Echo(), rows(3), metric=metric_of(broken))
    assert "example 2" in str(caught.value), "counted from 1, as people do"
    assert caught.value.path == __file__
    assert caught.value.line


def test_a_metric_class_that_raises_names_the_example() -> None:
    class Broken(Metric):
        name = "mine"

        def measure(self, example: Any, prediction: Any) -> Measurement:
            if example["answer"] == "said 2":
                raise ZeroDivisionError("by nought")
            return Measurement(1.0)

    with pytest.raises(RunError, match="the metric 'mine' broke on example 3: ZeroDivisionError: by nought"):
        run(Echo(), rows(3), metric=Broken())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_worker_is_not_swallowed(stop: type[BaseException]) -> None:
    def act(text: str) -> None:
        if text == "row 1":
            raise stop

    with pytest.raises(stop):
        run(Echo(act), rows(3))


@pytest.mark.parametrize("_", range(5))
def test_an_interrupt_in_the_engine_is_not_told_as_its_failure(_: int) -> None:
    def before(batch: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Echo(), rows(30), FakeEngine(before=before))


def test_another_lm_is_refused() -> None:
    with pytest.raises(InputError, match="evaluation needs a Cuecard target"):
        run_program(Echo(), rows(1), lm=DummyLM([{"answer": "x"}]), metric=EXACT)


# ---- what it leaves behind


TWO_STEPS = """\
inputs: {ticket: str}
nodes:
  summary: {signature: "ticket -> summary: str", format: completion}
  route:
    module: chain_of_thought
    signature: "ticket, summary -> queue: Literal['billing', 'technical', 'account']"
    inputs: {ticket: "${inputs.ticket}", summary: "${summary.summary}"}
    format: completion
    readout: choice
outputs: {queue: "${route.queue}"}
"""


def graph() -> Any:
    return build(read_spec(parse_yaml(TWO_STEPS, "two.yaml")))


def test_steps_and_choices_go_by_the_predictors_names() -> None:
    (outcome,) = run(graph(), from_dspy(tickets(1, 1)), WordLearner().engine())
    assert [step.predictor for step in outcome.steps] == ["summary", "route.predict"]
    assert outcome.steps[0].inputs == {"ticket": outcome.row.inputs["ticket"]}
    assert outcome.steps[0].outputs == {"summary": "billing"}
    assert set(outcome.steps[1].outputs) == {"reasoning", "queue"}
    ((name, choice),) = outcome.choices
    assert (name, choice.field, choice.labels) == ("route.predict", "queue", LABELS)


def test_an_unread_row_keeps_the_steps_before_it() -> None:
    program = graph()
    program.route.predict.state = state("text")
    (outcome,) = run(
        program, from_dspy(tickets(1, 1)), FakeEngine(lambda prompt, *_: " hm" if prompt.endswith("Queue:") else " ok")
    )
    assert outcome.unread
    assert [step.predictor for step in outcome.steps] == ["summary"]


def test_labels_between_the_nodes_are_not_compared() -> None:
    given = [Example({"ticket": "crash"}, {"queue": "billing", "summary": "something else"}, 0)]
    (outcome,) = run(graph(), given, WordLearner(bias={"billing": 9}).engine())
    assert outcome.measurement == Measurement(1.0)


# ---- the evaluator


def evaluator(program: dspy.Module | None = None, engine: FakeEngine | None = None, **rest: Any) -> ProgramEvaluator:
    lm = language_model(engine or WordLearner().engine())
    return ProgramEvaluator(program or Predictor(ROUTE, state("choice")), EXACT, lm, **rest)


def test_a_candidate_runs_on_a_copy() -> None:
    program = Predictor(ROUTE, state("choice"))
    made = evaluator(program)
    other = Candidate({"self": state("choice", instructions="Other.", demos=({"ticket": "t", "queue": "account"},))})
    made.run(other, from_dspy(tickets(2, 1)))
    assert program.state == predictors_of(program)["self"].state
    assert program.state.instructions != "Other."
    assert program.demos == []
    assert candidate_of(apply(program, other)).states["self"].instructions == "Other."


def test_a_programs_own_lm_does_not_get_in_the_way() -> None:
    """Its calls would pass by the journal and the batches."""
    own, ours = WordLearner().engine(), WordLearner().engine()
    program = Predictor(ROUTE, state("choice"))
    program.set_lm(language_model(own))
    made = evaluator(program, ours)
    made.run(candidate_of(program), from_dspy(tickets(4, 1)))
    assert own.batches == []
    assert [len(batch) for batch in ours.batches] == [4]
    assert program.lm is not None, "the program itself keeps it"


def test_program_runs_and_probes_are_counted() -> None:
    heard: list[int] = []
    made = evaluator(observer=heard.append)
    candidate = candidate_of(made.program)
    made.run(candidate, from_dspy(tickets(5, 1)))
    made.run(candidate, from_dspy(tickets(2, 2)))
    assert made.spent == 7
    assert sorted(set(heard))[-1] == 7
    made.probe(candidate, "self", {"ticket": "N/A"})
    assert made.spent == 8


def test_a_probe_gives_the_choices_without_the_program() -> None:
    made = evaluator(graph(), WordLearner(bias={"account": 2.0}).engine())
    candidate = candidate_of(made.program)
    (choice,) = made.probe(candidate, "route.predict", {"ticket": "N/A", "summary": "N/A"})
    assert choice.field == "queue"
    assert choice.totals == (-6.0, -6.0, -4.0)
    assert made.probe(candidate, "summary", {"ticket": "N/A"}) == []


def test_a_probe_that_has_no_answer_gives_no_choices() -> None:
    assert evaluator(engine=FakeEngine(failure=lambda r: "no")).probe(CHOOSING, "self", {"ticket": "x"}) == []
    long = {"ticket": "many " * 9000}
    assert evaluator().probe(CHOOSING, "self", long) == []


def test_a_probe_does_not_hide_a_dead_engine() -> None:
    def before(batch: Any) -> None:
        raise RuntimeError("gone")

    with pytest.raises(RunError, match="gone"):
        evaluator(engine=FakeEngine(before=before)).probe(CHOOSING, "self", {"ticket": "x"})


CHOOSING = Candidate({"self": state("choice")})


def test_prompt_tokens_are_those_of_the_first_request() -> None:
    engine = WordLearner().engine()
    made = evaluator(engine=engine)
    given = from_dspy(tickets(3, 1))
    counted = made.prompt_tokens(CHOOSING, given)
    assert engine.batches == []
    made.run(CHOOSING, given)
    assert counted == sum(len(request.prompt) for request in engine.batches[0]) / 3
    demo = {"ticket": "t", "queue": "billing"}
    more = Candidate({"self": state("choice", demos=(demo, demo))})
    assert made.prompt_tokens(more, given) > counted
    assert made.spent == 3, "rendering is free"


def test_prompt_tokens_of_a_predictor_whose_inputs_nobody_knows_are_left_out() -> None:
    made = evaluator(graph(), columns=graph().columns)
    candidate = candidate_of(made.program)
    given = from_dspy(tickets(2, 1))
    only_summary = made.prompt_tokens(candidate, given)
    told = [Example(row.inputs, {**row.labels, "summary": "in brief"}, row.id) for row in given]
    assert 0 < only_summary < made.prompt_tokens(candidate, told)


def test_signatures_and_columns_are_those_of_the_program() -> None:
    program = graph()
    made = evaluator(program, columns=program.columns)
    assert list(made.signatures) == ["summary", "route.predict"]
    assert made.columns("route.predict")["queue"] == "queue"
    assert made.columns("other") == {}
    plain = adopt(dspy.ChainOfThought("question -> answer"))
    assert same_names(plain) == {"predict": {name: name for name in ("question", "reasoning", "answer")}}


def test_a_calibration_is_part_of_what_runs() -> None:
    calibration = Calibration(method="bias", offsets={"queue": {"billing": 0.0, "technical": -9.0, "account": 0.0}})
    readout = ReadOut(kind="choice", calibration=calibration)
    candidate = Candidate({"self": PredictorState(format="completion", readout=readout)})
    made = evaluator(engine=FakeEngine(likelihood=indifferent))
    (outcome,) = made.run(candidate, from_dspy(tickets(1, 1)))
    assert outcome.prediction == {"queue": "technical"}
    assert outcome.choices[0][1].totals == (-1.0, -1.0, -1.0), "recorded before calibration"
