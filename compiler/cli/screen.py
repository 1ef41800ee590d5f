"""What the verbs print: lines on standard output, notes on standard error, columns, and numbers as people read them.

Nothing is wrapped or cut, so that what is piped into a file is whole. Colour is left out where the output is no
terminal or `NO_COLOR` is set.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Interval(Protocol):
    """A score with its 95 % interval, as a run or a compiled program holds it."""

    @property
    def value(self) -> float:
        """The score."""

    @property
    def low(self) -> float | None:
        """The interval's lower end."""

    @property
    def high(self) -> float | None:
        """The interval's upper end."""


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(text: str = "", style: str | None = None) -> None:
    """Print a line on standard output."""
    console().print(text, style=style)


def note(text: str = "", style: str | None = None) -> None:
    """Print a line on standard error."""
    console(stderr=True).print(text, style=style)


def warn(text: str) -> None:
    """Print a warning on standard error; where a bar is shown, above it."""
    print(f"warning: {text}", file=sys.stderr)  # not a console of its own, which would write into the bar


def say_json(data: Any, *, indent: int | None = None) -> None:
    """Print data as JSON: on one line, or indented."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf8")
    sys.stdout.write(json.dumps(data, ensure_ascii=not utf8, indent=indent) + "\n")


def columns(rows: Sequence[Sequence[str]], *, gap: int = 2, indent: int = 0) -> list[str]:
    """Rows of cells as lines whose columns stand under each other."""
    from rich.cells import cell_len

    count = max((len(row) for row in rows), default=0)
    widths = [max((cell_len(row[i]) for row in rows if i < len(row)), default=0) for i in range(count)]
    lines = []
    for row in rows:
        cells = [cell + " " * (width - cell_len(cell) + gap) for cell, width in zip(row, widths, strict=False)]
        lines.append((" " * indent + "".join(cells)).rstrip())
    return lines


def score_text(score: Interval) -> str:
    """A score with its interval: `0.583 [0.494, 0.668]`."""
    interval = "" if score.low is None or score.high is None else f" [{score.low:.3f}, {score.high:.3f}]"
    return f"{score.value:.3f}{interval}"


def clock_text(seconds: float) -> str:
    """A duration: `0:07`, `12:30`, `1:02:03`."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def bytes_text(count: int) -> str:
    """A number of bytes in decimal units: `269 MB`."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number with its noun: `1 test`, `2 tests`, `1,200 metric calls`."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def short_path(path: str | os.PathLike[str]) -> str:
    """A path from the working folder, where it lies inside it."""
    place, here = Path(path), Path.cwd()
    return str(place.relative_to(here)) if place.is_absolute() and place.is_relative_to(here) else str(place)


def one_line(text: str, most: int = 100) -> str:
    """Text on one line, in JSON's quotes, cut where it is long."""
    flat = " ".join(text.split())
    return json.dumps(flat if len(flat) <= most else flat[: most - 3] + "...", ensure_ascii=False)


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Typed outputs as JSON holds them."""
    from pydantic_core import to_jsonable_python

    plain: dict[str, Any] = to_jsonable_python(dict(values), bytes_mode="base64")
    return plain
