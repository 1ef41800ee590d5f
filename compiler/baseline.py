"""A baseline: a metric's score of every example, kept in a file beside the spec, and the gate that compares with it.

The file is JSON with one row a line, sorted by key, so that a change of three examples is a diff of three lines. A
row's key is a hash of the example's inputs and gold values: reordering the data or adding to it changes no key, and an
example whose gold value was corrected is a new row, which is not compared with the old one. `metric_digest` is a hash
of what the metric was (`metrics/source.py`): scores by another rubric, or with other options, are no past of these.
Files that were written before there was one are compared by the metric's name alone.

The gate fails only where the data show that the program got worse. Two things must hold: the 95 % interval of the
paired difference, now less baseline, lies wholly below minus the tolerance, and the paired permutation test rejects at
5 % that nothing got worse. An interval at 90 %, whose upper end is a one-sided bound at 5 %, would see a little more;
but the percentile bootstrap is too narrow for few rows, more so where a few of them gain much, and would then cry wolf
once in twelve times. The permutation test, exact for programs that are interchangeable, keeps the rate where
few rows differ: four lost rows and none won would do for the interval. `benchmarks/gates.py` measures all of this.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from ..errors import InputError, nearest
from ..files import read_text, write_atomic
from ..metrics import Measurement, Metric
from ..metrics.source import source_digest
from ..metrics.statistics import (
    PairedResult,
    Score,
    interval,
    paired_deviation,
    paired_test,
    score_deviation,
    smallest_detectable_difference,
)
from ..programs.schema import Spec
from .examples import canonical

FORMAT = "cuecard-baseline-1"
KEYS = ("format", "metric", "metric_digest", "program", "target", "rows")
LEVEL = 0.05  # of the permutation test, one-sided
TAIL = 0.025  # beyond the interval's upper end
ROUNDING = 1e-9  # A loss of exactly the tolerance is no more than it, whatever the last bit of the mean says.


@dataclass(frozen=True)
class Baseline:
    """The scores of a program on examples, by row key. `program` and `target` say whose: digests, or empty.

    `metric_digest` is the `source_digest` of the metric, empty where it is not known.
    """

    metric: str
    rows: Mapping[str, Measurement]
    program: str = ""
    target: str = ""
    metric_digest: str = ""


@dataclass(frozen=True)
class GateResult:
    """How a gate ended.

    `comparison` is now less baseline over the `matched` rows that both have; `detectable` is the
    smallest true difference that the gate would find on these rows four times in five.
    """

    passed: bool
    score: Score
    comparison: PairedResult | None
    matched: int
    detectable: float
    reason: str


def row_key(inputs: Mapping[str, Any], labels: Mapping[str, Any]) -> str:
    """The key of an example: 16 hexadecimal digits, the same for the same values in whatever order."""
    text = canonical({"inputs": dict(inputs), "labels": dict(labels)})
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def program_digest(spec: Spec) -> str:
    """A short hash of what is asked of the model: the spec without its tests, its data and how it was compiled."""
    data = {name: value for name, value in spec.to_data().items() if name not in ("tests", "data", "compiled")}
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:12]


def unique_keys(keys: Iterable[str]) -> list[str]:
    """Keys in their order, those that came before marked by how often: `a`, `b`, `a-2`."""
    seen: dict[str, int] = {}
    found = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        found.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return found


def write_baseline(path: str | PathLike[str], baseline: Baseline) -> None:
    """Write a baseline, whole or not at all. The same baseline is the same bytes. Raises `RunError`."""
    rows = [f"    {json.dumps(key)}: {json.dumps(_plain(row))}" for key, row in sorted(baseline.rows.items())]
    digest = {"metric_digest": baseline.metric_digest} if baseline.metric_digest else {}
    whose = {"program": baseline.program, "target": baseline.target}
    head = {"format": FORMAT, "metric": baseline.metric, **digest, **whose}
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},\n" for key, value in head.items()]
    body = ",\n".join(rows)
    write_atomic(path, "{\n" + "".join(lines) + '  "rows": {' + (f"\n{body}\n  " if rows else "") + "}\n}\n")


def read_baseline(path: str | PathLike[str]) -> Baseline:
    """Read what `write_baseline` wrote. Raises `InputError` for anything else."""
    data = _decoded(read_text(path), path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        said = f"found the format {found!r}" if found is not None else "not a baseline"
        hint = "Write one with --update-baseline."
        raise InputError(said, path=path, expected=f'a JSON object with "format": "{FORMAT}"', hint=hint)
    for key in data:
        if key not in KEYS:
            raise InputError(f"there is no key {key!r}", path=path, nearest=nearest(key, KEYS))
    texts = {key: data.get(key, "") for key in KEYS if key not in ("format", "rows")}
    for key, value in texts.items():
        if not isinstance(value, str) or (key == "metric" and not value):
            raise InputError(f"found {_short(value)}", path=path, field=key, expected="text")
    rows = data.get("rows")
    if not isinstance(rows, dict) or not rows:
        raise InputError(f"found {_short(rows)}", path=path, field="rows", expected="row keys with their scores")
    read = {key: _measurement(key, value, path) for key, value in rows.items()}
    widths = {len(row.statistics) for row in read.values()}
    if len(widths) > 1:
        counts = " and ".join(map(str, sorted(widths)))
        raise InputError(f"rows have {counts} statistics", path=path, field="rows", expected="as many in every row")
    return Baseline(rows=read, **texts)


def gate(
    metric: Metric,
    rows: Mapping[str, Measurement],
    *,
    at_least: float | None = None,
    baseline: Baseline | None = None,
    tolerance: float = 0.0,
    seed: int = 0,
) -> GateResult:
    """Whether the scores of `rows` are good enough.

    at_least: a floor for the aggregate itself; baseline: what they are compared with, row by row; tolerance: how much
    worse, on the metric's scale, is still accepted. Raises `InputError` when there is nothing to compare with: no rows,
    no floor and no baseline, another metric's baseline, or one without a row in common.
    """
    if not rows:
        raise InputError(f"metric {metric.name!r} has no rows to judge", expected="at least one")
    if at_least is None and baseline is None:
        raise InputError("a gate has nothing to judge by", expected="at_least, a baseline, or both")
    span = metric.high - metric.low
    if not 0 <= tolerance <= span:
        raise InputError(f"found {tolerance:g}", field="tolerance", expected=f"0 to {span:g}")
    ordered = [rows[key] for key in sorted(rows)]
    score = interval(metric, ordered, seed)
    passed, reasons = True, []
    if at_least is not None:
        passed = score.value >= at_least
        reasons.append(_floor_text(metric, score, at_least))
    if baseline is None:
        found = could_go_unseen(metric, ordered)
        reasons.append(unseen_text(metric, found))
        return GateResult(passed, score, None, 0, found, "; ".join(reasons))
    matched = _matched(metric, rows, baseline)
    ours, theirs = [rows[key] for key in matched], [baseline.rows[key] for key in matched]
    comparison = paired_test(metric, ours, theirs, seed=seed)
    worse = is_worse(comparison, tolerance)
    found = tolerance + smallest_detectable_difference(
        len(matched), sd=paired_deviation(metric, ours, theirs), level=TAIL
    )
    reasons.append(_comparison_text(metric, comparison, tolerance, found, worse=worse))
    reasons += _unmatched_text(rows, baseline)
    return GateResult(passed and not worse, score, comparison, len(matched), found, "; ".join(reasons))


def could_go_unseen(metric: Metric, measurements: Sequence[Measurement]) -> float:
    """The smallest true difference from another program that these rows would show four times in five.

    As far as one program's scores can tell; the interval of a comparison is at 95 %. Raises `InputError` for no rows.
    """
    deviation = score_deviation(metric, measurements)
    return smallest_detectable_difference(len(measurements), sd=deviation, level=TAIL)


def unseen_text(metric: Metric, least: float, name: str = "") -> str:
    """That differences below `least` could go unseen, in words; `name`: of what, where that has to be said."""
    what = f" of {name}" if name else ""
    if least >= metric.high - metric.low:
        return f"any difference{what} could go unseen"
    return f"a difference{what} below {least:.3f} could go unseen"


def other_options(metric: Metric, baseline: Baseline) -> bool:
    """Whether a baseline is known to come from another rubric, or other options, than those of `metric`."""
    return baseline.metric_digest not in ("", source_digest(metric))


def is_worse(comparison: PairedResult, tolerance: float = 0.0) -> bool:
    """Whether a comparison shows a loss of more than `tolerance`: the rule of the gate.

    The distribution of the difference under swaps is symmetric, so that half the two-sided p-value is the one-sided.
    """
    limit = -tolerance - ROUNDING
    return comparison.high < limit and comparison.difference < limit and comparison.p_two_sided <= 2 * LEVEL


def _matched(metric: Metric, rows: Mapping[str, Measurement], baseline: Baseline) -> list[str]:
    """The keys that both have, sorted. Raises `InputError` when they can't be compared."""
    if baseline.metric != metric.name:
        found = f"the baseline holds scores of {baseline.metric!r}"
        hint = "Write the baseline again with --update-baseline."
        raise InputError(found, field="baseline", expected=repr(metric.name), hint=hint)
    if other_options(metric, baseline):
        found = f"the baseline was written with another rubric or other options of {metric.name!r}"
        raise InputError(found, field="baseline", hint="Write the baseline again with --update-baseline.")
    matched = sorted(rows.keys() & baseline.rows.keys())
    if not matched:
        raise InputError(
            f"none of the {len(rows)} examples stands in the baseline of {len(baseline.rows)} rows",
            field="baseline",
            expected="a baseline of the same data",
            hint="A row is known by its inputs and gold values. Write the baseline again with --update-baseline.",
        )
    width = len(baseline.rows[matched[0]].statistics)
    if width != len(rows[matched[0]].statistics):
        found = f"the baseline's rows hold {width} statistics of {metric.name!r}"
        expected, hint = f"{len(rows[matched[0]].statistics)}", "Write the baseline again with --update-baseline."
        raise InputError(found, field="baseline", expected=expected, hint=hint)
    return matched


