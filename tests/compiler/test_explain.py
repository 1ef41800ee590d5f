"""What a compiled program owes to what, from a file and from Python."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, Triage, WordLearner, compile_tickets, fake_target, says
from fakes import tickets as worded

import cuecard
from cuecard.compiler.cli.explain import _from_difference
from cuecard.compiler.examples import Example, Examples
from cuecard.compiler.explain import run_plan
from cuecard.compiler.explain_plan import baseline_file, chosen_rows, make_plan
from cuecard.errors import InputError, RunError
from cuecard.metrics import metric
from cuecard.models.engine import ScoreRequest
from cuecard.optimizers.explain import Effect
from cuecard.programs.graph import build
from cuecard.programs.spec import load_spec

from .cli_cases import cuecard as run_cuecard
from .cli_cases import write_spec

EXACT = metric("exact_match")
SPEC = """\
name: triage
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
instructions: Route the ticket.
format: completion
readout: choice
"""
WINNER = """\
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
ROWS = Examples(
    tuple(
        Example({"ticket": f"{word} n{n}"}, {"queue": queue}, n)
        for n, (word, queue) in enumerate([("crash", "technical"), ("login", "account"), ("refund", "billing")] * 4)
    )
)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def program(folder: Path, text: str) -> Any:
    return build(load_spec(written(folder, "p.yaml", text)))


def explained(folder: Path, engine: FakeEngine, winner: str = WINNER, before: str = SPEC, rows: Any = ROWS) -> Any:
    plan = make_plan(program(folder, winner), program(folder, before), rows, EXACT)
    return run_plan(plan, fake_target(engine))


def by_dimension(found: Any) -> dict[str, Effect]:
    return {effect.dimension: effect for effect in found.dimensions}


# ---- what is found


def test_what_counts_is_told_from_what_does_not(tmp_path: Path) -> None:
    engine = WordLearner().engine()
    found = explained(tmp_path, engine)
    assert (found.against.without.value, found.compiled.value) == (pytest.approx(4 / 12), 1.0)
    assert found.against.adds.difference == pytest.approx(8 / 12)
    effects = by_dimension(found)
    assert list(effects) == ["instruction", "demos", "format", "decoding.max_tokens"]
    added = {name: effect.compared.adds.difference for name, effect in effects.items() if effect.compared}
    assert added == {"instruction": 0.0, "demos": pytest.approx(8 / 12), "format": 0.0, "decoding.max_tokens": 0.0}
    assert (effects["demos"].before, effects["demos"].after) == (0, 3)
    assert effects["demos"].p_value is not None and effects["demos"].p_value < 0.06 < 1.0 == effects["format"].p_value


def test_a_demo_adds_what_only_it_shows(tmp_path: Path) -> None:
    found = explained(tmp_path, WordLearner().engine())
    assert [(each.demo, each.after["queue"]) for each in found.demos] == [
        (1, "technical"),
        (2, "account"),
        (3, "billing"),
    ]
    technical, account, billing = (each.compared.adds.difference for each in found.demos if each.compared)
    assert technical == account == pytest.approx(4 / 12)
    assert billing == 0.0, "billing is what is taken where nothing is known"
    likelihoods = [each.likelihood for each in found.demos]
    assert all(each is not None and each.unit == "label" and each.n == 12 for each in likelihoods)
    assert all(each is not None and each.adds > 0 for each in likelihoods), "it shows where no answer flips"


def test_the_examples_won_and_lost_are_told(tmp_path: Path) -> None:
    found = explained(tmp_path, WordLearner().engine())
    assert (len(found.better), len(found.worse)) == (8, 0)
    assert found.better[0].inputs == {"ticket": "crash n0"}
    assert found.better[0].answers == ({"queue": "billing"}, {"queue": "technical"})
    turned = explained(tmp_path, WordLearner().engine(), winner=SPEC, before=WINNER)
    assert (len(turned.better), len(turned.worse)) == (0, 8)
    assert by_dimension(turned)["demos"].compared.adds.difference == pytest.approx(-8 / 12)  # type: ignore[union-attr]


def test_all_variants_run_in_one_batch_and_twins_once(tmp_path: Path) -> None:
    engine = WordLearner().engine()
    one = SPEC + "demos: [{ticket: crash and freeze, queue: technical}]\n"
    plan = make_plan(program(tmp_path, one), program(tmp_path, SPEC), ROWS, EXACT)
    assert [variant.dimension for variant in plan.variants] == ["demos", "demo"]
    assert (len(plan.candidates), plan.calls) == (2, 24), "without its only demo it is the baseline"
    counts: list[int] = []
    found = run_plan(plan, fake_target(engine), observer=counts.append)
    assert len(engine.batches) == 1
    assert max(counts) == plan.calls
    assert found.dimensions[0].compared == found.demos[0].compared


