"""Instructions that a language model proposes: grounded in the task (`propose`), or in what went wrong (`reflect`).

`propose` shows the model the program, the step, a few rows and the instructions tried so far with their scores, the
best last (OPRO, Yang et al. 2023, arXiv 2309.03409); every prompt has other rows and another tip, so that proposals
differ even without sampling (the grounded proposer of MIPROv2, Opsahl-Ong et al. 2024, arXiv 2406.11695). `reflect`
shows one instruction with rows that it failed on, what came out, what was wanted and what the reader said, and asks
for an improved one (GEPA, Agrawal et al. 2025, arXiv 2507.19457); `pareto_parent` picks the instruction to improve
among those that are best on some example.

All prompts of one proposal go to the model together, in one batch where it runs on an engine of ours. A call that
fails, and a text that cannot be used, is dropped and counted with its reason; neither raises. An engine that is dead
says so at the next evaluation.
"""

from __future__ import annotations

import contextvars
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from dspy import lm15

from ..errors import InputError
from ..models.engine import Turn
from ..models.lm import EXTENSION, EngineBridge, bridge_of
from ..seeds import derive_seed
from .grounding import CLOSE, OPEN, Evidence, Ground, fitting
from .proposals import COPY, SURPLUS, Proposals, echoes, key, read_proposals, sieve

TIPS = (
    "Describe the task so clearly that someone who has never seen it can do it.",
    "Keep it short and plain.",
    "Say exactly what each output has to look like.",
    "Say how to tell cases apart that are easily confused.",
    "Begin with the role that suits the task.",
    "Say what to pay attention to in the inputs.",
)
AT_ONCE = 256  # calls that wait together for an engine of ours
AT_ONCE_ELSEWHERE = 16
REASON = 160  # characters of a failed call's reason


class LanguageModel(Protocol):
    """What is asked: a `dspy.LM`, or anything that is called like one."""

    def __call__(self, prompt: str, **settings: Any) -> Sequence[Any]:
        """The completions: texts, or mappings with a `text`."""


@dataclass(frozen=True)
class Asking:
    """How the model is asked: its settings, and how much evidence one prompt shows."""

    temperature: float = 0.7
    max_tokens: int = 256
    rows: int = 3
    attempts: int = 8
    misses: int = 3


def propose(lm: LanguageModel, ground: Ground, count: int, *, seed: int = 0, asking: Asking | None = None) -> Proposals:
    """Up to `count` new instructions for a step, asked of `lm` in as many prompts. Same seed and answers, same result.

    >>> propose(target.lm, Ground({"main": signature}, "main", rows=train), 4).instructions
    ('Read the ticket and name the queue that ...', ...)
    """
    asking = asking or Asking()
    best = sorted(ground.attempts, key=lambda attempt: attempt.score)[-asking.attempts :] if asking.attempts else []
    evidence = []
    for place in range(count):
        generator = random.Random(derive_seed(seed, "propose", ground.step, place))
        tip = TIPS[place % len(TIPS)]
        evidence.append(
            Evidence(
                _some(ground.rows, asking.rows, generator), best, _some(ground.misses, asking.misses, generator), tip
            )
        )
    return _proposals(lm, ground, evidence, count, asking)


def reflect(
    lm: LanguageModel, ground: Ground, parent: str, count: int = 1, *, seed: int = 0, asking: Asking | None = None
) -> Proposals:
    """Up to `count` improvements of the instruction `parent`, each from other rows of `ground.misses`, on which
    `parent` failed. Without misses there is nothing to reflect on, and nothing is asked.
    """
    asking = asking or Asking()
    if not ground.misses:
        return Proposals()
    evidence = []
    for place in range(count):
        generator = random.Random(derive_seed(seed, "reflect", ground.step, place))
        evidence.append(Evidence(misses=_some(ground.misses, max(1, asking.misses), generator), parent=parent))
    return _proposals(lm, ground, evidence, count, asking)


