"""The folder of a run: `.cuecard/runs/<name>-<n>/`.

It holds `run.json` (what the run is, how it stands, its scores), `trials.jsonl`, `study.db` (Optuna), `calls.jsonl`
(every model call, see `journal.py`) and, in the end, `scores.json` (the chosen program's score of each dev example). A
run that did not finish is taken up again by the next compile with the same fingerprint: the same program, data, metric,
target, settings and versions.
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
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                "another process is working in this run", path=self.path, hint="Wait for it, or compile with --fresh."
            ) from error
        return self

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


def open_run(root: Path, name: str, print_of: str, *, fresh: bool = False) -> RunFolder:
    """The run to work in: the last one of this name if it is unfinished and has this fingerprint, else a new one."""
    numbered = sorted(_numbers(root, name))
    if numbered and not fresh:
        last = root / f"{name}-{numbered[-1]}"
        state = _read(last / "run.json")
        if state.get("fingerprint") == print_of and state.get("status") != "finished":
            return RunFolder(last, resumed=True)
    path = root / f"{name}-{numbered[-1] + 1 if numbered else 1}"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"can't make the run's folder: {error.strerror}", path=path) from error
    return RunFolder(path, resumed=False)


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
