"""Strategies that draw points of the joint space through Optuna: `joint` (TPE and local moves) and `random`.

`joint` starts from every format once, then lets the tree-structured Parzen estimator (Bergstra et al. 2011;
multivariate and grouped, so that conditional dimensions are modelled where they exist; points that are out are counted
as bad ones, so that a generation spreads) propose. Two of three proposals afterwards are the best point so far with
one or two dimensions changed, which sharpens what is already good; the dimensions that move small models most (which
demos, then format and read-out) are changed most often. `random` draws uniformly after the same start: the yardstick
for any other strategy.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import optuna

from ..errors import InputError, nearest
from ..seeds import derive_seed
from .base import Proposal, Strategy
from .space import Space

STARTUP = 10
LOCAL_OF = (2, 3)  # so many local moves of so many proposals
WEIGHTS = {"demo_set": 4.0, "format": 2.0, "readout": 2.0, "nearest": 2.0}


class OptunaStrategy:
    """Asks one Optuna study for points. The baseline is the study's trial 0.

    sampler: seeded; local: how many of how many proposals vary the best point instead; storage: an Optuna storage or
    its URL, in which no study of this name stands yet.
    """

    def __init__(
        self,
        space: Space,
        sampler: optuna.samplers.BaseSampler,
        *,
        seed: int,
        baseline: float,
        local: tuple[int, int] = (0, 1),
        storage: Any = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.study = optuna.create_study(
            storage=storage, study_name="cuecard", sampler=sampler, direction="maximize", load_if_exists=False
        )
        zero = optuna.trial.create_trial(value=baseline, params={}, distributions={}, user_attrs={"baseline": True})
        self.study.add_trial(zero)
        self._local = local
        self._random = random.Random(derive_seed(seed, "local"))
        self._starts = space.starts()
        self._best: optuna.Trial | None = None
        self._asked = 0
        self._trials: dict[int, optuna.Trial] = {}

    def propose(self) -> Proposal | None:
        """See `Strategy.propose`. Never runs out."""
        if self._starts:
            self.study.enqueue_trial(self._starts.pop(0))
        elif self._best and self._asked >= STARTUP and self._asked % self._local[1] < self._local[0]:
            self.study.enqueue_trial(self._near(self._best))
        self._asked += 1
        trial = self.study.ask()
        params = self.space.suggest(trial)
        self._trials[trial.number] = trial
        return Proposal(params, trial.number)

    def observe(self, proposal: Proposal, value: float, best: bool) -> None:
        """See `Strategy.observe`."""
        trial = self._trials.pop(proposal.key)
        self.study.tell(trial, value)
        if best and trial.params:  # the only point of a space has nothing to vary
            self._best = trial

    def _near(self, best: optuna.Trial) -> dict[str, Any]:
        """The best point with one or two of its dimensions changed; what hangs on them is drawn by the sampler."""
        params, distributions = dict(best.params), best.distributions
        names = sorted(params)
        weights = [WEIGHTS.get(name.rpartition(".")[2], 1.0) for name in names]
        for name in self._random.choices(names, weights, k=self._random.choice((1, 1, 2))):
            distribution = distributions[name]
            if isinstance(distribution, optuna.distributions.CategoricalDistribution):
                others = [value for value in distribution.choices if value != best.params[name]]
                params[name] = self._random.choice(others)
            else:
                params.pop(name, None)
        return params


def joint(space: Space, *, seed: int, baseline: float, storage: Any = None) -> Strategy:
    """The joint search. See the module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=derive_seed(seed, "tpe") % 2**32,
            multivariate=True,
            group=True,
            n_startup_trials=STARTUP,
            constant_liar=True,
        )
    return OptunaStrategy(space, sampler, seed=seed, baseline=baseline, local=LOCAL_OF, storage=storage)


def uniform(space: Space, *, seed: int, baseline: float, storage: Any = None) -> Strategy:
    """Uniform random search."""
    sampler = optuna.samplers.RandomSampler(seed=derive_seed(seed, "random") % 2**32)
    return OptunaStrategy(space, sampler, seed=seed, baseline=baseline, storage=storage)


StrategyFactory = Callable[..., Strategy]
STRATEGIES: Mapping[str, StrategyFactory] = MappingProxyType({"joint": joint, "random": uniform})


def strategy_named(name: str) -> StrategyFactory:
    """The strategy of this name, ours or one of the entry-point group `cuecard.optimizers`. Raises `InputError`."""
    from importlib.metadata import entry_points

    if name in STRATEGIES:
        return STRATEGIES[name]
    added = {point.name: point for point in entry_points(group="cuecard.optimizers")}
    if name not in added:
        names = [*STRATEGIES, *sorted(added)]
        near = nearest(name, names)
        raise InputError(
            f"unknown optimizer {name!r}",
            field="optimize.optimizer",
            expected=f"one of {', '.join(names)}",
            nearest=near,
        )
    try:
        factory: StrategyFactory = added[name].load()
    except Exception as error:
        raise InputError(f"the optimizer {name!r} cannot be imported from {added[name].value!r}: {error}") from error
    return factory
