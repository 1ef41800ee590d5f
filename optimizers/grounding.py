"""What a proposed instruction is grounded in, and the prompt that shows it to a language model.

A prompt has the program and the step, rows, earlier attempts with their scores, rows that went wrong, and what is
wanted. Long values are cut, and where the whole does not fit into the context window, less of the evidence is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..models.lm import EngineBridge
from ..programs.formats.fields import labels, present, requirement, show
from .base import Outcome
from .wording import Signature

VALUE = 400  # characters of a value that a prompt shows
TEXT = 1200  # characters of an instruction that a prompt shows
PROMPT = 24_000  # characters of a prompt for a model whose context window is not known
OPEN, CLOSE = "<instruction>", "</instruction>"  # what the model is asked to put around its answer
MARGIN = 64  # tokens that a chat template may add
SHARES = (1.0, 0.5, 0.25, 0.0)  # how much of the evidence a prompt shows, until it fits


@dataclass(frozen=True)
class Attempt:
    """An instruction that was tried, and its score on the metric's range."""

    instruction: str
    score: float


@dataclass(frozen=True)
class Miss:
    """A row that a step did not get right. output: what it gave, None where that could not be read; error: what the
    reader or the metric said.
    """

    inputs: Mapping[str, Any]
    gold: Mapping[str, Any]
    output: Mapping[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Ground:
    """What proposals are grounded in.

    signatures: every step's, in the program's order; step: the one whose instruction is sought; rows: values of its
    fields, gold ones for its outputs; attempts: what was tried; description: what the program is for.
    """

    signatures: Mapping[str, Signature]
    step: str
    rows: Sequence[Mapping[str, Any]] = ()
    attempts: Sequence[Attempt] = ()
    misses: Sequence[Miss] = ()
    description: str = ""

    @property
    def signature(self) -> Signature:
        """The step's signature."""
        return self.signatures[self.step]


@dataclass(frozen=True)
class Evidence:
    """What one prompt shows."""

    rows: Sequence[Mapping[str, Any]] = ()
    attempts: Sequence[Attempt] = ()
    misses: Sequence[Miss] = ()
    tip: str = ""
    parent: str = ""

    def share(self, part: float) -> Evidence:
        """As much of it as `part` says; of the attempts the best."""
        rows, misses, attempts = (round(part * len(all_)) for all_ in (self.rows, self.misses, self.attempts))
        kept = self.attempts[len(self.attempts) - attempts :]
        return Evidence(self.rows[:rows], kept, self.misses[:misses], self.tip, self.parent)


def misses_of(
    outcomes: Sequence[Outcome], step: str, signature: Signature, columns: Mapping[str, str], *, below: float
) -> list[Miss]:
    """The rows whose score is under `below` (the metric's best, for all that is not perfect), as a step saw them.

    columns: the data's column for each field of the step. Left out is what says nothing about the step's instruction: a
    call that failed, a text of a later step that could not be read, a step that was not reached. Where the data has no
    gold value for the step, the program's own result and the wanted one are told.
    """
    found = []
    for outcome in outcomes:
        score = None if outcome.measurement is None else outcome.measurement.score
        if outcome.error is not None or (outcome.unread is None and (score is None or score >= below)):
            continue
        values = {**outcome.row.inputs, **outcome.row.labels}
        known = {name: values[columns[name]] for name in signature.fields if columns.get(name) in values}
        mine = [made for made in outcome.steps if made.predictor == step]
        inputs = mine[-1].inputs if mine else {name: known[name] for name in signature.input_fields if name in known}
        if outcome.unread is not None and (mine or len(inputs) < len(signature.input_fields)):
            continue
        gold = {name: known[name] for name in signature.output_fields if name in known}
        told = outcome.unread
        if told is None and not gold:
            told = f"the program gave {_plain(outcome.prediction or {})}; wanted was {_plain(outcome.row.labels)}"
        found.append(Miss(inputs, gold, mine[-1].outputs if mine else None, told))
    return found


def fitting(ground: Ground, shown: Evidence, bridge: EngineBridge | None, room: int) -> str:
    """The prompt with as much of the evidence as the context window holds beside the answer."""
    prompts = (_prompt(ground, shown.share(part)) for part in SHARES)
    prompt = ""
    for prompt in prompts:
        if bridge is None:
            fits = len(prompt) <= PROMPT
        else:
            fits = len(bridge.engine.tokenizer.encode(prompt)) + room + MARGIN <= bridge.engine.context_window
        if fits:
            break
    return prompt


def _prompt(ground: Ground, shown: Evidence) -> str:
    """What the model is asked, in paragraphs; those without content are left out."""
    signature = ground.signature
    attempts = [f"Score {attempt.score:.2f}: {cut(attempt.instruction, TEXT)}" for attempt in shown.attempts]
    want = "an improved instruction that would have got them right" if shown.parent else "a new, better instruction"
    parts = [
        *opening(ground, "the instruction for one step", shown.parent or signature.instructions),
        block("Examples of what is wanted:", [values_text(signature, row) for row in shown.rows], "\n\n"),
        block("Instructions that were tried, the best one last:", attempts, "\n"),
        block("Examples that went wrong:", [missed(signature, miss) for miss in shown.misses], "\n\n"),
        f"Write {want} for this step. {shown.tip}".strip(),
        "It must hold for all inputs: do not repeat the examples or their answers. "
        f"Put it between {OPEN} and {CLOSE}, and write nothing else.",
    ]
    return "\n\n".join(part for part in parts if part)


def opening(ground: Ground, what: str, now: str) -> list[str]:
    """The paragraphs that say what is to be written, for which step, and the instruction that it has `now`."""
    return [
        f"Your task: write {what} of a program that asks a language model.",
        f"What the program is for: {cut(ground.description, TEXT)}" if ground.description.strip() else "",
        steps_text(ground),
        fields_text(ground.signature),
        f"The instruction now: {cut(now, TEXT)}",
    ]


def steps_text(ground: Ground) -> str:
    """The steps of the program, and which of them is meant."""
    if len(ground.signatures) < 2:
        return ""
    lines = []
    for name, signature in ground.signatures.items():
        mark = " (the one to write for)" if name == ground.step else ""
        lines.append(f"- {name}: {', '.join(signature.input_fields)} -> {', '.join(signature.output_fields)}{mark}")
    return block("The steps of the program:", lines, "\n")


def fields_text(signature: Signature) -> str:
    """A step's inputs and outputs, a line each."""
    named = labels(signature)
    lines = []
    for name in signature.fields:
        side = "input" if name in signature.input_fields else "output"
        known = requirement(signature, name)
        lines.append(f"- {named[name]} ({side}){f': {cut(known, TEXT)}' if known else ''}")
    return block("The fields of the step:", lines, "\n")


def values_text(signature: Signature, values: Mapping[str, Any], mark: str = "") -> str:
    """Values of fields, a line each."""
    named = labels(signature)
    return "\n".join(
        f"{named[name]}{mark}: {cut(_shown(signature, name, values[name]), VALUE)}"
        for name in present(signature.fields, values)
    )


def missed(signature: Signature, miss: Miss) -> str:
    """How one call went wrong, in words."""
    inputs = {name: value for name, value in miss.inputs.items() if name in signature.input_fields}
    outputs = {name: value for name, value in (miss.output or {}).items() if name in signature.output_fields}
    parts = [
        values_text(signature, inputs),
        values_text(signature, outputs, " given") or "The answer could not be read.",
        values_text(signature, miss.gold, " wanted"),
        f"Feedback: {cut(miss.error, VALUE)}" if miss.error else "",
    ]
    return "\n".join(part for part in parts if part)


def _shown(signature: Signature, name: str, value: Any) -> str:
    try:
        return show(signature, name, value)
    except InputError:  # a value without a text of its own
        return str(value)


def _plain(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {cut(str(value), VALUE)}" for name, value in values.items()) or "nothing"


def block(title: str, items: Sequence[str], between: str) -> str:
    """A titled paragraph of the items that say something; empty where none does."""
    kept = [item for item in items if item]
    return f"{title}\n{between.join(kept)}" if kept else ""


def cut(text: str, limit: int) -> str:
    """A text, its end left out beyond `limit` characters."""
    text = text.strip()
    return text if len(text) <= limit else f"{text[:limit].rstrip()} ..."
