"""A spec's program: its nodes as sub-modules of one `dspy.Module`, run in order, each fed by its references.

>>> program = build(load_spec("ticket_triage.yaml"))
>>> program(ticket="I was charged twice").queue
'billing'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from ..errors import InputError, RunError, nearest
from ..signatures import write
from ..signatures.types import shape
from .checks import check_learned
from .learned import fill, state_of
from .plan import Plan, make_plan
from .problems import KeyProblems
from .references import INPUTS, Reference, Template
from .schema import CompiledSpec, Spec
from .state import PredictorState


class Graph(dspy.Module):
    """The program of a spec. Its nodes are attributes, so `named_predictors` gives `NODE` or `NODE.predict`.

    `input_types`: input -> type. `output_types`: the outputs that an example gives labels for. `output_names`: all that
    a prediction holds. `label_types`: the other fields that nodes write, which an example may give labels for.
    """

    def __init__(self, plan: Plan, states: Mapping[str, PredictorState]) -> None:
        """`states`: the learned parameters by node."""
        super().__init__()
        self.input_types = dict(plan.inputs)
        self.output_types = dict(plan.output_types)
        self.output_names = tuple(plan.outputs)
        self.label_types = dict(plan.label_types)
        self._plan = plan
        for step in plan.steps:
            setattr(self, step.name, step.module.build(step.signature, states[step.name]))

    @property
    def columns(self) -> dict[str, dict[str, str]]:
        """Predictor -> field -> the column of the data that holds the field's gold value, where one does.

        An input that is a program input as it is has that column; one that is another node's field, and every output,
        has the column of the program output made of it alone, or else the field's own name where that is one field's
        only.
        """
        labels = {str(source.whole): name for name, source in self._plan.outputs.items() if source.whole is not None}
        named: dict[str, dict[str, str]] = {}
        for name, predictor in self.named_predictors():
            step = next(step for step in self._plan.steps if step.name == name.partition(".")[0].partition("[")[0])
            mine: dict[str, str] = {}
            for field in predictor.signature.fields:
                source = step.sources.get(field)
                whole = source.whole if isinstance(source, Template) else None
                if field in step.output_types:
                    whole = Reference(step.name, field)
                if whole is None:
                    continue
                if whole.node == INPUTS:
                    mine[field] = whole.field
                elif str(whole) in labels:
                    mine[field] = labels[str(whole)]
                elif whole.field in self.label_types:
                    mine[field] = whole.field
            named[name] = mine
        return named

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Run every node and give the program's outputs; without `outputs:` in the spec, all of the last node's.

        Raises `InputError` for an input that the program does not have, or that is missing.
        """
        self._check_inputs(inputs)
        values: dict[str, Any] = {INPUTS: {name: inputs.get(name) for name in self.input_types}}
        for step in self._plan.steps:
            given = {name: self._value(source, step.input_types[name], values) for name, source in step.sources.items()}
            values[step.name] = getattr(self, step.name)(**given)
            missing = next((name for name in step.output_types if name not in values[step.name]), None)
            if missing is not None:
                raise RunError(f"the module of node {step.name!r} gave no {missing!r}")
        return dspy.Prediction(**{name: self._value(s, Any, values) for name, s in self._plan.outputs.items()})

    def _check_inputs(self, inputs: Mapping[str, Any]) -> None:
        unknown = next((name for name in inputs if name not in self.input_types), None)
        if unknown is not None:
            near = nearest(unknown, self.input_types)
            expected = None if near else f"one of {', '.join(self.input_types)}"
            raise InputError(f"the program has no input {unknown!r}", nearest=near, expected=expected)
        for name, kind in self.input_types.items():
            if name not in inputs and not shape(kind).optional:
                raise InputError(f"the input {name!r} is missing", expected=", ".join(self.input_types))

    def _value(self, source: Any, target: Any, values: Mapping[str, Any]) -> Any:
        """What a source gives now. Where text is asked for, any other value is written out."""
        if not isinstance(source, Template):
            return source
        value = source.fill(values, self._write)
        asked = shape(target)
        if asked.kind != "str" or isinstance(value, str) or (value is None and asked.optional) or source.whole is None:
            return value
        return self._write(source.whole, value)

    def _write(self, reference: Reference, value: Any) -> str:
        types = self.input_types if reference.node == INPUTS else self._plan.types_of(reference.node)
        return write(value, types[reference.field])


def build(spec: Spec) -> Graph:
    """The program of a spec, with its learned parameters. Raises `InputError` when there is something wrong with it."""
    if not spec.steps:
        message = "this is a compiled Python program; a spec alone cannot build it"
        hint = "Give its learned parameters to the program with apply_spec(spec, program)."
        raise InputError(message, path=spec.path, hint=hint)
    problems = KeyProblems(spec.path, lambda keys: spec.line(*keys))
    plan = make_plan(spec, problems)
    for step in plan.steps:
        check_learned(step.spec, step.extended, lambda *keys, n=step.name: spec.keys_of(n, *keys), problems)
    problems.stop()
    graph = Graph(plan, {step.name: state_of(step.spec, step.extended, spec.model, spec.folder) for step in plan.steps})
    named = dict(graph.named_predictors())
    for name, learned in (spec.predictors or {}).items():
        if name not in named:
            problems.at(("predictors", name), "the program has no such predictor", nearest=nearest(name, named))
            problems.stop()
        named[name].state = state_of(learned, named[name].signature, spec.model, spec.folder)
    return graph


def to_spec(spec: Spec, states: Mapping[str, PredictorState], compiled: CompiledSpec | None = None) -> Spec:
    """The same spec with the learned parameters `states`, by predictor name, and the `compiled` block filled in.

    `dump_yaml(to_spec(...).to_data())` is the compiled program: read again, it builds an equal program.
    Raises `InputError` for a name that no predictor of the program has.
    """
    graph = build(spec)
    return fill(spec, graph._plan, graph, states, compiled)
