"""The predictor: a `dspy.Predict` that holds every parameter Cuecard learns.

Instruction and demos stay where DSPy keeps them (`signature.instructions`, `demos`), so that DSPy's optimizers can
set them; format, read-out with its calibration, and decoding settings stand beside them. `adopt` turns the plain
`dspy.Predict`s of any program into predictors.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from pydantic import ValidationError

from ..errors import InputError
from ..models.engine import Decoding
from ..models.lm import bridge_of
from .formats.base import Format
from .formats.registry import format_named
from .neighbours import Neighbours, same_inputs
from .prompt import Prompt
from .readout import Call, answer, first_prompts, head_prompt
from .state import FormatChoice, NearestDemos, PredictorState, ReadOut

DRAWN_ABOVE = 0.15  # DSPy draws several samples at 0.7 where the temperature is not above this


class Predictor(dspy.Predict):
    """One place in a program that calls the model.

    >>> predict = Predictor(cuecard.signature("ticket -> queue: Literal['billing', 'technical']"))
    >>> predict(ticket="I was charged twice").queue
    'billing'
    """

    signature: Any
    demos: list[Any]

    def __init__(self, signature: type[dspy.Signature], state: PredictorState | None = None) -> None:
        super().__init__(signature)
        self.stage = ""  # DSPy draws a random name here; nothing of ours uses it, and it would differ between runs
        self._format_choice: FormatChoice = "chat"
        self.state = state or PredictorState()

    @property
    def state(self) -> PredictorState:
        """All learnable parameters, as one value."""
        return PredictorState(
            instructions=self.signature.instructions,
            demos=tuple(dict(demo) for demo in self.demos),
            nearest=self.nearest,
            format=self._format_choice,
            readout=self.readout,
            decoding=self.decoding,
        )

    @state.setter
    def state(self, state: PredictorState) -> None:
        if state.instructions is not None:
            self.signature = self.signature.with_instructions(state.instructions)
        self.demos = [dict(demo) for demo in state.demos]
        self.nearest: NearestDemos | None = state.nearest
        # Built here and not at the first call: calls come from many threads at once, and each would build its own.
        self._neighbours = Neighbours(self.signature, state.nearest.pool) if state.nearest else None
        self._format_choice = state.format
        self.format: Format = format_named(state.format)
        self.readout: ReadOut = state.readout
        self.decoding: Decoding = state.decoding

    def forward(self, **kwargs: Any) -> dspy.Prediction:
        """Call the model. Raises `ReadError` when its text can't be read, `RunError` when there is no answer."""
        asked = {**self.config, **(kwargs.get("config") or {})}
        lm, config, signature, demos, inputs = self._forward_preprocess(**kwargs)
        if asked.get("temperature") is None and self.decoding.temperature > DRAWN_ABOVE:
            config.pop("temperature", None)  # DSPy's own, for several samples: it does not know the learned one
        demos = self.shown(demos, inputs)
        bridge = bridge_of(lm)
        if bridge is None:
            completions = self._elsewhere(lm, config, signature, demos, inputs)
        else:
            state = self.state.model_copy(update={"decoding": self._decoding(config)})
            call = Call(bridge.gatherer, self.format, signature, demos, inputs, state, predictor=id(self))
            completions = answer(call)
        return self._forward_postprocess(completions, signature, **inputs)

    async def aforward(self, **kwargs: Any) -> dspy.Prediction:
        """As `forward`, in a thread: calls that are awaited together are answered together."""
        return await asyncio.to_thread(self.forward, **kwargs)

    def prompt(self, lm: Any = None, **inputs: Any) -> Prompt:
        """The exact prompt that these inputs would send first, without calling the model.

        `lm` is the language model to render for; default: the predictor's own or DSPy's configured one.
        """
        return self.prompts(lm, **inputs)[0]

    def prompts(self, lm: Any = None, **inputs: Any) -> list[Prompt]:
        """The exact prompts that these inputs would send first, see `prompt`: one, or that of each label, in order,
        where the read-out is `channel`.
        """
        lm = lm or self.lm or dspy.settings.lm
        bridge = bridge_of(lm)
        if bridge is None:
            raise InputError("a prompt's tokens can only be shown for a Cuecard target", hint="Pass lm=target.lm.")
        demos = self.shown(self.demos, inputs)
        return first_prompts(Call(bridge.gatherer, self.format, self.signature, demos, inputs, self.state))

    def head_prompt(self, lm: Any, field: str, inputs: Mapping[str, Any]) -> Prompt:
        """The prompt that a head for an output field reads. `lm` is one of a Cuecard target."""
        bridge = bridge_of(lm)
        if bridge is None:
            raise InputError("a head needs a Cuecard target", hint="Pass lm=target.lm.")
        demos = self.shown(self.demos, inputs)
        return head_prompt(Call(bridge.gatherer, self.format, self.signature, demos, inputs, self.state), field)

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """DSPy's saved state, with ours under `cuecard`.

        An LM over a model held in process can't be saved, so it is left out.
        """
        saved = self
        if bridge_of(self.lm) is not None:
            saved = copy.copy(self)
            saved.lm = None
        state: dict[str, Any] = super(Predictor, saved).dump_state(json_mode)
        ours = self.state.model_dump(mode="json", include={"nearest", "format", "readout", "decoding"})
        return {**state, "cuecard": ours}

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> Predictor:
        """Read what `dump_state` wrote."""
        rest = dict(state)
        ours = rest.pop("cuecard", {})
        super().load_state(rest, allow_unsafe_lm_state=allow_unsafe_lm_state)
        self.state = PredictorState.model_validate({**self.state.model_dump(), **ours})
        return self

    def shown(self, demos: Sequence[Any], inputs: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """The demos that a call shows: the fixed ones, and those nearest to its inputs.

        Under the read-out `channel`, which judges the inputs by those of the demos, as among the nearest, a demo with
        exactly these inputs is left out: an example never answers itself.
        """
        shown = tuple(map(dict, demos))
        if self.readout.kind == "channel":
            fields = tuple(self.signature.input_fields)
            shown = tuple(demo for demo in shown if not same_inputs(fields, demo, inputs))
        if self.nearest is None or self._neighbours is None:
            return shown
        return shown + tuple(map(dict, self._neighbours.nearest(inputs, self.nearest.count)))

    def _decoding(self, config: dict[str, Any]) -> Decoding:
        """The decoding settings, with what a call's `config` overrides."""
        return _settings(self.decoding.model_dump(), config)

    def _elsewhere(
        self, lm: Any, config: dict[str, Any], signature: type[dspy.Signature], demos: Any, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The same prompt on an LM that is not ours: chat messages, free text."""
        if self.readout.kind != "text":
            raise InputError(
                f"the read-out `{self.readout.kind}` needs a Cuecard target",
                hint="Set the read-out to `text`, or use cuecard.target(...) as the language model.",
            )
        changed = self.decoding.model_dump(exclude_defaults=True)
        settings = {**changed, "max_tokens": self.decoding.max_tokens, **config}
        completions: list[dict[str, Any]] = self.format(lm, settings, signature, demos, inputs)
        return completions


def adopt(program: dspy.Module, state: PredictorState | None = None) -> dspy.Module:
    """A copy of `program` in which every plain `dspy.Predict` is a `Predictor` with the same signature and demos.

    `state` gives format, read-out and decoding for the adopted ones. Subclasses of `dspy.Predict` are left as they are.
    """
    adopted: dspy.Module = _Adoption(state or PredictorState()).convert(program.deepcopy())
    return adopted


class _Adoption:
    """One walk through a program. `_done` maps what was met to what became of it, so that circles end."""

    def __init__(self, base: PredictorState) -> None:
        self._base = base
        self._done: dict[int, Any] = {}

    def convert(self, value: Any) -> Any:
        """`value` with every plain `dspy.Predict` in it made a `Predictor`."""
        if id(value) in self._done:
            return self._done[id(value)]
        if type(value) is dspy.Predict:
            self._done[id(value)] = predictor = self._predictor(value)
            return predictor
        if isinstance(value, dspy.Module) and not isinstance(value, Predictor):
            self._done[id(value)] = value
            for name, part in list(vars(value).items()):
                value.__dict__[name] = self.convert(part)
        elif isinstance(value, list | dict):
            self._done[id(value)] = made = copy.copy(value)
            for key, part in enumerate(value) if isinstance(value, list) else list(value.items()):
                made[key] = self.convert(part)
            return made
        elif type(value) is tuple:
            return tuple(self.convert(part) for part in value)
        return value

    def _predictor(self, plain: dspy.Predict) -> Predictor:
        base = self._base
        decoding = _settings(base.decoding.model_dump(exclude_unset=True), plain.config)
        demos = tuple(dict(demo) for demo in plain.demos)
        mine = base.model_copy(update={"instructions": None, "demos": demos, "decoding": decoding})
        predictor = Predictor(plain.signature, mine)
        predictor.lm = plain.lm
        predictor.config = {name: given for name, given in plain.config.items() if name not in Decoding.model_fields}
        return predictor


def _settings(base: Mapping[str, Any], given: Mapping[str, Any]) -> Decoding:
    """The decoding settings `base` with those of DSPy's settings `given` that are set. Raises `InputError`."""
    known = {name: value for name, value in given.items() if name in Decoding.model_fields and value is not None}
    if isinstance(known.get("stop"), str):
        known["stop"] = (known["stop"],)
    try:
        return Decoding.model_validate({**base, **known})
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(
            f"the decoding setting {wrong['loc'][0]!r} is {wrong['input']!r}",
            expected=wrong["msg"].removeprefix("Input should be "),
        ) from None
