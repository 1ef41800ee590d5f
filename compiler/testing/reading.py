"""Reading tests: from a spec, or a file of tests beside it, to tests that can be run, with every error told at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ...errors import InputError
from ...metrics import Metric
from ...programs.checks import check_path, check_test_list, paths_of_tests
from ...programs.graph import Graph, build
from ...programs.problems import KeyProblems, Keys
from ...programs.schema import Spec
from ...programs.schema_errors import validated
from ...programs.schema_tests import TestsFile, TestSpec
from ...programs.spec import load_spec
from ...programs.yaml_source import Source, load_yaml
from ...signatures import check_value
from ..baseline import other_options, read_baseline
from ..from_spec import judge_models, read_examples, spec_metric
from ..judging import metric_of
from ..label_metrics import knowing_labels
from .asserting import AssertionReader
from .assertions import Assertion, AssertionSet
from .cases import Case, Place
from .gates import Gate
from .selection import chosen
from .tables import Line, assertion_of, filled, has_variables, line_of, notes_of, read_table

Test = Case | Gate
T = TypeVar("T")

SHOWN_ERRORS = 10
ENDINGS = (".tests.yaml", ".tests.yml")


@dataclass(frozen=True)
class Suite:
    """The tests of one program, from one file. `notes` are what is not wrong but may not be meant."""

    path: str
    spec: Spec
    program: Graph
    tests: tuple[Test, ...]
    notes: tuple[str, ...] = ()


def find_suites(path: Path) -> list[Path]:
    """The files of tests that `path` stands for: itself or, for a folder, every `*.tests.yaml` in it, sorted.

    Raises `InputError` when there are none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(
        file
        for file in path.rglob("*")
        if file.name.endswith(ENDINGS)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    )
    if not found:
        raise InputError("no tests in this folder", path=path, expected="files that are called NAME.tests.yaml")
    return found


def read_suite(path: Path, *, allow_outside: bool = False, allow_code: bool = False, baselines: bool = True) -> Suite:
    """The tests of a spec, of a compiled program, or of a `*.tests.yaml` file, checked.

    baselines: read the gates' baseline files, which must be there then. Raises `InputError`, which lists everything
    that is wrong.
    """
    if not path.name.endswith(ENDINGS):
        spec = load_spec(path, allow_outside=allow_outside)
        tests, told, source = spec.tests, KeyProblems(spec.path, lambda keys: spec.line(*keys)), spec._source
    else:
        spec, source, tests, told = _tests_file(path, allow_outside)
    program = build(spec)
    if path.name.endswith(ENDINGS):
        check_test_list(tests, program.input_types, program.output_types, told)
        for keys, name in paths_of_tests(tests):
            check_path(path.parent, keys, name, told, allow_outside=allow_outside, check_files=True)
        told.stop()
    asserting = AssertionReader(program, told, path.parent, allow_code, allow_outside)
    reader = _Reader(spec, program, told, source, path.parent, asserting, baselines)
    return Suite(str(path), spec, program, tuple(reader.tests(tests)), tuple(reader.notes))


def read_tests(spec: Spec, program: Graph, *, name: str | None = None, allow_code: bool = False) -> list[Test]:
    """The tests of a spec that is read already, checked, those whose names hold `name` only; no baseline is read.

    Raises `InputError`, which lists everything that is wrong with the tests, and when there are none of that name.
    """
    told = KeyProblems(spec.path, lambda keys: spec.line(*keys))
    asserting = AssertionReader(program, told, spec.folder, allow_code, spec.allow_outside)
    reader = _Reader(spec, program, told, spec._source, spec.folder, asserting, baselines=False)
    return list(chosen(reader.tests(spec.tests), name=name, path=spec.path))


