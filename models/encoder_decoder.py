"""The engine for encoder-decoder models (T5, BART and their kin): the prompt is the encoder's input, read once.

- The encoder reads a request's prompt, and behind it what the model's tokenizer puts behind every text: T5 and BART
  were trained with the end token there. Equal prompts of a batch are read once, whatever follows them.
- The decoder begins with `decoder_start_token_id` and, where the generation config has one, `forced_bos_token_id`;
  neither is part of an output. Other wishes of the generation config (beams, a least length, n-grams that may not
  repeat) are not followed: the decoding settings are the request's.
- Encoder and decoder have a limit each, and the engine protocol has one window for prompt and output together. The
  window here is the largest for which every prompt and output that fit into it also fit their own side, that is about
  the smaller of the two limits. A long prompt with a long output, which the model could take, is given up for that.
- What is scored is an output from its beginning. A prompt that ends with the first part of an output is another input,
  so a continuation's score is not the sum of its pieces', as it is in a decoder-only model.
- A repetition penalty counts the prompt's tokens as well, as for every engine here; transformers' own counts the
  decoder's alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .batch_rows import Batch, Tokens, pick_rows, repeats
from .batches import BatchEngine, first_of
from .constraints import Constraints, Matcher
from .engine import ScoreRequest

T5_WINDOW = 512  # tokens: T5's positions are relative, and it was trained on so many (Raffel et al. 2020, section 3.1)
SPACE = "\u2581"  # SentencePiece's mark of a space
_START = re.compile(r"^start(?=\s*(\[[^\]]*\]\s*)?:)", re.MULTILINE)
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Framing:
    """What stands around a model's texts. prefix: before what the decoder writes; suffix: behind what the encoder
    reads.
    """

    prefix: Tokens
    suffix: Tokens

    def window(self, config: Any, name: str) -> int:
        """The most tokens of prompt and output together. Raises `InputError` where the model states no limits."""
        common = _stated(config, "max_position_embeddings", "n_positions")
        if common is None and hasattr(config, "relative_attention_num_buckets"):
            common = T5_WINDOW
        encoder = _stated(config, "max_encoder_position_embeddings", "max_source_positions") or common
        decoder = _stated(config, "max_decoder_position_embeddings", "max_target_positions") or common
        if encoder is None or decoder is None:
            raise InputError(f"model {name!r} ({config.model_type}) states no context window in its config")
        return 1 + min(encoder - len(self.suffix), decoder - len(self.prefix) + 1)


def framing(config: Any, settings: Any, backend_tokenizer: Any, name: str) -> Framing:
    """The framing of a model's texts. settings: its generation config.

    Raises `InputError` where they do not say with which token the decoder starts.
    """
    start = first_of(settings.decoder_start_token_id, getattr(config, "decoder_start_token_id", None))
    start = first_of(settings.bos_token_id) if start is None else start
    if start is None:
        raise InputError(
            f"model {name!r} ({config.model_type}) does not say with which token its decoder starts",
            field="decoder_start_token_id",
            hint="State it in generation_config.json.",
        )
    forced = first_of(settings.forced_bos_token_id)
    suffix = _suffix(backend_tokenizer, first_of(config.get_text_config().eos_token_id))
    return Framing((start,) if forced is None else (start, forced), suffix)


@dataclass(frozen=True)
class Encoded:
    """What the encoder made of some prompts: hidden states [prompts, S, D], and where they are real [prompts, S]."""

    hidden: Tensor
    mask: Tensor

    def pick(self, rows: Sequence[int]) -> Encoded:
        """These prompts, in this order."""
        index = torch.tensor(rows, device=self.mask.device)
        return Encoded(self.hidden[index], self.mask[index])


class EncoderDecoderEngine(BatchEngine[Encoded]):
    """An encoder-decoder of transformers, see `BatchEngine` and the module's docstring."""

    reason = "it is an encoder-decoder"
    scores_inputs = False  # see `JournaledEngine.scores_inputs`

    def _set_up(self, backend_tokenizer: Any) -> None:
        self._framing = framing(self._model.config, self._model.generation_config, backend_tokenizer, self._name)
        self._prefix = self._framing.prefix
        self._constraints = SpacedConstraints(backend_tokenizer, self._vocabulary, self._constraints.ends)

    def _window(self) -> int:
        return self._framing.window(self._model.config, self._name)

    def _repeated(self, requests: Sequence[ScoreRequest]) -> int:
        return repeats((request.prompt, len(request.prompt)) for request in requests)

    def _open(self, prompts: Sequence[Tokens]) -> Encoded:
        texts = [self._input(prompt) for prompt in prompts]
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), self._pad)
        mask = torch.zeros(len(texts), width, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        mask = mask.to(self._model.device)
        self._ledger.forward_passes += 1
        encoder = self._model.get_encoder()
        output = encoder(input_ids=ids.to(self._model.device), attention_mask=mask, return_dict=True)
        return Encoded(output.last_hidden_state, mask)

    def _input(self, prompt: Tokens) -> Tokens:
        suffix = self._framing.suffix
        ended = not suffix or prompt[-len(suffix) :] == suffix
        return prompt if ended else prompt + suffix

    def _begin(self, opened: Encoded, places: Sequence[int]) -> Batch:
        return _Outputs(self._write, opened.pick(places), self._prefix)

    def _predict(self, opened: Encoded, places: Sequence[int], paths: Sequence[Tokens]) -> Iterator[Tensor]:
        width = len(self._prefix) + max(map(len, paths))
        ids = torch.full((len(paths), width), self._pad)
        for row, path in enumerate(paths):
            ids[row, : len(self._prefix) + len(path)] = torch.tensor(self._prefix + path)
        logits = self._write(opened.pick(places), ids, use_cache=False).logits
        first = len(self._prefix) - 1
        for row, path in enumerate(paths):
            yield logits[row, first : first + len(path) + 1]

    def _alone(self, prompt: Tokens, path: Tokens) -> Tensor:
        device = self._model.device
        output = self._forward(
            input_ids=torch.tensor([self._input(prompt)], device=device),
            decoder_input_ids=torch.tensor([self._prefix + path], device=device),
            use_cache=False,
        )
        logits: Tensor = output.logits
        return logits[0, len(self._prefix) - 1 :]

    def _write(self, encoded: Encoded, ids: Tensor, **cache: Any) -> Any:
        """The decoder's output for the tokens `ids` [prompts, T], one row for each encoded prompt."""
        from transformers.modeling_outputs import BaseModelOutput

        return self._forward(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.hidden),
            attention_mask=encoded.mask,
            decoder_input_ids=ids.to(self._model.device),
            **cache,
        )


