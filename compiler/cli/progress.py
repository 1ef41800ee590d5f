"""How long work is shown: a bar on a terminal, plain lines elsewhere. All of it goes to standard error.

The reporter of a compile says where the run stands: the phase, the share of the budget that is spent, the best score
so far, and an estimate of the time left. The share and the time come from the run's own clock, which goes on from
where it stood when a run is resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .screen import clock_text, console, counted, note, short_path

if TYPE_CHECKING:
    from rich.progress import Progress

    from ...optimizers.base import Trial
    from ..run_folder import RunFolder
    from ..task import Reporter, Task

PHASES = {
    "baseline": "running the program as written on dev",
    "demos": "gathering demos on train",
    "search": "searching",
    "test": "scoring baseline and winner on test",
}


class Lines:
    """A reporter that says in plain lines what happens: one for each phase, and one for each new best."""

    def __init__(self, say: Callable[[str], None] = note) -> None:
        self._say = say
        self._metric = "score"

    def begin(self, task: Task, folder: RunFolder, recorded: int) -> None:
        """See `Reporter.begin`."""
        about = task.target.description
        self._metric = task.metric.name
        self._say(f"{task.name} on {about.name} ({about.dtype}, {about.device})")
        if "notice" in about.extra:
            self._say(f"note: {about.extra['notice']}")
        examples = ", ".join(f"{len(rows)} {name}" for name, rows in _splits(task).items())
        self._say(f"examples {examples}; budget {budget_text(task.budget)}; seed {task.seed}")
        if task.study is not None:
            self._say(f"study {task.study.shown}, with what other processes tell there")
        if folder.resumed:
            kept = counted(recorded, "recorded model call")
            self._say(f"resuming the run {short_path(folder.path)}, which has {kept}")
        else:
            self._say(f"run {short_path(folder.path)}")

    def phase(self, name: str, share: float) -> None:
        """See `Reporter.phase`."""
        self._say(f"{name}: {PHASES.get(name, name)} ({share:.0%} of the budget spent)")

    def runs(self, done: int, seconds: float) -> None:
        """See `Reporter.runs`."""

    def trial(self, trial: Trial, share: float, seconds: float) -> None:
        """See `Reporter.trial`."""
        if not trial.best or trial.score is None:
            return
        unread = f", {counted(trial.unread, 'answer')} unread" if trial.unread else ""
        whose = "" if trial.place is None else f", of process {trial.place},"
        what = "baseline" if trial.number == 0 else f"trial {trial.number}{whose} is the best so far"
        self._say(f"  {what}: {self._metric} {trial.score:.3f} on dev{unread} ({share:.0%} of the budget spent)")

    def stopping(self, reason: str) -> None:
        """See `Reporter.stopping`."""
        from ..stopping import WISHES

        self._say(f"stopping after this block: {WISHES[reason]}")


class Bar(Lines):
    """`Lines`, with a bar under them that says how far the run is and how long it still takes."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(lambda line: progress.console.print(line))
        self._progress = progress
        self._bar = progress.add_task("opening", total=1.0, best="", ends=None)
        self._calls: int | None = None
        self._seconds: float | None = None
        self._asked = False
        self._told = 0.0
        self._tests = 0
        self._before_test: int | None = None
        self._done = 0

    def begin(self, task: Task, folder: RunFolder, recorded: int) -> None:
        """See `Reporter.begin`."""
        super().begin(task, folder, recorded)
        self._calls, self._seconds = task.budget.metric_calls, task.budget.seconds
        self._asked = task.budget.model_calls is not None or task.budget.tokens is not None
        self._tests = 2 * len(task.test)  # baseline and winner

    def phase(self, name: str, share: float) -> None:
        """See `Reporter.phase`."""
        self._before_test, self._told = self._done if name == "test" else None, share
        self._progress.update(self._bar, description=name, completed=0.0 if name == "test" else share)

    def runs(self, done: int, seconds: float) -> None:
        """See `Reporter.runs`."""
        self._done = max(self._done, done)
        share, left = self._estimate(seconds)
        ends = None if left is None else time.monotonic() + left
        self._progress.update(self._bar, completed=share, ends=ends)

    def trial(self, trial: Trial, share: float, seconds: float) -> None:
        """See `Reporter.trial`."""
        super().trial(trial, share, seconds)
        self._told = share
        if trial.best and trial.score is not None:
            best = f"best {self._metric} {trial.score:.3f}"
            self._progress.update(self._bar, best=best)

    def _estimate(self, seconds: float) -> tuple[float, float | None]:
        """The share that is done, of the budget or of the test phase, and the seconds that are left."""
        pace = seconds / max(1, self._done)
        if self._before_test is not None:
            tested = self._done - self._before_test
            return tested / max(1, self._tests), pace * (self._tests - tested)
        shares = [self._done / self._calls] if self._calls else []
        lefts = [pace * (self._calls - self._done + self._tests)] if self._calls else []
        if self._seconds:
            shares.append(seconds / self._seconds)
            lefts.append(self._seconds - seconds)
        if self._asked and self._told:  # known only after a trial: what the model is asked is not told in between
            shares.append(self._told)
            lefts.append(seconds / self._told * (1.0 - self._told))
        return min(1.0, max(shares, default=0.0)), min(lefts, default=None)


@contextmanager
def reporting(*, quiet: bool = False) -> Iterator[Reporter]:
    """The reporter of a compile: with a bar on a terminal, else plain lines."""
    screen = console(stderr=True)
    if quiet or not screen.is_terminal:
        yield Lines()
        return
    with _bar("{task.fields[best]}", _time_left) as progress:
        yield Bar(progress)
    note()


@contextmanager
def counting(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None] | None]:
    """A function to be told how many of `total` are done; None where there is no terminal to show it on."""
    if quiet or not console(stderr=True).is_terminal:
        yield None
        return
    with _bar("{task.completed}/{task.total}") as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.update(bar, completed=done)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something is being done. The function that is given says what, in a line of text."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield note
        return
    with screen.status(f"{what} ...") as status:
        yield lambda line: status.update(f"{line} ...")


def budget_text(budget: Any) -> str:
    """A budget in words: `2,400 metric calls or 600 seconds`."""
    parts = [counted(budget.metric_calls, "metric call")] if budget.metric_calls else []
    parts += [counted(budget.model_calls, "model call")] if budget.model_calls else []
    parts += [counted(budget.tokens, "token")] if budget.tokens else []
    parts += [f"{budget.seconds:g} seconds"] if budget.seconds else []
    return " or ".join(parts) or "none"


def _splits(task: Task) -> dict[str, Any]:
    return {name: getattr(task, name) for name in ("train", "dev", "test") if len(getattr(task, name))}


def _time_left(task: Any) -> str:
    """The time until `ends`, which runs on between two estimates."""
    ends = task.fields["ends"]
    return "" if ends is None else f"{clock_text(ends - time.monotonic())} left"


def _bar(*columns: str | Callable[[Any], str]) -> Progress:
    """A bar with `columns` after it: a template, or a function of the bar's task."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
    from rich.text import Text

    class Told(ProgressColumn):
        def __init__(self, tell: Callable[[Any], str]) -> None:
            super().__init__()
            self._tell = tell

        def render(self, task: Any) -> Text:
            return Text(self._tell(task))

    last = [Told(each) if callable(each) else TextColumn(each, markup=False) for each in columns]
    first = TextColumn("{task.description}", markup=False)
    return Progress(first, BarColumn(), TaskProgressColumn(), *last, console=console(stderr=True), transient=True)
