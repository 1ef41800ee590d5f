"""How often a gate cries wolf, and how often it sees a loss: simulated pairs of programs with a known true difference.

A pair is the scores of two programs on the same rows, drawn so that the second is worse by the true difference. Kinds
of scores: `0/1` (the programs differ on a fifth of the rows), `0/1, alike` (on one row in twenty), `graded` (the rows'
differences are uniform), `graded, few lose much` (one row in ten by 0.27, while the others gain 0.03) and `graded, few
gain much` (the other way round). The last two are no better and no worse on average, but not interchangeable, which is
what the permutation test supposes. The paired gate is the rule of `cuecard test`, with fewer resamples; beside it
stands the plain gate that most tools have, which fails where the average dropped by more than x.

    python benchmarks/gates.py            # about ten minutes on one core
    python benchmarks/gates.py --quick    # half a minute
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from cuecard.compiler.baseline import ROUNDING, is_worse
from cuecard.metrics import Measurement, Metric, PairedResult, metric, paired_test, wilson
from cuecard.metrics.statistics import Floats

ROWS = (50, 200, 1000)
DROPS = (0.0, 0.02, 0.05, 0.1)
PLAIN = (0.0, 0.02, 0.05)
TOLERANCE = 0.02
RESAMPLES = 1000

Draw = Callable[[np.random.Generator, int, float], tuple[Floats, Floats]]


@dataclass(frozen=True)
class Kind:
    """A kind of scores: how a pair is drawn, and the true differences that it can have."""

    name: str
    draw: Draw
    drops: tuple[float, ...]


def binary(share: float) -> Draw:
    """Right or wrong; the programs differ on `share` of the rows."""

    def draw(rng: np.random.Generator, n: int, drop: float) -> tuple[Floats, Floats]:
        before = rng.random(n)
        lost, won = (share + drop) / 2, (share - drop) / 2
        theirs = (before < 0.5 + lost).astype(float)
        ours = ((before < 0.5) | (before > 1 - won)).astype(float)
        return ours, theirs

    return draw


def graded(rng: np.random.Generator, n: int, drop: float) -> tuple[Floats, Floats]:
    """Differences of -0.3 to 0.3, less the drop."""
    theirs = rng.uniform(0.4, 0.6, n)
    return theirs + rng.uniform(-0.3, 0.3, n) - drop, theirs


def skewed(few: float, most: float) -> Draw:
    """One row in ten changes by `few`, the others by `most`, less the drop."""

    def draw(rng: np.random.Generator, n: int, drop: float) -> tuple[Floats, Floats]:
        theirs = rng.uniform(0.4, 0.6, n)
        return theirs + np.where(rng.random(n) < 0.1, few, most) - drop, theirs

    return draw


KINDS = (
    Kind("0/1", binary(0.2), DROPS),
    Kind("0/1, alike", binary(0.05), (0.0, 0.02, 0.05)),
    Kind("graded", graded, DROPS),
    Kind("graded, few lose much", skewed(-0.27, 0.03), (0.0,)),
    Kind("graded, few gain much", skewed(0.27, -0.03), (0.0,)),
)


def alarms(kind: Kind, n: int, drop: float, pairs: int, seed: int) -> dict[str, float]:
    """The share of pairs on which each gate fails."""
    rng = np.random.default_rng([seed, n, round(drop * 1000), KINDS.index(kind)])
    mean = metric("exact_match")
    names = ["paired", f"paired, tolerance {TOLERANCE:g}", *(f"average, x = {x:g}" for x in PLAIN)]
    counts = dict.fromkeys(names, 0)
    for number in range(pairs):
        ours, theirs = kind.draw(rng, n, drop)
        gap = float(ours.mean() - theirs.mean())
        failed = [False, False, *(gap < -x - ROUNDING for x in PLAIN)]
        if gap < 0:  # else no paired gate fails: see `is_worse`
            found = _compared(mean, ours, theirs, number)
            failed[:2] = [is_worse(found), is_worse(found, TOLERANCE)]
        for name, fails in zip(names, failed, strict=True):
            counts[name] += fails
    return {name: count / pairs for name, count in counts.items()}


def rules(kind: Kind, n: int, pairs: int, seed: int) -> dict[str, float]:
    """The false-alarm rate at no difference of the rules that the gate could have had."""
    rng = np.random.default_rng([seed, n, KINDS.index(kind)])
    mean = metric("exact_match")
    names = ("90 % interval", "90 % and permutation test", "95 % interval", "95 % and permutation test")
    counts = dict.fromkeys(names, 0)
    for number in range(pairs):
        ours, theirs = kind.draw(rng, n, 0.0)
        if ours.mean() < theirs.mean():
            found = [_compared(mean, ours, theirs, number, confidence) for confidence in (0.9, 0.95)]
            failed = [fails for each in found for fails in (each.high < -ROUNDING, is_worse(each))]
            for name, fails in zip(names, failed, strict=True):
                counts[name] += fails
    return {name: count / pairs for name, count in counts.items()}


def _compared(mean: Metric, ours: Floats, theirs: Floats, seed: int, confidence: float = 0.95) -> PairedResult:
    pair = [[Measurement(score) for score in scores.tolist()] for scores in (ours, theirs)]
    return paired_test(mean, *pair, seed=seed, resamples=RESAMPLES, confidence=confidence)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def main() -> int:
    """Print both tables; 1 when the paired gate's false-alarm rate is shown to be above 5 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50 and 200 rows, fewer pairs")
    parser.add_argument("--pairs", type=int, help="simulated pairs of a line at no difference; a fourth at others")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    pairs = chosen.pairs or (200 if chosen.quick else 2000)
    lines: list[list[str]] = []
    names: list[str] = []
    too_many = []
    for kind, n in product(KINDS, ROWS[:2] if chosen.quick else ROWS):
        for drop in kind.drops:
            count = pairs if drop == 0 else max(1, pairs // 4)
            found = alarms(kind, n, drop, count, chosen.seed)
            names = list(found)
            lines.append([kind.name, f"{n:,}", f"{-drop:g}" if drop else "0", *shares(found)])
            if drop == 0 and wilson(round(found[names[0]] * count), count, 0.99)[0] > 0.05:
                too_many.append(f"{kind.name}, {n} rows: {found[names[0]]:.1%}")
    print(f"Share of pairs on which a gate fails; {pairs:,} pairs at no difference, a fourth of it at others\n")
    print(table(["scores", "rows", "true difference", *names], lines))
    print("\nFalse alarms at no difference of the rules that the paired gate could have, 50 rows\n")
    each = {kind.name: rules(kind, 50, pairs, chosen.seed) for kind in KINDS}
    print(table(["scores", *each[KINDS[0].name]], [[name, *shares(found)] for name, found in each.items()]))
    for line in too_many:
        print(f"more than 5 % false alarms: {line}")
    return 1 if too_many else 0


def shares(found: Mapping[str, float]) -> list[str]:
    """Rates as people read them."""
    return [f"{rate:.1%}" for rate in found.values()]


if __name__ == "__main__":
    raise SystemExit(main())
