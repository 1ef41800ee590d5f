"""A format as what it also is: a `dspy.Adapter`, for any `dspy.LM` and any of DSPy's modules."""

from __future__ import annotations

import copy
from typing import Any, Literal

import dspy
import pytest
from dspy.lm15 import Message, Response, TextPart, Usage
from dspy.utils.callback import BaseCallback

from cuecard.programs.formats import Format, format_named, names

every_name = pytest.mark.parametrize("name", names())


class Classify(dspy.Signature):
    """Classify the question."""

    question: str = dspy.InputField()
    label: Literal["person", "place"] = dspy.OutputField()


class Scripted:
    """An engine that gives its answers one after the other, and keeps the prompts."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.prompts: list[list[tuple[str, str]]] = []

    def __deepcopy__(self, memo: Any) -> Scripted:
        return self

    def complete(self, request: Any) -> Response:
        system = [("system", request.system)] if request.system else []
        self.prompts.append([*system, *((message.role, message.text) for message in request.messages)])
        return Response(
            id=None,
            model="scripted",
            message=Message.assistant([TextPart(self.answers.pop(0))]),
            finish_reason="stop",
            usage=Usage(input_tokens=0, output_tokens=0, total_tokens=0),
        )

    def close(self) -> None:
        pass


def ask(format_: Format, engine: Scripted, program: Any, **inputs: Any) -> Any:
    with dspy.context(lm=dspy.LM("test/scripted", engine=engine, cache=False), adapter=format_):
        return program(**inputs)


@every_name
def test_a_predictor_with_demos(name: str) -> None:
    format_ = format_named(name)
    engine = Scripted(format_.answer(Classify, {"label": "place"}))
    predictor = dspy.Predict(Classify)
    predictor.demos = [dspy.Example(question="Who wrote Hamlet?", label="person")]
    assert ask(format_, engine, predictor, question="Where is Troy?").label == "place"
    (prompt,) = engine.prompts
    assert prompt == [
        (message["role"], message["content"])
        for message in format_.format(Classify, predictor.demos, {"question": "Where is Troy?"})
    ]


@every_name
def test_a_chain_of_thought(name: str) -> None:
    format_ = format_named(name)
    program = dspy.ChainOfThought(Classify)
    signature = program.predict.signature
    engine = Scripted(format_.answer(signature, {"reasoning": "Troy is a town.", "label": "place"}))
    prediction = ask(format_, engine, program, question="Where is Troy?")
    assert (prediction.reasoning, prediction.label) == ("Troy is a town.", "place")


@every_name
def test_an_unreadable_answer_is_an_error_that_dspy_knows(name: str) -> None:
    engine = Scripted("I cannot say.")
    with pytest.raises(dspy.AdapterParseError, match="label"):
        ask(format_named(name), engine, dspy.Predict(Classify), question="Where is Troy?")
    assert len(engine.prompts) == 1


@every_name
def test_react_shows_its_trajectory(name: str) -> None:
    def look_up(place: str) -> str:
        """Looks a place up."""
        return f"{place} is in Anatolia."

    format_ = format_named(name)
    program = dspy.ReAct("question -> answer", tools=[look_up], max_iters=2)
    step = program.react.signature
    engine = Scripted(
        format_.answer(
            step,
            {"next_thought": "Look.", "next_tool_name": "look_up", "next_tool_args": {"place": "Troy"}},
        ),
        format_.answer(step, {"next_thought": "Done.", "next_tool_name": "finish", "next_tool_args": {}}),
        format_.answer(program.extract.predict.signature, {"reasoning": "Seen.", "answer": "Anatolia"}),
    )
    assert ask(format_, engine, program, question="Where is Troy?").answer == "Anatolia"
    assert "Troy is in Anatolia." in engine.prompts[1][-1][1]


def test_a_running_text_is_one_message_up_to_the_first_label() -> None:
    messages = format_named("completion").format(Classify, [], {"question": "Where is Troy?"})
    assert messages == [{"role": "user", "content": "Classify the question.\n\nQuestion: Where is Troy?\nLabel:"}]


@every_name
def test_examples_for_finetuning_end_in_the_answer(name: str) -> None:
    format_ = format_named(name)
    inputs, outputs = {"question": "Where is Troy?"}, {"label": "place"}
    messages = format_.format_finetune_data(Classify, [], inputs, outputs)["messages"]
    assert messages[:-1] == format_.format(Classify, [], inputs)
    assert messages[-1] == {"role": "assistant", "content": format_.answer(Classify, outputs)}


@every_name
def test_callbacks_fire_once_a_call(name: str) -> None:
    class Count(BaseCallback):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.seen.append(f"format by {type(instance).__name__}")

        def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.seen.append(f"parse by {type(instance).__name__}")

    format_, count = format_named(name), Count()
    format_.callbacks = [count]
    ask(format_, Scripted(format_.answer(Classify, {"label": "place"})), dspy.Predict(Classify), question="Where?")
    assert count.seen == [f"format by {type(format_).__name__}", f"parse by {type(format_).__name__}"]


@every_name
def test_a_copy_does_the_same(name: str) -> None:
    format_ = format_named(name)
    again = copy.deepcopy(format_)
    assert again.head(Classify, [], {"question": "Q"}) == format_.head(Classify, [], {"question": "Q"})
