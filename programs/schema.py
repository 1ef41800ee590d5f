"""The YAML spec as pydantic models: which keys there are, what they hold, and their short forms.

Only what one key can tell is checked here; what keys say about each other is checked by `plan.py` and `checks.py`. A
spec writes itself back as its user wrote it (`Spec.to_data`): the same keys, the same short forms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ..models.address import is_address
from ..models.engine import Decoding
from .problems import Keys
from .ranges import Count, NotNegative, Number, Positive, PositiveNumber, PositiveShare, Share, Span, Whole
from .schema_tests import AssertSpec as AssertSpec
from .schema_tests import Metrics
from .schema_tests import MetricSpec as MetricSpec
from .schema_tests import TestSpec as TestSpec
from .state import FormatChoice, NearestDemos, ReadOutField, ReadOutKind, Strict, short_form
from .yaml_source import Source

MAIN = "main"
"""The name of the only node of a program that is written without `nodes:`."""

SignatureSource = str | dict[str, Any]


class Learned(Strict):
    """What a compile fills in for a predictor, besides its instructions. All of it can also be written by hand."""

    format: FormatChoice | None = None
    readout: ReadOutField | None = None
    decoding: Decoding | None = None
    demos: tuple[dict[str, Any], ...] | None = None
    nearest: NearestDemos | None = None


class NodeSpec(Learned):
    """One step: a module, its signature, and where its inputs come from (None: inputs of the program by name)."""

    module: str = "predict"
    signature: SignatureSource
    fields: dict[str, str] = Field(default_factory=dict, description="Field -> its description.")
    instructions: str | None = None
    inputs: dict[str, Any] | None = Field(
        None, description="Field -> ${inputs.NAME}, ${NODE.FIELD}, or text with them."
    )


class PredictorSpec(Learned):
    """One predictor by its name in the program: its learned parameters, and a Python program's signature."""

    signature: SignatureSource | None = None
    instructions: str | None = None


class InputSpec(Strict):
    """One input of the program. Short form: its type alone."""

    type: SignatureSource = "str"
    description: str | None = None

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        return self.type if self.description is None and isinstance(self.type, str) else handler(self)


class ModelSpec(Strict):
    """The target. `id` is a name, a path or a hub id; `options` are decoding defaults for every node.

    With `server`, an address, the target is the model that is served there, `id` its name on the server (needed where
    it serves several), and the other keys are what `server_target` takes.
    """

    id: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    weights: Literal["full", "int8", "int4"] | None = None
    device: str | None = None
    options: Decoding | None = None
    server: str | None = Field(None, description="http://HOST:PORT of a model server.")
    dialect: Literal["auto", "vllm", "sglang", "llamacpp", "ollama", "openai"] | None = None
    tokenizer: str | None = Field(None, description="A folder or hub id of the served model's tokenizer.")
    api_key_env: str | None = Field(None, description="The NAME of the environment variable that holds the key.")
    concurrency: Positive | None = None
    timeout: PositiveNumber | None = None
    tries: Positive | None = None
    context_window: Annotated[int, Field(strict=True, ge=2)] | None = None
    grammars: Literal["auto", "llguidance", "gbnf", "schema", "none"] | None = None
    unseeded: Annotated[bool, Field(strict=True)] | None = None

    @property
    def server_options(self) -> dict[str, Any]:
        """What of `SERVER_KEYS` is given."""
        found = {key: getattr(self, key) for key in SERVER_KEYS}
        return {key: value for key, value in found.items() if value is not None}

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        data = handler(self)
        given = {key for key, value in data.items() if value is not None}
        return data[next(iter(given))] if given in ({"id"}, {"server"}) else data


LOCAL_KEYS = ("dtype", "weights", "device")
SERVER_KEYS = (
    "dialect", "tokenizer", "api_key_env", "concurrency", "timeout", "tries", "context_window", "grammars", "unseeded",
)  # fmt: skip


def _model_form(value: Any) -> Any:
    """The short forms of `model`: an address, or an id."""
    return {"server": value} if isinstance(value, str) and is_address(value) else short_form("id")(value)


class DataSpec(Strict):
    """Files of examples, relative to the spec's folder. With `train` alone, dev and test are split off it."""

    train: str | None = None
    dev: str | None = None
    test: str | None = None


class BudgetSpec(Strict):
    """Where a compile stops, at whichever limit comes first."""

    metric_calls: Positive | None = Field(None, description="Runs of the program on an example.")
    model_calls: Positive | None = Field(None, description="What the model is asked, the same thing once.")
    tokens: Positive | None = Field(None, description="Prompt tokens, shared or not, and generated tokens.")
    seconds: PositiveNumber | None = None


