"""The folder of a run: `.cuecard/runs/<name>-<n>/`.

It holds `run.json` (what the run is, how it stands, its scores), `trials.jsonl`, `study.db` (Optuna), `calls.jsonl`
(every model call, see `journal.py`) and, in the end, `scores.json` (the chosen program's score of each dev example);
`study.jsonl` too, where the study is shared with other processes (what it said, see `optimizers/heard.py`). A run that
did not finish is taken up again by the next compile with the same fingerprint: the same program, data, metric, target,
settings and versions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError, RunError
from ..files import write_atomic

RUNS = Path(".cuecard") / "runs"


def fingerprint(parts: Mapping[str, Any]) -> str:
    """The hash of everything that decides a run's result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class RunFolder:
    """One run's folder, locked while this process works in it. Use as a context manager."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed
        self._lock = FileLock(str(path / ".lock"))

    def __enter__(self) -> RunFolder:
        if not self.claim():
            raise InputError(
                "another process is working in this run", path=self.path, hint="Wait for it, or compile with --fresh."
            )
        return self

    def claim(self) -> bool:
        """Lock the folder before it is entered, unless another process is working in it."""
        try:
            if not self._lock.is_locked:
                self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def calls(self) -> Path:
        """The journal of model calls."""
        return self.path / "calls.jsonl"

    @property
    def trials(self) -> Path:
        """One line per trial."""
        return self.path / "trials.jsonl"

    @property
    def study(self) -> Path:
        """Optuna's database."""
        return self.path / "study.db"

    @property
    def study_url(self) -> str:
        """Optuna's database as SQLAlchemy names it, where `?` and `%` in a path mean something."""
        from sqlalchemy.engine import URL

        return URL.create("sqlite", database=str(self.study)).render_as_string()

    @property
    def heard(self) -> Path:
        """What a study said that is shared with other processes."""
        return self.path / "study.jsonl"

    @property
    def run(self) -> Path:
        """What the run is and how it stands."""
        return self.path / "run.json"

    @property
    def scores(self) -> Path:
        """The chosen program's score of every dev example, once the run has ended."""
        return self.path / "scores.json"

    def begin(self) -> None:
        """Clear what the run writes anew in each life: the trials and the study, which the journal leads to again."""
        for path in (self.trials, self.study, Path(f"{self.study}-journal")):
            path.unlink(missing_ok=True)

    def write(self, state: Mapping[str, Any]) -> None:
        """Write `run.json`, whole or not at all."""
        write_atomic(self.run, json.dumps(state, indent=2, ensure_ascii=False) + "\n")

    def read(self) -> dict[str, Any]:
        """What `run.json` says; empty when there is none yet."""
        return _read(self.run)

    def append_trial(self, line: Mapping[str, Any]) -> None:
        """Add a line to `trials.jsonl`. Raises `RunError` when the disk is full."""
        try:
            with self.trials.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunError(
                f"can't write: {error.strerror}", path=self.trials, hint="Make room and start again."
            ) from error


def open_run(root: Path, name: str, print_of: str, *, fresh: bool = False, shared: bool = False) -> RunFolder:
    """The run to work in: the last one of this name if it is unfinished and has this fingerprint, else a new one.

    shared: whether several processes may make the same compile side by side, each in a run of its own: then any
    unfinished one is taken up in which nobody is working, and it is locked already.
    """
    numbered = sorted(_numbers(root, name))
    for number in [] if fresh else numbered if shared else numbered[-1:]:
        folder = RunFolder(root / f"{name}-{number}", resumed=True)
        if _unfinished(folder, print_of) and (not shared or folder.claim()):
            if _unfinished(folder, print_of):  # the process that was working in it may just have finished
                return folder
            folder.__exit__()
    number = numbered[-1] + 1 if numbered else 1
    while True:
        path = root / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            if not shared or not path.is_dir():
                raise RunError(f"can't make the run's folder: {error.strerror}", path=path) from error
            number += 1  # another process has made it just now
        except OSError as error:
            raise RunError(f"can't make the run's folder: {error.strerror}", path=path) from error
        else:
            return RunFolder(path, resumed=False)


def _unfinished(folder: RunFolder, print_of: str) -> bool:
    state = folder.read()
    return state.get("fingerprint") == print_of and state.get("status") != "finished"


def _numbers(root: Path, name: str) -> list[int]:
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    folders = [path.name for path in root.iterdir()] if root.is_dir() else []
    return [int(match[1]) for folder in folders if (match := pattern.fullmatch(folder))]


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a run that was killed before it wrote anything is simply not taken up
    return state if isinstance(state, dict) else {}
