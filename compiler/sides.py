"""One side of a comparison: what a program asks of the model, and how it scored, from whatever holds either.

A side is read from a spec or compiled program (prompts, scores of splits), from the folder of a compile's run (the
chosen trial's prompts and its score of every dev example), from a recording (`cuecard eval --record`) or from a
baseline (scores by example). What a file does not hold is simply not compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import dspy

from ..errors import InputError
from ..files import read_text
from ..metrics import Measurement, Metric
from ..metrics.source import source_digest
from ..optimizers.base import Outcome
from ..programs.graph import build
from ..programs.learned import state_of
from ..programs.schema import Spec
from ..programs.spec import load_spec
from ..programs.state import PredictorState
from ..signatures import signature
from .baseline import Baseline, program_digest, read_baseline
from .dev_scores import row_keys, scores_of, scores_path
from .evaluate import measured
from .evaluator import candidate_of
from .from_spec import spec_examples
from .replay import RECORD, SCORES

Kind = Literal["program", "run", "recording", "baseline"]
SCORE = ("value", "low", "high", "n")


@dataclass(frozen=True)
class Asked:
    """What a predictor asks of the model. `demos` are texts, None where only their number is known."""

    instructions: str
    demos: tuple[str, ...] | None
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Side:
    """One side. `scores` are by split; `rows` measurements, and `inputs` what they are of where that is known, by row
    key; `facts` are target, metric, seed and so on.
    """

    name: str
    kind: Kind
    predictors: Mapping[str, Asked] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metric: str = ""
    rows: Mapping[str, Measurement] = field(default_factory=dict)
    metric_digest: str = ""
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()


def read_side(path: Path, *, allow_outside: bool = False) -> Side:
    """The side that a path holds. Raises `InputError` for a path that holds none."""
    if path.is_dir():
        if (path / "run.json").is_file():
            return _run_side(path)
        if (path / RECORD).is_file():
            return _recording_side(path)
        expected = "a run's folder (run.json), or a recording (record.json)"
        raise InputError("the folder holds neither a run nor a recording", path=path, expected=expected)
    if path.suffix.lower() == ".json":
        return baseline_side(str(path), read_baseline(path))
    spec = load_spec(path, allow_outside=allow_outside)
    return _with_scores(program_side(str(path), spec), path, spec)


def program_side(name: str, spec: Spec) -> Side:
    """The side of a spec, or of a compiled program."""
    states = candidate_of(build(spec)).states if spec.steps else _python_states(spec)
    compiled = spec.compiled
    facts = {"program": spec.name}
    scores: dict[str, Mapping[str, float]] = {}
    if compiled is not None:
        target = compiled.target
        facts["target"] = ", ".join(part for part in (target.name, target.dtype, target.device) if part)
        facts |= {"target identity": target.identity, "seed": str(compiled.seed), "optimizer": compiled.optimizer or ""}
        facts |= {f"{split} data": digest[:12] for split, digest in compiled.data.items()}
        facts |= {f"version of {package}": number for package, number in compiled.versions.items()}
        scores = {split: score.model_dump(exclude_none=True) for split, score in compiled.scores.items()}
    return Side(name, "program", {name: asked(state) for name, state in states.items()}, facts, scores)


def _with_scores(side: Side, path: Path, spec: Spec) -> Side:
    """The side of a program with the scores that its compile left beside it."""
    try:
        found = scores_of(path, spec)
    except InputError as error:
        return replace(side, notes=(f"its scores by example can't be read: {error}",))
    if found is None:
        if spec.compiled is None or not scores_path(path).is_file():
            return side
        return replace(side, notes=(f"{scores_path(path)} holds the scores of another program or target",))
    known = replace(side, metric=found.metric, rows=found.rows, metric_digest=found.metric_digest)
    if not spec.steps or spec.data is None:
        return known
    program = build(spec)
    try:
        rows = spec_examples(spec, program)["dev"]
    except InputError as error:
        return replace(known, notes=(f"examples are named by key, since the data can't be read: {error.message}",))
    inputs = {key: row.inputs for key, row in zip(row_keys(program, rows), rows, strict=True)}
    return replace(known, inputs=inputs)


def baseline_side(name: str, baseline: Baseline, kind: Kind = "baseline") -> Side:
    """The side of a baseline."""
    facts = {"program": baseline.program, "target identity": baseline.target}
    given = {key: value for key, value in facts.items() if value}
    digest = baseline.metric_digest
    return Side(name, kind, facts=given, metric=baseline.metric, rows=baseline.rows, metric_digest=digest)


def scored_baseline(
    spec: Spec, program: dspy.Module, target: str, metric: Metric, outcomes: Sequence[Outcome]
) -> Baseline:
    """The scores of outcomes by row key; those whose call failed have none. `target`: its identity."""
    keys = row_keys(program, [outcome.row for outcome in outcomes])
    there = [(key, outcome) for key, outcome in zip(keys, outcomes, strict=True) if outcome.error is None]
    found = measured(program, [outcome for _, outcome in there], metric)
    rows = dict(zip((key for key, _ in there), found, strict=True))
    return Baseline(metric.name, rows, program_digest(spec), target, source_digest(metric))


def asked(state: PredictorState) -> Asked:
    """What a predictor with these parameters asks."""
    plain = state.model_dump(mode="json", exclude={"instructions", "demos"})
    settings = {"demos": str(len(state.demos)), **dict(_flat(plain))}
    return Asked(state.instructions or "", tuple(_demo_text(demo) for demo in state.demos), settings)


def _python_states(spec: Spec) -> dict[str, PredictorState]:
    """The states of a compiled Python program's predictors, which the file holds without the program."""
    found = {}
    for name, learned in (spec.predictors or {}).items():
        assert learned.signature is not None, "reading the spec has asked for it"
        found[name] = state_of(learned, signature(learned.signature, learned.instructions), spec.model)
    return found


