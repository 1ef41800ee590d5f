"""The journal: whatever a kill leaves of it, the run goes on as if nothing had happened."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, WordLearner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuecard.compiler.journal import Clock, JournaledEngine
from cuecard.errors import InputError, RunError
from cuecard.models.engine import Decoding, Failure, GenerateRequest, Generation, Ledger, ScoreRequest, Scores


class EngineClock(Clock):
    """A clock that goes as fast as the engine's ledger."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__()
        self.engine = engine
        self.set(0.0)

    def now(self) -> float:
        return self._start + self.engine.ledger.seconds - self._mark

    def set(self, seconds: float) -> None:
        self._start, self._mark = seconds, self.engine.ledger.seconds


def engine() -> FakeEngine:
    def failure(request: Any) -> str | None:
        return "refused: «no»" if len(request.prompt) % 5 == 0 else None

    return WordLearner(bias={"billing": 0.1}).engine(failure=failure)


def open_(path: Path, inner: FakeEngine | None = None) -> tuple[JournaledEngine, FakeEngine, EngineClock]:
    inner = inner or engine()
    clock = EngineClock(inner)
    return JournaledEngine(inner, path, clock), inner, clock


def prompt(inner: FakeEngine, text: str) -> tuple[int, ...]:
    return inner.tokenizer.start() + inner.tokenizer.encode(text)


def work(journaled: Any, inner: FakeEngine) -> list[Any]:
    """A run: batches of both kinds, requests that come again, failures, text of several scripts."""
    texts = ["crash and error", "crash and refund", "Ünïcödé 漢字 \u2028 \x85 refund", "line\nbreak\r\nmoney"]
    labels = tuple(inner.tokenizer.encode(label) for label in ("billing", "technical", "account"))
    results: list[Any] = []
    for turn in range(3):
        decoding = Decoding(max_tokens=3 + turn, temperature=float(turn), n=1 + turn, stop=("\n\n",))
        generate = [GenerateRequest(prompt(inner, f"{text} {turn // 2}"), decoding) for text in texts]
        score = [ScoreRequest(prompt(inner, text), labels) for text in texts[turn:]]
        grammar = [GenerateRequest(prompt(inner, "x"), Decoding(), 'start: "a" | "é\n"')] * 2
        results += [journaled.generate([*generate, *grammar]), journaled.score(score)]
    return results


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Any], Ledger, float]:
    path = tmp_path_factory.mktemp("journal") / "calls.jsonl"
    journaled, inner, clock = open_(path)
    results = work(journaled, inner)
    return path.read_bytes(), results, journaled.ledger, clock.now()


# ---- what it answers


def test_answers_are_the_engines_own(whole: Any) -> None:
    inner = engine()
    assert whole[1] == work(inner, inner)
    kinds = {type(result) for batch in whole[1] for result in batch}
    assert kinds == {Generation, Scores, Failure}


def test_a_request_is_asked_once_and_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    journaled, inner, _ = open_(tmp_path / "calls.jsonl")
    one, two = (GenerateRequest(prompt(inner, text)) for text in ("one crash", "two crash"))
    first = journaled.generate([one, one, two, one])
    assert inner.batches == [[one, two]]
    three = replace(one, decoding=Decoding(seed=1))
    again = journaled.generate([two, three, one])
    assert inner.batches == [[one, two], [three]]
    assert (first[0], first[2]) == (again[2], again[0])
    assert journaled.generate([]) == []


def test_requests_that_differ_in_anything_are_different(tmp_path: Path) -> None:
    journaled, inner, _ = open_(tmp_path / "calls.jsonl", FakeEngine())
    start = prompt(inner, "a b")
    asked = [
        GenerateRequest(start),
        GenerateRequest((*start, 7)),
        GenerateRequest(start, Decoding(max_tokens=3)),
        GenerateRequest(start, Decoding(stop=("x",))),
        GenerateRequest(start, Decoding(), "start: /a/"),
    ]
    inner.tokenizer._pieces[7] = "seven"
    journaled.generate(asked)
    scored = [ScoreRequest(start, c) for c in (((1,), (2,)), ((2,), (1,)), ((1, 2),), ((1,),))]
    inner.tokenizer._pieces |= {1: "x", 2: "y"}
    journaled.score(scored)
    assert [len(batch) for batch in inner.batches] == [5, 4]


def test_what_was_recorded_for_another_model_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    journaled, inner, _ = open_(path, FakeEngine(identity="one"))
    journaled.generate([GenerateRequest(prompt(inner, "a"))])
    other, asked, _ = open_(path, FakeEngine(identity="two"))
    other.generate([GenerateRequest(prompt(asked, "a"))])
    assert len(asked.batches) == 1


