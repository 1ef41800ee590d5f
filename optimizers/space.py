"""The search space: for every predictor, instruction x demos x format x read-out x decoding settings.

Dimensions are named `<predictor>.<dimension>`. A dimension is there only where it means something: a demo set when
demos are shown, a calibration when an output is chosen by likelihood, decoding settings when something is generated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import dspy

from ..models.engine import Decoding
from ..programs.channel import first_of_each, labelled_outputs
from ..programs.spans import is_text
from ..programs.state import FormatChoice, NearestDemos, PredictorState, ReadOut, SpanChoice
from ..programs.votes import generates
from ..signatures import field_types
from ..signatures.types import shape
from .demos import Demo

FORMATS: tuple[FormatChoice, ...] = ("completion", "turns", "turns_labelled", "chat", "dspy", "json", "xml")
CALIBRATIONS = ("contextual", "batch")  # searched unless others are asked for; a `bias`: see `recalibrate.py`
CHANNEL = "channel"
WHOLE = ("max_tokens", "top_k")
PREFERRED = ("choice+batch", "choice")
NEAREST_STARTS = ((4, PREFERRED), (4, PREFERRED), (8, ("choice",)))  # at most so many near demos, under a read-out
CHANNEL_STARTS = 2
NEAREST_ALONE = 4  # where so many may be shown: fewer are too few without others


@dataclass(frozen=True)
class Start:
    """What a point to try first is about: the place of its format among a predictor's; at most so many near demos, and
    the read-outs that they go with, the first that is there; or the read-out `channel`.
    """

    format: int
    nearest: int = 0
    readouts: tuple[str, ...] = ()
    channel: bool = False


class Suggest(Protocol):
    """The part of an Optuna trial that the space draws from."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """A number between `low` and `high`."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number between `low` and `high`."""


@dataclass(frozen=True)
class PredictorSpace:
    """The dimensions of one predictor. `demo_sets` are ordered draws; `demo_counts` says how many of one may be
    shown, `start_count` (default: the most) how many the first points show; `sources` are the inputs that the read-out
    `span` copies from, `longest` the most tokens of a span; `nearest_counts` says how many demos of `pool`, and of the
    dev rows that are `held` beside it (`refit.py`), are chosen at call time. Under the read-out `channel` it is
    `label_sets`, orders of the demos that have a label, and how many of each label are shown, `per_label`
    (`start_per_label` at the first points; with dev's rows among them no more than `most_per_label`, 0 where none can
    be).
    """

    name: str
    signature: type[dspy.Signature]
    instructions: tuple[str, ...]
    demo_counts: tuple[int, ...]
    demo_sets: tuple[tuple[Demo, ...], ...]
    formats: tuple[FormatChoice, ...]
    readouts: tuple[str, ...]
    decoding: Decoding
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    start_count: int | None = None
    sources: tuple[str, ...] = ()
    longest: int | None = None
    pool: tuple[Demo, ...] = ()
    nearest_counts: tuple[int, ...] = (0,)
    label_sets: tuple[tuple[Demo, ...], ...] = ()
    per_label: tuple[int, ...] = ()
    start_per_label: int = 0
    most_per_label: int = 0
    held: tuple[Demo, ...] = ()

    def suggest(self, trial: Suggest) -> dict[str, Any]:
        """Draw a value for each dimension that applies."""
        params: dict[str, Any] = {}

        def categorical(dimension: str, values: Sequence[Any]) -> Any:
            name = f"{self.name}.{dimension}"
            params[name] = trial.suggest_categorical(name, values) if len(values) > 1 else values[0]
            return params[name]

        categorical("instruction", range(len(self.instructions)))
        readout = categorical("readout", self.readouts)
        if readout == CHANNEL:
            categorical("per_label", self.per_label)
            categorical("label_set", range(len(self.label_sets)))
        else:
            if categorical("demos", self.demo_counts):
                categorical("demo_set", range(len(self.demo_sets)))
            categorical("nearest", self.nearest_counts)
        categorical("format", [_format_key(choice) for choice in self.formats])
        if self.generates(readout):
            for setting, (low, high) in self.ranges.items():
                name = f"{self.name}.{setting}"
                whole = setting in WHOLE
                params[name] = (
                    trial.suggest_int(name, int(low), int(high)) if whole else trial.suggest_float(name, low, high)
                )
        return params

    def generates(self, readout: str) -> bool:
        """Whether any output is generated under this read-out."""
        return generates(self.signature, readout.partition("+")[0])

    def state(self, params: Mapping[str, Any]) -> PredictorState:
        """The predictor's parameters at a point, calibration left out (see `calibration`)."""
        mine = {
            name.rpartition(".")[2]: value for name, value in params.items() if name.rpartition(".")[0] == self.name
        }
        demos = self.demo_sets[mine["demo_set"]][: mine["demos"]] if mine.get("demos") else ()
        if mine["readout"] == CHANNEL:
            demos = first_of_each(self.signature, self.label_sets[mine["label_set"]], mine["per_label"])
        settings = {setting: mine[setting] for setting in self.ranges if setting in mine}
        nearest = mine.get("nearest")
        return PredictorState(
            instructions=self.instructions[mine["instruction"]],
            demos=demos,
            nearest=NearestDemos(count=nearest, pool=(*self.pool, *self.held)) if nearest else None,
            format=_format_choice(mine["format"]),
            readout=self._readout(mine["readout"].partition("+")[0], mine.get("per_label")),
            decoding=Decoding.model_validate({**self.decoding.model_dump(), **settings}),
        )

    def _readout(self, kind: str, per_label: int | None) -> ReadOut:
        if kind == CHANNEL and len(labelled_outputs(self.signature)) > 1:
            return ReadOut(kind=kind, per_label=per_label)
        if kind != "span":
            return ReadOut(kind=kind)
        return ReadOut(kind=kind, sources=self.sources, span=SpanChoice(longest=self.longest))

    def calibration(self, params: Mapping[str, Any]) -> str | None:
        """The calibration method at a point."""
        return str(params[f"{self.name}.readout"]).partition("+")[2] or None


