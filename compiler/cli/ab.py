"""`cuecard ab`: two programs run now, on the same examples and in the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from .common import (
    AllowCode,
    AllowOutside,
    AsJson,
    DeviceName,
    DtypeName,
    ModelName,
    open_program,
    open_target,
    target_text,
)
from .diff import Unchanged, show
from .eval import MetricNames, read_metrics
from .progress import counting
from .screen import counted, say, say_json

if TYPE_CHECKING:
    from ...programs.graph import Graph
    from ...programs.schema import Spec

EXAMPLE = """\
\b
Example:
  $ cuecard ab ticket_triage.yaml ticket_triage.compiled.yaml --data test.jsonl
  metric       before                after                 difference               p      ...
  exact_match  0.508 [0.420, 0.596]  0.583 [0.494, 0.668]  +0.075 [+0.008, +0.142]  0.048  ...
"""

First = Annotated[
    Path, typer.Argument(metavar="A", show_default=False, help="A compiled program, or a spec: the one before.")
]
Second = Annotated[Path, typer.Argument(metavar="B", show_default=False, help="Another for the same task: after.")]
Data = Annotated[Path, typer.Option("--data", metavar="FILE", show_default=False, help="Examples to run both on.")]


def ab(
    before: First,
    after: Second,
    data: Data,
    metric: MetricNames = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    unchanged: Unchanged = False,
    allow_outside: AllowOutside = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> int:
    """Run two programs on the same examples and compare them: prompts, scores, examples that flipped.

    Both run on A's model, or on --model. The difference is B's score less A's, with its 95 % interval; p is that of the
    paired permutation test, two-sided, and with several metrics corrected by Holm's method. An example whose call
    failed in either is left out and counted; the exit code is 3 then.
    """
    from ..ab import run_ab
    from ..from_spec import read_examples

    opened = [open_program(path, allow_outside=allow_outside) for path in (before, after)]
    (ours, first), (theirs, second) = opened
    metrics = list(read_metrics(ours, first, metric or (), allow_code=allow_code).values())
    rows = read_examples(data, first)
    check_same_task((before, first), (after, second))
    if model is None:
        _check_same_model(ours, theirs, after)
    target = open_target(ours, model, device, dtype)
    with counting("running", 2 * len(rows)) as observer:
        found, failed = run_ab(
            ((str(before), ours, first), (str(after), theirs, second)), rows, metrics, target, observer=observer
        )
    if as_json:
        about = target.description
        on = {"name": about.name, "identity": about.identity, "device": about.device, "dtype": about.dtype}
        say_json({"target": on, "examples": len(rows), "failed": failed, **found.as_dict()}, indent=2)
    else:
        say(f"on {target_text(target)}: {counted(len(rows), 'example')}")
        show(found, unchanged=unchanged)
        if failed:
            say(f"{counted(failed, 'example')} failed and are left out")
    return 3 if failed else 0


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
