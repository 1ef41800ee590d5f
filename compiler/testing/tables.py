"""Cases from a table (CSV, TSV, JSONL, JSON, YAML, Parquet): one case a row.

Columns are the program's inputs and, with promptfoo's names, `__expected` (or several: `__expected1`, `__expected2`),
`__description` and `__threshold`; of a program with several outputs `__expected:FIELD` says which is meant. All other
columns can stand as `{{column}}` in the assertions of the test that names the table. `__metric` and `__metadata:...`
are left out with a note: they name what promptfoo shows, and change nothing that is tested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, nearest
from ...metrics.values import plain
from ...programs.graph import Graph
from ...programs.schema_tests import AssertSpec
from ..data import load_examples
from ..examples import Example, Examples
from .shorthand import read_cell

_EXPECTED = re.compile(r"__expected(?P<number>\d*)(?::(?P<field>.+))?")
_OTHERS = ("__description", "__threshold", "__metric")
_UNUSED = re.compile(r"__metric|__metadata:.*")
_VARIABLE = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")


@dataclass(frozen=True)
class Line:
    """One row of a table. `cells` are its assertions with the columns they stand in."""

    row: Example
    description: str
    threshold: float | None
    cells: tuple[tuple[str, str, str | None], ...]


def read_table(path: Path, program: Graph) -> Examples:
    """The rows of a table, their inputs checked against the program. Raises `InputError`."""
    rows = load_examples(path, inputs=program.input_types, outputs={}, require_outputs=False)
    for name in rows.unused:
        if not name.startswith("__") or _UNUSED.fullmatch(name) or name in _OTHERS:
            continue
        found = _EXPECTED.fullmatch(name)
        if found is None:
            known = ("__expected", *_OTHERS)
            near = nearest(name, known)
            raise InputError(f"unknown column {name!r}", path=path, expected=f"one of {', '.join(known)}", nearest=near)
        if found["field"] is not None and found["field"] not in program.output_types:
            outputs = list(program.output_types)
            near = nearest(found["field"], outputs)
            message = f"the program has no output {found['field']!r}"
            raise InputError(message, path=path, field=name, expected=f"one of {', '.join(outputs)}", nearest=near)
    return rows


def notes_of(rows: Examples) -> list[str]:
    """What of a table is left out though it may have been meant."""
    return [f"{rows.path}: the column {name!r} is not used" for name in rows.unused if _UNUSED.fullmatch(name)]


def line_of(row: Example) -> Line:
    """A row taken apart. Raises `InputError`, whose `field` is the column."""
    threshold = row.extra.get("__threshold")
    if threshold in ("", None):
        number = None
    else:
        try:
            number = float(str(threshold))
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise InputError(f"found {threshold!r}", field="__threshold", expected="0 to 1")
    return Line(row, str(row.extra.get("__description") or ""), number, tuple(_cells(row)))


def assertion_of(cell: tuple[str, str, str | None]) -> AssertSpec:
    """The assertion in a cell. Raises `InputError`, whose `field` is the column."""
    column, text, output = cell
    try:
        return read_cell(text, output)
    except InputError as error:
        parts = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
        raise InputError(error.message, field=column, **parts) from None  # type: ignore[arg-type]


def filled(spec: AssertSpec, row: Example) -> AssertSpec:
    """An assertion with every `{{column}}` of its value replaced. Raises `InputError` for a column that is not there.

    A text that is nothing but one `{{column}}` becomes its value, whatever its type.
    """
    values = {**{name: plain(value) for name, value in row.inputs.items()}, **row.extra}
    data = spec.model_dump(mode="python", by_alias=True, exclude_unset=True)
    return AssertSpec.model_validate(_filled(data, values))


def has_variables(spec: AssertSpec) -> bool:
    """Whether there is a `{{column}}` in the assertion."""
    return _VARIABLE.search(json.dumps(spec.model_dump(mode="json", by_alias=True), ensure_ascii=False)) is not None


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, values) for item in value]
    if not isinstance(value, str):
        return value
    whole = _VARIABLE.fullmatch(value)
    if whole is not None:
        return _value(whole[1], values)
    return _VARIABLE.sub(lambda found: str(_value(found[1], values)), value)


def _value(name: str, values: Mapping[str, Any]) -> Any:
    if name not in values:
        near = nearest(name, values)
        expected = None if near else f"one of {', '.join(values)}"
        raise InputError(f"the table has no column {name!r}", field="value", expected=expected, nearest=near)
    return values[name]


def _cells(row: Example) -> Iterator[tuple[str, str, str | None]]:
    for name, value in row.extra.items():
        found = _EXPECTED.fullmatch(name)
        if found is None or value is None:
            continue
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                if text.strip():
                    yield name, text, found["field"]
            else:
                yield name, f"equals: {json.dumps(text, ensure_ascii=False)}", found["field"]
