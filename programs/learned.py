"""Learned parameters between a spec and a program's predictors: taken from the one, filled into the other.

Predictors go by their names in the program: `NODE` for `module: predict`, `NODE.predict` for `module:
chain_of_thought`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dspy
from pydantic_core import to_jsonable_python

from ..errors import InputError, nearest
from ..models.engine import Decoding
from ..signatures import check_value, dump, field_types
from ..signatures import signature as typed_signature
from .checks import shows
from .heads import with_heads
from .plan import Plan
from .predictor import Predictor, adopt
from .schema import CompiledSpec, ModelSpec, NodeSpec, PredictorSpec, Spec
from .state import NearestDemos, PredictorState, ReadOut

Signature = type[dspy.Signature]


def state_of(
    learned: NodeSpec | PredictorSpec, signature: Signature, model: ModelSpec | None = None, folder: Path | None = None
) -> PredictorState:
    """The learned parameters that a spec gives to a predictor with this signature. Demos come out typed.

    folder: where the heads' files lie; without it they are not read, and the predictor can be shown but not called.
    Decoding settings that are left open come from the model's `options`, then from the defaults.
    """
    settings: dict[str, Any] = {}
    for layer in (model.options if model else None, learned.decoding):
        settings |= layer.model_dump(exclude_unset=True) if layer else {}
    types = field_types(signature)

    def typed(demos: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
        return tuple({key: check_value(value, types[key], field=key) for key, value in d.items()} for d in demos)

    nearest = learned.nearest
    return PredictorState(
        instructions=learned.instructions,
        demos=typed(learned.demos or ()),
        nearest=nearest and NearestDemos(count=nearest.count, pool=typed(nearest.pool)),
        format="chat" if learned.format is None else learned.format,
        readout=with_heads(learned.readout or ReadOut(), folder),
        decoding=Decoding(**settings),
    )


def keys_of(state: PredictorState, signature: Signature) -> dict[str, Any]:
    """The keys of a node or predictor that hold `state`, complete, so that no default can change what they mean.

    Demos lose fields that the signature does not have; demos that no format would show are left out. Values are plain
    and whole: a model's defaults are written out, since the signature that is kept beside them does not have them.
    """

    def plain(demos: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
        kept = [{key: to_jsonable_python(demo[key]) for key in signature.fields if key in demo} for demo in demos]
        return tuple(demo for demo in kept if shows(demo, signature))

    nearest = state.nearest
    return {
        "instructions": signature.instructions if state.instructions is None else state.instructions,
        "format": state.format,
        "readout": state.readout if state.readout.model_fields_set else ReadOut(kind=state.readout.kind),
        "decoding": Decoding(**state.decoding.model_dump()),
        "demos": plain(state.demos),
        "nearest": nearest and NearestDemos(count=nearest.count, pool=plain(nearest.pool)),
    }


def fill(
    spec: Spec, plan: Plan, program: dspy.Module, states: Mapping[str, PredictorState], compiled: CompiledSpec | None
) -> Spec:
    """The spec with `states`, by predictor name, and `compiled` in it; `program` was built from it by `plan`.

    A node keeps the state of its only predictor; those of a node that has several stand under `predictors`.
    Raises `InputError` for a name that no predictor of the program has.
    """
    named = dict(program.named_predictors())
    nodes = {step.name: step.spec for step in plan.steps}
    update: dict[str, Any] = {} if compiled is None else {"compiled": compiled}
    predictors = dict(spec.predictors or {})
    for name, state in states.items():
        if name not in named:
            raise InputError(f"the program has no predictor {name!r}", nearest=nearest(name, named))
        node = name.partition(".")[0].partition("[")[0]
        learned = keys_of(state, named[name].signature)
        if name in (node, f"{node}.predict"):
            nodes[node] = nodes[node].model_copy(update=learned)
            update |= learned if spec.nodes is None else {}
        else:
            predictors[name] = PredictorSpec(**learned)
    if spec.nodes is not None:
        update["nodes"] = {name: nodes[name] for name in spec.nodes}
    if predictors:
        update["predictors"] = predictors
    return spec.model_copy(update=update)


def python_spec(name: str, program: dspy.Module, compiled: CompiledSpec | None = None, **keys: Any) -> Spec:
    """The spec of a compiled Python program: each predictor's signature and learned parameters, and other `keys`."""
    predictors = {
        key: PredictorSpec(signature=_fields(predictor.signature), **keys_of(predictor.state, predictor.signature))
        for key, predictor in _predictors(adopt(program)).items()
    }
    return Spec(name=name, predictors=predictors, **({"compiled": compiled} if compiled else {}), **keys)


def apply_spec(spec: Spec, program: dspy.Module) -> dspy.Module:
    """A copy of a Python program with the learned parameters that `python_spec` kept.

    Raises `InputError` when the program's predictors, or their signatures, are not those of the spec.
    """
    kept = spec.predictors or {}
    program = adopt(program)
    named = _predictors(program)
    for name in [*kept, *named]:
        if name not in named or name not in kept:
            has, lacks = ("compiled file", "program") if name in kept else ("program", "compiled file")
            near = nearest(name, named if name in kept else kept)
            line = spec.line("predictors", name)
            message = f"the {lacks} has no predictor {name!r}, which the {has} has"
            raise InputError(message, path=spec.path, line=line, nearest=near, hint="Compile the program again.")
    for name, predictor in named.items():
        if json.dumps(kept[name].signature) != json.dumps(_fields(predictor.signature)):
            raise InputError(
                f"the signature of predictor {name!r} is no longer the one it was compiled with",
                path=spec.path,
                line=spec.line("predictors", name, "signature"),
                hint="Compile the program again.",
            )
        predictor.state = state_of(kept[name], predictor.signature, folder=spec.folder)
    return program


def python_predictors(spec: Spec) -> dict[str, Predictor]:
    """The predictors of a compiled Python program, which `python_spec` kept without the program. Heads are not read."""
    found = {}
    for name, learned in (spec.predictors or {}).items():
        assert learned.signature is not None, "reading the spec has asked for it"
        typed = typed_signature(learned.signature, learned.instructions)
        found[name] = Predictor(typed, state_of(learned, typed, spec.model))
    return found


def narrowed(predictors: Mapping[str, Predictor], only: str | None) -> dict[str, Predictor]:
    """The predictors, or the one that is called `only`. Raises `InputError` where none is."""
    if only is None:
        return dict(predictors)
    if only not in predictors:
        expected, near = f"one of {', '.join(predictors)}", nearest(only, predictors)
        raise InputError(f"found {only!r}", field="--predictor", expected=expected, nearest=near)
    return {only: predictors[only]}


def _predictors(program: dspy.Module) -> dict[str, Predictor]:
    """Those of the program's predictors that have learned parameters: subclasses of `dspy.Predict` have none."""
    return {name: found for name, found in program.named_predictors() if isinstance(found, Predictor)}


def _fields(signature: Signature) -> dict[str, Any]:
    """The signature's mapping form, without the instructions, which are a learned parameter."""
    return {key: value for key, value in dump(signature).items() if key != "instructions"}
