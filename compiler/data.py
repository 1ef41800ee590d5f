"""Examples: rows of data, checked against a program's types.

A row's columns are the program's inputs, its outputs (the gold labels), fields that nodes write on the way (labels
for demos, where the data has them), and others, which are kept but not used. An output that is text may hold a list
of texts: several references, each of which is right.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import InputError, nearest
from ..programs.problems import Problems
from ..signatures import check_value
from ..signatures.types import shape
from .examples import Example, Examples
from .rows import Row, is_text, read_rows
from .splits import check_disjoint, split

if TYPE_CHECKING:
    import dspy

__all__ = ["Example", "Examples", "check_disjoint", "from_dspy", "load_examples", "split"]

SHOWN_ERRORS = 10
NO_TYPES: Mapping[str, Any] = MappingProxyType({})

Types = Mapping[str, Any]


def load_examples(
    path: str | os.PathLike[str],
    *,
    inputs: Types,
    outputs: Types,
    require_outputs: bool = True,
    extra: Types = NO_TYPES,
) -> Examples:
    """Read a file of examples (`rows.READERS` lists the formats) and check every row.

    `inputs`, `outputs` and `extra` map column -> type. Every row has all inputs, and all outputs if `require_outputs`;
    columns of `extra` (fields between the nodes) may be missing. Raises `InputError`, which lists the first errors with
    their lines: what cannot be read, is missing or is not of its type.
    """
    file = Path(path)
    problems = Problems(path, limit=SHOWN_ERRORS)
    rows = read_rows(file, problems)
    if not rows and not len(problems):
        raise InputError("the file has no rows", path=path)
    columns = _Columns(inputs, outputs, extra, require_outputs, blank=is_text(file))
    examples = columns.examples(rows, problems)
    problems.stop()
    return Examples(tuple(examples), os.fspath(path), columns.unused(rows))


def from_dspy(
    examples: Iterable[dspy.Example],
    *,
    inputs: Types | None = None,
    outputs: Types | None = None,
    require_outputs: bool = True,
    extra: Types = NO_TYPES,
) -> Examples:
    """DSPy's examples, checked like a file's rows.

    Without `inputs`, the fields are taken as they are: those marked by `with_inputs` are inputs, all others labels.
    Raises `InputError`, which counts examples from 1.
    """
    rows, checked = [], []
    problems = Problems(limit=SHOWN_ERRORS)
    for index, example in enumerate(examples):
        rows.append(Row(dict(example.items())))
        marked: set[str] = getattr(example, "_input_keys", None) or set()
        if inputs is None and not marked:
            hint = "Mark them with example.with_inputs('question', ...)."
            problems.add("the example does not say which fields are inputs", field=f"example {index + 1}", hint=hint)
        elif inputs is None:
            given = {name: value for name, value in example.items() if name in marked}
            labels = {name: value for name, value in example.items() if name not in marked}
            checked.append(Example(given, labels, index))
            if checked[-1].flaw:
                problems.add(checked[-1].flaw, field=f"example {index + 1}")
    if not rows:
        raise InputError("there are no examples")
    if inputs is None:
        problems.stop()
        return Examples(tuple(checked))
    columns = _Columns(inputs, outputs or {}, extra, require_outputs, blank=False)
    checked = columns.examples(rows, problems, what="example")
    problems.stop()
    return Examples(tuple(checked), None, columns.unused(rows))


@dataclass(frozen=True)
class _Columns:
    """What each column holds. `blank`: an empty cell is no value."""

    inputs: Types
    outputs: Types
    extra: Types
    require_outputs: bool
    blank: bool

    def examples(self, rows: Sequence[Row], problems: Problems, what: str = "row") -> list[Example]:
        """The typed rows; those that are wrong are noted instead."""
        present = {name for row in rows if isinstance(row.value, Mapping) for name in row.value}
        absent = [name for name in self._required() if name not in present] if present else []
        for name in absent:
            free = present - set(self._types())
            near = nearest(name, free)
            expected = None if near else f"the columns {', '.join([*self.inputs, *self.outputs])}"
            problems.add(f"no {what} has the field {name!r}", expected=expected, nearest=near)
        found = []
        for index, row in enumerate(rows):
            where = {"line": row.line} if row.line else {"field": f"{what} {index + 1}"}
            example = self._example(index, row, set(absent), problems, where)
            if example is not None:
                found.append(example)
        return found

    def unused(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """The columns that are kept but not used, in order of appearance."""
        types = self._types()
        return tuple(dict.fromkeys(name for row in rows for name in row.value if name not in types))

    def _types(self) -> dict[str, Any]:
        names = dict.fromkeys((*self.inputs, *self.outputs, *self.extra))
        types = {**self.extra, **self.outputs, **self.inputs}
        return {name: types[name] for name in names}

    def _required(self) -> list[str]:
        return [*self.inputs, *(self.outputs if self.require_outputs else ())]

    def _example(
        self, index: int, row: Row, absent: set[str], problems: Problems, where: dict[str, Any]
    ) -> Example | None:
        before = len(problems)
        if not isinstance(row.value, Mapping):
            shown = "a list" if isinstance(row.value, list) else repr(row.value)[:60]
            problems.add(f"found {shown}", expected="a mapping of columns to values", **where)
            return None
        values = {str(name): value for name, value in row.value.items()}
        required = set(self._required())
        typed: dict[str, Any] = {}
        for name, kind in self._types().items():
            gone = name not in values or (name not in required and self._is_blank(values[name], kind))
            if gone and name in required and name not in absent:
                near = nearest(name, set(values) - set(self._types()))
                problems.add(f"the field {name!r} is missing", nearest=near, **where)
            elif not gone:
                typed[name] = self._value(name, values[name], kind, problems, where)
        extra = {name: value for name, value in values.items() if name not in typed and name not in self._types()}
        labels = {
            name: typed[name] for name in [*self.outputs, *self.extra] if name in typed and name not in self.inputs
        }
        several = frozenset(n for n in labels if isinstance(labels[n], list) and shape(self._types()[n]).kind == "str")
        example = Example({n: typed[n] for n in self.inputs if n in typed}, labels, index, extra, several, row.line)
        if example.flaw:
            problems.add(example.flaw, **where)
        return example if len(problems) == before else None

    def _is_blank(self, value: Any, kind: Any) -> bool:
        return value is None or (self.blank and value == "" and shape(kind).kind != "str")

    def _value(self, name: str, value: Any, kind: Any, problems: Problems, where: dict[str, Any]) -> Any:
        """The typed value; what is wrong with it is noted."""
        several = name in self.outputs and isinstance(value, list) and shape(kind).kind == "str"
        try:
            if several:
                return [check_value(item, kind, field=f"{name}[{place}]") for place, item in enumerate(value)]
            return check_value(value, kind, field=name)
        except InputError as error:
            inside = ": ".join(part for part in (where.get("field"), error.field) if part)
            parts: dict[str, Any] = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
            problems.add(error.message, **{**where, "field": inside}, **parts)
            return None
