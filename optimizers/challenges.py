"""What is tried on top of what a search found, each as one more candidate that has to win on dev.

Dev rows among the demos that are chosen at call time or by their label (`refit.py`), calibrations fitted to what dev
has shown (`recalibrate.py`, `reweigh.py`), votes (`voted.py`), and heads and matrices, which are no prompts
(`headed.py`). What it takes to fit and try one counts for the budget like a search's runs of the program: a prompt that
is read for its hidden states is a metric call, though it is cheaper than a run of the program. Where the budget has no
room for all train rows in all formats, fewer are taken.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..programs.schema import SearchSpec
from ..programs.state import FormatChoice
from ..seeds import derive_seed
from .base import Candidate, Evaluator, Row
from .headed import fresh_rows, headed, label_outputs, with_matrices
from .heads import Fitted
from .pacing import Way, blocks
from .recalibrate import METHODS, recalibrated
from .refit import shown_itself
from .reweigh import reweighed
from .search import Search, SearchResult
from .shown import gold_label
from .voted import with_votes

FEWEST_ROWS = 64  # that a head or matrix is fitted on where there are more and the budget is short


def ways_after(
    evaluator: Evaluator,
    wanted: SearchSpec,
    train: Sequence[Row],
    dev: Sequence[Row],
    formats: int,
    candidate: Candidate | None = None,
    *,
    chooses: bool = True,
    refits: bool = False,
    seed: int = 0,
) -> dict[str, list[Way]]:
    """The ways to try things on top of what a search finds, the best last, and nothing of what can't be tried.

    Of what `wanted` names: the `head`, fitted on more and more rows, and then in more formats; the `matrix`; the
    `votes`; the `refit`, for which a search keeps calls back itself (`Search.refit`); and the `recalibrate`d labels and
    spans, of which only rows that change are run, hardly ever all: it can do with what the refit leaves.

    dev: the rows that each is tried on; candidate: what was found, where that is known already; chooses: whether labels
    may be chosen by likelihood, or spans; refits: whether dev's rows can join the demos.
    """
    ways: dict[str, list[Way]] = {}
    if "head" in wanted.readouts and readings(evaluator, train):
        sizes = [
            *((rows, 1) for rows in blocks(len(train), FEWEST_ROWS)),
            *((len(train), n) for n in range(2, formats + 1)),
        ]
        read = {rows: readings(evaluator, sampled(train, rows, seed)) for rows, _ in sizes}
        ways["head"] = [Way(len(dev) + read[rows] * count, rows, count) for rows, count in sizes]
    if "matrix" in wanted.calibrations:
        fresh = len(train if candidate is None else fresh_rows(candidate, train))
        if fresh and any(label_outputs(evaluator)):
            ways["matrix"] = [Way(len(dev) + rows, rows) for rows in blocks(fresh, FEWEST_ROWS)]
    if wanted.votes and (candidate is None or with_votes(evaluator, candidate, wanted.votes) is not None):
        ways["votes"] = [Way(len(dev))]
    if refits:
        ways["refit"] = [Way(len(dev))]
    if wanted.recalibrate and chooses:
        most = len(dev) if candidate is not None else len(dev) // 2
        ways["recalibrate"] = [Way(count) for count in range(1, most + 1)]
    return ways


def readings(evaluator: Evaluator, rows: Sequence[Row]) -> int:
    """How many prompts are read to fit all heads in one format: one for each label output of a row that holds its gold
    value and its predictor's inputs.
    """
    count = 0
    for name, field in label_outputs(evaluator):
        signature, columns = evaluator.signatures[name], evaluator.columns(name)
        needed = [columns.get(each, "") for each in signature.input_fields]
        for row in rows:
            held = {**row.inputs, **row.labels}
            gold = gold_label(row, columns.get(field), signature.output_fields[field].annotation)
            count += gold is not None and all(held.get(column) is not None for column in needed)
    return count


def sampled(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """So many of the rows, drawn at random, in their order."""
    drawn = random.Random(derive_seed(seed, "fitted")).sample(range(len(rows)), min(count, len(rows)))
    return [rows[place] for place in sorted(drawn)]


def challenged(
    search: Search,
    result: SearchResult,
    rows: Sequence[Row],
    ways: Mapping[str, Way | None],
    *,
    votes: int | None,
    calibrations: Sequence[str] = METHODS,
    formats: Sequence[FormatChoice],
    stem: str,
    target: str,
    seed: int,
) -> SearchResult:
    """The result with what `ways` names tried on top of what was chosen: the `refit`, other `calibrations`, `votes`,
    then the `matrix`, then the `head`, both fitted on some of `rows`. stem, target: see `headed`.

    Matrix and head are tried only where the user asks for them: such a program runs on this model alone, and is no
    prompt to read or to take elsewhere.
    """
    evaluator = search.evaluator
    if ways.get("refit"):
        refit = search.to_refit(result)
        if refit is not None:
            unfair = partial(shown_itself, evaluator, refit[1])
            result = search.challenge(result, refit[1], {"refit": True}, prompts=True, unfair=unfair)
    if way := ways.get("recalibrate"):
        left = way.calls
        for change in (partial(recalibrated, allowed=calibrations), reweighed):
            better = change(evaluator, search.known(result), most_calls=left)
            if better is not None:
                left -= better.calls
                told = {f"{name}.calibration": method for name, method in better.methods.items()}
                result = search.challenge(result, better.candidate, told, prompts=True, run=better.run)
    if votes and ways.get("votes"):
        voting = with_votes(evaluator, result.chosen.candidate, votes)
        result = result if voting is None else search.challenge(result, voting, {"votes": votes}, prompts=True)
    found = result.chosen.candidate
    if way := ways.get("matrix"):
        fresh = sampled(fresh_rows(found, rows), way.rows, seed)
        candidate, fits = with_matrices(evaluator, found, fresh, stem=stem, target=target, seed=seed)
        result = search.challenge(result, candidate, told_of(fits)) if fits else result
    if way := ways.get("head"):
        some, tried = sampled(rows, way.rows, seed), formats[: way.formats]
        candidate, fits = headed(evaluator, found, some, stem=stem, target=target, formats=tried, seed=seed)
        result = search.challenge(result, candidate, told_of(fits)) if fits else result
        result = replace(result, read=way.calls - len(search.dev))
    return result


def told_of(fits: Mapping[str, Mapping[str, Fitted]]) -> dict[str, dict[str, Any]]:
    """What a trial's line tells of heads and matrices, by predictor, field and kind."""
    told: dict[str, dict[str, Any]] = {}
    for name, fields in fits.items():
        for field, fit in fields.items():
            numbers = {"accuracy": round(fit.accuracy, 4), "loss": round(fit.loss, 4)}
            common = {"strength": fit.strength, **numbers}
            if fit.head.layer is None:
                told[f"{name}.{field}.matrix"] = common
            else:
                told[f"{name}.{field}.head"] = {"layer": fit.head.layer, "pooling": fit.head.pooling, **common}
    return told
