"""What of a search its journal can't tell: what the clock decided, and when the user wanted an end.

A user ends a search by a file named `stop` in the run's folder, or by Ctrl-C: it stops after the block that is running,
and the run goes on to its end with the best program so far. Ctrl-C once more leaves at once. All of it stands in
`run.json` under `search` as soon as it is decided, so that a run which is resumed decides the same again.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .run_folder import RunFolder

FILE = "stop"
WISHES: Mapping[str, str] = MappingProxyType(
    {"file": f"there is a file {FILE!r} in the run's folder", "interrupt": "press Ctrl-C again to leave at once"}
)
BY_CHANCE = ("seconds", "file", "interrupt")  # what ends a search at a moment that only `run.json` can tell


class Decisions:
    """The decisions of one search. `state` is what stands in `run.json`, those of the run's earlier lives included.

    told: called with `file` or `interrupt` when the user's wish is known.
    """

    def __init__(self, folder: RunFolder, state: dict[str, Any], told: Callable[[str], None]) -> None:
        self._folder, self._state, self._told = folder, state, told
        self.known: Mapping[str, Any] = state.get("search") or {}
        self.schedule: list[list[int]] = [list(each) for each in self.known.get("generations", ())]
        self._generations: list[list[int]] = []
        self._stopping: dict[str, Any] = dict(self.known.get("stopping") or {})
        self._interrupted = False
        self._screen = sys.stderr

    @property
    def over(self) -> str | None:
        """What stopped the search in an earlier life; None where it was not over."""
        return self.known.get("stopped_by")

    @property
    def until(self) -> int | None:
        """After how many steps an optimizer that counts them was stopped, where the record can't tell."""
        return self.known.get("steps") if self.over in BY_CHANCE else None

    def plan(self, number: int, alive: Sequence[int]) -> None:
        """See `Race.planned`: what was not known already is written down."""
        self._generations[number:] = [list(alive)]
        if number >= len(self.schedule) or len(alive) > len(self.schedule[number]):
            self._keep()

    def asked(self, steps: int = 0) -> str | None:
        """Whether the user wants an end (`file`, `interrupt`), after so many steps where they are counted."""
        if self.over:
            return None
        if not self._stopping:
            reason = "interrupt" if self._interrupted else "file" if (self._folder.path / FILE).exists() else None
            if reason is None:
                return None
            if reason == "file":
                self._tell(reason)
            done = self._generations
            self._stopping = {"by": reason, "steps": steps, "known": [len(done), len(done[-1]) if done else 0]}
            self._keep()
        return self._stopping["by"] if steps >= self._stopping["steps"] else None

    def ended(self, trials: int, stopped_by: str, told: Mapping[str, Any]) -> str:
        """Write down what became of the search, where that is not known yet, and give what stopped it."""
        if self.over is None:
            ended = {"trials": trials, "stopped_by": stopped_by, **told}
            self._state["search"] = {"generations": self._generations, **ended}
        self._folder.write({**self._state, "status": "running"})
        return self.over or stopped_by

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, the first Ctrl-C asks for the end; a second one is Python's own. Nothing is changed outside
        of the main thread, nor where somebody else deals with Ctrl-C.
        """
        usual = signal.default_int_handler
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not usual or self.over:
            yield
            return

        def hear(number: int, frame: object) -> None:
            signal.signal(signal.SIGINT, usual)
            self._interrupted = True
            self._tell("interrupt")

        self._screen = sys.stderr
        signal.signal(signal.SIGINT, hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    def _tell(self, reason: str) -> None:
        with contextlib.redirect_stderr(self._screen):  # what DSPy's optimizers print goes elsewhere
            self._told(reason)

    def _keep(self) -> None:
        kept: dict[str, Any] = {"generations": [list(each) for each in self._generations]}
        if self._stopping:
            kept["stopping"] = dict(self._stopping)
        self._state["search"] = kept
        self._folder.write({**self._state, "status": "running"})


def forget_interrupt(state: Mapping[str, Any]) -> None:
    """Take out of `state` that Ctrl-C was pressed, and what came of it, where it was pressed again: the run is to go on
    as if nobody had.
    """
    search = state.get("search") or {}
    if (search.get("stopping") or {}).get("by") == "interrupt":
        generations, blocks = search.pop("stopping")["known"]
        search["generations"] = search["generations"][:generations]
        if search["generations"]:
            search["generations"][-1] = search["generations"][-1][:blocks]
