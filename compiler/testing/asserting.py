"""From what a spec says to assertions, checked against the program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, nearest
from ...programs.graph import Graph
from ...programs.problems import KeyProblems, Keys
from ...programs.schema_tests import AssertSpec
from ...signatures import check_value
from .assertions import Assertion, AssertionSet
from .judge_rule import JudgeRule
from .kinds import KINDS, NEGATION, SET, TYPES, rule_of
from .rules import Given


@dataclass(frozen=True)
class AssertionReader:
    """Reads assertions; what is wrong with them is noted in `problems`. `folder` is where their code is looked for."""

    program: Graph
    problems: KeyProblems
    folder: Path
    allow_code: bool
    allow_outside: bool = False

    def all_of(self, specs: tuple[AssertSpec, ...], keys: Keys) -> tuple[Assertion | AssertionSet, ...]:
        """The assertions of a list that stands at `keys`; those that are wrong are noted, and left out."""
        found = [self.one(spec, (*keys, place)) for place, spec in enumerate(specs)]
        return tuple(each for each in found if each is not None)

    def one(self, spec: AssertSpec, keys: Keys) -> Assertion | AssertionSet | None:
        """The assertion, or set of them, that stands at `keys`; None where it is wrong, which is noted."""
        try:
            return self._set(spec, keys) if spec.type == SET else self.made(spec)
        except InputError as error:
            place = (*keys, error.field) if error.field else keys
            parts = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
            self.problems.at(place, error.message, **parts)
            return None

    def _set(self, spec: AssertSpec, keys: Keys) -> AssertionSet:
        for key in ("value", "field", "options"):
            if key in spec.model_fields_set:
                raise InputError(f"{SET!r} takes no {key}", field=key)
        if not spec.assertions:
            raise InputError("the set is empty", expected="at least one assertion in `assert`")
        _check_share(spec.threshold)
        return AssertionSet(self.all_of(spec.assertions, (*keys, "assert")), spec.threshold, spec.weight)

    def made(self, spec: AssertSpec) -> Assertion:
        """The assertion that is meant. Raises `InputError`, whose `field` is the key."""
        if spec.type not in TYPES:
            near = nearest(spec.type, TYPES)
            expected = None if near else f"one of {', '.join(KINDS)}, {SET}, or not- and one of them"
            message = f"there is no assertion {spec.type!r}"
            raise InputError(message, field="type", expected=expected, nearest=near)
        if spec.assertions is not None:
            raise InputError(f"{spec.type!r} takes no assert", field="assert", hint=f"Only {SET!r} has assertions.")
        kind = KINDS[spec.type.removeprefix(NEGATION)]
        output = self._output(spec, required=spec.type.removeprefix(NEGATION) != "python") if kind.of_output else ""
        if not kind.of_output and spec.field is not None:
            raise InputError(f"{spec.type!r} looks at no output", field="field")
        given = Given(
            type=spec.type.removeprefix(NEGATION),
            value=spec.value,
            has_value="value" in spec.model_fields_set,
            threshold=spec.threshold,
            options=spec.options,
            typed=lambda value: self._typed(value, output),
            allow_code=self.allow_code,
            allow_outside=self.allow_outside,
            folder=self.folder,
            inputs=tuple(self.program.input_types),
        )
        rule = rule_of(given)
        if isinstance(rule, JudgeRule):
            rule.fits(self.program.output_names, output)
        return Assertion(spec.type, output, rule, spec.weight)

    def _output(self, spec: AssertSpec, *, required: bool) -> str:
        """The output that an assertion looks at; "" for all of several, where it need not say."""
        outputs = list(self.program.output_types)
        if spec.field is not None or len(outputs) == 1:
            return spec.field or outputs[0]
        if required:
            raise InputError("the key 'field' is missing", expected=f"one of {', '.join(outputs)}")
        return ""

    def _typed(self, value: Any, output: str) -> Any:
        types = {**self.program.label_types, **self.program.output_types}
        try:
            return check_value(value, types.get(output, Any), field=output)
        except InputError as error:
            parts = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
            raise InputError(error.message, field="value", **parts) from None  # type: ignore[arg-type]


def _check_share(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"found {threshold:g}", field="threshold", expected="0 to 1")
