"""`cuecard export`: the prompts of a program as JSON, for engines and code that know nothing of Cuecard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import AllowOutside, PredictorName, ProgramFile, check_folder_of
from .screen import note, say, say_json, warn

EXAMPLE = """\
\b
Example:
  $ cuecard export product_blurb.compiled.yaml --output prompts.json
  wrote prompts.json

\b
  In your own code:
    found = json.load(open("prompts.json"))["predictors"]["main"]
    text = found["prompt"].replace("{{facts}}", facts)
    client.completions.create(model=..., prompt=text, **found["settings"])
"""

Hole = Annotated[
    str | None,
    typer.Option("--hole", metavar="TEXT", help="What stands where an input belongs. Default: {{NAME}}."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="The JSON file. Default: standard output.")
]


def export(
    program: ProgramFile,
    predictor: PredictorName = None,
    output: Output = None,
    hole: Hole = None,
    allow_outside: AllowOutside = False,
) -> int:
    """Write each predictor's prompt as JSON, to be used without Cuecard.

    There are the messages of a chat, or one running text, with {{NAME}} for each input; the decoding settings; where
    each output stands in the answer; and what does not go along, with which the program was measured. A program that
    reads a head or a matrix gives the prompts of its best candidate without. Demos that are chosen for each input, and
    the read-out 'channel', have no fixed prompt: these are refused. No model is opened.
    """
    from ...errors import InputError
    from ...files import write_atomic
    from ...programs.spec import load_spec
    from ..export import HOLE, exported

    check_folder_of(output, "--output")
    if hole is not None and "NAME" not in hole:
        raise InputError(f"found {hole!r}", field="--hole", expected=f"a text with NAME in it, such as {HOLE!r}")
    spec = load_spec(program, allow_outside=allow_outside)
    found = exported(spec, predictor, hole or HOLE)
    for name, prompt in found["predictors"].items():
        for told in prompt.get("differs", ()):
            warn(f"{name}: {told}")
    if found.get("prompt_only"):
        note("note: these are the prompts of the best candidate without heads and matrices")
    if output is None:
        say_json(found, indent=2)
    else:
        write_atomic(output, json.dumps(found, ensure_ascii=False, indent=2) + "\n")
        say(f"wrote  {output}")
    return 0
