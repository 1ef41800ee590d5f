"""What is run for an explanation: the compiled program, its baseline, the variants between them, and on which rows.

The baseline of a compiled file is not in it: it is the spec that it was compiled from, which stands beside it.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import dspy

from ..errors import InputError, nearest
from ..files import nearest_file
from ..metrics import Metric
from ..optimizers.base import Candidate
from ..optimizers.explain import DEMO, Variant, ablations, demos_left_out
from ..programs.graph import Graph
from ..programs.predictor import Predictor, adopt
from ..programs.schema import Spec
from ..programs.state import PredictorState
from ..seeds import derive_seed
from ..signatures import dump
from .compiled import Compiled
from .evaluator import Columns, candidate_of, predictors_of, same_names
from .examples import Examples
from .given import Data, Program, checked_examples
from .label_metrics import knowing_labels

ENDING = ".compiled"
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Plan:
    """What is run for an explanation. `program` is the compiled one, with the parameters `winner`."""

    program: dspy.Module
    winner: Candidate
    baseline: Candidate
    columns: Columns
    rows: Examples
    metric: Metric
    variants: tuple[Variant, ...]

    @property
    def candidates(self) -> dict[str, Candidate]:
        """The candidates that run, by digest: variants that come to the same program run once.

        Those that share the most of their prompts stand side by side.
        """
        left_out = [variant.candidate for variant in self.variants if variant.dimension == DEMO]
        others = [variant.candidate for variant in self.variants if variant.dimension != DEMO]
        return {each.digest: each for each in (self.winner, *left_out, *others, self.baseline)}

    @property
    def calls(self) -> int:
        """How many metric calls it takes."""
        return len(self.candidates) * len(self.rows)


def make_plan(compiled: Program, baseline: Program, examples: Data, metric: Metric) -> Plan:
    """What is to be run. Raises `InputError` where the two are not the same program but for their parameters."""
    columns = compiled.compilation.task.columns if isinstance(compiled, Compiled) else None
    program, plain = (_adopted(each) for each in (compiled, baseline))
    check_same_predictors(program, plain)
    rows = checked_examples(examples, program)
    if not rows:
        raise InputError("there are no examples")
    if columns is None:
        columns = program.columns if isinstance(program, Graph) else same_names(program)
    winner, before = candidate_of(program), candidate_of(plain)
    variants = (*ablations(winner, before), *demos_left_out(winner))
    return Plan(program, winner, before, columns, rows, knowing_labels(metric, program), variants)


def baseline_file(path: Path, spec: Spec) -> Path:
    """The spec that a compiled file was compiled from: `NAME.yaml` beside `NAME.compiled.yaml`, or the file of the
    program's name.

    Raises `InputError` where there is none, or where the file is no compiled program.
    """
    if spec.compiled is None:
        hint = "Compile it first: cuecard compile. To hold it against another program, name that with --baseline."
        raise InputError("this is a spec and no compiled program", path=path, hint=hint)
    stem = path.name.removesuffix(path.suffix)
    stems = [stem.removesuffix(ENDING)] if stem.endswith(ENDING) else []
    names = [f"{each}{ending}" for each in dict.fromkeys([*stems, spec.name]) for ending in YAML]
    places = [path.with_name(name) for name in names if name != path.name]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return found
    near = nearest_file(places[0])
    raise InputError(
        "the spec that it was compiled from, which holds the baseline, is not beside it",
        path=path,
        expected=" or ".join(dict.fromkeys(place.name for place in places if place.suffix == YAML[0])),
        nearest=None if near is None or Path(near).name == path.name else Path(near).name,
        hint="Name it: --baseline FILE.",
    )


def check_same_predictors(compiled: dspy.Module, baseline: dspy.Module, path: Path | None = None) -> None:
    """Raise `InputError` where a predictor is in one program only, or has another signature. path: the baseline's."""
    ours, theirs = predictors_of(compiled), predictors_of(baseline)
    hint = "Give the program that it was compiled from as the baseline."
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            has, lacks = ("compiled program", "baseline") if name in ours else ("baseline", "compiled program")
            near = nearest(name, theirs if name in ours else ours)
            message = f"the {lacks} has no predictor {name!r}, which the {has} has"
            raise InputError(message, path=path, nearest=near, hint=hint)
        if _fields(ours[name]) != _fields(theirs[name]):
            message = f"the predictor {name!r} has another signature than in the compiled program"
            raise InputError(message, path=path, hint=hint)


def chosen_rows(rows: Examples, count: int | None, seed: int) -> Examples:
    """`count` of the rows, drawn by the seed, in their order; all of them where there are not more."""
    if count is None or count >= len(rows):
        return rows
    places = sorted(random.Random(derive_seed(seed, "explain")).sample(range(len(rows)), count))
    return Examples(tuple(rows[place] for place in places), rows.path, rows.unused)


def _adopted(program: Program) -> dspy.Module:
    if not isinstance(program, dspy.Module):
        raise InputError(f"{program!r} is no program", expected="a dspy.Module, or a path")
    return adopt(program.program if isinstance(program, Compiled) else program, PredictorState(format="dspy"))


def _fields(predictor: Predictor) -> str:
    """A signature without its instructions, which are a learned parameter."""
    return json.dumps({key: value for key, value in dump(predictor.signature).items() if key != "instructions"})