def test_the_engines_face_is_the_inner_ones(tmp_path: Path) -> None:
    journaled, inner, _ = open_(tmp_path / "calls.jsonl", FakeEngine(identity="abc", context_window=99))
    assert (journaled.identity, journaled.name, journaled.context_window) == ("abc", "fake", 99)
    assert journaled.tokenizer is inner.tokenizer


def test_the_ledger_is_the_engines_difference(tmp_path: Path) -> None:
    inner = engine()
    inner.generate([GenerateRequest(prompt(inner, "before"))])
    before = inner.ledger.copy()
    journaled, _, _ = open_(tmp_path / "calls.jsonl", inner)
    assert journaled.ledger == Ledger()
    work(journaled, inner)
    assert journaled.ledger == inner.ledger - before


def test_numbers_that_json_has_no_word_for_come_back(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    journaled, inner, _ = open_(path, FakeEngine(likelihood=lambda prompt, text: -math.inf))
    request = ScoreRequest(prompt(inner, "a"), (inner.tokenizer.encode("b"),))
    assert journaled.score([request])[0].totals == (-math.inf,)  # type: ignore[union-attr]
    assert open_(path)[0].score([request])[0].totals == (-math.inf,)  # type: ignore[union-attr]


# ---- resuming


def test_a_whole_journal_answers_everything(whole: Any, tmp_path: Path) -> None:
    content, results, ledger, seconds = whole
    path = tmp_path / "calls.jsonl"
    path.write_bytes(content)
    journaled, inner, clock = open_(path)
    assert journaled.recorded == sum(b'"key"' in line for line in content.split(b"\n"))
    assert journaled.ledger == Ledger(), "nothing has been asked for in this life"
    assert work(journaled, inner) == results
    assert inner.batches == []
    assert journaled.ledger == ledger
    assert clock.now() == seconds
    assert path.read_bytes() == content


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_beginning_of_a_journal_is_gone_on_with(whole: Any, tmp_path: Path, data: st.DataObject) -> None:
    """Killed while anything was written: the same answers, the same account, the same file to the last byte."""
    content, results, ledger, seconds = whole
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path / "calls.jsonl"
    path.write_bytes(content[:cut])
    journaled, inner, clock = open_(path)
    assert content.startswith(path.read_bytes()), "what is left is whole batches"
    left = path.read_bytes().count(b'"batch"')
    reference = engine()
    everything, _, _ = open_(tmp_path / "reference.jsonl", reference)
    work(everything, reference)
    (tmp_path / "reference.jsonl").unlink()
    assert work(journaled, inner) == results
    assert inner.batches == reference.batches[left:]
    assert journaled.ledger == ledger
    assert clock.now() == pytest.approx(seconds)
    assert path.read_bytes() == content


def test_several_kills_are_like_one(whole: Any, tmp_path: Path) -> None:
    content, results, ledger, _ = whole
    path = tmp_path / "calls.jsonl"
    for share in (0.2, 0.5, 0.9):
        journaled, inner, _ = open_(path)
        work(journaled, inner)
        path.write_bytes(path.read_bytes()[: int(share * len(content))])
    journaled, inner, _ = open_(path)
    assert work(journaled, inner) == results
    assert journaled.ledger == ledger
    assert path.read_bytes() == content


def test_the_clock_stands_where_it_stood_when_a_batch_is_answered_again(whole: Any, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_bytes(whole[0])
    heads = [json.loads(line) for line in whole[0].split(b"\n") if line.startswith(b'{"batch"')]
    journaled, inner, clock = open_(path)
    seen: list[float] = []

    class Watched:
        def generate(self, requests: Any) -> Any:
            answer = journaled.generate(requests)
            seen.append(clock.now())
            return answer

        def score(self, requests: Any) -> Any:
            answer = journaled.score(requests)
            seen.append(clock.now())
            return answer

    work(Watched(), inner)
    assert len(heads) > 3
    assert sorted(set(seen)) == [head["elapsed"] for head in heads]


def test_a_real_clock_stands_still_between_two_lives() -> None:
    clock = Clock()
    clock.set(100.0)
    assert 100.0 <= clock.now() < 101.0
    clock.set(5.0)
    assert 5.0 <= clock.now() < 6.0


# ---- the file


def test_a_line_says_what_was_asked_and_answered(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    journaled, inner, _ = open_(path, FakeEngine(answer=lambda *_: " fine"))
    shared = prompt(inner, "the same start")
    journaled.generate([GenerateRequest(shared), GenerateRequest((*shared, *inner.tokenizer.encode(" and more")))])
    head, first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert head["batch"] == 0
    assert head["calls"] == 2
    assert head["ledger"]["calls"] == 2
    assert (first["shared"], first["text"]) == (0, "the same start")
    assert (second["shared"], second["text"]) == (len(shared), " and more")
    assert first["samples"][0]["text"] == " fine"


def _lines(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


def _cut_a_member(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2][: len(lines[2]) // 2] + b"\n", *lines[3:]]


def _drop_a_member(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], *lines[3:]]


def _drop_a_head(lines: list[bytes]) -> list[bytes]:
    heads = [place for place, line in enumerate(lines) if line.startswith(b'{"batch"')]
    return [line for place, line in enumerate(lines) if place != heads[1]]


CORRUPTIONS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "text in place of the first line": lambda lines: [b"hello\n", *lines[1:]],
    "a list in place of the first line": lambda lines: [b"[1]\n", *lines[1:]],
    "a head without its ledger": lambda lines: [b'{"batch":0,"calls":1,"elapsed":0.1}\n', *lines[1:]],
    "a head with a ledger of another kind": lambda lines: [
        b'{"batch":0,"calls":5,"elapsed":0.1,"ledger":{"cost":1}}\n',
        *lines[1:],
    ],
    "a head that counts nothing": lambda lines: [lines[0].replace(b'"calls":5', b'"calls":0', 1), *lines[1:]],
    "a head that counts in words": lambda lines: [lines[0].replace(b'"calls":5', b'"calls":"six"', 1), *lines[1:]],
    "a cut line within a batch": _cut_a_member,
    "a missing line within a batch": _drop_a_member,
    "a missing head": _drop_a_head,
    "an answer of no kind": lambda lines: [lines[0], b'{"key":"k"}\n', *lines[2:]],
    "an answer without a key": lambda lines: [lines[0], b'{"failure":"f"}\n', *lines[2:]],
    "a number for an answer": lambda lines: [lines[0], b"3\n", *lines[2:]],
    "bytes that are no text": lambda lines: [lines[0], b'{"key":"\xff\xfe"}\n', *lines[2:]],
    "zeros": lambda lines: [lines[0], b"\0" * 40 + b"\n", *lines[2:]],
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_journal_that_is_broken_in_the_middle_is_told(corruption: str, whole: Any, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    broken = b"".join(CORRUPTIONS[corruption](_lines(whole[0])))
    assert broken != whole[0]
    path.write_bytes(broken)
    with pytest.raises(InputError, match="not a record of model calls") as caught:
        open_(path)
    assert caught.value.path == str(path)
    assert caught.value.line is not None
    assert "--fresh" in str(caught.value)
    assert path.read_bytes() == broken, "it is left for somebody to look at"


TAILS = {"zeros": b"\0" * 64, "half a head": b'{"batch":9', "a head": b'{"batch":9,"calls":1}', "bytes": b"\xff\xfe{"}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_a_torn_end_is_cut_off(tail: bytes, whole: Any, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_bytes(whole[0] + tail)
    journaled, inner, _ = open_(path)
    assert path.read_bytes() == whole[0]
    assert work(journaled, inner) == whole[1]


# ---- a disk that is full


def test_a_full_disk_ends_the_run_and_says_what_to_do() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    inner = FakeEngine()
    journaled = JournaledEngine.__new__(JournaledEngine)
    target = Path("/dev/full")
    JournaledEngine.__init__(journaled, inner, Path(os.devnull), EngineClock(inner))
    journaled._path = target
    with pytest.raises(RunError, match="can't write the record of model calls") as caught:
        journaled.generate([GenerateRequest(prompt(inner, "a"))])
    assert "start the same command again" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


class HalfFull:
    """A file that takes so many more bytes, and is full then."""

    def __init__(self, path: Path, room: int) -> None:
        self.path, self.room = path, room

    def __enter__(self) -> HalfFull:
        self.file = open(self.path, "ab")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[: self.room])
        self.file.flush()
        raise OSError(28, "No space left on device")


def test_a_write_that_broke_off_leaves_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads may still have a call to make, and what they write must not stand behind half a line."""
    path = tmp_path / "calls.jsonl"
    journaled, inner, _ = open_(path, FakeEngine())
    journaled.generate([GenerateRequest(prompt(inner, "one"))])
    before = path.read_bytes()
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **rest: Any) -> Any:
        return HalfFull(self, 30) if "a" in mode and self == path else opened(self, mode, *args, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(RunError, match="No space left on device"):
            journaled.generate([GenerateRequest(prompt(inner, "two"))])
    assert path.read_bytes() == before
    journaled.generate([GenerateRequest(prompt(inner, "three"))])
    resumed, fresh, _ = open_(path, FakeEngine())
    resumed.generate([GenerateRequest(prompt(fresh, "one")), GenerateRequest(prompt(fresh, "three"))])
    assert fresh.batches == []


def test_an_engine_that_breaks_leaves_no_trace(tmp_path: Path) -> None:
    def before(batch: Any) -> None:
        raise RuntimeError("the card is gone")

    path = tmp_path / "calls.jsonl"
    journaled, inner, _ = open_(path, FakeEngine(before=before))
    with pytest.raises(RuntimeError, match="the card is gone"):
        journaled.generate([GenerateRequest(prompt(inner, "one"))])
    assert not path.exists()
