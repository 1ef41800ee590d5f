"""Compiles of fields that are copied where they stand in the text and null where they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import FakeEngine, fake_target

import cuecard

NAMES = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Tony")
SIGNATURE = cuecard.signature("message, day: int -> who: str | None")


def messages(count: int, first: int) -> list[dspy.Example]:
    """Every third message names nobody, and is as long as the others."""
    rows = []
    for n in range(first, first + count):
        who = None if n % 3 == 0 else NAMES[n % len(NAMES)]
        text = f"it was {who or 'nobody'} who rang"
        rows.append(dspy.Example(message=text, day=n, who=who).with_inputs("message", "day"))
    return rows


def likelihood(prompt: str, text: str) -> float:
    """The model would leave out everything; the names are what it likes best of what it copies."""
    word = text.strip().strip('"')
    if "null" in text or "None" in text:
        return -1.0
    return -6.0 if word[:1].isupper() and " " not in word else -12.0


def compile_messages(folder: Path, engine: FakeEngine | None = None, **search: Any) -> cuecard.Compiled:
    return cuecard.compile(
        dspy.Predict(SIGNATURE),
        trainset=messages(18, 0),
        devset=messages(18, 100),
        testset=messages(18, 200),
        metric="exact_match",
        target=fake_target(engine or FakeEngine(likelihood=likelihood)),
        budget={"metric_calls": 120},
        search={"instructions": 1, "demos": [0, 2], "formats": ["completion", "json"], "readouts": ["span"], **search},
        name="who",
        runs=folder,
    )


def test_null_is_told_from_what_stands_there(tmp_path: Path) -> None:
    compiled = compile_messages(tmp_path)
    result = compiled.compilation
    assert result.compiled["dev"].value == result.compiled["test"].value == 1.0
    assert compiled(message="it was Edsger who rang", day=1).who == "Edsger"
    assert compiled(message="it was raining", day=1).who is None
    compiled.write(tmp_path / "who.compiled.yaml")
    again = cuecard.load(tmp_path / "who.compiled.yaml", program=dspy.Predict(SIGNATURE))
    weights = again.named_predictors()[0][1].state.readout.span.of("who")
    assert weights.absent < 0
    assert [weights] == [state.readout.span.of("who") for state in result.candidate.states.values()]


class Killed(BaseException):
    """Stands for a kill: nobody catches it."""


@pytest.mark.parametrize("kill_at", [3, 7])
def test_a_killed_compile_ends_in_the_same_bytes(tmp_path: Path, kill_at: int) -> None:
    whole = FakeEngine(likelihood=likelihood)
    compile_messages(tmp_path / "whole", whole).write(tmp_path / "whole.yaml")
    assert len(whole.batches) > kill_at

    def before(batch: Any) -> None:
        if len(killed.batches) == kill_at:
            raise Killed

    killed = FakeEngine(likelihood=likelihood, before=before)
    with pytest.raises(Killed):
        compile_messages(tmp_path / "killed", killed)
    rest = FakeEngine(likelihood=likelihood)
    compile_messages(tmp_path / "killed", rest).write(tmp_path / "killed.yaml")
    assert 0 < len(rest.batches) < len(whole.batches)
    assert (tmp_path / "killed.yaml").read_bytes() == (tmp_path / "whole.yaml").read_bytes()


def test_without_labelled_rows_for_null_the_weights_are_fitted_after_the_search(tmp_path: Path) -> None:
    compiled = compile_messages(tmp_path, calibrations=["none"])
    told = [json.loads(line) for line in (tmp_path / "who-1" / "trials.jsonl").read_text().splitlines()]
    assert all(trial["score"] < 1.0 for trial in told[:-1] if trial["status"] == "complete")
    assert told[-1]["params"] == {"self.calibration": "span"}
    assert compiled.compilation.compiled["dev"].value == 1.0
    kept = compile_messages(tmp_path / "kept", calibrations=["none"], recalibrate=False)
    assert kept.compilation.compiled["dev"].value < 1.0
