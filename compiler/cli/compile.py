"""`cuecard compile`: search for the prompts and settings with which the target does a spec's task best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from .common import AllowCode, AllowOutside, DeviceName, DtypeName, ModelName, SpecFile, check_folder_of
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
Seconds = Annotated[
    float | None, typer.Option("--seconds", metavar="S", help="Stop after so many seconds. What comes first counts.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Default: the spec's, or 0.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew, even where an unfinished run could be resumed.")]
Runs = Annotated[
    Path | None, typer.Option("--runs", metavar="DIR", help="The folder of run folders. Default: .cuecard/runs here.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a progress bar.")]


def compile_program(
    spec: SpecFile,
    output: Output = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    metric_calls: MetricCalls = None,
    seconds: Seconds = None,
    seed: Seed = None,
    fresh: Fresh = False,
    runs: Runs = None,
    allow_outside: AllowOutside = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> int:
    """Search for the prompts, demos and settings with which the model does a spec's task best.

    Writes NAME.compiled.yaml, which holds them with the evidence for them. An interrupted compile goes on where it
    stopped when the same command is run again. Where no candidate beats the program as written, that one is kept.
    """
    check_folder_of(output, "--output")
    budget = _budget(spec, metric_calls, seconds, allow_outside)
    from ..from_spec import compile_spec, compiled_path
    from .summary import summary

    with reporting(quiet=quiet) as reporter:
        compiled = compile_spec(
            spec,
            target=model,
            device=device,
            dtype=dtype,
            budget=budget,
            seed=seed,
            fresh=fresh,
            runs=runs,
            allow_outside=allow_outside,
            allow_code=allow_code,
            reporter=reporter,
            output=output,
        )
    for line in summary(compiled.compilation):
        say(line)
    say(f"wrote  {short_path(output or compiled_path(spec))}")
    say(f"run    {short_path(compiled.compilation.folder.path)}")
    return 0


def _budget(path: Path, metric_calls: int | None, seconds: float | None, allow_outside: bool) -> Budget | None:
    """The spec's budget with the limits that the command line sets; None when it sets none."""
    if metric_calls is None and seconds is None:
        return None
    if seconds is not None and not 0 < seconds < float("inf"):
        raise InputError(f"found {seconds:g}", field="--seconds", expected="a number above 0")
    from ...optimizers.base import Budget
    from ...programs.spec import load_spec

    ours = load_spec(path, allow_outside=allow_outside).optimize.budget
    return Budget(metric_calls or ours.metric_calls, seconds or ours.seconds)
