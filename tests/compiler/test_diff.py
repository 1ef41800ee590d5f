"""Differences between programs, runs, recordings and baselines, and two programs run against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, WordLearner, compile_tickets, fake_target
from hypothesis import given
from hypothesis import strategies as st

from cuecard.compiler.ab import run_judged
from cuecard.compiler.baseline import Baseline, write_baseline
from cuecard.compiler.diff import Flip, compare, compare_rows, flip_dict
from cuecard.compiler.difference import first_difference, nearest_text, pairs, word_parts
from cuecard.compiler.evaluate import Answered
from cuecard.compiler.examples import Example
from cuecard.compiler.from_spec import compile_spec
from cuecard.compiler.sides import program_side, read_side
from cuecard.errors import InputError, RunError
from cuecard.metrics import Measurement, Metric, metric
from cuecard.optimizers.base import Budget
from cuecard.programs.graph import build
from cuecard.programs.spec import load_spec

from .cli_cases import cuecard, tickets, write_rows, write_spec

EXACT = metric("exact_match")
PLAIN = """\
name: triage
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
instructions: Route the ticket.
format: completion
readout: choice
"""
OTHER = """\
name: triage
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
instructions: Route the support request.
format: turns
readout: choice
decoding: {max_tokens: 9}
demos:
  - {ticket: crash and freeze, queue: technical}
  - {ticket: password and login, queue: account}
  - {ticket: refund and money, queue: billing}
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---- texts


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_parts_hold_both_texts(before: str, after: str) -> None:
    parts = word_parts(before, after)
    assert "".join(text for kind, text in parts if kind != "after") == before
    assert "".join(text for kind, text in parts if kind != "before") == after
    assert all(text for _, text in parts)
    if before == after:
        assert {kind for kind, _ in parts} <= {"same"}


def test_words_that_changed_together_are_one_part() -> None:
    assert word_parts("Route the ticket now.", "Sort this ticket now.") == [
        ("before", "Route the"),
        ("after", "Sort this"),
        ("same", " ticket now."),
    ]


def test_the_first_difference_is_told_with_its_line() -> None:
    assert first_difference("a\n  b c\nd", "a\n  b x\nd") == 'Its line 2 was "b c" and is "b x".'
    assert first_difference("a", "a b") == 'Its line 1 was "a" and is "a b".'
    assert first_difference("a\nb", "a\n") == 'Its line 2 was "b" and is at its end.'


def test_the_nearest_text_shares_most_at_both_ends() -> None:
    assert nearest_text("abc def xyz", ["abd", "abc d?f xyz", "xyz"]) == "abc d?f xyz"
    assert nearest_text("abc", ["xyz"]) is None


def test_lists_are_aligned() -> None:
    assert pairs(["a", "b", "c"], ["b", "x"]) == [("a", None), ("b", "b"), ("c", "x")]


# ---- sides


def test_two_programs(tmp_path: Path) -> None:
    found = compare(read_side(written(tmp_path, "a.yaml", PLAIN)), read_side(written(tmp_path, "b.yaml", OTHER)))
    (main,) = found.predictors
    assert not main.same
    assert ("before", "ticket") in main.instructions
    assert ("after", "support request") in main.instructions
    assert main.demos is not None
    assert main.demos[0] == (None, "ticket: crash and freeze\nqueue: technical")
    assert ("format", "completion", "turns") in main.settings
    assert ("decoding.max_tokens", "64", "9") in main.settings
    assert ("demos", "0", "3") in main.settings


def test_a_program_is_the_same_as_itself(tmp_path: Path) -> None:
    side = read_side(written(tmp_path, "b.yaml", OTHER))
    found = compare(side, side)
    assert [each.same for each in found.predictors] == [True]
    assert (found.facts, found.scores, found.comparisons) == ((), (), ())


