"""The types of assertions that there are, and how each is read and judged.

The names, and what they mean, are promptfoo's (https://www.promptfoo.dev/docs/configuration/expected-outputs/). A yes
or no scores 1 or 0; `rouge-n`, `rouge-l`, `bleu`, `chrf`, `similar`, `python`, `judge` and `llm-rubric` score what they
measured. `not-`
before a type turns both round: it passes where the other fails, and its score is 1 less the other's. `equals` compares
as the metric `exact_match` does, `latency` and `tokens` look at what the answer cost, all others at the output's text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ...metrics.matching import ExactMatch
from ...metrics.values import as_text, plain
from .answers import Answer
from .judge_rule import judged
from .rules import SHOWN, Given, Rule, Unjudged, Untimed, Verdict, shown, text_of, texts_of, yes
from .scored import levenshtein, python, scored

NEGATION = "not-"
SET = "assert-set"


@dataclass(frozen=True)
class Kind:
    """A type of assertion: how its rule is made, which keys it takes, and whether it looks at an output."""

    make: Callable[[Given], Rule]
    takes: frozenset[str] = frozenset({"value"})
    of_output: bool = True


def rule_of(given: Given) -> Rule:
    """The rule of an assertion whose type is one of `KINDS`. Raises `InputError`, whose `field` is the key."""
    kind = KINDS[given.type]
    for key, there in (("threshold", given.threshold is not None), ("options", bool(given.options))):
        if there and key not in kind.takes:
            raise given.wrong(key, f"{given.type!r} takes no {key}")
    if given.has_value and "value" not in kind.takes:
        raise given.wrong("value", f"{given.type!r} takes no value")
    if "value" in kind.takes and not given.has_value and given.type != "is-json":
        raise given.wrong("", "the key 'value' is missing")
    return kind.make(given)


def _equals(given: Given) -> Rule:
    wanted, metric = given.typed(given.value), ExactMatch()
    return Rule(lambda found, answer: yes(metric.compare([wanted], found).score == 1.0), as_text(wanted), shown(wanted))


def _of_text(compare: Callable[[str, str], bool]) -> Callable[[Given], Rule]:
    """The maker of a rule that compares the output's text with one text."""

    def make(given: Given) -> Rule:
        wanted = text_of(given)
        return Rule(lambda found, answer: yes(compare(as_text(found), wanted)), wanted, shown(wanted))

    return make


def _of_texts(some: Callable[[list[bool]], bool], *, fold: bool = False) -> Callable[[Given], Rule]:
    """The maker of a rule on which of several texts the output contains."""

    def make(given: Given) -> Rule:
        texts = texts_of(given)
        parts = [text.casefold() if fold else text for text in texts]

        def judge(found: Any, answer: Answer) -> Verdict:
            text = as_text(found).casefold() if fold else as_text(found)
            return yes(some([part in text for part in parts]))

        return Rule(judge, "\n".join(texts), shown(list(texts)))

    return make


def _regex(given: Given) -> Rule:
    wanted = text_of(given)
    try:
        pattern = re.compile(wanted)
    except re.error as error:
        raise given.wrong("value", f"not a regular expression: {error}") from None
    return Rule(lambda found, answer: yes(pattern.search(as_text(found)) is not None), wanted, shown(wanted))


def _is_json(given: Given) -> Rule:
    fault = schema_check(given) if given.has_value else lambda value: ""

    def judge(found: Any, answer: Answer) -> Verdict:
        value = plain(found)  # a typed value always has a JSON form
        if isinstance(found, str):
            try:
                value = json.loads(found)
            except (ValueError, RecursionError):
                return yes(False, "not JSON" if given.has_value else "")
        said = fault(value)
        return yes(not said, said)

    words = "by the schema" if given.has_value else ""
    return Rule(judge, json.dumps(given.value, ensure_ascii=False) if given.has_value else "JSON", words)


