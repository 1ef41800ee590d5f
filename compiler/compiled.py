"""The compiled program: a module that can be called, with the evidence for it, and the file it is kept in.

`NAME.compiled.yaml` is the spec with every predictor's learned parameters filled in and a `compiled` block. It holds
nothing that differs between two runs of the same compile (no times, no paths), so that the same compile writes the
same bytes.
"""

from __future__ import annotations

from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import dspy

from ..files import write_atomic
from ..metrics.statistics import Score as Interval
from ..metrics.statistics import interval
from ..programs.graph import Graph, to_spec
from ..programs.heads import loaded
from ..programs.learned import keys_of, python_spec
from ..programs.schema import CompiledSpec, PredictorSpec, PromptOnly, Score, Spec, Target
from ..programs.yaml_source import dump_yaml
from ..seeds import derive_seed
from .baseline import write_baseline
from .dev_scores import dev_scores, scores_path
from .evaluator import apply, predictors_of
from .task import Compilation

VERSIONS = ("cuecard", "dspy", "torch", "transformers", "optuna")


class Compiled(dspy.Module):
    """What `cuecard.compile` gives: call it like the program it was made from.

    `program` is the program with its learned parameters, on its target; `spec` the compiled spec; `compilation` how
    it came about: scores before and after with their intervals, the search's result, the ledger, the run's folder.
    """

    def __init__(self, compilation: Compilation, spec: Spec | None = None) -> None:
        super().__init__()
        self.program = apply(compilation.task.program, compilation.candidate)
        self.program.set_lm(compilation.task.target.lm)
        self.compilation = compilation
        self.spec = compiled_spec(compilation, spec)

    def forward(self, **inputs: Any) -> Any:
        """Run the compiled program."""
        return self.program(**inputs)

    def write(self, path: str | PathLike[str]) -> Path:
        """Write `NAME.compiled.yaml`, to be read with `cuecard.load`, and beside it `NAME.compiled.scores.json`, the
        score of each dev example. Each is written whole or not at all.
        """
        place = Path(path)
        for state in self.compilation.candidate.states.values():
            for choice in state.readout.heads.values():
                loaded(choice).write(place.parent / choice.weights)
        made = self.compilation
        write_baseline(scores_path(place), dev_scores(made.task, made.result, self.spec))
        write_atomic(place, dump_yaml(self.spec.to_data()))
        return place

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        """The program is copied as it is now; how it came about is shared."""
        copy: Compiled = Compiled.__new__(Compiled)
        memo[id(self)] = copy
        for name, value in vars(self).items():
            copy.__dict__[name] = value if name in ("compilation", "spec") else deepcopy(value, memo)
        return copy


def compiled_spec(compilation: Compilation, spec: Spec | None = None) -> Spec:
    """The spec of a compiled program. `spec` is the one it was compiled from; a Python program has none."""
    task = compilation.task
    block = CompiledSpec(
        target=Target(
            identity=task.target.description.identity,
            name=task.target.description.name,
            device=task.target.description.device.partition(":")[0],
            dtype=task.target.description.dtype,
        ),
        data=task.data,
        seed=task.seed,
        optimizer=task.optimizer,
        spent={name: float(count) for name, count in compilation.spent.items()},
        kept="candidate" if compilation.result.accepted else "baseline",
        baseline={split: _score(score) for split, score in compilation.baseline.items()},
        scores={split: _score(score) for split, score in compilation.compiled.items()},
        **({"prompt_only": only} if (only := _prompt_only(compilation)) else {}),
        versions={name: _version(name) for name in VERSIONS},
    )
    if spec is not None and isinstance(task.program, Graph):
        return to_spec(spec, compilation.candidate.states, block)
    return python_spec(task.name, apply(task.program, compilation.candidate), block)


def _prompt_only(compilation: Compilation) -> PromptOnly | None:
    """The best candidate that is prompts alone, where the compiled program has heads."""
    trial, metric = compilation.result.prompt_only, compilation.task.metric
    if trial is None or trial is compilation.result.chosen:
        return None
    parts = predictors_of(compilation.task.program)
    states = trial.candidate.states
    predictors = {name: PredictorSpec(**keys_of(state, parts[name].signature)) for name, state in states.items()}
    seed = derive_seed(compilation.task.seed, "interval") % 2**32
    return PromptOnly(predictors=predictors, scores={"dev": _score(interval(metric, trial.measurements, seed))})


def _score(score: Interval) -> Score:
    return Score(value=round(score.value, 6), low=round(score.low, 6), high=round(score.high, 6), n=score.n)


def _version(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "unknown"