def test_the_baseline_itself_has_nothing_to_explain(tmp_path: Path) -> None:
    found = explained(tmp_path, WordLearner().engine(), winner=SPEC)
    assert (found.dimensions, found.demos, found.better, found.worse) == ((), (), (), ())
    assert found.notes == ("the compiled program is the baseline: no dimension differs",)


def test_failed_calls_are_counted_and_have_no_score(tmp_path: Path) -> None:
    engine = WordLearner().engine()
    sick = engine.tokenizer.encode("x n5")[-1]
    engine.failure = lambda request: "no" if sick in request.prompt else None
    found = explained(tmp_path, engine)
    assert (found.failed, found.against.adds.n, found.compiled.n) == (1, 11, 11)
    assert {effect.failed for effect in (*found.dimensions, *found.demos)} == {1}
    assert found.lost == 8
    with pytest.raises(RunError, match="all 12 examples failed"):
        explained(tmp_path, FakeEngine(failure=lambda request: "no"))


def test_the_same_again_is_the_same(tmp_path: Path) -> None:
    first, again = (explained(tmp_path, WordLearner().engine()).as_dict() for _ in range(2))
    assert json.dumps(first) == json.dumps(again)
    assert first["demos"][0]["after"] == {"ticket": "crash and freeze", "queue": "technical"}


# ---- texts


TEXT = """\
name: echo
signature: "text -> first: str, second: str"
format: completion
decoding: {max_tokens: 8}
"""
TEXT_DEMOS = "demos:\n  - {text: alpha, first: one, second: two}\n  - {text: beta, first: three, second: four}\n"


def likes(prompt: str, continuation: str) -> float:
    """A text is less likely by the number of its words, and more by each demo that stands in the prompt."""
    return -4.0 * len(continuation.split()) + 0.5 * prompt.count("alpha") + 0.25 * prompt.count("beta")


def texts(count: int = 3) -> Examples:
    return Examples(
        tuple(Example({"text": f"row {n}"}, {"first": "un deux", "second": "trois"}, n) for n in range(count))
    )


def test_gold_texts_are_scored_after_what_stands_before_them(tmp_path: Path) -> None:
    engine = FakeEngine(says(" a\nSecond: b"), likes)
    found = explained(tmp_path, engine, winner=TEXT + TEXT_DEMOS, before=TEXT, rows=texts())
    added = [each.likelihood for each in found.demos]
    assert all(each is not None and (each.unit, each.n) == ("token", 3) for each in added)
    assert [each.adds for each in added if each is not None] == [
        pytest.approx(2 * 0.5 / 3),
        pytest.approx(2 * 0.25 / 3),
    ]
    scored = [request for batch in engine.batches for request in batch if isinstance(request, ScoreRequest)]
    prompts = [engine.tokenizer.text(request.prompt) for request in scored]
    assert len(scored) == 3 * 3 * 2, "three versions, three rows, two outputs"
    assert prompts[0].endswith("Text: row 0\nFirst:") and prompts[1].endswith("Text: row 0\nFirst: un deux\nSecond:")
    assert [engine.tokenizer.text(scored[place].continuations[0]) for place in (0, 1)] == [" un deux", " trois"]


def test_a_target_that_can_not_score_is_told(tmp_path: Path) -> None:
    engine = FakeEngine(says(" a\nSecond: b"), failure=lambda r: "can't score" if isinstance(r, ScoreRequest) else None)
    found = explained(tmp_path, engine, winner=TEXT + TEXT_DEMOS, before=TEXT, rows=texts())
    assert found.skipped == {"main": "can't score"}
    assert all(each.likelihood is None and each.compared is not None for each in found.demos)


CHAIN = """\
name: two
inputs: {ticket: str}
nodes:
  summary:
    signature: "ticket -> summary: str"
    format: completion
    demos: [{ticket: crash and freeze, summary: it broke}]
  route:
    module: chain_of_thought
    signature: "ticket, summary -> queue: Literal['billing', 'technical', 'account']"
    format: completion
    inputs: {ticket: "${inputs.ticket}", summary: "${summary.summary}"}
    demos: [{ticket: a, summary: b, reasoning: c, queue: billing}]
outputs: {queue: "${route.queue}"}
"""


