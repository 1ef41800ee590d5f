"""The end of a compile in words: the scores, the verdict, what was chosen for each predictor, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .screen import clock_text, columns, counted, one_line, score_text

if TYPE_CHECKING:
    from ...metrics.statistics import PairedResult
    from ...optimizers.base import Trial
    from ...programs.state import PredictorState
    from ..task import Compilation

READOUTS = {
    "text": "free text",
    "constrained": "constrained text",
    "choice": "choice by likelihood",
    "channel": "choice by the likelihood of the inputs (channel)",
    "span": "copied from the input",
    "head": "a linear head on the hidden state (not a prompt)",
}

ENDED = {
    "exhausted": "there was nothing left to try",
    "score": "the score that was asked for is reached on dev",
    "no_gain": "nothing better was found for as many trials as may be",
    "file": "there is a file 'stop' in the run's folder",
    "interrupt": "it was interrupted",
}


def summary(compilation: Compilation) -> Iterator[str]:
    """The lines of a compile's summary."""
    about = compilation.task.target.description
    yield f"{compilation.task.name} on {about.name}, {about.dtype}, {about.device}"
    yield ""
    yield from columns(list(_scores(compilation)), gap=3)
    yield ""
    yield from _verdict(compilation)
    yield ""
    rows = []
    for name, state in compilation.candidate.states.items():
        lines = (chosen_text(state), decoding_text(state), one_line(_instructions(compilation, name, state)))
        rows += [(name if place == 0 else "", line) for place, line in enumerate(filter(None, lines))]
    yield from columns(rows)
    yield ""
    if compilation.reference or compilation.constant:
        yield from _references(compilation)
        yield ""
    yield from _costs(compilation)


def _scores(compilation: Compilation) -> Iterator[tuple[str, ...]]:
    result = compilation.result
    unread = {"dev": (result.baseline.unread, result.chosen.unread)}
    if compilation.unread:
        unread["test"] = (compilation.unread["baseline"], compilation.unread["compiled"])
    yield compilation.task.metric.name, "baseline", "compiled", "n", "unread"
    for split, before in compilation.baseline.items():
        after = compilation.compiled[split]
        counts = " -> ".join(str(count) for count in unread[split])
        yield split, score_text(before), score_text(after), str(after.n), counts


def _verdict(compilation: Compilation) -> Iterator[str]:
    result, verdict = compilation.result, compilation.result.verdict
    theirs = f" ({result.others:,} from other processes)" if result.others else ""
    candidates = counted(result.trials - 1, "candidate") + theirs
    if result.trials == 1 and result.stopped_by in compilation.task.budget.limits:
        yield "The baseline is kept: it took the whole budget, and nothing else was tried."
        yield "Give a larger one, or fewer dev rows."
    elif verdict is None:
        yield f"The baseline is kept: none of {candidates} did better on dev."
    elif result.accepted and not _better(verdict):
        yield "The compiled program is shorter than the baseline, and has the score that was asked for on dev:"
        yield f"{_difference(verdict)} by a paired permutation test ({_counts(verdict)})."
    elif result.accepted:
        yield f"The compiled program is better than the baseline on dev: {_difference(verdict)}"
        yield f"by a paired permutation test ({_counts(verdict)}); the best of {candidates}."
    else:
        yield f"The baseline is kept: the best of {candidates} leads on dev by {_difference(verdict)}"
        yield f"in a paired permutation test ({_counts(verdict)}), which may be chance."
    yield from _front(compilation)
    if result.prompt_only is not None and has_heads(result.chosen.candidate.states.values()):
        what = heads_text(result.chosen.candidate.states.values())
        yield f"It reads {what}, which is no prompt and goes with this model alone;"
        yield f"the best program of prompts alone has {_alone(compilation, result.prompt_only)} on dev."
    if result.stopped_by in ENDED:
        yield f"The search ended before its budget: {ENDED[result.stopped_by]}."
    if result.left_out:
        yield f"The budget had no room for: {', '.join(result.left_out)} (not tried)."


def _better(verdict: PairedResult) -> bool:
    from ...optimizers.search import ACCEPT_LEVEL

    return verdict.difference > 0 and verdict.p_value < ACCEPT_LEVEL


