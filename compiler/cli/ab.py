"""`cuecard ab`: two programs run now, on the same examples and in the same batches, by metrics and by a judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError
from .common import (
    AllowCode,
    AllowOutside,
    AsJson,
    DeviceName,
    DtypeName,
    ModelName,
    WeightsKind,
    open_program,
    open_target,
    target_text,
)
from .diff import SHOWN, Unchanged, show
from .eval import MetricNames, read_metrics
from .progress import counting
from .screen import columns, counted, note, one_line, say, say_json, score_text

if TYPE_CHECKING:
    from ...metrics import Metric
    from ...programs.graph import Graph
    from ...programs.schema import Spec
    from ..ab import Both
    from ..judging import PreferenceMetric, Preferences

EXAMPLE = """\
\b
Example:
  $ cuecard ab ticket_triage.yaml ticket_triage.compiled.yaml --data test.jsonl
  metric       before                after                 difference               p      ...
  exact_match  0.508 [0.420, 0.596]  0.583 [0.494, 0.668]  +0.075 [+0.008, +0.142]  0.048  ...

\b
  $ cuecard ab replies.yaml shorter.yaml --data dev.jsonl --judge "Which reply answers the question better?"
"""

First = Annotated[
    Path, typer.Argument(metavar="A", show_default=False, help="A compiled program, or a spec: the one before.")
]
Second = Annotated[Path, typer.Argument(metavar="B", show_default=False, help="Another for the same task: after.")]
Data = Annotated[Path, typer.Option("--data", metavar="FILE", show_default=False, help="Examples to run both on.")]
JudgeRubric = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="RUBRIC",
        help="Let a judge say which of both answers is better by this rubric, in both orders. Default: the rubric of "
        "the spec's metric `preference`, if it has one.",
    ),
]
JudgeModel = Annotated[
    str | None, typer.Option("--judge-model", metavar="NAME", help="What the judge runs on. Default: what both run on.")
]


def ab(
    before: First,
    after: Second,
    data: Data,
    metric: MetricNames = None,
    judge: JudgeRubric = None,
    judge_model: JudgeModel = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    weights: WeightsKind = None,
    unchanged: Unchanged = False,
    allow_outside: AllowOutside = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> int:
    """Run two programs on the same examples and compare them: prompts, scores, examples that flipped.

    Both run on A's model, or on --model. The difference is B's score less A's, with its 95 % interval; p is that of the
    paired permutation test, two-sided, and with several metrics corrected by Holm's method. An example whose call
    failed in either is left out and counted; the exit code is 3 then. With --judge the data need no gold values: only
    pairs in which the judge says the same in both orders count, and p is that of the sign test.
    """
    from ..ab import run_judged
    from ..from_spec import read_examples

    opened = [open_program(path, allow_outside=allow_outside) for path in (before, after)]
    (ours, first), (theirs, second) = opened
    check_same_task((before, first), (after, second))
    if model is None:
        _check_same_model(ours, theirs, after)
    metrics: list[Metric] = []
    if judge is None or metric or ours.metric is not None:
        metrics = list(read_metrics(ours, first, metric or (), allow_code=allow_code).values())
    pairwise = read_judge(ours, first, metrics, judge, judge_model)
    rows = read_examples(data, first, require_outputs=judge is None or bool(metric))
    if metrics and not all(set(first.output_types) <= set(row.labels) for row in rows):
        note("note: the data lack gold values, so that the judge alone compares")
        metrics = []
    target = open_target(ours, model, device, dtype, weights)
    with counting("running", 2 * len(rows)) as observer:
        programs = (str(before), ours, first), (str(after), theirs, second)
        found = run_judged(programs, rows, metrics, target, judge=pairwise, observer=observer)
    if as_json:
        about = target.description
        on = {"name": about.name, "identity": about.identity, "device": about.device, "dtype": about.dtype}
        said = {}
        if found.preferences is not None and pairwise is not None:
            told = found.preferences.as_dict([row.key for row in found.rows])
            said = {"judge": {"model": pairwise.model_name or about.name, **told}}
        say_json(
            {"target": on, "examples": len(rows), "failed": found.failed, **found.difference.as_dict(), **said},
            indent=2,
        )
    else:
        say(f"on {target_text(target)}: {counted(len(rows), 'example')}")
        show(found.difference, unchanged=unchanged)
        if found.preferences is not None:
            say()
            show_preferences(found.preferences, found.rows, unchanged=unchanged)
        if found.failed:
            say(f"{counted(found.failed, 'example')} failed and are left out")
    return 3 if found.failed or (found.preferences is not None and found.preferences.failed) else 0


def read_judge(
    spec: Spec, program: Graph, metrics: list[Metric], rubric: str | None, model: str | None
) -> PreferenceMetric | None:
    """The judge of pairs: by the rubric that is given, or else the first one among the spec's metrics.

    What the spec says of its own judge holds for another rubric too. Without one the prompt is laid out as `chat`, or
    as `completion` where the program is, whose model may have no chat template.
    """
    from ..from_spec import judge_models
    from ..judging import PreferenceMetric, preference_in

    ours = next((found for each in metrics if (found := preference_in(each)) is not None), None)
    if rubric is None and ours is None and model is not None:
        raise InputError("found --judge-model without a judge", expected="--judge RUBRIC beside it")
    if rubric is None and model is None:
        return ours
    options: dict[str, Any] = {"format": _format(program, model)}
    if ours is not None:
        options = {"fields": ours.fields, "ties": ours.ties, "format": ours.state.format, "model": ours.model}
    if model is not None:
        options["model"] = model
    words = rubric if rubric is not None or ours is None else ours.rubric
    try:
        return PreferenceMetric(words or "", models=judge_models(spec), **options)
    except InputError as error:
        raise InputError(error.message, field="--judge", expected=error.expected) from None


def _format(program: Graph, model: str | None) -> str:
    from ..evaluator import predictors_of

    formats = {part.state.format for part in predictors_of(program).values()}
    return "completion" if model is None and formats == {"completion"} else "chat"


def show_preferences(found: Preferences, rows: tuple[Both, ...], *, unchanged: bool = False) -> None:
    """Print what a judge of pairs prefers."""
    say(f"judge: {one_line(found.rubric)}")
    for line in columns(list(_preference_lines(found)), indent=2):
        say(line)
    for title, end, style in (("after", "after", "green"), ("before", "before", "red")):
        chosen = [row for row, each in zip(rows, found.ends, strict=True) if each == end]
        if chosen:
            say()
            say(f"prefers {title}: {counted(len(chosen), 'example')}", style)
            most = len(chosen) if unchanged else SHOWN
            cells = [[_values(row.inputs), " -> ".join(map(_values, row.answers))] for row in chosen[:most]]
            for line in columns(cells, indent=2):
                say(line)
            if len(chosen) > most:
                say(f"  ... and {len(chosen) - most} more (--all)")


def _preference_lines(found: Preferences) -> Iterator[tuple[str, str]]:
    """What was counted, and what it is the number of."""
    yield f"{found.count('after'):,}", "prefers after, in both orders"
    yield f"{found.count('before'):,}", "prefers before, in both orders"
    yield f"{found.count('tie'):,}", "tie, in both orders"
    yield f"{found.count('inconsistent'):,}", "inconsistent: the order decided"
    if found.count("same"):
        yield f"{found.count('same'):,}", "the same answer: not asked"
    if found.lost:
        yield f"{found.lost:,}", "with an answer that could not be read, which loses: not asked"
    if found.win_rate is not None:
        p = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
        yield score_text(found.win_rate), f"of {found.win_rate.n:,} decided for after; sign test: {p}"
    if found.position is not None:
        yield f"{found.position.consistent:.3f}", "of the pairs: the same verdict in both orders"
        if found.position.picked_first is not None:
            yield f"{found.position.picked_first:.3f}", "of all verdicts for the one shown first; 0.500 is no bias"
    if found.unread:
        yield f"{found.unread:,}", "verdicts could not be read"
    if found.failed:
        yield f"{found.failed:,}", f"judge's calls failed: {found.first_failure}"


def _values(answer: Any) -> str:
    given = answer.values() if isinstance(answer, dict) else [answer]
    return ", ".join(one_line(value if isinstance(value, str) else str(value), 60) for value in given)


def check_same_task(before: tuple[Path, Graph], after: tuple[Path, Graph]) -> None:
    """Raise `InputError` when two programs do not have the same inputs and outputs by name."""
    (_, ours), (path, theirs) = before, after
    for what, a, b in (
        ("inputs", ours.input_types, theirs.input_types),
        ("outputs", ours.output_types, theirs.output_types),
    ):
        if set(a) != set(b):
            expected = f"those of {before[0]}: {', '.join(sorted(a))}"
            raise InputError(f"the {what} are {', '.join(sorted(b))}", path=path, expected=expected)


def _check_same_model(ours: Spec, theirs: Spec, path: Path) -> None:
    """Raise `InputError` when the programs name different models, so that nobody takes one's effect for the other's."""
    from ..from_spec import spec_model, spec_server

    models = [str(served.server) if (served := spec_server(spec)) else spec_model(spec) for spec in (ours, theirs)]
    if models[0] != models[1]:
        hint = "Run both on one model: --model NAME. To compare models, compare baselines: cuecard eval --scores FILE."
        raise InputError(f"the model is {models[1]!r}", path=path, expected=f"{models[0]!r}, as in A", hint=hint)
