"""Stand-ins for a model: a word tokenizer, an engine that learns from demos by word overlap, and a task for it.

`FakeEngine` follows the engine protocol to the letter (batches, failures, ledger, stop strings); what it says comes
from two functions. `WordLearner` is such a pair: it answers with the label whose demos share the most words with the
input, and says plain labels only, so that formats, demos and read-outs make a difference that a search can find.
`FakeEvaluator` needs no engine at all: a function of candidate and row is its score. `compile_tickets` is a whole
compile on a `WordLearner`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
import numpy as np

import cuecard
from cuecard.compiler.examples import Example, Examples
from cuecard.errors import InputError
from cuecard.metrics import Measurement, Metric
from cuecard.models.engine import (
    Decoding,
    Description,
    Failure,
    GenerateRequest,
    Generation,
    Ledger,
    Sample,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
    Turn,
)
from cuecard.models.hidden import FeatureRequest, Features
from cuecard.models.spans import by_scoring
from cuecard.models.target import Target
from cuecard.optimizers.base import Candidate, FieldFeatures, Outcome
from cuecard.programs.readout import Choice

PIECE = re.compile(r"<\|\w+\|>| ?\w+| ?[^\w\s]|\s")
SPECIAL = re.compile(r"<\|\w+\|>")
START = "<|start|>"

Answer = Callable[[str, Decoding, int], str]
Likelihood = Callable[[str, str], float]
Hidden = Callable[[str, int], tuple[Sequence[float], Sequence[float]]]


class WordTokenizer:
    """A word, with the space before it, is a token; its id is a hash, so that it is the same in every process."""

    def __init__(self, *, chat_template: bool = True) -> None:
        self._pieces: dict[int, str] = {}
        self._chat_template = chat_template

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(self._id, PIECE.findall(text)))

    def decode(self, ids: Sequence[int]) -> str:
        return SPECIAL.sub("", self.text(ids))

    def text(self, ids: Sequence[int]) -> str:
        """The text with its special tokens."""
        return "".join(self._pieces[token] for token in ids)

    def chat(self, turns: Sequence[Turn], prefill: str = "") -> str:
        if not self._chat_template:
            raise InputError("model 'fake' has no chat template")
        said = "".join(f"<|{turn.role}|>\n{turn.content}<|end|>\n" for turn in turns)
        return f"{said}<|assistant|>\n{prefill}"

    def start(self) -> tuple[int, ...]:
        return (self._id(START),)

    def _id(self, piece: str) -> int:
        token = int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=6).digest(), "big")
        self._pieces[token] = piece
        return token


def says(text: str) -> Answer:
    """An answer that is always `text`."""
    return lambda prompt, decoding, sample: text


def indifferent(prompt: str, continuation: str) -> float:
    """Every continuation is as likely as any other."""
    return -1.0


def word_counts(prompt: str, layer: int) -> tuple[Sequence[float], Sequence[float]]:
    """Hidden states that a head can learn from: how often each keyword of the tickets stands in the prompt, as the mean
    over its tokens, in every layer but the first, where there is noise; the last token tells nothing.
    """
    noise = random.Random(f"{layer} {prompt}")
    words = re.findall(r"\w+", prompt)
    keywords = [word for known in KEYWORDS.values() for word in known]
    drawn = [noise.gauss(0.0, 1.0) for _ in keywords]
    return drawn, drawn if layer == 1 else [float(words.count(word)) for word in keywords]


class FakeEngine:
    """An engine whose answers come from functions of the prompt's text.

    answer: (prompt, settings, sample) -> text (default "yes"), which is cut at the first stop string and at
    `max_tokens`; likelihood: (prompt, continuation) -> nats; failure: request -> why it fails, or None; before: called before every batch (it
    may raise); layers: of how many the hidden states can be read, none by default; hidden: (prompt, layer) -> the
    numbers at its last token and their mean over its tokens. `batches` keeps every batch.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        likelihood: Likelihood = indifferent,
        *,
        context_window: int = 4096,
        identity: str = "fake",
        failure: Callable[[Any], str | None] = lambda request: None,
        before: Callable[[Sequence[Any]], None] = lambda batch: None,
        chat_template: bool = True,
        layers: int = 0,
        hidden: Hidden | None = None,
    ) -> None:
        self.layers, self.hidden = layers, hidden or word_counts
        self.identity, self.name, self.context_window = identity, "fake", context_window
        self.tokenizer = WordTokenizer(chat_template=chat_template)
        self.ledger = Ledger()
        self.answer, self.likelihood = answer or says("yes"), likelihood
        self.failure, self.before = failure, before
        self.batches: list[list[Any]] = []

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        self._begin(requests)
        return [self._refused(r, r.decoding.max_tokens) or self._generation(r) for r in requests]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        self._begin(requests)
        return [self._refused(r, max(map(len, r.continuations))) or self._scores(r) for r in requests]

    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        return by_scoring(self.score, requests)

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features | Failure]:
        self._begin(requests)
        return [self._refused(request, 0) or self._features(request) for request in requests]

    def _features(self, request: FeatureRequest) -> Features:
        prompt = self.tokenizer.text(request.prompt)
        last, mean = zip(*(self.hidden(prompt, layer) for layer in request.layers), strict=True)
        return Features(np.array(last, dtype=np.float32), np.array(mean, dtype=np.float32))

    def prompts(self) -> list[str]:
        """The prompts of all requests so far, special tokens included."""
        return [self.tokenizer.text(request.prompt) for batch in self.batches for request in batch]

    def _begin(self, requests: Sequence[Any]) -> None:
        self.before(requests)
        self.batches.append(list(requests))
        self.ledger.calls += len(requests)
        self.ledger.prompt_tokens += sum(len(request.prompt) for request in requests)
        self.ledger.forward_passes += 1
        self.ledger.seconds += 0.25

    def _refused(self, request: Any, output: int) -> Failure | None:
        if len(request.prompt) + output > self.context_window:
            return Failure("prompt and output do not fit into the context window")
        why = self.failure(request)
        return None if why is None else Failure(why)

    def _generation(self, request: GenerateRequest) -> Generation:
        prompt = self.tokenizer.text(request.prompt)
        settings = request.decoding
        return Generation(tuple(self._sample(self.answer(prompt, settings, n), settings) for n in range(settings.n)))

    def _sample(self, text: str, settings: Decoding) -> Sample:
        cuts = [place for stop in settings.stop if (place := text.find(stop)) >= 0]
        text = text[: min(cuts)] if cuts else text
        tokens = self.tokenizer.encode(text)
        kept = tokens[: settings.max_tokens]
        self.ledger.generated_tokens += len(kept)
        finish = "length" if len(kept) < len(tokens) else "stop"
        return Sample(self.tokenizer.decode(kept), kept, (-0.5,) * len(kept), finish)

    def _scores(self, request: ScoreRequest) -> Scores:
        prompt = self.tokenizer.text(request.prompt)
        totals = [self.likelihood(prompt, self.tokenizer.text(tokens)) for tokens in request.continuations]
        pairs = zip(totals, request.continuations, strict=True)
        return Scores(tuple((total, *(0.0,) * (len(tokens) - 1)) for total, tokens in pairs))


