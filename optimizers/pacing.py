"""What a generation costs, and what is left for it: how many candidates race, and how many of them go on.

A budget in seconds, tokens or model calls must not be overrun, yet what a candidate costs is known only once it has
run: so a generation is as wide as the costs of the last one say, and after each block only so many go on as can finish
by their own pace. What the baseline and the winner will cost on other rows after the search is kept back, and so are
the metric calls of what is tried on top of what the search finds (`afforded`): a search has use for every call.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ..errors import CuecardError
from ..programs.readout import first_calls
from .base import LIMITS, Budget, Candidate, Evaluator, Row, spending

FIRST_BLOCK = 32  # of a candidate that races alone
FIRST_RUNG = 16  # of a generation: all of it is seen so far
ANSWER_TOKENS = 60.0  # about what an answer costs, in prompt tokens
WEIGHED = 4  # rows whose prompts tell what a candidate's runs cost
KEPT_SHARE = 0.5  # of the metric calls that are left when a search begins: the most that is kept back
PACED = ("model_calls", "tokens", "seconds")  # what runs cost more or less of
EVEN: Mapping[str, float] = MappingProxyType(dict.fromkeys(PACED, 1.0))
NOTHING: Mapping[str, float] = MappingProxyType(dict.fromkeys(PACED, 0.0))


def blocks(total: int, first: int = FIRST_BLOCK) -> list[int]:
    """The growing numbers of examples after which a candidate is judged: 32, 64, 128, ..., total.

    Where the last block would be no more than half of the one before it, the two are one: to drop somebody so near the
    end saves little, and who ends is known on all of dev.
    """
    ends: list[int] = []
    size = first
    while size < total and not (ends and 2 * (total - size) <= size - ends[-1]):
        ends.append(size)
        size *= 2
    return [*ends, total]


@dataclass(frozen=True)
class Way:
    """A way to try something on top of what a search finds: for so many metric `calls`, fitted on so many train `rows`,
    with its prompt in so many `formats`.
    """

    calls: int
    rows: int = 0
    formats: int = 1


def afforded(ways: Mapping[str, Sequence[Way]], room: float) -> dict[str, Way | None]:
    """Of each thing, the last way that fits into what those before it have left of `room` metric calls, if any does."""
    found: dict[str, Way | None] = {}
    for name, each in ways.items():
        way = found[name] = next((way for way in reversed(each) if way.calls <= room), None)
        room -= 0 if way is None else way.calls
    return found


def kept_back(ways: Mapping[str, Sequence[Way]], room: float) -> int:
    """How many of `room` metric calls a search keeps back for what can be tried after it."""
    return sum(way.calls for way in afforded(ways, KEPT_SHARE * room).values() if way is not None)


@dataclass
class Pacer:
    """The costs of one search. `dev`: the rows of the race; `later`: how many rows the baseline and the winner will
    each run on after it; `paces`: trial -> what a row cost, by `PACED`, in the cheapest block that it ran; `raced`:
    what all generations took together, and their `runs`; `fastest`: the seconds a run of the fastest of them; `kept`:
    the metric calls that are kept back for after the search; `tried`: how many rows the winner will run on once more,
    with demos from dev, whose other costs are kept back.
    """

    evaluator: Evaluator
    budget: Budget
    dev: Sequence[Row]
    later: int = 0
    first_rung: int = FIRST_RUNG
    paces: dict[int, Mapping[str, float]] = field(default_factory=dict)
    raced: dict[str, float] = field(default_factory=dict)
    fastest: float = math.inf
    kept: int = 0
    tried: int = 0

    @property
    def spent(self) -> dict[str, float]:
        """What is used up so far, by `LIMITS`."""
        return spending(self.evaluator)

    def ends(self, width: int) -> list[int]:
        """After how many examples the candidates of a generation are judged."""
        return blocks(len(self.dev), FIRST_BLOCK if width == 1 else self.first_rung)

    def most_calls(self, width: int) -> int:
        """How many program runs a generation makes when nobody is dropped for losing."""
        calls, start = 0, 0
        alive = width
        for end in self.ends(width):
            calls, start, alive = calls + alive * (end - start), end, math.ceil(alive / 2)
        return calls

    def first_costs(
        self, extra: float, fresh: float, baseline: Candidate, candidates: Sequence[Candidate]
    ) -> dict[str, float]:
        """What each run of the first generation may cost, by what the baseline's did, with prompts as many and as long
        as those of `candidates`, and with so many more for calibrations: `extra` metric calls, of which for `fresh` the
        model is asked. Seconds are not known: 0.
        """
        pace = dict(self.paces.get(0, EVEN))
        for name in ("model_calls", "tokens") if candidates else ():
            weights = [self.weight(candidate)[name] for candidate in candidates]
            pace[name] += max(0.0, sum(weights) / len(weights) - self.weight(baseline)[name])
        return {"metric_calls": 1.0 + extra, **{name: (1.0 + fresh) * pace[name] for name in PACED}, "seconds": 0.0}

    def filler(self, costs: Mapping[str, float], baseline: Candidate, best: int) -> Callable[[Candidate], bool] | None:
        """What is told the candidates of a generation one by one, and says when what is left has no room for another
        one: of tokens, and of seconds where no generation has told yet what a run takes. None where neither limit is.
        costs, best: see `width`.
        """
        asked: list[Callable[[Candidate], bool]] = []
        left = self._left(best, NOTHING)
        if self.budget.tokens is not None:
            asked.append(self._tokens_filled(left["tokens"], costs["metric_calls"], baseline))
        if self.budget.seconds is not None and not costs["seconds"]:
            asked.append(self._seconds_filled(left["seconds"], costs["metric_calls"], baseline))
        return (lambda candidate: any([full(candidate) for full in asked])) if asked else None

    def _tokens_filled(self, left: float, runs: float, baseline: Candidate) -> Callable[[Candidate], bool]:
        """By the tokens of a generation from which nobody is dropped for losing, so many `runs` for each of its own."""
        answer = self.paces[0]["tokens"] - self.weight(baseline)["tokens"]
        known: list[float] = []

        def full(candidate: Candidate) -> bool:
            known.append(max(1.0, answer + self.weight(candidate)["tokens"]))
            mean, more = sum(known) / len(known), len(known) + 1
            return mean * runs * self.most_calls(more) > left

        return full

    def _seconds_filled(self, left: float, runs: float, baseline: Candidate) -> Callable[[Candidate], bool]:
        """By the seconds of a generation's first block and of the rest of dev for one of its candidates: after the
        block its own pace tells how many go on. A token takes as long as one of the baseline's did.
        """
        dev = len(self.dev)
        row, shared = self._seconds_weight(baseline)
        second = self.paces[0]["seconds"] * dev / (dev * row + shared)  # of a token
        known: list[tuple[float, float]] = []

        def full(candidate: Candidate) -> bool:
            known.append(self._seconds_weight(candidate))
            row = sum(own for own, _ in known) / len(known)
            shared = sum(common for _, common in known) / len(known)
            more = len(known) + 1
            first = min(dev, self.ends(more)[0])
            return runs * second * (more * (first * row + shared) + (dev - first) * row) > left

        return full

    def _seconds_weight(self, candidate: Candidate) -> tuple[float, float]:
        """The tokens that each of a candidate's runs takes time for, and those that all of them share."""
        row, shared = self.weight(candidate)["seconds"], 0.0
        with contextlib.suppress(CuecardError):  # see `weight`
            shared = self.evaluator.prompt_tokens(candidate, self.dev[:WEIGHED]) - (row - ANSWER_TOKENS)
        return row, max(0.0, shared)

    def costs(self, width: int, before: Mapping[str, float]) -> dict[str, float]:
        """What a generation took, by `LIMITS`, for each run that it would have made had nobody been dropped for losing.

        before: what was used up when it began. Tokens and model calls are no less than the mean of all generations:
        few candidates, or such as asked what is known, say little of the next ones. Seconds are those of the fastest
        generation: few candidates fill no batch, and what does not fit in the end is dropped after a block, unless the
        first is all of dev.
        """
        took = {name: now - before[name] for name, now in self.spent.items()}
        runs = min(took["metric_calls"], self.most_calls(width))  # calibrations make more of them
        self.raced |= {name: self.raced.get(name, 0.0) + each for name, each in {**took, "runs": runs}.items()}
        last = {name: took[name] / runs for name in LIMITS}
        self.fastest = min(self.fastest, last["seconds"])
        mean = {name: self.raced[name] / self.raced["runs"] for name in PACED}
        found = last | {name: max(last[name], each) for name, each in mean.items()}
        return found if len(self.ends(2)) == 1 else {**found, "seconds": self.fastest}

    def width(self, most: int, trials: int, costs: Mapping[str, float], best: int) -> tuple[int, str]:
        """How many candidates race next, at most `most`; when it is none, also what stopped the search.

        trials: so many are over, the baseline one of them; costs: what a run costs, see `costs`; best: the incumbent's
        trial. The last generations are as narrow as the rest of the budget asks for. Metric calls alone may be overrun,
        by one candidate's, unless some are kept back. Of the other limits one candidate may take what is kept back for
        after the search: else the baseline would have run for nothing.
        """
        reached = self.budget.spent_on(self.evaluator, trials)
        if reached is not None:
            return 0, reached
        width = most if self.budget.trials is None else min(most, self.budget.trials - trials)
        left = self._left(best, NOTHING)
        watched = (*(["metric_calls"] if self.kept else []), *(PACED if trials > 1 else ()))
        for name in watched:
            if name in left and (left[name] <= 0 or costs[name] * self.most_calls(1) > left[name]):
                return 0, name
        while width > 1 and any(costs[name] * self.most_calls(width) > rest for name, rest in left.items()):
            width -= 1
        return width, ""

    def affordable(
        self, ranked: Sequence[int], ends: Sequence[int], best: int, refits: Sequence[int] = (), delay: int = 0
    ) -> int:
        """How many of these trials, the best first, can run on to the end of dev with what is left of the budget.

        One at least where nothing has beaten the baseline (trial 0) yet: else what was spent would be for nothing.
        ends: where the block that was just run ends, and those to come; best: the incumbent's trial; refits: the rows
        that each will be calibrated on besides, after `delay` blocks more.
        """
        if not ranked:
            return 0
        paces = [self.paces[number] for number in ranked]
        left = {name: rest for name, rest in self._left(best, paces[0]).items() if name in PACED}
        sizes = [after - before for before, after in itertools.pairwise(ends)]

        def cost(alive: int, name: str) -> float:
            runs = sum(
                size * sum(pace[name] for pace in paces[: math.ceil(alive / 2**place)])
                for place, size in enumerate(sizes)
            )
            fitted = math.ceil(alive / 2 ** max(0, delay))
            return runs + sum(pace[name] * rows for pace, rows in zip(paces[:fitted], refits, strict=False))

        fewest = fewest_left(best)
        fitting = (n for n in range(len(ranked), fewest, -1) if all(cost(n, name) <= left[name] for name in left))
        return next(fitting, fewest)

    def affords(self, number: int, times: int, on_dev: float = 1.0) -> bool:
        """Whether a program that costs `times` what trial `number` does can run on dev now, and on what comes later.

        What a trial cost that ran elsewhere is not known: it counts as the baseline does. on_dev: how many times as
        much dev's rows cost as others.
        """
        pace = self.paces.get(number, self.paces[0])
        rows = times * on_dev * len(self.dev) + (times - 1) * self.later
        kept = self.paces.get(number, NOTHING)
        left = {name: rest for name, rest in self._left(number, NOTHING).items() if name in PACED}
        return all(rows * pace[name] <= rest + self.tried * kept[name] for name, rest in left.items())

    def weight(self, candidate: Candidate) -> Mapping[str, float]:
        """What a run of a candidate costs, next to others: in model calls, by how many its first prompts are; in
        seconds, by the tokens that no other row shares, and the answer's; in tokens, by all that it has.
        """
        signatures = self.evaluator.signatures
        calls = sum(first_calls(signatures[name], state) for name, state in candidate.states.items())
        weight = {**EVEN, "model_calls": float(max(1, calls))}
        with contextlib.suppress(CuecardError):  # a prompt that is too long: its run will say so
            if self.budget.seconds is not None:
                weight["seconds"] = ANSWER_TOKENS
                weight["seconds"] += self.evaluator.own_tokens(candidate, self.dev[:WEIGHED])
            if self.budget.tokens is not None:
                weight["tokens"] = ANSWER_TOKENS
                weight["tokens"] += self.evaluator.prompt_tokens(candidate, self.dev[:WEIGHED])
        return weight

    def learn(self, weights: Mapping[int, Mapping[str, float]], rows: int, before: Mapping[str, float]) -> None:
        """These trials have run a block of `rows` together since `before` was used up: each has its share by its
        weight. What counts is the cheapest of a trial's blocks: a small one takes longer for each row, and those to
        come are larger.
        """
        spent = self.spent
        every = {name: rows * sum(weight[name] for weight in weights.values()) for name in PACED}
        for number, weight in weights.items():
            pace = {name: (spent[name] - before[name]) * weight[name] / every[name] for name in PACED}
            known = self.paces.get(number, pace)
            self.paces[number] = {name: min(pace[name], known[name]) for name in PACED}

    def _left(self, best: int, pace: Mapping[str, float]) -> dict[str, float]:
        """What is left of each limit, without what comes after the search: what is kept back for that, and rows of the
        baseline and of the winner, which costs what `best` does, or `pace` where that is more.
        """
        spent = self.spent
        left = {name: limit - spent[name] for name, limit in self.budget.limits.items()}
        return {
            name: rest - (self._after(name, best, pace) if name in PACED else self.kept) for name, rest in left.items()
        }

    def _after(self, name: str, best: int, pace: Mapping[str, float]) -> float:
        """What comes after the search of one of `PACED`."""
        winners = max(pace[name], self.paces.get(best, NOTHING)[name])
        return self.later * (self.paces[0][name] + winners) + self.tried * winners


def fewest_left(best: int) -> int:
    """How many candidates go on at least, whatever they cost: one, while the baseline (trial 0) is the best."""
    return 1 if best == 0 else 0
