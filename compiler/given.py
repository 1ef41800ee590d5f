"""What a Python call is given: a program, a target, examples, each checked and brought into one form."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import dspy

from ..errors import InputError
from ..metrics import Metric
from ..models.target import DEFAULT_MODEL, Target
from ..models.target import target as open_target
from ..programs.graph import Graph
from ..signatures import field_types
from .data import Examples, from_dspy, load_examples, split
from .evaluator import predictors_of

Program: TypeAlias = dspy.Module
Data = str | PathLike[str] | Examples | Sequence[Any]
MetricLike = str | Mapping[str, Any] | Sequence[Any] | Callable[..., Any] | Metric


def check_program(program: Any) -> None:
    """Raise `InputError` for what is no program; its class is what is given by mistake."""
    if not isinstance(program, dspy.Module):
        expected = f"an instance, {program.__name__}()" if isinstance(program, type) else "a dspy.Module"
        raise InputError(f"{program!r} is no program", expected=expected)


def opened_target(target: Target | str | None) -> Target:
    """The target, opened where it is a model's name; the default model without one. Raises `InputError`."""
    if target is None or isinstance(target, str | PathLike):
        return open_target(target or DEFAULT_MODEL)
    if not isinstance(target, Target):
        raise InputError(f"{target!r} is no target", expected="cuecard.target(...), or a model's name")
    return target


def checked_examples(data: Data, program: Program) -> Examples:
    """Examples, checked against what is known of the program.

    Of a Python program, which fields are inputs is what `dspy.Example.with_inputs` says.
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, str | os.PathLike):
        inputs, outputs, extra = field_types_of(program)
        return load_examples(Path(data), inputs=inputs, outputs=outputs, extra=extra)
    listed = list(data)
    if not listed:
        return Examples(())
    if isinstance(program, Graph):
        return from_dspy(listed, inputs=program.input_types, outputs=program.output_types, extra=program.label_types)
    return from_dspy(listed)


def field_types_of(program: Program) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Inputs, outputs and the fields between them of a program, for reading a file of examples.

    Of a Python program with several predictors, nothing says which are which.
    """
    if isinstance(program, Graph):
        return program.input_types, program.output_types, program.label_types
    predictors = predictors_of(program)
    if len(predictors) != 1:
        raise InputError(
            "a file of examples does not say which fields are the inputs of a Python program",
            hint="Give a list of dspy.Example(...).with_inputs(...).",
        )
    signature = next(iter(predictors.values())).signature
    types = field_types(signature)
    return (
        {name: types[name] for name in signature.input_fields},
        {name: types[name] for name in signature.output_fields if name != "reasoning"},
        {},
    )


def split_dev(train: Examples, seed: int) -> tuple[Examples, Examples]:
    """A trainset in two halves, train and dev."""
    if len(train) < 4:
        return train, train[:0]
    return split(train, seed, (0.5, 0.5))  # type: ignore[return-value]