def test_a_predictor_of_one_side_only(tmp_path: Path) -> None:
    side = read_side(written(tmp_path, "a.yaml", PLAIN))
    renamed = replace(side, predictors={"other": side.predictors["main"]})
    found = {each.name: each.only for each in compare(side, renamed).predictors}
    assert found == {"main": "before", "other": "after"}


def test_baselines_are_compared_row_by_row(tmp_path: Path) -> None:
    before = {str(n): Measurement(float(n % 2)) for n in range(20)}
    after = {**{str(n): Measurement(1.0) for n in range(12)}, "12": Measurement(0.0), "13": Measurement(0.0)}
    for name, rows in (("a.json", before), ("b.json", {**after, "new": Measurement(1.0)})):
        write_baseline(tmp_path / name, Baseline("exact_match", rows))
    found = compare(read_side(tmp_path / "a.json"), read_side(tmp_path / "b.json"))
    (scored,) = found.comparisons
    assert (scored.paired.n, scored.paired.wins, scored.paired.losses) == (14, 6, 1)
    assert scored.paired.difference == pytest.approx(12 / 14 - 0.5)
    assert [flip.key for flip in found.better] == ["0", "10", "2", "4", "6", "8"]
    assert [(flip.key, flip.before, flip.after) for flip in found.worse] == [("13", 1.0, 0.0)]
    assert "7 rows stand on one side only, and are not compared" in found.notes


@pytest.mark.parametrize(
    ("after", "note"),
    [
        (
            Baseline("token_f1", {"a": Measurement(1.0)}),
            "the scores are of different metrics, exact_match and token_f1",
        ),
        (Baseline("exact_match", {"b": Measurement(1.0)}), "no example stands in both: there is nothing to pair"),
    ],
)
def test_scores_that_can_not_be_paired_are_noted(tmp_path: Path, after: Baseline, note: str) -> None:
    write_baseline(tmp_path / "a.json", Baseline("exact_match", {"a": Measurement(1.0)}))
    write_baseline(tmp_path / "b.json", after)
    found = compare(read_side(tmp_path / "a.json"), read_side(tmp_path / "b.json"))
    assert found.comparisons == ()
    assert note in found.notes


def test_runs_are_compared_by_their_chosen_trials(tmp_path: Path) -> None:
    compile_tickets(tmp_path / "runs")
    run = next((tmp_path / "runs").iterdir())
    side = read_side(run)
    state = json.loads((run / "run.json").read_text())
    assert side.kind == "run"
    assert side.scores["dev"] == state["compiled"]["dev"]
    assert len(side.rows) == 12
    found = compare(side, side)
    assert found.comparisons[0].paired.difference == 0
    assert found.comparisons[0].after.value == pytest.approx(state["compiled"]["dev"]["value"])
    assert side.predictors["route"].demos is None