def fake_target(engine: FakeEngine) -> Target:
    """The target over a fake engine."""
    return Target(engine, Description("fake", engine.identity, "cpu", "float32", 0, engine.context_window))


# ---- a model that learns from demos, and a task for it

KEYWORDS = {
    "billing": ("invoice", "refund", "charged", "money", "receipt", "price"),
    "technical": ("crash", "screen", "update", "error", "freeze", "slow"),
    "account": ("password", "login", "profile", "username", "email", "locked"),
}
LABELS = tuple(KEYWORDS)
FILLERS = ("hello", "please", "today", "again", "thanks", "really", "about", "would")


class WordLearner:
    """Gives each label the words that stand before it in the prompt, and takes the one that shares most with the end.

    bias: nats per label that have nothing to do with the input, as real models have. What it generates is a bare label
    and a next block, which some formats can read and some can't.
    """

    def __init__(self, labels: Sequence[str] = LABELS, bias: Mapping[str, float] | None = None) -> None:
        self.labels, self.bias = tuple(labels), dict(bias or {})
        self._mark = re.compile(rf"\b(?:{'|'.join(map(re.escape, labels))})\b")

    def likelihood(self, prompt: str, continuation: str) -> float:
        label = next((label for label in self.labels if label in continuation), None)
        seen: dict[str, set[str]] = {label: set() for label in self.labels}
        start = 0
        for mark in self._mark.finditer(prompt):
            seen[mark[0]] |= _words(prompt[start : mark.start()])
            start = mark.end()
        shared = len(_words(prompt[start:]) & seen[label]) if label else 0
        return -6.0 + 1.5 * shared + self.bias.get(label or "", 0.0)

    def answer(self, prompt: str, decoding: Decoding, sample: int) -> str:
        best = max(self.labels, key=lambda label: self.likelihood(prompt, label))
        return f" {best}\n\nTicket: and so on"

    def engine(self, **options: Any) -> FakeEngine:
        return FakeEngine(self.answer, self.likelihood, **options)


