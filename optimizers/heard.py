"""What a run has heard from a study that it shares: `study.jsonl` in its folder, one line for each event.

The study goes on growing, so what it said at a moment can't be asked for again. Each answer is written down before it
is used, and a run that is resumed is given the same answers in the same order, until the record ends.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError


class Heard:
    """The record at `path`, which is made with its first line. A line that was cut short by a kill is cut off.

    Raises `InputError` for a file that is no such record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._number = 0
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        try:
            self._events = deque(dict(json.loads(line)) for line in whole.splitlines())
        except (ValueError, TypeError) as error:
            raise self.wrong("not a record of what a study said") from error

    def known(self, kind: str, ask: Callable[[], Any]) -> Any:
        """What is written down as the next event, which is one of this kind, or else what `ask` says now."""
        self._number += 1
        if self._events:
            event = self._events.popleft()
            if kind not in event:
                raise self.wrong(f"the event {kind!r} is not where the run comes to it")
            return event[kind]
        answer = ask()
        self._append(json.dumps({kind: answer}, ensure_ascii=False, separators=(",", ":")) + "\n")
        return answer

    def _append(self, line: str) -> None:
        """Add a whole line, or, where there is no room for it, nothing."""
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            hint = "Make room on the disk and start the same command again: the run resumes where it stopped."
            raise RunError(f"can't write: {error.strerror}", path=self.path, hint=hint) from error

    def wrong(self, message: str) -> InputError:
        """The error for a record that says something else than a study has said to this run."""
        hint = "Remove the run's folder, or compile with --fresh."
        return InputError(message, path=self.path, line=self._number or None, hint=hint)
