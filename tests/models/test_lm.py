"""An engine under DSPy: its adapters, modules, parallel runs and evaluation, and what DSPy can't ask of it."""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy import lm15
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMInvalidRequestError,
    LMUnexpectedError,
    LMUnsupportedFeatureError,
)

from cuecard.errors import InputError
from cuecard.models.engine import Decoding, Failure, GenerateRequest
from cuecard.models.gather import EngineFailed
from cuecard.models.lm import DEFAULT_MAX_TOKENS, EngineBridge, bridge_of, language_model
from cuecard.models.tokenizer import HFTokenizer

from .helpers import LetterTokenizer, ScriptedEngine, engine_over, random_model, tokenizer

ANSWER = "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"


@pytest.fixture(autouse=True)
def quiet_dspy() -> Iterator[None]:
    with dspy.context(lm=None, track_usage=False):
        yield


def prompt_text(engine: ScriptedEngine, batch: int = -1, place: int = 0) -> str:
    return LetterTokenizer().decode(engine.batches[batch][place].prompt)


def asked(engine: ScriptedEngine) -> list[GenerateRequest]:
    return [request for batch in engine.batches for request in batch]


def request(lm: dspy.LM, text: str = "Hello", **config: Any) -> lm15.Request:
    return lm15.Request(model=lm.model, messages=(lm15.Message.user(text),), config=lm15.Config(**config))


def words(response: Any) -> str:
    return "".join(part.text for part in response.message.parts)


# DSPy's modules and adapters


def test_predict_reads_what_the_engine_says() -> None:
    engine = ScriptedEngine(lambda request, sample: ANSWER)
    with dspy.context(lm=language_model(engine), adapter=dspy.ChatAdapter()):
        assert dspy.Predict("question -> answer")(question="What is the capital of France?").answer == "Paris"
    text = prompt_text(engine)
    assert text.startswith("<system>")
    assert "What is the capital of France?" in text
    assert text.endswith("<assistant>")
    assert len(engine.batches) == 1


def test_demos_are_turns_of_the_chat() -> None:
    engine = ScriptedEngine(lambda request, sample: ANSWER)
    predict = dspy.Predict("question -> answer")
    predict.demos = [dspy.Example(question="Spain?", answer="Madrid")]
    with dspy.context(lm=language_model(engine), adapter=dspy.ChatAdapter()):
        predict(question="France?")
    text = prompt_text(engine)
    assert text.index("<user>") < text.index("Spain?") < text.index("<assistant>") < text.index("Madrid")
    assert text.index("Madrid") < text.index("France?")


def test_the_json_adapters_schema_becomes_a_grammar() -> None:
    class Triage(dspy.Signature):
        ticket: str = dspy.InputField()
        queue: Literal["billing", "technical"] = dspy.OutputField()
        score: int = dspy.OutputField()

    engine = ScriptedEngine(lambda request, sample: '{"queue": "billing", "score": 3}')
    with dspy.context(lm=language_model(engine), adapter=dspy.JSONAdapter()):
        result = dspy.Predict(Triage)(ticket="I was charged twice")
    assert (result.queue, result.score) == ("billing", 3)
    (made,) = asked(engine)
    assert made.grammar is not None
    schema = json.loads(made.grammar.removeprefix("start: %json "))
    assert set(schema["properties"]) == {"queue", "score"}
    assert schema["properties"]["queue"]["enum"] == ["billing", "technical"]


def test_a_random_model_fills_a_json_signature() -> None:
    """With the grammar in force, the weights do not matter: the types are right."""
    engine = engine_over(random_model("llama"))
    lm = language_model(engine, Decoding(max_tokens=60))
    for ticket in ("a", "b"):
        found = lm(
            request(
                lm,
                ticket,
                response_format={
                    "type": "json_schema",
                    "name": "t",
                    "schema": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["queue", "urgent"],
                        "properties": {
                            "queue": {"enum": ["billing", "technical", "account"]},
                            "urgent": {"type": "boolean"},
                        },
                    },
                },
            )
        )
        value = json.loads(words(found))
        assert value["queue"] in ("billing", "technical", "account")
        assert isinstance(value["urgent"], bool)


