"""Text outputs whose gold values are few: labels that nobody has declared.

`question -> answer: str` says that any text may come back. Where the examples only ever hold a handful of values, a
type that names them (`Literal['yes', 'no']`) lets a label be chosen by its likelihood, calibrated, and kept to the set;
as free text a small model often writes something else. What the set is remains the user's to say, so this only tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import dspy

from ..optimizers.base import Row
from ..programs.spans import is_text
from ..signatures import field_types, type_name

FEWEST_ROWS = 20  # of which a set of values can be told from chance
ROWS_A_VALUE = 4  # at least, on average
NEW = 0.05  # of dev's rows may have values that train does not hold
LONGEST = 60  # characters of a label
SHOWN = 8  # labels that a message names


def undeclared_labels(
    signatures: Mapping[str, type[dspy.Signature]],
    columns: Mapping[str, Mapping[str, str]],
    train: Sequence[Row],
    dev: Sequence[Row] = (),
) -> list[str]:
    """A line for each column that looks like labels, while the outputs that it is the gold value of are plain text.

    columns: predictor -> field -> the column of its gold values. A column looks like labels where train holds it often
    enough, with few short values, and dev hardly any others.
    """
    found = {}
    for name, signature in signatures.items():
        types = field_types(signature)
        for field in signature.output_fields:
            column = columns.get(name, {}).get(field)
            if column is not None and column not in found and types[field] is str and is_text(types[field]):
                values, others = list(_values(column, train)), list(_values(column, dev))
                labels = sorted({*values, *others})
                new = len(others) - sum(map(set(values).__contains__, others))
                if _few(labels, len(values)) and new <= NEW * len(others):
                    found[column] = _line(name, field, labels, len(values) + len(others))
    return list(found.values())


def _values(column: str, rows: Iterable[Row]) -> Iterator[str]:
    return (str(row.labels[column]) for row in rows if isinstance(row.labels.get(column), str))


def _few(labels: Sequence[str], rows: int) -> bool:
    enough = rows >= max(FEWEST_ROWS, ROWS_A_VALUE * len(labels))
    return enough and len(labels) > 1 and max(map(len, labels)) <= LONGEST


def _line(name: str, field: str, labels: Sequence[str], rows: int) -> str:
    if len(labels) <= SHOWN:
        declared = type_name(Literal[tuple(labels)])
    else:
        declared = f"Literal[{', '.join(map(repr, labels[:2]))}, ...]"
    return (
        f"{name}.{field} is declared as text, but has only {len(labels)} values in {rows} examples: declared as "
        f"{declared} it would be chosen among them by likelihood, and could not be unreadable"
    )
