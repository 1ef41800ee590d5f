"""The end of a compile in words: a winner that is better, a lead that may be chance, no lead at all."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from fakes import WordLearner, fake_target, tickets

from cuecard.compiler.cli.summary import chosen_text, decoding_text, readout_text, summary
from cuecard.compiler.from_spec import compile_spec
from cuecard.compiler.task import Compilation
from cuecard.metrics import PairedResult
from cuecard.models.engine import Decoding
from cuecard.programs.state import Calibration, NearestDemos, PredictorState, ReadOut

from .cli_cases import write_rows

SPEC = """\
name: triage
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
instructions: Route the ticket to the queue that should answer it, whatever words the customer may have used for what they want.
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
metric: exact_match
optimize: {budget: {metric_calls: 260}, search: {demos: [0, 4], formats: [completion], instructions: 1}}
"""


@pytest.fixture(scope="module")
def compilation(tmp_path_factory: pytest.TempPathFactory) -> Compilation:
    """A compile that finds something better, with a stand-in for a model that learns from demos."""
    folder = tmp_path_factory.mktemp("summary")
    for seed, (name, count) in enumerate({"train": 24, "dev": 30, "test": 24}.items()):
        write_rows(folder / f"{name}.jsonl", [dict(row) for row in tickets(count, seed)])
    (folder / "triage.yaml").write_text(SPEC, encoding="utf-8")
    target = fake_target(WordLearner().engine())
    return compile_spec(folder / "triage.yaml", target=target, runs=folder / "runs").compilation


def told(compilation: Compilation) -> str:
    return re.sub(r"\d+:\d\d in all", "0:00 in all", "\n".join(summary(compilation)))


def with_result(compilation: Compilation, **changes: Any) -> Compilation:
    return replace(compilation, result=replace(compilation.result, **changes))


def test_a_winner(compilation: Compilation) -> None:
    text = told(compilation)
    assert compilation.result.accepted
    lines = text.splitlines()
    assert lines[0] == "triage on fake, float32, cpu"
    assert lines[2].split() == ["exact_match", "baseline", "compiled", "n", "unread"]
    assert lines[3].split()[0] == "dev" and lines[3].split()[-4] == "30"
    assert lines[4].split()[0] == "test" and lines[4].split()[-4] == "24"
    verdict = compilation.result.verdict
    assert verdict is not None
    assert lines[6] == (
        f"The compiled program is better than the baseline on dev: {verdict.difference:+.3f} "
        f"[{verdict.low:.3f}, {verdict.high:.3f}], p < 0.001"
    )
    assert lines[7] == (
        f"by a paired permutation test ({verdict.wins} better, {verdict.losses} worse, {verdict.ties} equal); "
        f"the best of {compilation.result.trials - 1} candidates."
    )
    state = compilation.candidate.states["main"]
    assert lines[9] == f"main  {chosen_text(state)}"
    instruction = next(line for line in lines if line.startswith('      "'))
    assert instruction.startswith('      "Route the ticket to the queue') and instruction.endswith('..."')
    assert re.fullmatch(r"\d+ metric calls in \d+ trials, 0:00 in all", lines[-2])
    assert re.fullmatch(r"[\d,]+ model calls: [\d,]+ prompt tokens \(\d+% shared\), [\d,]+ generated", lines[-1])


def test_a_lead_that_may_be_chance(compilation: Compilation) -> None:
    verdict = PairedResult(0.1, -0.05, 0.25, 0.21, 0.42, 30, 5, 2, 23)
    text = told(with_result(compilation, verdict=verdict, accepted=False, trials=2))
    assert (
        "The baseline is kept: the best of 1 candidate leads on dev by +0.100 [-0.050, 0.250], p = 0.210\n"
        "in a paired permutation test (5 better, 2 worse, 23 equal), which may be chance.\n"
    ) in text
    assert "main  format chat, 0 demos, free text\n" in text


def test_no_lead_at_all(compilation: Compilation) -> None:
    text = told(with_result(compilation, verdict=None, accepted=False, trials=9, stopped_by="exhausted"))
    assert "The baseline is kept: none of 8 candidates did better on dev.\n" in text
    assert "The search ended before its budget: there was nothing left to try.\n" in text


def test_a_budget_that_the_baseline_took(compilation: Compilation) -> None:
    text = told(with_result(compilation, verdict=None, accepted=False, trials=1, stopped_by="metric_calls"))
    assert "it took the whole budget, and nothing else was tried.\nGive a larger one, or fewer dev rows.\n" in text


def test_without_a_test_split_there_is_no_such_line(compilation: Compilation) -> None:
    dev = {"dev": compilation.baseline["dev"]}
    text = told(replace(compilation, baseline=dev, compiled=dev, unread={}))
    assert "\ndev " in text and "\ntest " not in text


def test_settings_in_words() -> None:
    calibrated = ReadOut(kind="choice", calibration=Calibration(method="bias", offsets={}))
    assert readout_text(PredictorState(readout=calibrated)) == "choice by likelihood with bias calibration"
    assert readout_text(PredictorState(readout=ReadOut(kind="constrained"))) == "constrained text"
    assert decoding_text(PredictorState()) == ""
    settings = Decoding(max_tokens=9, temperature=0.3, top_k=5)
    assert decoding_text(PredictorState(decoding=settings)) == "max_tokens 9, temperature 0.3, top_k 5"


@pytest.mark.parametrize(
    ("demos", "nearest", "shown"),
    [(0, 0, "0 demos"), (1, 0, "1 demo"), (8, 2, "8 demos and the 2 nearest of 3"), (0, 2, "the 2 nearest of 3 demos")],
)
def test_fixed_demos_and_near_ones(demos: int, nearest: int, shown: str) -> None:
    demo = {"ticket": "t", "queue": "billing"}
    near = NearestDemos(count=nearest, pool=(demo,) * 3) if nearest else None
    state = PredictorState(format="json", demos=(demo,) * demos, nearest=near)
    assert chosen_text(state) == f"format json, {shown}, free text"
