"""The learned parameters of a predictor: everything that a search may change, and that a compiled program keeps.

They are instructions, demos (fixed, and nearest to the input), format, read-out (with its calibration) and decoding
settings. A `PredictorState` is one value for all of them; together with the signature it fixes what the model is asked
and how its answer is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from ..models.engine import Decoding

FormatChoice = str | dict[str, Any]
"""A format by name, or `{name: ..., option: value}`."""

ReadOutKind = Literal["text", "constrained", "choice", "channel", "span", "head"]
CHOOSING = ("choice", "channel")  # the read-outs under which fields with choices take the likeliest, in some way
CalibrationMethod = Literal["contextual", "batch", "bias"]


class Strict(BaseModel):
    """The base of every model in a spec: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


def short_form(key: str) -> Callable[[Any], Any]:
    """A validator that reads a plain value `x` as `{key: x}`."""
    return lambda value: value if isinstance(value, dict | list | BaseModel) else {key: value}


class Calibration(Strict):
    """What is subtracted from the labels' log-likelihoods before the best is chosen.

    `offsets`: output field -> label -> nats. Methods: `contextual`, the label's log-likelihood for a content-free
    input (Zhao et al. 2021); `batch`, its mean over unlabelled inputs (Zhou et al. 2024); `bias`, fitted on labelled
    examples.
    """

    method: CalibrationMethod
    offsets: dict[str, dict[str, float]]


class SpanWeights(Strict):
    """What a span is worth beside its log-likelihood, see `spans.py`.

    reward: nats per token of the span; contrast: the weight of the log-likelihood that it has when the other inputs are
    left open, 0 for none; beside: nats for standing right among the words of the other inputs, see `beside.py`; absent:
    nats for leaving out a field that may be null.
    """

    reward: float = Field(0.15, allow_inf_nan=False)
    contrast: float = Field(0.3, ge=0.0, allow_inf_nan=False)
    beside: float = Field(6.0, allow_inf_nan=False)
    absent: float = Field(0.0, allow_inf_nan=False)


class SpanChoice(SpanWeights):
    """How a span is chosen among those of the inputs.

    width: of the beam that the search for the likeliest spans keeps; longest: the most tokens of a span (none: as many
    as may be generated); fields: the weights of fields that have weights of their own.
    """

    width: int = Field(8, ge=1)
    longest: int | None = Field(None, ge=1)
    fields: dict[str, SpanWeights] = Field(default_factory=dict)

    def of(self, field: str) -> SpanWeights:
        """The weights that go for a field."""
        return self.fields.get(field, self)

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        whole: dict[str, Any] = handler(self)
        return {name: value for name, value in whole.items() if value or name not in ("absent", "fields")}


class HeadChoice(Strict):
    """A linear head for one output field: the file beside the program that holds it, and what must stand in it.

    weights: the file's name; sha256: of its bytes; layer: whose hidden states it reads, 1 for the first decoder layer;
    pooling: of the prompt's tokens. With the pooling `scores` it reads no layer but the labels' log-likelihoods: the
    calibration `matrix` of a `choice`. What was read from the file goes along in memory, see `heads.py`.
    """

    weights: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    labels: tuple[str, ...]
    layer: int | None = Field(None, ge=1)
    pooling: Literal["last", "mean", "scores"]
    _head: Any = PrivateAttr(None)

    @property
    def is_matrix(self) -> bool:
        """Whether it reads the labels' log-likelihoods, and no hidden states."""
        return self.pooling == "scores"


class ReadOut(Strict):
    """How the outputs are taken from the model.

    `text`: generated freely, then parsed; `constrained`: generated under the mask that the output types imply;
    `choice`: fields with choices take the most likely one, all other fields are generated; `channel`: likewise, but
    each choice is judged by how likely the inputs are after the demos that have it, see `channel.py`, of which no more
    than the first `per_label` are shown (none: all); `span`: text fields are copied word for word from the inputs named
    in `sources` (none: from any text input), the most likely span as `span` tells, all other fields are generated;
    `head`: the fields in `heads` are read off the model's hidden state, which is no prompt and goes with one model
    only, all other fields are generated. A `choice` or `channel` may have `heads` too, matrices that read the labels'
    log-likelihoods. With `votes`, so many answers are drawn where one is generated, and the one is taken that most
    agree with, see `votes.py`. In YAML also short: `readout: choice`.
    """

    kind: ReadOutKind = "text"
    calibration: Calibration | None = None
    sources: tuple[str, ...] = ()
    span: SpanChoice | None = None
    heads: dict[str, HeadChoice] = Field(default_factory=dict)
    votes: int | None = Field(None, ge=2, le=64)
    per_label: int | None = Field(None, ge=1)

    @property
    def chooses(self) -> bool:
        """Whether fields with choices take the one that is the most likely, in one way or another."""
        return self.kind in CHOOSING

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        whole = handler(self)
        given = {name: value for name, value in whole.items() if value or name == "kind"}
        return self.kind if len(given) == 1 else given


ReadOutField = Annotated[ReadOut, BeforeValidator(short_form("kind"), json_schema_input_type=ReadOutKind | ReadOut)]


class NearestDemos(Strict):
    """Demos chosen at call time: the `count` examples of `pool` whose inputs are nearest, see `neighbours.py`.

    They are shown after the fixed demos, the nearest last.
    """

    count: int = Field(ge=1)
    pool: tuple[dict[str, Any], ...]


class PredictorState(Strict):
    """One value for every learnable parameter of a predictor.

    `instructions` None keeps the signature's own. Each demo maps field names, inputs and outputs, to values.
    """

    instructions: str | None = None
    demos: tuple[dict[str, Any], ...] = ()
    nearest: NearestDemos | None = None
    format: FormatChoice = "chat"
    readout: ReadOutField = Field(default_factory=ReadOut)
    decoding: Decoding = Field(default_factory=Decoding)
