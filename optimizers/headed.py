"""The candidate with heads: the one that was found, its label outputs read by a regression that is fitted on train.

`headed` reads them off the hidden state, `with_matrices` off the labels' log-likelihoods under the prompt that was
found (matrix scaling, Guo et al. 2017, arXiv 1706.04599, section 4.2).

Which prompt a head reads is not searched on dev: instruction and demos matter little to it, and the format is chosen,
like layer, pooling and penalty, by the cross-validated log-loss on train. So it costs a forward pass a row and format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..programs.channel import labelled_outputs
from ..programs.heads import choice_of, head_file
from ..programs.state import FormatChoice, HeadChoice, ReadOut
from ..signatures import choices
from .base import Candidate, Evaluator, Outcome, Row
from .calibrate import shows
from .heads import Fitted, fit_head, fit_matrix
from .shown import shown

FORMATS: tuple[FormatChoice, ...] = ("turns_labelled", "completion")


def headed(
    evaluator: Evaluator,
    candidate: Candidate,
    rows: Sequence[Row],
    *,
    stem: str,
    target: str | None = None,
    formats: Sequence[FormatChoice] = FORMATS,
    seed: int = 0,
) -> tuple[Candidate, Mapping[str, Mapping[str, Fitted]]]:
    """`candidate` with heads wherever one can be fitted on `rows`, and the fits by predictor and field (none: {}).

    stem: the compiled program's name, after which the heads' files are named; target: the identity of the target, which
    the heads go with; formats: tried for the prompt.
    """
    states, fits = dict(candidate.states), {}
    for name, state in candidate.states.items():
        tried = []
        for choice in formats:
            bare = state.model_copy(
                update={"demos": (), "nearest": None, "format": choice, "readout": ReadOut(kind="head")}
            )
            if found := _fits(evaluator, Candidate({**candidate.states, name: bare}), name, rows, seed):
                tried.append((bare, found))
        if tried:
            bare, found = min(tried, key=lambda pair: sum(fit.loss for fit in pair[1].values()))
            fits[name] = _of_target(found, target)
            states[name] = bare.model_copy(
                update={"readout": ReadOut(kind="head", heads=_heads(fits[name], stem, name))}
            )
    return Candidate(states), fits


def _fits(evaluator: Evaluator, candidate: Candidate, name: str, rows: Sequence[Row], seed: int) -> dict[str, Fitted]:
    found = {}
    for field, output in evaluator.signatures[name].output_fields.items():
        labels = choices(output.annotation)
        read = evaluator.features(candidate, name, field, rows) if labels else None
        if labels and read is not None:
            kept = [place for place, answer in enumerate(read.answers) if answer in labels]
            answers = [read.answers[place] for place in kept]
            if len(set(answers)) > 1:
                features = [read.features[place] for place in kept]
                found[field] = fit_head(features, answers, labels, read.layers, seed=seed)
    return found


def _of_target(fits: Mapping[str, Fitted], target: str | None) -> dict[str, Fitted]:
    return {field: replace(fit, head=replace(fit.head, target=target)) for field, fit in fits.items()}


def _heads(fits: Mapping[str, Fitted], stem: str, name: str) -> dict[str, HeadChoice]:
    return {field: choice_of(fit.head, head_file(stem, name, field, fit.head)) for field, fit in fits.items()}


def with_matrices(
    evaluator: Evaluator,
    candidate: Candidate,
    rows: Sequence[Row],
    *,
    stem: str,
    target: str | None = None,
    seed: int = 0,
) -> tuple[Candidate, Mapping[str, Mapping[str, Fitted]]]:
    """`candidate` with a matrix in place of the calibration of every field that it chooses by likelihood, and the fits
    by predictor and field (none: {}). It runs on those `rows` that no demo shows. stem, target: see `headed`.
    """
    fresh = fresh_rows(candidate, rows)
    if not fresh:
        return candidate, {}
    outcomes = evaluator.run(candidate, fresh)
    states, fits = dict(candidate.states), {}
    for name in sorted(_choosing(candidate)):
        if found := _of_target(_matrices(evaluator, name, outcomes, seed), target):
            heads = _heads(found, stem, name)
            old = candidate.states[name].readout.calibration
            offsets = {field: own for field, own in old.offsets.items() if field not in heads} if old else {}
            kept = old.model_copy(update={"offsets": offsets}) if old and offsets else None
            readout = candidate.states[name].readout.model_copy(update={"calibration": kept, "heads": heads})
            states[name] = candidate.states[name].model_copy(update={"readout": readout})
            fits[name] = found
    return Candidate(states), fits


def _choosing(candidate: Candidate) -> set[str]:
    """The predictors that choose a label by its likelihood."""
    return {name for name, state in candidate.states.items() if state.readout.chooses}


def fresh_rows(candidate: Candidate, rows: Sequence[Row]) -> list[Row]:
    """The rows that a candidate's matrices are fitted on: those that no demo shows; none where nothing is chosen."""
    chosen = _choosing(candidate)
    demos = [demo for name in chosen for demo in candidate.states[name].demos]
    return [row for row in rows if chosen and not any(shows(demo, row) for demo in demos)]


def _matrices(evaluator: Evaluator, name: str, outcomes: Sequence[Outcome], seed: int) -> dict[str, Fitted]:
    found = {}
    for field, each in shown(evaluator, name, outcomes).items():
        answers = [each.labels[place] for place in each.answers[each.known]]
        if len(set(answers)) > 1:
            found[field] = fit_matrix(each.totals[each.known], answers, each.labels, seed=seed)
    return found


def label_outputs(evaluator: Evaluator) -> Iterator[tuple[str, str]]:
    """The outputs that have a finite set of values: predictor, field."""
    for name, signature in evaluator.signatures.items():
        for field in labelled_outputs(signature):
            yield name, field