def test_compiled_programs_are_paired_by_the_scores_beside_them(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    sides = []
    for name, seed in (("a", 0), ("b", 1)):
        compiled = compile_spec(spec, target=fake_target(WordLearner(bias={"billing": 2.0}).engine()), budget=Budget(metric_calls=80), seed=seed,
                                runs=tmp_path / "runs", output=tmp_path / f"{name}.compiled.yaml")  # fmt: skip
        side = read_side(tmp_path / f"{name}.compiled.yaml")
        assert side.metric == "exact_match"
        mean = sum(row.score for row in side.rows.values()) / len(side.rows)
        assert mean == pytest.approx(compiled.compilation.compiled["dev"].value)
        sides.append(side)
    found = compare(*sides)
    (scored,) = found.comparisons
    assert scored.paired.n == len(sides[0].rows) == scored.paired.wins + scored.paired.losses + scored.paired.ties
    assert scored.paired.difference == pytest.approx(scored.after.value - scored.before.value)
    assert not any("ab" in note for note in found.notes)
    run = read_side(next((tmp_path / "runs").glob("*-1")))
    assert compare(run, sides[0]).comparisons[0].paired.ties == len(run.rows), "a run and what it wrote are the same"
    flip = replace(sides[0], rows={key: Measurement(1 - row.score) for key, row in sides[0].rows.items()})
    turned = compare(sides[0], flip)
    assert turned.better[0].inputs is not None or turned.worse[0].inputs is not None


def test_scores_that_can_not_be_read_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.compiled.yaml"
    engine = WordLearner(bias={"billing": 2.0}).engine()
    compile_spec(write_spec(tmp_path), target=fake_target(engine), budget=Budget(metric_calls=40),
                 runs=tmp_path / "runs", output=path)  # fmt: skip
    (tmp_path / "a.compiled.scores.json").write_text("{")
    side = read_side(path)
    assert not side.rows and side.predictors
    assert "can't be read" in side.notes[0] and "a.compiled.scores.json" in side.notes[0]


def test_inputs_of_any_type_can_be_printed_as_json() -> None:
    flip = Flip("a", 0.0, 1.0, {"on": date(2026, 1, 2), "raw": b"x"}, ({"at": date(2026, 1, 3)}, None))
    assert json.loads(json.dumps(flip_dict(flip)))["inputs"] == {"on": "2026-01-02", "raw": "eA=="}


def test_scores_of_another_program_are_not_those_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "a.compiled.yaml"
    compile_spec(write_spec(tmp_path), target=fake_target(WordLearner(bias={"billing": 2.0}).engine()), budget=Budget(metric_calls=40),
                 runs=tmp_path / "runs", output=path)  # fmt: skip
    assert read_side(path).rows
    path.write_text(path.read_text().replace("instructions: ", "instructions: Please. ", 1))
    side = read_side(path)
    assert not side.rows
    assert side.notes == (f"{tmp_path / 'a.compiled.scores.json'} holds the scores of another program or target",)


def test_rows_of_runs_are_paired_only_where_both_had_the_same_data(tmp_path: Path) -> None:
    compile_tickets(tmp_path / "runs")
    run = next((tmp_path / "runs").iterdir())
    state = json.loads((run / "run.json").read_text())
    (run / "scores.json").unlink()  # as in a run that has not ended
    same = read_side(run)
    assert same.facts["dev data"] == state["data"]["dev"][:12]
    assert not any("place" in note for note in compare(same, same).notes)
    (run / "run.json").write_text(json.dumps({**state, "data": {**state["data"], "dev": "0" * 64}}))
    assert "no example stands in both: there is nothing to pair" in compare(same, read_side(run)).notes
    (run / "run.json").write_text(json.dumps({key: value for key, value in state.items() if key != "data"}))
    older = read_side(run)
    assert any("matched by their place" in note for note in compare(older, older).notes)


def test_scores_by_another_rubric_are_not_compared(tmp_path: Path) -> None:
    rows = {"a": Measurement(1.0), "b": Measurement(0.0)}
    sides = []
    for name, digest in (("one", "1" * 8), ("two", "2" * 8)):
        write_baseline(tmp_path / f"{name}.json", Baseline("judge", rows, metric_digest=digest))
        sides.append(read_side(tmp_path / f"{name}.json"))
    found = compare(*sides)
    assert not found.comparisons and "another rubric" in "".join(found.notes)
    assert not any("another rubric" in note for note in compare(sides[0], sides[0]).notes)


def test_a_run_of_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"trial": 1, "compiled": {"dev": {"value": 1}}}')
    with pytest.raises(InputError, match="is not a run"):
        read_side(tmp_path)


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run nor a recording"):
        read_side(tmp_path)


def test_p_values_of_several_metrics_are_corrected() -> None:
    low, high = ({str(n): Measurement(value) for n in range(8)} for value in (0.0, 1.0))
    alone = compare_rows([(EXACT, low, high)])[0].p_value
    both = compare_rows([(EXACT, low, high), (metric("f1"), low, low)])
    assert alone == pytest.approx(2 / 2**8)
    assert [each.p_value for each in both] == pytest.approx([2 * alone, 1.0])