class _Outputs(Batch):
    """Outputs that the decoder writes, all of the same length so far: nothing is padded."""

    def __init__(self, write: Callable[..., Any], encoded: Encoded, prefix: Tokens) -> None:
        self._write, self._encoded = write, encoded
        self._cache: Any = None
        self._run(torch.tensor([prefix] * len(encoded.mask)))

    def step(self, tokens: Sequence[int]) -> None:
        self._run(torch.tensor(tokens)[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        self._encoded = self._encoded.pick(rows)
        index = torch.tensor(rows, device=self.logits.device)
        self.logits, self._cache = self.logits[index], pick_rows(self._cache, index)

    def _run(self, ids: Tensor) -> None:
        output = self._write(self._encoded, ids, past_key_values=self._cache, use_cache=True)
        self.logits, self._cache = output.logits[:, -1], output.past_key_values


class SpacedConstraints(Constraints):
    """Grammars for tokenizers that write the space before a word into its token (SentencePiece's, such as T5's).

    An output's first word has such a space, which decoding takes off: here it may stand before what the grammar asks
    for. The tokens' texts are read off the vocabulary where llguidance can't read them from the tokenizer.
    """

    def matcher(self, grammar: str) -> Matcher:
        """See `Constraints.matcher`."""
        if _is_spaced(self.tokenizer):
            grammar = 'start: " "? unspaced_start\n' + _START.sub("unspaced_start", grammar, count=1)
        return super().matcher(grammar)

    def _tokens(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        if self._ready is None:
            try:
                return super()._tokens()
            except InputError:
                if not _is_spaced(self.tokenizer) or not self.ends:
                    raise
            self._ready = LLTokenizer(TokenizerWrapper(_Vocabulary(self)), eos_token=list(self.ends))
        return self._ready


class _Vocabulary:
    """A vocabulary as llguidance's `TokenizerWrapper` wants it."""

    def __init__(self, constraints: Constraints) -> None:
        backend = constraints.tokenizer
        special = set(backend.all_special_ids)
        known = backend.convert_ids_to_tokens(list(range(len(backend))))
        texts = [*known, *[None] * (constraints.vocabulary - len(known))][: constraints.vocabulary]
        self.special_token_ids = [i for i, text in enumerate(texts) if text is None or i in special]
        silent = set(self.special_token_ids)
        self.tokens = [b"" if i in silent else _bytes(text) for i, text in enumerate(texts)]
        self.eos_token_id, self.bos_token_id = constraints.ends[0], None
        self._ids = {text: i for i, text in enumerate(self.tokens) if text}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """The longest token that begins the text, then the next: the tokenizer itself would put a space before it."""
        ids, place = [], 0
        while place < len(text):
            sizes = range(min(self._longest, len(text) - place), 0, -1)
            size = next((size for size in sizes if text[place : place + size] in self._ids), 0)
            if not size:  # no token says this: nothing is sure to come next
                break
            ids.append(self._ids[text[place : place + size]])
            place += size
        return ids


def _bytes(token: str) -> bytes:
    """What a token of the vocabulary stands for; `<0x0A>` for the byte."""
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


def _is_spaced(backend: Any) -> bool:
    """Whether the tokenizer puts a space before a text's first word, and takes it off again."""
    if backend is None or not getattr(backend, "is_fast", False):
        return False
    first = backend.encode("a", add_special_tokens=False)
    begins = str(backend.convert_ids_to_tokens(first[:1])[0]).startswith(SPACE)
    return begins and backend.decode(first, clean_up_tokenization_spaces=False) == "a"


def _suffix(backend: Any, end: int | None) -> Tokens:
    """What stands behind every text that the model was trained on: what its tokenizer puts there."""
    if backend is None:
        return () if end is None else (end,)
    whole = backend.encode("a", add_special_tokens=True)
    plain = backend.encode("a", add_special_tokens=False)
    places = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
    return tuple(whole[places[0] + len(plain) :]) if places else ()


def _stated(config: Any, *names: str) -> int | None:
    """The first of these settings that the configuration has."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), None)
