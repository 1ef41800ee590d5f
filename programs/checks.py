"""Checks of a spec beyond its graph: learned parameters fit their signatures, tests fit the program, paths stay inside.

What is wrong is noted and not raised, so that one look shows everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dspy

from ..errors import InputError, nearest
from ..files import nearest_file
from ..models.address import is_address, shown
from ..signatures import check_value, field_types, signature
from ..signatures.types import shape
from .channel import labelled_outputs, texts_of
from .formats.registry import format_named
from .plan import Plan
from .problems import KeyProblems, Keys
from .schema import LOCAL_KEYS, SERVER_KEYS, Learned, ModelSpec, PredictorSpec, Spec
from .schema_tests import AssertSpec, TestSpec
from .spans import is_text, sources_of
from .state import ReadOut
from .votes import generates

NODE_KEYS = ("module", "fields", "instructions", "format", "readout", "decoding", "demos", "nearest")


def check_form(spec: Spec, problems: KeyProblems) -> None:
    """A spec holds one program: `nodes`, one `signature`, or the `predictors` of a Python program. Its model is one
    held in process, or one on a server.
    """
    if spec.model is not None:
        _check_model(spec.model, problems)
    given = [key for key in ("nodes", "signature") if getattr(spec, key) is not None or (key,) in problems.dropped]
    if not given and spec.predictors is None and ("predictors",) not in problems.dropped:
        problems.at((), "the program is missing", expected="'nodes', or 'signature' for a program of one step")
    if len(given) > 1:
        problems.at(("signature",), "found 'signature' beside 'nodes'", expected="one of them")
    if spec.nodes is not None:
        if not spec.nodes and not any(keys[0] == "nodes" for keys in problems.dropped):
            problems.at(("nodes",), "the program has no nodes", expected="at least one")
        for key in [key for key in NODE_KEYS if key in spec.model_fields_set]:
            problems.at((key,), "this key belongs inside a node", hint=f"Move it to nodes.NAME.{key}.")


def _check_model(model: ModelSpec, problems: KeyProblems) -> None:
    """The keys of `model` belong together. Nobody is asked whether there is such a model, or such a server."""

    def given(key: str) -> bool:
        return getattr(model, key) is not None or ("model", key) in problems.dropped

    if not given("server"):
        if not given("id"):
            problems.at(("model",), "the key 'id' is missing", expected="it, or 'server'")
        for key in filter(given, SERVER_KEYS):
            problems.at(("model", key), f"found {key!r} without 'server'", expected="server: http://HOST:PORT")
        if model.id is not None and is_address(model.id):
            problems.at(("model", "id"), "found an address", expected=f"server: {shown(model.id)}")
        return
    for key in filter(given, LOCAL_KEYS):
        problems.at(("model", key), f"found {key!r} beside 'server'", hint=f"The server has its own {key}.")
    if model.server is not None and not _is_server(model.server):
        hint = None if "://" in model.server else f"Write http://{model.server}"
        message = f"found {shown(model.server)!r}"
        problems.at(("model", "server"), message, expected="http://HOST:PORT or https://HOST", hint=hint)


def _is_server(address: str) -> bool:
    try:
        return is_address(address) and bool(urlsplit(address).hostname) and (urlsplit(address).port or 1) > 0
    except ValueError:  # a port that is no number
        return False


def check_learned(
    learned: Learned, signature: type[dspy.Signature], keys_of: Callable[..., Keys], problems: KeyProblems
) -> None:
    """Format, read-out and demos fit a predictor with this signature. `keys_of` gives the path of one of its keys."""
    if learned.format is not None:
        try:
            format_named(learned.format)
        except InputError as error:
            problems.raised_at(keys_of("format"), error)
    _check_readout(learned, signature, keys_of, problems)
    for index, demo in enumerate(learned.demos or ()):
        _check_demo(demo, signature, keys_of("demos", index), problems)
    for index, demo in enumerate(learned.nearest.pool if learned.nearest else ()):
        _check_demo(demo, signature, keys_of("nearest", "pool", index), problems)


def _check_readout(
    learned: Learned, signature: type[dspy.Signature], keys_of: Callable[..., Keys], problems: KeyProblems
) -> None:
    if learned.readout is None:
        return
    finite = labelled_outputs(signature)
    if learned.readout.chooses and not finite:
        problems.at(
            keys_of("readout"),
            f"the read-out {learned.readout.kind!r} needs an output with a finite set of values",
            expected="a Literal, an Enum or a bool among the outputs",
        )
    if learned.readout.kind == "channel" and finite:
        try:
            texts_of(signature, {})
        except InputError as error:
            problems.raised_at(keys_of("readout"), error)
    if learned.readout.per_label and learned.readout.kind != "channel":
        message = f"found 'per_label' beside the read-out {learned.readout.kind!r}"
        problems.at(keys_of("readout", "per_label"), message, expected="kind: channel")
    if learned.readout.kind == "span" or learned.readout.sources:
        try:
            sources_of(signature, learned.readout.sources)
        except InputError as error:
            problems.raised_at(keys_of("readout"), error)
    types = field_types(signature)
    texts = [name for name in signature.output_fields if is_text(types[name])]
    for name in learned.readout.span.fields if learned.readout.span else ():
        if name not in texts:
            keys, near = keys_of("readout", "span", "fields", name), nearest(name, texts)
            expected = None if near else f"one of {', '.join(texts)}" if texts else "none"
            problems.at(keys, "no output that is a text has this name", expected=expected, nearest=near)
    for name, offsets in (learned.readout.calibration.offsets if learned.readout.calibration else {}).items():
        keys = keys_of("readout", "calibration", "offsets", name)
        if _has_labels(name, finite, keys, problems):
            for label in [label for label in offsets if label not in finite[name]]:
                near = nearest(label, finite[name])
                valid = None if near else f"one of {', '.join(finite[name])}"
                problems.at((*keys, label), "no such label", expected=valid, nearest=near)
    _check_heads(learned.readout, finite, keys_of, problems)
    if learned.readout.votes and not generates(signature, learned.readout.kind, learned.readout.heads):
        message = f"the read-out {learned.readout.kind!r} draws nothing here, so there is nothing to vote on"
        problems.at(keys_of("readout", "votes"), message, hint="Take `votes` out.")


def _has_labels(name: str, finite: Mapping[str, Sequence[str]], keys: Keys, problems: KeyProblems) -> bool:
    """Whether `name` is one of the outputs with labels, `finite`; noted where it is not."""
    if name in finite:
        return True
    expected = f"one of {', '.join(finite)}" if finite else "none"
    problems.at(keys, "no output with labels has this name", expected=expected, nearest=nearest(name, finite))
    return False


def _check_heads(
    readout: ReadOut, finite: Mapping[str, Sequence[str]], keys_of: Callable[..., Keys], problems: KeyProblems
) -> None:
    """Heads belong to the read-out `head`, matrices to `choice` and `channel`; all to outputs with labels, of which
    they know just those that the output has.
    """
    all_heads = keys_of("readout", "heads")
    told = any(keys[: len(all_heads)] == all_heads for keys in problems.dropped)
    if readout.kind == "head" and not readout.heads and not told:
        problems.at(keys_of("readout"), "the read-out 'head' has no 'heads'", expected="a head, as a compile writes it")
    if not (readout.kind == "head" or readout.chooses) and readout.heads:
        message = f"found 'heads' beside the read-out {readout.kind!r}"
        problems.at(all_heads, message, expected="kind: head")
    for name, head in readout.heads.items():
        keys = keys_of("readout", "heads", name)
        if (readout.kind == "head" or readout.chooses) and head.is_matrix != readout.chooses:
            message = f"the pooling {head.pooling!r} does not go with the read-out {readout.kind!r}"
            expected = "scores" if readout.chooses else "last or mean"
            problems.at((*keys, "pooling"), message, expected=expected)
        elif head.is_matrix != (head.layer is None):
            expected = "none, with the pooling 'scores'" if head.is_matrix else "the number of a layer, from 1"
            problems.at((*keys, "layer"), f"found the layer {head.layer}", expected=expected)
        if not _has_labels(name, finite, keys, problems):
            continue
        for place, label in enumerate(head.labels):
            if label not in finite[name]:
                near = nearest(label, finite[name])
                valid = None if near else f"one of {', '.join(finite[name])}"
                message = f"the output {name!r} has no label {label!r}"
                problems.at((*keys, "labels", place), message, expected=valid, nearest=near)
        missing = [label for label in finite[name] if label not in head.labels]
        if missing:
            message = f"the head does not know the label {missing[0]!r} of the output {name!r}"
            problems.at((*keys, "labels"), message, hint="Compile the program again.")


def _check_demo(demo: Mapping[str, Any], signature: type[dspy.Signature], keys: Keys, problems: KeyProblems) -> None:
    types = field_types(signature)
    for name, value in demo.items():
        if name not in types:
            near = nearest(name, types)
            expected = None if near else f"one of {', '.join(types)}"
            problems.at((*keys, name), "the signature has no such field", expected=expected, nearest=near)
            continue
        try:
            check_value(value, types[name], field=name)
        except InputError as error:
            problems.raised_at((*keys, name), error)
    if not shows(demo, signature):
        last = list(signature.output_fields)[-1]
        problems.at(keys, "the demo shows nothing", expected=f"at least one input, and the last output, {last!r}")


def shows(demo: Mapping[str, Any], signature: type[dspy.Signature]) -> bool:
    """Whether formats show this demo: it has the last output, and an input if there are any."""
    inputs = signature.input_fields
    return list(signature.output_fields)[-1] in demo and (not inputs or any(name in demo for name in inputs))


def check_predictors(predictors: Mapping[str, PredictorSpec], problems: KeyProblems) -> None:
    """Every predictor of a Python program has a signature that fits its learned parameters."""
    for name, predictor in predictors.items():
        if predictor.signature is None:
            problems.at(("predictors", name), "the key 'signature' is missing")
            continue
        try:
            typed = signature(predictor.signature, predictor.instructions)
        except InputError as error:
            problems.raised_at(("predictors", name, "signature"), error)
            continue
        check_learned(predictor, typed, lambda *keys, name=name: ("predictors", name, *keys), problems)


def check_search(spec: Spec, problems: KeyProblems) -> None:
    """The formats that are searched exist."""
    for index, name in enumerate(() if spec.optimize.search.formats == "auto" else spec.optimize.search.formats):
        try:
            format_named(name)
        except InputError as error:
            problems.raised_at(("optimize", "search", "formats", index), error)


def check_tests(spec: Spec, plan: Plan | None, problems: KeyProblems) -> None:
    """The spec's tests fit its program, as far as that could be read."""
    if plan is None or len(plan.steps) < len(spec.steps):
        check_test_list(spec.tests, None, None, problems)
        return
    inputs = plan.inputs if len(plan.inputs) >= len(spec.inputs or ()) else None
    check_test_list(spec.tests, inputs, plan.outputs, problems)