def test_a_json_object_without_a_schema_is_any_object() -> None:
    engine = ScriptedEngine()
    lm = language_model(engine)
    lm(request(lm, response_format={"type": "json_object"}))
    assert asked(engine)[-1].grammar == 'start: %json {"type": "object"}\n'


def test_chain_of_thought_and_a_program_of_two_steps() -> None:
    def script(request: GenerateRequest, sample: int) -> str:
        fields = ("reasoning", "summary") if "`summary`" in LetterTokenizer().decode(request.prompt) else ("label",)
        return "\n\n".join(f"[[ ## {name} ## ]]\nsome {name}" for name in fields) + "\n\n[[ ## completed ## ]]"

    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dspy.ChainOfThought("text -> summary"), dspy.Predict("note -> label")

        def forward(self, text: str) -> Any:
            return self.second(note=self.first(text=text).summary)

    engine = ScriptedEngine(script)
    with dspy.context(lm=language_model(engine), adapter=dspy.ChatAdapter()):
        assert Program()(text="t").label == "some label"
    assert len(engine.batches) == 2


# Settings


def test_settings_reach_the_engine() -> None:
    engine = ScriptedEngine()
    lm = language_model(engine)
    lm(request(lm, max_tokens=7, temperature=0.0, top_p=0.9, top_k=5, stop=("\n", "END"), seed=4,
               frequency_penalty=0.5, presence_penalty=-0.5))  # fmt: skip
    assert asked(engine)[-1].decoding == Decoding(
        max_tokens=7, top_p=0.9, top_k=5, stop=("\n", "END"), seed=4, frequency_penalty=0.5, presence_penalty=-0.5
    )


def test_defaults_are_the_targets_and_a_call_changes_them() -> None:
    engine = ScriptedEngine()
    assert asked_with(engine, language_model(engine)) == Decoding(max_tokens=DEFAULT_MAX_TOKENS)
    defaults = Decoding(max_tokens=9, stop=("x",), min_p=0.1)
    assert asked_with(engine, language_model(engine, defaults)) == defaults
    changed = asked_with(engine, language_model(engine, defaults), max_tokens=5, stop=["y"])
    assert changed == Decoding(max_tokens=5, stop=("y",), min_p=0.1)


def asked_with(engine: ScriptedEngine, lm: dspy.LM, **settings: Any) -> Decoding:
    lm("Hello", **settings)
    return asked(engine)[-1].decoding


def test_stop_strings_end_a_text() -> None:
    engine = engine_over(random_model("llama"))
    lm = language_model(engine, Decoding(max_tokens=40))
    (whole,) = lm("Hello")
    stop = whole[4:6]
    assert lm("Hello", stop=[stop]) == [whole[: whole.index(stop)]]


def test_what_dspy_has_no_word_for_goes_through_extensions() -> None:
    engine = ScriptedEngine()
    lm = language_model(engine)
    extra = {"min_p": 0.2, "repetition_penalty": 1.1, "grammar": 'start: "a"\n', "prefill": "Sure:", "raw": False}
    lm(request(lm, extensions={"cuecard": extra}))
    made = asked(engine)[-1]
    assert (made.decoding.min_p, made.decoding.repetition_penalty, made.grammar) == (0.2, 1.1, 'start: "a"\n')
    assert prompt_text(engine) == "<user>Hello\n<assistant>Sure:"
    lm(request(lm, extensions={"cuecard": {"raw": True, "prefill": " there"}}))
    assert prompt_text(engine) == "Hello there"


def test_roles_are_kept() -> None:
    engine = ScriptedEngine()
    lm = language_model(engine)
    turns = (lm15.Message.user("u"), lm15.Message.assistant("a"), lm15.Message.developer("d"), lm15.Message.user("v"))
    lm(lm15.Request(model=lm.model, system="s", messages=turns))
    assert prompt_text(engine) == "<system>s\n<user>u\n<assistant>a\n<system>d\n<user>v\n<assistant>"


