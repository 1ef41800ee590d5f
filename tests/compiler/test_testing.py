"""A spec's tests: what each condition means, what is refused, and how a test ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, fake_target

from cuecard.compiler.testing import TYPES, Condition, Verdict, inputs_of, read_tests, run_tests
from cuecard.errors import InputError
from cuecard.programs.graph import Graph, build
from cuecard.programs.schema import Spec
from cuecard.programs.spec import load_spec

from .cli_cases import tickets, write_rows

HEAD = """\
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
format: completion
metric: exact_match
tests:
"""


@pytest.mark.parametrize(
    ("type_", "value", "holds", "fails"),
    [
        ("equals", "billing", ["billing", " billing "], ["Billing", "billing now"]),
        ("equals", 3, [3, 3.0], ["3", 4, True]),
        ("equals", ["a", "b"], [["a", "b"]], [["b", "a"]]),
        ("contains", "ill", ["billing", ["x", "pill"]], ["Ill", ""]),
        ("contains", "7", [17, "a 7"], [18]),
        ("icontains", "ILL", ["billing", "Bill"], ["bil"]),
        ("starts-with", "bil", ["billing"], ["a billing", "Billing"]),
        ("regex", r"^b.*g$", ["billing", "bg"], ["billings"]),
        ("is-json", None, ["3", '{"a": 1}', 3, ["a"], None], ["{a: 1}", "", "billing"]),
    ],
)
def test_conditions(type_: str, value: Any, holds: list[Any], fails: list[Any]) -> None:
    for found in holds + fails:
        failure = Condition(type_, "out", value).failure({"out": found})
        opposite = Condition(type_, "out", value, negated=True).failure({"out": found})
        assert (failure is None) is (found in holds and found is not True), (type_, value, found)
        assert (failure is None) is not (opposite is None)


def test_a_failure_says_what_was_found_and_what_was_expected() -> None:
    assert Condition("equals", "queue", "billing").failure({"queue": "account"}) == (
        'queue: found "account", expected equals "billing"'
    )
    assert Condition("is-json", "out", negated=True).failure({"out": 3}) == "out: found 3, expected not-is-json"
    long = Condition("contains", "out", "y").failure({"out": "x" * 500})
    assert long is not None and long.endswith('xxx..., expected contains "y"') and len(long) < 130


def spec_of(folder: Path, tests: str) -> tuple[Spec, Graph]:
    path = folder / "spec.yaml"
    path.write_text(HEAD + tests, encoding="utf-8")
    write_rows(folder / "rows.jsonl", tickets("row", 6))
    spec = load_spec(path)
    return spec, build(spec)


def case(condition: str) -> str:
    return f"  - {{name: one, inputs: {{ticket: x}}, assert: [{condition}]}}\n"


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        (case("{type: equal, value: a}"), "5: tests[0].assert[0].type: there is no condition 'equal' (did you mean 'equals'?)"),
        (case("{type: not-contain, value: a}"), "5: tests[0].assert[0].type: there is no condition 'not-contain' (did you mean 'not-contains'?)"),
        (
            case("{type: sentiment, value: a}"),
            "5: tests[0].assert[0].type: there is no condition 'sentiment'; expected one of equals, contains, icontains, "
            "starts-with, regex, is-json, or not- and one of them",
        ),
        (case("{type: contains}"), "5: tests[0].assert[0]: the key 'value' is missing"),
        (case("{type: contains, value: 7}"), "5: tests[0].assert[0].value: found 7; expected text\n  Put it in quotes."),
        (case("{type: is-json, value: a}"), "5: tests[0].assert[0].value: 'is-json' takes no value"),
        (case("{type: equals, value: a, threshold: 1}"), "5: tests[0].assert[0].threshold: 'equals' takes no threshold"),
        (
            case("{type: equals, value: biling}"),
            "5: tests[0].assert[0].value: found 'biling'; expected one of: billing, technical, account "
            "(did you mean 'billing'?)",
        ),
        (
            case("{type: regex, value: '('}"),
            "5: tests[0].assert[0].value: not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        (
            "  - {name: floor, data: rows.jsonl, at_least: 80}\n",
            "5: tests[0].at_least: found 80; expected 0 to 1, the range of exact_match",
        ),
        (
            "  - {name: floor, data: rows.jsonl, metric: exat_match, at_least: 0.5}\n",
            "5: metric: there is no metric 'exat_match'",
        ),
        (
            "  - {name: floor, data: rows.jsonl, baseline: old.json}\n",
            "5: tests[0].baseline: comparing with a baseline file is not supported yet\n  Use at_least for now.",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, tests: str, told: str) -> None:
    spec, program = spec_of(tmp_path, tests)
    with pytest.raises(InputError) as raised:
        read_tests(spec, program)
    first = str(raised.value)
    assert first.startswith(f"{tmp_path / 'spec.yaml'}:{told}")


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    wrong = case("{type: equal, value: a}, {type: contains}")
    floor = "  - {name: floor, data: none.jsonl, at_least: 0.5}\n"
    spec, program = spec_of(tmp_path, wrong + floor)
    with pytest.raises(InputError) as raised:
        read_tests(spec, program)
    assert len(str(raised.value).splitlines()) == 3
    assert "none.jsonl: no such file" in str(raised.value)


def test_a_program_of_several_outputs_needs_the_field(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        'signature: "q -> a: str, b: int"\ntests:\n' + case("{type: contains, value: x}").replace("ticket", "q")
    )
    spec = load_spec(path)
    with pytest.raises(InputError, match=r"tests\[0\].assert\[0\]: the key 'field' is missing; expected one of a, b"):
        read_tests(spec, build(spec))


def test_a_floor_needs_a_metric(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("signature: q -> a\ntests:\n  - {name: floor, data: rows.jsonl, at_least: 0.5}\n", encoding="utf-8")
    write_rows(tmp_path / "rows.jsonl", [{"q": "x", "a": "y"}])
    spec = load_spec(path)
    with pytest.raises(InputError, match="the key 'metric' is missing; expected it here, or for the whole spec"):
        read_tests(spec, build(spec))


TESTS = """\
  - {name: a pass, inputs: {ticket: about billing}, assert: [{type: equals, value: billing}]}
  - {name: a fail, inputs: {ticket: about account}, assert: [{type: equals, value: billing}, {type: regex, value: "^t"}]}
  - {name: not read, inputs: {ticket: mumble}, assert: [{type: equals, value: billing}]}
  - {name: not run, inputs: {ticket: break}, assert: [{type: equals, value: billing}]}
  - {name: high floor, data: rows.jsonl, at_least: 0.9}
  - {name: low floor, data: rows.jsonl, metric: f1, at_least: 0.5}
