"""The requests of the engine's benchmark, as token ids: prose from a seeded word generator, cut to exact counts.

The shapes are those of a compile: many requests that share a long prefix (instructions and demos) and end in an input
of their own. What two inputs happen to share at their start is left as it is; the prefix tree counts it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

Encode = Callable[[str], tuple[int, ...]]
Prompt = tuple[int, ...]

WORDS = {
    "adjective": ("late", "small", "broken", "early", "quiet", "second", "careful", "empty", "public", "heavy",
                  "recent", "simple", "common", "local", "final"),
    "noun": ("customer", "order", "invoice", "harbour", "window", "garden", "report", "engine", "letter", "doctor",
             "bridge", "market", "river", "teacher", "ticket", "kitchen", "account", "valley", "printer", "contract",
             "station", "museum", "battery", "village", "library", "parcel", "concert", "forest"),
    "verb": ("opens", "checks", "returns", "loses", "finds", "repairs", "describes", "delays", "pays", "signs",
             "follows", "moves", "counts", "cleans"),
    "place": ("near the old mill", "in the morning", "after the meeting", "on the third floor", "without a word"),
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """The counts of tokens of a request: `shared` at the start of all, `own`, and `output` to generate.

    With `candidates`, each has a shared prefix of its own, whose first `common` tokens are common to all, and every
    candidate meets the same examples.
    """

    name: str
    shared: int
    own: int
    output: int
    candidates: int = 1
    common: int = 0


WORKLOADS = (
    Workload("labels", 600, 30, 8),
    Workload("extraction", 300, 200, 30),
    Workload("writing", 200, 100, 120),
    Workload("search", 600, 30, 8, candidates=8, common=100),
)


def prose(seed: str, encode: Encode, tokens: int) -> Prompt:
    """Exactly `tokens` tokens of sentences drawn with `seed`."""
    source = random.Random(seed)
    ids: Prompt = ()
    while len(ids) < tokens:
        ids += encode(" ".join(_sentence(source) for _ in range(8)) + " ")
    return ids[:tokens]


def _sentence(source: random.Random) -> str:
    def word(kind: str) -> str:
        return source.choice(WORDS[kind])

    subject, thing = (f"the {word('adjective')} {word('noun')}" for _ in range(2))
    number = f" number {source.randrange(1000)}" if source.random() < 0.3 else ""
    return f"{subject} {word('verb')} {thing}{number} {word('place')}.".capitalize()


def prompts(workload: Workload, requests: int, encode: Encode, seed: str = "timed") -> list[Prompt]:
    """`requests` prompts, candidate by candidate. Another `seed` gives others that share nothing with them."""
    name = f"{seed} {workload.name}"
    each = max(1, requests // workload.candidates)
    common = prose(f"{name} common", encode, workload.common)
    prefixes = [
        common + prose(f"{name} prefix {candidate}", encode, workload.shared - workload.common)
        for candidate in range(-(-requests // each))
    ]
    examples = [prose(f"{name} example {number}", encode, workload.own) for number in range(each)]
    return [prefix + example for prefix in prefixes for example in examples][:requests]


def plan(workload: Workload, requests: int, encode: Encode, warm_up: int = 2) -> dict[str, Any]:
    """The workload as the processes are given it: its counts, its prompts, and prompts to warm up with."""
    return {
        **asdict(workload),
        "prompts": prompts(workload, requests, encode),
        "warm_up": prompts(workload, warm_up, encode, seed="warm-up"),
    }