def test_what_has_no_gold_value_is_skipped_and_a_rationale_is_the_programs_own(tmp_path: Path) -> None:
    engine = FakeEngine(lambda prompt, decoding, sample: " billing" if prompt.endswith("Queue:") else " so it is")
    plain = "\n".join(line for line in CHAIN.splitlines() if "demos:" not in line) + "\n"
    found = explained(tmp_path, engine, winner=CHAIN, before=plain)
    summary, route = found.demos
    assert found.skipped == {"summary": "no example has a gold value of its outputs"}
    assert summary.likelihood is None and (route.predictor, route.likelihood.unit) == ("route.predict", "token")
    scored = [request for batch in engine.batches for request in batch if isinstance(request, ScoreRequest)]
    assert len(scored) == 2 * len(ROWS)
    assert engine.tokenizer.text(scored[0].prompt).endswith("Summary: so it is\nReasoning: so it is\nQueue:")


# ---- Python


def test_what_compile_gave_is_explained(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, search={"instructions": 1, "demos": [4, 4]})
    rows = worded(12, 4)
    found = cuecard.explain(compiled, None, rows, "exact_match")
    assert isinstance(found, cuecard.Explanation)
    assert found.compiled.value > found.against.without.value
    assert {each.predictor for each in found.dimensions} == {"route"}
    assert len(found.demos) == len(compiled.compilation.candidate.states["route"].demos) == 4
    told = cuecard.explain(
        compiled.program, Triage(), rows, "exact_match", target=fake_target(WordLearner(bias={"billing": 2.0}).engine())
    )
    assert told.as_dict() == found.as_dict()


def test_programs_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    engine = fake_target(FakeEngine())
    with pytest.raises(InputError, match="there is no baseline"):
        cuecard.explain(Triage(), None, worded(3, 1), "exact_match", target=engine)
    with pytest.raises(InputError, match="there are no examples"):
        cuecard.explain(Triage(), Triage(), [], "exact_match", target=engine)
    with pytest.raises(InputError, match="is no program"):
        cuecard.explain(Triage(), Triage, worded(3, 1), "exact_match", target=engine)  # type: ignore[arg-type]
    other = program(tmp_path, SPEC)
    with pytest.raises(InputError, match="the baseline has no predictor 'route', which the compiled program has"):
        cuecard.explain(Triage(), other, worded(3, 1), "exact_match", target=engine)
    more = program(tmp_path, SPEC.replace("'account'", "'shipping'"))
    with pytest.raises(InputError, match="the predictor 'main' has another signature"):
        make_plan(other, more, ROWS, EXACT)


# ---- rows and files


def test_rows_are_drawn_by_the_seed_and_keep_their_order() -> None:
    drawn = chosen_rows(ROWS, 5, 0)
    assert [row.id for row in drawn] == sorted(row.id for row in drawn)
    assert len({row.id for row in drawn}) == 5
    assert drawn == chosen_rows(ROWS, 5, 0)
    assert len({tuple(row.id for row in chosen_rows(ROWS, 5, seed)) for seed in range(8)}) > 1
    assert chosen_rows(ROWS, 99, 0) == chosen_rows(ROWS, None, 0) == ROWS


COMPILED = "compiled: {target: {identity: abc}, kept: candidate}\n"


