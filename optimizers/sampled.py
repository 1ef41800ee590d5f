"""A strategy that draws its points through an Optuna study, with local moves around the best of them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optuna

from ..seeds import derive_seed
from .base import Proposal, Trial
from .shared import SharedStudy
from .space import Space
from .told import frozen_trial

STARTUP = 10
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"demo_set": 4.0, "label_set": 2.0, "format": 2.0, "readout": 2.0, "nearest": 2.0}
)


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

    sampler: made with a seed; local: how many of how many proposals vary the best point instead; storage: an Optuna
    storage or its URL, in which no study of this name stands yet, or a study that is shared with other processes: what
    they tell is learned like what was asked for here.
    """

    def __init__(
        self,
        space: Space,
        sampler: Callable[[int], optuna.samplers.BaseSampler],
        *,
        seed: int,
        baseline: float,
        local: tuple[int, int] = (0, 1),
        storage: Any = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self._shared = storage if isinstance(storage, SharedStudy) else None
        if self._shared is not None:
            self._shared.join(space)
            seed, storage = self._shared.seed(seed), self._shared.local
        self.study = optuna.create_study(
            storage=storage, study_name="cuecard", sampler=sampler(seed), direction="maximize", load_if_exists=False
        )
        zero = optuna.trial.create_trial(value=baseline, params={}, distributions={}, user_attrs={"baseline": True})
        self.study.add_trial(zero)
        self._local = local
        self._random = random.Random(derive_seed(seed, "local"))
        self._starts = space.starts()
        self._best: optuna.Trial | optuna.trial.FrozenTrial | None = None
        self._asked = 0
        self._heard = 0
        self._trials: dict[int, optuna.Trial] = {}

    def propose(self) -> Proposal | None:
        """See `Strategy.propose`. Never runs out."""
        known = self._asked + self._heard
        if (start := self._start()) is not None:
            self.study.enqueue_trial(start)
        elif self._best and known >= STARTUP and self._asked % self._local[1] < self._local[0]:
            self.study.enqueue_trial(self._near(self._best))
        self._asked += 1
        trial = self.study.ask()
        params = self.space.suggest(trial)
        self._trials[trial.number] = trial
        return Proposal(params, trial.number)

    def observe(self, proposal: Proposal, value: float, best: bool) -> None:
        """See `Strategy.observe`."""
        trial: optuna.Trial | optuna.trial.FrozenTrial
        if proposal.key < 0:
            trial = frozen_trial(self.space, proposal.params, value)
            self.study.add_trial(trial)
        else:
            trial = self._trials.pop(proposal.key)
            self.study.tell(trial, value)
        if best and trial.params:  # the only point of a space has nothing to vary
            self._best = trial

    def others(self) -> Sequence[tuple[Proposal, Trial]]:
        """See `Sharing.others`. Their proposals have keys below 0."""
        found = []
        for trial in () if self._shared is None else self._shared.heard():
            self._heard += 1
            found.append((Proposal(trial.params, -self._heard), trial))
        return found

    def share(self, trial: Trial) -> None:
        """See `Sharing.share`."""
        if self._shared is not None:
            self._shared.tell(trial)

    def _start(self) -> dict[str, Any] | None:
        """The next starting point, which in a shared study nobody else tries; None when there are no more."""
        if self._shared is None:
            return self._starts.pop(0) if self._starts else None
        start = self._shared.claim(len(self._starts))
        return None if start is None else self._starts[start]

    def _near(self, best: optuna.Trial | optuna.trial.FrozenTrial) -> dict[str, Any]:
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