def check_test_list(
    tests: Sequence[TestSpec],
    inputs: Mapping[str, Any] | None,
    outputs: Iterable[str] | None,
    problems: KeyProblems,
) -> None:
    """Each test is of one kind, and names inputs and outputs that the program has (None: they are not known)."""
    names: dict[str, int] = {}
    for index, test in enumerate(tests):
        keys = ("tests", index)
        if test.name in names:
            problems.at((*keys, "name"), f"the name {test.name!r} stands twice, first in tests[{names[test.name]}]")
        names.setdefault(test.name, index)
        _check_kind(test, keys, problems)
        if test.inputs is not None and inputs is not None:
            _check_inputs(test.inputs, inputs, (*keys, "inputs"), problems)
        if outputs is not None:
            _check_fields(test.conditions or (), tuple(outputs), (*keys, "assert"), problems)


def _check_kind(test: TestSpec, keys: Keys, problems: KeyProblems) -> None:
    """The keys of a test are those of one kind: a case, a file of cases, or a gate."""
    given = test.model_fields_set
    of_gate = {"data", "metric", "at_least", "baseline", "tolerance"} & given
    if "cases" in given:
        for key in sorted({"inputs"} & given | of_gate):
            problems.at((*keys, key), f"found {key!r} beside 'cases'", hint="Make them two tests.")
        return
    case = test.inputs is not None and test.conditions
    gate = test.data is not None and not (test.at_least is None and test.baseline is None)
    of_case = {"inputs", "conditions", "threshold"} & given
    if not ((case and not of_gate) or (gate and not of_case)):
        kinds = "either 'inputs' and 'assert', or 'data' and one of 'at_least' and 'baseline'"
        problems.at(keys, "the test is not complete, or of two kinds", expected=kinds)
    elif test.tolerance is not None and test.baseline is None:
        problems.at((*keys, "tolerance"), "found 'tolerance' without 'baseline'", expected="both, or neither")