def test_the_baseline_is_the_spec_beside(tmp_path: Path) -> None:
    path = written(tmp_path, "other.compiled.yaml", WINNER + COMPILED)
    spec = load_spec(path)
    with pytest.raises(InputError, match=r"expected other\.yaml or triage\.yaml\n  Name it: --baseline FILE\."):
        baseline_file(path, spec)
    by_name = written(tmp_path, "triage.yaml", SPEC)
    assert baseline_file(path, spec) == by_name
    beside = written(tmp_path, "other.yml", SPEC)
    assert baseline_file(path, spec) == beside
    with pytest.raises(InputError, match="this is a spec and no compiled program"):
        baseline_file(beside, load_spec(beside))


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `triage.yaml` for a tiny model, and `triage.compiled.yaml` as if compiled from it."""
    model = f"model: {{id: {tiny_model}, dtype: float32, device: cpu, options: {{max_tokens: 4}}}}"
    text = write_spec(tmp_path, model=model).read_text(encoding="utf-8")
    written(tmp_path, "triage.yaml", text + "readout: text\nformat: completion\n")
    learned = (
        "readout: {kind: choice, calibration: {method: bias, offsets: {queue: {billing: 0.5}}}}\nformat: completion\n"
        "demos: [{ticket: money back, queue: billing}, {ticket: it broke, queue: technical}]\n"
    )
    written(tmp_path, "triage.compiled.yaml", text + learned + COMPILED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_explain_prints_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run_cuecard(capsys, "explain", "triage.compiled.yaml", "--rows", "6")
    assert said.code == 0
    assert "7 programs on 6 examples: 42 metric calls" in said.err.splitlines()
    lines = said.out.splitlines()
    assert lines[0] == "triage on tiny, float32, cpu: exact_match on 6 of 8 of dev"
    assert [line.split()[0] for line in lines[3:5]] == ["baseline", "compiled"]
    place = lines.index("what each dimension adds")
    head = "predictor dimension baseline -> compiled without it it adds p better, worse, equal could go unseen"
    assert " ".join(lines[place + 1].split()) == head
    told = [re.split(r"\s{2,}", line)[1] for line in lines[place + 2 : place + 5]]
    assert told == ["demos", "read-out, with its calibration", "calibration"]
    assert any(line.endswith('"money back"  billing') and " a label " in line for line in lines)
    assert "note: none of the effects stands out from chance on 6 examples" in lines
    assert any(line.startswith("note: the program was chosen on dev") for line in lines)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (0, 4, ("0", "4")),
        ("chat", {"name": "turns", "labels": True}, ("chat", "{'name': 'turns', 'labels': True}"[:27] + "...")),
        ("Route it.", "Sort it.", ('"Route it."', '"Sort it."')),
        (
            "Say in short what it is.",
            "Say in short what it is. No more.",
            ('"...short what it is."', '"...short what it is. No more."'),
        ),
    ],
)
def test_of_long_texts_what_differs_is_shown(before: Any, after: Any, shown: tuple[str, str]) -> None:
    assert _from_difference(before, after) == shown


def test_explain_as_json_is_the_same_bytes_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("explain", "triage.compiled.yaml", "--split", "test", "--json", "--seed", "3")
    first, again = run_cuecard(capsys, *words), run_cuecard(capsys, *words)
    assert (first.code, first.out) == (0, again.out)
    found = json.loads(first.out)
    assert (found["name"], found["split"], found["examples"], found["seed"]) == ("triage", "test", 6, 3)
    assert found["baseline_file"] == "triage.yaml"
    assert [each["dimension"] for each in found["dimensions"]] == ["demos", "readout", "calibration"]
    assert found["dimensions"][1]["along"] == "calibration"
    assert [each["likelihood"]["unit"] for each in found["demos"]] == ["label", "label"]
    assert found["adds"]["n"] == 6


def test_a_baseline_that_scored_otherwise_is_doubted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = json.loads(run_cuecard(capsys, "explain", "triage.compiled.yaml", "--json").out)
    identity, value = first["target"]["identity"], first["baseline"]["value"]
    text = (folder / "triage.compiled.yaml").read_text()
    for told, doubted in ((value, False), (2.0, True)):
        score = f"{{value: {told}, low: {told - 0.1}, high: {told + 0.1}, n: 8}}"
        block = f"compiled: {{target: {{identity: {identity}}}, baseline: {{dev: {score}}}}}\n"
        written(folder, "triage.compiled.yaml", text.replace(COMPILED, block))
        notes = json.loads(run_cuecard(capsys, "explain", "triage.compiled.yaml", "--json").out)["notes"]
        assert any("is triage.yaml still the spec that it was compiled from?" in each for each in notes) == doubted


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("gone.compiled.yaml",), "error: gone.compiled.yaml: no such file"),
        (("triage.yaml",), "error: triage.yaml: this is a spec and no compiled program"),
        (("alone.compiled.yaml",), "the spec that it was compiled from, which holds the baseline, is not beside it"),
        (("triage.compiled.yaml", "--baseline", "no.yaml"), "error: no.yaml: no such file"),
        (
            ("triage.compiled.yaml", "--baseline", "mail.yaml"),
            "error: mail.yaml: the inputs are mail; expected those of",
        ),
        (("triage.compiled.yaml", "--baseline", "labels.yaml"), "error: labels.yaml: the predictor 'main' has another"),
        (
            ("triage.compiled.yaml", "--split", "tests"),
            "error: --split: found 'tests'; expected train, dev or test (did",
        ),
        (("triage.compiled.yaml", "--rows", "0"), "--rows"),
        (("python.compiled.yaml",), "this file was compiled from a Python program, which it does not hold"),
    ],
)
def test_wrong_input_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], error: str
) -> None:
    spec = (folder / "triage.yaml").read_text()
    compiled = (folder / "triage.compiled.yaml").read_text()
    written(folder, "alone.compiled.yaml", compiled.replace("name: triage", "name: solitary"))
    written(folder, "mail.yaml", spec.replace("ticket ->", "mail ->").replace("ticket:", "mail:"))
    written(folder, "labels.yaml", spec.replace("'account'", "'shipping'"))
    python = "name: p\npredictors: {route: {signature: 'ticket -> queue: str'}}\n"
    written(folder, "python.compiled.yaml", python + COMPILED)
    said = run_cuecard(capsys, "explain", *words)
    assert (said.code, said.out) == (2, "")
    assert error in said.err
    assert "Traceback" not in said.err
