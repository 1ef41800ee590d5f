"""What every engine owes its callers. An implementation's test class inherits `EngineConformance` and gives the engine.

Results of one request in different company may differ by rounding; texts, which are chosen greedily or with a seed, may
not, as long as the model's next token is no near tie.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from cuecard.models.engine import (
    Decoding,
    Engine,
    Failure,
    GenerateRequest,
    Generation,
    Sample,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
)
from cuecard.models.spans import PER_TOKEN

TEXTS = (
    "A customer was charged twice for one order.",
    "A customer was charged once, and asks for the money back.",
    "A customer",
    "Please change the address of my account.",
    "Question: what is the capital of France? Answer:",
    "Question: what is the capital of Spain? Answer:",
    "The answer is a list of numbers: [1, 2, 3]",
)
CHOICES = 'start: "yes" | "no" | "maybe later"\n'
CLOSE = 1e-3
UNKNOWN = 10**9


class EngineConformance:
    """Override the fixture `engine`: an engine with a context window of at least 128 tokens, whose texts vary."""

    tolerance = CLOSE

    @pytest.fixture
    def engine(self) -> Engine:
        raise NotImplementedError

    @staticmethod
    def prompt(engine: Engine, text: str) -> tuple[int, ...]:
        return engine.tokenizer.start() + engine.tokenizer.encode(text)

    def prompts(self, engine: Engine) -> list[tuple[int, ...]]:
        return [self.prompt(engine, text) for text in TEXTS]

    def generation(self, engine: Engine, request: GenerateRequest) -> Generation:
        (result,) = engine.generate([request])
        assert isinstance(result, Generation), result
        return result

    def sample(self, engine: Engine, prompt: tuple[int, ...], **settings: object) -> Sample:
        (sample,) = self.generation(engine, GenerateRequest(prompt, Decoding.model_validate(settings))).samples
        return sample

    def scores(self, engine: Engine, request: ScoreRequest) -> Scores:
        (result,) = engine.score([request])
        assert isinstance(result, Scores), result
        return result

    # What it is

    def test_it_is_an_engine_that_names_itself(self, engine: Engine) -> None:
        assert isinstance(engine, Engine)
        assert engine.name
        assert engine.identity
        assert engine.context_window >= 128

    def test_identity_does_not_change_with_use(self, engine: Engine) -> None:
        before = engine.identity
        self.sample(engine, self.prompt(engine, TEXTS[0]), max_tokens=2)
        assert engine.identity == before

    def test_the_tokenizer_gives_text_back(self, engine: Engine) -> None:
        for text in TEXTS:
            assert engine.tokenizer.decode(engine.tokenizer.encode(text)) == text

    # Batches

    def test_an_empty_batch_has_no_results(self, engine: Engine) -> None:
        before = engine.ledger.copy()
        assert engine.generate([]) == []
        assert engine.score([]) == []
        assert (engine.ledger - before).calls == 0

    def test_generations_are_in_the_order_of_the_requests(self, engine: Engine) -> None:
        requests = [GenerateRequest(prompt, Decoding(max_tokens=8)) for prompt in self.prompts(engine)]
        together = engine.generate(requests)
        assert [result.samples[0].tokens for result in together] == [
            self.sample(engine, request.prompt, max_tokens=8).tokens for request in requests
        ]
        assert len({result.samples[0].tokens for result in together}) > 1, "the texts must vary"
        assert [result.samples[0].tokens for result in reversed(engine.generate(requests[::-1]))] == [
            result.samples[0].tokens for result in together
        ]

    def test_scores_are_in_the_order_of_the_requests(self, engine: Engine) -> None:
        continuations = (engine.tokenizer.encode(" yes"), engine.tokenizer.encode(" no, never"))
        requests = [ScoreRequest(prompt, continuations) for prompt in self.prompts(engine)]
        together = engine.score(requests)
        for request, result in zip(requests, together, strict=True):
            assert result.totals == pytest.approx(self.scores(engine, request).totals, abs=self.tolerance)
        for result, other in zip(together, reversed(engine.score(requests[::-1])), strict=True):
            assert result.totals == pytest.approx(other.totals, abs=self.tolerance)
        assert len({round(result.totals[0], 2) for result in together}) > 1, "the scores must vary"

    def test_equal_requests_have_equal_results(self, engine: Engine) -> None:
        prompt = self.prompt(engine, TEXTS[0])
        first, second = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=8, temperature=1.0))] * 2)
        assert first == second
        one, two = engine.score([ScoreRequest(prompt, ((5,), (6, 7)))] * 2)
        assert one == two

    def test_the_same_batch_gives_the_same_results(self, engine: Engine) -> None:
        requests = [GenerateRequest(p, Decoding(max_tokens=8, temperature=1.0, n=2)) for p in self.prompts(engine)]
        assert engine.generate(requests) == engine.generate(requests)
        scored = [ScoreRequest(prompt, ((5, 6), (7,))) for prompt in self.prompts(engine)]
        assert engine.score(scored) == engine.score(scored)

    # Failures

    def test_a_generation_that_fails_fails_alone(self, engine: Engine) -> None:
        prompts = self.prompts(engine)
        greedy = Decoding(max_tokens=4)
        bad = [
            GenerateRequest((), greedy),
            GenerateRequest(prompts[0], Decoding(max_tokens=engine.context_window)),
            GenerateRequest(prompts[0], greedy, "start: nothing\n"),
            GenerateRequest((*prompts[0], UNKNOWN), greedy),
            GenerateRequest((-1, *prompts[0]), greedy),
        ]
        good = [GenerateRequest(prompt, greedy) for prompt in prompts]
        mixed = [request for pair in zip(good, bad, strict=False) for request in pair] + good[len(bad) :]
        results = engine.generate(mixed)
        assert len(results) == len(mixed)
        expected = {request: result for request, result in zip(good, engine.generate(good), strict=True)}
        for request, result in zip(mixed, results, strict=True):
            if request in expected:
                assert isinstance(result, Generation)
                assert result.samples[0].tokens == expected[request].samples[0].tokens
            else:
                assert isinstance(result, Failure)
                assert result.error.strip()

    def test_a_score_that_fails_fails_alone(self, engine: Engine) -> None:
        prompt = self.prompt(engine, TEXTS[0])
        too_long = (5,) * engine.context_window
        bad = [
            ScoreRequest((), ((5,),)),
            ScoreRequest(prompt, ()),
            ScoreRequest(prompt, ((5,), ())),
            ScoreRequest(prompt, ((5,), too_long)),
            ScoreRequest(prompt, ((5, UNKNOWN),)),
            ScoreRequest((-1,), ((5,),)),
        ]
        good = ScoreRequest(prompt, ((5,), (6, 7)))
        results = engine.score([request for request in bad for request in (request, good)])
        for failed, result in zip(results[::2], results[1::2], strict=True):
            assert isinstance(failed, Failure)
            assert failed.error.strip()
            assert isinstance(result, Scores)
            assert result.totals == pytest.approx(self.scores(engine, good).totals, abs=self.tolerance)

    def test_every_engine_refuses_in_the_same_words(self, engine: Engine) -> None:
        prompt, window = self.prompt(engine, TEXTS[0]), engine.context_window
        empty, negative, long = engine.generate(
            [
                GenerateRequest(()),
                GenerateRequest((*prompt, -1)),
                GenerateRequest(prompt, Decoding(max_tokens=window)),
            ]
        )
        assert isinstance(empty, Failure)
        assert empty.error == "a prompt needs at least one token"
        assert isinstance(negative, Failure)
        assert negative.error.startswith("the model has no token -1")
        assert isinstance(long, Failure)
        need = f"prompt and output need {len(prompt) + window} tokens, and the model's context window holds {window}"
        assert long.error == need
        nothing, long = engine.score([ScoreRequest(prompt, ()), ScoreRequest(prompt, ((5,) * window,))])
        assert isinstance(nothing, Failure)
        assert nothing.error == "a score needs a prompt and continuations of at least one token each"
        assert isinstance(long, Failure)
        assert long.error == need

    def test_a_batch_of_failures_is_all_failures(self, engine: Engine) -> None:
        assert all(isinstance(result, Failure) for result in engine.generate([GenerateRequest(())] * 3))
        assert all(isinstance(result, Failure) for result in engine.score([ScoreRequest((), ((5,),))] * 3))

    def test_the_whole_window_can_be_used_and_no_more(self, engine: Engine) -> None:
        prompt = (5,) * (engine.context_window - 2)
        fits, over = engine.generate(
            [GenerateRequest(prompt, Decoding(max_tokens=2)), GenerateRequest(prompt, Decoding(max_tokens=3))]
        )
        assert isinstance(fits, Generation)
        assert isinstance(over, Failure)
        fits, over = engine.score([ScoreRequest(prompt, ((5, 6),)), ScoreRequest(prompt, ((5, 6, 7),))])
        assert isinstance(fits, Scores)
        assert isinstance(over, Failure)

    # Scores

    def test_a_score_has_one_logprob_for_each_token(self, engine: Engine) -> None:
        continuations = ((5,), (6, 7), (6, 7, 8), (5,))
        for prompt in (self.prompt(engine, TEXTS[0]), (5,)):
            scores = self.scores(engine, ScoreRequest(prompt, continuations))
            assert [len(tokens) for tokens in scores.logprobs] == [1, 2, 3, 1]
            assert all(logprob <= 1e-6 for tokens in scores.logprobs for logprob in tokens)
            assert scores.totals == pytest.approx([sum(tokens) for tokens in scores.logprobs])
            assert scores.logprobs[0] == scores.logprobs[3]
            assert scores.logprobs[1] == pytest.approx(scores.logprobs[2][:2], abs=self.tolerance)

    def test_a_continuation_can_be_scored_in_pieces(self, engine: Engine) -> None:
        prompt, text = self.prompt(engine, TEXTS[0]), engine.tokenizer.encode(" Please refund the second charge.")
        whole = self.scores(engine, ScoreRequest(prompt, (text,))).totals[0]
        for cut in (1, len(text) // 2, len(text) - 1):
            first, rest = engine.score(
                [ScoreRequest(prompt, (text[:cut],)), ScoreRequest(prompt + text[:cut], (text[cut:],))]
            )
            assert first.totals[0] + rest.totals[0] == pytest.approx(whole, abs=self.tolerance)

    def test_next_token_probabilities_do_not_exceed_one(self, engine: Engine) -> None:
        tokens = sorted({token for text in TEXTS for token in engine.tokenizer.encode(text)})
        scores = self.scores(engine, ScoreRequest(self.prompt(engine, TEXTS[1]), tuple((token,) for token in tokens)))
        assert 0 < sum(2.718281828459045**total for total in scores.totals) <= 1 + self.tolerance

    def test_a_generated_text_has_the_score_that_it_says(self, engine: Engine) -> None:
        for temperature in (0.0, 1.3):
            for prompt in self.prompts(engine)[:3]:
                sample = self.sample(engine, prompt, max_tokens=8, temperature=temperature, top_k=20)
                assert len(sample.logprobs) == len(sample.tokens)
                if sample.tokens:
                    scores = self.scores(engine, ScoreRequest(prompt, (sample.tokens,)))
                    assert sample.logprobs == pytest.approx(scores.logprobs[0], abs=self.tolerance)

    # Decoding

    def test_greedy_takes_the_likeliest_token(self, engine: Engine) -> None:
        prompt = self.prompt(engine, TEXTS[3])
        sample = self.sample(engine, prompt, max_tokens=1)
        tokens = {token for text in TEXTS for token in engine.tokenizer.encode(text)} | set(sample.tokens)
        scores = self.scores(engine, ScoreRequest(prompt, tuple((token,) for token in sorted(tokens))))
        if sample.tokens:
            assert max(scores.totals) == pytest.approx(sample.logprobs[0], abs=self.tolerance)

    @pytest.mark.parametrize("most", [1, 7])
    def test_max_tokens_is_the_most(self, engine: Engine, most: int) -> None:
        for prompt in self.prompts(engine)[:3]:
            sample = self.sample(engine, prompt, max_tokens=most)
            assert len(sample.tokens) <= most
            assert (sample.finish == "length") == (len(sample.tokens) == most)
            assert sample.text == engine.tokenizer.decode(sample.tokens)
            assert sample.tokens == self.sample(engine, prompt, max_tokens=20).tokens[:most]

    def test_a_stop_string_ends_the_text_and_is_not_in_it(self, engine: Engine) -> None:
        samples = [(prompt, self.sample(engine, prompt, max_tokens=30)) for prompt in self.prompts(engine)]
        for prompt, whole in [(prompt, sample) for prompt, sample in samples if len(sample.text) > 12]:
            for stop in (whole.text[5:7], whole.text[3:10]):
                stopped = self.sample(engine, prompt, max_tokens=30, stop=["never said", stop])
                assert stopped.text == whole.text[: whole.text.index(stop)]
                assert stopped.finish == "stop"
                assert stopped.tokens == whole.tokens[: len(stopped.tokens)]
        assert any(len(sample.text) > 12 for _, sample in samples), "no text is long enough to be stopped"

    def test_the_first_of_several_stop_strings_ends_the_text(self, engine: Engine) -> None:
        for prompt in self.prompts(engine):
            whole = self.sample(engine, prompt, max_tokens=30).text
            if len(whole) > 12:
                for early, late in ((whole[2:4], whole[8:12]), (whole[2:7], whole[4:7])):
                    stopped = self.sample(engine, prompt, max_tokens=30, stop=(late, early))
                    assert stopped.text == whole[: min(whole.index(early), whole.index(late))]

    def test_n_samples_come_in_the_order_of_their_seeds(self, engine: Engine) -> None:
        prompt = self.prompt(engine, TEXTS[4])
        drawn = {n: self.generation(engine, GenerateRequest(prompt, Decoding(max_tokens=8, temperature=1.0, n=n)))
                 for n in (1, 2, 6)}  # fmt: skip
        for n, generation in drawn.items():
            assert len(generation.samples) == n
            assert [s.tokens for s in generation.samples] == [s.tokens for s in drawn[6].samples[:n]]
        assert len({sample.tokens for sample in drawn[6].samples}) > 1

    def test_greedy_samples_are_all_the_same(self, engine: Engine) -> None:
        request = GenerateRequest(self.prompt(engine, TEXTS[4]), Decoding(max_tokens=8, n=3))
        assert len({sample.tokens for sample in self.generation(engine, request).samples}) == 1

    def test_a_seed_decides_the_text_whatever_else_is_in_the_batch(self, engine: Engine) -> None:
        prompts = self.prompts(engine)
        mine = GenerateRequest(prompts[0], Decoding(max_tokens=8, temperature=1.0, seed=7))
        alone = self.generation(engine, mine).samples[0].tokens
        others = [GenerateRequest(p, Decoding(max_tokens=12, temperature=1.2, seed=3, n=3)) for p in prompts]
        assert engine.generate([*others, mine])[-1].samples[0].tokens == alone
        assert engine.generate([mine, *others[::-1]])[0].samples[0].tokens == alone

    def test_other_seeds_give_other_texts(self, engine: Engine) -> None:
        prompt = self.prompt(engine, TEXTS[0])
        texts = {self.sample(engine, prompt, max_tokens=8, temperature=1.0, seed=seed).tokens for seed in range(6)}
        assert len(texts) > 1

    def test_a_text_with_its_own_limit_disturbs_no_other(self, engine: Engine) -> None:
        prompts = self.prompts(engine)
        limits = [1, 30, 2, 17, 5, 9, 3]
        results = engine.generate(
            [GenerateRequest(p, Decoding(max_tokens=limit)) for p, limit in zip(prompts, limits, strict=True)]
        )
        for prompt, limit, result in zip(prompts, limits, results, strict=True):
            assert result.samples[0].tokens == self.sample(engine, prompt, max_tokens=limit).tokens

    def test_a_grammar_is_followed_to_its_end(self, engine: Engine) -> None:
        results = engine.generate(
            [GenerateRequest(p, Decoding(max_tokens=20, temperature=1.0), CHOICES) for p in self.prompts(engine)]
        )
        for result in results:
            assert result.samples[0].text in ("yes", "no", "maybe later")
            assert result.samples[0].finish in ("grammar", "stop")

    # The account

    def test_the_ledger_counts_generations(self, engine: Engine) -> None:
        prompts = self.prompts(engine)
        before = engine.ledger.copy()
        results = engine.generate([GenerateRequest(p, Decoding(max_tokens=6, temperature=1.0, n=2)) for p in prompts])
        spent = engine.ledger - before
        assert spent.calls == len(prompts)
        assert spent.prompt_tokens == sum(map(len, prompts))
        assert 0 <= spent.cached_tokens < spent.prompt_tokens
        assert spent.generated_tokens == sum(len(sample.tokens) for result in results for sample in result.samples)
        assert spent.forward_passes >= 1
        assert spent.seconds >= 0
        assert engine.ledger.calls == before.calls + len(prompts), "the snapshot must not move with the ledger"

    def test_the_ledger_counts_scores(self, engine: Engine) -> None:
        requests = [ScoreRequest(prompt, ((5,), (6, 7), (6, 8))) for prompt in self.prompts(engine)]
        before = engine.ledger.copy()
        engine.score(requests)
        spent = engine.ledger - before
        assert spent.calls == len(requests)
        assert spent.prompt_tokens == sum(len(request.prompt) + 5 for request in requests)
        assert 0 <= spent.cached_tokens < spent.prompt_tokens
        assert spent.generated_tokens == 0
        assert spent.forward_passes >= 1

    # Spans

    def spans(self, engine: Engine, *requests: SpanRequest) -> list[Spans]:
        results = engine.spans(requests)
        assert all(isinstance(result, Spans) for result in results), results
        return results  # type: ignore[return-value]

    def span_requests(self, engine: Engine, width: int, against: bool) -> list[SpanRequest]:
        encode = engine.tokenizer.encode
        words = [
            encode(text) for text in (" one two three four five", " two three four", " six", " one ten nine eight")
        ]
        found = tuple(run[:6] for run in words)
        cuts = tuple(tuple(range(1, len(run) + 1)) for run in found)
        other = self.prompt(engine, "Something else altogether") if against else None
        beside = (encode(" none of them\n"), found[2] + encode("\n"), ())  # no span, one of the spans, nothing
        asked = zip(self.prompts(engine), beside, strict=False)
        return [SpanRequest(prompt, found, cuts, encode("\n"), width, other, also) for prompt, also in asked]

    @pytest.mark.parametrize("width", [1, 2, 8])
    @pytest.mark.parametrize("against", [True, False])
    def test_spans_have_the_scores_of_their_tokens(self, engine: Engine, width: int, against: bool) -> None:
        requests = self.span_requests(engine, width, against)
        for request, result in zip(requests, self.spans(engine, *requests), strict=True):
            assert 0 < len(result.scores) <= 2 * width
            texts = [request.runs[found.run][: found.length] + request.end for found in result.scores]
            assert len(set(texts)) == len(texts)
            assert (result.also is not None) == bool(request.also)
            texts += [request.also] if request.also else []
            made = [(found.total, found.against) for found in result.scores] + ([result.also] if result.also else [])
            totals = self.scores(engine, ScoreRequest(request.prompt, tuple(texts))).totals
            assert [total for total, _ in made] == pytest.approx(totals, abs=10 * self.tolerance)
            held = [0.0] * len(texts)
            if request.against is not None:
                held = list(self.scores(engine, ScoreRequest(request.against, tuple(texts))).totals)
            assert [other for _, other in made] == pytest.approx(held, abs=10 * self.tolerance)

    def test_a_wide_search_finds_the_best_span(self, engine: Engine) -> None:
        for request in self.span_requests(engine, 16, False):
            (found,) = self.spans(engine, request)
            every = {run[:n] + request.end for run, at in zip(request.runs, request.cuts, strict=True) for n in at}
            totals = self.scores(engine, ScoreRequest(request.prompt, tuple(every))).totals
            end = len(request.end)
            worth = [total + PER_TOKEN * (len(t) - end) for t, total in zip(every, totals, strict=True)]
            best = max(score.total + PER_TOKEN * score.length for score in found.scores)
            assert best == pytest.approx(max(worth), abs=10 * self.tolerance)

    def test_spans_that_can_not_be_scored_fail_alone(self, engine: Engine) -> None:
        good = self.span_requests(engine, 2, True)[0]
        bad = [
            replace(good, runs=()),
            replace(good, cuts=((9,),) * len(good.runs)),
            replace(good, width=0),
            replace(good, end=()),
        ]
        results = engine.spans([good, *bad])
        assert isinstance(results[0], Spans)
        assert all(isinstance(result, Failure) for result in results[1:])
        assert engine.spans([]) == []