def _check_fields(conditions: Sequence[AssertSpec], outputs: Sequence[str], keys: Keys, problems: KeyProblems) -> None:
    for position, condition in enumerate(conditions):
        if condition.field is not None and condition.field not in outputs:
            near = nearest(condition.field, outputs)
            expected = None if near else f"one of {', '.join(outputs)}"
            message = f"the program has no output {condition.field!r}"
            problems.at((*keys, position, "field"), message, expected=expected, nearest=near)
        _check_fields(condition.assertions or (), outputs, (*keys, position, "assert"), problems)


def _check_inputs(inputs: Mapping[str, Any], types: Mapping[str, Any], keys: Keys, problems: KeyProblems) -> None:
    for name, value in inputs.items():
        if name not in types:
            near = nearest(name, types)
            expected = None if near else f"one of {', '.join(types)}"
            problems.at((*keys, name), f"the program has no input {name!r}", expected=expected, nearest=near)
            continue
        try:
            check_value(value, types[name], field=name)
        except InputError as error:
            problems.raised_at((*keys, name), error)
    for name, kind in types.items():
        if name not in inputs and not shape(kind).optional:
            problems.at(keys, f"the input {name!r} is missing")


def check_paths(spec: Spec, problems: KeyProblems, *, allow_outside: bool, check_files: bool) -> None:
    """Files that the spec names lie in its folder (links followed), unless `allow_outside`; data exist, if asked."""
    for keys, name in _paths(spec):
        check_path(spec.folder, keys, name, problems, allow_outside=allow_outside, check_files=check_files)