def _words(text: str) -> set[str]:
    known = {word for words in KEYWORDS.values() for word in words}
    return set(re.findall(r"\w+", text)) & known


def tickets(count: int, seed: int) -> list[dspy.Example]:
    """Tickets with three words of their queue each, and one of another in every fourth."""
    generator = random.Random(seed)
    made = []
    for index in range(count):
        queue = LABELS[index % len(LABELS)]
        words = generator.sample(KEYWORDS[queue], 3) + generator.sample(FILLERS, 3)
        if index % 4 == 3:
            words.append(generator.choice(KEYWORDS[LABELS[(index + 1) % len(LABELS)]]))
        generator.shuffle(words)
        text = f"{' '.join(words)} n{seed}x{index}"
        made.append(dspy.Example(ticket=text, queue=queue).with_inputs("ticket"))
    return made


def examples(count: int, **fields: Callable[[int], Any]) -> Examples:
    """`count` rows with the input `text` (its number in words) and the labels that `fields` make of the number."""
    return Examples(
        tuple(Example({"text": f"row {n}"}, {name: make(n) for name, make in fields.items()}, n) for n in range(count))
    )


# ---- an evaluator without an engine


class Plain(Metric):
    """A metric that is never called: what an evaluator gives is the score."""

    name = "plain"

    def measure(self, example: Any, prediction: Any) -> Measurement:
        raise AssertionError("a fake evaluator measures by itself")


