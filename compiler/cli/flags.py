"""A program's inputs on the command line: `--ticket "I was charged twice"`, or a JSON object on standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError, nearest
from ...signatures import check_value
from ...signatures.types import shape

STDIN = "standard input"


Flags = Sequence[tuple[str, str | None]]
"""What was given as `--NAME VALUE` or `--NAME=VALUE`, in order; the value is None where the words end before it."""


def read_words(words: Sequence[str]) -> tuple[Path, Flags]:
    """The program's file and the flags among the words that are no options of the verb. Raises `InputError`."""
    files, flags, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            files.append(word)
            continue
        flag, equals, value = word.partition("=")
        flags.append((flag, value if equals else rest.pop(0) if rest else None))
    if not files:
        raise InputError("the program's file is missing", expected="PROGRAM and --NAME VALUE for each of its inputs")
    if len(files) > 1:
        raise InputError(f"found {files[1]!r}", expected="--NAME VALUE, with NAME an input of the program")
    return Path(files[0]), flags


def read_flags(flags: Flags, types: Mapping[str, Any], options: Iterable[str] = ()) -> dict[str, Any]:
    """The typed inputs that the flags give.

    types: input -> type; options: the verb's own, one of which may have been meant. A name's `-` may stand for `_`.
    Raises `InputError` for an unknown name (with the nearest), a missing value, or one of another type.
    """
    given: dict[str, Any] = {}
    for flag, value in flags:
        name = _input_named(flag, types, options)
        if value is None:
            raise InputError(f"{flag} has no value", expected=f"{flag} VALUE")
        if name in given:
            raise InputError(f"{flag} is given twice")
        given[name] = check_value(value, types[name], field=flag)
    return given


def read_stdin(types: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs in the JSON object on standard input. Raises `InputError`, also when nobody gave one."""
    flags = " ".join(f"--{name} VALUE" for name in types)
    text = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    if not text.strip():
        hint = "Or give a JSON object on standard input, or many rows with --input FILE."
        raise InputError("there are no inputs", expected=flags, hint=hint)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", path=STDIN, expected="an object with the inputs") from None
    if not isinstance(values, dict):
        raise InputError(f"found {type(values).__name__}", path=STDIN, expected="a JSON object with the inputs")
    for name in values:
        if name not in types:
            raise _unknown(repr(name), nearest(name, types), types, path=STDIN)
    return {name: check_value(value, types[name], field=name, path=STDIN) for name, value in values.items()}


def check_complete(given: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raise `InputError` when an input that the program needs is missing."""
    for name, kind in types.items():
        if name not in given and not shape(kind).optional:
            raise InputError(f"the input {name!r} is missing", expected=f"--{name} VALUE")


def _input_named(flag: str, types: Mapping[str, Any], options: Iterable[str]) -> str:
    name = flag.removeprefix("--")
    for spelled in (name, name.replace("-", "_")):
        if spelled in types:
            return spelled
    near = nearest(name, [*types, *(option.removeprefix("--") for option in options)])
    raise _unknown(flag, f"--{near}" if near else None, types)


def _unknown(found: str, near: str | None, types: Mapping[str, Any], path: str | None = None) -> InputError:
    expected = None if near else f"one of {', '.join(types)}" if types else "no inputs"
    return InputError(f"the program has no input {found}", path=path, nearest=near, expected=expected)
