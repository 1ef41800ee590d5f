"""The joint search as a DSPy teleprompter: `Joint(metric).compile(student, trainset=..., valset=...)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from ..errors import InputError
from ..models.lm import bridge_of
from ..models.target import DEFAULT_MODEL, Target, target_of
from ..optimizers.base import Budget
from ..optimizers.stopping import StopRules
from ..programs.schema import SearchSpec
from .api import compile as compile_program
from .compiled import Compiled
from .run_folder import RUNS


class Joint(Teleprompter):
    """Searches instruction, demos, format, read-out and decoding settings of every predictor at once.

    metric: a name, a `Metric`, or DSPy's `(example, prediction, trace=None)`; target: default the LM that DSPy is
    configured with, which must be a Cuecard target; budget, seed, search, optimizer, stop,
    runs: as in `cuecard.compile`.

    >>> dspy.configure(lm=cuecard.target("smollm2-135m").lm)
    >>> better = cuecard.Joint(metric=exact, budget={"seconds": 300}).compile(student, trainset=train, valset=dev)
    """

    def __init__(
        self,
        metric: Callable[..., Any] | str | Any,
        *,
        target: Target | str | None = None,
        budget: Budget | Mapping[str, float] | None = None,
        seed: int = 0,
        search: SearchSpec | Mapping[str, Any] | None = None,
        optimizer: str | Mapping[str, Any] = "joint",
        stop: StopRules | Mapping[str, float] | None = None,
        runs: str | PathLike[str] = RUNS,
    ) -> None:
        super().__init__()
        self.metric = metric
        self.target = target
        self.settings: dict[str, Any] = {
            "budget": budget,
            "seed": seed,
            "search": search,
            "optimizer": optimizer,
            "stop": stop,
            "runs": runs,
        }

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        **kwargs: Any,
    ) -> Compiled:
        """The compiled student. Without a valset, dev is split off the trainset."""
        if teacher is not None or kwargs:
            raise InputError(f"Joint takes no {next(iter(kwargs), 'teacher')!r}", expected="student, trainset, valset")
        return compile_program(
            student,
            trainset=trainset,
            devset=valset or (),
            metric=self.metric,
            target=self.target or _configured(),
            **self.settings,
        )


def _configured() -> Target | str:
    """The target that DSPy's configured LM runs on; the default model when DSPy has none."""
    lm = dspy.settings.lm
    if lm is None:
        return DEFAULT_MODEL
    bridge = bridge_of(lm)
    if bridge is None:
        raise InputError(
            f"the configured LM {getattr(lm, 'model', lm)!r} is not a Cuecard target",
            hint="Give one: Joint(metric, target=cuecard.target(...)).",
        )
    return target_of(bridge.engine)
