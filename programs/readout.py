"""Read-outs: how a predictor's outputs are taken from the model.

- `text`: free text. A format that opens the answer itself is read field by field; any other writes the whole answer
  in one go, and it is parsed.
- `constrained`: the whole answer under the grammar that format and types imply; it always parses, unless it is cut
  off.
- `choice`: a field with a finite set of values is chosen by the log-likelihood of each value's text after the field's
  scaffolding, less that label's calibration offset; other fields are read as text.
- `channel`: such a field is chosen by the log-likelihood of the inputs after the demos of each value (`channel.py`),
  less the offset; other fields are read as text.
- `head`: a field with a finite set of values is read off the model's hidden state by a linear head (`heads.py`).
- `span`: a text field is copied from the inputs: the most likely span after its scaffolding, or null where it may be
  (`spans.py`); other fields are read as text.

Calibration by offsets: Zhao et al. 2021 (contextual, arXiv 2102.09690) and Zhou et al. 2023 (batch, arXiv
2309.17249), both in log space, where they are one number per label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import dspy
import numpy as np

from ..errors import InputError, ReadError
from ..models.engine import Decoding, GenerateRequest, ScoreRequest, SpanRequest
from ..models.gather import Gatherer
from ..models.hidden import FeatureRequest
from ..seeds import derive_seed
from ..signatures import choice_value, choices
from ..signatures.types import shape
from .beside import beside
from .channel import demos_of, own_part
from .formats.base import Format, Values
from .formats.fields import kind as type_in
from .heads import check_head, loaded
from .prompt import Prompt, render
from .spans import Copy, around, is_text, left_open, others_of, record, runs, sources_of, turn_end
from .state import CHOOSING, PredictorState, ReadOut, SpanChoice
from .votes import elected, voters

BY_FIELD = (*CHOOSING, "span", "head")  # the read-outs that take one field after the other, in any format


@dataclass(frozen=True)
class Choice:
    """What a choice by likelihood saw: each label's log-likelihood in nats, before calibration. `tokens` is the
    prompt's, or of all prompts where each label has its own (`channel`): then the log-likelihoods are those of the
    inputs after each, and no label is a favourite before anything is asked.
    """

    predictor: int
    field: str
    labels: tuple[str, ...]
    totals: tuple[float, ...]
    chosen: str
    tokens: int
    channel: bool = False


_choices: ContextVar[list[Choice] | None] = ContextVar("cuecard_choices", default=None)


@contextmanager
def recorded_choices() -> Iterator[list[Choice]]:
    """Collect the choices that predictors make in this context."""
    seen: list[Choice] = []
    token = _choices.set(seen)
    try:
        yield seen
    finally:
        _choices.reset(token)


@dataclass(frozen=True)
class Call:
    """One predictor call: everything that the read-outs need."""

    gatherer: Gatherer
    format: Format
    signature: type[dspy.Signature]
    demos: tuple[Values, ...]
    inputs: Values
    state: PredictorState
    predictor: int = 0

    def type_of(self, field: str) -> Any:
        """The type of an output field, its constraints included."""
        return type_in(self.signature, field)

    def prompt(self, opening: str, room: int, inputs: Values | None = None) -> Prompt:
        """The prompt with `opening` as the start of the answer; `inputs`: others than the call's own."""
        given = self.inputs if inputs is None else inputs
        return render(self.gatherer.engine, self.format, self.signature, self.demos, given, opening, room)


def answer(call: Call) -> list[dict[str, Any]]:
    """The outputs of one call: `n` of them. Raises `ReadError` when the text can't be read."""
    kind = call.state.readout.kind
    if call.state.readout.votes is not None:
        drawn = (replace(call, state=state) for state in voters(call.state, call.state.readout.votes))
        return [elected(call.signature, [partial(_first, one) for one in drawn])]
    if kind == "constrained":
        return _constrained(call)
    if call.state.readout.chooses and not any(choices(call.type_of(name)) for name in call.signature.output_fields):
        raise InputError(
            f"the read-out `{kind}` needs an output with a finite set of values",
            expected="a Literal, an Enum or a bool among the outputs",
            hint="Use the read-out `text` or `constrained`.",
        )
    if kind in BY_FIELD or call.format.opens:
        return [_by_field(call, sample) for sample in range(call.state.decoding.n)]
    return _whole(call)


def _first(call: Call) -> dict[str, Any]:
    return answer(call)[0]


def first_prompts(call: Call) -> list[Prompt]:
    """The prompts that the call sends first: one, or that of each label where each has its own."""
    fields = list(call.signature.output_fields)
    kind = call.state.readout.kind
    if kind == "constrained" or not (kind in BY_FIELD or call.format.opens):
        return [call.prompt("", call.state.decoding.max_tokens)]
    if kind == "head" and fields[0] in call.state.readout.heads:
        return [head_prompt(call, fields[0])]
    if kind == "channel" and choices(call.type_of(fields[0])):
        return [prompt for prompt, _ in _by_label(call, fields[0])]
    room = None
    if kind == "choice" and choices(call.type_of(fields[0])):
        room = _choice_room(call, fields[0])
    elif kind == "span" and is_text(call.type_of(fields[0])):
        room = _longest(call) + len(_closing(call, fields[0]))
    return [call.prompt(call.format.lead(call.signature, fields[0], {}), room or call.state.decoding.max_tokens)]


