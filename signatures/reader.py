"""From a model's text to the typed value that its signature asks for.

Models wrap what they mean in spaces, quotes, code fences, full stops and prose. All of it is taken away where only one
value can be meant, and nowhere else: what could mean two things is a ReadError that says so.
`read(write(value, type_), type_) == value` for every value, except that a `str` loses the white space around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from ..errors import ReadError
from .describe import describe_short
from .labels import choice_value, choices, match_label
from .messages import clip, nearest_label, one_of
from .types import Shape, shape
from .validation import Mismatch, validate
from .writer import is_null, json_string, needs_quotes

PAIRS = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019"}
FENCE = re.compile(r"```[\w-]*[ \t]*\n?(.*?)\n?```", re.DOTALL)
WHOLE = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,4000})(?:\.0*)?")
NUMBER = re.compile(r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
BULLET = re.compile(r"\s*(?:[-*\u2022]|\(?[0-9]{1,3}[.)])\s+(\S.*)")
IDENTIFIER = re.compile(
    r"(?:urn:uuid:)?(\{)?[0-9a-f]{8}(-)?[0-9a-f]{4}(?(2)-)[0-9a-f]{4}(?(2)-)[0-9a-f]{4}(?(2)-)[0-9a-f]{12}(?(1)\})",
    re.I,
)
GROUPED = re.compile(r"[0-9],[0-9]{3}(?![0-9])")


def read(text: str, type_: Any, *, field: str = "value") -> Any:
    """The value of `type_` that `text` means. `field` names it in the error.

    Raises ReadError, with what was found, what was expected, and the nearest label.

    >>> read(" **Billing**, I think.", Literal["billing", "technical"])
    'billing'
    """
    taken = shape(type_)
    value = _read(text, taken, type_, field)
    if not taken.constrained:
        return value
    try:
        return validate(value, type_)
    except Mismatch as error:
        raise ReadError(f"found {clip(text.strip())}", field=field, expected=error.expected) from error


def _read(text: str, taken: Shape, type_: Any, field: str) -> Any:
    """As `read`, constraints aside."""
    if taken.kind == "labels":
        return _read_label(text, taken, type_, field)
    if taken.optional and taken.kind == "str":
        inner = json_string(text.strip())
        if inner is not None and needs_quotes(inner):
            return inner
    if taken.optional and is_null(text):
        return None
    if taken.kind == "str":
        return text.strip()
    if not text.strip() and taken.kind != "any":
        raise ReadError("found no text", field=field, expected=describe_short(type_))
    if taken.kind == "list":
        return _read_list(text, taken, type_, field)
    if taken.kind in ("json", "any"):
        return _read_json(text, taken, type_, field)
    value = READERS[taken.kind](unwrap(text))
    if value is None:
        raise ReadError(f"found {clip(text.strip())}", field=field, expected=describe_short(type_))
    return value


def unwrap(text: str) -> str:
    """`text` without white space, a full stop, and one pair of quotes or backticks around it."""
    return unquote(text.strip().removesuffix(".")).removesuffix(".")


def unquote(text: str) -> str:
    """`text` without white space and one pair of quotes or backticks around it."""
    inside = text.strip()
    return inside[1:-1].strip() if len(inside) > 1 and PAIRS.get(inside[0]) == inside[-1] else inside


def _read_bool(text: str) -> bool | None:
    """true, false, yes or no, alone or alone on the first line."""
    for candidate in (text, unwrap(text.partition("\n")[0])):
        if candidate.casefold() in ("true", "yes"):
            return True
        if candidate.casefold() in ("false", "no"):
            return False
    return None


def _read_int(text: str) -> int | None:
    """A whole number: `12`, `-3`, `1,234`, `12.`, `12.0`."""
    return int(text.partition(".")[0].replace(",", "")) if WHOLE.fullmatch(text) else None


def _read_float(text: str) -> float | None:
    """A finite number; `60%` is none, since it may mean 60 or 0.6."""
    value = float(text.replace(",", "")) if NUMBER.fullmatch(text) else None
    return None if value in (float("inf"), float("-inf")) else value


def _read_decimal(text: str) -> Decimal | None:
    """A number, to its last digit."""
    try:
        return Decimal(text.replace(",", "")) if NUMBER.fullmatch(text) else None
    except InvalidOperation:  # a power of ten that no decimal has
        return None


def _read_uuid(text: str) -> UUID | None:
    """A UUID with its four hyphens or with none, in braces or not."""
    return UUID(text) if IDENTIFIER.fullmatch(text) else None


def _iso(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of ISO 8601 texts."""

    def read_iso(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            return None

    return read_iso


READERS: dict[str, Callable[[str], Any]] = {
    "bool": _read_bool,
    "int": _read_int,
    "float": _read_float,
    "decimal": _read_decimal,
    "date": _iso(date.fromisoformat),
    "datetime": _iso(datetime.fromisoformat),
    "time": _iso(time.fromisoformat),
    "uuid": _read_uuid,
}


def _read_label(text: str, taken: Shape, type_: Any, field: str) -> Any:
    """A Literal's or an Enum's value."""
    labels = choices(taken.inner) or ()
    if text.strip() not in labels:
        if taken.optional and is_null(unwrap(text)):
            return None
        text = json_string(text.strip()) or text  # in quotes, with escapes
    match = match_label(text, labels)
    if len(match.labels) == 1 and not match.negated:
        return choice_value(taken.inner, match.labels[0])
    found = f"found {clip(text.strip())}" if text.strip() else "found no text"
    if len(match.labels) > 1:
        found += f", which may mean {' or '.join(match.labels)}"
    elif match.labels:
        found += f", which names {match.labels[0]} beside a denial"
    close = nearest_label(unwrap(text), labels) if not match.labels else None
    raise ReadError(found, field=field, expected=one_of(choices(type_) or ()), nearest=close)


def _read_json(text: str, taken: Shape, type_: Any, field: str) -> Any:
    """JSON, in a code fence or not; repaired where that gives a valid value; or text that the type itself takes."""
    fenced = FENCE.search(text) if taken.kind != "any" else None
    body = fenced[1] if fenced else text
    attempts: list[Callable[[], Any]] = [lambda: json.loads(text)]
    attempts += [lambda: json.loads(body)] if fenced else []
    attempts += [lambda: _repaired(body)] if taken.kind != "any" else []
    mismatch = broken = None
    for attempt in (*attempts, text.strip):
        try:
            return validate(attempt(), taken.inner)
        except Mismatch as error:
            mismatch = mismatch or error
        except (ValueError, RecursionError) as error:
            broken = broken or error
    if mismatch and mismatch.place:
        reason = f"whose {mismatch.place} is wrong ({mismatch.expected})"
    elif broken:
        reason = f"which is not JSON ({broken})"
    else:
        reason = "which is JSON of another kind"
    raise ReadError(f"found {clip(text.strip())}, {reason}", field=field, expected=describe_short(type_))


def _repaired(body: str) -> Any:
    """What json_repair makes of nearly-JSON: a comma too many, single quotes, a bracket left open, prose around it."""
    import json_repair

    if "{" not in body and "[" not in body:
        raise ValueError("no bracket")
    return json_repair.loads(body, skip_json_loads=True)


def _read_list(text: str, taken: Shape, type_: Any, field: str) -> Any:
    """A list from JSON, from lines with bullets or numbers, or from items between commas."""
    item, body = shape(taken.item), text.strip()
    if item.optional or item.kind in ("list", "json", "any") or body.startswith(("[", "{", "```")):
        return _read_json(text, taken, type_, field)
    lines = [line for line in body.splitlines() if line.strip()]
    bullets = [match[1] for line in lines if (match := BULLET.fullmatch(line))]
    if len(bullets) == len(lines):
        pieces = [unquote(bullet) for bullet in bullets] if item.kind == "str" else bullets
    elif "[" in body or "{" in body:
        return _read_json(text, taken, type_, field)
    elif len(lines) > 1:
        raise ReadError(f"found {len(lines)} lines without bullets", field=field, expected=describe_short(type_))
    else:
        pieces = _between_commas(body, item, type_, field)
    return [
        piece if item.kind == "str" and not item.constrained else read(piece, taken.item, field=f"{field}[{index}]")
        for index, piece in enumerate(pieces)
    ]


def _between_commas(line: str, item: Shape, type_: Any, field: str) -> list[str]:
    """The items of one line, as text."""
    pieces, reason = [unquote(piece) if item.kind == "str" else piece for piece in line.split(",")], ""
    if item.kind in ("int", "float", "decimal") and GROUPED.search(line):
        reason = f"found {clip(line)}, where a comma may part thousands or items"
    elif '"' in line:  # a comma may stand inside quotes: only JSON's rules tell
        try:
            pieces = [part if isinstance(part, str) else str(part) for part in json.loads(f"[{line}]")]
        except (ValueError, RecursionError):
            reason = f"found {clip(line)}, where some items have quotes and some have none"
    if not reason and not all(piece.strip() for piece in pieces):
        reason = f"found an empty item in {clip(line)}"
    if reason:
        raise ReadError(reason, field=field, expected=describe_short(type_))
    return pieces
