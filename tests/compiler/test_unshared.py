"""Whole runs on models that share no prefixes: compiles, what is said of the model, read-outs, and what they can't do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import LABELS, Triage, tickets
from tiny_kinds import build_kind

import cuecard
from cuecard.errors import InputError

from .cli_cases import QUEUES, SPEC, Said, write_spec
from .cli_cases import cuecard as command

NOTICE = "t5 shares no prefixes: it is an encoder-decoder; every prompt is computed in full"
ROWS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5."""
    return build_kind(tmp_path_factory.mktemp("kinds") / "t5", "t5")


@pytest.fixture(scope="module")
def t5(folder: Path) -> cuecard.Target:
    return cuecard.target(folder, device="cpu", dtype="float32")


class Routed(dspy.Module):
    """One predictor in the only format that needs no chat template."""

    def __init__(self, outputs: str, **state: Any) -> None:
        super().__init__()
        state = {"format": "completion", "decoding": {"max_tokens": 16}, **state}
        self.route = cuecard.Predictor(
            cuecard.signature(f"ticket -> {outputs}"), cuecard.PredictorState.model_validate(state)
        )

    def forward(self, ticket: str) -> dspy.Prediction:
        return self.route(ticket=ticket)


QUEUE = f"queue: Literal[{', '.join(map(repr, LABELS))}]"


def compiled_on(target: cuecard.Target, runs: Path, outputs: str, rows: list[Any], **search: Any) -> cuecard.Compiled:
    return cuecard.compile(
        Routed(outputs),
        trainset=rows[:ROWS],
        devset=rows[ROWS : 2 * ROWS],
        testset=rows[2 * ROWS :],
        metric="exact_match",
        target=target,
        budget={"metric_calls": 100},
        search={"instructions": 1, "demos": [0, 2], "recalibrate": False, **search},
        runs=runs,
    )


def trials_of(compiled: cuecard.Compiled) -> list[dict[str, Any]]:
    return [json.loads(line) for line in compiled.compilation.folder.trials.read_text().splitlines()]


def test_a_compile_runs_from_end_to_end(t5: cuecard.Target, tmp_path: Path) -> None:
    compiled = compiled_on(t5, tmp_path, QUEUE, tickets(3 * ROWS, 1))
    trials = trials_of(compiled)
    assert {line["status"] for line in trials} <= {"complete", "dropped"}
    assert {line["params"].get("route.format") for line in trials[1:]} == {"completion"}
    readouts = {line["params"]["route.readout"].partition("+")[0] for line in trials[1:]}
    assert {"choice", "constrained", "text"} <= readouts
    chosen = [line for line in trials[1:] if line["params"]["route.readout"].startswith(("choice", "constrained"))]
    assert all(line["unread"] == 0 for line in chosen)
    state = compiled.compilation.folder.read()
    assert (state["status"], state["target"]["extra"]) == ("finished", {"notice": NOTICE})
    assert state["ledger"]["forward_passes"] > 0
    again = compiled_on(t5, tmp_path / "again", QUEUE, tickets(3 * ROWS, 1))
    assert [(line["params"], line["score"]) for line in trials_of(again)] == [
        (line["params"], line["score"]) for line in trials
    ]


def test_a_choice_is_one_of_the_labels_and_calibration_moves_it(t5: cuecard.Target) -> None:
    found = {}
    for wanted in LABELS:
        offsets = {"queue": {label: 0.0 if label == wanted else 1000.0 for label in LABELS}}
        readout = {"kind": "choice", "calibration": {"method": "bias", "offsets": offsets}}
        program = Routed(QUEUE, readout=readout)
        program.set_lm(t5.lm)
        found[wanted] = program(ticket="a customer was charged twice").queue
    assert found == {label: label for label in LABELS}
    program = Routed(QUEUE, readout={"kind": "choice"})
    program.set_lm(t5.lm)
    assert program(ticket="a customer was charged twice").queue in LABELS


def test_a_constrained_answer_on_several_lines_is_a_failed_trial(t5: cuecard.Target, tmp_path: Path) -> None:
    """T5 has no token for the end of a line, which stands between two outputs."""
    rows = [row.copy(urgent=n % 2 == 0).with_inputs("ticket") for n, row in enumerate(tickets(3 * ROWS, 1))]
    compiled = compiled_on(t5, tmp_path, f"{QUEUE}, urgent: bool", rows, readouts=["constrained", "choice"])
    by_kind: dict[str, set[str]] = {"choice": set(), "constrained": set()}
    for line in trials_of(compiled)[1:]:
        by_kind[line["params"]["route.readout"].partition("+")[0]].add(line["status"])
        if line["status"] == "failed":
            assert line["reason"].startswith("the grammar can't be followed after 'Queue: ")
            assert line["reason"].endswith(": the model has no token for what comes next")
    assert by_kind["constrained"] == {"failed"}
    assert by_kind["choice"] <= {"complete", "dropped"}
    assert by_kind["choice"]


def test_a_format_with_a_chat_template_says_what_to_use(t5: cuecard.Target, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model 't5' has no chat template.*\n  Use the format `completion`"):
        cuecard.compile(Triage(), trainset=tickets(8, 1), metric="exact_match", target=t5, runs=tmp_path)


# The command line


@pytest.fixture(scope="module")
def spec(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = SPEC.partition("tests:")[0] + "format: completion\nreadout: choice\n"
    model = f"model: {{id: {folder}, dtype: float32, device: cpu, options: {{max_tokens: 12}}}}"
    return write_spec(tmp_path_factory.mktemp("spec"), text, model=model)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_every_verb_says_what_the_model_does_not_do(spec: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = command(capsys, "compile", spec, "--metric-calls", 20, "-o", "out.yaml")
    assert said.code == 0, said.err
    assert said.err.splitlines()[:2] == ["triage on t5 (float32, cpu)", f"note: {NOTICE}"]
    said = command(capsys, "run", "out.yaml", "--ticket", "money back")
    assert (said.code, said.err) == (0, f"note: {NOTICE}\n")
    assert json.loads(said.out)["queue"] in QUEUES
    said = command(capsys, "eval", spec)
    assert (said.code, said.err) == (0, f"note: {NOTICE}\n")


def test_show_tells_what_the_encoder_reads(spec: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: Said = command(capsys, "show", spec, "--ticket", "money back", "--tokens")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("triage on t5, inputs from the command line\n")
    assert "Route the ticket.\n\nTicket: money back\nQueue:\n" in said.out


def test_demos_are_dropped_at_the_window_of_the_engine(t5: cuecard.Target) -> None:
    demos = tuple({"ticket": "a customer was charged twice " * 20, "queue": LABELS[0]} for _ in range(9))
    program = Routed(QUEUE, readout={"kind": "choice"}, demos=demos)
    prompt = program.route.prompt(lm=t5.lm, ticket="money back")
    assert 0 < prompt.demos < 9
    assert len(prompt.ids) < t5.description.context_window
    program.set_lm(t5.lm)
    assert program(ticket="money back").queue in LABELS
