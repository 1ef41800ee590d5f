"""What the verbs share: their options, and how a program and its target are opened.

Nothing heavy is imported before a verb has begun, so that help and wrong options are answered at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError
from .progress import working
from .screen import note, warn

if TYPE_CHECKING:
    from ...models.target import Target
    from ...programs.graph import Graph
    from ...programs.schema import Spec

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", show_default=False, help="The YAML spec.")]
ProgramFile = Annotated[
    Path, typer.Argument(metavar="PROGRAM", show_default=False, help="A compiled program, or a spec.")
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Use this model: a name, a folder of safetensors, a .gguf file, a hub id, or a server's address "
        "(http://HOST:PORT). Default: the program's own.",
    ),
]
DeviceName = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps. Default: the spec's.")
]
DtypeName = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", help="auto, bfloat16, float16 or float32. Default: the spec's."),
]
WeightsKind = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="KIND",
        help="full, or int8 or int4: the layers' matrices in fewer bits. Default: the spec's.",
    ),
]
PredictorName = Annotated[
    str | None, typer.Option("--predictor", metavar="NAME", help="Only this predictor. Default: all.")
]
AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Let paths in the spec lead out of its folder. Only if you trust it.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run metrics that are Python code. Only if you trust them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

ProgramWord = Annotated[
    str, typer.Argument(metavar="PROGRAM", show_default=False, help="A compiled program, or a spec.")
]
"""The program of a verb that takes inputs: typer cannot tell which word is the program and which a flag."""

WITH_INPUTS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""The context settings of a verb that takes a program's inputs as `--NAME VALUE`."""


def open_program(path: Path, *, allow_outside: bool = False) -> tuple[Spec, Graph]:
    """The spec and the program of a file. Raises `InputError`."""
    from ...programs.graph import build
    from ...programs.spec import load_spec

    spec = load_spec(path, allow_outside=allow_outside)
    return spec, build(spec)


def open_target(
    spec: Spec, model: str | None, device: str | None, dtype: str | None, weights: str | None = None
) -> Target:
    """The target that a program runs on. Says what it does not do, and warns when it is not the one that the program
    was compiled for.
    """
    from ...programs.heads import check_target
    from ..from_spec import spec_target

    with working("opening the model") as progress:
        target = spec_target(spec, model, device=device, dtype=dtype, weights=weights, progress=progress)
    if "notice" in target.description.extra:
        note(f"note: {target.description.extra['notice']}")
    ours = target.description
    theirs = spec.compiled.target if spec.compiled else None
    if theirs is not None and theirs.identity != ours.identity:
        parts = (*spec.steps.values(), *(spec.predictors or {}).values())
        heads = [part.readout for part in parts if part.readout and part.readout.kind == "head"]
        check_target(heads, target.engine, theirs, spec.path)
        made_for = ", ".join(part for part in (theirs.name, theirs.dtype, theirs.device) if part)
        warn(f"the program was compiled for another target ({made_for}); this is {target_text(target)}")
    return target


def target_text(target: Target) -> str:
    """A target in a few words: `smollm2-135m, bfloat16, cpu`."""
    about = target.description
    return f"{about.name}, {about.dtype}, {about.device}"


def check_folder_of(path: Path | None, option: str) -> None:
    """Raise `InputError` when `path`, which will be written in the end, lies in no folder."""
    if path is not None and (not path.parent.is_dir() or path.is_dir()):
        found = "this is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}"
        raise InputError(found, path=path, field=option, expected="a file in a folder that exists")


def own_options(context: typer.Context) -> list[str]:
    """The options of the verb that runs, `--model` and so on."""
    parameters: list[Any] = context.command.params
    return sorted({name for parameter in parameters for name in parameter.opts if name.startswith("--")})