def _front(compilation: Compilation) -> Iterator[str]:
    """What is to be had for how long a prompt, where the user has asked for more than the best score."""
    result, rule = compilation.result, compilation.task.choose
    if rule.at_least is None and rule.at_most_tokens is None:
        return
    chosen = next((point for point in result.front if point.trial == result.chosen.number), None)
    if rule.at_least is not None and (result.chosen.score or 0.0) < rule.at_least:
        yield f"No program reached {rule.at_least:g} on dev."
    if chosen is not None and not rule.allows(chosen.tokens):
        yield f"Its prompts have {chosen.tokens:,.0f} tokens: nothing shorter was better than the baseline."
    told = ", ".join(f"{point.tokens:,.0f} tokens {point.score:.3f}" for point in result.front)
    yield f"Prompt tokens of a run, and the best score on dev that they bought: {told}."


def has_heads(states: Iterable[PredictorState]) -> bool:
    """Whether a predictor reads a label off the hidden state: the program is then no prompt, and of one model."""
    return any(state.readout.heads for state in states)


def heads_text(states: Iterable[PredictorState]) -> str:
    """What a program with heads reads."""
    heads = [head for state in states for head in state.readout.heads.values()]
    return "a matrix over the labels" if all(head.is_matrix for head in heads) else "a linear head"


def _alone(compilation: Compilation, trial: Trial) -> str:
    """The dev score of the best candidate that is prompts alone."""
    from ...metrics.statistics import interval
    from ...seeds import derive_seed

    seed = derive_seed(compilation.task.seed, "interval") % 2**32
    return score_text(interval(compilation.task.metric, trial.measurements, seed))


def _references(compilation: Compilation) -> Iterator[str]:
    """What is reached on the same rows without a language model, and whether that is as good."""
    told = (
        (compilation.reference, "without a language model (TF-IDF, logistic regression)", "may need no language model"),
        (compilation.constant, "the most frequent answer for every row", "is not learned, or the metric does not tell"),
    )
    for found, name, moral in told:
        splits = [split for split in compilation.compiled if split in found]
        if splits:
            yield f"{name}: {', '.join(f'{split} {score_text(found[split])}' for split in splits)}"
            split = splits[-1]
            if found[split].value >= compilation.compiled[split].value:
                yield f"That is no worse on {split} than the compiled program: this task {moral}."


def _difference(verdict: PairedResult) -> str:
    chance = "p < 0.001" if verdict.p_value < 0.001 else f"p = {verdict.p_value:.3f}"
    return f"{verdict.difference:+.3f} [{verdict.low:.3f}, {verdict.high:.3f}], {chance}"


def _counts(verdict: PairedResult) -> str:
    return f"{verdict.wins} better, {verdict.losses} worse, {verdict.ties} equal"


def chosen_text(state: PredictorState) -> str:
    """A predictor's format, demos and read-out in one line."""
    format_ = state.format if isinstance(state.format, str) else str(state.format.get("name"))
    near = f"the {state.nearest.count} nearest of {len(state.nearest.pool)}" if state.nearest else ""
    fixed = counted(len(state.demos), "demo") if state.demos or not near else ""
    shown = f"{fixed} and {near}" if fixed and near else fixed or f"{near} demos"
    return f"format {format_}, {shown}, {readout_text(state)}"


def readout_text(state: PredictorState) -> str:
    """A predictor's read-out in words."""
    calibration = state.readout.calibration
    matrix = any(head.is_matrix for head in state.readout.heads.values())
    told = " with a matrix fitted on train (not a prompt)" if matrix else ""
    told = f" with {calibration.method} calibration" if calibration else told
    votes = f", the one of {state.readout.votes} that most agree with" if state.readout.votes else ""
    return f"{READOUTS[state.readout.kind]}{told}{votes}"


def decoding_text(state: PredictorState) -> str:
    """The decoding settings that are not the defaults: `max_tokens 24, temperature 0.3`."""
    changed: dict[str, Any] = state.decoding.model_dump(exclude_defaults=True)
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in changed.items()
    )


def _instructions(compilation: Compilation, name: str, state: PredictorState) -> str:
    if state.instructions is not None:
        return state.instructions
    predictors: dict[str, Any] = dict(compilation.task.program.named_predictors())
    return str(predictors[name].signature.instructions)


def _costs(compilation: Compilation) -> Iterator[str]:
    ledger, spent = compilation.ledger, compilation.spent
    cached = ledger["cached_tokens"] / max(1, ledger["prompt_tokens"])
    yield (
        f"{counted(spent['metric_calls'], 'metric call')} in {counted(spent['trials'], 'trial')}, "
        f"{clock_text(compilation.seconds)} in all"
    )
    yield (
        f"{counted(ledger['calls'], 'model call')}: {counted(ledger['prompt_tokens'], 'prompt token')} "
        f"({cached:.0%} shared), {ledger['generated_tokens']:,} generated"
    )
