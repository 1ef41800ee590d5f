"""What was extracted against what should have been: sets of values, and spans or entities with their kinds.

Both count three things: how many were found and right, how many were found, how many there are. The counts are added up
over the data set, and F1 is computed from the totals (micro-averaged, as in the CoNLL-2003 shared task: Tjong Kim Sang
and De Meulder), so that an example with many entities weighs more than one with few; `average: examples` takes the mean
of the examples' scores instead.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .base import FieldMetric, Measurement
from .json_fields import NotJson, read_json
from .values import as_text, plain, tuple_of

if TYPE_CHECKING:
    import numpy as np

_BULLET = re.compile(r"^\s*(?:[-*•]\s+|[0-9]{1,3}[.)]\s+)")
_Separator = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class SetF1(FieldMetric):
    """F1, precision or recall over the set of values that were found.

    A list or set is taken as it is, a JSON list in a text is read, any other text is split at line breaks or, where
    there are none, at `separator`. Order and repetition do not count. The gold value is one list; a list of lists is
    several references, of which the one of highest F1 counts. Where nothing is to be found and nothing was, the score
    is 1.
    """

    name = "set_f1"
    fields: tuple[str, ...] = ()
    score: Literal["f1", "precision", "recall"] = "f1"
    average: Literal["micro", "examples"] = "micro"
    ignore_case: bool = False
    separator: _Separator = ","

    @property
    def width(self) -> int:
        """See `Metric.width`."""
        return 3 if self.average == "micro" else 0

    def references(self, gold: Any, prediction: Any) -> Sequence[Any]:
        """The gold lists: several where each item is a list itself."""
        gold = plain(gold)
        several = isinstance(gold, list) and gold and all(isinstance(item, list | set | frozenset) for item in gold)
        return gold if several else (gold,)

    def compare(self, gold: Sequence[Any], prediction: Any) -> Measurement:
        """See `FieldMetric.compare`."""
        ours = self._items(prediction)
        found = [_counts(ours, self._items(one)) for one in gold]
        best = max(found, key=lambda counts: _f(counts, "f1"))
        statistics = tuple(map(float, best)) if self.width else ()
        return Measurement(_f(best, self.score), statistics)

    def from_statistics(self, total: np.ndarray) -> float:
        """The score of the summed counts."""
        return _f(total.tolist(), self.score) if self.width else super().from_statistics(total)

    def _items(self, value: Any) -> Counter[str]:
        return Counter(set(self._keys(value)))

    def _keys(self, value: Any) -> list[str]:
        return [self._key(item) for item in _listed(value, self.separator)]

    def _key(self, item: Any) -> str:
        if isinstance(item, Mapping | list):
            return json.dumps(self._plain(item), sort_keys=True, ensure_ascii=False, default=str)
        return self._text(item)

    def _plain(self, item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): self._plain(value) for key, value in item.items()}
        return [self._plain(value) for value in item] if isinstance(item, list) else self._text(item)

    def _text(self, value: Any) -> str:
        text = " ".join(as_text(value).split())
        return text.casefold() if self.ignore_case else text


@dataclass(frozen=True, kw_only=True)
class SpanF1(SetF1):
    """F1, precision or recall over entities: a span counts where all that is said of it is right.

    An entity is a mapping such as `{label: PER, text: Ann}` or `{label: PER, start: 0, end: 3}`, of which `keys` are
    compared (all by default), a list such as `[PER, 0, 3]`, or a text such as `PER: Ann`. A mapping from kinds to
    lists, `{PER: [Ann, Bob]}`, is the entities `[PER, Ann]` and `[PER, Bob]`. One found twice must be there twice.
    """

    name = "span_f1"
    keys: Annotated[tuple[str, ...], BeforeValidator(tuple_of)] = ()

    def references(self, gold: Any, prediction: Any) -> Sequence[Any]:
        """The gold lists of entities: several where each item is such a list itself."""
        gold = plain(gold)
        several = isinstance(gold, list) and gold and all(_is_list_of_entities(item) for item in gold)
        return gold if several else (gold,)

    def _items(self, value: Any) -> Counter[str]:
        return Counter(self._keys(value))

    def _key(self, item: Any) -> str:
        if self.keys and isinstance(item, Mapping):
            item = {key: item.get(key) for key in self.keys}
        return super()._key(item)


def _listed(value: Any, separator: str) -> list[Any]:
    """The items of a list, of a mapping from kinds to lists, or of a text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{", "`"):
        try:
            value = read_json(value)
        except NotJson:
            return _split(value, separator)
    value = plain(value)
    if value is None:
        return []
    if isinstance(value, Mapping):
        grouped = all(isinstance(items, list) for items in value.values())
        return [[kind, item] for kind, items in value.items() for item in items] if grouped else [value]
    if isinstance(value, list | set | frozenset):
        return list(value)
    return _split(as_text(value), separator)


def _split(text: str, separator: str) -> list[str]:
    lines = [_BULLET.sub("", line) for line in text.strip().splitlines()]
    parts = lines if len(lines) > 1 else [part for line in lines for part in line.split(separator)]
    return [part.strip() for part in parts if part.strip()]


def _is_list_of_entities(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(items, list) for items in value.values())
    return isinstance(value, list) and all(isinstance(item, Mapping | list) for item in value)


def _counts(ours: Counter[str], gold: Counter[str]) -> tuple[int, int, int]:
    return (ours & gold).total(), ours.total(), gold.total()


def _f(counts: Sequence[float], score: str) -> float:
    right, ours, gold = counts
    if not ours and not gold:
        return 1.0
    below = {"f1": (ours + gold) / 2, "precision": ours, "recall": gold}[score]
    return right / below if below else 0.0
