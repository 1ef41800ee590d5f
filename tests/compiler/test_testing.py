"""A spec's tests: what each assertion means, what is refused, and how a test ends."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, fake_target
from hypothesis import given
from hypothesis import strategies as st

from cuecard.compiler.testing import KINDS, TYPES, Answer, read_suite, read_tests, run_tests, runs_of
from cuecard.compiler.testing.assertions import Assertion, AssertionSet, holds, weighted_score
from cuecard.compiler.testing.kinds import rule_of
from cuecard.compiler.testing.results import Check
from cuecard.compiler.testing.rules import Given, Unjudged
from cuecard.errors import InputError
from cuecard.programs.graph import build
from cuecard.programs.spec import load_spec

from .cli_cases import tickets, write_rows
from .testing_cases import FREE, HEAD, engine, results, says, suite_of

TICKET = '{"id": 3, "tags": ["a"]}'
SCHEMA = {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}


def check(type_: str, found: Any, value: Any = None, *, weight: float = 1.0, **parts: Any) -> Check:
    """What an assertion says of an output."""
    parts = {key: part for key, part in parts.items() if part is not None}
    given = Given(type_.removeprefix("not-"), value, value is not None, **parts)
    answer = Answer({"q": "x"}, {"out": found}, seconds=0.25, tokens=40)
    field = "out" if KINDS[given.type].of_output else ""
    return Assertion(type_, field, rule_of(given), weight).check(answer)


@pytest.mark.parametrize(
    ("type_", "value", "holds", "fails"),
    [
        ("equals", "billing", ["billing", " billing "], ["Billing", "billing now"]),
        ("equals", 3, [3, 3.0], ["3", 4, True]),
        ("equals", ["a", "b"], [["a", "b"]], [["b", "a"]]),
        ("contains", "ill", ["billing", ["x", "pill"]], ["Ill", ""]),
        ("contains", "7", [17, "a 7"], [18]),
        ("icontains", "ILL", ["billing", "Bill"], ["bil"]),
        ("contains-any", ["yes", "sure"], ["oh yes", "sure!"], ["Yes", "no"]),
        ("contains-any", "yes, sure", ["sure"], ["no", ","]),
        ("contains-all", ["a", "b"], ["ba", "a b"], ["a", "A b"]),
        ("icontains-any", ["YES"], ["yes"], ["no"]),
        ("icontains-all", ["Yes", "No"], ["no, yes"], ["yes"]),
        ("starts-with", "bil", ["billing"], ["a billing", "Billing"]),
        ("regex", r"^b.*g$", ["billing", "bg"], ["billings"]),
        ("is-json", None, ["3", '{"a": 1}', 3, ["a"], None], ["{a: 1}", "", "billing"]),
        ("is-json", SCHEMA, [TICKET, {"id": 1}], ['{"id": "x"}', "{}", "no", [1]]),
        ("word-count", 2, ["two words", " two  words "], ["one", "one two three"]),
        ("word-count", {"min": 2}, ["a b", "a b c"], ["a", ""]),
        ("word-count", {"min": 1, "max": 2}, ["a", "a b"], ["", "a b c"]),
        ("levenshtein", "billing", ["billing", "bill", "biilling"], ["billing too", "a"]),
        ("rouge-n", "the lamp is black", ["the lamp is black"], ["a table"]),
        ("rouge-l", "the lamp is black", ["the lamp is black"], ["black is lamp the"]),
        ("bleu", "the lamp is black today", ["the lamp is black today"], ["a table"]),
        ("chrf", "the lamp is black", ["the lamp is black"], ["xyz"]),
    ],
)
def test_assertions(type_: str, value: Any, holds: list[Any], fails: list[Any]) -> None:
    threshold = 3 if type_ == "levenshtein" else None
    for found, passes in [*((one, True) for one in holds), *((one, False) for one in fails)]:
        plain = check(type_, found, value, threshold=threshold)
        opposite = check(f"not-{type_}", found, value, threshold=threshold)
        assert (plain.passed, opposite.passed) == (passes, not passes), (type_, value, found)
        assert plain.score + opposite.score == pytest.approx(1)
        assert bool(plain.reason) is not passes and bool(opposite.reason) is passes


@pytest.mark.parametrize(
    ("type_", "most", "passes"),
    [("latency", 250, True), ("latency", 249, False), ("tokens", 40, True), ("tokens", 39.5, False)],
)
def test_what_an_answer_costs(type_: str, most: float, passes: bool) -> None:
    assert check(type_, "x", threshold=most).passed is passes
    assert check(f"not-{type_}", "x", threshold=most).passed is not passes


def test_a_failure_says_what_was_found_and_what_was_expected() -> None:
    assert check("equals", "account", "billing").reason == 'out: found "account", expected equals "billing"'
    assert check("not-is-json", 3).reason == "out: found 3, expected not-is-json"
    assert check("latency", "x", threshold=1).reason == "found 250 ms, expected latency of at most 1 ms"
    assert (
        check("word-count", "a b c", {"max": 2}).reason == 'out: found "a b c" (3 words), expected word-count at most 2'
    )
    assert check("rouge-n", "a table", "the lamp", threshold=0.5).reason == (
        'out: found "a table" (0.000), expected rouge-n of at least 0.5 against "the lamp"'
    )
    assert check("is-json", '{"id": "x"}', SCHEMA).reason == (
        'out: found "{\\"id\\": \\"x\\"}" ($.id: \'x\' is not of type \'integer\'), expected is-json by the schema'
    )
    long = check("contains", "x" * 500, "y")
    assert long.reason.endswith('xxx..., expected contains "y"') and len(long.reason) < 130
    assert (long.found, long.expected) == ("x" * 500, "y")


def test_a_schema_reads_nothing_outside_itself() -> None:
    refers = {"$ref": "http://127.0.0.1:9/x.json"}
    with pytest.raises(Unjudged, match="the schema refers to 'http://127.0.0.1:9/x.json', which it does not hold"):
        check("is-json", "{}", refers)


def test_the_score_of_a_metric_is_the_score_of_the_check() -> None:
    half = check("rouge-n", "the lamp", "the table", threshold=0.5)
    assert half.passed and half.score == pytest.approx(0.5)
    pairs = check("rouge-n", "the lamp", "the table", threshold=0.5, options={"n": 2})
    assert not pairs.passed and pairs.score == 0.0
    best = check("rouge-l", "the lamp", ["a table", "the lamp"])
    assert best.passed and best.expected == "a table\nthe lamp"


def test_a_check_without_weight_never_fails() -> None:
    told = check("equals", "a", "b", weight=0.0)
    assert (told.passed, told.score, told.reason) == (True, 0.0, "")


CHECKS = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0.1, 10), st.booleans()).map(
        lambda parts: Check("x", "", parts[2], parts[0], parts[1], "", "", "")
    ),
    min_size=1,
    max_size=6,
)


@given(CHECKS, st.floats(0, 1))
def test_the_rule_for_a_threshold_is_the_weighted_mean(checks: list[Check], threshold: float) -> None:
    score = weighted_score(checks)
    total = math.fsum(check.score * check.weight for check in checks)
    assert score == pytest.approx(total / math.fsum(check.weight for check in checks))
    assert holds(checks, None) is all(check.passed for check in checks)
    assert holds(checks, threshold) is (score >= threshold - 1e-9)
    assert holds(checks, 0.0)


def test_a_set_counts_as_one() -> None:
    right, wrong = (Assertion("equals", "out", rule_of(Given("equals", text, True))) for text in ("a", "b"))
    answer = Answer({}, {"out": "a"})
    both = AssertionSet((right, wrong)).check(answer)
    assert (both.type, both.passed, both.score, both.found) == ("assert-set", False, 0.5, "1 of 2 passed")
    assert both.reason == 'assert-set: out: found "a", expected equals "b"'
    assert AssertionSet((right, wrong), threshold=0.5).check(answer).passed
    missed = AssertionSet((right, wrong), threshold=0.6, weight=2.0).check(answer)
    assert not missed.passed and missed.reason.startswith("assert-set: scored 0.500, expected at least 0.6: out: found")


# ---- what is refused


def case(condition: str) -> str:
    return f"  - {{name: one, inputs: {{ticket: x}}, assert: [{condition}]}}\n"


ALL = ", ".join(KINDS)


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        (case("{type: equal, value: a}"), "5: tests[0].assert[0].type: there is no assertion 'equal' (did you mean 'equals'?)"),
        (case("{type: not-contain, value: a}"), "5: tests[0].assert[0].type: there is no assertion 'not-contain' (did you mean 'not-contains'?)"),
        (case("{type: sentiment, value: a}"), f"5: tests[0].assert[0].type: there is no assertion 'sentiment'; expected one of {ALL}, assert-set, or not- and one of them"),
        (case("{type: contains}"), "5: tests[0].assert[0]: the key 'value' is missing"),
        (case("{type: contains, value: 7}"), "5: tests[0].assert[0].value: found 7; expected text\n  Put it in quotes."),
        (case("{type: contains-all, value: 7}"), "5: tests[0].assert[0].value: found 7; expected a list of texts, such as [yes, sure]"),
        (case("{type: is-json, value: a}"), "5: tests[0].assert[0].value: found \"a\"; expected a JSON schema, such as {type: object}"),
        (case("{type: is-json, value: {type: objekt}}"), "5: tests[0].assert[0].value: not a JSON schema: type: 'objekt' is not valid"),
        (case("{type: equals, value: a, threshold: 1}"), "5: tests[0].assert[0].threshold: 'equals' takes no threshold"),
        (case("{type: contains, value: a, options: {x: 1}}"), "5: tests[0].assert[0].options: 'contains' takes no options"),
        (case("{type: latency, value: 3}"), "5: tests[0].assert[0].value: 'latency' takes no value"),
        (case("{type: latency}"), "5: tests[0].assert[0]: the key 'threshold' is missing; expected the most milliseconds"),
        (case("{type: tokens, threshold: 3, field: queue}"), "5: tests[0].assert[0].field: 'tokens' looks at no output"),
        (case("{type: rouge-n, value: a, threshold: 75}"), "5: tests[0].assert[0].threshold: found 75; expected 0 to 1"),
        (case("{type: rouge-n, value: a, options: {n: 7}}"), "5: tests[0].assert[0].options: n is 7; expected 1 or 2"),
        (case("{type: rouge-l, value: a, options: {use_stemer: true}}"), "5: tests[0].assert[0].options: metric 'rouge_l' has no option 'use_stemer'"),
        (case("{type: word-count, value: {min: 5, max: 2}}"), "5: tests[0].assert[0].value: min is 5 but max is 2"),
        (case("{type: word-count, value: {least: 5}}"), "5: tests[0].assert[0].value: found {\"least\": 5}; expected a number of words, or {min: 5, max: 20}"),
        (case("{type: python, value: 'check:run'}"), "5: tests[0].assert[0].value: 'check:run' is Python code, which is only run when you allow it"),
        (case("{type: equals, value: a, weight: -1}"), "5: tests[0].assert[0].weight: found -1; expected at least 0"),
        (case("{type: contains, value: a, assert: []}"), "5: tests[0].assert[0].assert: 'contains' takes no assert\n  Only 'assert-set' has assertions."),
        (case("{type: assert-set}"), "5: tests[0].assert[0]: the set is empty; expected at least one assertion in `assert`"),
        (case("{type: assert-set, threshold: 3, assert: [{type: is-json}]}"), "5: tests[0].assert[0].threshold: found 3; expected 0 to 1"),
        (case("{type: assert-set, assert: [{type: equal, value: a}]}"), "5: tests[0].assert[0].assert[0].type: there is no assertion 'equal'"),
        (case("{type: assert-set, assert: [{type: is-json, field: que}]}"), "5: tests[0].assert[0].assert[0].field: the program has no output 'que' (did you mean 'queue'?)"),
        (case("{type: equals, value: biling}"), "5: tests[0].assert[0].value: found 'biling'; expected one of: billing, technical, account (did you mean 'billing'?)"),
        (case("{type: regex, value: '('}"), "5: tests[0].assert[0].value: not a regular expression: missing ), unterminated subpattern at position 0"),
        ("  - {name: floor, data: rows.jsonl, at_least: 80}\n", "5: tests[0].at_least: found 80; expected 0 to 1, the range of exact_match"),
        ("  - {name: floor, data: rows.jsonl, baseline: b.json, tolerance: 80}\n", "5: tests[0].tolerance: found 80; expected 0 to 1, the span of exact_match"),
        ("  - {name: floor, data: rows.jsonl, at_least: 0.1, tolerance: 0.1}\n", "5: tests[0].tolerance: found 'tolerance' without 'baseline'; expected both, or neither"),
        ("  - {name: floor, data: rows.jsonl, metric: exat_match, at_least: 0.5}\n", "5: metric: there is no metric 'exat_match'"),
        ("  - {name: both, cases: rows.jsonl, inputs: {ticket: x}}\n", "5: tests[0].inputs: found 'inputs' beside 'cases'\n  Make them two tests."),
        ("  - {name: one, inputs: {ticket: x}, threshold: 2, assert: [{type: is-json}]}\n", "5: tests[0].threshold: found 2; expected at most 1"),
        ("  - {name: one, inputs: {ticket: x}, repeat: 0, assert: [{type: is-json}]}\n", "5: tests[0].repeat: found 0; expected at least 1"),
        ("  - {name: one, inputs: {ticket: x}, tag: a, assert: [{type: is-json}]}\n", "5: tests[0].tag: unknown key (did you mean 'tags'?)"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, tests: str, told: str) -> None:
    with pytest.raises(InputError) as raised:
        suite_of(tmp_path, tests, baselines=False)
    assert str(raised.value).startswith(f"{tmp_path / 'spec.yaml'}:{told}")


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    wrong = case("{type: equal, value: a}, {type: contains}")
    with pytest.raises(InputError) as raised:
        suite_of(tmp_path, wrong + "  - {name: floor, data: none.jsonl, at_least: 0.5}\n")
    assert len(str(raised.value).splitlines()) == 3
    assert "none.jsonl: no such file" in str(raised.value)


def test_similar_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuecard.compiler.testing.scored.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match="sentence-transformers(.|\n)*cuecard\\[embeddings\\]"):
        suite_of(tmp_path, case("{type: similar, value: a}"))


def test_a_program_of_several_outputs_needs_the_field(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        'signature: "q -> a: str, b: int"\ntests:\n' + case("{type: contains, value: x}").replace("ticket", "q")
    )
    with pytest.raises(InputError, match=r"tests\[0\].assert\[0\]: the key 'field' is missing; expected one of a, b"):
        read_suite(path)


def test_a_gate_needs_a_metric(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("signature: q -> a\ntests:\n  - {name: floor, data: rows.jsonl, at_least: 0.5}\n", encoding="utf-8")
    write_rows(tmp_path / "rows.jsonl", [{"q": "x", "a": "y"}])
    with pytest.raises(InputError, match="the key 'metric' is missing; expected it here, or for the whole spec"):
        read_suite(path)


def test_reading_a_spec_reads_no_baseline(tmp_path: Path) -> None:
    suite_of(tmp_path, "  - {name: gate, data: rows.jsonl, baseline: none.json}\n", baselines=False)
    spec = load_spec(tmp_path / "spec.yaml")
    assert [test.name for test in read_tests(spec, build(spec))] == ["gate"]
    with pytest.raises(
        InputError, match="no test is called 'gates'; expected part of a test's name .did you mean 'gate'"
    ):
        read_tests(spec, build(spec), name="gates")


# ---- how tests end

TESTS = """\
  - {name: a pass, inputs: {ticket: about billing}, assert: [{type: equals, value: billing}]}
  - {name: a fail, inputs: {ticket: about account}, assert: [{type: equals, value: billing}, {type: regex, value: "^t"}]}
  - {name: not read, inputs: {ticket: mumble}, assert: [{type: equals, value: billing}]}
  - {name: not run, inputs: {ticket: break}, assert: [{type: equals, value: billing}]}
  - {name: high floor, data: rows.jsonl, at_least: 0.9}
  - {name: low floor, data: rows.jsonl, metric: f1, at_least: 0.5}