def pareto_weights(scores: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """For each candidate, on how many examples it is among the best; 0 where others that are kept cover all of them.

    scores: by candidate, then by example, the same examples for all. GEPA's algorithm 2: candidates leave in the order
    of their mean, the lowest first. Raises `InputError` for no candidate, or rows of different lengths.
    """
    if not scores or not scores[0] or len({len(row) for row in scores}) > 1:
        found = ", ".join(str(len(row)) for row in scores) or "no candidate"
        raise InputError(f"found scores of {found} examples", expected="the same examples for every candidate")
    fronts = []
    for column in zip(*scores, strict=True):
        best = max(column)
        fronts.append({place for place, score in enumerate(column) if score == best})
    kept = set().union(*fronts)
    for place in sorted(kept, key=lambda place: (sum(scores[place]), place)):
        if all(front & (kept - {place}) for front in fronts if place in front):
            kept.remove(place)
    return tuple(sum(place in front for front in fronts) if place in kept else 0 for place in range(len(scores)))


def pareto_parent(scores: Sequence[Sequence[float]], generator: random.Random) -> int:
    """The candidate to improve, drawn in proportion to `pareto_weights`."""
    return generator.choices(range(len(scores)), pareto_weights(scores))[0]


# ---- asking


def _proposals(
    lm: LanguageModel, ground: Ground, evidence: Sequence[Evidence], count: int, asking: Asking
) -> Proposals:
    bridge = bridge_of(lm)
    prompts = [fitting(ground, shown, bridge, asking.max_tokens) for shown in evidence]
    known = [ground.signature.instructions, *(attempt.instruction for attempt in ground.attempts)]
    known += [shown.parent for shown in evidence if shown.parent]
    rows = [*ground.rows, *({**miss.inputs, **miss.gold} for miss in ground.misses)]
    judge = sieve(ground.signature, rows, known)
    dropped: Counter[str] = Counter()
    kept: dict[str, str] = {}
    echoed = echoes("\n".join([*prompts, *TIPS]), [*known, ground.description])
    for answer in asked(lm, prompts, bridge, asking):
        if isinstance(answer, FailedCall):
            dropped[f"call failed: {answer.reason}"] += 1
            continue
        for text in read_proposals(answer):
            reason = judge.reason(text, echoed) or (
                COPY if key(text) in kept else SURPLUS if len(kept) >= count else None
            )
            if reason is None:
                kept[key(text)] = text
            else:
                dropped[reason] += 1
    return Proposals(tuple(kept.values()), dict(sorted(dropped.items())))


@dataclass(frozen=True)
class FailedCall:
    """In place of an answer: why there is none."""

    reason: str


@dataclass
class _Answers:
    """What the threads of one batch write to."""

    texts: list[str | FailedCall]
    stopped: list[BaseException] = field(default_factory=list)


def asked(
    lm: LanguageModel, prompts: Sequence[str], bridge: EngineBridge | None, asking: Asking
) -> list[str | FailedCall]:
    """The model's answer to each prompt, in order. All wait together, so that an engine of ours sees one batch."""
    size = AT_ONCE if bridge else AT_ONCE_ELSEWHERE
    found: list[str | FailedCall] = []
    for start in range(0, len(prompts), size):
        found += _batch(lm, prompts[start : start + size], bridge, asking)
    return found


def _batch(
    lm: LanguageModel, prompts: Sequence[str], bridge: EngineBridge | None, asking: Asking
) -> list[str | FailedCall]:
    answers = _Answers([FailedCall("there was no answer")] * len(prompts))
    ready = threading.Barrier(len(prompts))

    def work(place: int) -> None:
        with bridge.gatherer.worker() if bridge else nullcontext():
            ready.wait()
            if bridge:
                bridge.gatherer.working_on(place)
            try:
                answers.texts[place] = _one(lm, prompts[place], bridge, asking)
            except Exception as error:
                answers.texts[place] = FailedCall(_told(error))
            except BaseException as error:
                answers.stopped.append(error)

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(work, place), daemon=True)
        for place in range(len(prompts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if answers.stopped:
        raise answers.stopped[0]
    return answers.texts


def _one(lm: Any, prompt: str, bridge: EngineBridge | None, asking: Asking) -> str:
    """The model's answer. An engine of ours has it begun and ended with the tags, which small models forget."""
    if bridge is None:
        return _text_of(lm(prompt, temperature=asking.temperature, max_tokens=asking.max_tokens))
    raw = not _has_chat(bridge)
    config = lm15.Config(
        temperature=asking.temperature,
        max_tokens=asking.max_tokens,
        stop=(CLOSE, "\n\n") if raw else (CLOSE,),
        extensions={EXTENSION: {"prefill": f"\n\n{OPEN}" if raw else OPEN, "raw": raw}},
    )
    # Not through the LM, which warns of every answer that `max_tokens` ends.
    response = bridge.complete(lm15.Request(model=lm.model, messages=(lm15.Message.user(prompt),), config=config))
    text = "".join(part.text for part in response.message.parts)
    return f"{OPEN}{text}" if response.finish_reason == "length" else f"{OPEN}{text}{CLOSE}"


def _has_chat(bridge: EngineBridge) -> bool:
    try:
        bridge.engine.tokenizer.chat([Turn("user", "")])
    except InputError:
        return False
    return True


def _text_of(completions: Any) -> str:
    """The first completion's text. Raises for what is none: the call has then failed."""
    first = completions[0] if isinstance(completions, list | tuple) and completions else ""
    text = first.get("text") if isinstance(first, Mapping) else first
    if not isinstance(text, str):
        raise TypeError(f"found a {type(text).__name__} for a text")
    return text


def _told(error: BaseException) -> str:
    line = " ".join((str(error).strip() or type(error).__name__).partition("\n")[0].split())
    return line if len(line) <= REASON else f"{line[:REASON]} ..."


def _some(items: Sequence[Any], count: int, generator: random.Random) -> list[Any]:
    return generator.sample(list(items), min(count, len(items)))
