"""`cuecard check`: read a spec with everything that it names, and say what was found, without opening a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import InputError
from .common import AllowCode, AllowOutside, SpecFile
from .progress import budget_text
from .screen import columns, counted, say, score_text, warn

if TYPE_CHECKING:
    from ...metrics import Metric
    from ...programs.graph import Graph
    from ...programs.schema import Spec

EXAMPLE = """\
\b
Example:
  $ cuecard check ticket_triage.yaml
  ticket_triage: Route a support ticket to the team that can help.
  model     smollm2-135m
  inputs    ticket: str
  node      main: predict, ticket: str -> queue: Literal['billing', 'technical', 'account']
  outputs   queue: Literal['billing', 'technical', 'account']
  data      80 train, 80 dev, 120 test
  metric    exact_match
  optimize  joint, 2,400 metric calls, seed 0
  tests     3 tests
  ok
"""

T = TypeVar("T")


def check(spec: SpecFile, allow_outside: AllowOutside = False, allow_code: AllowCode = False) -> int:
    """Check a spec: its keys, its files and every row of its examples.

    No model is opened, and no code is run unless you allow it. All that is wrong is told at once, with file and line.
    """
    from ...programs.problems import InputErrors
    from ...programs.spec import load_spec

    read = load_spec(spec, allow_outside=allow_outside, check_files=True)
    problems: list[InputError] = []
    lines = list(_lines(read, problems, allow_code))
    if problems:
        told = {str(error): error for each in problems for error in getattr(each, "errors", (each,))}
        more = sum(getattr(each, "more", 0) for each in problems)
        raise InputErrors(list(told.values()), more) if len(told) > 1 else problems[0]
    say(f"{read.name}: {read.description}" if read.description else read.name)
    for line in columns(lines):
        say(line)
    for warning in (*read.warnings, *_model_warnings(read)):
        warn(warning)
    say("ok", "green")
    return 0


def _lines(spec: Spec, problems: list[InputError], allow_code: bool) -> Iterator[tuple[str, str]]:
    from ..from_spec import spec_budget

    yield "model", _model(spec)
    if spec.steps:
        yield from _program(spec, problems, allow_code)
    else:
        yield from _predictors(spec)
    metric = _noting(problems, lambda: _metric(spec, allow_code))
    yield "metric", metric.name if metric is not None else "none (a compile needs one)"
    _noting(problems, lambda: _check_optimizer(spec, metric))
    yield "optimize", f"{spec.optimize.optimizer}, {budget_text(spec_budget(spec))}, seed {spec.optimize.seed}"
    yield "tests", counted(len(spec.tests), "test")
    if spec.compiled is not None:
        yield from _compiled(spec)


def _metric(spec: Spec, allow_code: bool) -> Metric | None:
    """The spec's metric, checked against its program where the spec holds one."""
    from ...programs.graph import build
    from ..from_spec import spec_metric
    from ..label_metrics import knowing_labels

    found = spec_metric(spec, allow_code=allow_code)
    return knowing_labels(found, build(spec)) if found is not None and spec.steps else found


def _program(spec: Spec, problems: list[InputError], allow_code: bool) -> Iterator[tuple[str, str]]:
    from ...programs.graph import build
    from ..testing import read_tests

    program = build(spec)
    yield "inputs", _fields(program.input_types)
    for name, node in spec.steps.items():
        predictor = next(part for key, part in program.named_predictors() if key.partition(".")[0] == name)
        yield "node", f"{name}: {node.module}, {_signature(predictor.signature)}"
    yield "outputs", _fields(program.output_types)
    yield "data", _noting(problems, lambda: _data(spec, program)) or "wrong"
    _noting(problems, lambda: read_tests(spec, program, allow_code=allow_code))


def _predictors(spec: Spec) -> Iterator[tuple[str, str]]:
    from ...signatures import signature

    for name, predictor in (spec.predictors or {}).items():
        if predictor.signature is not None:
            yield "predictor", f"{name}: {_signature(signature(predictor.signature))}"


