"""Rows of a data file, each with the line where it begins: JSON Lines, JSON, CSV and TSV, YAML, Parquet.

A row is a mapping from column to value, as the format gives it: CSV cells are text, Parquet rows have no line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import InputError
from ..files import read_bytes, read_text
from ..programs.problems import Problems
from ..programs.yaml_source import load_yaml


@dataclass(frozen=True)
class Row:
    """One row: what was read, and the line where it begins (from 1; None where the format has no lines)."""

    value: Any
    line: int | None = None


def read_rows(path: Path, problems: Problems) -> list[Row]:
    """All rows of a file, in order; the name's ending says how it is read. Rows that cannot be read go to `problems`.

    Raises `InputError` when the file as a whole cannot be read.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"found the ending {path.suffix!r}", path=path, expected=f"one of {', '.join(READERS)}")
    return list(reader(path, problems))


def is_text(path: Path) -> bool:
    """Whether the file's values are all text, to be read by the type that is asked for."""
    return path.suffix.lower() in (".csv", ".tsv")


def _json_lines(path: Path, problems: Problems) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield Row(_DECODER.decode(line.strip()), number)
        except (ValueError, RecursionError) as error:
            problems.add(_json_message(error), line=number)


def _json_list(path: Path, problems: Problems) -> Iterator[Row]:
    """The items of a top-level list, decoded one by one, so that each has its line."""
    text = read_text(path)
    place = _Place(text)
    if place.skip() != "[":
        raise InputError(
            "the file does not hold a list", path=path, line=place.line, expected="a list of rows, [{...}, ...]"
        )
    place.at += 1
    more = place.skip() != "]"
    while more:
        place.skip()
        line = place.line
        try:
            value, place.at = _DECODER.raw_decode(text, place.at)
        except (ValueError, RecursionError) as error:
            problems.add(_json_message(error), line=error.lineno if isinstance(error, json.JSONDecodeError) else line)
            return
        yield Row(value, line)
        follows = place.skip()
        if follows not in (",", "]"):
            problems.add("not valid JSON: ',' or ']' is missing", line=place.line)
            return
        more = follows == ","
        place.at += more
    place.at += 1
    if place.skip():
        problems.add("not valid JSON: something follows the list", line=place.line)


class _Place:
    """A position in a text, and its line."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._counted = 0
        self._line = 1

    def skip(self) -> str:
        """Step over white space; the character that follows, or "" at the end."""
        while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
            self.at += 1
        return self.text[self.at : self.at + 1]

    @property
    def line(self) -> int:
        """The line of the position. Positions only move forward."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line


def _delimited(delimiter: str) -> Callable[[Path, Problems], Iterator[Row]]:
    def rows(path: Path, problems: Problems) -> Iterator[Row]:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        line = 1
        try:
            for cells in reader:
                if header is None:
                    header = _header(cells, path)
                elif cells and len(cells) != len(header):
                    problems.add(
                        f"found {len(cells)} cells", line=line, expected=f"{len(header)}, as in the first line"
                    )
                elif cells:
                    yield Row(dict(zip(header, cells, strict=True)), line)
                line = reader.line_num + 1
        except csv.Error as error:
            problems.add(f"not valid CSV: {error}", line=line)

    return rows


def _header(cells: list[str], path: Path) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise InputError(f"the column {twice[0]!r} stands twice", path=path, line=1)
    return cells


def _yaml_list(path: Path, problems: Problems) -> Iterator[Row]:
    source = load_yaml(path)
    if not isinstance(source.data, list):
        raise InputError("the file does not hold a list", path=path, line=1, expected="a list of rows, each '- {...}'")
    for index, value in enumerate(source.data):
        yield Row(value, source.line((index,)))


def _parquet(path: Path, problems: Problems) -> Iterator[Row]:
    content = read_bytes(path)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        hint = "Install pyarrow, or convert the file to JSON Lines."
        raise InputError("reading Parquet needs the package pyarrow", path=path, hint=hint) from None
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"not valid Parquet: {str(error).splitlines()[0]}", path=path) from None
    for value in table.to_pylist():
        yield Row(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one mapping")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _json_message(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg}, at column {error.colno}"
    return "not valid JSON: " + ("nested too deep" if isinstance(error, RecursionError) else str(error))


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)

READERS: Mapping[str, Callable[[Path, Problems], Iterator[Row]]] = MappingProxyType(
    {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_list,
        ".csv": _delimited(","),
        ".tsv": _delimited("\t"),
        ".yaml": _yaml_list,
        ".yml": _yaml_list,
        ".parquet": _parquet,
    }
)
