"""`cuecard explain`: what a compiled program owes to what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError, nearest
from .ab import check_same_task
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
from .diff import SHOWN, show_flips
from .eval import read_metrics
from .progress import counting
from .screen import columns, counted, note, one_line, say, say_json, score_text

if TYPE_CHECKING:
    from ...models.target import Target
    from ...optimizers.explain import Comparison, Effect
    from ...optimizers.likelihood import Likelihood
    from ...programs.graph import Graph
    from ...programs.schema import Spec
    from ..examples import Examples
    from ..explain import Explanation
    from ..explain_plan import Plan

EXAMPLE = """\
\b
Example:
  $ cuecard explain ticket_triage.compiled.yaml --rows 30
  what each dimension adds
  predictor  dimension  baseline -> compiled  without it            it adds                  p      ...
  route      format     chat -> turns         0.100 [0.035, 0.256]  +0.467 [+0.300, +0.633]  0.004  ...
  summary    format     chat -> turns         0.400 [0.246, 0.577]  +0.167 [-0.033, +0.367]  0.500  ...
"""

NAMES = {"nearest": "nearest demos", "readout": "read-out"}
CUT, LEAD = 30, 12  # characters of a value, and of a text before what differs in it
Compiled = Annotated[
    Path, typer.Argument(metavar="COMPILED", show_default=False, help="A compiled program, NAME.compiled.yaml.")
]
BaselineFile = Annotated[
    Path | None,
    typer.Option("--baseline", metavar="FILE", help="The spec that it was compiled from. Default: NAME.yaml beside."),
]
Split = Annotated[str, typer.Option("--split", metavar="NAME", help="train, dev or test, of the program's data.")]
Rows = Annotated[
    int | None,
    typer.Option("--rows", metavar="N", min=1, help="Use so many examples, drawn by the seed. Default: all."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the draw, the intervals and the tests.")]
Every = Annotated[bool, typer.Option("--all", help="Show every example that was won or lost.")]


def explain(
    compiled: Compiled,
    baseline: BaselineFile = None,
    split: Split = "dev",
    rows: Rows = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    weights: WeightsKind = None,
    seed: Seed = 0,
    every: Every = False,
    allow_outside: AllowOutside = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> int:
    """Tell what a compiled program owes to what: each dimension, each demo, each example won or lost.

    The program runs once as it is, once as the baseline, and once for each dimension (instruction, demos, nearest
    demos, format, read-out, calibration, decoding settings of each predictor) with the baseline's value in its place,
    and for each demo without it. What a thing adds is the compiled program's score less the one without it, with its
    95 % interval; p is that of the paired permutation test, two-sided, corrected by Holm's method for all of them. A
    demo also tells what it adds to the log-likelihood of the gold answers. An example whose call failed is left out and
    counted; the exit code is 3 then.
    """
    from ..explain import run_plan

    spec, plan, about = _plan(compiled, baseline, split, rows, seed, allow_outside=allow_outside, allow_code=allow_code)
    target = open_target(spec, model, device, dtype, weights)
    many, runs = len(plan.candidates), counted(len(plan.rows), "example")
    note(f"{counted(many, 'program')} on {runs}: {counted(plan.calls, 'metric call')}")
    with counting("running", plan.calls) as observer:
        found = run_plan(plan, target, seed=seed, observer=observer)
    notes = [*_doubts(spec, about, target, found), *found.notes]
    if as_json:
        of = target.description
        on = {"name": of.name, "identity": of.identity, "device": of.device, "dtype": of.dtype}
        say_json({"name": spec.name, "target": on, **about, **found.as_dict(), "notes": notes}, indent=2)
    else:
        data = f"{about['examples_of_split']} of {split}"
        say(f"{spec.name} on {target_text(target)}: {found.metric} on {len(plan.rows)} of {data}")
        _show(found, notes, every=every)
    return 3 if found.lost else 0


def _plan(
    path: Path,
    baseline: Path | None,
    split: str,
    rows: int | None,
    seed: int,
    *,
    allow_outside: bool,
    allow_code: bool,
) -> tuple[Spec, Plan, dict[str, Any]]:
    """The compiled program's spec, what is to be run, and what is told of where it comes from."""
    from ...programs.graph import build
    from ...programs.spec import load_spec
    from ..explain_plan import baseline_file, check_same_predictors, chosen_rows, make_plan

    spec = load_spec(path, allow_outside=allow_outside)
    if not spec.steps:
        hint = "Explain it in Python: cuecard.explain(compiled, baseline, examples, metric)."
        raise InputError("this file was compiled from a Python program, which it does not hold", path=path, hint=hint)
    place = baseline or baseline_file(path, spec)
    program = build(spec)
    _, plain = open_program(place, allow_outside=allow_outside)
    check_same_task((path, program), (place, plain))
    check_same_predictors(program, plain, place)
    metric = next(iter(read_metrics(spec, program, (), allow_code=allow_code).values()))
    examples = _split(spec, program, split)
    plan = make_plan(program, plain, chosen_rows(examples, rows, seed), metric)
    about = {"compiled_file": str(path), "baseline_file": str(place), "split": split}
    return spec, plan, {**about, "examples_of_split": len(examples)}