def test_the_answer_says_how_it_ended_and_what_it_cost() -> None:
    engine = engine_over(random_model("llama"))
    lm = language_model(engine)
    cut = lm(request(lm, max_tokens=3))
    assert cut.finish_reason == "length"
    assert cut.usage.output_tokens == 3
    assert cut.usage.input_tokens == engine.ledger.prompt_tokens
    scripted = language_model(ScriptedEngine())
    assert scripted(request(scripted)).finish_reason == "stop"


# Samples and seeds


def samples(temperature: float, **settings: Any) -> list[str]:
    lm = language_model(engine_over(random_model("llama")), Decoding(max_tokens=8))
    return [text for text in lm("Hello", n=3, temperature=temperature, **settings)]


def test_n_samples_differ_and_are_the_same_in_every_run() -> None:
    first = samples(1.0)
    assert len(set(first)) == 3
    assert samples(1.0) == first
    assert samples(1.0, seed=5) != first
    assert samples(1.0, seed=5) == samples(1.0, seed=5)
    assert len(set(samples(0.0))) == 1


def test_predict_with_n_gives_several_completions() -> None:
    numbers = iter(range(10))
    engine = ScriptedEngine(lambda request, sample: f"[[ ## answer ## ]]\n{next(numbers)}\n\n[[ ## completed ## ]]")
    with dspy.context(lm=language_model(engine), adapter=dspy.ChatAdapter()):
        result = dspy.Predict("question -> answer", n=3, temperature=1.0)(question="?")
    assert result.completions.answer == ["0", "1", "2"]
    assert len({made.decoding.seed for made in asked(engine)}) == 3
    assert {made.decoding.n for made in asked(engine)} == {1}


def test_a_repeated_call_is_a_fresh_draw_unless_it_is_greedy() -> None:
    engine = ScriptedEngine()
    lm = language_model(engine)
    for _ in range(2):
        lm("Hello", temperature=1.0)
        lm("Hello", temperature=0.0)
        lm("Hello again", temperature=1.0)
    seeds = [made.decoding.seed for made in asked(engine)]
    assert seeds[0] != seeds[3]
    assert seeds[1] == seeds[4]
    assert (seeds[0], seeds[3]) == (seeds[2], seeds[5]), "how often a text was asked is counted for each text"


def test_equal_calls_for_different_items_do_not_race_for_seeds() -> None:
    """Two equal rows of a data set: each gets the seeds that it would get alone, whoever asks first."""
    found = []
    for order in ((0, 1), (1, 0)):
        engine = ScriptedEngine()
        bridge = EngineBridge(engine)
        seeds: dict[int, list[int]] = {}
        for item in order:

            def work(item: int = item, bridge: EngineBridge = bridge, engine: ScriptedEngine = engine,
                     seeds: dict[int, list[int]] = seeds) -> None:  # fmt: skip
                with bridge.gatherer.worker():
                    bridge.gatherer.working_on(item)
                    for _ in range(2):
                        bridge.complete(
                            lm15.Request(
                                model="m", messages=(lm15.Message.user("Hi"),), config=lm15.Config(temperature=1.0)
                            )
                        )
                        seeds.setdefault(item, []).append(asked(engine)[-1].decoding.seed)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join(30)
        found.append(seeds)
    assert found[0] == found[1]
    assert len(set(found[0][0])) == 2


# What can't be answered


def test_a_prompt_that_is_too_long_is_dspys_own_error() -> None:
    engine = ScriptedEngine(context_window=40)
    with pytest.raises(ContextWindowExceededError, match="the prompt has 65 tokens, and the context window holds 40"):
        language_model(engine)("x" * 47)
    assert engine.batches == []


def test_dspy_asks_for_more_than_is_left_and_gets_what_is_left() -> None:
    engine = ScriptedEngine(context_window=60)
    lm = language_model(engine)
    lm("x" * 30, max_tokens=4000)
    assert asked(engine)[-1].decoding.max_tokens == 60 - len(asked(engine)[-1].prompt)