class FakeEvaluator:
    """An evaluator whose scores come from `score(candidate, row)`: a number, or a text, which is a call's failure.

    features: what a head would read, (candidate, predictor, field, rows) -> features; none by default. own: a
    candidate's tokens that no row shares.
    pace: seconds of a fake clock that each program run takes, or what tells it of a candidate; `runs` keeps what was run: (candidate, row ids). A run is
    one model call, of as many prompt tokens as `prompt_tokens` says and `generated` more.
    """

    def __init__(
        self,
        signatures: Mapping[str, Any],
        score: Callable[[Candidate, Any], float | str],
        *,
        outcome: Callable[[Candidate, Any], Outcome] | None = None,
        choices: Callable[[Candidate, str, Mapping[str, Any]], list[Choice]] = lambda candidate, name, inputs: [],
        features: Callable[[Candidate, str, str, Sequence[Any]], FieldFeatures | None] = lambda *asked: None,
        columns: Mapping[str, Mapping[str, str]] | None = None,
        metric: Metric | None = None,
        own: Callable[[Candidate], float] = lambda candidate: 0.0,
        pace: float | Callable[[Candidate], float] = 1.0,
        generated: int = 0,
    ) -> None:
        self.own, self.generated, self.ledger = own, generated, Ledger()
        self.signatures, self.metric = dict(signatures), metric or Plain()
        self._score, self._outcome, self._choices, self._columns = score, outcome, choices, columns
        self._pace = pace if callable(pace) else lambda candidate: pace
        self._features = features
        self.spent, self.seconds = 0, 0.0
        self.runs: list[tuple[Candidate, list[int]]] = []

    def elapsed(self) -> float:
        return self.seconds

    def columns(self, predictor: str) -> Mapping[str, str]:
        if self._columns is not None:
            return self._columns.get(predictor, {})
        return {field: field for field in self.signatures[predictor].fields}

    def run(self, candidate: Candidate, rows: Sequence[Any]) -> list[Outcome]:
        self.runs.append((candidate, [row.id for row in rows]))
        self.spent += len(rows)
        self.seconds += self._pace(candidate) * len(rows)
        self.ledger.calls += len(rows)
        self.ledger.prompt_tokens += int(self.prompt_tokens(candidate, rows)) * len(rows)
        self.ledger.generated_tokens += self.generated * len(rows)
        if self._outcome is not None:
            return [self._outcome(candidate, row) for row in rows]
        return [self._scored(row, self._score(candidate, row)) for row in rows]

    def run_many(self, candidates: Sequence[Candidate], rows: Sequence[Any]) -> list[list[Outcome]]:
        return [self.run(candidate, rows) for candidate in candidates]

    def probe(self, candidate: Candidate, predictor: str, inputs: Mapping[str, Any]) -> list[Choice]:
        self.spent += 1
        return self._choices(candidate, predictor, inputs)

    def features(self, candidate: Candidate, predictor: str, field: str, rows: Sequence[Any]) -> FieldFeatures | None:
        return self._features(candidate, predictor, field, rows)

    def own_tokens(self, candidate: Candidate, rows: Sequence[Any]) -> float:
        return self.own(candidate)

    def prompt_tokens(self, candidate: Candidate, rows: Sequence[Any]) -> float:
        return sum(10.0 * len(state.demos) for state in candidate.states.values())

    @staticmethod
    def _scored(row: Any, score: float | str) -> Outcome:
        if isinstance(score, str):
            return Outcome(row, error=score)
        return Outcome(row, Measurement(score), {})


# ---- a whole compile


class Triage(dspy.Module):
    """One predictor, which routes a ticket."""

    def __init__(self) -> None:
        super().__init__()
        labels = ", ".join(map(repr, LABELS))
        self.route = dspy.Predict(cuecard.signature(f"ticket -> queue: Literal[{labels}]"))

    def forward(self, ticket: str) -> dspy.Prediction:
        return self.route(ticket=ticket)


def compile_tickets(runs: Path, engine: FakeEngine | None = None, **changes: Any) -> cuecard.Compiled:
    """A small compile of `Triage` on a `WordLearner`: 12 rows a split, some ten trials, about a second."""
    given: dict[str, Any] = {
        "program": Triage(),
        "trainset": tickets(12, 1),
        "devset": tickets(12, 2),
        "testset": tickets(12, 3),
        "metric": "exact_match",
        "target": fake_target(engine or WordLearner(bias={"billing": 2.0}).engine()),
        "budget": {"metric_calls": 100},
        "search": {"instructions": 2, "demos": [0, 4]},
        "runs": runs,
    }
    return cuecard.compile(**{**given, **changes})


SPEC = """\
name: two_steps
inputs: {ticket: str}
nodes:
  summary: {signature: "ticket -> summary: str", format: completion}
  route:
    signature: "ticket, summary -> queue: Literal['billing', 'technical', 'account']"
    inputs: {ticket: "${inputs.ticket}", summary: "${summary.summary}"}
outputs: {queue: "${route.queue}"}
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
metric: exact_match
optimize: {budget: {metric_calls: 120}, search: {instructions: 1, demos: [0, 8], formats: [completion, turns]}}
"""


def spec_folder(folder: Path, text: str = SPEC) -> Path:
    """A spec with its data, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "dev", "test"), start=1):
        rows = [{**row, "summary": "in brief"} for row in tickets(12, seed)]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "two_steps.yaml").write_text(text)
    return folder / "two_steps.yaml"
