"""From a spec to a plan: every node with its module, its signature and the sources of its inputs, in running order.

What the keys say about each other is checked on the way: modules and references exist, types fit, inputs are
complete, no node waits for itself. What is wrong is noted and not raised, so that one look shows everything.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from ..errors import InputError, nearest
from ..signatures import field_types, signature
from .linking import Linker, Types, reads
from .modules import ModuleKind, module_named
from .ordering import running_order
from .predictor import Predictor
from .problems import KeyProblems, dotted
from .references import INPUTS, Reference, Template
from .schema import InputSpec, NodeSpec, Spec

GRAPH_FACE = frozenset(
    {
        "input_types",
        "output_types",
        "output_names",
        "label_types",
        "columns",
        "forward",
        "aforward",
        "callbacks",
        "history",
        "lm",
        INPUTS,
    }
)
"""Attributes of a built graph, beside those of every `dspy.Module`; no node can have such a name."""

UNKNOWN = ModuleKind(Predictor)
"""Stands for a module that does not exist, so that the rest of its node can be checked."""


@dataclass(frozen=True)
class Step:
    """One node.

    `signature` is the user's, `extended` the one its predictor has; `sources` give its inputs: a `Template`, or a
    constant.
    """

    name: str
    spec: NodeSpec
    module: ModuleKind
    signature: type[dspy.Signature]
    extended: type[dspy.Signature]
    sources: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_types(self) -> Types:
        """Input field -> type."""
        types = field_types(self.signature)
        return {name: types[name] for name in self.signature.input_fields}

    @property
    def output_types(self) -> Types:
        """Output field -> type, what the module adds included."""
        types = field_types(self.extended)
        return {name: types[name] for name in self.extended.output_fields}


@dataclass(frozen=True)
class Plan:
    """A program ready to be built. `steps` are in running order, and in the file's order wherever that leaves a choice.

    `outputs` make the program's outputs: a `Template`, or a constant. `output_types` are the types of those that an
    example gives labels for; `label_types` those of all other fields that nodes write (fields between the nodes, what
    a module adds), which an example may give labels for.
    """

    inputs: Types
    steps: tuple[Step, ...]
    outputs: Mapping[str, Template]
    output_types: Types
    label_types: Types
    warnings: tuple[str, ...] = ()

    def types_of(self, node: str) -> Types:
        """Output field -> type of one node."""
        return next(step.output_types for step in self.steps if step.name == node)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self  # nothing in a plan changes after it is made


def make_plan(spec: Spec, problems: KeyProblems) -> Plan:
    """The plan of a spec whose program is `nodes` or one `signature`.

    What is wrong goes to `problems`; the plan is then only good for more checks.
    """
    made = {name: _step(spec, name, node, problems) for name, node in spec.steps.items()}
    steps = {name: step for name, step in made.items() if step}
    inputs = _program_inputs(spec, steps, problems)
    wrong = {dotted(keys[-1:] if keys[0] == "nodes" else keys) for keys in problems.dropped if len(keys) <= 2}
    wrong |= {name for name, step in made.items() if step is None or step.module is UNKNOWN}
    wrong |= {f"{INPUTS}.{name}" for name in (spec.inputs or {}) if name not in inputs}
    linker = Linker({INPUTS: inputs, **{name: step.output_types for name, step in steps.items()}}, wrong, problems)
    steps = {name: replace(step, sources=_sources(spec, step, linker)) for name, step in steps.items()}
    order = _order(spec, steps, problems)
    outputs = _outputs(spec, order, linker)
    gold = {name: _label_type(source, inputs, steps) for name, source in outputs.items()}
    output_types = {name: kind for name, kind in gold.items() if kind is not None}
    between = _between(steps, outputs, {*inputs, *output_types})
    return Plan(inputs, tuple(order), outputs, output_types, between, _warnings(spec, order, inputs, outputs))


def _step(spec: Spec, name: str, node: NodeSpec, problems: KeyProblems) -> Step | None:
    """The node without its sources; None where its signature is wrong."""
    if spec.nodes is not None:
        _check_name(name, problems)
    module = UNKNOWN
    try:
        module = module_named(node.module)
    except InputError as error:
        problems.raised_at(spec.keys_of(name, "module"), error)
    described = spec.inputs if spec.nodes is None and spec.inputs else {}
    descriptions = {key: given.description for key, given in described.items() if given.description}
    try:
        typed = signature(node.signature, node.instructions, descriptions={**descriptions, **node.fields})
        return Step(name, node, module, typed, module.extend(typed))
    except InputError as error:
        problems.raised_at(spec.keys_of(name, "signature"), error)
        return None


def _check_name(name: str, problems: KeyProblems) -> None:
    if name in GRAPH_FACE or hasattr(dspy.Module, name):
        problems.at(("nodes", name), f"{name!r} is an attribute of every program", hint="Rename the node.")
    elif not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        problems.at(("nodes", name), f"{name!r} is no name", expected="letters, digits and '_', a letter first")


def _program_inputs(spec: Spec, steps: Mapping[str, Step], problems: KeyProblems) -> Types:
    if spec.inputs is not None:
        types = {name: _input_type(name, declared, problems) for name, declared in spec.inputs.items()}
        return {name: kind for name, kind in types.items() if kind is not None}
    if spec.nodes is not None:
        problems.at(("inputs",), "the key 'inputs' is missing", expected="the program's inputs, {NAME: TYPE}")
        problems.dropped.add(("inputs",))
        return {}
    return {name: kind for step in steps.values() for name, kind in step.input_types.items()}


def _input_type(name: str, declared: InputSpec, problems: KeyProblems) -> Any:
    """The type of a program's input, read as a field of a signature; None where it is wrong."""
    output = "answer" if name != "answer" else "text"
    try:
        typed = signature({"inputs": {name: {"type": declared.type}}, "outputs": {output: "str"}})
    except InputError as error:
        problems.raised_at(("inputs", name), error)
        return None
    return field_types(typed)[name]