def _tests_file(path: Path, allow_outside: bool) -> tuple[Spec, Source, tuple[TestSpec, ...], KeyProblems]:
    """A file of tests, and its program's spec."""
    first = KeyProblems(path, lambda keys: None)
    source = load_yaml(path, first)
    told = KeyProblems(path, source.line)
    for error in first.errors:
        told.note(error)
    read = validated(TestsFile, source, told)
    if read is not None and ("program",) not in told.dropped:
        check_path(path.parent, ("program",), read.program, told, allow_outside=allow_outside, check_files=True)
        if not read.tests and not len(told):
            told.at((), "there are no `tests:`")
    told.stop()
    assert read is not None, "what could not be made was told"
    return load_spec(path.parent / read.program, allow_outside=allow_outside), source, read.tests, told


@dataclass(frozen=True)
class _Reader:
    """Reads tests; what is wrong with them is noted in `problems`. `folder` is where their paths start."""

    spec: Spec
    program: Graph
    problems: KeyProblems
    source: Source | None
    folder: Path
    asserting: AssertionReader
    baselines: bool
    notes: list[str] = field(default_factory=list)

    def tests(self, specs: tuple[TestSpec, ...]) -> list[Test]:
        """The tests, in order. Raises `InputError`, which lists everything that is wrong."""
        found: list[Test] = []
        for index, test in enumerate(specs):
            keys: Keys = ("tests", index)
            if test.inputs is not None:
                found.append(self._case(test, keys))
            elif test.cases is not None:
                found += self._noting(partial(self._table, test, keys)) or []
            else:
                gate = self._gate(test, keys)
                found += [gate] if gate is not None else []
        self.problems.stop()
        return found

    def _place(self, keys: Keys) -> Place:
        path = "" if self.source is None else self.source.path
        return Place(path, None if self.source is None else self.source.line(keys))

    # ---- cases

    def _case(self, test: TestSpec, keys: Keys) -> Case:
        given, types = test.inputs or {}, self.program.input_types
        inputs = {name: check_value(value, types[name], field=name) for name, value in given.items()}
        parts = self.asserting.all_of(test.conditions or (), (*keys, "assert"))
        return Case(test.name, self._place(keys), inputs, parts, test.threshold, test.repeat, test.tags)

    # ---- tables of cases

    def _table(self, test: TestSpec, keys: Keys) -> list[Test]:
        assert test.cases is not None, "the caller has looked"
        rows = read_table(self.folder / test.cases, self.program)
        self.notes.extend(notes_of(rows))
        varied = [has_variables(spec) for spec in test.conditions or ()]
        fixed = {
            place: self.asserting.one(spec, (*keys, "assert", place))
            for place, (spec, varies) in enumerate(zip(test.conditions or (), varied, strict=True))
            if not varies
        }
        found: list[Test] = []
        names: set[str] = set()
        for number, row in enumerate(rows, start=1):
            line = _line(row, rows.path)
            case = self._row_case(test, keys, str(rows.path), line, fixed)
            if len(self.problems) > SHOWN_ERRORS:
                break
            name = f"{test.name}: {line.description or f'row {number}'}"
            name = name if name not in names else f"{name} (row {number})"
            names.add(name)
            found.append(replace(case, name=name))
        return found

    def _row_case(
        self,
        test: TestSpec,
        keys: Keys,
        path: str,
        line: Line,
        fixed: Mapping[int, Assertion | AssertionSet | None],
    ) -> Case:
        parts: list[Assertion | AssertionSet | None] = []
        for place, spec in enumerate(test.conditions or ()):
            if place in fixed:
                parts.append(fixed[place])
                continue
            try:
                full = filled(spec, line.row)
            except InputError as error:
                where = (*keys, "assert", place, "value")
                self.problems.at(where, error.message, expected=error.expected, nearest=error.nearest)
                continue
            parts.append(self.asserting.one(full, (*keys, "assert", place)))
        for cell in line.cells:
            try:
                parts.append(self.asserting.made(assertion_of(cell)))
            except InputError as error:
                told: dict[str, Any] = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
                self.problems.note(InputError(error.message, path=path, line=line.row.line, field=cell[0], **told))
                parts.append(None)
        if not test.conditions and not line.cells:
            hint = "Give it an `__expected` cell, or the test an `assert`."
            self.problems.note(InputError("the row has no assertion", path=path, line=line.row.line, hint=hint))
        threshold = test.threshold if line.threshold is None else line.threshold
        made = tuple(part for part in parts if part is not None)
        place_of_row = Place(path, line.row.line)
        return Case(test.name, place_of_row, line.row.inputs, made, threshold, test.repeat, test.tags)

    # ---- gates

    def _gate(self, test: TestSpec, keys: Keys) -> Gate | None:
        metric = self._noting(lambda: self._metric(test, keys))
        rows = self._noting(lambda: read_examples(self.folder / str(test.data), self.program))
        if metric is None or rows is None:
            return None
        at_least, tolerance = test.at_least, test.tolerance or 0.0
        if at_least is not None and not metric.low <= at_least <= metric.high:
            expected = f"{metric.low:g} to {metric.high:g}, the range of {metric.name}"
            self.problems.at((*keys, "at_least"), f"found {at_least:g}", expected=expected)
        if tolerance > metric.high - metric.low:
            expected = f"0 to {metric.high - metric.low:g}, the span of {metric.name}"
            self.problems.at((*keys, "tolerance"), f"found {tolerance:g}", expected=expected)
        gate = Gate(
            test.name,
            self._place(keys),
            rows.items,
            metric,
            at_least,
            None if test.baseline is None else self.folder / test.baseline,
            tolerance=tolerance,
            seed=self.spec.optimize.seed,
            repeat=test.repeat,
            tags=test.tags,
        )
        return gate if test.baseline is None or not self.baselines else self._with_baseline(gate, keys)

    def _with_baseline(self, gate: Gate, keys: Keys) -> Gate | None:
        """The gate with its baseline, which has to be one of this metric and of some of these rows."""
        path, where = gate.baseline_path, (*keys, "baseline")
        assert path is not None, "the caller has looked"
        hint = "Write it with --update-baseline."
        if not path.is_file():
            self.problems.at(where, f"no such file: {path}", hint=hint)
            return None
        baseline = self._noting(lambda: read_baseline(path))
        if baseline is None:
            return None
        if baseline.metric != gate.metric.name:
            found = f"{path.name} holds scores of {baseline.metric!r}"
            self.problems.at(where, found, expected=repr(gate.metric.name), hint=hint)
        elif other_options(gate.metric, baseline):
            found = f"{path.name} holds scores of {baseline.metric!r} with another rubric or other options"
            self.problems.at(where, found, hint=hint)
        elif not set(gate.keys(self.program)) & set(baseline.rows):
            found = f"none of the {len(gate.rows)} examples stands in {path.name}"
            self.problems.at(where, found, expected="a baseline of the same data", hint=hint)
        return replace(gate, baseline=baseline)

    def _metric(self, test: TestSpec, keys: Keys) -> Metric | None:
        if test.metric is None:
            metric = spec_metric(self.spec, allow_code=self.asserting.allow_code)
            if metric is None:
                self.problems.at(keys, "the key 'metric' is missing", expected="it here, or for the whole spec")
                return None
            return self._fitted(metric, self._place(keys))
        given = test.model_dump(mode="json", exclude_unset=True)["metric"]
        place = self._place((*keys, "metric"))
        made = metric_of(
            given,
            allow_code=self.asserting.allow_code,
            path=place.path or None,
            line=place.line,
            folder=self.folder,
            models=judge_models(self.spec),
            allow_outside=self.spec.allow_outside,
        )
        return self._fitted(made, place)

    def _fitted(self, metric: Metric, place: Place) -> Metric:
        """The metric as the program knows it. Raises `InputError` that tells where one is named that does not fit."""
        try:
            return knowing_labels(metric, self.program)
        except InputError as error:
            if error.path is not None:
                raise
            parts: dict[str, Any] = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
            raise InputError(error.message, path=place.path or None, line=place.line, field="metric", **parts) from None

    def _noting(self, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except InputError as error:
            self.problems.note(error)
            return None


def _line(row: Any, path: str | None) -> Line:
    """A row of a table taken apart. Raises `InputError` with the table's line."""
    try:
        return line_of(row)
    except InputError as error:
        raise InputError(error.message, path=path, line=row.line, field=error.field, expected=error.expected) from None
