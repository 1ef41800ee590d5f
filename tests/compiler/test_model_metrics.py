"""Metrics that need a model at work: perplexity under the target, and how sure the program was of its labels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from fakes import FakeEngine, WordLearner, compile_tickets, fake_target
from hypothesis import given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.compiler.evaluate import Answered, measured, run_program, run_programs
from cuecard.compiler.examples import Example
from cuecard.compiler.from_spec import spec_metric
from cuecard.compiler.judging import Models, NoModel, metric_of
from cuecard.compiler.judging.perplexity import Perplexity
from cuecard.compiler.replay import recorded, replay_target
from cuecard.errors import InputError, RunError
from cuecard.metrics import Measurement, Metric, interval, metric
from cuecard.models.lm import language_model
from cuecard.programs.graph import build
from cuecard.programs.heads import Head, choice_of
from cuecard.programs.predictor import Predictor
from cuecard.programs.spec import load_spec, read_spec
from cuecard.programs.state import Calibration, PredictorState, ReadOut
from cuecard.programs.yaml_source import parse_yaml

from .cli_cases import cuecard as command
from .testing_cases import results, suite_of

START = "<|start|>"


def nats(text: str) -> float:
    """What a text costs the model below: a nat a letter."""
    return -float(sum(map(str.isalpha, text)))


def reading(**options: Any) -> FakeEngine:
    """Says again what was asked; a text by itself costs a nat a letter."""

    def likelihood(prompt: str, continuation: str) -> float:
        assert prompt == START
        return nats(continuation)

    return FakeEngine(
        lambda prompt, *_: f" {prompt.rpartition('Question: ')[2].splitlines()[0]}\n", likelihood, **options
    )


def echo() -> dspy.Module:
    return Predictor(cuecard.signature("question -> reply"), PredictorState(format="completion"))


def rows(*questions: str, **labels: Any) -> list[Example]:
    return [Example({"question": text}, dict(labels), n) for n, text in enumerate(questions)]


def answered(text: Any, **gold: Any) -> Answered:
    return Answered({"question": "why"}, gold, {"reply": text})


def read(texts: Sequence[Any], engine: FakeEngine | None = None, **options: Any) -> list[Measurement]:
    with dspy.context(lm=fake_target(engine or reading()).lm):
        found = Perplexity(**options).measure_all([answered(text) for text in texts])
    assert not [each for each in found if isinstance(each, str)]
    return [each for each in found if isinstance(each, Measurement)]


# ---- perplexity


def test_the_score_is_one_over_the_perplexity_and_the_aggregate_is_that_of_all_tokens() -> None:
    found = read(["aa", "b c d"])
    assert [each.statistics for each in found] == [(2, 1, 1, 1), (3, 3, 1, 1)]
    assert [1 / each.score for each in found] == pytest.approx([math.exp(2), math.exp(1)])
    assert 1 / Perplexity().aggregate(found) == pytest.approx(math.exp(5 / 4))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 300), st.integers(1, 50)), min_size=1, max_size=8))
def test_the_aggregate_is_that_of_one_long_text(parts: list[tuple[float, int]]) -> None:
    ours = Perplexity()
    rows_ = [Measurement(0.5, (cost, float(tokens), 1.0, 1.0)) for cost, tokens in parts]
    expected = math.exp(-math.fsum(cost for cost, _ in parts) / sum(tokens for _, tokens in parts))
    assert ours.aggregate(rows_) == pytest.approx(expected)
    assert 0 <= ours.aggregate(rows_) <= 1


def test_what_it_declares() -> None:
    told = Perplexity().describe()
    assert (told.low, told.high, told.aggregation, told.direction) == (0, 1, "corpus", "higher is better")


def test_it_is_the_models_own_log_likelihood(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["A customer was charged twice.", "Paris", "no é \n yes"]
    target = cuecard.target(str(tiny_model), device="cpu", dtype="float32")
    with dspy.context(lm=target.lm):
        found = Perplexity().measure_all([answered(text) for text in texts])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    begin = list(target.engine.tokenizer.start()) or tokenizer.encode("\n", add_special_tokens=False)
    for text, each in zip(texts, found, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        whole = torch.tensor([begin + ids])
        with torch.no_grad():
            told = model(whole).logits[0, len(begin) - 1 : -1].log_softmax(-1)
        expected = -told[range(len(ids)), ids].sum().item()
        assert isinstance(each, Measurement)
        assert each.statistics == pytest.approx((expected, len(ids), 1, 1), rel=1e-4)


def test_after_a_line_break_where_no_token_begins_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(engine.tokenizer, "start", lambda: ())
    assert read(["yes"], engine)[0].statistics == (1, 1, 1, 1)
    assert engine.prompts() == ["\n"]


def test_as_a_metric_its_calls_are_one_batch_after_the_rows_and_equal_texts_are_read_once() -> None:
    engine = reading()
    ours = Perplexity()
    lm = fake_target(engine).lm
    outcomes = run_program(echo(), rows("aa", "b", "aa"), lm=lm, metric=ours)
    scores = [outcome.measurement.score for outcome in outcomes if outcome.measurement]
    assert scores == pytest.approx([math.exp(-2), math.exp(-1), math.exp(-2)])
    assert [len(batch) for batch in engine.batches] == [3, 2]
    with dspy.context(lm=lm):
        assert measured(echo(), outcomes, ours) == [outcome.measurement for outcome in outcomes]
    assert len(engine.batches) == 2


def test_an_empty_text_has_no_perplexity_and_takes_its_share_of_the_score() -> None:
    ours = Perplexity()
    found = read(["aa", "", " \n", "b c"])
    assert [each.score for each in found] == pytest.approx([math.exp(-2), 0, 0, math.exp(-1)])
    assert ours.aggregate(found) == pytest.approx(0.5 * math.exp(-4 / 3))
    assert ours.aggregate(found[1:3]) == 0
    assert ours.worst({"reply": "x"}) == found[1]


def test_an_output_that_cannot_be_read_counts_as_an_empty_one() -> None:
    program = Predictor(cuecard.signature("question -> reply: int"), PredictorState(format="completion"))
    outcomes = run_program(program, rows("7", "seven"), lm=fake_target(reading()).lm, metric=Perplexity())
    assert [outcome.unread is None for outcome in outcomes] == [True, False]
    assert [outcome.measurement.statistics for outcome in outcomes if outcome.measurement] == [
        (0, 1, 1, 1),
        (0, 0, 0, 1),
    ]


def test_the_score_of_the_references_does_not_fall_with_an_output_that_cannot_be_read() -> None:
    program = Predictor(cuecard.signature("question -> reply: int"), PredictorState(format="completion"))
    ours = Perplexity(of="reference")
    outcomes = run_program(program, rows("7", "seven", reply="aa"), lm=fake_target(reading()).lm, metric=ours)
    assert [outcome.unread is None for outcome in outcomes] == [True, False]
    found = [outcome.measurement for outcome in outcomes if outcome.measurement]
    assert ours.aggregate(found) == ours.aggregate(found[:1]) == pytest.approx(math.exp(-2))


def test_a_text_that_the_model_cannot_read_has_no_score() -> None:
    engine = reading(context_window=40)
    long = "a " * 60
    with dspy.context(lm=fake_target(engine).lm):
        found = Perplexity().measure_all([answered("b"), answered(long)])
        assert isinstance(found[0], Measurement)
        told = "the perplexity is not known: prompt and output do not fit into the context window"
        assert found[1] == told
        with pytest.raises(RunError, match="the perplexity is not known"):
            Perplexity().measure({}, {"reply": long})


def test_an_impossible_token_is_no_score() -> None:
    with dspy.context(lm=fake_target(FakeEngine(likelihood=lambda *_: -math.inf)).lm):
        [told] = Perplexity().measure_all([answered("b")])
    assert told == "the perplexity is not known: the model finds a token of the text impossible"


def test_the_references_can_be_read_instead() -> None:
    with dspy.context(lm=fake_target(reading()).lm):
        ours = Perplexity(of="reference")
        found = ours.measure_all([answered("x", reply="aaa"), answered("x", reply=["a", "b b"])])
        assert [each.statistics for each in found if isinstance(each, Measurement)] == [(3, 1, 1, 1), (3, 3, 2, 2)]
        with pytest.raises(InputError, match="compares the field 'reply', which the example does not have"):
            ours.measure_all([answered("x")])


def test_values_that_are_no_text_are_read_as_text_and_fields_are_chosen() -> None:
    with dspy.context(lm=fake_target(reading()).lm):
        case = Answered({}, {"reply": "x"}, {"reply": ["a", "bb"], "reason": "cccc"})
        [one], [both] = (Perplexity(fields=f).measure_all([case]) for f in ((), ("reply", "reason")))
        assert isinstance(one, Measurement) and isinstance(both, Measurement)
        assert one.statistics == (3, 3, 1, 1)  # "a", a line break, "bb"
        assert both.statistics == (7, 4, 2, 2)
        with pytest.raises(InputError, match="cannot tell which field to look at"):
            Perplexity().measure_all([Answered({}, {}, {"reply": "a", "reason": "b"})])


def test_it_can_be_measured_one_at_a_time_without_inputs_being_read() -> None:
    example = dspy.Example(question="aaaaaa", reply="x").with_inputs("question")
    with dspy.context(lm=fake_target(reading()).lm):
        assert Perplexity().measure(example, dspy.Prediction(reply="b b", reasoning="ccc")).statistics == (2, 2, 1, 1)


def test_it_runs_on_a_model_of_its_own_which_is_opened_once() -> None:
    mine, theirs, opened = reading(), reading(identity="big"), []

    def open_model(name: Any) -> Any:
        opened.append(name)
        return fake_target(theirs)

    ours = metric_of({"perplexity": {"model": "big", "field": "reply"}}, models=Models(open_model))
    outcomes = run_program(echo(), rows("a", "b"), lm=fake_target(mine).lm, metric=ours)
    assert [o.measurement.score for o in outcomes if o.measurement] == pytest.approx([math.exp(-1)] * 2)
    assert (opened, len(mine.batches), [len(batch) for batch in theirs.batches]) == (["big"], 1, [2])


def test_what_one_model_makes_of_a_text_is_not_told_of_another() -> None:
    ours, found = Perplexity(), []
    for cost in (1.0, 2.0):
        with dspy.context(lm=fake_target(FakeEngine(likelihood=lambda *_, c=cost: -c, identity=str(cost))).lm):
            found.append(ours.measure({}, {"reply": "a"}).score)
    assert found == pytest.approx([math.exp(-1), math.exp(-2)])


def test_without_a_model_there_is_no_score() -> None:
    with pytest.raises(NoModel, match="the metric 'perplexity' has no model to run on\n  Name one"):
        Perplexity().measure({}, {"reply": "a"})


def test_in_a_weighted_sum() -> None:
    ours = metric_of([{"metric": "perplexity", "weight": 3}, {"metric": "exact_match"}])
    assert ours.name == "0.75 perplexity + 0.25 exact_match"
    lm = fake_target(reading()).lm
    outcomes = run_program(echo(), rows("aa", "b", reply="b"), lm=lm, metric=ours)
    found = [outcome.measurement for outcome in outcomes if outcome.measurement]
    assert [each.score for each in found] == pytest.approx([0.75 * math.exp(-2), 0.75 * math.exp(-1) + 0.25])
    assert ours.aggregate(found) == pytest.approx(0.75 * math.exp(-3 / 2) + 0.25 * 0.5)


@pytest.mark.parametrize(
    ("written", "model", "stored"),
    [
        ("perplexity", None, "perplexity"),
        ("{metric: perplexity, field: reply}", None, {"metric": "perplexity", "field": "reply"}),
        (
            "{perplexity: {model: big, field: reply}}",
            "big",
            {"metric": "perplexity", "model": "big", "field": "reply"},
        ),
        ("{perplexity: big}", "big", {"metric": "perplexity", "model": "big"}),
    ],
)
def test_every_way_to_write_it_in_a_spec(tmp_path: Path, written: str, model: str | None, stored: Any) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"signature: question -> reply\nmetric: {written}\n")
    spec = load_spec(path)
    ours = spec_metric(spec)
    assert isinstance(ours, Perplexity) and ours.model == model
    assert ours.fields == (("reply",) if "field" in written else ())
    assert spec.to_data()["metric"] == stored


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("perplexty", "(did you mean 'perplexity'?)"),
        ({"metric": "perplexity", "modle": "x"}, "has no option 'modle'; expected one of field, fields, model, of"),
        ({"perplexity": {"of": "gold"}}, "option 'of' of metric 'perplexity' is 'gold'"),
        ({"perplexity": {"model": 3}}, "option 'model' of metric 'perplexity' is 3"),
        ({"perplexity": {}, "weight": -1}, "the weight -1"),
        ({"perplexity": {"model": {"id": "a", "dtype": "half"}}}, "metric: model.dtype: found 'half'"),
        ([{"metric": "f1"}, {"perplexity": {"field": 1}}], "metric[1]: the field 1 is not a name"),
    ],
)
def test_what_a_spec_says_wrong(spec: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        metric_of(spec, path="spec.yaml", line=7)
    assert told in str(caught.value)
    assert str(caught.value).startswith("spec.yaml:7: ")


def test_a_program_is_scored_by_perplexity() -> None:
    found = cuecard.evaluate(
        echo(),
        [dspy.Example(question=text, reply="x").with_inputs("question") for text in ("aa", "b")],
        "perplexity",
        target=fake_target(reading()),
    )
    assert found.score.value == pytest.approx(math.exp(-3 / 2))
    assert found.score.low <= found.score.value <= found.score.high


def test_a_gate_by_perplexity(tmp_path: Path) -> None:
    lines = [{"question": text, "reply": "x"} for text in ("aa", "b", "c")]
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    head = "signature: question -> reply\nformat: completion\nmetric: perplexity\n"
    tests = "  - {name: gate, data: told.jsonl, at_least: 0.2}\n  - {name: high, data: told.jsonl, at_least: 0.4}\n"
    found = results(suite_of(tmp_path, tests, head), reading())
    assert {name: each.status for name, each in found.items()} == {"gate": "pass", "high": "fail"}
    assert found["gate"].score == pytest.approx(math.exp(-4 / 3))


def test_a_replay_reads_the_same_texts(tmp_path: Path) -> None:
    def run(target: Any) -> list[Any]:
        outcomes = run_program(echo(), rows("aa", "b"), lm=language_model(target.engine), metric=Perplexity())
        return [outcome.measurement for outcome in outcomes]

    with recorded(fake_target(reading()), tmp_path / "calls") as target:
        found = run(target)
    assert run(replay_target(tmp_path / "calls")) == found
    with pytest.raises(InputError, match="since its calls were recorded"):
        run_program(echo(), rows("aa", "c"), lm=replay_target(tmp_path / "calls").lm, metric=Perplexity())


# ---- how sure the program was

QUEUES = ("billing", "technical", "account")
ROUTE = f"ticket -> queue: Literal[{', '.join(map(repr, QUEUES))}]"


def confident(**sure: float) -> FakeEngine:
    """Gives `billing` the probability that the ticket names, and the others the same."""

    def likelihood(prompt: str, continuation: str) -> float:
        ticket = prompt.rpartition("Ticket: ")[2].split()[0]
        rest = (1 - sure[ticket]) / 2
        return math.log(sure[ticket] if "billing" in continuation else rest)

    return FakeEngine(lambda *_: " billing\n", likelihood)


def router(kind: Any = "choice", **readout: Any) -> Predictor:
    state = PredictorState(format="completion", readout=ReadOut(kind=kind, **readout))
    return Predictor(cuecard.signature(ROUTE), state)


def routed(*tickets: str, queue: str = "billing") -> list[Example]:
    return [Example({"ticket": ticket}, {"queue": queue}, n) for n, ticket in enumerate(tickets)]


CALIBRATION = metric("calibration_error")


def scores_of(outcomes: Sequence[Any]) -> list[float | None]:
    return [None if outcome.measurement is None else outcome.measurement.score for outcome in outcomes]


def test_the_confidence_is_the_labels_probability() -> None:
    lm = fake_target(confident(most=0.9, some=0.6)).lm
    outcomes = run_program(router(), routed("most", "some"), lm=lm, metric=CALIBRATION)
    assert scores_of(outcomes) == pytest.approx([0.9, 0.6])
    found = [outcome.measurement for outcome in outcomes if outcome.measurement]
    assert CALIBRATION.aggregate(found) == pytest.approx(1 - (0.1 + 0.4) / 2)
    assert interval(CALIBRATION, found).n == 2
    with dspy.context(lm=lm):
        assert measured(router(), outcomes, CALIBRATION) == found


def test_a_learned_calibration_counts() -> None:
    offsets = Calibration(method="bias", offsets={"queue": {"billing": math.log(3.0)}})
    lm = fake_target(confident(most=0.75)).lm
    plain, learned = (
        run_program(router(**given), routed("most"), lm=lm, metric=CALIBRATION)[0]
        for given in ({}, {"calibration": offsets})
    )
    assert scores_of([plain, learned]) == pytest.approx([0.75, 0.25 / 0.5])


def test_a_learned_matrix_counts() -> None:
    labels = ("account", "billing", "technical")
    rest = np.zeros(3, dtype=np.float32)
    scale = np.ones(3, dtype=np.float32)
    head = Head(labels, 2 * np.eye(3, dtype=np.float32), rest, rest, scale, layer=None, pooling="scores")
    program = router(heads={"queue": choice_of(head, "route.safetensors")})
    outcomes = run_program(program, routed("most"), lm=fake_target(confident(most=0.5)).lm, metric=CALIBRATION)
    assert scores_of(outcomes) == pytest.approx([0.5**2 / (0.5**2 + 2 * 0.25**2)])


def test_programs_that_run_side_by_side_keep_their_own_calibration() -> None:
    offsets = Calibration(method="bias", offsets={"queue": {"billing": math.log(3.0)}})
    both = [router(), router(calibration=offsets)]
    found = run_programs(both, routed("most"), lm=fake_target(confident(most=0.75)).lm, metric=CALIBRATION)
    assert [scores_of(each) for each in found] == [[pytest.approx(0.75)], [pytest.approx(0.5)]]


def test_the_last_choice_of_a_field_counts_under_the_outputs_own_name() -> None:
    text = f"""\