def test_tools_are_refused() -> None:
    lm = language_model(ScriptedEngine())
    tool = lm15.FunctionTool(name="search", parameters={"type": "object", "properties": {}})
    with pytest.raises(LMUnsupportedFeatureError, match="tool"):
        lm(lm15.Request(model=lm.model, messages=(lm15.Message.user("Hello"),), tools=(tool,)))


@pytest.mark.parametrize("config", [{"logprobs": 3}, {"reasoning": lm15.Reasoning(effort="low")}], ids=str)
def test_what_would_be_dropped_in_silence_is_refused(config: dict[str, Any]) -> None:
    lm = language_model(ScriptedEngine())
    with pytest.raises(LMUnsupportedFeatureError, match=next(iter(config))):
        lm(request(lm, **config))


def test_an_image_is_refused() -> None:
    lm = language_model(ScriptedEngine())
    picture = lm15.Message(role="user", parts=(lm15.ImagePart(url="https://example.org/cat.png"),))
    with pytest.raises(LMUnsupportedFeatureError, match="takes text only, not ImagePart"):
        lm(lm15.Request(model=lm.model, messages=(picture,)))


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"beam": 4}, "unknown extension 'beam'; expected one of min_p, repetition_penalty, grammar, prefill, raw"),
        ({"min_p": 7}, "min_p: Input should be less than or equal to 1, got 7"),
        ({"repetition_penalty": "much"}, "repetition_penalty: "),
    ],
)
def test_a_setting_that_makes_no_sense_is_an_invalid_request(extra: dict[str, Any], says: str) -> None:
    engine = ScriptedEngine()
    lm = language_model(engine)
    with pytest.raises(LMInvalidRequestError) as caught:
        lm(request(lm, extensions={"cuecard": extra}))
    assert says in str(caught.value)
    assert engine.batches == []


def test_a_failure_is_an_invalid_request_with_its_reason() -> None:
    lm = language_model(ScriptedEngine(lambda request, sample: Failure("the grammar can't be compiled: no")))
    with pytest.raises(LMInvalidRequestError, match="the grammar can't be compiled: no"):
        lm("Hello")


def test_an_engine_that_breaks_is_no_bad_answer() -> None:
    """It is raised through DSPy's adapters, which would try another format after an answer that can't be read."""
    engine = ScriptedEngine(lambda request, sample: ANSWER, trouble=RuntimeError("the device is lost"))
    with (
        dspy.context(lm=language_model(engine), adapter=dspy.ChatAdapter()),
        pytest.raises(LMUnexpectedError) as caught,
    ):
        dspy.Predict("question -> answer")(question="?")
    assert "the device is lost" in str(caught.value)
    assert isinstance(caught.value.__cause__, EngineFailed)
    assert len(engine.batches) == 1


def test_a_model_without_a_chat_template_says_so() -> None:
    bare = copy.deepcopy(tokenizer())
    bare.chat_template = None
    engine = ScriptedEngine(tokenizer=HFTokenizer(bare, name="base"))
    lm = language_model(engine)
    with pytest.raises(Exception, match="model 'base' has no chat template") as caught:
        lm("Hello")
    assert isinstance(caught.value.__cause__ or caught.value, InputError)
    lm(request(lm, extensions={"cuecard": {"raw": True}}))
    assert bare.decode(list(asked(engine)[-1].prompt)) == "Hello"


# Programs around it


def test_a_copied_program_keeps_the_engine() -> None:
    engine = ScriptedEngine(lambda request, sample: ANSWER)
    lm = language_model(engine)
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    for twin in (program.deepcopy(), copy.deepcopy(program), program.reset_copy()):
        if twin.lm is not None:
            assert bridge_of(twin.lm) is bridge_of(lm)
    assert bridge_of(copy.deepcopy(lm)).engine is engine
    assert bridge_of(lm.copy(temperature=0.5)).engine is engine


def test_bridges_are_only_behind_our_own() -> None:
    engine = ScriptedEngine()
    assert bridge_of(language_model(engine)).engine is engine
    assert bridge_of(dspy.LM("openai/some-model")) is None
    assert bridge_of(None) is None