# ---- two programs run now


def both(folder: Path) -> Any:
    paths = written(folder, "a.yaml", PLAIN), written(folder, "b.yaml", OTHER)
    specs = [load_spec(path) for path in paths]
    return tuple((path.name, spec, build(spec)) for path, spec in zip(paths, specs, strict=True))


class Choosy(Metric):
    """Has no score for a ticket whose gold queue is billing."""

    name = "choosy"

    def measure(self, example: Any, prediction: Any) -> Measurement:
        raise AssertionError("it measures whole batches")

    def measure_all(self, cases: Sequence[Answered]) -> list[Measurement | str]:
        return ["it says billing" if case.gold["queue"] == "billing" else Measurement(1.0) for case in cases]


ROWS = [
    Example({"ticket": f"{word} n{n}"}, {"queue": queue}, n)
    for n, (word, queue) in enumerate([("crash", "technical"), ("login", "account"), ("refund", "billing")] * 4)
]


def test_a_and_b_run_in_one_batch_and_flips_are_told(tmp_path: Path) -> None:
    engine = WordLearner().engine()
    ab = run_judged(both(tmp_path), ROWS, [EXACT], fake_target(engine))
    found = ab.difference
    assert (ab.failed, len(engine.batches)) == (0, 1)
    (scored,) = found.comparisons
    assert (scored.before.value, scored.after.value) == (pytest.approx(4 / 12), 1.0)
    assert (scored.paired.wins, scored.paired.losses) == (8, 0)
    flip = found.better[0]
    assert flip.inputs == {"ticket": "crash n0"}
    assert flip.answers == ({"queue": "billing"}, {"queue": "technical"})
    assert found.as_dict()["better"][0]["row"] == "example 1"
    assert found.worse == ()


def test_failed_examples_are_left_out_and_counted(tmp_path: Path) -> None:
    engine = WordLearner().engine()
    sick = engine.tokenizer.encode("x n5")[-1]
    engine.failure = lambda request: "no" if sick in request.prompt else None
    found = run_judged(both(tmp_path), ROWS, [EXACT], fake_target(engine))
    assert found.failed == 1
    assert found.difference.comparisons[0].paired.n == 11
    with pytest.raises(RunError, match="all 12 examples failed"):
        run_judged(both(tmp_path), ROWS, [EXACT], fake_target(FakeEngine(failure=lambda request: "no")))


def test_a_row_that_one_of_the_metrics_has_no_score_for_is_left_out_of_all_and_counted(tmp_path: Path) -> None:
    found = run_judged(both(tmp_path), ROWS, [EXACT, Choosy()], fake_target(WordLearner().engine()))
    assert (found.failed, len(found.rows)) == (4, 8)
    assert [(each.metric, each.paired.n) for each in found.difference.comparisons] == [
        ("exact_match", 8),
        ("choosy", 8),
    ]
    assert {flip.inputs["ticket"].split()[0] for flip in found.difference.better if flip.inputs} == {"crash", "login"}
    with pytest.raises(RunError, match="all 4 examples failed\n  The first failure: it says billing"):
        run_judged(both(tmp_path), ROWS[2::3], [EXACT, Choosy()], fake_target(WordLearner().engine()))


def test_the_side_of_an_ab_has_no_scores_of_its_compile(tmp_path: Path) -> None:
    name, spec, _ = both(tmp_path)[0]
    assert program_side(name, spec).scores == {}


