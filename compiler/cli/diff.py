"""`cuecard diff`: two programs, runs or baselines beside each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import AllowOutside, AsJson
from .screen import columns, console, counted, one_line, say, say_json, score_text

if TYPE_CHECKING:
    from rich.text import Text

    from ..diff import Comparison, Difference, Flip, PredictorDiff
    from ..difference import Part

EXAMPLE = """\
\b
Example:
  $ cuecard diff ticket_triage.yaml ticket_triage.compiled.yaml
  before  ticket_triage.yaml           program
  after   ticket_triage.compiled.yaml  program

\b
  route
    instruction  Route the [-ticket-].   Route the {+support request+}.
    demo 1                               ticket: I was charged twice
                                         queue: billing
    format       chat                    completion
"""

SHOWN = 10  # flipped examples that are shown each way
LEAST, UNKNOWN_WIDTH = 60, 120  # columns of the screen
CUT = 300  # characters of a setting
First = Annotated[
    Path,
    typer.Argument(metavar="A", show_default=False, help="A program, a run's folder, a recording or a baseline."),
]
Second = Annotated[Path, typer.Argument(metavar="B", show_default=False, help="What to compare it with.")]
Unchanged = Annotated[bool, typer.Option("--all", help="Show what is the same too, and every example that changed.")]


def diff(
    before: First,
    after: Second,
    unchanged: Unchanged = False,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
) -> int:
    """Compare two programs, runs, recordings or baselines: prompts, settings, scores, examples that flipped.

    What differs in a text is marked word by word: [-gone-] and {+new+}, or in colour on a terminal. A difference in
    scores is B's less A's, with its 95 % interval on the rows that both have.
    """
    from ..diff import compare
    from ..sides import read_side

    found = compare(read_side(before, allow_outside=allow_outside), read_side(after, allow_outside=allow_outside))
    if as_json:
        say_json(found.as_dict(), indent=2)
    else:
        show(found, unchanged=unchanged)
    return 0


def show(found: Difference, *, unchanged: bool = False) -> None:
    """Print a difference."""
    for line in columns([(which, side.name, side.kind) for which, side in found.sides]):
        say(line)
    alike = [each.name for each in found.predictors if each.same]
    for predictor in found.predictors:
        if unchanged or not predictor.same:
            say()
            _predictor(predictor, unchanged=unchanged)
    if alike and not unchanged:
        say()
        say(f"the same: {', '.join(alike)}")
    facts = [(name, _side(a), _side(b)) for name, a, b in found.facts if unchanged or (a and b)]
    if facts:
        say()
        for line in columns(facts):
            say(line)
    for part in (_scores(found), _comparisons(found.comparisons)):
        lines = columns(list(part))
        for place, line in enumerate(lines):
            say(f"\n{line}" if place == 0 else line)
    for title, rows, style in (("better", found.better, "green"), ("worse", found.worse, "red")):
        if rows:
            say()
            show_flips(title, rows, style, len(rows) if unchanged else SHOWN)
    for text in found.notes:
        say()
        say(f"note: {text}")


def _predictor(found: PredictorDiff, *, unchanged: bool) -> None:
    """A predictor's instruction, demos and settings, before and after side by side."""
    from rich.console import Console
    from rich.table import Table

    from ..difference import word_parts

    say(f"{found.name}{f' (only {found.only})' if found.only else ''}", "bold")
    width = max(LEAST, console().width if console().is_terminal else UNKNOWN_WIDTH)
    labels = ["  instruction", *(f"  {name}" for name, _, _ in found.settings)]
    first = min(2 * width // 5, max(map(len, labels)))
    half = (width - first - 4) // 2
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(width=first, overflow="fold")
    table.add_column(width=half, overflow="fold")
    table.add_column(width=half, overflow="fold")
    if unchanged or any(kind != "same" for kind, _ in found.instructions):
        table.add_row("  instruction", *_cells(found.instructions))
    for place, (before, after) in enumerate(found.demos or (), start=1):
        if unchanged or before != after:
            table.add_row(f"  demo {place}", *_cells(word_parts(before or "", after or "")))
    for name, was, now in found.settings:
        table.add_row(f"  {name}", _cut(_side(was)), _cut(_side(now)))
    screen = Console(width=width, highlight=False, markup=False, emoji=False)
    with screen.capture() as drawn:
        screen.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))


def _cells(parts: tuple[Part, ...] | list[Part]) -> tuple[Text, Text]:
    """The two texts, with what only one of them has marked."""
    from rich.text import Text

    coloured = console().is_terminal and not console().no_color
    before, after = Text(), Text()
    for kind, text in parts:
        if kind == "same":
            before.append(text)
            after.append(text)
        elif coloured:
            (before if kind == "before" else after).append(text, "red strike" if kind == "before" else "green")
        elif kind == "before":
            before.append(f"[-{text}-]")
        else:
            after.append(f"{{+{text}+}}")
    return before, after


def _scores(found: Difference) -> Iterator[tuple[str, ...]]:
    """The scores that the sides report themselves."""
    if found.scores:
        yield "score", "before", "after"
    for split, before, after in found.scores:
        yield split, _reported(before), _reported(after)


def _reported(score: Mapping[str, float] | None) -> str:
    if score is None:
        return "-"
    ends = f" [{score['low']:.3f}, {score['high']:.3f}]" if "low" in score and "high" in score else ""
    return f"{score['value']:.3f}{ends}"


def _comparisons(found: tuple[Comparison, ...]) -> Iterator[tuple[str, ...]]:
    """The metrics on the rows that both sides have."""
    if found:
        yield "metric", "before", "after", "difference", "p", "better, worse, equal", "could go unseen"
    for each in found:
        paired = each.paired
        yield (
            each.metric,
            score_text(each.before),
            score_text(each.after),
            f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]",
            "< 0.001" if each.p_value < 0.001 else f"{each.p_value:.3f}",
            f"{paired.wins}, {paired.losses}, {paired.ties} of {paired.n}",
            f"up to {each.detectable:.3f}",
        )


def show_flips(title: str, rows: tuple[Flip, ...], style: str, most: int) -> None:
    """Print examples that flipped, the first `most` of them."""
    say(f"{title}: {counted(len(rows), 'example')}", style)
    lines = []
    for flip in rows[:most]:
        cells = [f"  {flip.before:.3f} -> {flip.after:.3f}"]
        cells.append(flip.key if flip.inputs is None else "  ".join(_value(value) for value in flip.inputs.values()))
        if flip.answers is not None:
            cells.append(" -> ".join(_answer(answer) for answer in flip.answers))
        lines.append(cells)
    for line in columns(lines):
        say(line)
    if len(rows) > most:
        say(f"  ... and {len(rows) - most} more (--all)")


def _answer(answer: Any) -> str:
    if not isinstance(answer, Mapping):
        return str(answer)
    return ", ".join(_value(value) for value in answer.values())


def _value(value: Any) -> str:
    return one_line(value if isinstance(value, str) else str(value), 60)


def _side(value: str | None) -> str:
    return "-" if value is None else value or '""'


def _cut(text: str) -> str:
    return text if len(text) <= CUT else text[: CUT - 3] + "..."