def _format_key(choice: FormatChoice) -> str:
    return choice if isinstance(choice, str) else json.dumps(choice, sort_keys=True)


def _format_choice(key: str) -> FormatChoice:
    return json.loads(key) if key.startswith("{") else key


def readouts_for(
    signature: type[dspy.Signature],
    readouts: Sequence[str] | None = None,
    calibrations: Sequence[str] | None = None,
    *,
    copied: bool = False,
    channel: bool = False,
    scores: bool = True,
) -> tuple[str, ...]:
    """The read-outs that a signature allows, of those wanted (None: all).

    `span` is there where the examples' text outputs are `copied` from an input, with a batch calibration of null where
    one may be null; `constrained` where a type can be constrained; `choice` where an output has a finite set of values,
    and with it the calibrations: `choice` alone is the calibration `none`; `channel` where such outputs' demos make a
    `channel`. Without `scores` the target cannot score a text, and there is neither `choice`, `channel` nor `span`.
    Where nothing wanted applies, `text` is left.
    """
    has_choices = scores and bool(labelled_outputs(signature))
    types = field_types(signature)
    typed = any(types[name] is not str for name in signature.output_fields)
    text_inputs = all(given.annotation is str for given in signature.input_fields.values())
    methods = ("none", *CALIBRATIONS) if calibrations is None else tuple(calibrations)
    methods = tuple(method for method in methods if method != "matrix")  # tried on what the search has found
    if not text_inputs:
        methods = tuple(method for method in methods if method != "contextual")  # a content-free input is a text
    chosen = tuple("choice" if method == "none" else f"choice+{method}" for method in methods) if has_choices else ()
    nullable = any(is_text(types[name]) and shape(types[name]).optional for name in signature.output_fields)
    copies = ("span+batch" if nullable and "batch" in methods else "span",) if copied and scores else ()
    possible = {
        "text": ("text",),
        "span": copies,
        "constrained": ("constrained",) if typed else (),
        "choice": chosen,
        "channel": (CHANNEL,) if has_choices and channel else (),
        "head": (),  # no dimension: heads are tried on what the search has found, see `headed.py`
    }
    wanted = possible if readouts is None else readouts
    return tuple(name for kind in wanted for name in possible[kind]) or ("text",)