"""


def test_how_tests_end(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, TESTS)
    found = run_tests(suite, fake_target(engine()).lm)
    assert [(result.name, result.status, result.kind) for result in found] == [
        ("a pass", "pass", "case"),
        ("a fail", "fail", "case"),
        ("not read", "fail", "case"),
        ("not run", "error", "case"),
        ("high floor", "fail", "gate"),
        ("low floor", "pass", "gate"),
    ]
    assert (found[0].reason, found[0].score, found[0].outputs) == ("", 1.0, {"queue": "billing"})
    assert (found[0].inputs, found[0].path, found[0].line) == (
        {"ticket": "about billing"},
        str(tmp_path / "spec.yaml"),
        5,
    )
    assert (
        found[1].reason
        == 'queue: found "account", expected equals "billing"; queue: found "account", expected regex "^t"'
    )
    assert [(check.passed, check.score) for check in found[1].checks] == [(False, 0.0), (False, 0.0)]
    assert found[2].reason.startswith("the answer could not be read: queue: found 'mumble'") and found[2].score == 0.0
    assert (found[3].reason, found[3].score, found[3].outputs) == ("too hot", None, None)
    unseen = "a difference below 0.467 could go unseen"
    assert found[4].reason == f"exact_match 0.833 [0.436, 0.970] on 6 rows, which is less than 0.9; {unseen}"
    assert [one.detectable for one in found] == [*[None] * 4, *[pytest.approx(0.467, abs=1e-3)] * 2]
    assert found[5].reason.startswith("f1 0.833 [")


def test_all_inputs_run_in_one_batch_and_equal_ones_once(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, TESTS)
    asked = engine()
    run_tests(suite, fake_target(asked).lm)
    assert [len(batch) for batch in asked.batches] == [10]
    assert [len(runs) for runs in runs_of(suite.tests)] == [10, 0]


def test_a_timed_case_runs_alone(tmp_path: Path) -> None:
    timed = "  - {name: soon, inputs: {ticket: about billing}, assert: [{type: latency, threshold: 60000}]}\n"
    asked = engine()
    found = results(suite_of(tmp_path, TESTS + timed), asked)
    assert found["soon"].status == "pass" and found["soon"].checks[0].found.endswith(" ms")
    assert [len(batch) for batch in asked.batches] == [9, 1]
    assert "billing" in asked.prompts()[-1]
    again = results(suite_of(tmp_path, timed), timed=False)["soon"]
    assert (again.status, again.reason) == ("skip", "latency: it is not known how long the answer took")


def test_tokens_are_those_of_prompt_and_answer(tmp_path: Path) -> None:
    asked = engine()
    most = "  - {name: most, inputs: {ticket: about billing}, assert: [{type: tokens, threshold: 1}]}\n"
    (result,) = results(suite_of(tmp_path, most), asked).values()
    (request,) = [request for batch in asked.batches for request in batch]
    assert result.status == "fail"
    assert (
        result.reason
        == f"found {len(request.prompt) + asked.ledger.generated_tokens} tokens, expected tokens of at most 1"
    )


def test_a_gate_whose_examples_fail_could_not_be_run(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, "  - {name: floor, data: rows.jsonl, at_least: 0.5}\n")
    found = results(suite, FakeEngine(failure=lambda request: "too hot"))["floor"]
    assert (found.status, found.reason, found.score) == ("error", "6 of 6 examples failed: too hot", None)


def test_a_case_s_threshold_is_on_the_weighted_mean(tmp_path: Path) -> None:
    parts = "inputs: {question: x}, assert: [{type: contains, value: a, weight: 3}, {type: contains, value: z}]"
    tests = f"  - {{name: enough, threshold: 0.75, {parts}}}\n  - {{name: short, threshold: 0.76, {parts}}}\n  - {{name: all, {parts}}}\n"
    found = results(suite_of(tmp_path, tests, FREE), says("a b"))
    assert [(result.status, result.score) for result in found.values()] == [
        ("pass", 0.75),
        ("fail", 0.75),
        ("fail", 0.75),
    ]
    assert found["short"].reason == 'scored 0.750, expected at least 0.76: answer: found "a b", expected contains "z"'


def test_repeats_draw_with_other_seeds_and_count_together(tmp_path: Path) -> None:
    head = FREE + "decoding: {temperature: 1.0, seed: 4}\n"
    asked = FakeEngine(lambda prompt, settings, sample: f" {'yes' if settings.seed == 4 else 'no'}\n")
    one = "inputs: {question: x}, repeat: 3, assert: [{type: equals, value: yes}]"
    found = results(
        suite_of(tmp_path, f"  - {{name: strict, {one}}}\n  - {{name: some, threshold: 0.3, {one}}}\n", head), asked
    )
    seeds = [request.decoding.seed for batch in asked.batches for request in batch]
    assert len(seeds) == len(set(seeds)) == 3 and seeds[0] == 4
    assert (found["strict"].status, found["some"].status) == ("fail", "pass")
    assert found["strict"].score == found["some"].score == pytest.approx(1 / 3)
    assert found["strict"].reason == (
        'run 2 of 3: answer: found "no", expected equals "yes"; run 3 of 3: answer: found "no", expected equals "yes"'
    )
    assert len(found["strict"].checks) == 3


def test_python_assertions(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text(
        "def short(output): return len(output) < 4\n"
        "def half(output, context): return 0.5 if context['vars']['question'] == 'x' else 0.0\n"
        "def told(output, context): return {'pass': False, 'score': 0.2, 'reason': 'no ' + context['options']['of']}\n"
        "def broken(output): return 1 / 0\n"
        "def odd(output): return 'yes'\n"
    )
    names = ["short", "half", "told", "broken", "odd"]
    tests = "".join(
        f"  - {{name: {name}, inputs: {{question: x}}, assert: [{{type: python, value: 'checks:{name}'"
        f"{', options: {of: luck}' if name == 'told' else ''}}}]}}\n"
        for name in names
    )
    found = results(suite_of(tmp_path, tests, FREE, allow_code=True), says("abc"))
    assert [found[name].status for name in names] == ["pass", "pass", "fail", "error", "error"]
    assert found["half"].score == 0.5
    assert found["told"].reason == 'answer: found "abc" (no luck), expected python checks:told'
    assert found["broken"].reason == "checks:broken broke: ZeroDivisionError: division by zero"
    assert found["odd"].reason == 'checks:odd gave "yes"; expected true, false, or a score from 0 to 1'


def test_every_type_has_its_opposite() -> None:
    assert set(TYPES) == {*KINDS, *(f"not-{name}" for name in KINDS), "assert-set"}


# ---- baselines

GATE = "  - {name: gate, data: rows.jsonl, baseline: base.json}\n"


def test_a_baseline_is_written_and_compared_with(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"spec.yaml:5: tests\[0\].baseline: no such file: .*base.json\n  Write it with --update-baseline.",
    ):
        suite_of(tmp_path, GATE)
    wrote = results(suite_of(tmp_path, GATE, baselines=False), update_baseline=True, target="fake")["gate"]
    assert wrote.status == "pass" and wrote.reason.endswith("on 6 rows; wrote the baseline base.json")
    first = (tmp_path / "base.json").read_bytes()
    same = results(suite_of(tmp_path, GATE))["gate"]
    assert same.status == "pass" and "exact_match is not shown to be worse than the baseline: +0.000" in same.reason
    results(suite_of(tmp_path, GATE, baselines=False), update_baseline=True, target="fake")
    assert (tmp_path / "base.json").read_bytes() == first


def test_a_gate_fails_where_the_rows_show_a_loss(tmp_path: Path) -> None:
    gate = "  - {name: gate, data: many.jsonl, baseline: base.json}\n"
    write_rows(tmp_path / "many.jsonl", tickets("many", 30))
    results(suite_of(tmp_path, gate, baselines=False), update_baseline=True)
    lost = results(suite_of(tmp_path, gate), FakeEngine(lambda *_: " billing\n"))["gate"]
    assert lost.status == "fail" and "exact_match is worse than the baseline: -0.667" in lost.reason
    wide = gate.replace("base.json", "base.json, tolerance: 0.9")
    assert results(suite_of(tmp_path, wide), FakeEngine(lambda *_: " billing\n"))["gate"].status == "pass"


def test_a_baseline_of_something_else_is_refused(tmp_path: Path) -> None:
    results(suite_of(tmp_path, GATE, baselines=False), update_baseline=True)
    with pytest.raises(InputError, match="base.json holds scores of 'exact_match'; expected 'f1'"):
        suite_of(tmp_path, GATE.replace("baseline", "metric: f1, baseline"))
    path = tmp_path / "spec.yaml"
    write_rows(tmp_path / "rows.jsonl", tickets("other", 6))
    path.write_text(f"{HEAD}tests:\n{GATE}", encoding="utf-8")
    with pytest.raises(
        InputError, match="none of the 6 examples stands in base.json; expected a baseline of the same data"
    ):
        read_suite(path)


def test_a_repeated_gate_measures_rows_and_not_runs(tmp_path: Path) -> None:
    asked = engine()
    found = results(suite_of(tmp_path, "  - {name: gate, data: rows.jsonl, at_least: 0.5, repeat: 3}\n"), asked)["gate"]
    assert found.status == "pass" and "on 6 rows" in found.reason
    assert [len(batch) for batch in asked.batches] == [18]
