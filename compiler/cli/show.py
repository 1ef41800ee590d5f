"""`cuecard show`: the exact prompt of every predictor, as the model gets it, and how its answer is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError
from .common import WITH_INPUTS, AllowOutside, ModelName, PredictorName, ProgramWord, own_options
from .progress import working
from .screen import columns, console, counted, note, say, score_text
from .summary import decoding_text, has_heads, heads_text, readout_text

if TYPE_CHECKING:
    from ...programs.predictor import Predictor
    from ...programs.prompt import Prompt
    from ...programs.schema import ModelSpec, Spec
    from .weightless import TokenizerEngine

SETTINGS = WITH_INPUTS
EXAMPLE = """\
\b
Example:
  $ cuecard show ticket_triage.compiled.yaml --ticket "I was charged twice"
  route: 87 tokens: instruction 10, demos 41, inputs 5, format 31
    format    turns
    demos     2
    read-out  choice by likelihood with bias calibration
    queue     billing -0.41, technical +0.22, account +0.19 nats
    decoding  max_tokens 16, greedy
  ---------- prompt ----------
  <|im_start|>system
  Decide which queue the support ticket belongs to.<|im_end|>
  ...
"""

RULE = "-" * 10
ANY_WINDOW = 2**30  # tokens; no prompt is longer
Tokens = Annotated[bool, typer.Option("--tokens", help="Print the prompt's token ids too.")]


def show(
    context: typer.Context,
    program: ProgramWord,
    predictor: PredictorName = None,
    model: ModelName = None,
    tokens: Tokens = False,
    allow_outside: AllowOutside = False,
) -> int:
    """Show each predictor's whole prompt, its tokens counted, with read-out, calibration and decoding settings.

    The inputs are those given as --NAME VALUE, or the first example of the spec's data; what neither gives, such as
    what another node writes, stands as {NAME}. The model's weights are not read, and a server is only asked if its
    address is given with --model.
    """
    from ...programs.graph import build
    from ...programs.learned import narrowed, python_predictors
    from ...programs.spec import load_spec
    from .filling import fill, fill_graph, first_example
    from .flags import read_flags, read_words

    path, flags = read_words([program, *context.args])
    spec = load_spec(path, allow_outside=allow_outside)
    if spec.steps:
        graph = build(spec)
        values = read_flags(flags, graph.input_types, own_options(context))
        values, where = (values, "the command line") if values else first_example(spec, graph)
        asked = fill_graph(graph, values)
        predictors = dict(graph.named_predictors())
    else:
        predictors = python_predictors(spec)
        values = read_flags(flags, _all_inputs(predictors), own_options(context))
        where = "the command line"
        asked = {name: fill(part.signature, values) for name, part in predictors.items()}
    wanted = narrowed(predictors, predictor)
    engine = _engine(spec, model)
    say(f"{spec.name} on {engine.name}, inputs from {where if values else 'nowhere, so they stand as {NAME}'}")
    if has_heads(part.state for part in predictors.values()):
        what = heads_text(part.state for part in predictors.values())
        say(f"It reads {what}, which is no prompt and goes with one model alone{_alone(spec)}.")
    for name, part in wanted.items():
        say()
        _show(name, part, asked[name], engine, tokens=tokens)
    return 0


def _all_inputs(predictors: Mapping[str, Predictor]) -> dict[str, Any]:
    from ...signatures import field_types

    signatures = [part.signature for part in predictors.values()]
    return {name: field_types(each)[name] for each in signatures for name in each.input_fields}


def _engine(spec: Spec, model: str | None) -> TokenizerEngine:
    from ...models.loading import find
    from ..from_spec import spec_model, spec_server
    from .weightless import tokenizer_engine

    with working("opening the tokenizer") as progress:
        served = spec_server(spec, model)
        if served is not None:
            return _served(spec, served, model)
        return tokenizer_engine(find(model or spec_model(spec), progress=progress))


def _served(spec: Spec, served: ModelSpec, address: str | None) -> TokenizerEngine:
    """The tokenizer of a served model: the server's at `address`, else the one that the spec names."""
    from ...models.address import shown
    from ...models.server.tokenizer import open_tokenizer
    from ..from_spec import beside, spec_target
    from .weightless import TokenizerEngine

    if address is not None:
        engine: Any = spec_target(spec, address).engine
        tokenizer = engine.tokenizer
        return TokenizerEngine(engine.name, tokenizer, engine.context_window, start=tokenizer.text(tokenizer.start()))
    if served.tokenizer is None:
        raise InputError(
            "the prompts cannot be shown without the served model's tokenizer",
            path=spec.path,
            line=spec.line("model"),
            field="model.tokenizer",
            expected="a folder or hub id",
            hint="Or let the server be asked: --model http://HOST:PORT.",
        )
    if served.context_window is None:
        note("note: the server was not asked for its context window; all demos are shown")
    local = open_tokenizer(beside(spec, served.tokenizer))
    window = served.context_window or ANY_WINDOW
    return TokenizerEngine(served.id or shown(str(served.server)), local, window, start=local.text(local.start()))


