"""What examples are, once they are checked: rows with typed inputs and labels, and sets of them with a content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from pydantic_core import PydanticSerializationError, to_jsonable_python

if TYPE_CHECKING:
    import dspy


@dataclass(frozen=True)
class Example:
    """One row. `labels` are gold outputs and gold values of fields between the nodes; `extra` are all other columns.

    `id` is its place in its file, from 0; `several` names the labels that are a list of references; `line` is where the
    row begins (None where the file has no lines).
    """

    inputs: Mapping[str, Any]
    labels: Mapping[str, Any]
    id: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    several: frozenset[str] = frozenset()
    line: int | None = None

    @cached_property
    def key(self) -> str:
        """The inputs as canonical JSON: equal for rows with equal inputs."""
        return canonical(self.inputs)

    @property
    def row(self) -> dict[str, Any]:
        """All columns."""
        return {**self.extra, **self.labels, **self.inputs}

    @property
    def flaw(self) -> str | None:
        """What keeps the row from being written down, if anything."""
        try:
            canonical(self.row).encode()
        except UnicodeEncodeError:
            return "holds half of a surrogate pair, which is no character"
        except PydanticSerializationError as error:
            return f"holds a value that JSON has no form for: {error}"
        return None

    def demo(self) -> dict[str, Any]:
        """Inputs and labels as a demo shows them: of several references the first, of an empty list of them none."""
        labels = {name: value[:1] if name in self.several else [value] for name, value in self.labels.items()}
        return {**self.inputs, **{name: value[0] for name, value in labels.items() if value}}

    def to_dspy(self) -> dspy.Example:
        """Inputs and labels as a `dspy.Example` whose inputs are marked."""
        import dspy

        return dspy.Example({**self.labels, **self.inputs}).with_inputs(*self.inputs)


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """Examples in order. `path` is their file; `unused` names the columns that are neither input nor label."""

    items: tuple[Example, ...]
    path: str | None = None
    unused: tuple[str, ...] = ()

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> Examples: ...

    def __getitem__(self, place: int | slice) -> Example | Examples:
        if isinstance(place, slice):
            return Examples(self.items[place], self.path, self.unused)
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    @cached_property
    def sha256(self) -> str:
        """A content hash of all rows in their order, whatever format they were read from."""
        digest = hashlib.sha256()
        for example in self.items:
            digest.update(canonical(example.row).encode() + b"\n")
        return digest.hexdigest()

    def to_dspy(self) -> list[dspy.Example]:
        """The examples for DSPy."""
        return [example.to_dspy() for example in self.items]


def canonical(data: Any) -> str:
    """JSON on one line with sorted keys: equal for equal data. Typed values as JSON holds them."""
    plain = to_jsonable_python(data, bytes_mode="base64")
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
