"""A study that several processes share: each searches by itself, and tells the others what it has found.

The study is one of Optuna's, in a storage that all can reach (`storages.py`). A process keeps its own study beside it,
for its own sampler, and exchanges whole trials with the shared one: those of its own that are over it adds there, and
those of others it reads before each generation (`told.py`). So nothing is half there, nobody waits for anybody, and a
process that is killed leaves nothing behind that others would stumble over. What it read is written to the run's folder
(`heard.py`), which makes a resumed run the same.

Entries that are no trials are trials in the state FAIL, which samplers ignore. A storage numbers trials one after
the other, whoever adds them, so the lowest number settles who was first:

- `joined`: a process has come, with what its search is about. The first one says what the study is of, and others
  must agree; its place among them gives a process a random stream of its own.
- `start`: a process tries a starting point. A point belongs to the first one that has said so.

A starting point of a process that never comes back is not tried by another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import uuid4

import optuna
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..metrics.base import Metric
from ..seeds import derive_seed
from .base import Trial
from .heard import Heard
from .space import Space
from .storages import Address, close_storage, open_storage, telling
from .told import Told, frozen_trial, space_digest, told_of, trial_of

JOINED, START, TRIAL, MEASUREMENTS = "cuecard_joined", "cuecard_start", "cuecard_trial", "cuecard_measurements"
ROWS_A_PART = 200  # of the measurements: some databases hold no longer text
PARTS: Mapping[str, str] = MappingProxyType(
    {
        "program": "the program",
        "data": "the train or dev rows",
        "metric": "the metric",
        "target": "the model",
        "search": "what `search` asks for",
        "seed": "the seed",
        "space": "the search space that comes of it",
    }
)  # of what a study is of
M = TypeVar("M", bound=BaseModel)


class Joined(BaseModel):
    """The entry of a process: the name of its run, and of what its search is, by `PARTS`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    run: str
    of: dict[str, str]


class Start(BaseModel):
    """The entry for a starting point, by its number: whose it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    run: str
    start: int = Field(ge=0)


class SharedStudy:
    """One process's side of a shared study. Use it as a context manager; a strategy calls `join` before all else.

    name: of the study in its storage; of: what the search is of, by `PARTS`, but for the space; record: the file for
    what was heard; local: the storage of the process's own study; rows: how many examples dev has. Raises `InputError`
    for an address that can't be opened, and `RunError` where the storage can't be reached.
    """

    def __init__(
        self, address: Address, name: str, of: Mapping[str, str], *, record: Path, local: Any, metric: Metric, rows: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.local = local
        self.place = 0
        self.heard_trials = 0
        self.left_out = 0
        self._address, self._of = address, dict(of)
        self._metric, self._rows = metric, rows
        self._space = Space(())
        self._run = ""
        self._record = Heard(record)
        self._starts_left = True
        self._starts: set[int] = set()
        self._read: set[int] = set()
        self._told: set[int] = set()
        self._storage = open_storage(address)
        with telling(address, opening=True):
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )

    def __enter__(self) -> SharedStudy:
        return self

    def __exit__(self, *_: object) -> None:
        close_storage(self._storage)

    def join(self, space: Space) -> None:
        """Join the study with a search over `space`, or come back to it. Raises `InputError` where it is of something
        else.
        """
        self._space = space
        of = {**self._of, "space": space_digest(space)}
        event = self._record.known("joined", lambda: self._join(of))
        if not isinstance(event, dict) or not {"study", "run", "place"} <= event.keys():
            raise self._record.wrong("not what a study has said to this run")
        joined = self._joined()
        if not joined or joined[0].run != event["study"]:
            raise InputError(
                f"the study at {self._address.shown} is not the one that this run has joined",
                field="study",
                hint="Put that one back, or compile with --fresh to join this one.",
            )
        self._run, self.place = event["run"], event["place"]
        for number, told in list(self._trials()):
            if told is not None and told.run == self._run:
                self._read.add(number)
                self._told.add(told.trial)

    def seed(self, seed: int) -> int:
        """The seed of the process's own random stream; that of the first process is `seed` itself."""
        return seed if self.place == 1 else derive_seed(seed, "place", self.place)

    def claim(self, count: int) -> int | None:
        """Which of the `count` starting points is this process's to try now; None when all are given out."""
        if not self._starts_left:
            return None
        start: int | None = self._record.known("start", lambda: self._claim(count))
        if start is None:
            self._starts_left = False
        else:
            self._starts.add(start)
        return start

    def heard(self) -> list[Trial]:
        """The trials of other processes that have come since this was last asked, without numbers of ours."""
        event = self._record.known("heard", self._listen)
        trials = []
        try:
            for entry in event["trials"]:
                told = Told.model_validate_json(json.dumps(entry["told"]))
                trials.append(trial_of(told, self._space, self._metric, self._rows, entry["place"]))
            self._read |= {entry["number"] for entry in event["trials"]} | set(event["left_out"])
        except (ValueError, TypeError, LookupError) as error:
            raise self._record.wrong("not what a study has said to this run") from error
        self.heard_trials += len(trials)
        self.left_out += len(event["left_out"])
        return trials

    def tell(self, trial: Trial) -> None:
        """Tell the others of a trial of this process that ran on all of dev or was dropped, once over all its lives."""
        if trial.place is not None or trial.status == "failed" or trial.number in self._told:
            return
        told = told_of(trial, self._space, self._run)
        rows = told.measurements
        parts = {f"{MEASUREMENTS}_{n}": rows[n : n + ROWS_A_PART] for n in range(0, len(rows), ROWS_A_PART)}
        plain = told.model_dump(mode="json", exclude={"measurements"})
        with telling(self._address):
            self._study.add_trial(frozen_trial(self._space, told.params, told.value, **{TRIAL: plain, **parts}))
        self._told.add(trial.number)

    def _join(self, of: Mapping[str, str]) -> dict[str, Any]:
        """Enter the process into the study: who came first, who this is, and its place."""
        check_same(self._address, self._study, of)
        run = uuid4().hex
        self._enter(JOINED, Joined(run=run, of=dict(of)))
        check_same(self._address, self._study, of)  # somebody may have come first in between
        runs = [joined.run for joined in self._joined()]
        return {"study": runs[0], "run": run, "place": 1 + runs.index(run)}

    def _claim(self, count: int) -> int | None:
        while True:
            owners = self._owners()
            free = [start for start in range(count) if owners.get(start, self._run) == self._run]
            start = next((start for start in free if start not in self._starts), None)
            if start is None or start in owners:  # claimed in an earlier life, which did not come to write it down
                return start
            self._enter(START, Start(run=self._run, start=start))
            if self._owners()[start] == self._run:
                return start

    def _owners(self) -> dict[int, str]:
        """Starting point -> the run that claimed it first."""
        owners: dict[int, str] = {}
        for trial in self._entries(optuna.trial.TrialState.FAIL):
            found = _parsed(Start, trial.user_attrs.get(START))
            if found is not None:
                owners.setdefault(found.start, found.run)
        return owners

    def _listen(self) -> dict[str, Any]:
        """What others have told since: their trials, and the numbers of those that can't be believed."""
        places = {joined.run: place for place, joined in enumerate(self._joined(), start=1)}
        trials, left_out = [], []
        for number, told in list(self._trials()):
            if told is not None and told.run == self._run:
                self._read.add(number)
                continue
            try:
                if told is None or told.run not in places:
                    raise ValueError("not told by a process that has joined")
                trial_of(told, self._space, self._metric, self._rows, places[told.run])
            except (ValueError, ArithmeticError):  # left out, and counted
                left_out.append(number)
            else:
                trials.append({"number": number, "place": places[told.run], "told": told.model_dump(mode="json")})
        return {"trials": trials, "left_out": left_out}

    def _joined(self) -> list[Joined]:
        return joined_in(self._entries(optuna.trial.TrialState.FAIL))

    def _trials(self) -> Iterator[tuple[int, Told | None]]:
        """The trials that are over and not read yet, by their numbers in the study; None for what is none of ours."""
        for trial in self._entries(optuna.trial.TrialState.COMPLETE):
            if trial.number in self._read:
                continue
            attrs = trial.user_attrs
            plain = attrs.get(TRIAL)
            parts = [attrs[key] for n in range(0, self._rows, ROWS_A_PART) if (key := f"{MEASUREMENTS}_{n}") in attrs]
            whole = isinstance(plain, dict) and all(isinstance(part, list) for part in parts)
            rows = [row for part in parts for row in part] if whole else []
            yield trial.number, _parsed(Told, {**plain, "measurements": rows} if isinstance(plain, dict) else None)

    def _entries(self, state: optuna.trial.TrialState) -> Sequence[optuna.trial.FrozenTrial]:
        with telling(self._address):
            return self._study.get_trials(deepcopy=False, states=(state,))

    def _enter(self, key: str, entry: BaseModel) -> None:
        state = optuna.trial.TrialState.FAIL
        with telling(self._address):
            self._study.add_trial(optuna.trial.create_trial(state=state, user_attrs={key: entry.model_dump()}))


