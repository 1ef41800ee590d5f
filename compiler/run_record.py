"""What a run's folder says of a task, of each trial (`trials.jsonl`), and of the outcome (`run.json`)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..optimizers.base import Trial
from ..optimizers.front import FrontRule
from ..optimizers.stopping import StopRules
from ..programs.state import PredictorState
from .task import Compilation, Task

ALWAYS = ("metric_calls", "seconds")  # limits that are named also where they are not set


def trial_line(trial: Trial, seconds: float) -> dict[str, Any]:
    """A trial as a line of `trials.jsonl`. `scores`, where it is complete, follow dev in a fixed order."""
    return {
        "trial": trial.number,
        "status": trial.status,
        "params": dict(trial.params),
        "candidate": trial.candidate.digest,
        "examples": trial.examples,
        "score": trial.score,
        "estimate": trial.estimate,
        "unread": trial.unread,
        "best": trial.best,
        **({"process": trial.place} if trial.place is not None else {}),
        **({"reason": trial.reason} if trial.reason else {}),
        **({"scores": [round(m.score, 6) for m in trial.measurements]} if trial.status == "complete" else {}),
        "states": {name: _short(state) for name, state in trial.candidate.states.items()},
        "seconds": round(seconds, 3),
    }


def _short(state: PredictorState) -> dict[str, Any]:
    """A predictor's parameters, its demos counted only (their set and number stand in the trial's params)."""
    counts = {"demos": len(state.demos), "nearest": state.nearest.count if state.nearest else 0}
    return {**state.model_dump(mode="json", exclude={"demos", "nearest"}), **counts}


def described(task: Task) -> dict[str, Any]:
    """What `run.json` says of a task from the beginning."""
    return {
        "name": task.name,
        "seed": task.seed,
        "target": asdict(task.target.description),
        "metric": task.metric.name,
        "optimizer": task.optimizer,
        **({"study": {"url": task.study.shown}} if task.study else {}),
        **({"options": dict(task.options)} if task.options else {}),
        "budget": {name: limit for name, limit in asdict(task.budget).items() if limit or name in ALWAYS},
        **({"stop": asdict(task.stop)} if task.stop != StopRules() else {}),
        **({"choose": asdict(task.choose)} if task.choose != FrontRule() else {}),
        "examples": {"train": len(task.train), "dev": len(task.dev), "test": len(task.test)},
        "data": task.data,
        "fingerprint": task.fingerprint,
    }


def outcome_of(compilation: Compilation) -> dict[str, Any]:
    """What `run.json` says at the end."""
    result = compilation.result
    return {
        "status": "finished",
        "kept": "candidate" if result.accepted else "baseline",
        "trial": result.chosen.number,
        "baseline": {split: score.as_dict() for split, score in compilation.baseline.items()},
        "compiled": {split: score.as_dict() for split, score in compilation.compiled.items()},
        "paired": result.verdict.as_dict() if result.verdict is not None else None,
        "front": [asdict(point) for point in result.front],
        **({"left_out": list(result.left_out)} if result.left_out else {}),
        "unread": dict(compilation.unread),
        "reference": {split: score.as_dict() for split, score in compilation.reference.items()},
        "constant": {split: score.as_dict() for split, score in compilation.constant.items()},
        "spent": dict(compilation.spent),
        "ledger": dict(compilation.ledger),
        "seconds": round(compilation.seconds, 3),
    }