def _floor_text(metric: Metric, score: Score, at_least: float) -> str:
    found = f"{metric.name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}] on {_rows(score.n)}"
    return f"{found}, {'at least' if score.value >= at_least else 'which is less than'} {at_least:g}"


def _comparison_text(metric: Metric, found: PairedResult, tolerance: float, least: float, *, worse: bool) -> str:
    allowed = f" by more than the tolerance of {tolerance:g}" if tolerance else ""
    verdict = f"worse than the baseline{allowed}" if worse else f"not shown to be worse than the baseline{allowed}"
    numbers = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] on {_rows(found.n)}"
    counts = f"{found.wins} better, {found.losses} worse, {found.ties} equal"
    limit = "" if worse else f"; a loss below {least:.3f} could go unseen"
    return f"{metric.name} is {verdict}: {numbers}, {counts}{limit}"


def _unmatched_text(rows: Mapping[str, Measurement], baseline: Baseline) -> list[str]:
    new, gone = len(rows.keys() - baseline.rows.keys()), len(baseline.rows.keys() - rows.keys())
    told = [f"{_rows(new)} not in the baseline"] if new else []
    told += [f"{_rows(gone)} of the baseline not in the data"] if gone else []
    return [f"not compared: {' and '.join(told)}"] if told else []


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _plain(row: Measurement) -> float | list[float]:
    """A row as the file holds it: the score, or for a corpus metric a list of the score and its statistics."""
    return [row.score, *row.statistics] if row.statistics else row.score


def _measurement(key: str, value: Any, path: str | PathLike[str]) -> Measurement:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(_is_number(number) for number in numbers):
        expected = "a score, or a list of a score and statistics"
        raise InputError(f"found {_short(value)}", path=path, field=f"rows.{key}", expected=expected)
    return Measurement(float(numbers[0]), tuple(float(number) for number in numbers[1:]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _decoded(text: str, path: str | PathLike[str]) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"the key {twice!r} stands twice", path=path)
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg}", path=path, line=error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", path=path) from None


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
