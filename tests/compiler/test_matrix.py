"""The calibration `matrix`: fitted on train from the labels' log-likelihoods, stored and checked like a head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import KEYWORDS, LABELS, FakeEngine, compile_tickets, fake_target, tickets

import cuecard
from cuecard.compiler.cli.summary import summary
from cuecard.errors import InputError

from .cli_cases import cuecard as run_cuecard


def mistaken(prompt: str, continuation: str) -> float:
    """Takes two of the labels for each other: no offset a label can mend that."""
    label = next((label for label in LABELS if label in continuation), None)
    if label is None:
        return -6.0
    words = KEYWORDS[{LABELS[1]: LABELS[2], LABELS[2]: LABELS[1]}.get(label, label)]
    return -6.0 + 1.5 * sum(word in prompt for word in words)


def compiled_with(runs: Path, budget: int = 150, **search: Any) -> cuecard.Compiled:
    given = {"instructions": 1, "demos": 0, "formats": ["completion"], "readouts": ["choice"], **search}
    options = {"trainset": tickets(24, 1), "devset": tickets(18, 2), "budget": {"metric_calls": budget}}
    return compile_tickets(runs, FakeEngine(likelihood=mistaken), search=given, **options)


def test_it_mends_labels_that_are_taken_for_each_other(tmp_path: Path) -> None:
    compiled = compiled_with(tmp_path, calibrations=["none", "bias", "matrix"])
    compilation = compiled.compilation
    readout = compilation.candidate.states["route"].readout
    assert (readout.kind, readout.calibration, readout.heads["queue"].pooling) == ("choice", None, "scores")
    assert compilation.compiled["test"].value == 1.0
    assert compilation.result.prompt_only is not None and (compilation.result.prompt_only.score or 0.0) < 0.7
    last = json.loads(compilation.folder.trials.read_text().splitlines()[-1])
    assert last["best"] and set(last["params"]["route.queue.matrix"]) == {"strength", "accuracy", "loss"}
    told = "\n".join(summary(compilation))
    assert "It reads a matrix over the labels, which is no prompt" in told and "with a matrix fitted on train" in told


def test_it_is_tried_only_where_the_spec_asks(tmp_path: Path) -> None:
    compiled = compiled_with(tmp_path)
    assert compiled.compilation.result.prompt_only is None
    assert not compiled.compilation.candidate.states["route"].readout.heads


def test_the_written_program_reads_it_again(tmp_path: Path) -> None:
    compiled = compiled_with(tmp_path / "runs", calibrations=["none", "matrix"])
    path = compiled.write(tmp_path / "x.compiled.yaml")
    [file] = tmp_path.glob("triage.route.queue.*.head.safetensors")

    def loaded() -> Any:
        from fakes import Triage

        return cuecard.load(path, program=Triage(), target=fake_target(FakeEngine(likelihood=mistaken)))

    rows = tickets(12, 5)
    assert [loaded()(ticket=row.ticket).queue for row in rows] == [row.queue for row in rows]
    kept = path.read_text(encoding="utf-8")
    path.write_text(kept.replace("pooling: scores", "pooling: mean", 1))
    with pytest.raises(InputError, match="the pooling 'mean' does not go with the read-out 'choice'"):
        loaded()
    path.write_text(kept.replace("pooling: scores", "pooling: scores, layer: 3", 1))
    with pytest.raises(InputError, match="layer"):
        loaded()
    path.write_text(kept)
    file.write_bytes(b"else")
    with pytest.raises(InputError, match="SHA-256"):
        loaded()


def test_on_another_target_it_answers_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from fakes import Triage

    path = compiled_with(tmp_path / "runs", calibrations=["none", "matrix"]).write(tmp_path / "x.compiled.yaml")
    for identity, warnings in (("fake", 0), ("other", 1)):
        target = fake_target(FakeEngine(likelihood=mistaken, identity=identity))
        loaded: Any = cuecard.load(path, program=Triage(), target=target)
        rows = tickets(12, 5)
        assert [loaded(ticket=row.ticket).queue for row in rows] == [row.queue for row in rows]
        told = [record.getMessage() for record in caplog.records if "the matrix of the output" in record.getMessage()]
        assert len(told) == warnings
    assert "'queue' was fitted on another target (identity fake) than fake (identity other)" in told[0]


def test_the_budget_pays_for_it(tmp_path: Path) -> None:
    for limit, told in ((150, {"calls": 42, "rows": 24, "formats": 1}), (40, False)):
        compiled = compiled_with(tmp_path / str(limit), calibrations=["none", "matrix"], budget=limit)
        run = json.loads(compiled.compilation.folder.run.read_text())
        assert run["search"]["matrix"] == told and run.get("left_out", []) == ([] if told else ["matrix"])
        assert not told or run["spent"]["metric_calls"] <= limit


SPEC = """\
name: triage
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
data: {train: train.jsonl, dev: dev.jsonl}
metric: exact_match
optimize: {search: {calibrations: [none, matrices]}}
"""


def test_a_method_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "triage.yaml").write_text(SPEC)
    said = run_cuecard(capsys, "check", tmp_path / "triage.yaml")
    assert said.code == 2 and "matrices" in said.err and "'matrix'" in said.err