inputs: {{ticket: str}}
nodes:
  first: {{signature: "{ROUTE}", format: completion, readout: choice}}
  second:
    signature: "ticket, guess: str -> queue: Literal[{", ".join(map(repr, QUEUES))}]"
    inputs: {{ticket: "${{inputs.ticket}}", guess: "${{first.queue}}"}}
    format: completion
    readout: choice
outputs: {{route: "${{second.queue}}"}}
"""

    def likelihood(prompt: str, continuation: str) -> float:
        sure = 0.7 if "Guess: billing" in prompt.rpartition("Ticket: ")[2] else 0.9
        return math.log(sure if "billing" in continuation else (1 - sure) / 2)

    graph = build(read_spec(parse_yaml(text, "two.yaml")))
    row = Example({"ticket": "x"}, {"route": "billing"}, 0)
    [outcome] = run_program(graph, [row], lm=fake_target(FakeEngine(likelihood=likelihood)).lm, metric=CALIBRATION)
    assert len(outcome.choices) == 2
    assert scores_of([outcome]) == [pytest.approx(0.7)]


def test_an_answer_that_was_written_has_no_score_and_says_what_to_do() -> None:
    lm = fake_target(confident(most=0.9)).lm
    [outcome] = run_program(router("text"), routed("most"), lm=lm, metric=CALIBRATION)
    assert outcome.measurement is None
    assert outcome.error is not None and "set `readout: choice` where it is made" in outcome.error
    with pytest.raises(RunError, match="`readout: choice`"):
        cuecard.evaluate(
            router("text"),
            [dspy.Example(ticket="most", queue="billing").with_inputs("ticket")],
            "calibration_error",
            target=fake_target(confident(most=0.9)),
        )


def test_an_output_that_cannot_be_read_counts_as_a_sure_and_wrong_one() -> None:
    signature = cuecard.signature(f"{ROUTE}, count: int")
    state = PredictorState(format="completion", readout=ReadOut(kind="choice"))
    [outcome] = run_program(
        Predictor(signature, state),
        routed("most"),
        lm=fake_target(confident(most=0.9)).lm,
        metric=metric({"metric": "calibration_error", "field": "queue"}),
    )
    assert outcome.unread is not None
    assert scores_of([outcome]) == [0]


def test_beside_other_metrics() -> None:
    ours: Metric = metric(["calibration_error", "accuracy"])
    lm = fake_target(confident(most=0.9)).lm
    assert scores_of(run_program(router(), routed("most"), lm=lm, metric=ours)) == pytest.approx([0.95])


def test_recorded_calls_make_the_choices_again(tmp_path: Path) -> None:
    def run(target: Any) -> list[float | None]:
        lm = language_model(target.engine)
        return scores_of(run_program(router(), routed("most", "some"), lm=lm, metric=CALIBRATION))

    with recorded(fake_target(confident(most=0.9, some=0.6)), tmp_path / "calls") as target:
        found = run(target)
    assert found == pytest.approx([0.9, 0.6])
    assert run(replay_target(tmp_path / "calls")) == found


def test_a_compile_for_calibration_chooses_among_labels(tmp_path: Path) -> None:
    """The program as it was writes what no format can read: it counts as sure and wrong."""
    found = compile_tickets(tmp_path, metric="calibration_error")
    assert found.program.route.readout.chooses
    [trials] = tmp_path.rglob("trials.jsonl")
    scores = [json.loads(line)["score"] for line in trials.read_text().splitlines()]
    assert scores[0] == 0 and max(scores) > 0.8


def test_eval_in_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = f'signature: "{ROUTE}"\nformat: completion\nreadout: choice\nmetric: calibration_error\n'
    (tmp_path / "route.yaml").write_text(spec)
    lines = [{"ticket": f"refund {n}", "queue": "billing"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cuecard.compiler.cli.eval.open_target", lambda *_, **__: fake_target(WordLearner().engine()))
    said = command(capsys, "eval", "route.yaml", "--data", "rows.jsonl")
    assert said.code == 0, said.err
    assert "calibration_error" in said.out