def _data(spec: Spec, program: Graph) -> str:
    from ..from_spec import spec_examples
    from ..undeclared import undeclared_labels

    if spec.data is None:
        return "none (a compile needs some)"
    found = spec_examples(spec, program)
    unused = {(rows.path, name): None for rows in found.values() for name in rows.unused}
    for path, name in unused:
        warn(f"{path}: nothing uses the column {name!r}")
    signatures = {name: part.signature for name, part in program.named_predictors()}
    for line in undeclared_labels(signatures, program.columns, found["train"], found["dev"]):
        warn(line)
    return ", ".join(f"{len(rows)} {name}" for name, rows in found.items())


def _check_optimizer(spec: Spec, metric: Metric | None) -> None:
    from ...optimizers.stopping import StopRules
    from ..options import check_options, check_stop

    if metric is not None:
        rules, line = StopRules(**spec.optimize.stop.model_dump()), spec.line("optimize", "stop")
        check_stop(rules, metric, spec.optimize.optimizer, path=spec.path, line=line)
    try:
        check_options(spec.name, spec.optimize.optimizer, spec.optimize.search, spec.optimize.options)
    except InputError as error:
        line = spec.line("optimize", "optimizer")
        parts: dict[str, Any] = {"field": error.field, "expected": error.expected, "nearest": error.nearest}
        raise InputError(error.message, path=spec.path, line=line, **parts) from None


def _compiled(spec: Spec) -> Iterator[tuple[str, str]]:
    compiled = spec.compiled
    assert compiled is not None, "the caller has looked"
    made_for = ", ".join(part for part in (compiled.target.name, compiled.target.dtype, compiled.target.device) if part)
    yield "compiled", f"for {made_for}; kept the {compiled.kept or 'candidate'}"
    for split, score in compiled.scores.items():
        before = compiled.baseline.get(split)
        was = f"{score_text(before)} -> " if before is not None else ""
        yield "", f"{split} {was}{score_text(score)}, n = {score.n}"


def _model(spec: Spec) -> str:
    if spec.model is None:
        from ...models.catalogue import DEFAULT_MODEL

        return f"{DEFAULT_MODEL} (the default)"
    if spec.model.server is not None:
        from ...models.address import shown

        named = f"{spec.model.id} " if spec.model.id is not None else ""
        return f"{named}on the server {shown(spec.model.server)}, which was not asked"
    given = {key: getattr(spec.model, key) for key in ("dtype", "device")}
    rounded = f"{spec.model.weights} weights" if spec.model.weights not in (None, "full") else None
    parts = (given["dtype"], rounded, given["device"])
    return ", ".join([str(spec.model.id), *(str(part) for part in parts if part)])


def _model_warnings(spec: Spec) -> list[str]:
    from ...models.catalogue import CATALOGUE, DEFAULT_MODEL
    from ...models.pull import pulled

    name = (spec.model.id if spec.model is not None else None) or DEFAULT_MODEL
    if spec.model is not None and spec.model.server is not None:
        return []
    if name not in CATALOGUE or (spec.folder / name).exists() or pulled(name) is not None:
        return []
    return [f"the model {name!r} is not on this machine; run: cuecard models pull {name}"]


def _fields(types: Mapping[str, Any]) -> str:
    from ...signatures import type_name

    return ", ".join(f"{name}: {type_name(kind)}" for name, kind in types.items())


def _signature(signature: Any) -> str:
    inputs = {name: field.annotation for name, field in signature.input_fields.items()}
    outputs = {name: field.annotation for name, field in signature.output_fields.items()}
    return f"{_fields(inputs)} -> {_fields(outputs)}"


def _noting(problems: list[InputError], step: Callable[[], T]) -> T | None:
    """What `step` gives; None where it finds something wrong, which is noted."""
    try:
        return step()
    except InputError as error:
        problems.append(error)
        return None