class StopSpec(Strict):
    """When a compile stops before its budget is spent."""

    score: Number | None = Field(None, description="The best program so far has this score on dev.")
    trials_without_gain: Positive | None = Field(None, description="So many trials in a row found nothing better.")


class ChooseSpec(Strict):
    """Which of the programs that a search has measured is taken: the best one, unless one of these says otherwise."""

    at_least: Number | None = Field(None, description="The shortest prompts with this score on dev.")
    at_most_tokens: PositiveNumber | None = Field(None, description="The best with at most so many prompt tokens.")

    @model_validator(mode="after")
    def _one(self) -> ChooseSpec:
        if self.at_least is not None and self.at_most_tokens is not None:
            raise ValueError("found both at_least and at_most_tokens, where one of them is expected")
        return self


PROPOSALS = 4


class InstructionSpec(Strict):
    """Which instructions are tried for each predictor, at most so many. Short form: `most` alone.

    texts: other wordings of the user's, for a program of one predictor, or by predictor; principles: names of the
    catalogue, `auto` for all that fit; proposals: how many a language model is asked for, `proposer`, or the target
    (default: none, and four where there is a proposer).
    """

    most: Count = 8
    texts: tuple[str, ...] | dict[str, tuple[str, ...]] = ()
    principles: Literal["auto"] | tuple[str, ...] = "auto"
    proposals: Count | None = None
    proposer: Annotated[ModelSpec, BeforeValidator(_model_form, json_schema_input_type=str | ModelSpec)] | None = None

    @property
    def asked(self) -> int:
        """How many instructions a language model is asked for."""
        return self.proposals if self.proposals is not None else PROPOSALS if self.proposer is not None else 0

    def texts_of(self, predictor: str) -> tuple[str, ...]:
        """The other wordings for a predictor."""
        return tuple(self.texts.get(predictor, ())) if isinstance(self.texts, dict) else self.texts

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        return self.most if self.model_fields_set <= {"most"} else handler(self)


class SearchSpec(Strict):
    """What is searched. `auto` leaves the choice to the optimizer; a decoding setting without a range stays fixed."""

    demos: Span[Count] = (0, 8)
    nearest: Span[Count] = (0, 8)
    per_label: Span[Count] = (4, 64)
    refit: bool = True
    recalibrate: bool = True
    instructions: Annotated[
        InstructionSpec, BeforeValidator(short_form("most"), json_schema_input_type=int | InstructionSpec)
    ] = Field(default_factory=InstructionSpec)
    formats: Literal["auto"] | tuple[str, ...] = "auto"
    readouts: Literal["auto"] | tuple[ReadOutKind, ...] = "auto"
    votes: Annotated[int, Field(strict=True, ge=2, le=64)] | None = None
    calibrations: Literal["auto"] | tuple[Literal["none", "contextual", "batch", "bias", "matrix"], ...] = "auto"
    max_tokens: Span[Positive] | None = None
    temperature: Span[NotNegative] | None = None
    top_p: Span[PositiveShare] | None = None
    top_k: Span[Count] | None = None
    min_p: Span[Share] | None = None
    frequency_penalty: Span[Number] | None = None
    presence_penalty: Span[Number] | None = None
    repetition_penalty: Span[PositiveNumber] | None = None

    @property
    def decoding(self) -> dict[str, tuple[float, float]]:
        """The ranges of the decoding settings that are searched."""
        ranges = {name: getattr(self, name) for name in type(self).model_fields if name in Decoding.model_fields}
        return {name: span for name, span in ranges.items() if span is not None}


class OptimizeSpec(Strict):
    """How the program is compiled. `options` go to the optimizer as they are; `optimizer: {name: ..., option: value}`
    is the same as both.
    """

    optimizer: str = "joint"
    budget: BudgetSpec = Field(default_factory=BudgetSpec)
    stop: StopSpec = Field(default_factory=StopSpec)
    choose: ChooseSpec = Field(default_factory=ChooseSpec)
    seed: Whole = 0
    search: SearchSpec = Field(default_factory=SearchSpec)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """The form `optimizer: {name: ..., option: value}`."""
        given = value.get("optimizer") if isinstance(value, dict) else None
        if not isinstance(given, dict) or not isinstance(given.get("name"), str) or value.get("options"):
            return value
        options = {key: option for key, option in given.items() if key != "name"}
        return {**value, "optimizer": given["name"], **({"options": options} if options else {})}


