"""What a Python call asks of a compile, checked like the `optimize` block of a spec, and before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import InputError
from ..metrics import Metric
from ..metrics.source import source_of as source_of
from ..optimizers.base import LIMITS, Budget
from ..optimizers.context import StrategyContext
from ..optimizers.foreign import check_arguments, is_foreign
from ..optimizers.front import FrontRule
from ..optimizers.joint import STRATEGIES, strategy_named
from ..optimizers.principles import principles_named
from ..optimizers.space import Space
from ..optimizers.stopping import StopRules
from ..programs.formats.registry import format_named
from ..programs.problems import KeyProblems
from ..programs.schema import BudgetSpec, OptimizeSpec, SearchSpec
from ..programs.schema_errors import validated
from ..programs.yaml_source import Source

DEFAULT_METRIC_CALLS = 2000
NAME = re.compile(r"\w[\w.-]*")


def optimize_options(
    budget: Budget | Mapping[str, Any] | None,
    seed: int,
    search: SearchSpec | Mapping[str, Any] | None,
    optimizer: str | Mapping[str, Any],
    stop: StopRules | Mapping[str, Any] | None = None,
    choose: FrontRule | Mapping[str, Any] | None = None,
) -> tuple[OptimizeSpec, Budget]:
    """The options as a spec would hold them, and the budget. Raises `InputError`, which lists everything wrong."""
    ours = {name: getattr(budget, name) for name in LIMITS} if isinstance(budget, Budget) else budget
    rules = asdict(stop) if isinstance(stop, StopRules) else stop
    rule = asdict(choose) if isinstance(choose, FrontRule) else choose
    found = search.model_dump(exclude_unset=True) if isinstance(search, SearchSpec) else search
    named = dict(optimizer) if isinstance(optimizer, Mapping) else optimizer
    given: dict[str, Any] = {"optimizer": named, "seed": seed, "budget": ours or {}, "search": found or {}}
    given |= {"stop": rules or {}, "choose": rule or {}}
    problems = KeyProblems(None, lambda keys: None)
    made = validated(OptimizeSpec, Source("", given), problems)
    problems.stop()
    assert made is not None, "what could not be made was told"
    trials = budget.trials if isinstance(budget, Budget) else None
    if trials is not None and trials < 1:
        raise InputError(f"a budget of {trials} trials", expected="at least 1, the baseline's own")
    return made, budget_of(made.budget, trials)


def budget_of(given: BudgetSpec, trials: int | None = None) -> Budget:
    """The budget that a spec sets; 2,000 metric calls when it sets none."""
    limits = {name: getattr(given, name) for name in LIMITS}
    return Budget(**limits, trials=trials) if any(limits.values()) or trials else Budget(DEFAULT_METRIC_CALLS)


def check_stop(
    stop: StopRules, metric: Metric, optimizer: str, *, path: str | None = None, line: int | None = None
) -> None:
    """Raise `InputError` for a rule that would end a search at once or never."""
    where: dict[str, Any] = {"path": path, "line": line}
    if stop.score is not None and not metric.low < stop.score <= metric.high:
        expected = f"a score of {metric.name}: above {metric.low:g}, at most {metric.high:g}"
        raise InputError(f"found {stop.score:g}", field="optimize.stop.score", expected=expected, **where)
    if stop != StopRules() and is_foreign(optimizer):
        raise InputError(
            f"{optimizer} searches by itself, and knows no rules to stop",
            field="optimize.stop",
            hint="Take them out; a budget ends it.",
            **where,
        )


def check_options(name: str, optimizer: str, search: SearchSpec, options: Mapping[str, Any] | None = None) -> None:
    """Raise `InputError` for names that nothing has, or that no file can have."""
    if not NAME.fullmatch(name):
        raise InputError(f"the name {name!r} cannot be used", expected="letters, digits, '_', '-' and '.'")
    strategy_named(optimizer)
    if is_foreign(optimizer):
        check_arguments(optimizer, options or {})
    elif options and optimizer in STRATEGIES:  # built for nothing: it says what options it does not have
        strategy_named(optimizer)(Space(()), seed=0, baseline=0.0, context=StrategyContext(options=options))
    if search.instructions.principles != "auto":
        principles_named(search.instructions.principles, field="optimize.search.instructions.principles")
    for format_ in () if search.formats == "auto" else search.formats:
        format_named(format_)
