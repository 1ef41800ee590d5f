"""`cuecard compile`: search for the prompts and settings with which the target does a spec's task best."""

from __future__ import annotations

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
    SpecFile,
    WeightsKind,
    check_folder_of,
)
from .progress import reporting
from .screen import say, short_path

if TYPE_CHECKING:
    from ...optimizers.base import Budget

EXAMPLE = """\
\b
Example:
  $ cuecard compile ticket_triage.yaml --seconds 150
  ticket_triage on smollm2-135m, bfloat16, cpu

\b
  exact_match   baseline               compiled               n     unread
  dev           0.013 [0.002, 0.067]   0.525 [0.417, 0.631]   80    79 -> 0
  test          0.025 [0.009, 0.071]   0.467 [0.380, 0.556]   120   116 -> 0

\b
  The compiled program is better than the baseline on dev: +0.513 [0.400, 0.625], p < 0.001
  by a paired permutation test (41 better, 0 worse, 39 equal); the best of 1 candidate.

\b
  summary  format completion, 8 demos, free text
           max_tokens 47
           "Say in one short sentence what the customer wants."
  route    format completion, 8 demos, choice by likelihood with batch calibration
           max_tokens 23
           "Decide which queue the support ticket belongs to."

\b
  192 metric calls in 2 trials, 2:33 in all
  864 model calls: 238,731 prompt tokens (81% shared), 10,652 generated
  wrote  ticket_triage.compiled.yaml
  run    .cuecard/runs/ticket_triage-1
"""

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where to write. Default: NAME.compiled.yaml beside the spec."),
]
MetricCalls = Annotated[
    int | None,
    typer.Option("--metric-calls", min=1, metavar="N", help="Stop after so many runs of the program on an example."),
]
ModelCalls = Annotated[
    int | None,
    typer.Option("--model-calls", min=1, metavar="N", help="Stop after so many calls of the model, test included."),
]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", min=1, metavar="N", help="Stop after so many prompt and generated tokens, test included."),
]
Seconds = Annotated[
    float | None, typer.Option("--seconds", metavar="S", help="Stop after so many seconds. What comes first counts.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Default: the spec's, or 0.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew, even where an unfinished run could be resumed.")]
Runs = Annotated[
    Path | None, typer.Option("--runs", metavar="DIR", help="The folder of run folders. Default: .cuecard/runs here.")
]
StudyURL = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="URL",
        help="Search with other processes that name the same study: sqlite:///FILE.db, postgresql://..., FILE.journal.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a progress bar.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only print what would be searched, and what it would cost. Writes nothing.")
]


def compile_program(
    spec: SpecFile,
    output: Output = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    weights: WeightsKind = None,
    metric_calls: MetricCalls = None,
    model_calls: ModelCalls = None,
    tokens: Tokens = None,
    seconds: Seconds = None,
    seed: Seed = None,
    fresh: Fresh = False,
    runs: Runs = None,
    study: StudyURL = None,
    allow_outside: AllowOutside = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Search for the prompts, demos and settings with which the model does a spec's task best.

    Writes NAME.compiled.yaml, which holds them with the evidence for them. Where no candidate beats the program as
    written, that one is kept.

    Ctrl-C ends the search with the best program so far, and so does a file named `stop` in the run's folder. Ctrl-C
    again leaves at once: the same command then goes on where it stopped.
    """
    check_folder_of(output, "--output")
    if as_json and not dry_run:
        raise InputError("--json goes with --dry-run", hint="A compile writes its results into the run's folder.")
    limits = {"metric_calls": metric_calls, "model_calls": model_calls, "tokens": tokens, "seconds": seconds}
    budget = _budget(spec, limits, allow_outside)
    asked: dict[str, Any] = {"target": model, "device": device, "dtype": dtype, "budget": budget, "seed": seed}
    asked |= {"weights": weights, "allow_outside": allow_outside, "allow_code": allow_code, "study": study}
    from ..from_spec import compile_spec, compiled_path, spec_task
    from .summary import summary

    if dry_run:
        from .dry_run import show_plan

        show_plan(spec_task(spec, **asked)[1], as_json=as_json)
        return 0
    with reporting(quiet=quiet) as reporter:
        compiled = compile_spec(spec, **asked, fresh=fresh, runs=runs, reporter=reporter, output=output)
    for line in summary(compiled.compilation):
        say(line)
    say(f"wrote  {short_path(output or compiled_path(spec))}")
    say(f"run    {short_path(compiled.compilation.folder.path)}")
    return 0


def _budget(path: Path, limits: dict[str, Any], allow_outside: bool) -> Budget | None:
    """The spec's budget with the limits that the command line sets; None when it sets none."""
    seconds = limits["seconds"]
    if seconds is not None and not 0 < seconds < float("inf"):
        raise InputError(f"found {seconds:g}", field="--seconds", expected="a number above 0")
    if all(limit is None for limit in limits.values()):
        return None
    from ...optimizers.base import Budget
    from ...programs.spec import load_spec

    ours = load_spec(path, allow_outside=allow_outside).optimize.budget
    return Budget(**{name: limit or getattr(ours, name) for name, limit in limits.items()})
