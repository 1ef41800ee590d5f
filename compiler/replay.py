"""Recording a program's model calls, and answering them again without the model.

A recording is a folder: `calls.jsonl`, the journal of every call (`journal.py`); `tokenizer.jsonl`, all that the
tokenizer was asked; `record.json`, which target it was; and `scores.json`, the baseline that `cuecard eval` adds. So a
replay needs no weights, no tokenizer and no network, and gives the same answers to the last bit. The folder of a
compile's run can be replayed too, but it holds no tokenizer: that is read from the model's folder, without the weights.

A call that was not recorded is an error and never a guess: it says which predictor asks, and where its prompt begins to
differ from the recorded one that is nearest.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import dspy

from ..errors import InputError, RunError
from ..files import read_bytes, write_atomic
from ..models.engine import (
    Description,
    Engine,
    Failure,
    GenerateRequest,
    Generation,
    Ledger,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
    Tokenizer,
    Turn,
)
from ..models.hidden import FeatureRequest, Features
from ..models.target import Target
from .difference import first_difference, nearest_text
from .journal import Clock, JournaledEngine
from .memory_tokenizer import Asked, NotRecorded, RecordingTokenizer, ReplayTokenizer, read_asked, write_asked

FORMAT = "cuecard-recording-1"
CALLS, TOKENIZER, RECORD, SCORES = "calls.jsonl", "tokenizer.jsonl", "record.json", "scores.json"
AGAIN = "If the change is meant, record again with --record."

Request = GenerateRequest | ScoreRequest | SpanRequest | FeatureRequest


class RecordingEngine(JournaledEngine):
    """A journaled engine that also notes what its tokenizer is asked."""

    def __init__(self, engine: Engine, path: Path) -> None:
        super().__init__(engine, path, Clock())
        self._noted = RecordingTokenizer(engine.tokenizer)

    @property
    def tokenizer(self) -> RecordingTokenizer:
        """See `Engine.tokenizer`."""
        return self._noted


@contextmanager
def recorded(target: Target, folder: Path) -> Iterator[Target]:
    """The target, with every call recorded in `folder`, which is new, empty, or an older recording to replace.

    The recording is complete once the block has ended without an error. Raises `InputError` for a folder that holds
    something else.
    """
    _clear(folder)
    engine = RecordingEngine(target.engine, folder / CALLS)
    yield Target(engine, target.description)
    (folder / CALLS).touch()
    write_asked(folder / TOKENIZER, engine.tokenizer.asked)
    about = {"format": FORMAT, "target": asdict(target.description), "can_score": engine.can_score}
    write_atomic(folder / RECORD, json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def replay_target(path: Path, *, model: str | None = None) -> Target:
    """The target that answers what stands in a recording, or in the folder of a compile's run, and nothing else.

    model: whose tokenizer to read where the folder holds none, as `models.loading.find` takes it; default: the model
    that the run names. Raises `InputError` for a folder that is neither.
    """
    about = _about(path)
    if "fingerprint" in about and about.get("status") != "finished":  # its journal may be being written
        raise InputError(f"the run is {about.get('status')}", path=path, expected="a finished run, or a recording")
    description = _description(about, path)
    tokenizer: Tokenizer
    if (path / TOKENIZER).is_file():
        tokenizer = ReplayTokenizer(read_asked(path / TOKENIZER), path)
    else:
        tokenizer = _opened(model or description.name)
    absent = _Absent(path, description, tokenizer, can_score=bool(about.get("can_score", True)))
    return Target(ReplayEngine(absent, path / CALLS), description)


class ReplayEngine(JournaledEngine):
    """An engine that answers recorded calls only. Its ledger is that of the recording."""

    def __init__(self, absent: _Absent, path: Path) -> None:
        super().__init__(absent, path, Clock())


class _Absent:
    """The engine behind a replay: it has no answers, and says what was asked that had not been asked before."""

    def __init__(self, folder: Path, about: Description, tokenizer: Tokenizer, *, can_score: bool) -> None:
        self.identity, self.name, self.context_window = about.identity, about.name, about.context_window
        self.can_score = can_score
        self.layers = 1  # any number above 0: features that were recorded can be asked for
        self.ledger = Ledger()
        self.tokenizer: Tokenizer = _Following(tokenizer, folder)
        self._folder = folder

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        """Raises `InputError`."""
        self._refuse(requests[0])

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """Raises `InputError`."""
        self._refuse(requests[0])

    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        """Raises `InputError`."""
        self._refuse(requests[0])

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features | Failure]:
        """Raises `InputError`."""
        self._refuse(requests[0])

    def _refuse(self, request: Request) -> NoReturn:
        following = self.tokenizer
        assert isinstance(following, _Following), "it was made here"
        who, calls = following.who(request.prompt), _calls(self._folder / CALLS)
        same = [call for call in calls if call["ids"] == request.prompt]
        if same:
            message, hint = (
                f"the settings of {who} have changed since its calls were recorded",
                _settings(request, same),
            )
        else:
            texts = [following.text(call["ids"]) for call in calls]
            message = f"the prompt of {who} has changed since its calls were recorded"
            hint = _difference(texts, following.text(request.prompt))
        raise InputError(message, path=self._folder, hint=f"{hint}\n  {AGAIN}")


class _Following:
    """A tokenizer that remembers which predictor had what encoded, and whose prompts are told as texts."""

    def __init__(self, inner: Tokenizer, folder: Path) -> None:
        self._inner = inner
        self._folder = folder
        self._seen: dict[tuple[int, ...], tuple[str, str]] = {}  # ids -> text and predictor
        self._lock = threading.Lock()

    def encode(self, text: str) -> tuple[int, ...]:
        """See `Tokenizer.encode`. Raises `InputError` for what was not recorded."""
        with self._told():
            ids = self._inner.encode(text)
        with self._lock:
            self._seen.setdefault(ids, (text, asking()))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        with self._told():
            return self._inner.decode(ids)

    def chat(self, turns: Sequence[Turn], prefill: str = "") -> str:
        """See `Tokenizer.chat`. Raises `InputError` for what was not recorded."""
        with self._told():
            return self._inner.chat(turns, prefill)

    def start(self) -> tuple[int, ...]:
        """See `Tokenizer.start`."""
        return self._inner.start()

    def who(self, prompt: tuple[int, ...]) -> str:
        """The predictor that asks with this prompt."""
        return self._seen.get(self._without_start(prompt), ("", "a predictor"))[1]

    def text(self, prompt: tuple[int, ...]) -> str:
        """A prompt's text, with its special tokens where it was encoded here."""
        ids = self._without_start(prompt)
        if isinstance(self._inner, ReplayTokenizer):
            return self._inner.text(ids)
        return self._seen[ids][0] if ids in self._seen else self._inner.decode(ids)

    def _without_start(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        start = self.start()
        return prompt[len(start) :] if prompt[: len(start)] == start else prompt

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except NotRecorded as error:
            message = f"the prompt of {asking()} has changed since its calls were recorded"
            hint = f"{_difference(error.known, error.text)}\n  {AGAIN}"
            raise InputError(message, path=self._folder, hint=hint) from None


def asking() -> str:
    """The predictor that runs in this thread, in words."""
    modules = dspy.settings.caller_modules or []
    if not modules:
        return "a predictor"
    named = {id(part): name for name, part in modules[0].named_predictors()}
    found = next((named[id(part)] for part in reversed(modules) if id(part) in named), None)
    return "a predictor" if found is None else f"the predictor {found!r}"


def _difference(recorded_texts: Sequence[str], text: str) -> str:
    near = nearest_text(text, recorded_texts)
    if near is None:
        return "Nothing like it was recorded."
    return first_difference(near, text)


def _settings(request: Request, same: Sequence[dict[str, Any]]) -> str:
    """What is asked of a recorded prompt that was not asked of it before."""
    if not isinstance(request, GenerateRequest):
        if isinstance(request, FeatureRequest):
            return "The prompt is the same, the hidden states that a head reads are others."
        return "The prompt is the same, the labels or spans that are scored are others."
    ours = request.decoding.model_dump(mode="json", exclude_defaults=True)
    found = next((call for call in same if "decoding" in call), None)
    if found is None:
        return "The prompt is the same, but what is read out of the model was scores and is now text."
    theirs = found["decoding"]
    changed = [
        f"{name} was {theirs.get(name, 'the default')} and is {ours.get(name, 'the default')}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    if not changed:
        changed = ["the constraint on the output is another"]
    return f"The prompt is the same, {'; '.join(changed)}."


def _calls(path: Path) -> list[dict[str, Any]]:
    """The recorded requests, with the whole prompts' token ids."""
    found: list[dict[str, Any]] = []
    previous: tuple[int, ...] = ()
    for line in filter(None, read_bytes(path).split(b"\n")):
        record: dict[str, Any] = json.loads(line)
        if "batch" in record:
            previous = ()
            continue
        previous = previous[: record["shared"]] + tuple(record["prompt"])
        found.append({**record, "ids": previous})
    return found


def _clear(folder: Path) -> None:
    """Make the folder, or empty it of an older recording."""
    if folder.exists() and not folder.is_dir():
        raise InputError("this is a file", path=folder, field="--record", expected="a folder")
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    strange = next((name for name in held if name not in (CALLS, TOKENIZER, RECORD, SCORES)), None)
    if strange is not None:
        expected = "a new folder, or an older recording to replace"
        raise InputError(f"the folder holds {strange!r}", path=folder, field="--record", expected=expected)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in held:
            (folder / name).unlink()
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror or error}", path=folder) from error


def _about(path: Path) -> dict[str, Any]:
    """What `record.json`, or a run's `run.json`, says."""
    for name in (RECORD, "run.json"):
        if (path / name).is_file():
            if not (path / CALLS).is_file():
                raise InputError("the record of model calls is missing", path=path / CALLS, hint="Record again.")
            return _object(path / name)
    if not path.is_dir():
        raise InputError("no such folder" if not path.exists() else "this is a file", path=path, expected="a recording")
    unfinished = "The recording did not end: record again." if (path / CALLS).is_file() else None
    raise InputError("not a recording", path=path, expected="a folder that --record made, or of a run", hint=unfinished)


def _object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", path=path) from None
    if not isinstance(data, dict):
        raise InputError("not a JSON object", path=path)
    if path.name == RECORD and data.get("format") != FORMAT:
        raise InputError(f"found the format {data.get('format')!r}", path=path, expected=FORMAT, hint="Record again.")
    return data


def _description(about: dict[str, Any], path: Path) -> Description:
    try:
        return Description(**about["target"])
    except (TypeError, KeyError):
        raise InputError("it does not say which target it was", path=path, hint="Record again.") from None


def _opened(model: str) -> Tokenizer:
    """A model's tokenizer, without its weights."""
    from ..models.loading import find, load_tokenizer
    from ..models.tokenizer import HFTokenizer

    source = find(model)
    return HFTokenizer(load_tokenizer(source), name=source.name)


__all__ = ["Asked", "RecordingEngine", "ReplayEngine", "asking", "recorded", "replay_target"]