def first_calls(signature: type[dspy.Signature], state: PredictorState) -> int:
    """How many model calls the first of a predictor's prompts are: one, or one for each label (`channel`)."""
    field = next(iter(signature.output_fields))
    labels = choices(type_in(signature, field)) if state.readout.kind == "channel" else None
    return len(labels or (field,))


def _whole(call: Call) -> list[dict[str, Any]]:
    decoding = call.state.decoding
    stops = decoding.stop + call.format.stops(call.signature)
    prompt = call.prompt("", decoding.max_tokens)
    request = GenerateRequest(prompt.ids, decoding.model_copy(update={"stop": stops}))
    generation = call.gatherer.generate(request)
    return [call.format.parse(call.signature, sample.text) for sample in generation.samples]


def _constrained(call: Call) -> list[dict[str, Any]]:
    prompt = call.prompt("", call.state.decoding.max_tokens)
    request = GenerateRequest(prompt.ids, call.state.decoding, call.format.grammar(call.signature))
    generation = call.gatherer.generate(request)
    return [call.format.parse(call.signature, sample.text) for sample in generation.samples]


def _by_field(call: Call, sample: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in call.signature.output_fields:
        kind, type_ = call.state.readout.kind, call.type_of(field)
        if call.state.readout.chooses and choices(type_):
            values[field] = _choose(call, field, values)
        elif kind == "head" and field in call.state.readout.heads:
            values[field] = _headed(call, field)
        elif kind == "span" and is_text(type_):
            values[field] = _copy(call, field, values)
        else:
            values[field] = _write(call, field, values, sample)
    return values


def head_prompt(call: Call, field: str) -> Prompt:
    """The prompt whose hidden states a field's head reads: what the model has written before is not in it."""
    return call.prompt(call.format.lead(call.signature, field, {}), 1)


def _headed(call: Call, field: str) -> Any:
    choice = call.state.readout.heads[field]
    assert choice.layer is not None, "a matrix goes with a choice, which is checked when it is loaded"
    check_head(field, choice, call.gatherer.engine)
    features = call.gatherer.features(FeatureRequest(head_prompt(call, field).ids, (choice.layer,)))
    return choice_value(call.type_of(field), loaded(choice).predict(getattr(features, choice.pooling)[0]))


def _write(call: Call, field: str, before: Values, sample: int) -> Any:
    """Generate one field's value after its scaffolding, up to what ends it."""
    decoding = call.state.decoding
    prompt = call.prompt(call.format.lead(call.signature, field, before), decoding.max_tokens)
    stops = decoding.stop + call.format.ends(call.signature, field)
    settings = decoding.model_copy(update={"stop": stops, "n": 1, "seed": _sample_seed(decoding, sample)})
    text = call.gatherer.generate(GenerateRequest(prompt.ids, settings)).samples[0].text
    return _read(call, field, text)


def _copy(call: Call, field: str, before: Values) -> Any:
    """Take one field's value from the inputs: the best of their spans, or null. Raises `ReadError` for empty inputs
    where it can't be null.
    """
    tokenizer, choice = call.gatherer.engine.tokenizer, call.state.readout.span or SpanChoice()
    weights, nullable = choice.of(field), shape(call.type_of(field)).optional
    sources = sources_of(call.signature, call.state.readout.sources)
    texts = [str(call.inputs[name]) for name in sources if call.inputs.get(name) is not None]
    most = _longest(call)
    found, cuts = runs(tokenizer, call.format, call.signature, field, texts, most)
    if not found:
        if nullable:
            record(Copy(call.predictor, field, (), (), (), None, None))
            return None
        raise ReadError(f"there is nothing to copy: {', '.join(sources)} is empty", field=field)
    end = _closing(call, field)
    lead = call.format.lead(call.signature, field, before)
    prompt = call.prompt(lead, most + len(end)).ids
    others = left_open(call.signature, sources, call.inputs)
    against = call.prompt(lead, most + len(end), others).ids if weights.contrast and others != call.inputs else None
    null = _null(call, field, end) if nullable else ()
    made = call.gatherer.spans(SpanRequest(prompt, found, cuts, end, choice.width, against, null))
    suffix = around(call.format, call.signature, field)[1]
    values = [_read(call, field, tokenizer.decode(found[s.run][: s.length]) + suffix) for s in made.scores]
    asked = [str(call.inputs[name]) for name in others_of(call.signature, sources) if call.inputs.get(name) is not None]
    copy = Copy(call.predictor, field, tuple(values), made.scores, beside(values, texts, asked), made.also, None)
    copy = replace(copy, chosen=copy.best(weights))
    record(copy)
    return copy.chosen


def _null(call: Call, field: str, end: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens of null, closed as a span is."""
    written, suffix = call.format.write(call.signature, field, None), around(call.format, call.signature, field)[1]
    return call.gatherer.engine.tokenizer.encode(written) + (() if suffix else end)


def _longest(call: Call) -> int:
    choice = call.state.readout.span
    return choice.longest if choice and choice.longest else call.state.decoding.max_tokens


def _closing(call: Call, field: str) -> tuple[int, ...]:
    """The tokens that close a value: what the format writes, the turn's end, or what ends the field.

    Of a blank line only the first line break: on SQuAD questions that chose better, by .04 F1, than the whole.
    """
    tokenizer = call.gatherer.engine.tokenizer
    suffix = around(call.format, call.signature, field)[1]
    last = field == list(call.signature.output_fields)[-1]
    if not suffix and last and call.format.head(call.signature, (), call.inputs).turns:
        return turn_end(tokenizer)
    end = suffix or next(iter(call.format.ends(call.signature, field)), "\n")
    return tokenizer.encode("\n" if end.startswith("\n") else end)


def _read(call: Call, field: str, text: str) -> Any:
    """The value that `text`, which follows the field's lead, means: the format reads it as an answer of one field."""
    signature = _alone(call.signature, field)  # type: ignore[arg-type]  # a class is hashable
    return call.format.parse(signature, call.format.lead(signature, field, {}) + text)[field]


@lru_cache(maxsize=256)
def _alone(signature: type[dspy.Signature], field: str) -> type[dspy.Signature]:
    """The signature with one of its outputs only. Making one takes a millisecond, and spans are read by the dozen."""
    for other in signature.output_fields:
        signature = signature if other == field else signature.delete(other)
    return signature


def _sample_seed(decoding: Decoding, sample: int) -> int:
    return decoding.seed if sample == 0 else derive_seed(decoding.seed, "sample", sample)


def _label_ids(call: Call, field: str) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    labels = choices(call.type_of(field)) or ()
    values = [choice_value(call.type_of(field), label) for label in labels]
    texts = [call.format.write(call.signature, field, value) for value in values]
    if any(a != b and b.startswith(a) for a in texts for b in texts):
        # A label that begins another would win by being shorter: what ends a value belongs to it then.
        end = next(iter(call.format.ends(call.signature, field)), "\n")
        texts = [text + end for text in texts]
    return labels, tuple(map(call.gatherer.engine.tokenizer.encode, texts))


def _choice_room(call: Call, field: str) -> int:
    return max(map(len, _label_ids(call, field)[1]))


def calibrated(readout: ReadOut, field: str, labels: Sequence[str], totals: Sequence[float]) -> dict[str, float]:
    """What a field's label is chosen by, the first of the highest: log-likelihoods less learned offsets, or logits.

    The logits are those of the learned matrix, where there is one, in the order of its labels.

    totals: the labels' log-likelihoods in nats, as the model gave them.
    """
    by_label, matrix = dict(zip(labels, totals, strict=True)), readout.heads.get(field)
    if matrix is not None:
        logits = loaded(matrix).logits(np.array([by_label[label] for label in matrix.labels]))
        return dict(zip(matrix.labels, logits.tolist(), strict=True))
    offsets = readout.calibration.offsets.get(field, {}) if readout.calibration is not None else {}
    return {label: total - offsets.get(label, 0.0) for label, total in by_label.items()}


def _choose(call: Call, field: str, before: Values) -> Any:
    """Choose one field's value by calibrated log-likelihood; ties go to the first label."""
    channel = call.state.readout.kind == "channel"
    if channel:
        labels, asked = choices(call.type_of(field)) or (), _by_label(call, field)
        tokens = sum(len(prompt.ids) for prompt, _ in asked)
        totals = tuple(scores.totals[0] for scores in call.gatherer.score_all([request for _, request in asked]))
    else:
        labels, continuations = _label_ids(call, field)
        prompt = call.prompt(call.format.lead(call.signature, field, before), max(map(len, continuations)))
        totals, tokens = call.gatherer.score(ScoreRequest(prompt.ids, continuations)).totals, len(prompt.ids)
    if field in call.state.readout.heads:
        check_head(field, call.state.readout.heads[field], call.gatherer.engine)
    scores = calibrated(call.state.readout, field, labels, totals)
    chosen = max(scores, key=scores.__getitem__)
    seen = _choices.get()
    if seen is not None:
        seen.append(Choice(call.predictor, field, labels, totals, chosen, tokens, channel))
    return choice_value(call.type_of(field), chosen)


def _by_label(call: Call, field: str) -> list[tuple[Prompt, ScoreRequest]]:
    """Each label's prompt, with the demos of that label alone and without an answer, and what is scored of it."""
    found, tokenizer = [], call.gatherer.engine.tokenizer
    by_label, most = demos_of(call.signature, call.demos, field), call.state.readout.per_label
    for label in choices(call.type_of(field)) or ():
        mine = replace(call, demos=by_label.get(label, ())[:most])
        prompt = mine.prompt("", 1)
        shown = mine.demos[prompt.dropped :]
        found.append((prompt, own_part(tokenizer, call.format, call.signature, shown, call.inputs, prompt)))
    return found
