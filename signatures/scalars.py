r"""Texts, numbers, dates and UUIDs as expressions of Lark, bare or as JSON.

A bare text is what `read` takes, without white space around it where its length or form matters, since `read` takes
that away. In JSON, text has at most the escapes of RFC 8259 that make a character; a decimal may be a number or stand
in quotes, and as a number has no more digits than a float keeps. None stands for "no value fits".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Context, Decimal
from typing import Any

from . import moments, numerals
from .lark import Rules, choice, embedded, fault, regex
from .messages import Where, clip
from .multiples import float_multiples, multiples
from .numerals import either, times
from .patterns import Unsupported, whole_text

Node = Mapping[str, Any]
SPACES = r"\p{White_Space}\x1c-\x1f"  # what `str.strip` takes away
EDGE = f"[^{SPACES}]"
ONE_LINE = r"[^\r\n]"
ANY_LINE = "(?s:.)"
# JSON's characters: bare, as an escape, or as one or two UTF-16 units, which make one character.
ESCAPES = (
    r'\\(["\\\/bfnrt]|u([0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}'
    r"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
CHARACTER = rf'([^"\\\x00-\x1f]|{ESCAPES})'
JSON_EDGE = rf'([^"\\\x00-\x1b{SPACES}]|\\["\\\/])'
STRIPPED = f"({EDGE}({ANY_LINE}*{EDGE})?)?"
# An optional text in quotes may be read as the text in them, where that says "null" or the like.
NULL_IN_QUOTES = r'"[\p{White_Space}\x1c-\x1f\\"\/.,nuloeaNULOEA0-9b-fB-F]*"'
EXACT_DIGITS = 15  # what a float keeps of any decimal
TEXT_FORMATS = ("binary", "password", "path", "file-path", "directory-path")
KINDS = ("decimal", "date", "time", "datetime", "uuid")


def bare_text(node: Node, *, one_line: bool, optional: bool, where: Where) -> str | None:
    """A terminal for a text, at least one character. `optional`: None is a value too."""
    low, high = node.get("minLength", 0), node.get("maxLength")
    patterns = _patterns(node, where)
    if high is not None and high < max(low, 1):
        return None
    _check_text(node, patterns, where)
    measured = _measured(EDGE, ONE_LINE if one_line else ANY_LINE, max(low, 1), high)
    return regex(measured, *patterns) + (f" & ~{regex(NULL_IN_QUOTES)}" if optional else "")


def json_text(node: Node, rules: Rules, *, stripped: bool, where: Where) -> str | None:
    """A string in JSON. `stripped`: no white space around it."""
    low, high = node.get("minLength", 0), node.get("maxLength")
    if high is not None and high < low:
        return None
    other = node.get("format")
    patterns = _patterns(node, where)
    if patterns or (other is not None and other not in TEXT_FORMATS):
        _check_text(node, patterns, where)
        return embedded(_text_schema(node, (*patterns, STRIPPED) if stripped else patterns))
    if not stripped:
        return rules.text(f'"{CHARACTER}{times(low, high)}"' if low or high is not None else f'"{CHARACTER}*"')
    body = "" if high == 0 else _measured(JSON_EDGE, CHARACTER, max(low, 1), high)
    return rules.text(f'"({body})?"' if low == 0 else f'"{body}"')


def integer(node: Node, rules: Rules, where: Where) -> str | None:
    """A whole number."""
    low, high = _whole_bounds(node)
    if "multipleOf" in node:
        return multiples(node["multipleOf"], low, high, where, whole=True)
    found = numerals.whole(low, high)
    return None if found is None else rules.text(found)


def number(node: Node, rules: Rules, where: Where) -> str | None:
    """A number, read as a float."""
    low, high = _float_bounds(node)
    if "multipleOf" in node:
        return float_multiples(node["multipleOf"], low, high, where)
    if low is None and high is None:
        return rules.text(numerals.FLOAT)
    found = numerals.real(*(None if bound is None else Decimal(repr(bound)) for bound in (low, high)))
    return None if found is None else rules.text(found)


def special(node: Node, rules: Rules, *, json: bool, where: Where) -> str | None:
    """A decimal, date, time or UUID."""
    kind = node["x-kind"]
    if kind == "decimal":
        return _decimal(node, rules, json, where)
    zone = {"aware": True, "naive": False}.get(node.get("tz_constraint", ""))
    expressions: tuple[str, ...]
    if kind == "date":
        expressions = _days(node)
    elif kind == "uuid":
        expressions = (moments.uuid(node.get("version")),)
    else:
        expressions = (moments.clock(zone) if kind == "time" else moments.moment(zone),)
    if not expressions:
        return None
    return rules.text(*(f'"{expression}"' if json else expression for expression in expressions))


def _measured(edge: str, inside: str, low: int, high: int | None) -> str:
    """From `low` to `high` characters, at least one; the first and the last are `edge`."""
    if high == 1:
        return edge
    middle = f"{inside}{times(max(low - 2, 0), None if high is None else high - 2)}{edge}"
    return f"{edge}{middle}" if low > 1 else f"{edge}({middle})?"


def _patterns(node: Node, where: Where) -> tuple[str, ...]:
    """What the whole text has to match, for its pattern and, where it is stripped, for its ends."""
    found: tuple[str, ...] = (STRIPPED,) if node.get("x-strip") else ()
    if "pattern" not in node:
        return found
    try:
        return (whole_text(node["pattern"]), *found)
    except Unsupported as error:
        raise where.error(
            f"found the pattern {clip(node['pattern'])}, with {error}, which a mask cannot hold",
            expected="a pattern without it",
            hint="Without a mask, the read-out `text` checks any pattern once the answer is there.",
        ) from error


def _text_schema(node: Node, patterns: tuple[str, ...]) -> dict[str, Any]:
    """A string's schema for llguidance."""
    kept = {key: node[key] for key in ("minLength", "maxLength") if key in node}
    if node.get("format") not in (None, *TEXT_FORMATS):
        kept["format"] = node["format"]
    return {"type": "string", **kept, "allOf": [{"pattern": f"^(?:{pattern})$"} for pattern in patterns]}


