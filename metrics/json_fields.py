"""Records compared field by field: mappings, pydantic models and JSON text.

Both sides are taken apart into leaves (`address.city`, `items.0.price`), and the score is the share of the leaves of
either side on which both agree. What a record is made of is compared, not how it is written: the order of keys does not
count, the order of lists does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BeforeValidator, Field

from ..errors import InputError
from .base import FieldMetric, Measurement
from .numeric import exact
from .values import plain, references, tuple_of

Path = tuple[str | int, ...]

_FENCED = re.compile(r"```[a-zA-Z]*\s*\n(.*?)\n?\s*```", re.DOTALL)
_Names = Annotated[tuple[str, ...], BeforeValidator(tuple_of)]


class NotJson(ValueError):
    """A text that is not JSON."""


def read_json(value: Any) -> Any:
    """`value` as plain data; a text is read as JSON, which may stand in a fenced block. Raises `NotJson`."""
    if not isinstance(value, str):
        return plain(value)
    blocks = _FENCED.findall(value)
    text = blocks[0] if len(blocks) == 1 else value
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None


def leaves(data: Any) -> dict[Path, Any]:
    """The values that hold no others, by where they stand; an empty mapping or list is one of them."""
    found: dict[Path, Any] = {}
    rest: list[tuple[Path, Any]] = [((), data)]
    while rest:
        path, value = rest.pop()
        if isinstance(value, Mapping) and value:
            rest.extend(((*path, str(key)), item) for key, item in value.items())
        elif isinstance(value, list) and value:
            rest.extend(((*path, place), item) for place, item in enumerate(value))
        else:
            found[path] = value
    return found


@dataclass(frozen=True, kw_only=True)
class JsonFields(FieldMetric):
    """The share of fields that are right, at any depth, against the best reference; 0 for text that is not JSON.

    Fields that only the prediction has count as wrong, unless `extra: ignore`. `ignore` names fields that are not
    compared, such as `id` or `items.price`, in which the places in lists are left out. Texts are compared as by exact
    match, numbers within `tolerance`; a text is never a number, and true is not 1.
    """

    name = "json_fields"
    fields: tuple[str, ...] = ()
    extra: Literal["wrong", "ignore"] = "wrong"
    ignore: _Names = ()
    ignore_case: bool = False
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def references(self, gold: Any, prediction: Any) -> Sequence[Any]:
        """The gold records as plain data. A list beside a record, or beside what is no JSON, is several of them."""
        try:
            beside = read_json(prediction)
        except NotJson:
            beside = None
        if isinstance(gold, list | tuple) and gold:
            found = references(gold, beside)
            return (plain(gold),) if found[0] is gold else [_gold_item(one) for one in found]
        try:
            return (read_json(gold),)
        except NotJson as error:
            raise InputError(
                f"metric {self.name!r} found the gold value {gold!r}, which is not JSON: {error}",
                expected="a record, a list or JSON text",
            ) from None

    def compare(self, gold: Sequence[Any], prediction: Any) -> Measurement:
        """See `FieldMetric.compare`; `gold` is what `references` made of it."""
        try:
            ours = self._leaves(read_json(prediction))
        except NotJson:
            return Measurement(0.0)
        return Measurement(max(self._share(self._leaves(one), ours) for one in gold))

    def _leaves(self, data: Any) -> dict[Path, Any]:
        return {path: value for path, value in leaves(data).items() if not self._ignored(path)}

    def _ignored(self, path: Path) -> bool:
        if not self.ignore:
            return False
        keys = [part for part in path if isinstance(part, str)]
        return any(".".join(keys[: end + 1]) in self.ignore for end in range(len(keys)))

    def _share(self, gold: Mapping[Path, Any], ours: Mapping[Path, Any]) -> float:
        right = sum(1 for path, value in gold.items() if path in ours and self._same(value, ours[path]))
        counted = len(gold) if self.extra == "ignore" else len(gold.keys() | ours.keys())
        return right / counted if counted else 1.0

    def _same(self, gold: Any, ours: Any) -> bool:
        if isinstance(gold, bool) or isinstance(ours, bool):
            return gold is ours
        if isinstance(gold, int | float) and isinstance(ours, int | float):
            finite = math.isfinite(gold) and math.isfinite(ours)
            return gold == ours or (finite and abs(_exact(gold) - _exact(ours)) <= exact(self.tolerance))
        return bool(self._key(gold) == self._key(ours))

    def _key(self, value: Any) -> Any:
        if hasattr(value, "isoformat"):
            value = value.isoformat()  # YAML reads dates; JSON writes them as text.
        if not isinstance(value, str):
            return value
        text = " ".join(value.split())
        return text.casefold() if self.ignore_case else text


def _gold_item(value: Any) -> Any:
    try:
        return read_json(value)
    except NotJson:
        return value  # One text of a list of texts.


def _exact(value: int | float) -> Fraction:
    return Fraction(value) if isinstance(value, int) else exact(value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")