def schema_check(given: Given) -> Callable[[Any], str]:
    """A function that says what of a value does not fit the schema. Nothing outside the schema is ever read."""
    import jsonschema  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if not isinstance(given.value, dict | bool):
        raise given.wrong("value", f"found {shown(given.value)}", expected="a JSON schema, such as {type: object}")
    kind = jsonschema.validators.validator_for(given.value, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(given.value)
    except jsonschema.SchemaError as error:
        place = "".join(f".{part}" for part in error.absolute_path)
        raise given.wrong("value", f"not a JSON schema: {place.lstrip('.')}: {error.message}") from None
    validator = kind(given.value, registry=Registry())

    def fault(value: Any) -> str:
        try:
            error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        except Unresolvable as unknown:
            raise Unjudged(f"the schema refers to {unknown.ref!r}, which it does not hold") from None
        if error is None:
            return ""
        said = error.message if len(error.message) <= SHOWN else error.message[: SHOWN - 3] + "..."
        return f"{error.json_path}: {said}"

    return fault


def _word_count(given: Given) -> Rule:
    value = given.value
    low, high = (value.get("min"), value.get("max")) if isinstance(value, dict) else (value, value)
    ends = [end for end in (low, high) if end is not None]
    right = all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends)
    if not ends or not right or (isinstance(value, dict) and set(value) - {"min", "max"}):
        raise given.wrong("value", f"found {shown(value)}", expected="a number of words, or {min: 5, max: 20}")
    if len(ends) == 2 and ends[0] > ends[1]:
        raise given.wrong("value", f"min is {ends[0]} but max is {ends[1]}", expected="min <= max")
    least, most = low or 0, math.inf if high is None else high
    ranges = {(True, True): f"{low} to {high}", (True, False): f"at least {low}", (False, True): f"at most {high}"}
    words = str(low) if low == high else ranges[(low is not None, high is not None)]

    def judge(found: Any, answer: Answer) -> Verdict:
        count = len(as_text(found).split())
        return yes(least <= count <= most, f"{count} words")

    return Rule(judge, f"{words} words", words)


def _at_most(given: Given, what: str) -> float:
    if given.threshold is None:
        raise given.wrong("", "the key 'threshold' is missing", expected=f"the most {what}")
    if given.threshold < 0:
        raise given.wrong("threshold", f"found {given.threshold:g}", expected="0 or more")
    return given.threshold


def _latency(given: Given) -> Rule:
    most = _at_most(given, "milliseconds")

    def judge(found: Any, answer: Answer) -> Verdict:
        if answer.seconds is None:
            raise Untimed("latency: it is not known how long the answer took")
        return yes(answer.seconds * 1000 <= most, f"{answer.seconds * 1000:,.0f} ms")

    return Rule(judge, f"at most {most:g} ms", f"of at most {most:g} ms")


def _tokens(given: Given) -> Rule:
    most = _at_most(given, "tokens of prompt and answer")

    def judge(found: Any, answer: Answer) -> Verdict:
        if answer.tokens is None:
            raise Unjudged("tokens: it is not known how many the answer took")
        return yes(answer.tokens <= most, f"{answer.tokens:,} tokens")

    return Rule(judge, f"at most {most:g} tokens", f"of at most {most:g}")


_WITH_THRESHOLD = frozenset({"value", "threshold"})
_WITH_OPTIONS = frozenset({"value", "threshold", "options"})

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "equals": Kind(_equals),
        "contains": Kind(_of_text(lambda found, wanted: wanted in found)),
        "icontains": Kind(_of_text(lambda found, wanted: wanted.casefold() in found.casefold())),
        "contains-any": Kind(_of_texts(any)),
        "contains-all": Kind(_of_texts(all)),
        "icontains-any": Kind(_of_texts(any, fold=True)),
        "icontains-all": Kind(_of_texts(all, fold=True)),
        "starts-with": Kind(_of_text(lambda found, wanted: found.startswith(wanted))),
        "regex": Kind(_regex),
        "is-json": Kind(_is_json),
        "rouge-n": Kind(scored, _WITH_OPTIONS),
        "rouge-l": Kind(scored, _WITH_OPTIONS),
        "bleu": Kind(scored, _WITH_OPTIONS),
        "chrf": Kind(scored, _WITH_OPTIONS),
        "similar": Kind(scored, _WITH_OPTIONS),
        "levenshtein": Kind(levenshtein, _WITH_THRESHOLD),
        "word-count": Kind(_word_count),
        "latency": Kind(_latency, frozenset({"threshold"}), of_output=False),
        "tokens": Kind(_tokens, frozenset({"threshold"}), of_output=False),
        "python": Kind(python, _WITH_OPTIONS),
        "judge": Kind(judged, _WITH_OPTIONS),
        "llm-rubric": Kind(judged, _WITH_OPTIONS),
    }
)
TYPES = (*KINDS, *(NEGATION + name for name in KINDS), SET)
