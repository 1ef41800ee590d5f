"""What one process tells the others of a trial in a study that they share, and what is believed of it.

A trial is told as a point of the search space, with its score, and, where it ran on all of dev, with its calibrations
and its measurement of every example. The program is made of the point in the reader's own space: an instruction or a
demo never comes out of a study. All of it is checked before it is used: the values are such as the space draws, the
measurements as many and as wide as the metric has them, the numbers finite and on its range, the calibrations those
of the point, and the program the one that the teller meant. Who passes for a teller is believed his scores, though.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from ..metrics.base import Measurement, Metric
from ..programs.state import Calibration, PredictorState
from ..signatures import choices
from .base import Candidate, Trial
from .space import PredictorSpace, Space

ADDRESS = re.compile(r" at 0x[0-9a-f]+", re.I)
ROUNDING = 1e-9  # what a sum may go over a metric's range by
NAMED_ALREADY = ("signature",)  # of a predictor's space: it stands in the program's part of a study's identity


class Told(BaseModel):
    """A trial, as it stands in a study. run: whose it is; trial: its number there; value: the estimate on all of dev;
    measurements: an example's score, then its statistics, in the order of the search.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    run: str
    trial: int = Field(ge=1)
    status: Literal["complete", "dropped"]
    candidate: str
    examples: int = Field(ge=1)
    unread: int = Field(ge=0)
    value: FiniteFloat
    params: dict[str, bool | int | FiniteFloat | str]
    calibrations: dict[str, Calibration] = Field(default_factory=dict)
    measurements: list[list[FiniteFloat]] = Field(default_factory=list)


class Given:
    """The part of an Optuna trial that a space draws from, where the values are known: `drawn` are those that were
    asked for, with their `distributions`. Raises `ValueError` for a value that could not have been drawn.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params
        self.drawn: dict[str, Any] = {}
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """See `Suggest`."""
        value = self._params.get(name)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError(f"{name} is {value!r}")
        return self._keep(name, value, optuna.distributions.CategoricalDistribution(tuple(choices)))

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """See `Suggest`."""
        return float(self._ranged(name, (int, float), optuna.distributions.FloatDistribution(low, high)))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """See `Suggest`."""
        return int(self._ranged(name, (int,), optuna.distributions.IntDistribution(low, high)))

    def _ranged(self, name: str, types: tuple[type, ...], distribution: Any) -> Any:
        value: Any = self._params.get(name)
        number = isinstance(value, types) and not isinstance(value, bool)
        if not number or not distribution.low <= value <= distribution.high:
            raise ValueError(f"{name} is {value!r}")
        return self._keep(name, value, distribution)

    def _keep(self, name: str, value: Any, distribution: optuna.distributions.BaseDistribution) -> Any:
        self.drawn[name], self.distributions[name] = value, distribution
        return value


def given_point(space: Space, params: Mapping[str, Any]) -> Given:
    """A point of the space as it is drawn. Raises `ValueError` where it is none of the space's."""
    given = Given(params)
    drawn = space.suggest(given)
    if drawn != dict(params):
        raise ValueError("not a point of the search space")
    return given


def frozen_trial(space: Space, params: Mapping[str, Any], value: float, **attrs: Any) -> optuna.trial.FrozenTrial:
    """A point that is over, as an Optuna study holds it."""
    given = given_point(space, params)
    return optuna.trial.create_trial(
        value=value, params=given.drawn, distributions=given.distributions, user_attrs=attrs
    )


def told_of(trial: Trial, space: Space, run: str) -> Told:
    """What is told of a trial that ran on all of dev or was dropped."""
    whole = trial.status == "complete"
    states = trial.candidate.states
    fitted = {name: states[name].readout.calibration for name in space.calibrations(trial.params) if whole}
    plain = {
        "run": run,
        "trial": trial.number,
        "status": trial.status,
        "candidate": trial.candidate.digest if whole else "",
        "examples": trial.examples,
        "unread": trial.unread,
        "value": trial.estimate,
        "params": dict(trial.params),
        "calibrations": {name: each.model_dump(mode="json") for name, each in fitted.items() if each is not None},
        "measurements": [[*map(float, (m.score, *m.statistics))] for m in trial.measurements] if whole else [],
    }
    return Told.model_validate_json(json.dumps(plain))


def trial_of(told: Told, space: Space, metric: Metric, rows: int, place: int) -> Trial:
    """The trial that was told, without a number of ours. Raises `ValueError` for what can't be one.

    rows: how many examples dev has; place: whose it is.
    """
    given_point(space, told.params)
    value, whole = told.value, told.status == "complete"
    measurements = tuple(Measurement(each[0], tuple(each[1:])) for each in told.measurements if each)
    if whole:
        wide = {len(each) for each in told.measurements} == {1 + metric.width}
        if not wide or not len(measurements) == told.examples == rows:
            raise ValueError("not as many measurements, or not as wide ones, as the metric makes on dev")
        value = metric.aggregate(measurements)
    scores = [value, *(measurement.score for measurement in measurements)]
    ranged = all(metric.low - ROUNDING <= each <= metric.high + ROUNDING for each in scores)
    if told.examples > rows or told.unread > rows or not ranged:
        raise ValueError("a number that is out of range")
    candidate = Candidate(_calibrated(told, space))
    if whole and candidate.digest != told.candidate:
        raise ValueError("the point does not come to the program that was told")
    score = value if whole else None
    return Trial(
        0, told.params, candidate, told.status, told.examples, score, value, told.unread, None, False,
        measurements if whole else (), place,
    )  # fmt: skip


def _calibrated(told: Told, space: Space) -> dict[str, PredictorState]:
    """The states at the point that was told, with its calibrations."""
    states, methods = space.states(told.params), space.calibrations(told.params)
    parts = {part.name: part for part in space.predictors}
    for name, calibration in told.calibrations.items():
        if methods.get(name) != calibration.method or not _fits(parts[name], calibration):
            raise ValueError(f"a calibration of {name} that is none of the point's")
        readout = states[name].readout.model_copy(update={"calibration": calibration})
        states[name] = states[name].model_copy(update={"readout": readout})
    return states


def _fits(part: PredictorSpace, calibration: Calibration) -> bool:
    """Whether a calibration has a finite offset for each label of outputs that have labels."""
    outputs = part.signature.output_fields
    return all(
        field in outputs
        and set(offsets) == set(choices(outputs[field].annotation) or ())
        and all(math.isfinite(offset) for offset in offsets.values())
        for field, offsets in calibration.offsets.items()
    )


def space_digest(space: Space) -> str:
    """A content hash of a search space: where it is the same, a point is the same program."""
    parts = [
        {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.name not in NAMED_ALREADY}
        for part in space.predictors
    ]
    text = json.dumps([type(space).__name__, parts], sort_keys=True, default=_plain)
    return hashlib.sha256(ADDRESS.sub("", text).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return dict(value) if isinstance(value, Mapping) else str(value)