# ---- the command line


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two specs for a tiny model, `triage.yaml` and `b.yaml`, and twelve rows; the working folder."""
    model = f"model: {{id: {tiny_model}, dtype: float32, device: cpu, options: {{max_tokens: 4}}}}"
    path = write_spec(tmp_path, model=model)
    text = path.read_text(encoding="utf-8") + "readout: choice\nformat: completion\n"
    path.write_text(text, encoding="utf-8")
    written(tmp_path, "b.yaml", text.replace("Route the ticket.", "Sort the ticket into a queue."))
    write_rows(tmp_path / "rows.jsonl", tickets("row", 12))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_diff_prints_the_words_that_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "diff", "triage.yaml", "b.yaml")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "before  triage.yaml  program",
        "after   b.yaml       program",
        "",
        "main",
        "  instruction  [-Route-] the ticket." + " " * 32 + "{+Sort+} the ticket{+ into a queue+}.",
    ]


def test_diff_of_the_same_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "diff", "b.yaml", "b.yaml")
    assert said.out.splitlines()[-1] == "the same: main"
    assert "instruction" in cuecard(capsys, "diff", "b.yaml", "b.yaml", "--all").out


def test_diff_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(cuecard(capsys, "diff", "triage.yaml", "b.yaml", "--json").out)
    assert found["before"] == {"name": "triage.yaml", "kind": "program"}
    assert found["predictors"]["main"]["instructions"][0] == ["before", "Route"]
    assert found["predictors"]["main"]["same"] is False


def test_a_file_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "diff", "triage.yaml", "c.yaml")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: c.yaml: no such file")


def test_eval_records_and_replays_byte_for_byte(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = cuecard(capsys, "eval", "triage.yaml", "--data", "rows.jsonl", "--record", "calls", "--scores", "s.json")
    assert first.code == 0
    assert (folder / "calls" / "scores.json").read_bytes() == (folder / "s.json").read_bytes()
    lines = (folder / "triage.yaml").read_text().splitlines()
    lines = ["model: gone-model" if line.startswith("model:") else line for line in lines]
    written(folder, "triage.yaml", "\n".join(lines) + "\ndecoding: {max_tokens: 4}\n")
    again = cuecard(capsys, "eval", "triage.yaml", "--data", "rows.jsonl", "--replay", "calls", "--scores", "t.json")
    assert (again.code, again.out) == (0, first.out)
    said = cuecard(capsys, "eval", "b.yaml", "--data", "rows.jsonl", "--replay", "calls")
    assert said.code == 2
    assert "the prompt of the predictor 'main' has changed since its calls were recorded" in said.err
    assert 'was "Route the ticket." and is "Sort the ticket into a queue."' in said.err


def test_a_replay_takes_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "eval", "triage.yaml", "--replay", "calls", "--device", "cpu")
    assert (said.code, "found --device beside --replay" in said.err) == (2, True)


def test_ab_runs_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "ab", "triage.yaml", "b.yaml", "--data", "rows.jsonl")
    assert said.code == 0
    assert said.out.splitlines()[0] == "on tiny, float32, cpu: 12 examples"
    assert "[-Route-] the ticket." in said.out
    found = json.loads(cuecard(capsys, "ab", "triage.yaml", "b.yaml", "--data", "rows.jsonl", "--json").out)
    (scored,) = found["comparisons"]
    assert (scored["metric"], scored["paired"]["n"], found["failed"]) == ("exact_match", 12, 0)
    assert len(found["better"]) == scored["paired"]["wins"]


def test_ab_of_different_tasks_or_models_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "b.yaml").read_text()
    written(folder, "c.yaml", text.replace("ticket ->", "mail ->").replace("ticket:", "mail:"))
    said = cuecard(capsys, "ab", "triage.yaml", "c.yaml", "--data", "rows.jsonl")
    assert (said.code, said.err) == (2, "error: c.yaml: the inputs are mail; expected those of triage.yaml: ticket\n")
    lines = [line if not line.startswith("model:") else "model: another" for line in text.splitlines()]
    written(folder, "d.yaml", "\n".join(lines) + "\n")
    said = cuecard(capsys, "ab", "triage.yaml", "d.yaml", "--data", "rows.jsonl")
    assert said.code == 2
    assert "d.yaml: the model is 'another'" in said.err
