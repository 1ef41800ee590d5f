"""The prompts of a program as plain data, for engines and code that know nothing of Cuecard.

A prompt can be taken elsewhere where it is one text with holes for the inputs: an instruction and fixed demos. What
only happens at call time cannot: demos that are nearest to the input, a prompt for each label (`channel`), a head on
the hidden state. Where the text goes along but the way in which its answer is taken does not (a choice by likelihood, a
span, votes), what is left behind is told: the scores were measured with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy

from ..errors import InputError
from ..programs.graph import build
from ..programs.learned import narrowed, python_predictors, state_of
from ..programs.predictor import Predictor
from ..programs.references import INPUTS
from ..programs.schema import PromptOnly, Spec
from ..programs.state import PredictorState
from ..signatures import field_types, json_schema, signature, type_name

HOLE = "{{NAME}}"
FIXED = "search: {nearest: 0, readouts: [text, constrained, choice]}"
SENTINEL = "\ue000{}\ue001"  # of the private use area: no prompt is expected to have it


def exported(spec: Spec, only: str | None = None, hole: str = HOLE) -> dict[str, Any]:
    """The prompts of a spec's predictors (`only`: of one) as JSON-like data, for which no model is needed.

    hole: what stands where an input's value belongs; `NAME` in it becomes the input's name. Where the program has heads
    or matrices, the prompts are those of its best candidate without (`compiled.prompt_only`).

    Each predictor has `messages` of a chat, or a running text as `prompt`; the decoding `settings` with what ends the
    answer as `stop`; for each output where its value stands in the answer and its JSON schema; the `grammar` of the
    answer (llguidance's dialect of Lark) where it was constrained; and as `differs` what does not go along.

    Raises `InputError` for a prompt that is not one fixed text, with what to do instead.
    """
    named = narrowed(_predictors(spec), only)
    alone = _alone(spec, named)
    made = spec.compiled
    scores = alone.scores if alone else made.scores if made else {}
    return {
        "program": spec.name,
        **({"compiled_for": made.target.model_dump(exclude={"identity"}, exclude_none=True)} if made else {}),
        **(
            {"scores": {split: score.model_dump(exclude_none=True) for split, score in scores.items()}}
            if scores
            else {}
        ),
        **({"prompt_only": True} if alone else {}),
        **_wiring(spec),
        "predictors": {name: _Prompt(spec, name, part, hole).data() for name, part in named.items()},
    }


def _predictors(spec: Spec) -> dict[str, Predictor]:
    return dict(build(spec).named_predictors()) if spec.steps else python_predictors(spec)


def _alone(spec: Spec, predictors: Mapping[str, Predictor]) -> PromptOnly | None:
    """Give the predictors the parameters of the best candidate of prompts alone, where theirs are not."""
    if not any(part.state.readout.heads for part in predictors.values()):
        return None
    alone = spec.compiled.prompt_only if spec.compiled else None
    if alone is None:
        raise InputError(
            "the program reads a head or a matrix, which is no prompt, and no candidate of prompts alone is kept in it",
            path=spec.path,
            hint="Compile it without `head` among search.readouts, and without `matrix` among search.calibrations.",
        )
    for name, part in predictors.items():
        if name not in alone.predictors:
            raise InputError(
                f"compiled.prompt_only has no predictor {name!r}",
                path=spec.path,
                line=spec.line("compiled", "prompt_only"),
                expected=f"the parameters of {', '.join(predictors)}",
                hint="Compile the program again.",
            )
        part.state = state_of(alone.predictors[name], part.signature, spec.model)
    return alone


def _wiring(spec: Spec) -> dict[str, Any]:
    """What goes from where to where, in a program of several nodes."""
    if spec.nodes is None:
        return {}
    nodes = {}
    for name, node in spec.nodes.items():
        by_name = {field: f"${{{INPUTS}.{field}}}" for field in signature(node.signature).input_fields}
        nodes[name] = {"module": node.module, "inputs": by_name if node.inputs is None else node.inputs}
    return {"nodes": nodes, **({"outputs": spec.outputs} if spec.outputs else {})}


def _cuts_nothing(stop: str) -> bool:
    """Whether an answer can be read without this string at its end. Most servers cut it off; a JSON object needs it."""
    return not stop.strip() or bool(set(stop.strip()) - set('"]}'))


class _Prompt:
    """One predictor's prompt, for the export."""

    def __init__(self, spec: Spec, name: str, predictor: Predictor, hole: str) -> None:
        self._spec, self._name, self._hole = spec, name, hole
        self._format, self._signature = predictor.format, predictor.signature
        self._state: PredictorState = predictor.state
        self._demos: Sequence[Any] = predictor.demos

    def data(self) -> dict[str, Any]:
        """See `exported`."""
        self._check()
        settings = self._state.decoding.model_dump(mode="json", exclude_defaults=True)
        stops = dict.fromkeys((*self._state.decoding.stop, *filter(_cuts_nothing, self._format.stops(self._signature))))
        types = field_types(self._signature)
        constrained = self._state.readout.kind != "text"
        text = self._text()
        return {
            **text,
            "settings": {
                "max_tokens": self._state.decoding.max_tokens,
                "temperature": self._state.decoding.temperature,
                **settings,
                **({"stop": list(stops)} if stops else {}),
            },
            "inputs": {name: type_name(types[name]) for name in self._signature.input_fields},
            "outputs": {name: self._output(name, types[name]) for name in self._signature.output_fields},
            **({"grammar": self._format.grammar(self._signature)} if constrained else {}),
            **({"differs": told} if (told := list(self._differs("answer_begins" in text))) else {}),
        }

    def _check(self) -> None:
        for name, field in self._signature.input_fields.items():
            # By its name: what a file says of it is read as a model of its own.
            if getattr(field.annotation, "__name__", "") == dspy.History.__name__:
                raise self._refused(f"the input {name!r} is a conversation, of which the prompt has every turn")
        if self._state.nearest is not None:
            raise self._refused("its demos are chosen for each input, so its prompt is not one text", FIXED)
        if self._state.readout.kind == "channel":
            raise self._refused("it has a prompt for each label (`channel`), and none that is answered", FIXED)

    def _refused(self, message: str, search: str | None = None) -> InputError:
        hint = f"Compile it with `{search}`, or run it with Cuecard." if search else "Run it with Cuecard."
        return InputError(
            f"the predictor {self._name!r} cannot be exported: {message}", path=self._spec.path, hint=hint
        )

    def _text(self) -> dict[str, Any]:
        """The prompt, with holes for its inputs."""
        marks = {name: SENTINEL.format(name) for name in self._signature.input_fields}
        head = self._format.head(self._signature, self._demos, marks)
        first = next(iter(self._signature.output_fields))
        opened = self._format.lead(self._signature, first, {}) if self._format.opens else ""
        if not head.turns:
            return {"prompt": self._filled(head.text + opened, marks)}
        messages = [{"role": turn.role, "content": self._filled(turn.content, marks)} for turn in head.turns]
        return {"messages": messages, **({"answer_begins": opened} if opened else {})}

    def _filled(self, text: str, marks: Mapping[str, str]) -> str:
        for name, mark in marks.items():
            hole = self._hole.replace("NAME", name)
            if hole in text:
                raise InputError(
                    f"the prompt of {self._name!r} has the text {hole!r} in itself",
                    path=self._spec.path,
                    field="--hole",
                    expected="something that stands nowhere in the prompts, such as '<<NAME>>'",
                )
            text = text.replace(mark, hole)
        return text

    def _output(self, name: str, type_: Any) -> dict[str, Any]:
        after = self._format.lead(self._signature, name, {})
        until = self._format.ends(self._signature, name)
        return {
            **({"after": after} if after else {}),
            **({"until": list(until)} if until else {}),
            "schema": json_schema(type_),
        }

    def _differs(self, begun: bool) -> Iterator[str]:
        readout = self._state.readout
        if readout.kind == "choice":
            method = f", after {readout.calibration.method} calibration" if readout.calibration else ""
            yield f"Measured with the label chosen by its likelihood{method}; written out, it may be another one."
        if readout.kind == "span":
            yield "Measured with the answer chosen among the spans of the inputs; written out, it may be another one."
        if readout.votes:
            yield f"Measured with the one of {readout.votes} answers that most agree with."
        if begun:
            yield "Measured with the answer begun for the model (`answer_begins`), which not every chat server can do."