def _split(spec: Spec, program: Graph, split: str) -> Examples:
    from ..from_spec import SPLITS, spec_examples

    if split not in SPLITS:
        near = nearest(split, SPLITS)
        raise InputError(f"found {split!r}", field="--split", expected="train, dev or test", nearest=near)
    found = spec_examples(spec, program)[split]
    if not found:
        raise InputError(f"the program's data have no {split} split", path=spec.path, hint="Give another --split.")
    return found


def _doubts(spec: Spec, about: Mapping[str, Any], target: Target, found: Explanation) -> Iterator[str]:
    """What speaks against the numbers: the rows are those the program was made with, or the baseline is another."""
    split = about["split"]
    if split == "dev":
        yield "the program was chosen on dev, where its lead looks larger than it is: --split test has no such rows"
    elif split == "train":
        yield "demos are taken from train: a program that shows an example's own answer as a demo gets it right"
    if spec.compiled is None or spec.compiled.target.identity != target.description.identity:
        return
    told = spec.compiled.baseline.get(split)
    if told is None or told.n != found.against.adds.n or told.low is None or told.high is None:
        return
    value = found.against.without.value
    if not told.low <= value <= told.high:
        yield (
            f"the baseline scores {value:.3f} here and scored {told.value:.3f} when the program was compiled: is "
            f"{about['baseline_file']} still the spec that it was compiled from?"
        )


def _show(found: Explanation, notes: Sequence[str], *, every: bool) -> None:
    against = found.against
    lines = [
        ("", found.metric, "difference", *_HEAD),
        ("baseline", score_text(against.without)),
        ("compiled", score_text(found.compiled), *_compared(against, against.adds.p_two_sided)),
    ]
    say()
    for line in columns(lines):
        say(line)
    head = ("predictor", "dimension", "baseline -> compiled", "without it", "it adds", *_HEAD)
    _table("what each dimension adds", [head, *map(_dimension, found.dimensions)])
    demo_head = ("predictor", "demo", "without it", "it adds", *_HEAD, "log-likelihood it adds", "")
    _table("what each demo adds", [demo_head, *map(_demo, found.demos)])
    for title, flips, style in (("better", found.better, "green"), ("worse", found.worse, "red")):
        if flips:
            say()
            show_flips(title, flips, style, len(flips) if every else SHOWN)
    failed = [f"{counted(found.failed, 'example')} failed and are left out"] if found.failed else []
    failed += [_failed(each) for each in (*found.dimensions, *found.demos) if each.failed > found.failed]
    skipped = [f"no log-likelihood for the demos of {name}: {why}" for name, why in found.skipped.items()]
    for text in (*failed, *(f"note: {text}" for text in (*skipped, *notes))):
        say()
        say(text)


_HEAD = ("p", "better, worse, equal", "could go unseen")


def _table(title: str, lines: Sequence[Sequence[str]]) -> None:
    """A table, where it has more than its head."""
    if len(lines) > 1:
        say()
        say(title, "bold")
        for line in columns(lines):
            say(line)


def _dimension(effect: Effect) -> tuple[str, ...]:
    name = effect.dimension.removeprefix("decoding.")
    name = NAMES.get(name, name) + (f", with its {effect.along}" if effect.along else "")
    change = " -> ".join(_from_difference(effect.before, effect.after))
    return effect.predictor, name, change, *_added(effect)


def _demo(effect: Effect) -> tuple[str, ...]:
    shown = "  ".join(_value(value) for value in effect.after.values())
    return effect.predictor, str(effect.demo), *_added(effect), _likelihood(effect.likelihood), shown


def _added(effect: Effect) -> tuple[str, ...]:
    if effect.compared is None or effect.p_value is None:
        return ("failed", "-", "-", "-", "-")
    return score_text(effect.compared.without), *_compared(effect.compared, effect.p_value)


def _compared(found: Comparison, p_value: float) -> tuple[str, str, str, str]:
    adds = found.adds
    return (
        f"{adds.difference:+.3f} [{adds.low:+.3f}, {adds.high:+.3f}]",
        "< 0.001" if p_value < 0.001 else f"{p_value:.3f}",
        f"{adds.wins}, {adds.losses}, {adds.ties} of {adds.n}",
        f"up to {found.detectable:.3f}",
    )


def _likelihood(found: Likelihood | None) -> str:
    if found is None:
        return "-"
    return f"{found.adds:+.3f} [{found.low:+.3f}, {found.high:+.3f}] a {found.unit}"


def _failed(effect: Effect) -> str:
    name = f"demo {effect.demo}" if effect.demo else effect.dimension
    why = f": {effect.reason}" if effect.reason else ""
    return f"{effect.predictor}, without {name}: {counted(effect.failed, 'example')} failed and are left out{why}"


def _from_difference(before: Any, after: Any) -> tuple[str, str]:
    """Two values as a line shows them: of texts that begin alike what differs, with the words before it."""
    if not (isinstance(before, str) and isinstance(after, str)):
        return _value(before), _value(after)
    from ..difference import shared

    place = shared(before, after)
    start = before.rfind(" ", 0, max(0, place - LEAD)) + 1 if place > LEAD else 0
    was, now = (_value(("..." if start else "") + text[start:]) for text in (before, after))
    return was, now


def _value(value: Any) -> str:
    return one_line(value, CUT) if isinstance(value, str) and (" " in value or "\n" in value) else _plain(value)


def _plain(value: Any) -> str:
    text = str(value)
    return text if len(text) <= CUT else text[: CUT - 3] + "..."