def _show(name: str, predictor: Predictor, inputs: Mapping[str, Any], engine: TokenizerEngine, *, tokens: bool) -> None:
    from ...models.lm import language_model
    from ...signatures import choices

    lm = language_model(engine)
    prompts = predictor.prompts(lm=lm, **inputs)
    place = next((place for place, each in enumerate(prompts) if each.demos), 0)
    prompt, state = prompts[place], predictor.state
    counts = _counts(predictor, prompt, inputs, engine)
    parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    say(f"{name}: {counted(len(prompt.ids), 'token')}: {parts}", "bold")
    format_ = state.format if isinstance(state.format, str) else str(dict(state.format))
    dropped = f", {prompt.dropped} more do not fit" if prompt.dropped else ""
    lines = [("format", format_), ("demos", f"{prompt.demos}{dropped}"), ("read-out", readout_text(state))]
    if len(prompts) > 1:
        labels = choices(next(iter(predictor.signature.output_fields.values())).annotation) or ()
        each = ", ".join(f"{label} ({own.demos})" for label, own in zip(labels, prompts, strict=True))
        lines.append(("prompts", f"one for each label, with its demos: {each}; this is that of {labels[place]}"))
    calibration = state.readout.calibration
    for field, offsets in (calibration.offsets if calibration else {}).items():
        lines.append((field, ", ".join(f"{label} {offset:+.2f}" for label, offset in offsets.items()) + " nats"))
    for field, weights in (state.readout.span.fields if state.readout.span else {}).items():
        own = f"reward {weights.reward:g}, contrast {weights.contrast:g}, beside {weights.beside:g}"
        lines.append((field, f"{own}, absent {weights.absent:+g} nats"))
    for field, head in state.readout.heads.items():
        pooled = {"last": "the last token", "mean": "the mean of the prompt's tokens"}.get(head.pooling, "")
        read = "their log-likelihoods" if head.is_matrix else f"layer {head.layer}, {pooled}"
        lines.append((field, f"{', '.join(head.labels)}, from {read}, by {head.weights}"))
    settings = decoding_text(state)
    settings = settings or f"max_tokens {state.decoding.max_tokens}"
    lines.append(("decoding", settings if state.decoding.temperature else f"{settings}, greedy"))
    for line in columns(lines, indent=2):
        say(line)
    say(f"{RULE} prompt {RULE}", "dim")
    _print_prompt(engine.start + prompt.text, engine.special)
    if tokens:
        say(f"{RULE} tokens {RULE}", "dim")
        say(" ".join(map(str, prompt.ids)))


def _alone(spec: Spec) -> str:
    """What a compiled program says of its best candidate without heads."""
    alone = spec.compiled.prompt_only if spec.compiled else None
    score = alone.scores.get("dev") if alone else None
    return f"; of prompts alone, the best has {score_text(score)} on dev" if score else ""


def _counts(predictor: Predictor, prompt: Prompt, inputs: Mapping[str, Any], engine: TokenizerEngine) -> dict[str, int]:
    """The tokens of the prompt's parts. `format` is the rest: scaffolding, field descriptions, chat template."""
    from ...models.lm import language_model
    from ...programs.formats.fields import instruction, show

    encode = engine.tokenizer.encode
    bare = predictor.deepcopy()
    bare.demos, bare.nearest = [], None
    without = len(bare.prompt(lm=language_model(engine), **inputs).ids)
    values = [show(predictor.signature, name, value) for name, value in inputs.items() if value is not None]
    counts = {
        "instruction": len(encode(instruction(predictor.signature))),
        "demos": len(prompt.ids) - without,
        "inputs": sum(len(encode(value)) for value in values),
    }
    return {**counts, "format": len(prompt.ids) - sum(counts.values())}


def _print_prompt(text: str, special: tuple[str, ...]) -> None:
    """The prompt as it is, its special tokens in colour on a terminal."""
    from rich.text import Text

    shown = Text(text)
    for token in special:
        shown.highlight_words([token], "cyan")
    console().print(shown)