def test_the_lm_is_named_after_the_engines_identity() -> None:
    assert language_model(ScriptedEngine(identity="abc123")).model == "cuecard/abc123"


def number_in(request: GenerateRequest) -> int:
    return int(LetterTokenizer().decode(request.prompt).split("number ")[1].split(".")[0])


def doubles(request: GenerateRequest, sample: int) -> str:
    return f"[[ ## answer ## ]]\n{2 * number_in(request)}\n\n[[ ## completed ## ]]"


def test_parallel_runs_get_their_own_answers() -> None:
    engine = ScriptedEngine(doubles)
    predict = dspy.Predict("question -> answer")
    with dspy.context(lm=language_model(engine), adapter=dspy.ChatAdapter()):
        runner = dspy.Parallel(num_threads=4, disable_progress_bar=True)
        results = runner([(predict, {"question": f"number {i}."}) for i in range(12)])
    assert [result.answer for result in results] == [str(2 * i) for i in range(12)]
    assert len(asked(engine)) == 12


def test_dspys_own_evaluation_works(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    engine = ScriptedEngine(doubles)
    devset = [
        dspy.Example(question=f"number {i}.", answer=str(2 * i if i % 4 else -1)).with_inputs("question")
        for i in range(8)
    ]
    with dspy.context(lm=language_model(engine), adapter=dspy.ChatAdapter()):
        evaluate = dspy.Evaluate(
            devset=devset, metric=lambda gold, found, trace=None: gold.answer == found.answer, num_threads=3,
            display_progress=False,
        )  # fmt: skip
        assert evaluate(dspy.Predict("question -> answer")).score == 75.0


def test_streaming_gives_the_whole_answer() -> None:
    bridge = EngineBridge(ScriptedEngine(lambda request, sample: "a whole answer"))
    asked = lm15.Request(model="m", messages=(lm15.Message.user("Hello"),))
    events = list(bridge.stream(asked))
    assert "a whole answer" in "".join(str(event) for event in events)


def test_the_response_cache_of_dspy_is_not_used() -> None:
    engine = ScriptedEngine()
    lm = language_model(engine)
    lm("Hello", temperature=0.0)
    lm("Hello", temperature=0.0)
    assert len(engine.batches) == 2


# The start of a text

START = "<|im_start|>"


def starting(template: str) -> HFTokenizer:
    """A tokenizer that begins every text with a token, as Llama's do."""
    from tokenizers.processors import TemplateProcessing

    backend = copy.deepcopy(tokenizer())
    backend.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A <|endoftext|>", special_tokens=[(START, 1), ("<|endoftext|>", 0)]
    )
    backend.chat_template = template
    return HFTokenizer(backend, name="starting")


@pytest.mark.parametrize("written", ["", "{{ bos_token }}", START])
def test_a_text_is_started_once(written: str) -> None:
    """By the tokenizer or by the template: most models whose tokenizers start a text have templates that do so as well."""
    ours = starting(written + "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    assert ours.start() == (1,)
    engine = ScriptedEngine(tokenizer=ours)
    language_model(engine)("Hello")
    (made,) = asked(engine)
    assert made.prompt[0] == 1
    assert 1 not in made.prompt[1:]
    assert 0 not in made.prompt
    assert ours.decode(made.prompt) == "user: Hello\n"


def test_a_tokenizer_without_a_start_adds_none() -> None:
    ours = HFTokenizer(tokenizer(), name="tiny")
    assert ours.start() == ()
    assert ours.encode("") == ()
    assert ours.decode([]) == ""
    assert ours.decode(ours.encode("<|im_start|>user")) == "user", "special tokens written in a text are recognised"


def test_signatures_with_models_of_their_own() -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    engine = ScriptedEngine(lambda request, sample: '{"person": {"name": "Ada", "age": 36}}')
    with dspy.context(lm=language_model(engine), adapter=dspy.JSONAdapter()):
        person = dspy.Predict(dspy.Signature("text -> person: Person", custom_types={"Person": Person}))(
            text="t"
        ).person
    assert person == Person(name="Ada", age=36)
    assert asked(engine)[0].grammar is not None
