"""A strategy that draws its points through an Optuna study, with local moves around the best of them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import optuna

from ..seeds import derive_seed
from .base import Proposal
from .space import Space

STARTUP = 10
WEIGHTS: Mapping[str, float] = MappingProxyType({"demo_set": 4.0, "format": 2.0, "readout": 2.0, "nearest": 2.0})


def tpe_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """The tree-structured Parzen estimator over conditional dimensions, for points that are out side by side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=derive_seed(seed, "tpe") % 2**32,
            multivariate=True,
            group=True,
            n_startup_trials=STARTUP,
            constant_liar=True,
        )


def random_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Uniform draws."""
    return optuna.samplers.RandomSampler(seed=derive_seed(seed, "random") % 2**32)


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
