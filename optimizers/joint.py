"""The joint search, `joint` (TPE and local moves), its yardstick `random`, and every other strategy by its name.

`joint` starts from every format once, then lets the tree-structured Parzen estimator (Bergstra et al. 2011;
multivariate and grouped, so that conditional dimensions are modelled where they exist; points that are out are counted
as bad ones, so that a generation spreads) propose. Two of three proposals afterwards are the best point so far with
one or two dimensions changed, which sharpens what is already good; the dimensions that move small models most (which
demos, then format and read-out) are changed most often. `random` draws uniformly after the same start: the yardstick
for any other strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ..errors import InputError, nearest
from .base import Strategy
from .context import StrategyContext
from .foreign import is_foreign, teleprompter_named
from .reflective import copro, gepa
from .sampled import OptunaStrategy, random_sampler, tpe_sampler
from .simba import simba
from .space import Space
from .storages import Address, address_of
from .strategies import bootstrap_few_shot, bootstrap_random, knn_few_shot, labeled_few_shot, mipro

LOCAL_OF = (2, 3)  # so many local moves of so many proposals
JOINING = ("joint", "random", "bootstrap_random", "mipro")  # those that several processes can search with together


def joint(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """The joint search. See the module."""
    (context or StrategyContext()).counts()
    return OptunaStrategy(space, tpe_sampler, seed=seed, baseline=baseline, local=LOCAL_OF, storage=storage)


def uniform(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """Uniform random search."""
    (context or StrategyContext()).counts()
    return OptunaStrategy(space, random_sampler, seed=seed, baseline=baseline, storage=storage)


StrategyFactory = Callable[..., Strategy]
"""`(space, *, seed, baseline, storage, context) -> Strategy`. storage: see `OptunaStrategy`."""

STRATEGIES: Mapping[str, StrategyFactory] = MappingProxyType(
    {
        "joint": joint,
        "random": uniform,
        "labeled_few_shot": labeled_few_shot,
        "bootstrap_few_shot": bootstrap_few_shot,
        "bootstrap_random": bootstrap_random,
        "knn_few_shot": knn_few_shot,
        "copro": copro,
        "mipro": mipro,
        "gepa": gepa,
        "simba": simba,
    }
)


def strategy_named(name: str) -> StrategyFactory:
    """The strategy of this name, ours or one of the entry-point group `cuecard.optimizers`. Raises `InputError`.

    A class of DSPy's, `dspy.NAME`, is checked like any name; it searches by itself (`foreign.py`), so its factory
    raises.
    """
    from importlib.metadata import entry_points

    if name in STRATEGIES:
        return STRATEGIES[name]
    if is_foreign(name):
        teleprompter_named(name)
        return _by_itself
    added = {point.name: point for point in entry_points(group="cuecard.optimizers")}
    if name not in added:
        names = [*STRATEGIES, *sorted(added)]
        near = nearest(name, names)
        raise InputError(
            f"unknown optimizer {name!r}",
            field="optimize.optimizer",
            expected=f"one of {', '.join(names)}, or dspy.NAME",
            nearest=near,
        )
    try:
        factory: StrategyFactory = added[name].load()
    except Exception as error:
        raise InputError(f"the optimizer {name!r} cannot be imported from {added[name].value!r}: {error}") from error
    return factory


def check_joins(study: str, optimizer: str) -> Address:
    """The address of a study. Raises `InputError` for what is none, or a strategy that can't share one."""
    address = address_of(study)
    if optimizer not in JOINING:
        raise InputError(
            f"{optimizer} can't share a study with other processes",
            field="study",
            expected=f"one of the optimizers {', '.join(JOINING)}",
        )
    return address


def _by_itself(space: Space, **_: Any) -> Strategy:
    raise InputError("an optimizer of DSPy proposes no points", hint="It is run by optimizers/foreign.py.")
