"""From logits to the next token: penalties, masks, temperature, top-k, top-p, min-p, and the draw.

The definitions are the usual ones: the repetition penalty of Keskar et al. 2019 (arXiv 1909.05858, 4.1), frequency
and presence penalties as OpenAI defines them (logit minus count times the first, minus the second when the count is
not 0), the nucleus of Holtzman et al. 2020 (arXiv 1904.09751, 3.1), min-p of Nguyen et al. 2024 (arXiv 2407.01082).
They apply in that order. Every sample has its own counter-based random stream, so its tokens do not depend on what
else is in the batch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..seeds import derive_seed
from .engine import Decoding

COLDEST = 1e-30  # below, float32 has no room between a temperature and 0


def log_normaliser(logits: Tensor) -> Tensor:
    """The logarithm of the softmax's denominator, float32 [n], of logits [n, V] in any dtype."""
    peak = logits.amax(dim=-1, keepdim=True).float()
    shifted = logits.to(torch.float32, copy=True).sub_(peak)
    return shifted.exp_().sum(dim=-1).log_().add_(peak[:, 0])


@dataclass
class Sampler:
    """Chooses the tokens of one sample."""

    decoding: Decoding
    prompt: tuple[int, ...]
    sample: int
    counts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        seed = derive_seed(self.decoding.seed, self.sample)
        self._stream = np.random.Generator(np.random.Philox(key=seed))

    @property
    def plain(self) -> bool:
        """Whether the next token is simply the most likely one (greedy, and no penalty moves the logits)."""
        settings = self.decoding
        return settings.temperature == 0 and not self._penalised

    @property
    def _penalised(self) -> bool:
        settings = self.decoding
        return bool(settings.frequency_penalty or settings.presence_penalty or settings.repetition_penalty != 1.0)

    def choose(self, logits: Tensor) -> int:
        """The next token from float32 logits [V] (masked tokens at minus infinity). `logits` may be written to."""
        if logits.device.type == "mps":
            logits = logits.cpu()  # a draw needs float64, which MPS does not have
        if self._penalised:
            self._penalise(logits)
        if self.decoding.temperature == 0:
            return int(torch.argmax(logits))
        coldest = max(self.decoding.temperature, COLDEST)
        return self._draw((logits - logits.max()) / coldest)  # from 0 down, so that nothing overflows

    def skip(self) -> None:
        """Pass over a token that is taken without a choice: the next draws are what they would be after it."""
        if self.decoding.temperature > 0:
            self._stream.random()

    def took(self, token: int) -> None:
        """Count a token that was chosen."""
        self.counts[token] += 1

    def _penalise(self, logits: Tensor) -> None:
        settings = self.decoding
        if settings.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(self.prompt) | set(self.counts)), device=logits.device)
            values = logits[seen]
            penalty = settings.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self.counts and (settings.frequency_penalty or settings.presence_penalty):
            tokens = torch.tensor(list(self.counts), device=logits.device)
            counts = torch.tensor(list(self.counts.values()), dtype=logits.dtype, device=logits.device)
            logits[tokens] -= settings.frequency_penalty * counts + settings.presence_penalty

    def _draw(self, logits: Tensor) -> int:
        settings = self.decoding
        tokens: Tensor | None = None
        if settings.top_k or settings.top_p < 1.0:
            size = min(settings.top_k or logits.shape[0], logits.shape[0])
            logits, tokens = torch.topk(logits, size)
        probabilities = torch.softmax(logits.double(), dim=-1)
        if settings.top_p < 1.0:
            before = torch.cumsum(probabilities, dim=-1) - probabilities
            probabilities = torch.where(before < settings.top_p, probabilities, 0.0)
        if settings.min_p > 0.0:
            keep = probabilities >= settings.min_p * probabilities.max()
            probabilities = torch.where(keep, probabilities, 0.0)
        mass = torch.cumsum(probabilities, dim=-1)
        point = self._stream.random() * float(mass[-1])
        index = int(
            torch.searchsorted(mass, torch.tensor([point], dtype=mass.dtype, device=mass.device), right=True)[0]
        )
        index = min(index, len(mass) - 1)
        return int(tokens[index]) if tokens is not None else index
