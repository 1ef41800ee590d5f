"""The search space of a task: its demo pools, and for each predictor the values that are worth trying on its target."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import dspy

from ..errors import InputError
from ..models.engine import Decoding, Turn
from ..optimizers.base import Candidate
from ..optimizers.demos import Demo, label_counts, label_sets, pools, sets
from ..optimizers.grounding import Ground
from ..optimizers.instructions import instructions_for
from ..optimizers.proposers import LanguageModel, propose
from ..optimizers.refit import held
from ..optimizers.space import FORMATS, PredictorSpace, Space, demo_counts, readouts_for
from ..optimizers.starts import JointSpace
from ..programs.channel import labelled_outputs
from ..programs.schema import InstructionSpec, SearchSpec
from ..programs.spans import copied_from, is_text
from ..programs.state import FormatChoice, ReadOut
from ..seeds import derive_seed
from ..signatures import write
from .evaluator import ProgramEvaluator, candidate_of
from .journal import JournaledEngine
from .task import Task

DEMO_SETS = 32
LABEL_SETS = 8
CHANNEL_TOKENS = 1500  # of a call's own parts, one for each label, beyond which the read-out `channel` is too dear
LABEL_TOKENS = 2000  # of a label's demos
LABELS_TOKENS = 5000  # of all labels' demos at the first points: more are better, and are computed once
START_TOKENS = 2000
NEAREST_POOL = 20  # examples from which on the nearest are worth looking for
NEAREST_TOKENS = 300
FEWEST_NEAREST = 4
LONG = 0.95  # the share of a training set's answers that a span's greatest length leaves room for


def make_space(
    task: Task, evaluator: ProgramEvaluator, engine: JournaledEngine, lm: LanguageModel
) -> tuple[Space, dict[str, int]]:
    """The space of a task, and why proposed instructions were dropped, each reason with how many.

    Demo pools are gathered, which may run the program on train; `lm` is asked for instructions, where the spec says so.
    """
    low, high = task.search.demos
    found: Mapping[str, list[Demo]] = {name: [] for name in evaluator.signatures}
    if high and task.train:
        found = pools(evaluator, bootstrap_candidate(task.program, scores=engine.can_score), task.train)
    parts = []
    dropped: Counter[str] = Counter()
    for name, signature in evaluator.signatures.items():
        pool = found[name]
        state = candidate_of(task.program).states[name]
        readouts = None if task.search.readouts == "auto" else task.search.readouts
        calibrations: tuple[str, ...] | None = None if task.search.calibrations == "auto" else task.search.calibrations
        if not task.train:  # nothing to calibrate on but the content-free input
            calibrations = tuple(m for m in calibrations or ("none", "contextual") if m in ("none", "contextual"))
        counts = demo_counts(low, high, len(pool))
        sources = copied_from(signature, pool)
        listed = per_label(task.search.per_label, signature, pool, engine) if engine.scores_inputs else ()
        by_channel = label_sets(pool, signature, LABEL_SETS, seed=task.seed, name=name) if listed else ()
        nearest = nearest_counts(task.search.nearest, signature, pool, engine)
        more = held(evaluator, name, pool, task.dev) if task.search.refit and (listed or any(nearest)) else ()
        wanted = {"copied": bool(sources), "channel": bool(by_channel), "scores": engine.can_score}
        parts.append(
            PredictorSpace(
                name,
                signature,
                _instructions(task, evaluator.signatures, name, pool, lm, dropped),
                counts,
                sets(pool, DEMO_SETS, high, seed=task.seed, name=name) if pool else (),
                search_formats(task.search, engine),
                readouts_for(signature, readouts, calibrations, **wanted),
                search_decoding(signature, state.decoding, pool, engine),
                task.search.decoding,
                start_count(counts, pool, engine),
                sources,
                longest_span(signature, pool, engine) if sources else None,
                tuple(pool),
                nearest,
                by_channel,
                listed,
                start_per_label(listed, label_counts(signature, pool), pool, engine) if listed else 0,
                most_per_label(task.search.per_label[1], signature, pool, engine) if listed and more else 0,
                more if any(nearest) else (),
            )
        )
    return JointSpace(tuple(parts)), dict(sorted(dropped.items()))


def grows_after(wanted: SearchSpec, space: Space) -> bool:
    """Whether dev's rows are yet to join the demos that are chosen at call time, where the search did without them, or
    those of each label.
    """
    near = any(any(part.nearest_counts) for part in space.predictors)
    shown = near and not any(part.held for part in space.predictors)
    return wanted.refit and (shown or any(space.most_per_label.values()))


def proposals_for(wanted: InstructionSpec, predictor: str) -> int:
    """How many instructions a model is asked for: as many as there is room for beside the user's own."""
    return max(0, min(wanted.asked, wanted.most - 1 - len(wanted.texts_of(predictor))))


def _instructions(
    task: Task,
    signatures: Mapping[str, type[dspy.Signature]],
    name: str,
    pool: Sequence[Demo],
    lm: LanguageModel,
    dropped: Counter[str],
) -> tuple[str, ...]:
    """The instructions that are tried for a predictor; `dropped` counts the proposals that could not be used."""
    wanted = task.search.instructions
    proposed: tuple[str, ...] = ()
    count = proposals_for(wanted, name)
    if count:
        ground = Ground(signatures, name, rows=pool, description=task.description)
        made = propose(lm, ground, count, seed=derive_seed(task.seed, "instructions", name))
        proposed = made.instructions
        dropped.update(made.dropped)
    principles = None if wanted.principles == "auto" else wanted.principles
    return instructions_for(
        signatures[name], wanted.most, own=wanted.texts_of(name), proposed=proposed, principles=principles
    )


