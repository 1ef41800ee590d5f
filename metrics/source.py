"""What a metric is, as plain data: its class and its options, the same in every process and on every machine.

A name does not say what was measured: two judges are both called `judge`, whatever their rubrics. So a run's
fingerprint and a baseline hold a metric's source instead. It is read off the metric itself: the fields of a dataclass,
the public attributes of any other metric (which keeps no state, see `Metric`), the metrics of a weighted sum in turn.
Options at their defaults are left out, so that one that a later version adds changes nothing. Code that is not ours, a
user's function or class, stands as its text. No address, no folder and nothing that is opened while a metric works
comes into it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Any

from .base import Metric

_OURS = __name__.partition(".")[0]
_NO_OPTIONS = ("models", "own_interval")  # where a judge finds its model, which `model` names; what follows from parts
_OF_FILE = ("sha256", "values", "model")


def source_of(metric: Any) -> Any:
    """What a metric is, as JSON has it: a `Metric`, a function, or a spec that holds some; a name stays a name.

    >>> source_of(CalibrationError(bins=5))
    {'class': 'CalibrationError', 'bins': 5}
    """
    return _plain(metric, ())


def source_digest(metric: Metric) -> str:
    """A hash of a metric's source, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(source_of(metric), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    """`value` as JSON has it. `above`: the objects that it stands in, by their ids."""
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if id(value) in above:
        return "(itself)"

    def inner(part: Any) -> Any:
        return _plain(part, (*above, id(value)))

    if isinstance(value, Mapping):
        return {str(key): inner(part) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(inner, value), key=lambda part: json.dumps(part, sort_keys=True))
    if isinstance(value, list | tuple):
        return [inner(part) for part in value]
    if isinstance(value, PurePath):
        return value.name  # its folder differs from machine to machine
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, type):
        return _code(value)
    if isinstance(value, partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if inspect.isroutine(value):
        return _routine(value, inner)
    if hasattr(value, "named_predictors"):
        return _program(value)
    return _object(value, inner)


def _object(value: Any, inner: Callable[[Any], Any]) -> dict[str, Any]:
    """An object: its class, its class's code where that is not ours, and its options."""
    kind = type(value)
    ours = kind.__module__.partition(".")[0] == _OURS
    found = {"class": kind.__qualname__} if ours else {"class": kind.__qualname__, "code": _code(kind)}
    if hasattr(value, "model_dump"):  # pydantic's
        dumped: dict[str, Any] = value.model_dump(mode="json", exclude_defaults=True)
        return {**found, **dumped}
    defaults, given = _defaults(kind), _options(value)
    return found | {name: inner(part) for name, part in given.items() if not _same(part, defaults.get(name))}


def _options(value: Any) -> dict[str, Any]:
    """What decides how an object works; of one that may keep a state only what it was made with."""
    if dataclasses.is_dataclass(value):
        there = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        there = getattr(value, "__dict__", {})
    if not isinstance(value, Metric) and not dataclasses.is_dataclass(value):
        there = {name: there[name] for name in _parameters(type(value)) if name in there}
    if "sha256" in there:  # it was read from a file, whose folder is not the same everywhere
        there = {name: part for name, part in there.items() if name in _OF_FILE}
    return {name: part for name, part in there.items() if _is_option(name, part, type(value))}


def _is_option(name: str, value: Any, kind: type) -> bool:
    """Whether an attribute is public, or what the class was given under that name; a program counts in any case."""
    given = not name.startswith("_") or name.lstrip("_") in _parameters(kind)
    return hasattr(value, "named_predictors") or (given and name not in _NO_OPTIONS)


def _defaults(kind: type) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        made = {f.name: f.default_factory() for f in dataclasses.fields(kind) if callable(f.default_factory)}
        return {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING} | made
    empty = inspect.Parameter.empty
    return {name: each.default for name, each in _parameters(kind).items() if each.default is not empty}


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(kind).parameters
    except (TypeError, ValueError):  # a class of C, which does not say
        return {}


def _same(value: Any, default: Any) -> bool:
    """Whether an option says nothing: it is at its default. Lists and tuples are alike."""
    if isinstance(value, list | tuple) and isinstance(default, list | tuple):
        return list(value) == list(default)
    return type(value) is type(default) and bool(value == default)


def _program(program: Any) -> dict[str, Any]:
    """A program that a metric asks: what its predictors are given."""
    found: dict[str, Any] = {"class": type(program).__qualname__}
    for name, part in program.named_predictors():
        state = part.state.model_dump(mode="json", exclude_defaults=True) if hasattr(part, "state") else part.demos
        fields = list(part.signature.fields)
        found[name] = [fields, part.signature.instructions, json.loads(json.dumps(state, default=str))]
    return found


def _routine(function: Any, inner: Callable[[Any], Any]) -> Any:
    """A function as its code; with a method's object, and the plain values that an inner function was made with."""
    code = _code(function)
    holder = getattr(function, "__self__", None)
    if holder is not None and not inspect.ismodule(holder):
        return [code, inner(holder)]
    closure = getattr(function, "__closure__", None) or ()
    cells = {}
    for name, cell in zip(function.__code__.co_freevars if closure else (), closure, strict=True):
        try:
            part = cell.cell_contents
        except ValueError:  # it is not bound yet
            continue
        if part is None or isinstance(part, bool | int | float | str) or inspect.isroutine(part):
            cells[name] = inner(part)
    return [code, cells] if cells else code


def _code(thing: Any) -> str:
    """The text of a function or a class; where there is none, its name."""
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
