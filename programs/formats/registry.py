"""Formats by name. A user's package adds its own through the entry-point group `cuecard.formats`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from ...errors import InputError, nearest
from .base import Format
from .chat import Chat, Turns, TurnsLabelled
from .completion import Completion
from .json_format import Json
from .markers import Markers
from .xml_format import Xml

GROUP = "cuecard.formats"
BUILT_IN: Mapping[str, type[Format]] = MappingProxyType(
    {format_.name: format_ for format_ in (Completion, Turns, TurnsLabelled, Chat, Markers, Json, Xml)}
)


def names() -> tuple[str, ...]:
    """The names of all formats: those that come with Cuecard, then those that other packages add, sorted."""
    return (*BUILT_IN, *sorted(set(_added()) - set(BUILT_IN)))


def format_named(choice: str | Mapping[str, Any]) -> Format:
    """The format that a spec or a search space names: `"turns"`, or `{"name": "turns", "labels": True}`.

    Raises `InputError` for a name or an option that does not exist, and for an added format that cannot be used.
    """
    options = {"name": choice} if isinstance(choice, str) else dict(choice) if isinstance(choice, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"{choice!r} names no format", expected='a name, or a mapping with "name" and options')
    if name in BUILT_IN:
        return BUILT_IN[name](**options)
    if name not in (added := _added()):
        raise InputError(
            f"unknown format {name!r}", expected=f"one of {', '.join(names())}", nearest=nearest(name, names())
        )
    return _load(added[name])(**options)


def format_choice(format_: Format) -> str | dict[str, Any]:
    """What `format_named` makes this format of: its name, with the options that differ from their defaults."""
    options = {key: value for key, value in format_.options.items() if value != format_.defaults[key]}
    return {"name": format_.name, **options} if options else format_.name


def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(point: EntryPoint) -> type[Format]:
    try:
        found = point.load()
    except Exception as error:
        raise InputError(f"the format {point.name!r} cannot be imported from {point.value!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Format)):
        raise InputError(f"{point.value!r} is no format", expected="a subclass of cuecard.programs.formats.Format")
    if found.name != point.name:
        raise InputError(
            f"the format {point.value!r} calls itself {found.name!r}", expected=f"its entry point's name {point.name!r}"
        )
    return found
