"""Assertions that measure how near an output comes to a reference: by a metric, by edits, or by a function of the user.

Their default thresholds are promptfoo's: 0.75 for ROUGE and similarity, 0.5 for BLEU, at most 5 edits. chrF, which it
does not have, takes BLEU's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from ...errors import CuecardError, InputError
from ...metrics import Metric
from ...metrics import metric as metric_of
from ...metrics.edit import distance
from ...metrics.function import load
from ...metrics.values import as_text, plain
from .answers import Answer
from .rules import Given, Rule, Unjudged, Verdict, shown, text_of, yes

THRESHOLDS: Mapping[str, float] = MappingProxyType(
    {"rouge-n": 0.75, "rouge-l": 0.75, "bleu": 0.5, "chrf": 0.5, "similar": 0.75}
)
MOST_EDITS = 5


def scored(given: Given) -> Rule:
    """The rule that a metric's score against the reference, or the best of several, reaches the threshold."""
    threshold = THRESHOLDS[given.type] if given.threshold is None else given.threshold
    if not 0 <= threshold <= 1:
        raise given.wrong("threshold", f"found {threshold:g}", expected="0 to 1")
    wanted = [given.value] if isinstance(given.value, str) else given.value
    if not isinstance(wanted, list) or not wanted or not all(isinstance(one, str) for one in wanted):
        raise given.wrong("value", f"found {shown(given.value)}", expected="a reference text, or a list of them")
    metric = _metric(given)

    def judge(found: Any, answer: Answer) -> Verdict:
        score = metric.measure({"output": wanted}, {"output": as_text(found)}).score
        return Verdict(score >= threshold, score, f"{score:.3f}")

    texts = shown(wanted[0] if len(wanted) == 1 else wanted)
    return Rule(judge, "\n".join(wanted), f"of at least {threshold:g} against {texts}")


def _metric(given: Given) -> Metric:
    options = dict(given.options)
    if given.type == "rouge-n":
        n = options.pop("n", 1)
        if n not in (1, 2) or isinstance(n, bool):
            raise given.wrong("options", f"n is {n!r}", expected="1 or 2")
        name = f"rouge_{n}"
    else:
        name = {"rouge-l": "rouge_l", "similar": "similarity"}.get(given.type, given.type)
    try:
        metric = metric_of({"metric": name, **options})
        if given.type == "similar" and find_spec("sentence_transformers") is None:
            metric.measure({"output": ["a"]}, {"output": "b"})  # raises what there is to install
        return metric
    except InputError as error:
        key = "options" if given.options else "type"
        parts = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
        raise given.wrong(key, error.message, **parts) from error


def levenshtein(given: Given) -> Rule:
    """The rule that the output's text is at most so many edits of a character away from the value."""
    wanted = text_of(given)
    most = MOST_EDITS if given.threshold is None else given.threshold
    if most < 0:
        raise given.wrong("threshold", f"found {most:g}", expected="0 or more")

    def judge(found: Any, answer: Answer) -> Verdict:
        count = distance(as_text(found), wanted)
        return yes(count <= most, f"{count} edits")

    return Rule(judge, wanted, f"of at most {most:g} edits from {shown(wanted)}")


def python(given: Given) -> Rule:
    """The rule of a function, `module:function`, which is only imported when code is allowed.

    It is called with the output's text (the plain outputs by name, where the program has several and no `field` is
    given) and, if it takes a second argument, a mapping: `inputs` (also as `vars`), `outputs` and `options`. It gives a
    bool, a number from 0 to 1, or a mapping of `pass`, `score` and `reason`.
    """
    reference = text_of(given)
    if not given.allow_code:
        hint = "Pass `--allow-code` (in Python, `allow_code=True`) if you trust it."
        raise given.wrong("value", f"{reference!r} is Python code, which is only run when you allow it", hint=hint)
    if ":" not in reference:
        raise given.wrong("value", f"found {shown(reference)}", expected="module:function")
    try:
        function = load(reference, given.folder)
    except InputError as error:
        raise given.wrong("value", error.message, expected=error.expected, nearest=error.nearest) from error
    if not callable(function):
        raise given.wrong("value", f"{reference!r} is {function!r}", expected="a function of (output, context)")
    call = _caller(function)

    def judge(found: Any, answer: Answer) -> Verdict:
        context = {
            "inputs": plain(answer.inputs),
            "vars": plain(answer.inputs),
            "outputs": plain(answer.outputs or {}),
            "options": dict(given.options),
        }
        try:
            said = call(plain(found) if isinstance(found, Mapping) else as_text(found), context)
        except CuecardError:
            raise
        except Exception as error:
            raise Unjudged(f"{reference} broke: {type(error).__name__}: {error}") from error
        return _verdict(reference, said, given.threshold)

    return Rule(judge, reference, reference)


def _caller(function: Callable[..., Any]) -> Callable[[Any, Mapping[str, Any]], Any]:
    """`function` as one of two arguments."""
    try:
        places = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function of C, which does not say
        return function
    several = any(place.kind is place.VAR_POSITIONAL for place in places)
    count = sum(place.kind in (place.POSITIONAL_ONLY, place.POSITIONAL_OR_KEYWORD) for place in places)
    return function if several or count >= 2 else lambda output, context: function(output)


def _verdict(reference: str, said: Any, threshold: float | None) -> Verdict:
    """What a user's function said: as promptfoo reads it, a number without a threshold passes above 0."""
    given = said if isinstance(said, Mapping) else {"pass": said} if isinstance(said, bool) else {"score": said}
    passed = given.get("pass", given.get("pass_"))
    score: Any = given.get("score", None if passed is None else float(bool(passed)))
    number = isinstance(score, int | float) and math.isfinite(score) and 0 <= score <= 1
    if not number or not isinstance(passed, bool | None):
        raise Unjudged(f"{reference} gave {shown(said)}; expected true, false, or a score from 0 to 1")
    enough = score > 0 if threshold is None else score >= threshold
    holds = enough if passed is None else passed and (threshold is None or enough)
    reason = str(given.get("reason", "") or "")
    return Verdict(holds, float(score), reason or f"{score:.3f}")