"""


def answer(prompt: str, *_: Any) -> str:
    """The queue that the last ticket names; "row 2" is answered wrong."""
    last = prompt.rpartition("Ticket:")[2]
    if "mumble" in last:
        return " mumble\n"
    named = [queue for queue in ("billing", "technical", "account") if queue in last]
    return " technical\n" if "row 2" in last else f" {named[0]}\n"


def engine() -> FakeEngine:
    made = FakeEngine(answer)
    made.failure = lambda request: "too hot" if "break" in made.tokenizer.text(request.prompt) else None
    return made


def test_how_tests_end(tmp_path: Path) -> None:
    spec, program = spec_of(tmp_path, TESTS)
    tests = read_tests(spec, program)
    verdicts = run_tests(tests, program, fake_target(engine()).lm)
    assert [(verdict.name, verdict.status) for verdict in verdicts] == [
        ("a pass", "pass"),
        ("a fail", "fail"),
        ("not read", "fail"),
        ("not run", "error"),
        ("high floor", "fail"),
        ("low floor", "pass"),
    ]
    assert verdicts[0].reason == ""
    assert verdicts[1].reason == (
        'queue: found "account", expected equals "billing"; queue: found "account", expected regex "^t"'
    )
    assert verdicts[2].reason.startswith("the answer could not be read: queue: found 'mumble'")
    assert verdicts[3] == Verdict("not run", "error", "too hot")
    assert verdicts[4].reason == "exact_match 0.833 [0.436, 0.970] on 6 examples, at least 0.9"
    assert verdicts[5].reason.startswith("f1 0.833 [")


def test_all_inputs_run_in_one_batch_and_equal_ones_once(tmp_path: Path) -> None:
    spec, program = spec_of(tmp_path, TESTS)
    tests = read_tests(spec, program)
    asked = engine()
    run_tests(tests, program, fake_target(asked).lm)
    assert [len(batch) for batch in asked.batches] == [10]
    assert len(inputs_of(tests)) == 10


def test_a_floor_whose_examples_fail_could_not_be_run(tmp_path: Path) -> None:
    spec, program = spec_of(tmp_path, "  - {name: floor, data: rows.jsonl, at_least: 0.5}\n")
    broken = FakeEngine(answer, failure=lambda request: "too hot")
    (verdict,) = run_tests(read_tests(spec, program), program, fake_target(broken).lm)
    assert verdict == Verdict("floor", "error", "6 of 6 examples failed: too hot")


def test_tests_are_chosen_by_a_part_of_their_names(tmp_path: Path) -> None:
    spec, program = spec_of(tmp_path, TESTS)
    assert [test.name for test in read_tests(spec, program, name="floor")] == ["high floor", "low floor"]
    with pytest.raises(InputError, match="no test is called 'flor'"):
        read_tests(spec, program, name="flor")


def test_every_condition_has_its_opposite() -> None:
    assert set(TYPES) == {
        *(name for name in TYPES if not name.startswith("not-")),
        *(f"not-{name}" for name in TYPES[:6]),
    }