def demo_counts(low: int, high: int, available: int) -> tuple[int, ...]:
    """How many demos may be shown: low, high, and powers of two between them, as far as there are demos."""
    high = min(high, available)
    low = min(low, high)
    powers = [2**power for power in range(12) if low < 2**power < high]
    return tuple(sorted({low, *powers, high}))


@dataclass(frozen=True)
class Space:
    """The joint space of all predictors."""

    predictors: tuple[PredictorSpace, ...]

    def suggest(self, trial: Suggest) -> dict[str, Any]:
        """Draw a point."""
        return {name: value for part in self.predictors for name, value in part.suggest(trial).items()}

    def states(self, params: Mapping[str, Any]) -> dict[str, PredictorState]:
        """Every predictor's parameters at a point, calibrations left out."""
        return {part.name: part.state(params) for part in self.predictors}

    def calibrations(self, params: Mapping[str, Any]) -> dict[str, str]:
        """The predictors that are to be calibrated at a point, with the method."""
        found = {part.name: part.calibration(params) for part in self.predictors}
        return {name: method for name, method in found.items() if method}

    @property
    def most_per_label(self) -> dict[str, int]:
        """How many demos a label may have under the read-out `channel`, by predictor, where dev rows can join."""
        return {part.name: part.most_per_label for part in self.predictors if CHANNEL in part.readouts}

    def starts(self) -> list[dict[str, Any]]:
        """Points to try first: labels by the channel; every format once, with many demos and the read-out that reads
        most; then the formats of running text with the demos that are nearest; and the channel in other formats.

        Formats decide more than anything else for small models, so none is left to chance. Labels with many near demos
        are best left uncalibrated: the demos' own labels are what tells. Where what is copied may be null, every other
        point writes instead: which of the two knows better when to leave a field out differs from task to task.
        """
        return [self.start(each) for each in self.kinds_of_start()]

    def kinds_of_start(self) -> list[Start]:
        """What tells the points to try first from each other."""
        formats = max(len(part.formats) for part in self.predictors)
        near = any(part.nearest_counts[-1] >= NEAREST_ALONE for part in self.predictors)
        by_channel = any(CHANNEL in part.readouts for part in self.predictors)
        channels = [Start(place, channel=True) for place in range(min(CHANNEL_STARTS, formats))] if by_channel else []
        many = [Start(place) for place in range(formats)]
        close = [Start(place, *kind) for place, kind in enumerate(NEAREST_STARTS[:formats])] if near else []
        return [*channels[:1], *many, *close, *channels[1:]]

    def start(self, start: Start) -> dict[str, Any]:
        """One of the points to try first."""
        point: dict[str, Any] = {}
        for part in self.predictors:
            for name, value in _started(part, start).items():
                point[f"{part.name}.{name}"] = value
        return point


def _started(part: PredictorSpace, start: Start) -> dict[str, Any]:
    """A predictor's values at a point to try first; those of fixed demos, where it has not what the point is about."""
    base = {"instruction": 0, "format": _format_key(part.formats[start.format % len(part.formats)])}
    if start.channel and CHANNEL in part.readouts:
        label_set = start.format % len(part.label_sets)
        return {**base, "readout": CHANNEL, "per_label": part.start_per_label, "label_set": label_set}
    close = start.nearest > 0 and part.nearest_counts[-1] >= NEAREST_ALONE
    spans = ("span+batch", "span") if start.format % 2 == 0 else ("span",)
    wanted = (*(start.readouts if close else ()), *PREFERRED, *spans, "text")
    preferred = [readout for readout in wanted if readout in part.readouts]
    few = [count for count in part.nearest_counts if count <= start.nearest] if close else []
    many = part.demo_counts[-1] if part.start_count is None else part.start_count
    chosen = {
        **base,
        "demos": part.demo_counts[0] if close else many,
        "nearest": (few or part.nearest_counts[:1])[-1],
        "demo_set": start.format % len(part.demo_sets) if part.demo_sets else None,
        "readout": preferred[0] if preferred else part.readouts[0],
    }
    return {name: value for name, value in chosen.items() if value is not None}
