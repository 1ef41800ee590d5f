"""A program compared with its own past in a Python test: `assert_not_worse`.

It is the gate of `baseline.py` as an assertion. A program that got worse is an `AssertionError`, which names the
examples that lost most; a comparison that could not be made is another error, so that nobody takes it for a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import dspy

from ..errors import InputError, RunError
from ..metrics import Measurement
from ..metrics.source import source_digest
from ..models.engine import Engine
from ..models.lm import bridge_of, language_model
from ..models.target import Target
from ..optimizers.base import Outcome
from ..programs.predictor import adopt
from ..programs.state import PredictorState
from .baseline import Baseline, GateResult, gate, read_baseline, write_baseline
from .compiled import Compiled
from .evaluate import run_program
from .evaluator import predictors_of
from .given import Data, MetricLike, Program, check_program, checked_examples, opened_target
from .judging import metric_of
from .reports.detail import clipped, value_text
from .testing.cases import Place
from .testing.gates import Gate

SHOWN = 5  # examples that lost
LONG = 200  # characters of a value


def assert_not_worse(
    program: Program,
    data: Data,
    metric: MetricLike,
    *,
    baseline: str | PathLike[str],
    tolerance: float = 0.0,
    update: bool = False,
    target: Target | str | None = None,
    seed: int = 0,
) -> GateResult | None:
    """Fail when `program` does worse on `data` than the scores in the file `baseline` by more than `tolerance`.

    It fails only where the data show a loss (see `gate`), and gives what was measured otherwise. update: write the
    baseline instead, and give None; target: where the program runs, by default on its own LM, or on that which DSPy is
    configured with; data, metric: as `evaluate` takes them; seed: the bootstrap interval's. Raises `AssertionError`;
    `InputError` for a baseline that is missing or cannot be compared with, `RunError` when calls failed.

    >>> def test_triage(cuecard_load):
    ...     program = cuecard_load("triage.compiled.yaml")
    ...     cuecard.assert_not_worse(program, "test.jsonl", "exact_match", baseline="triage.json", tolerance=0.02)
    """
    __tracebackhide__ = True
    check_program(program)
    path = Path(baseline)
    past = None if update else _past(path)
    engine = _engine(program, target)
    program = adopt(program.program if isinstance(program, Compiled) else program, PredictorState(format="dspy"))
    for predictor in predictors_of(program).values():
        predictor.lm = None
    examples, read_metric = checked_examples(data, program), metric_of(metric)
    outcomes = run_program(program, examples, lm=language_model(engine), metric=read_metric)
    keys = Gate("", Place(""), examples.items, read_metric).keys(program)
    rows = dict(zip(keys, _measurements(outcomes), strict=True))
    if past is None:
        if not rows:
            raise InputError("there are no examples")
        write_baseline(
            path, Baseline(read_metric.name, rows, target=engine.identity, metric_digest=source_digest(read_metric))
        )
        return None
    try:
        found = gate(read_metric, rows, baseline=past, tolerance=tolerance, seed=seed)
    except InputError as error:
        hint = "Write it with update=True."
        raise InputError(error.message, path=path, field=error.field, expected=error.expected, hint=hint) from None
    if not found.passed:
        raise AssertionError("\n".join([found.reason, *_losses(keys, outcomes, past.rows)]))
    return found


def _past(path: Path) -> Baseline:
    if not path.is_file():
        raise InputError("no such file", path=path, field="baseline", hint="Write it with update=True, once.")
    return read_baseline(path)


def _engine(program: Program, target: Target | str | None) -> Engine:
    """The engine that the program runs on."""
    if target is not None:
        return opened_target(target).engine
    inner = program.program if isinstance(program, Compiled) else program
    own = [predictor.lm for _, predictor in inner.named_predictors() if predictor.lm is not None]
    bridges = [bridge_of(lm) for lm in own or [dspy.settings.lm]]
    engines = {id(bridge.engine): bridge.engine for bridge in bridges if bridge is not None}
    if None in bridges or not engines:
        hint = "Give target=..., or load the program with cuecard.load(path, target=...)."
        raise InputError("the program has no Cuecard target", hint=hint)
    if len(engines) > 1:
        raise InputError("the program runs on several models", expected="one", hint="Give target=...")
    return next(iter(engines.values()))


def _measurements(outcomes: Sequence[Outcome]) -> list[Measurement]:
    """What was measured of each example. Raises `RunError` when one of them has no answer."""
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if failed:
        hint = f"The first failure: {failed[0]}"
        raise RunError(f"{len(failed)} of {len(outcomes)} examples could not be run", hint=hint)
    return [outcome.measurement for outcome in outcomes if outcome.measurement is not None]


def _losses(keys: Sequence[str], outcomes: Sequence[Outcome], past: Mapping[str, Measurement]) -> list[str]:
    """The examples that lost most, with what was found and expected."""
    lost = [
        (outcome.measurement.score - past[key].score, place)
        for place, (key, outcome) in enumerate(zip(keys, outcomes, strict=True))
        if key in past and outcome.measurement is not None
    ]
    worst = sorted(pair for pair in lost if pair[0] < 0)
    lines = []
    for _, place in worst[:SHOWN]:
        outcome, before = outcomes[place], past[keys[place]].score
        now = outcome.measurement.score if outcome.measurement is not None else before
        lines += ["", f"example {outcome.row.id + 1}: {before:.3f} before, {now:.3f} now"]
        lines += _shown("input", outcome.row.inputs)
        lines += _shown("found", outcome.prediction) if outcome.unread is None else [f"  unread: {outcome.unread}"]
        lines += _shown("expected", outcome.row.labels)
    return [*lines, "", f"and {len(worst) - SHOWN:,} more"] if len(worst) > SHOWN else lines


def _shown(title: str, values: Mapping[str, object] | None) -> list[str]:
    return [f"  {title} {name}: {clipped(value_text(value), LONG)}" for name, value in (values or {}).items()]
