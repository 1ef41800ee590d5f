"""How fast an engine is on this device: the rates of prefill and decoding, measured on random tokens.

Prefill is the time of prompts of which no two share a token at the start, each with one token of output. Decoding is
the time that further tokens of output take, for one text alone and for several side by side. Each is the median of a
few rounds after one that is not counted, since the first pays for what is set up once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, RunError
from .engine import Decoding, Failure, GenerateRequest
from .engine_base import HeldEngine

ROUNDS = 3
PROMPT = 256  # tokens of a prompt, or half of the window where that is less
PROMPTS = 4
STEPS = 24  # tokens of output
SIDE_BY_SIDE = 32


@dataclass(frozen=True)
class Rates:
    """Tokens a second: of prompts; of one text's output; and of the outputs of `together` texts, taken together."""

    prefill: float
    alone: float
    side_by_side: float
    together: int


def measure(engine: HeldEngine, *, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """The rates of an engine. Raises `RunError` where it can't answer, `InputError` for a window too small to measure.

    clock: seconds.
    """
    length = min(PROMPT, engine.context_window // 2)
    steps = min(STEPS, engine.context_window - length)
    if steps < 2:
        raise InputError(
            f"a context window of {engine.context_window} tokens is too small to measure in",
            expected="3 tokens or more",
        )
    bench = _Bench(engine, clock)
    bench.seconds(PROMPTS, length, steps)
    prefill = statistics.median(PROMPTS * length / bench.seconds(PROMPTS, length, 1)[0] for _ in range(ROUNDS))
    short = max(1, length // 8)
    return Rates(prefill, bench.decoding(1, short, steps), bench.decoding(SIDE_BY_SIDE, short, steps), SIDE_BY_SIDE)


class _Bench:
    """Asks an engine for texts, with prompts that were never there before."""

    def __init__(self, engine: HeldEngine, clock: Callable[[], float]) -> None:
        self._engine, self._clock = engine, clock
        self._vocabulary = int(engine.model.config.get_text_config().vocab_size)
        self._random = np.random.Generator(np.random.Philox(key=0))

    def seconds(self, texts: int, length: int, tokens: int) -> tuple[float, int]:
        """How long so many texts of `tokens` tokens after prompts of `length` take, and how many tokens there were."""
        numbers = self._random.integers(0, self._vocabulary, (texts, length))
        requests = [GenerateRequest(tuple(row.tolist()), Decoding(max_tokens=tokens)) for row in numbers]
        before, began = self._engine.ledger.generated_tokens, self._clock()
        results = self._engine.generate(requests)
        seconds = self._clock() - began
        for result in results:
            if isinstance(result, Failure):
                raise RunError(f"the model can't be measured: {result.error}")
        return max(seconds, 1e-9), self._engine.ledger.generated_tokens - before

    def decoding(self, texts: int, length: int, steps: int) -> float:
        """Tokens a second beyond the first of each text. A text may end by itself: what was written is counted."""
        rates = []
        for _ in range(ROUNDS):
            first, one = self.seconds(texts, length, 1)
            whole, all_of_it = self.seconds(texts, length, steps)
            rates.append(max(all_of_it - one, 0) / max(whole - first, 1e-9))
        return statistics.median(rates)