def _sources(spec: Spec, step: Step, linker: Linker) -> dict[str, Any]:
    types, problems = step.input_types, linker.problems
    given, hint = step.spec.inputs, None
    if given is None:
        given = {name: str(Reference(INPUTS, name)) for name in types}
        hint = "Without 'inputs', a node reads the program's inputs of the same names." if spec.nodes else None
    for name in [name for name in given if name not in types]:
        near = nearest(name, types)
        expected = None if near else f"one of {', '.join(types)}"
        message = f"the signature has no input {name!r}"
        problems.at(spec.keys_of(step.name, "inputs", name), message, nearest=near, expected=expected)
    for name in [name for name in types if name not in given]:
        add = f'Add {name}: "{Reference(INPUTS, name)}"' if name in linker.fields[INPUTS] else None
        problems.at(spec.keys_of(step.name, "inputs"), f"the input {name!r} is missing", hint=add)
    return {
        name: linker.source(spec.keys_of(step.name, "inputs", name), given[name], kind, hint)
        for name, kind in types.items()
        if name in given
    }


def _order(spec: Spec, steps: Mapping[str, Step], problems: KeyProblems) -> list[Step]:
    order, circles = running_order({name: reads(step.sources.values()) for name, step in steps.items()})
    for circle in circles:
        sources = steps[circle[0]].sources
        place = next(name for name, source in sources.items() if circle[1] in reads([source]))
        message = f"the nodes wait for each other: {' -> '.join(circle)}"
        problems.at(spec.keys_of(circle[0], "inputs", place), message)
    return [steps[name] for name in order]


def _outputs(spec: Spec, order: list[Step], linker: Linker) -> dict[str, Template]:
    if spec.outputs is None:
        return {name: Template((Reference(step.name, name),)) for step in order[-1:] for name in step.output_types}
    if not spec.outputs:
        linker.problems.at(("outputs",), "the program has no outputs", expected="at least one, or no key 'outputs'")
    for name in spec.outputs:
        if not name.isidentifier():
            linker.problems.at(("outputs", name), f"{name!r} is no name", expected="letters, digits and '_'")
    sources = {name: linker.source(("outputs", name), text, str) for name, text in spec.outputs.items()}
    return {n: source if isinstance(source, Template) else Template((source or "",)) for n, source in sources.items()}


def _label_type(source: Template, inputs: Types, steps: Mapping[str, Step]) -> Any:
    """The type of an output that an example gives a label for; None for what a module adds to the signature."""
    if source.whole is None:
        return str
    node, name = source.whole.node, source.whole.field
    if node == INPUTS:
        return inputs.get(name)
    return field_types(steps[node].signature).get(name) if node in steps else None


def _between(steps: Mapping[str, Step], outputs: Mapping[str, Template], taken: set[str]) -> Types:
    """Column -> type for the fields that nodes write: an output's name, or else the field's own.

    A name that stands for two types is left out.
    """
    names = {(source.whole.node, source.whole.field): name for name, source in outputs.items() if source.whole}
    found: dict[str, list[Any]] = {}
    for step in steps.values():
        for name, kind in step.output_types.items():
            found.setdefault(names.get((step.name, name), name), []).append(kind)
    return {
        name: kinds[0] for name, kinds in found.items() if name not in taken and kinds.count(kinds[0]) == len(kinds)
    }


def _warnings(spec: Spec, order: list[Step], inputs: Types, outputs: Mapping[str, Template]) -> tuple[str, ...]:
    used = set(reads(outputs.values()))
    for step in reversed(order):
        used |= set(reads(step.sources.values())) if step.name in used else set()
    sources = [source for step in order for source in step.sources.values()] + list(outputs.values())
    templates = [source for source in sources if isinstance(source, Template)]
    read = {ref.field for template in templates for ref in template.references if ref.node == INPUTS}
    found = [(spec.keys_of(step.name), "nothing reads this node's outputs") for step in order if step.name not in used]
    found += [(("inputs", name), "nothing reads this input") for name in inputs if name not in read]
    return tuple(
        str(InputError(message, path=spec.path, line=spec.line(*keys), field=dotted(keys))) for keys, message in found
    )
