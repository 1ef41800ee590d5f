"""`cuecard compile --dry-run`: the plan of a compile in words, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .common import target_text
from .progress import budget_text, working
from .screen import clock_text, columns, counted, one_line, say, say_json

if TYPE_CHECKING:
    from ...optimizers.dimensions import Dimension
    from ..dry_run import CompilePlan, PlannedCandidate, PlannedPredictor
    from ..task import Task

MOST_VALUES = 16  # of a dimension, on one line
NAMES = (
    "instruction",
    "demos",
    "demo_set",
    "nearest",
    "per_label",
    "label_set",
    "format",
    "readout",
)  # of a candidate, in its line


def show_plan(task: Task, *, as_json: bool = False) -> None:
    """Print the plan of a task. Raises what `plan_compile` raises."""
    from ..dry_run import plan_compile

    with working("measuring"):
        plan = plan_compile(task)
    if as_json:
        say_json({**_about(task), **plan.as_dict()}, indent=2)
        return
    for line in plan_lines(task, plan):
        say(line)


def _about(task: Task) -> dict[str, Any]:
    examples = {name: len(getattr(task, name)) for name in ("train", "dev", "test")}
    return {
        "name": task.name,
        "target": asdict(task.target.description),
        "metric": task.metric.name,
        "optimizer": task.optimizer,
        "seed": task.seed,
        "examples": examples,
        "budget": asdict(task.budget),
        "stop": asdict(task.stop),
        **({} if task.study is None else {"study": task.study.shown}),
    }


def plan_lines(task: Task, plan: CompilePlan) -> Iterator[str]:
    """The plan in words."""
    yield f"{task.name} on {target_text(task.target)}: the plan of a compile, nothing is written"
    yield ""
    rows = [f"{len(getattr(task, name)):,} {name}" for name in ("train", "dev", "test")]
    about = [("examples", ", ".join(rows)), ("metric", task.metric.name)]
    about += [("optimizer", f"{task.optimizer}, seed {task.seed}"), ("budget", budget_text(task.budget))]
    if task.study is not None:
        about.append(("study", f"{task.study.shown}, whose other processes take their share of this"))
    yield from columns([*about, *([("stop", stop_text(task))] if stop_text(task) else [])])
    yield ""
    for part in plan.predictors:
        yield from _predictor(part)
        yield ""
    yield from _before(task, plan)
    yield from _generation(plan)
    yield from _costs(task, plan)


def stop_text(task: Task) -> str:
    """The rules that end a search before its budget, in words; empty where there are none."""
    score, trials = task.stop.score, task.stop.trials_without_gain
    parts = [] if score is None else [f"{task.metric.name} {score:g} on dev"]
    parts += [] if trials is None else [f"{counted(trials, 'trial')} without gain"]
    return " or ".join(parts)


def _predictor(part: PlannedPredictor) -> Iterator[str]:
    yield f"{part.name}: {_points(part.size)}"
    rows = []
    for dimension in part.dimensions:
        size = "range" if dimension.size is None else f"{dimension.size:,}"
        for place, text in enumerate(_values(dimension)):
            rows.append((dimension.name, size, text) if place == 0 else ("", "", text))
    yield from columns(rows, indent=2)


def _points(size: int | None) -> str:
    return "no end of points (a decoding setting has a range)" if size is None else counted(size, "point")


def _values(dimension: Dimension) -> list[str]:
    """A dimension's values: the instructions one a line, the others on one."""
    if dimension.name == "instruction":
        return [one_line(text) for text in dimension.values]
    if dimension.name == "demo_set":
        return ["ordered draws of the demos" if dimension.size else "no demos"]
    if dimension.name == "label_set":
        return ["ordered draws of each label's demos"]
    texts = [each if isinstance(each, str) else f"{each}" for each in dimension.values]
    more = f", ... {len(texts) - MOST_VALUES} more" if len(texts) > MOST_VALUES else ""
    joint = " to " if dimension.size != len(texts) else ", "
    return [joint.join(texts[:MOST_VALUES]) + more]


def _before(task: Task, plan: CompilePlan) -> Iterator[str]:
    """What is run before the search, which this has not."""
    if plan.bootstrapped:
        runs, time = counted(plan.bootstrap_runs, "metric call"), clock_text(plan.seconds["demos"])
        names = ", ".join(plan.bootstrapped)
        yield f"before the search the program runs on train, to make the demos of {names}: {runs}, about {time}"
    if plan.proposals:
        who = "the model" if task.proposer is None else target_text(task.proposer)
        yield f"before the search {who} is asked for {counted(plan.proposals, 'instruction')}"


def _generation(plan: CompilePlan) -> Iterator[str]:
    if not plan.first:
        return
    known = "" if plan.exact else ", without what is made before or written by a model"
    most = counted(plan.generation_runs, "metric call")
    yield f"first generation: {counted(len(plan.first), 'candidate')}, about {most}{known}"
    yield from columns([_candidate(each) for each in plan.first], indent=2)
    without = ", ".join(plan.unrendered)
    if without:
        yield f"  (without the prompts of {without}, whose inputs only a run makes)"
    yield ""


def _candidate(planned: PlannedCandidate) -> tuple[str, ...]:
    """`main: completion, 8 demos, choice+batch`, and its tokens."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, value in planned.params.items():
        name, _, dimension = key.rpartition(".")
        found[name] = {**found.get(name, {}), dimension: value}
    texts = [f"{name}: {_point(params)}" for name, params in found.items()]
    if planned.prompt_tokens is None or planned.own_tokens is None:
        return "; ".join(texts), one_line(planned.problem or "")
    shared = planned.prompt_tokens - planned.own_tokens
    return "; ".join(texts), f"{planned.prompt_tokens:,.0f} prompt tokens, {shared:,.0f} shared"


def _point(params: Mapping[str, Any]) -> str:
    """A predictor's part of a point in a few words."""
    demos = counted(params.get("demos", 0), "demo") + (f" of set {params['demo_set']}" if "demo_set" in params else "")
    if "per_label" in params:
        demos = f"{counted(params['per_label'], 'demo')} of each label, set {params['label_set']}"
    near = f"{params['nearest']} nearest" if params.get("nearest") else ""
    first = f"instruction {params.get('instruction', 0)}"
    others = [f"{name} {value}" for name, value in params.items() if name not in NAMES]
    return ", ".join(
        part for part in (first, demos, near, params.get("format", ""), params.get("readout", ""), *others) if part
    )


def _costs(task: Task, plan: CompilePlan) -> Iterator[str]:
    pace, seconds = plan.pace, plan.seconds
    shared = max(0.0, pace.prompt_tokens - pace.own_tokens)
    yield (
        f"a run of the program as written: {pace.model_calls:.1f} model calls, {pace.prompt_tokens:,.0f} prompt tokens "
        f"({shared:,.0f} shared), {pace.generated_tokens:.0f} generated, {pace.seconds:.3f} s "
        f"(measured on {counted(pace.rows, 'row')} of dev)"
    )
    if plan.limited_by is not None:
        limit = plan.limited_by.replace("_", " ")
        about = f", about {counted(plan.candidates, 'candidate')}" if plan.candidates else ""
        yield f"the budget ({limit}) leaves the search about {counted(plan.runs, 'metric call')}{about}"
    parts = [f"{name} {clock_text(seconds[name])}" for name in ("baseline", "demos", "search", "after", "test")]
    yield f"expected time: {clock_text(seconds['total'])} ({', '.join(parts)}), if no rule ends it before"