def check_study(address: Address, name: str, of: Mapping[str, str]) -> None:
    """Raise `InputError` where the study at an address is of something else, as far as `of` tells; it may be empty."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(address)
    try:
        with telling(address, opening=True):
            if name in optuna.get_all_study_names(storage):
                check_same(address, optuna.load_study(study_name=name, storage=storage), of)
    finally:
        close_storage(storage)


def check_same(address: Address, study: optuna.Study, of: Mapping[str, str]) -> None:
    """Raise `InputError` where the first process that has joined a study searches for something else."""
    with telling(address, opening=True):
        trials, directions = study.get_trials(deepcopy=False), study.directions
    joined = joined_in(trials)
    if directions != [optuna.study.StudyDirection.MAXIMIZE] or (trials and not joined):
        raise InputError(
            f"the study {study.study_name!r} at {address.shown} was not made by a compile",
            field="study",
            hint="Name another file or database, or give the compile another name.",
        )
    if not joined:
        return
    other = [what for part, what in PARTS.items() if part in of and joined[0].of.get(part) != of[part]]
    if other:
        raise InputError(
            f"the study {study.study_name!r} at {address.shown} is of another search: {_listed(other)} differ",
            field="study",
            hint="Compile the same as the process that began it, or name another file or database.",
        )


def joined_in(trials: Sequence[optuna.trial.FrozenTrial]) -> list[Joined]:
    """The processes that have joined a study of these trials, the first one first."""
    marks = (trial for trial in trials if trial.state == optuna.trial.TrialState.FAIL)
    found = (_parsed(Joined, trial.user_attrs.get(JOINED)) for trial in marks)
    return [joined for joined in found if joined is not None]


def _parsed(model: type[M], value: Any) -> M | None:
    """`value` as a model; None where it is none: the study may hold anything."""
    if value is None:
        return None
    try:
        return model.model_validate_json(json.dumps(value))
    except (ValidationError, ValueError, TypeError):
        return None


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else [*names])