def check_path(
    folder: Path, keys: Keys, name: str, problems: KeyProblems, *, allow_outside: bool, check_files: bool
) -> None:
    """The path `name`, which stands at `keys` of a file in `folder`, lies in it, and the file exists, if asked."""
    path, whole = Path(name), folder.resolve()
    outside = bool(path.anchor) or ".." in path.parts or not (whole / path).resolve().is_relative_to(whole)
    if outside and not allow_outside:
        hint = "Use a path inside it, or allow this with --allow-outside if you trust the spec."
        problems.at(keys, f"{name!r} leads out of the spec's folder", hint=hint)
    elif check_files and keys[-1] != "baseline" and not (folder / path).is_file():
        near = nearest_file(folder / path)
        meant = None if near is None else str(path.with_name(Path(near).name))
        problems.at(keys, f"no such file: {name}", nearest=meant)


def _paths(spec: Spec) -> Iterator[tuple[Keys, str]]:
    if spec.data is not None:
        for split in ("train", "dev", "test"):
            if getattr(spec.data, split) is not None:
                yield ("data", split), getattr(spec.data, split)
    yield from paths_of_tests(spec.tests)


def paths_of_tests(tests: Sequence[TestSpec]) -> Iterator[tuple[Keys, str]]:
    """The files that tests name, by their key paths."""
    for index, test in enumerate(tests):
        for key in ("data", "cases", "baseline"):
            if getattr(test, key) is not None:
                yield ("tests", index, key), getattr(test, key)
