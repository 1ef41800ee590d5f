"""The evaluator that the search is given: one program, one metric, one target, and the account of what was spent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from ..errors import ReadError
from ..metrics.base import Metric
from ..models.engine import Failure, Ledger
from ..models.gather import RequestFailed
from ..models.hidden import FeatureRequest, features_of, layers_of
from ..models.lm import bridge_of
from ..optimizers.base import Candidate, FieldFeatures, Outcome, Row
from ..optimizers.heads import layers_for
from ..optimizers.shown import gold_label
from ..programs.predictor import Predictor
from ..programs.prompt import PromptTooLong
from ..programs.readout import Choice, recorded_choices
from .evaluate import run_programs
from .journal import Clock

Columns = Mapping[str, Mapping[str, str]]


def predictors_of(program: dspy.Module) -> dict[str, Predictor]:
    """A program's predictors by name, in its order."""
    return {name: part for name, part in program.named_predictors() if isinstance(part, Predictor)}


def candidate_of(program: dspy.Module) -> Candidate:
    """The parameters that a program has now."""
    return Candidate({name: predictor.state for name, predictor in predictors_of(program).items()})


def apply(program: dspy.Module, candidate: Candidate) -> dspy.Module:
    """A copy of `program` with the candidate's parameters. Its predictors run on the LM of the context they run in."""
    copy = program.deepcopy()
    for name, predictor in predictors_of(copy).items():
        predictor.state = candidate.states[name]
        predictor.lm = None
    return copy


def same_names(program: dspy.Module) -> dict[str, dict[str, str]]:
    """The columns of a program whose data uses the predictors' own field names."""
    return {name: {field: field for field in part.signature.fields} for name, part in predictors_of(program).items()}


class ProgramEvaluator:
    """See `optimizers.base.Evaluator`. `observer` is told of every finished program run (for a progress bar)."""

    def __init__(
        self,
        program: dspy.Module,
        metric: Metric,
        lm: dspy.LM,
        *,
        clock: Clock | None = None,
        columns: Columns | None = None,
        observer: Callable[[int], None] | None = None,
    ) -> None:
        self.program = program
        self._metric = metric
        self._lm = lm
        self._clock = clock or Clock()
        self._columns = columns if columns is not None else same_names(program)
        self._observer = observer
        self._spent = 0

    @property
    def signatures(self) -> Mapping[str, type[dspy.Signature]]:
        """See `Evaluator.signatures`."""
        return {name: predictor.signature for name, predictor in predictors_of(self.program).items()}

    @property
    def metric(self) -> Metric:
        """See `Evaluator.metric`."""
        return self._metric

    @property
    def spent(self) -> int:
        """See `Evaluator.spent`."""
        return self._spent

    @property
    def ledger(self) -> Ledger:
        """See `Evaluator.ledger`."""
        bridge = bridge_of(self._lm)
        return Ledger() if bridge is None else bridge.engine.ledger

    def elapsed(self) -> float:
        """See `Evaluator.elapsed`."""
        return self._clock.now()

    def columns(self, predictor: str) -> Mapping[str, str]:
        """See `Evaluator.columns`."""
        return self._columns.get(predictor, {})

    def run(self, candidate: Candidate, rows: Sequence[Row]) -> list[Outcome]:
        """See `Evaluator.run`."""
        return self.run_many([candidate], rows)[0]

    def run_many(self, candidates: Sequence[Candidate], rows: Sequence[Row]) -> list[list[Outcome]]:
        """See `Evaluator.run_many`."""
        spent = self._spent
        observer = self._observer
        outcomes = run_programs(
            [apply(self.program, candidate) for candidate in candidates],
            rows,
            lm=self._lm,
            metric=self._metric,
            observer=None if observer is None else lambda done: observer(spent + done),
        )
        self._spent += len(candidates) * len(rows)
        return outcomes

    def probe(self, candidate: Candidate, predictor: str, inputs: Mapping[str, Any]) -> list[Choice]:
        """See `Evaluator.probe`. An input that the predictor can't answer gives no choices."""
        part = predictors_of(apply(self.program, candidate))[predictor]
        self._spent += 1
        with dspy.context(lm=self._lm), recorded_choices() as made:
            try:
                part(**inputs)
            except (ReadError, RequestFailed, PromptTooLong):
                return []
        return made

    def features(self, candidate: Candidate, predictor: str, field: str, rows: Sequence[Row]) -> FieldFeatures | None:
        """See `Evaluator.features`."""
        bridge = bridge_of(self._lm)
        engine = bridge.gatherer.engine if bridge is not None else None
        count = layers_of(engine)
        part, column = predictors_of(apply(self.program, candidate))[predictor], self.columns(predictor).get(field)
        annotation = part.signature.output_fields[field].annotation
        held = [
            (inputs, gold)
            for row in rows
            if (inputs := self._inputs(predictor, row)) is not None
            and (gold := gold_label(row, column, annotation)) is not None
        ]
        if not count or not held:
            return None
        layers = layers_for(count)
        requests = [FeatureRequest(part.head_prompt(self._lm, field, inputs).ids, layers) for inputs, _ in held]
        found = features_of(engine, requests)
        known = [(each, gold) for each, (_, gold) in zip(found, held, strict=True) if not isinstance(each, Failure)]
        return (
            FieldFeatures(layers, tuple(each for each, _ in known), tuple(gold for _, gold in known)) if known else None
        )

    def prompt_tokens(self, candidate: Candidate, rows: Sequence[Row]) -> float:
        """See `Evaluator.prompt_tokens`: the prompts of those predictors whose inputs the rows hold, rendered only."""
        prompts = self._prompts(candidate, rows)
        return sum(len(ids) for each in prompts for ids in each) / max(1, len(rows))

    def own_tokens(self, candidate: Candidate, rows: Sequence[Row]) -> float:
        """See `Evaluator.own_tokens`; a single row shares nothing."""
        found = 0
        for each in self._prompts(candidate, rows):
            alike = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*each, strict=False))
            shared = sum(1 for _ in alike) if len(each) > 1 else 0
            found += sum(len(ids) - shared for ids in each)
        return found / max(1, len(rows))

    def _prompts(self, candidate: Candidate, rows: Sequence[Row]) -> list[list[tuple[int, ...]]]:
        """The first prompts of each predictor whose inputs the rows hold, those of each label for themselves."""
        found: list[list[tuple[int, ...]]] = []
        for name, predictor in predictors_of(apply(self.program, candidate)).items():
            held = [inputs for row in rows if (inputs := self._inputs(name, row)) is not None]
            prompts = [predictor.prompts(lm=self._lm, **inputs) for inputs in held]
            found += [[prompt.ids for prompt in each] for each in zip(*prompts, strict=True)]
        return found

    def _inputs(self, name: str, row: Row) -> dict[str, Any] | None:
        """A predictor's inputs as the row holds them; None where it does not hold them all."""
        columns, values = self.columns(name), {**row.inputs, **row.labels}
        inputs = {field: values.get(columns.get(field, "")) for field in self.signatures[name].input_fields}
        return None if any(value is None for value in inputs.values()) else inputs
