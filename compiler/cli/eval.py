"""`cuecard eval`: a program's scores on examples, with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError, nearest
from .common import (
    AllowCode,
    AllowOutside,
    AsJson,
    DeviceName,
    DtypeName,
    ModelName,
    ProgramFile,
    WeightsKind,
    check_folder_of,
    open_program,
    open_target,
    target_text,
)
from .progress import counting
from .screen import columns, counted, say, say_json, score_text, short_path

if TYPE_CHECKING:
    from ...metrics import Metric, Score
    from ...models.target import Target
    from ...programs.graph import Graph
    from ...programs.schema import Spec
    from ..examples import Examples
    from ..judging import JudgeMetric
    from ..scoring import Evaluation

EXAMPLE = """\
\b
Example:
  $ cuecard eval ticket_triage.compiled.yaml --metric exact_match
  ticket_triage on smollm2-135m, bfloat16, cpu: 120 examples of test
  exact_match  0.583 [0.494, 0.668]
  with 120 rows a difference below 0.126 could go unseen

\b
  $ cuecard eval ticket_triage.yaml --record calls/    # then, without the model:
  $ cuecard eval ticket_triage.yaml --replay calls/

\b
  $ cuecard eval replies.yaml --judge-check --data graded.jsonl --labels human
"""

Data = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="Examples to score on, instead of the spec's.")
]
MetricNames = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME", help="Score by this metric; may be repeated. Default: the spec's."),
]
Split = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", help="train, dev or test of the spec's data. Default: test, else dev."),
]
Scores = Annotated[
    Path | None,
    typer.Option("--scores", metavar="FILE", help="Write every example's score: a baseline for tests and `diff`."),
]
Record = Annotated[
    Path | None, typer.Option("--record", metavar="FOLDER", help="Record every model call in this folder.")
]
Replay = Annotated[
    Path | None,
    typer.Option("--replay", metavar="FOLDER", help="Answer from a recording, or a compile's run, without the model."),
]
JudgeCheck = Annotated[
    bool, typer.Option("--judge-check", help="Measure the judge of the spec's metric: its position and length bias.")
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="COLUMN",
        help="With --judge-check: what people said of the data's own answers; measures the judge's agreement.",
    ),
]


def evaluate_program(
    program: ProgramFile,
    data: Data = None,
    metric: MetricNames = None,
    split: Split = None,
    scores: Scores = None,
    record: Record = None,
    replay: Replay = None,
    judge_check: JudgeCheck = False,
    labels: Labels = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    weights: WeightsKind = None,
    allow_outside: AllowOutside = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> int:
    """Score a program on examples, with 95 % intervals.

    An answer that could not be read counts as the metric's worst. An example whose call failed, or that a metric could
    not measure, has no score and is counted apart; the exit code is 3 then. A call that --replay does not have is an
    error, which says where the prompt has changed. With --judge-check the judge is measured, and not the program.
    """
    import dspy

    from ..baseline import write_baseline
    from ..evaluate import open_models
    from ..replay import SCORES
    from ..scoring import evaluate
    from ..sides import scored_baseline

    check_folder_of(scores, "--scores")
    spec, graph = open_program(program, allow_outside=allow_outside)
    metrics = read_metrics(spec, graph, metric or (), allow_code=allow_code)
    where, rows = _examples(spec, graph, data, split)
    if labels is not None and not judge_check:
        raise InputError("found --labels without --judge-check", expected="both")
    judge = _judge(spec, metrics) if judge_check else None
    first = next(iter(metrics.values()))
    opened = target_of_run(spec, model, device, dtype, weights, record, replay)
    if judge is not None:
        with opened as target:
            return _check_judge(judge, spec, graph, target, where, rows, labels, as_json)
    with opened as target, counting("running", len(rows)) as observer:
        with dspy.context(lm=target.lm):  # what judges run on that have no model of their own
            for each in metrics.values():
                open_models(each)
        evaluation = evaluate(graph, rows, first, target=target, observer=observer)
        with dspy.context(lm=target.lm):
            found = {name: _score(graph, evaluation, each, first) for name, each in metrics.items()}
            if scores is not None or record is not None:
                scored = scored_baseline(spec, graph, target.description.identity, first, evaluation.outcomes)
    if scores is not None or record is not None:
        for place in (scores, record and record / SCORES):
            if place is not None:
                write_baseline(place, scored)
    if as_json:
        say_json(_json(spec, target, where, evaluation, found), indent=2)
    else:
        say(f"{spec.name} on {target_text(target)}: {counted(len(rows), 'example')} of {where}")
        for line in (*columns(list(_lines(evaluation, found))), *_unseen(metrics, found)):
            say(line)
    return 3 if any(each.lost for each in found.values()) else 0


@dataclass(frozen=True)
class Found:
    """The score by one metric, None where no example has one; `lost`: why, by the place of an example that has none.

    `detectable`: the smallest true difference from another program that these rows would show four times in five.
    """

    score: Score | None
    lost: Mapping[int, str]
    detectable: float | None


def _lines(evaluation: Evaluation, found: Mapping[str, Found]) -> Iterator[tuple[str, str]]:
    """The scores, then what has none: examples whose call failed, which no metric has, and those of one metric."""
    for name, each in found.items():
        yield name, "-" if each.score is None else score_text(each.score)
    if evaluation.unread:
        yield "unread", f"{counted(evaluation.unread, 'answer')} could not be read"
    if evaluation.failed:
        yield "failed", f"{counted(evaluation.failed, 'example')} with no score"
    for name, each in found.items():
        alone = {place: why for place, why in each.lost.items() if evaluation.outcomes[place].error is None}
        if alone:
            yield "failed", f"{counted(len(alone), 'example')} with no score by {name}: {next(iter(alone.values()))}"


def _unseen(metrics: Mapping[str, Metric], found: Mapping[str, Found]) -> list[str]:
    """What the rows could not show by the first metric that has a score."""
    from ..baseline import unseen_text

    for name, each in found.items():
        if each.score is not None and each.detectable is not None:
            told = unseen_text(metrics[name], each.detectable, name if len(found) > 1 else "")
            return [f"with {counted(each.score.n, 'row')} {told}"]
    return []


def _judge(spec: Spec, metrics: Mapping[str, Metric]) -> JudgeMetric:
    """The first judge among the metrics."""
    from ..judging import judge_in, preference_in

    found = next((judge for each in metrics.values() if (judge := judge_in(each)) is not None), None)
    if found is None:
        hint = "Give it one: `metric: {judge: {rubric: ...}}`."
        if any(preference_in(each) is not None for each in metrics.values()):
            message = "`preference` cannot be checked: --judge-check takes a `judge`"
            raise InputError(message, path=spec.path, hint=hint)
        raise InputError("there is no judge in the spec's `metric:`", path=spec.path, hint=hint)
    return found


def _check_judge(
    judge: JudgeMetric,
    spec: Spec,
    graph: Graph,
    target: Target,
    where: str,
    rows: Examples,
    labels: str | None,
    as_json: bool,
) -> int:
    """Measure the judge."""
    import dspy

    from ..judging.telling import as_lines, check_on, plain

    with dspy.context(lm=target.lm):
        judge.open_model()
    with counting("running", len(rows)) as observer:
        check = check_on(judge, graph, rows.items, target.lm, labels=labels, seed=spec.optimize.seed, observer=observer)
    if as_json:
        say_json({"name": spec.name, "target": target.description.name, "data": where, **plain(check)}, indent=2)
    else:
        on = judge.model_name or target_text(target)
        say(f"{judge.name} of {spec.name} on {on}: {counted(len(rows), 'example')} of {where}")
        for line in columns(as_lines(check)):
            say(line)
    return 3 if check.failed else 0


@contextmanager
def target_of_run(
    spec: Spec,
    model: str | None,
    device: str | None,
    dtype: str | None,
    weights: str | None,
    record: Path | None,
    replay: Path | None,
) -> Iterator[Target]:
    """The target of a run that may be recorded, or replayed."""
    from ..from_spec import spec_model, spec_server
    from ..replay import recorded, replay_target

    if replay is None:
        target = open_target(spec, model, device, dtype, weights)
        if record is None:
            yield target
            return
        with recorded(target, record) as recording:
            yield recording
        return
    given = {"--record": record, "--model": model, "--device": device, "--dtype": dtype, "--weights": weights}
    other = next((name for name, value in given.items() if value is not None), None)
    if other is not None:
        raise InputError(f"found {other} beside --replay", hint="A replay is on the target that was recorded.")
    yield replay_target(replay, model=None if spec_server(spec) else spec_model(spec))


def read_metrics(spec: Spec, graph: Graph, names: Any, *, allow_code: bool) -> dict[str, Metric]:
    """The metrics by name: those named, else the spec's and, where that is a weighted sum, its parts."""
    from ...metrics import Weighted
    from ..from_spec import judge_models, spec_metric
    from ..judging import metric_of
    from ..label_metrics import knowing_labels

    if names:
        models, folder = judge_models(spec), Path.cwd()
        made = {name: metric_of(name, allow_code=allow_code, folder=folder, models=models) for name in names}
        return {name: knowing_labels(metric, graph) for name, metric in made.items()}
    ours = spec_metric(spec, allow_code=allow_code)
    if ours is None:
        raise InputError("there is no `metric:`", path=spec.path, hint="Name one: --metric exact_match.")
    ours = knowing_labels(ours, graph)
    parts = ours.metrics if isinstance(ours, Weighted) else ()
    return {ours.name: ours, **_named(parts, spec)}