def _check_text(node: Node, patterns: tuple[str, ...], where: Where) -> None:
    """Refuse what llguidance cannot compile, by the name of what asks for it."""
    if not patterns and node.get("format") in (None, *TEXT_FORMATS):
        return
    reason = fault(embedded(_text_schema(node, patterns)))
    if reason is None:
        return
    held = f"the pattern {clip(node['pattern'])}" if "pattern" in node else f"the format {node.get('format')!r}"
    if "empty" in reason or "nsatisfiable" in reason:
        raise where.error(f"found {held}, which no text meets", expected="constraints that leave a value")
    raise where.error(f"found {held}, which a mask cannot hold ({reason})", expected="a simpler one")


def _whole_bounds(node: Node) -> tuple[int | None, int | None]:
    """The inclusive bounds of a whole number."""
    lows = [math.ceil(node["minimum"])] if "minimum" in node else []
    lows += [math.floor(node["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in node else []
    highs = [math.floor(node["maximum"])] if "maximum" in node else []
    highs += [math.ceil(node["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in node else []
    return max(lows, default=None), min(highs, default=None)


def _float_bounds(node: Node) -> tuple[float | None, float | None]:
    """The inclusive bounds of a float: next to an exclusive one stands the next float."""
    lows = [float(node["minimum"])] if "minimum" in node else []
    lows += [math.nextafter(node["exclusiveMinimum"], math.inf)] if "exclusiveMinimum" in node else []
    highs = [float(node["maximum"])] if "maximum" in node else []
    highs += [math.nextafter(node["exclusiveMaximum"], -math.inf)] if "exclusiveMaximum" in node else []
    return max(lows, default=None), min(highs, default=None)


def _days(node: Node) -> tuple[str, ...]:
    """The dates between a date's bounds."""
    known = {name: date.fromisoformat(node[name]) for name in ("ge", "gt", "le", "lt") if name in node}
    if known.get("gt") == date.max or known.get("lt") == date.min:
        return ()
    lows = [known["ge"]] if "ge" in known else []
    lows += [known["gt"] + timedelta(days=1)] if "gt" in known else []
    highs = [known["le"]] if "le" in known else []
    highs += [known["lt"] - timedelta(days=1)] if "lt" in known else []
    return moments.day(max(lows, default=None), min(highs, default=None))


def _decimal(node: Node, rules: Rules, json: bool, where: Where) -> str | None:
    """A decimal: bare, or in JSON as a number or in quotes."""
    if not json:
        return _decimal_text(node, rules, numerals.DIGITS, "", where)
    forms = [
        _decimal_text(node, rules, EXACT_DIGITS, "", where),
        _decimal_text(node, rules, numerals.DIGITS, '"', where),
    ]
    some = [form for form in forms if form is not None]
    return choice(some) if some else None


def _decimal_text(node: Node, rules: Rules, digits: int, quote: str, where: Where) -> str | None:
    """A decimal's digits between two quotes, or none."""
    low, high = _decimal_bounds(node)
    if "multiple_of" in node:
        return _decimal_multiples(node, low, high, digits, quote, where)
    expressions = [numerals.FLOAT]
    if low is not None or high is not None:
        found = numerals.real(low, high)
        if found is None:
            return None
        expressions = [found]
    shape = _digits(node.get("max_digits"), node.get("decimal_places"), digits == EXACT_DIGITS)
    expressions += [shape] if shape else []
    return rules.text(*(f"{quote}{expression}{quote}" for expression in expressions))


def _decimal_bounds(node: Node) -> tuple[Decimal | None, Decimal | None]:
    """The inclusive bounds of a decimal, an exclusive one moved by the finest step that a mask has."""
    known = {name: Decimal(str(node[name])) for name in ("ge", "gt", "le", "lt") if name in node}
    exact = Context(prec=1000)
    lows = [known["ge"]] if "ge" in known else []
    lows += [exact.add(known["gt"], numerals.STEP)] if "gt" in known else []
    highs = [known["le"]] if "le" in known else []
    highs += [exact.subtract(known["lt"], numerals.STEP)] if "lt" in known else []
    return max(lows, default=None), min(highs, default=None)


def _decimal_multiples(
    node: Node, low: Decimal | None, high: Decimal | None, digits: int, quote: str, where: Where
) -> str | None:
    """The multiples of a decimal."""
    if "max_digits" in node or "decimal_places" in node:
        raise where.error(
            "found multiple_of beside max_digits or decimal_places, which a mask cannot hold at once",
            expected="one of them",
        )
    behind = max(0, -int(Decimal(str(node["multiple_of"])).normalize().as_tuple().exponent))
    room = digits - behind if digits == EXACT_DIGITS else digits
    found = multiples(node["multiple_of"], low, high, where, digits=max(room, 1))
    return found if found is None or not quote else f"({regex(quote)} {found} {regex(quote)})"


def _digits(most: int | None, places: int | None, exact: bool) -> str | None:
    """The form of a decimal with limited digits, without a power of ten. `exact`: with no more than a float keeps."""
    if most is None and places is None and not exact:
        return None
    total = min(most or numerals.MOST_DIGITS, EXACT_DIGITS if exact else numerals.MOST_DIGITS)
    behind = total if places is None else min(places, total)
    before = total if places is None else max((most or total) - places, 0)
    forms = [f"0{_fraction(behind)}"]
    forms += [f"[1-9][0-9]{{{n - 1}}}{_fraction(min(behind, total - n))}" for n in range(1, min(before, total) + 1)]
    if most is None and places is None:
        forms.append(rf"[1-9]{_fraction(total - 1)}[eE][+-]?[0-9]{{1,2}}")
    return f"-?{either(forms)}"


def _fraction(room: int) -> str:
    return rf"(\.[0-9]{times(1, room)})?" if room > 0 else ""
