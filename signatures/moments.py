"""Regular expressions for dates, times and UUIDs: every match is a value, and every value's usual text matches.

Dates and times are those of ISO 8601 that `isoformat` writes, in the proleptic Gregorian calendar: the 31st of April is
refused, and the 29th of February but in leap years. Seconds may be left out, and a zone be added. UUIDs are those of
RFC 9562 with their four hyphens, in either case.
"""

from __future__ import annotations

from datetime import date

from .numerals import fixed

_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAYS = (
    "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])",
    "(0[469]|11)-(0[1-9]|[12][0-9]|30)",
    "02-(0[1-9]|1[0-9]|2[0-8])",
)
DATE = f"({_YEAR}-({'|'.join(_DAYS)})|{_LEAP}-02-29)"
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?"
_ZONE = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_HEX = "[0-9a-fA-F]"


def day(low: date | None = None, high: date | None = None) -> tuple[str, ...]:
    """The dates from `low` to `high`, as expressions that must all match. Empty when there is none."""
    if low is None and high is None:
        return (DATE,)
    between = fixed((low or date.min).isoformat(), (high or date.max).isoformat())
    return () if between is None else (DATE, between)


def clock(zone: bool | None = None) -> str:
    """A time of day. `zone`: with a time zone, without, or either."""
    return _CLOCK + (f"{_ZONE}?" if zone is None else _ZONE if zone else "")


def moment(zone: bool | None = None) -> str:
    """A date and a time."""
    return f"{DATE}T{clock(zone)}"


def uuid(version: int | None = None) -> str:
    """A UUID; with `version`, one of that version, which its third and fourth group tell."""
    third, fourth = (f"{_HEX}{{4}}", f"{_HEX}{{4}}")
    if version is not None:
        third, fourth = f"{version:x}{_HEX}{{3}}", f"[89abAB]{_HEX}{{3}}"
    return f"{_HEX}{{8}}-{_HEX}{{4}}-{third}-{fourth}-{_HEX}{{12}}"