def _named(parts: Sequence[Metric], spec: Spec) -> dict[str, Metric]:
    """The parts of a weighted sum by name, those of one name with their fields, or a number.

    Raises `InputError` for judges of one name, which can have one each.
    """
    from ..judging import AskingMetric

    names = [part.name for part in parts]
    found: dict[str, Metric] = {}
    for part in parts:
        several = names.count(part.name) > 1 and part.fields
        name = f"{part.name} ({', '.join(part.fields)})" if several else part.name
        if name in found and isinstance(part, AskingMetric):
            hint = "Give each a name: `{judge: {name: tone, rubric: ...}}`."
            message = f"two metrics are called {name!r}"
            raise InputError(message, path=spec.path, line=spec.line("metric"), field="metric", hint=hint)
        same = sum(each == name or each.startswith(f"{name} #") for each in found)
        found[f"{name} #{same + 1}" if same else name] = part
    return found


def _examples(spec: Spec, graph: Graph, data: Path | None, split: str | None) -> tuple[str, Examples]:
    from ..from_spec import SPLITS, read_examples, spec_examples

    if data is not None:
        if split is not None:
            raise InputError("found --split beside --data", expected="one of them")
        return short_path(data), read_examples(data, graph)
    if split is not None and split not in SPLITS:
        near = nearest(split, SPLITS)
        raise InputError(f"found {split!r}", field="--split", expected="train, dev or test", nearest=near)
    found = spec_examples(spec, graph)
    chosen = split or ("test" if found["test"] else "dev")
    if not found[chosen]:
        raise InputError(f"the spec's data have no {chosen} split", path=spec.path, hint="Give --data FILE.")
    return chosen, found[chosen]


