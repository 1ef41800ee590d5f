"""`cuecard run`: a program on one input, or on the rows of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError, RunError
from .common import (
    WITH_INPUTS,
    AllowOutside,
    DeviceName,
    DtypeName,
    ModelName,
    ProgramWord,
    WeightsKind,
    check_folder_of,
    open_program,
    open_target,
    own_options,
)
from .progress import counting
from .screen import counted, note, plain_values, say_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...models.target import Target
    from ...optimizers.base import Outcome
    from ...programs.graph import Graph
    from ..examples import Example

SETTINGS = WITH_INPUTS
EXAMPLE = """\
\b
Examples:
  $ cuecard run ticket_triage.compiled.yaml --ticket "I was charged twice"
  {"queue": "billing"}

\b
  $ echo '{"ticket": "I was charged twice"}' | cuecard run ticket_triage.compiled.yaml
  {"queue": "billing"}

\b
  $ cuecard run ticket_triage.compiled.yaml --input tickets.jsonl --output queues.jsonl
  120 rows: 119 answered, 1 answer could not be read

\b
An input that is called like one of the options is given as JSON.
"""

Input = Annotated[
    Path | None,
    typer.Option("--input", metavar="FILE", help="Rows to run: JSONL, JSON, CSV, TSV, YAML or Parquet."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Where the answers go, as JSONL in the rows' order. Default: here."),
]


def run(
    context: typer.Context,
    program: ProgramWord,
    input: Input = None,
    output: Output = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    weights: WeightsKind = None,
    allow_outside: AllowOutside = False,
) -> int:
    """Run a program on one input, and print its outputs as JSON on one line.

    The input is given as --NAME VALUE for each of the program's inputs, or as a JSON object on standard input. With
    --input, the program runs on every row of a file instead; a row whose answer could not be read, or whose call
    failed, gets {"error": ...}, and the exit code is 1 then.
    """
    from .flags import check_complete, read_flags, read_stdin, read_words

    path, flags = read_words([program, *context.args])
    spec, graph = open_program(path, allow_outside=allow_outside)
    given = read_flags(flags, graph.input_types, own_options(context))
    check_folder_of(output, "--output")
    if input is not None:
        if given:
            raise InputError(f"found --{next(iter(given))} beside --input", expected="one of them")
        rows = _rows(input, graph)
        return _write(_outcomes(graph, rows, open_target(spec, model, device, dtype, weights)), output)
    if output is not None:
        raise InputError("found --output without --input", expected="--input FILE")
    inputs = given or read_stdin(graph.input_types)
    check_complete(inputs, graph.input_types)
    from ..examples import Example

    example = Example(inputs, {}, 0)
    return _print(_outcomes(graph, [example], open_target(spec, model, device, dtype, weights))[0])


def _rows(path: Path, graph: Graph) -> Sequence[Example]:
    from ..data import load_examples

    return load_examples(path, inputs=graph.input_types, outputs={}, require_outputs=False)


def _outcomes(graph: Graph, rows: Sequence[Example], target: Target) -> list[Outcome]:
    from ..evaluate import run_program

    with counting("running", len(rows)) as observer:
        return run_program(graph, rows, lm=target.lm, observer=observer)


def _print(outcome: Outcome) -> int:
    if outcome.error is not None:
        raise RunError(outcome.error)
    if outcome.unread is not None:
        note(f"error: the answer could not be read: {outcome.unread}", "red")
        return 1
    say_json(plain_values(outcome.prediction or {}))
    return 0


def _write(outcomes: Sequence[Outcome], output: Path | None) -> int:
    from ...files import write_atomic

    lines = [_line(outcome) for outcome in outcomes]
    if output is None:
        for line in lines:
            say_json(line)
    else:
        write_atomic(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    unread = sum(outcome.unread is not None for outcome in outcomes)
    failed = sum(outcome.error is not None for outcome in outcomes)
    parts = [f"{len(outcomes) - unread - failed:,} answered"]
    parts += [f"{counted(unread, 'answer')} could not be read"] if unread else []
    parts += [f"{counted(failed, 'call')} failed"] if failed else []
    note(f"{counted(len(outcomes), 'row')}: {', '.join(parts)}")
    return 1 if unread or failed else 0


def _line(outcome: Outcome) -> dict[str, object]:
    if outcome.error is not None:
        return {"error": outcome.error}
    if outcome.unread is not None:
        return {"error": f"the answer could not be read: {outcome.unread}"}
    return plain_values(outcome.prediction or {})
