"""What a compiled program owes to what: each dimension, each demo, and the examples won and lost against its baseline.

`optimizers/explain.py` says which variants of the program are run and what is made of their scores. Here they run, all
of them in one evaluation, so that their calls fill the same batches and share the prompts' beginnings; and here gold
texts are scored, which a program that writes its answers does not tell by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import dspy
from pydantic_core import to_jsonable_python

from ..errors import InputError, RunError
from ..metrics import Score, interval
from ..models.lm import language_model
from ..models.target import Target
from ..optimizers.base import Outcome
from ..optimizers.explain import DEMO, Comparison, Effect, compare, effects
from ..optimizers.likelihood import Unit, label_likelihoods, likelihood_added
from .ab import key_of, with_answers
from .api import load
from .compiled import Compiled
from .diff import Flip, flip_dict, flips
from .evaluate import Observer
from .evaluator import ProgramEvaluator, apply, predictors_of
from .explain_plan import Plan, make_plan
from .given import Data, MetricLike, Program, opened_target
from .gold import gold_likelihoods
from .judging import metric_of


@dataclass(frozen=True)
class Explanation:
    """What a compiled program owes to what, on `examples` examples.

    against: the compiled program beside the baseline, whose score is `against.without`; dimensions, demos: what each
    adds, see `Effect`; better, worse: the examples won and lost against the baseline; failed: examples whose call
    failed in either; skipped: predictor -> why its demos have no log-likelihood; notes are for people.
    """

    metric: str
    examples: int
    seed: int
    compiled: Score
    against: Comparison
    dimensions: tuple[Effect, ...]
    demos: tuple[Effect, ...]
    better: tuple[Flip, ...]
    worse: tuple[Flip, ...]
    failed: int
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def lost(self) -> int:
        """How many scores are missing because a call failed, in the comparison and in all effects."""
        return self.failed + sum(effect.failed for effect in (*self.dimensions, *self.demos))

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        plain = {
            "metric": self.metric,
            "examples": self.examples,
            "seed": self.seed,
            "compiled": self.compiled.as_dict(),
            "baseline": self.against.without.as_dict(),
            "adds": self.against.adds.as_dict(),
            "detectable": self.against.detectable,
            "dimensions": [effect.as_dict() for effect in self.dimensions],
            "demos": [effect.as_dict() for effect in self.demos],
            "better": [flip_dict(flip) for flip in self.better],
            "worse": [flip_dict(flip) for flip in self.worse],
            "failed": self.failed,
            "without_likelihood": dict(self.skipped),
            "notes": list(self.notes),
        }
        done: dict[str, Any] = to_jsonable_python(plain, bytes_mode="base64", fallback=str)
        return done


def explain(
    compiled: Program | str | PathLike[str],
    baseline: Program | str | PathLike[str] | None,
    examples: Data,
    metric: MetricLike,
    *,
    target: Target | str | None = None,
    seed: int = 0,
    observer: Observer | None = None,
) -> Explanation:
    """Explain what `compiled` does better than `baseline`: by dimension, by demo, by example.

    compiled, baseline: programs, or the paths of their files; None takes the baseline of what `cuecard.compile` gave.
    They must have the same predictors with the same signatures. examples, metric: as in `evaluate`; target: default the
    one that `cuecard.compile` had, else the default model; seed: of the intervals and tests; observer: told how many
    program runs are done. Raises `InputError` and `RunError`.

    >>> cuecard.explain(compiled, None, dev, "exact_match").dimensions[0].compared.adds.difference
    0.12
    """
    program = load(compiled) if isinstance(compiled, str | PathLike) else compiled
    plain = load(baseline) if isinstance(baseline, str | PathLike) else baseline
    if isinstance(program, Compiled):
        target = target or program.compilation.task.target
        plain = plain or _baseline_of(program)
    if plain is None:
        raise InputError("there is no baseline", expected="a program, a file, or what cuecard.compile gave as compiled")
    plan = make_plan(program, plain, examples, metric_of(metric))
    return run_plan(plan, opened_target(target), seed=seed, observer=observer)


def run_plan(plan: Plan, target: Target, *, seed: int = 0, observer: Observer | None = None) -> Explanation:
    """Run a plan. Raises `RunError` when every example failed in the compiled program or in the baseline."""
    lm = language_model(target.engine)
    evaluator = ProgramEvaluator(plan.program, plan.metric, lm, columns=plan.columns, observer=observer)
    candidates = plan.candidates
    ran = dict(zip(candidates, evaluator.run_many(list(candidates.values()), plan.rows), strict=True))
    ours, theirs = ran[plan.winner.digest], ran[plan.baseline.digest]
    against = compare(plan.metric, ours, theirs, seed=seed)
    if against is None:
        first = next(outcome.error for outcome in (*ours, *theirs) if outcome.error)
        raise RunError(f"all {len(plan.rows)} examples failed", hint=f"The first failure: {first}")
    pairs = [(variant, ran[variant.candidate.digest]) for variant in plan.variants]
    found = effects(plan.metric, ours, pairs, seed=seed)
    found, skipped = _with_likelihoods(plan, evaluator, lm, ran, found, seed)
    kept = [pair for pair in zip(theirs, ours, strict=True) if not any(outcome.error for outcome in pair)]
    by_key = {key_of(pair[0]): pair for pair in kept}
    before, after = ({key: m for key, pair in by_key.items() if (m := pair[side].measurement)} for side in (0, 1))
    better, worse = (tuple(with_answers(flip, by_key[flip.key]) for flip in part) for part in flips(before, after))
    measured = [outcome.measurement for _, outcome in kept if outcome.measurement is not None]
    return Explanation(
        plan.metric.name,
        len(plan.rows),
        seed,
        interval(plan.metric, measured, seed),
        against,
        tuple(effect for effect in found if effect.dimension != DEMO),
        tuple(effect for effect in found if effect.dimension == DEMO),
        better,
        worse,
        len(plan.rows) - len(kept),
        skipped,
        tuple(_notes(plan, found)),
    )


def _baseline_of(compiled: Compiled) -> dspy.Module:
    compilation = compiled.compilation
    return apply(compilation.task.program, compilation.result.baseline.candidate)


def _notes(plan: Plan, found: Sequence[Effect]) -> list[str]:
    notes = []
    if plan.winner.digest == plan.baseline.digest:
        notes.append("the compiled program is the baseline: no dimension differs")
    tried = [effect.p_value for effect in found if effect.p_value is not None]
    if tried and min(tried) >= 0.05:
        notes.append(f"none of the effects stands out from chance on {len(plan.rows)} examples")
    states = plan.winner.states
    fitted = [name for name, state in states.items() if state.readout.calibration or state.readout.heads]
    if fitted:
        who = ", ".join(fitted)
        notes.append(
            f"the calibration or the head of {who} was fitted for the compiled prompt, and is not fitted again where "
            f"another dimension goes back: that may make the dimension look larger than it is"
        )
    near = [name for name, state in states.items() if state.nearest]
    if near:
        notes.append(
            f"the demos near to the input of {', '.join(near)} change with it: they are left out together only"
        )
    return notes


# ---- the log-likelihood of the gold answers


def _with_likelihoods(
    plan: Plan,
    evaluator: ProgramEvaluator,
    lm: dspy.LM,
    ran: Mapping[str, Sequence[Outcome]],
    found: Sequence[Effect],
    seed: int,
) -> tuple[list[Effect], dict[str, str]]:
    """The effects, those of demos with what they add to the gold answers' log-likelihood; and predictor -> why not."""
    done, skipped = list(found), {}
    for name, signature in evaluator.signatures.items():
        places = [place for place, each in enumerate(done) if each.predictor == name and each.dimension == DEMO]
        if not places:
            continue
        digests = [plan.variants[place].candidate.digest for place in places]
        asked = [plan.winner.digest, *digests]
        readout, columns = plan.winner.states[name].readout, evaluator.columns(name)
        unit: Unit = "label"
        if not any(columns.get(output) for output in signature.output_fields):
            skipped[name] = "the examples have no gold values of its outputs"
            continue
        if readout.kind == "head":
            skipped[name] = "a head gives no log-likelihood of an answer"
            continue
        if readout.chooses:
            known = [label_likelihoods(name, signature, columns, readout, ran[digest]) for digest in asked]
        else:
            unit = "token"
            parts = [predictors_of(apply(plan.program, plan.candidates[digest]))[name] for digest in asked]
            known, refused = gold_likelihoods(name, parts, lm, columns, ran[plan.winner.digest])
            if refused is not None:
                skipped[name] = refused
        for place, other in zip(places, known[1:], strict=True):
            done[place] = replace(done[place], likelihood=likelihood_added(known[0], other, unit, seed=seed))
        if name not in skipped and all(done[place].likelihood is None for place in places):
            skipped[name] = "no example has a gold value of its outputs together with its inputs"
    return done, skipped