def _score(graph: Graph, evaluation: Evaluation, metric: Metric, first: Metric) -> Found:
    """The score by one metric; the first has it already."""
    from ...metrics import interval
    from ..baseline import could_go_unseen
    from ..evaluate import measured_again

    told = evaluation.outcomes if metric is first else measured_again(graph, evaluation.outcomes, metric)
    lost = {place: outcome.error for place, outcome in enumerate(told) if outcome.error is not None}
    there = [outcome.measurement for outcome in told if outcome.measurement is not None]
    if not there:
        return Found(None, lost, None)
    score = evaluation.score if metric is first else interval(metric, there)
    return Found(score, lost, could_go_unseen(metric, there))


def _json(
    spec: Spec, target: Target, where: str, evaluation: Evaluation, found: Mapping[str, Found]
) -> dict[str, object]:
    about = target.description
    return {
        "name": spec.name,
        "target": {"name": about.name, "identity": about.identity, "device": about.device, "dtype": about.dtype},
        "data": where,
        "examples": len(evaluation.outcomes),
        "scores": {name: each.score.as_dict() if each.score else None for name, each in found.items()},
        "detectable": {name: each.detectable for name, each in found.items()},
        "unread": evaluation.unread,
        "failed": len({place for each in found.values() for place in each.lost}),
    }