def longest_span(signature: type[dspy.Signature], pool: Sequence[Demo], engine: JournaledEngine) -> int:
    """The most tokens of a span: what nearly all of the demos' outputs stay within, and one for a space before."""
    lengths = sorted(
        len(engine.tokenizer.encode(str(demo[name])))
        for demo in pool
        for name in signature.output_fields
        if name in demo
    )
    return 1 + lengths[int(LONG * (len(lengths) - 1))]


def nearest_counts(
    span: tuple[int, int], signature: type[dspy.Signature], pool: Sequence[Demo], engine: JournaledEngine
) -> tuple[int, ...]:
    """How many demos nearest to the input may be shown: a call of its own pays for each, so long ones are few.

    Where four fit, one or two are not offered: a model copies from them what is theirs, which dev shows only where its
    rows are farther from those of train than the rows to come.
    """
    low, high = span
    if len(pool) < NEAREST_POOL or not any(field.annotation is str for field in signature.input_fields.values()):
        return (0,)
    counts = demo_counts(low, high, len(pool))
    mean = mean_tokens(pool, engine)
    fitting = [count for count in counts if count == counts[0] or count * mean <= NEAREST_TOKENS]
    fewest = FEWEST_NEAREST if fitting[-1] >= FEWEST_NEAREST else 1
    return tuple(count for count in fitting if count == counts[0] or count >= fewest)


def per_label(
    span: tuple[int, int], signature: type[dspy.Signature], pool: Sequence[Demo], engine: JournaledEngine
) -> tuple[int, ...]:
    """How many demos of each label may be shown under the read-out `channel`; none where it can't be used.

    That is where an input is a text, and an output has labels of which two have demos. A call costs its own part
    once for each label, so many labels and long texts rule it out; a prompt holds only the demos of one label, unless
    it is that of an output without labels, which is written after all of them.
    """
    outputs = labelled_outputs(signature)
    if not outputs or not pool or not any(is_text(field.annotation) for field in signature.input_fields.values()):
        return ()
    groups = label_counts(signature, pool)
    labels, (low, high) = sum(map(len, outputs.values())), span
    few = all(len(group) < 2 for group in groups.values())
    if few or not high or labels * mean_tokens(pool, engine) > CHANNEL_TOKENS:
        return ()
    high = min(high, most_per_label(high, signature, pool, engine))
    counts = demo_counts(max(1, low), high, max(max(group.values()) for group in groups.values()))
    return counts


def most_per_label(high: int, signature: type[dspy.Signature], pool: Sequence[Demo], engine: JournaledEngine) -> int:
    """The most demos of each label, up to `high`, that make about `LABEL_TOKENS` tokens in a prompt."""
    alone = len(labelled_outputs(signature)) == len(signature.output_fields)
    together = 1 if alone else sum(map(len, label_counts(signature, pool).values()))
    return max(1, min(high, int(LABEL_TOKENS / (together * mean_tokens(pool, engine)))))


def start_per_label(
    counts: Sequence[int], groups: Mapping[str, Mapping[str, int]], pool: Sequence[Demo], engine: JournaledEngine
) -> int:
    """How many demos of each of the labels in `groups` the first points show: as many as make about `LABELS_TOKENS`
    tokens in all.
    """
    mean, labels = mean_tokens(pool, engine), sum(map(len, groups.values()))
    return max((count for count in counts if count * labels * mean <= LABELS_TOKENS), default=counts[0])


def mean_tokens(pool: Sequence[Demo], engine: JournaledEngine) -> float:
    """How long a demo is, without a format's scaffolding."""
    return sum(len(engine.tokenizer.encode(" ".join(map(str, demo.values())))) for demo in pool) / len(pool)


def start_count(counts: Sequence[int], pool: Sequence[Demo], engine: JournaledEngine) -> int:
    """How many demos the first points show: as many as make about `START_TOKENS` tokens, since long ones cost time."""
    if not pool:
        return counts[-1]
    mean = mean_tokens(pool, engine)
    return max((count for count in counts if count * mean <= START_TOKENS), default=counts[0])


def search_formats(search: SearchSpec, engine: JournaledEngine) -> tuple[FormatChoice, ...]:
    """The formats that are searched. A model without a chat template has only those without one."""
    if search.formats != "auto":
        return search.formats
    try:
        engine.tokenizer.chat([Turn("user", "")])
    except InputError:
        return ("completion",)
    return FORMATS


def bootstrap_candidate(program: dspy.Module, *, scores: bool = True) -> Candidate:
    """The parameters under which train is run to gather demos: the ones whose answers a small model gets right in
    form. `scores`: whether the target can score a given text.
    """
    states = {}
    for name, state in candidate_of(program).states.items():
        predictor = dict(program.named_predictors())[name]
        labels = labelled_outputs(predictor.signature)
        readout = ReadOut(kind="choice" if labels and scores else "text")
        states[name] = state.model_copy(update={"format": "completion", "readout": readout})
    return Candidate(states)


def search_decoding(
    signature: type[dspy.Signature], decoding: Decoding, pool: Sequence[Demo], engine: JournaledEngine
) -> Decoding:
    """The decoding settings of the search: `max_tokens` from the demos' own outputs, unless the user has set it.

    Half as much again as the longest, and room for a format's scaffolding.
    """
    if "max_tokens" in decoding.model_fields_set or not pool:
        return decoding
    outputs = signature.output_fields

    def length(demo: Demo) -> int:
        texts = [write(demo[name], field.annotation) for name, field in outputs.items() if name in demo]
        return sum(len(engine.tokenizer.encode(text)) for text in texts)

    longest = max(length(demo) for demo in pool)
    room = math.ceil(1.5 * longest) + 12 + 8 * len(outputs)
    return decoding.model_copy(update={"max_tokens": room})