class Score(Strict):
    """A metric's mean over `n` examples, with its confidence interval."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int


class Target(Strict):
    """The model, engine and device that a program was compiled for."""

    model_config = ConfigDict(frozen=True, extra="allow")

    identity: str
    name: str | None = None
    device: str | None = None
    dtype: str | None = None


class PromptOnly(Strict):
    """The best candidate that is prompts alone, which another engine can run: learned parameters and dev score."""

    predictors: dict[str, PredictorSpec]
    scores: dict[str, Score] = Field(default_factory=dict)


class CompiledSpec(Strict):
    """Where a compiled program comes from, and the evidence for it. Keys that are not named here are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    target: Target
    data: dict[str, str] = Field(default_factory=dict, description="Split -> SHA-256 of its rows.")
    seed: int = 0
    optimizer: str | None = None
    spent: dict[str, float] = Field(default_factory=dict, description="What of the budget was used.")
    kept: Literal["candidate", "baseline"] | None = None
    baseline: dict[str, Score] = Field(default_factory=dict, description="Split -> score of the program as written.")
    scores: dict[str, Score] = Field(default_factory=dict, description="Split -> score of the compiled program.")
    readouts: dict[str, Any] = Field(default_factory=dict)
    prompt_only: PromptOnly | None = Field(None, description="The best candidate whose read-outs need no weights.")
    versions: dict[str, str] = Field(default_factory=dict)


class Spec(Learned):
    """A whole spec: a program as `nodes`, one `signature` or (compiled from Python) `predictors`, and its uses."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$", description="Default: the file's name.")] = "program"
    description: str | None = None
    model: Annotated[ModelSpec, BeforeValidator(_model_form, json_schema_input_type=str | ModelSpec)] | None = None
    inputs: (
        dict[str, Annotated[InputSpec, BeforeValidator(short_form("type"), json_schema_input_type=str | InputSpec)]]
        | None
    ) = None
    module: str = "predict"
    signature: SignatureSource | None = None
    fields: dict[str, str] = Field(default_factory=dict, description="Field -> its description.")
    instructions: str | None = None
    nodes: dict[str, NodeSpec] | None = None
    predictors: dict[str, PredictorSpec] | None = None
    outputs: dict[str, str] | None = Field(None, description="Output -> ${NODE.FIELD}.")
    data: Annotated[DataSpec, BeforeValidator(short_form("train"), json_schema_input_type=str | DataSpec)] | None = None
    metric: Metrics | None = None
    optimize: OptimizeSpec = Field(default_factory=OptimizeSpec)
    tests: tuple[TestSpec, ...] = ()
    compiled: CompiledSpec | None = None

    _source: Source | None = PrivateAttr(None)
    _warnings: tuple[str, ...] = PrivateAttr(())
    _allow_outside: bool = PrivateAttr(False)

    @property
    def path(self) -> str | None:
        """The file that the spec was read from."""
        return self._source.path if self._source else None

    @property
    def folder(self) -> Path:
        """The folder that paths in the spec start from."""
        return Path(self.path).parent if self.path else Path()

    @property
    def allow_outside(self) -> bool:
        """Whether its paths may leave its folder."""
        return self._allow_outside

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not wrong but probably not meant."""
        return self._warnings

    def line(self, *keys: str | int) -> int | None:
        """The line of the spec's file where this key path stands (or its nearest parent)."""
        return self._source.line(keys) if self._source else None

    def keys_of(self, node: str, *keys: str | int) -> Keys:
        """The path of a node's key in the file; the keys of a program without `nodes:` stand at the top."""
        return keys if self.nodes is None else ("nodes", node, *keys)

    @property
    def steps(self) -> dict[str, NodeSpec]:
        """The nodes by name, in the file's order; a program written without `nodes:` has one, called `main`."""
        if self.nodes is not None or self.signature is None:
            return dict(self.nodes or {})
        given = {key: getattr(self, key) for key in NodeSpec.model_fields if key in self.model_fields_set}
        return {MAIN: NodeSpec.model_construct(**{**given, "inputs": None})}

    def to_data(self) -> dict[str, Any]:
        """Plain data for `dump_yaml`: the keys that were given, in the order of the documentation."""
        data = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for block in ("nodes", "predictors"):
            if data.get(block):
                data[block] = {name: _arranged(node, _NODE_ORDER) for name, node in data[block].items()}
        return _arranged(data, _ORDER)


_NODE_ORDER = (
    "module", "signature", "fields", "instructions", "inputs", "format", "readout", "decoding", "demos", "nearest",
)  # fmt: skip
_ORDER = ("name", "description", "model", "inputs", *[key for key in _NODE_ORDER if key != "inputs"])


def _arranged(data: dict[str, Any], first: tuple[str, ...]) -> dict[str, Any]:
    data = {key: value for key, value in data.items() if key != "nearest" or value is not None}
    return {**{key: data[key] for key in first if key in data}, **{k: v for k, v in data.items() if k not in first}}