def _run_side(path: Path) -> Side:
    run = _json(path / "run.json", read_text(path / "run.json"))
    trials = _trials(path / "trials.jsonl")
    try:
        return _run_of(path, run, trials)
    except (KeyError, TypeError, AttributeError) as error:
        hint = "Compile again: the run may be of another version."
        raise InputError("what run.json and trials.jsonl say is not a run", path=path, hint=hint) from error


def _run_of(path: Path, run: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Side:
    number = run.get("trial")
    if number is None:  # the run has not ended: what was best when it stopped
        number = next((trial["trial"] for trial in reversed(trials) if trial.get("best")), None)
    trial: Mapping[str, Any] = next((each for each in trials if each.get("trial") == number), {})
    predictors = {}
    for name, state in trial.get("states", {}).items():
        plain = {key: value for key, value in state.items() if key != "instructions"}
        predictors[name] = Asked(state.get("instructions") or "", None, dict(_flat(plain)))
    about, seed = run.get("target") or {}, run.get("seed")
    facts = {
        "program": str(run.get("name", "")),
        "target": ", ".join(str(about[key]) for key in ("name", "dtype", "device") if about.get(key)),
        "target identity": str(about.get("identity", "")),
        "seed": "" if seed is None else str(seed),
        "optimizer": str(run.get("optimizer", "")),
        "status": str(run.get("status", "")),
        "trial": "" if number is None else str(number),
    }
    scores = {split: {key: score[key] for key in SCORE} for split, score in (run.get("compiled") or {}).items()}
    rows = trial.get("scores", [])
    # One that has not ended says nothing of a row but its score: with the same seed and data the order is the same.
    facts |= {f"{split} data": str(digest)[:12] for split, digest in (run.get("data") or {}).items()}
    known = facts.get("dev data", "")
    told = f"of {len(rows)}, seed {seed}{', ' if known else ''}{known}"
    places = {f"dev {place} {told}": Measurement(score) for place, score in enumerate(rows, start=1)}
    side = Side(str(path), "run", predictors, facts, scores, str(run.get("metric", "")), places)
    if not (path / SCORES).is_file():
        note = "rows are matched by their place: this holds where both runs had the same dev examples"
        return side if known else replace(side, notes=(note,))
    ended = read_baseline(path / SCORES)
    return replace(side, rows=ended.rows, metric_digest=ended.metric_digest)


def _recording_side(path: Path) -> Side:
    about = _json(path / RECORD, read_text(path / RECORD)).get("target") or {}
    if (path / SCORES).is_file():
        side = baseline_side(str(path), read_baseline(path / SCORES), "recording")
    else:
        side = Side(str(path), "recording")
    target = ", ".join(str(about[key]) for key in ("name", "dtype", "device") if about.get(key))
    facts = {**side.facts, "target": target, "target identity": str(about.get("identity", ""))}
    return replace(side, facts=facts)


def _trials(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = read_text(path).split("\n")
    whole = lines[:-1]  # a line that is being written, or was cut off, is no trial yet
    return [_json(path, line, number) for number, line in enumerate(whole, start=1) if line]


def _json(path: str | PathLike[str], text: str, line: int | None = None) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", path=path, line=line) from None
    if not isinstance(data, dict):
        raise InputError("not a JSON object", path=path, line=line)
    return data


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names with their values in words; a pool of demos by its number and a hash."""
    if name == "readout" and isinstance(value, str):  # the short form of a kind alone
        yield "readout.kind", value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
        yield name, f"{len(value)} demos ({digest})"
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _demo_text(demo: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value if isinstance(value, str) else _plain(value)}" for name, value in demo.items())


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
