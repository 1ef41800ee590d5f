"""Reading specs: what a good one gives, and the exact words for everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cuecard.errors import InputError
from cuecard.programs.problems import InputErrors
from cuecard.programs.spec import MAIN, Spec, json_schema, load_spec, read_spec
from cuecard.programs.yaml_source import dump_yaml, parse_yaml

DESIGNED = """\
# yaml-language-server: $schema=./cuecard.schema.json
name: ticket_triage
description: Route a support ticket to a queue and say why.
model: smollm2-135m
inputs:
  ticket: str
nodes:
  summary:
    module: predict
    signature: "ticket -> summary: str"
    instructions: Summarise the ticket in one sentence.
    inputs: {ticket: "${inputs.ticket}"}
  route:
    module: chain_of_thought
    signature: "ticket, summary -> queue: Literal['billing', 'technical', 'account']"
    inputs: {ticket: "${inputs.ticket}", summary: "${summary.summary}"}
outputs:
  queue: "${route.queue}"
data: {train: data/train.jsonl, dev: data/dev.jsonl, test: data/test.jsonl}
metric: exact_match
optimize:
  optimizer: joint
  budget: {metric_calls: 2000, seconds: 600}
  seed: 0
  search: {demos: [0, 8], instructions: 8, formats: auto, readouts: auto, temperature: [0.0, 1.0]}
tests:
  - {name: refund, inputs: {ticket: "I was charged twice"}, assert: [{type: equals, field: queue, value: billing}]}
  - {name: quality, data: data/test.jsonl, metric: exact_match, at_least: 0.8, baseline: ticket_triage.baseline.json}
"""

ONE = "signature: 'question -> answer'\n"

LABELS = "signature: \"q -> a: Literal['yes', 'no']\"\n"

TWO = """\
inputs: {ticket: str, count: int}
nodes:
  summary:
    signature: "ticket -> summary"
  route:
    module: chain_of_thought
    signature: "ticket, summary -> queue: Literal['billing', 'technical']"
    inputs: {ticket: "${inputs.ticket}", summary: "${summary.summary}"}
outputs: {queue: "${route.queue}"}
"""


def two(*changes: tuple[str, str]) -> str:
    """The two-node spec with pieces of it replaced."""
    text = TWO
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def read(text: str, path: str = "spec.yaml", **options: Any) -> Spec:
    return read_spec(parse_yaml(text, path), **options)


def message(text: str, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        read(text, **options)
    return str(raised.value)


def test_the_designed_spec() -> None:
    spec = read(DESIGNED)
    assert spec.name == "ticket_triage"
    assert spec.model is not None and spec.model.id == "smollm2-135m"
    assert list(spec.steps) == ["summary", "route"]
    assert spec.steps["route"].module == "chain_of_thought"
    assert spec.optimize.search.demos == (0, 8)
    assert spec.optimize.search.decoding == {"temperature": (0.0, 1.0)}
    assert spec.metric is not None and spec.metric[0].metric == "exact_match"
    assert spec.tests[0].conditions is not None and spec.tests[0].conditions[0].value == "billing"
    assert spec.warnings == ()
    assert (spec.line("nodes", "route", "signature"), spec.line("tests", 1, "data")) == (15, 28)


def test_it_is_written_back_as_it_was() -> None:
    spec = read(DESIGNED)
    assert spec.to_data() == parse_yaml(DESIGNED, "spec.yaml").data
    assert list(spec.to_data()) == list(parse_yaml(DESIGNED, "spec.yaml").data)
    assert read(dump_yaml(spec.to_data())).to_data() == spec.to_data()


def test_a_program_of_one_step() -> None:
    spec = read(LABELS + "module: chain_of_thought\nfields: {q: the question}\nreadout: choice\n", path="my-task.yaml")
    assert spec.name == "my-task"
    assert list(spec.steps) == [MAIN]
    node = spec.steps[MAIN]
    assert (node.module, node.fields, node.inputs) == ("chain_of_thought", {"q": "the question"}, None)
    assert node.readout is not None and node.readout.kind == "choice"
    assert spec.to_data() == {
        "name": "my-task",
        "module": "chain_of_thought",
        "signature": "q -> a: Literal['yes', 'no']",
        "fields": {"q": "the question"},
        "readout": "choice",
    }


def test_short_forms_and_long_forms() -> None:
    spec = read(
        ONE + "model: {id: a, dtype: bfloat16, options: {max_tokens: 9}}\ndata: all.jsonl\n"
        "metric: [rouge_l, {metric: judge, weight: 2, rubric: Be kind.}]\n"
        "optimize: {search: {temperature: 0.5, readouts: [text], calibrations: [none, batch]}}\n"
    )
    assert spec.model is not None and spec.model.options is not None and spec.model.options.max_tokens == 9
    assert spec.data is not None and (spec.data.train, spec.data.dev) == ("all.jsonl", None)
    assert spec.metric is not None
    assert [(m.metric, m.weight, m.options) for m in spec.metric] == [
        ("rouge_l", 1.0, {}),
        ("judge", 2.0, {"rubric": "Be kind."}),
    ]
    search = spec.optimize.search
    assert (search.temperature, search.readouts, search.calibrations) == ((0.5, 0.5), ("text",), ("none", "batch"))


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("small", {"id": "small"}),
        ("http://a:1/v1", {"server": "http://a:1/v1"}),
        ("{server: http://a:1}", {"server": "http://a:1"}),
        (
            "{server: https://a, id: m, tokenizer: here, api_key_env: KEY, timeout: 3.5, unseeded: true}",
            {
                "server": "https://a",
                "id": "m",
                "tokenizer": "here",
                "api_key_env": "KEY",
                "timeout": 3.5,
                "unseeded": True,
            },
        ),
    ],
)
def test_a_model_in_process_or_on_a_server(model: str, given: dict[str, Any]) -> None:
    spec = read(ONE + f"model: {model}\n")
    assert spec.model is not None
    assert {key: getattr(spec.model, key) for key in spec.model.model_fields_set} == given
    assert read(dump_yaml(spec.to_data())).model == spec.model


def test_warnings_are_not_errors() -> None:
    spec = read(two(('summary: "${summary.summary}"', 'summary: "none yet"')))
    assert spec.warnings == (
        "spec.yaml:3: nodes.summary: nothing reads this node's outputs",
        "spec.yaml:1: inputs.count: nothing reads this input",
    )


def test_types_that_fit() -> None:
    read(
        "inputs: {n: int, tag: \"Literal['a', 'b']\", who: {type: {name: str, age: int}}}\n"
        "nodes:\n"
        "  one:\n"
        "    signature: {inputs: {x: float, y: \"Literal['c', 'b', 'a']\", z: str, p: {type: {name: str}}}, outputs: {r: str}}\n"
        '    inputs: {x: "${inputs.n}", y: "${inputs.tag}", z: "${inputs.n}", p: "${inputs.who}"}\n'
        "  two:\n"
        '    signature: "a, b, c: int -> d"\n'
        '    inputs: {a: "${one.r}", b: "n is ${inputs.n}, a dollar $${x}", c: 3}\n'
    )


UNSAFE = "\n  Use a path inside it, or allow this with --allow-outside if you trust the spec."
TYPES = (
    "str, bool, int, float, Decimal, date, datetime, time, UUID, Any, Literal[...], list[...], dict[str, ...], "
    "Optional[...] or Annotated[...]"
)
FORMATS = "one of completion, turns, turns_labelled, chat, dspy, json, xml"

BAD = {
    # its form
    "- a\n": "spec.yaml:1: found a list; expected a mapping",
    "name: x\n": "spec.yaml:1: the program is missing; expected 'nodes', or 'signature' for a program of one step",
    ONE + "nodes: {a: {signature: 'b -> c'}}\ninputs: {b: str}\n": (
        "spec.yaml:1: signature: found 'signature' beside 'nodes'; expected one of them"
    ),
    TWO + "instructions: Be brief.\n": (
        "spec.yaml:10: instructions: this key belongs inside a node\n  Move it to nodes.NAME.instructions."
    ),
    # its keys and values
    ONE + "budget: {seconds: 60}\n": "spec.yaml:2: budget: unknown key\n  Write it under `optimize:`.",
    ONE + "optimize: {demos: 4}\n": "spec.yaml:2: optimize.demos: unknown key\n  Write it under `search:`.",
    ONE + "optimise: {seed: 1}\n": "spec.yaml:2: optimise: unknown key (did you mean 'optimize'?)",
    ONE + "optimize: {budget: {zzz: 1}}\n": (
        "spec.yaml:2: optimize.budget.zzz: unknown key; expected one of metric_calls, model_calls, seconds, tokens"
    ),
    ONE + "decoding:\n  temprature: 1\n": "spec.yaml:3: decoding.temprature: unknown key (did you mean 'temperature'?)",
    ONE + "name: 3\n": "spec.yaml:2: name: found 3; expected text\n  Put it in quotes.",
    ONE + "name: ../x\n": "spec.yaml:2: name: found '../x'; expected a name of letters, digits, '_', '-' and '.'",
    ONE + "optimize: {seed: soon}\n": "spec.yaml:2: optimize.seed: found 'soon'; expected a whole number",
    ONE + "optimize: {budget: {metric_calls: 0}}\n": (
        "spec.yaml:2: optimize.budget.metric_calls: found 0; expected at least 1"
    ),
    ONE + "optimize: {search: {temperature: [1, 0]}}\n": (
        "spec.yaml:2: optimize.search.temperature: the range starts at 1.0 but ends at 0.0"
    ),
    ONE + "optimize: {search: {demos: [0, 1, 2]}}\n": (
        "spec.yaml:2: optimize.search.demos: expected a number or a range, [low, high]"
    ),
    ONE + "readout: chioce\n": (
        "spec.yaml:2: readout: found 'chioce'; expected 'text', 'constrained', 'choice', 'channel', 'span' or 'head' "
        "(did you mean 'choice'?)"
    ),
    ONE + "optimize: {search: {readouts: [text, chioce]}}\n": (
        "spec.yaml:2: optimize.search.readouts[1]: found 'chioce'; expected 'text', 'constrained', 'choice', 'channel', "
        "'span' or 'head' (did you mean 'choice'?)"
    ),
    # its model
    ONE + "model: {device: cpu}\n": "spec.yaml:2: model: the key 'id' is missing; expected it, or 'server'",
    ONE + "model: {sever: http://a}\n": (
        "spec.yaml:2: model.sever: unknown key (did you mean 'server'?)\n"
        "spec.yaml:2: model: the key 'id' is missing; expected it, or 'server'"
    ),
    ONE + "model:\n  server: http://a:1/v1\n  dtype: float32\n  device: cpu\n": (
        "spec.yaml:4: model.dtype: found 'dtype' beside 'server'\n  The server has its own dtype.\n"
        "spec.yaml:5: model.device: found 'device' beside 'server'\n  The server has its own device."
    ),
    ONE + "model:\n  id: a\n  dialect: vllm\n  unseeded: false\n": (
        "spec.yaml:4: model.dialect: found 'dialect' without 'server'; expected server: http://HOST:PORT\n"
        "spec.yaml:5: model.unseeded: found 'unseeded' without 'server'; expected server: http://HOST:PORT"
    ),
    ONE + "model: {server: 'localhost:8000'}\n": (
        "spec.yaml:2: model.server: found 'localhost:8000'; expected http://HOST:PORT or https://HOST\n"
        "  Write http://localhost:8000"
    ),
    ONE + "model: {server: 'http://me:secret@a:b'}\n": (
        "spec.yaml:2: model.server: found 'http://a:b'; expected http://HOST:PORT or https://HOST"
    ),
    ONE + "model: {id: http://a:1}\n": "spec.yaml:2: model.id: found an address; expected server: http://a:1",
    ONE + "model: {server: http://a, dialect: vlm, tries: 0, timeout: soon, context_window: 1}\n": (
        "spec.yaml:2: model.dialect: found 'vlm'; expected 'auto', 'vllm', 'sglang', 'llamacpp', 'ollama' or 'openai' "
        "(did you mean 'vllm'?)\n"
        "spec.yaml:2: model.timeout: found 'soon'; expected a number\n"
        "spec.yaml:2: model.tries: found 0; expected at least 1\n"
        "spec.yaml:2: model.context_window: found 1; expected at least 2"
    ),
    ONE + "model: {server: 3, dialect: vllm}\n": (
        "spec.yaml:2: model.server: found 3; expected text\n  Put it in quotes."
    ),
    two(('    signature: "ticket -> summary"\n', "    instructions: Sum up.\n")): (
        "spec.yaml:3: nodes.summary: the key 'signature' is missing"
    ),
    two(("inputs: {ticket: str, count: int}\n", "")): (
        "spec.yaml:1: inputs: the key 'inputs' is missing; expected the program's inputs, {NAME: TYPE}"
    ),
    # modules, signatures, names
    two(("chain_of_thought", "chain_of_thoughts")): (
        "spec.yaml:6: nodes.route.module: unknown module 'chain_of_thoughts' (did you mean 'chain_of_thought'?)"
    ),
    two(("Literal[", "Litteral[")): (
        f"spec.yaml:7: nodes.route.signature: queue: found the type 'Litteral'; expected {TYPES} "
        "(did you mean 'Literal'?)"
    ),
    "signature: question\n": (
        "spec.yaml:1: signature: found no '->' in 'question'; expected inputs -> outputs, such as "
        "'question -> answer: str'"
    ),
    "signature: 'reasoning -> x'\nmodule: chain_of_thought\n": (
        "spec.yaml:1: signature: the signature already has a field 'reasoning', which chain_of_thought adds\n"
        "  Rename the field, or use module: predict."
    ),
    ONE + "fields: {anwser: the answer}\n": (
        "spec.yaml:1: signature: found a description of 'anwser', which is no field; expected question, answer "
        "(did you mean 'answer'?)"
    ),
    two(("count: int", "count: integer")): (
        f"spec.yaml:1: inputs.count: found the type 'integer'; expected {TYPES} (did you mean 'int'?)"
    ),
    two(("  summary:\n", "  batch:\n"), ("${summary.", "${batch.")): (
        "spec.yaml:3: nodes.batch: 'batch' is an attribute of every program\n  Rename the node."
    ),
    two(("  summary:\n", "  my-node:\n"), ('"${summary.summary}"', "none")): (
        "spec.yaml:3: nodes.my-node: 'my-node' is no name; expected letters, digits and '_', a letter first"
    ),
    # references
    two(("${summary.summary}", "${summry.summary}")): (
        "spec.yaml:8: nodes.route.inputs.summary: ${summry.summary}: there is no node 'summry' "
        "(did you mean '${summary.summary}'?)"
    ),
    two(("${summary.summary}", "${summary.sumary}")): (
        "spec.yaml:8: nodes.route.inputs.summary: ${summary.sumary}: node 'summary' has no output 'sumary' "
        "(did you mean '${summary.summary}'?)"
    ),
    two(("${inputs.ticket}", "${inputs.tickets}")): (
        "spec.yaml:8: nodes.route.inputs.ticket: ${inputs.tickets}: the program has no input 'tickets' "
        "(did you mean '${inputs.ticket}'?)"
    ),
    two(("${route.queue}", "${route.zzz}")): (
        "spec.yaml:9: outputs.queue: ${route.zzz}: node 'route' has no output 'zzz'; expected one of reasoning, queue"
    ),
    two(('"${route.queue}"', "route.queue")): (
        "spec.yaml:9: outputs.queue: found the text 'route.queue'; expected the reference ${route.queue}"
    ),
    two(("summary -> queue", "summary: list[str] -> queue"), ('"${summary.summary}"', '["${summary.summary}"]')): (
        "spec.yaml:8: nodes.route.inputs.summary: found a reference inside a list or mapping; "
        "expected a reference or text"
    ),
    two(('{queue: "${route.queue}"}', "{}")): (
        "spec.yaml:9: outputs: the program has no outputs; expected at least one, or no key 'outputs'"
    ),
    two(("${summary.summary}", "${summary}")): (
        "spec.yaml:8: nodes.route.inputs.summary: found '${summary}'; expected ${inputs.NAME} or ${NODE.FIELD}\n"
        "  A plain '${' is written '$${'."
    ),
    two(("${summary.summary}", "in short: ${summary.summary")): (
        "spec.yaml:8: nodes.route.inputs.summary: found '${summary.summary'; expected ${inputs.NAME} or "
        "${NODE.FIELD}\n  A plain '${' is written '$${'."
    ),
    two(("ticket -> summary", "tickets -> summary")): (
        "spec.yaml:3: nodes.summary.inputs.tickets: ${inputs.tickets}: the program has no input 'tickets' "
        "(did you mean '${inputs.ticket}'?)\n"
        "  Without 'inputs', a node reads the program's inputs of the same names."
    ),
    two(('inputs: {ticket: "${inputs.ticket}",', 'inputs: {tickets: "${inputs.ticket}",')): (
        "spec.yaml:8: nodes.route.inputs.tickets: the signature has no input 'tickets' (did you mean 'ticket'?)\n"
        "spec.yaml:8: nodes.route.inputs: the input 'ticket' is missing\n"
        '  Add ticket: "${inputs.ticket}"'
    ),
    two(("ticket, summary -> queue", "ticket: int, summary -> queue")): (
        "spec.yaml:8: nodes.route.inputs.ticket: ${inputs.ticket} is str; expected int"
    ),
    two(("ticket, summary -> queue", "ticket, summary: int -> queue"), ('"${summary', '"it is ${summary')): (
        "spec.yaml:8: nodes.route.inputs.summary: text with references in it is str; expected int"
    ),
    two(("ticket, summary -> queue", "ticket, summary: int -> queue"), ('"${summary.summary}"', "lots")): (
        "spec.yaml:8: nodes.route.inputs.summary: found 'lots'; expected a whole number"
    ),
    two(('"ticket -> summary"', '"ticket -> summary"\n    inputs: {ticket: "${route.queue}"}')): (
        "spec.yaml:5: nodes.summary.inputs.ticket: the nodes wait for each other: summary -> route -> summary"
    ),
    two(('"ticket -> summary"', '"ticket -> summary"\n    inputs: {ticket: "${summary.summary}"}')): (
        "spec.yaml:5: nodes.summary.inputs.ticket: the nodes wait for each other: summary -> summary"
    ),
    # learned parameters
    ONE + "format: completoin\n": (
        f"spec.yaml:2: format: unknown format 'completoin'; expected {FORMATS} (did you mean 'completion'?)"
    ),
    ONE + "optimize: {search: {formats: [jsn]}}\n": (
        f"spec.yaml:2: optimize.search.formats[0]: unknown format 'jsn'; expected {FORMATS} (did you mean 'json'?)"
    ),
    ONE + "readout: choice\n": (
        "spec.yaml:2: readout: the read-out 'choice' needs an output with a finite set of values; "
        "expected a Literal, an Enum or a bool among the outputs"
    ),
    ONE + "readout: channel\n": (
        "spec.yaml:2: readout: the read-out 'channel' needs an output with a finite set of values; "
        "expected a Literal, an Enum or a bool among the outputs"
    ),
    "signature: 'count: int -> big: bool'\nreadout: channel\n": (
        "spec.yaml:2: readout: the read-out `channel` needs an input that is a text\n  Use the read-out `choice`."
    ),
    LABELS + "readout: {kind: choice, per_label: 4}\n": (
        "spec.yaml:2: readout.per_label: found 'per_label' beside the read-out 'choice'; expected kind: channel"
    ),
    ONE + "readout: {kind: span, span: {fields: {anser: {absent: 1.0}, x: {reward: 0.1}}}}\n": (
        "spec.yaml:2: readout.span.fields.anser: no output that is a text has this name (did you mean 'answer'?)\n"
        "spec.yaml:2: readout.span.fields.x: no output that is a text has this name; expected one of answer"
    ),
    LABELS + "readout: {kind: choice, calibration: {method: bias, offsets: {a: {yse: 0.1}, b: {}}}}\n": (
        "spec.yaml:2: readout.calibration.offsets.a.yse: no such label (did you mean 'yes'?)\n"
        "spec.yaml:2: readout.calibration.offsets.b: no output with labels has this name; expected one of a"
    ),
    LABELS + "demos:\n  - {q: x, a: yess}\n  - {q: y, b: no}\n": (
        "spec.yaml:3: demos[0].a: found 'yess'; expected one of: yes, no (did you mean 'yes'?)\n"
        "spec.yaml:4: demos[1].b: the signature has no such field; expected one of q, a\n"
        "spec.yaml:4: demos[1]: the demo shows nothing; expected at least one input, and the last output, 'a'"
    ),
    # files and tests
    ONE + "data: {dev: /etc/passwd}\n": "spec.yaml:2: data.dev: '/etc/passwd' leads out of the spec's folder" + UNSAFE,
    ONE + "data: {dev: x/../../dev.jsonl}\n": (
        "spec.yaml:2: data.dev: 'x/../../dev.jsonl' leads out of the spec's folder" + UNSAFE
    ),
    ONE + "tests:\n  - {name: a, inputs: {question: x}}\n  - {name: a, data: x.jsonl, at_least: 1}\n": (
        "spec.yaml:3: tests[0]: the test is not complete, or of two kinds; expected either 'inputs' and 'assert', or "
        "'data' and one of 'at_least' and 'baseline'\n"
        "spec.yaml:4: tests[1].name: the name 'a' stands twice, first in tests[0]"
    ),
    ONE + "tests:\n  - {name: a, inputs: {qestion: x}, assert: [{type: equals, field: anwser, value: x}]}\n": (
        "spec.yaml:3: tests[0].inputs.qestion: the program has no input 'qestion' (did you mean 'question'?)\n"
        "spec.yaml:3: tests[0].inputs: the input 'question' is missing\n"
        "spec.yaml:3: tests[0].assert[0].field: the program has no output 'anwser' (did you mean 'answer'?)"
    ),
    # a Python program's
    "predictors:\n  a: {format: chat}\n  b: {signature: 'x -> y', demos: [{z: 1}]}\n": (
        "spec.yaml:2: predictors.a: the key 'signature' is missing\n"
        "spec.yaml:3: predictors.b.demos[0].z: the signature has no such field; expected one of x, y\n"
        "spec.yaml:3: predictors.b.demos[0]: the demo shows nothing; expected at least one input, and the last output, 'y'"
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD.items(), ids=[expected[:60] for expected in BAD.values()])
def test_a_bad_spec(text: str, expected: str) -> None:
    assert message(text) == expected


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    """A wrong key, value, module, reference and path, and a key that stands twice: none of them hides another."""
    path = tmp_path / "spec.yaml"
    path.write_text(
        two(("chain_of_thought", "react_"), ("${summary.summary}", "${summary.sumary}"), ("count: int", "ticket: int"))
        + "metrics: exact_match\noptimize: {seed: soon}\ndata: ../train.jsonl\n"
    )
    with pytest.raises(InputErrors) as raised:
        load_spec(path)
    assert [(error.line, error.field) for error in raised.value.errors] == [
        (1, "inputs.ticket"),
        (6, "nodes.route.module"),
        (8, "nodes.route.inputs.summary"),
        (10, "metrics"),
        (11, "optimize.seed"),
        (12, "data.train"),
    ]
    assert str(raised.value).count(f"{path}:") == 6


def test_one_error_is_not_told_twice() -> None:
    """What follows from an error that is told is not told: the node, its outputs, and what reads them."""
    broken = two(('signature: "ticket -> summary"', "signature: []"), ("count: int", "count: {typ: int}"))
    assert message(broken) == (
        "spec.yaml:1: inputs.count.typ: unknown key (did you mean 'type'?)\n"
        "spec.yaml:4: nodes.summary.signature: found a list; expected text or a mapping"
    )


def test_paths_must_stay_inside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "spec", tmp_path / "data"
    inside.mkdir()
    outside.mkdir()
    (outside / "train.jsonl").write_text("{}\n")
    (inside / "link").symlink_to(outside)
    spec = inside / "spec.yaml"
    spec.write_text(ONE + "data: link/train.jsonl\n")
    with pytest.raises(InputError, match="leads out of the spec's folder"):
        load_spec(spec)
    assert load_spec(spec, allow_outside=True, check_files=True).data is not None


def test_files_are_looked_for_when_asked(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    (tmp_path / "train.jsonl").write_text("{}\n")
    spec.write_text(
        ONE + "data: {train: train.jsonl, dev: trian.jsonl}\ntests: [{name: a, data: no.jsonl, at_least: 1}]\n"
    )
    assert load_spec(spec).folder == tmp_path
    with pytest.raises(InputError) as raised:
        load_spec(spec, check_files=True)
    assert str(raised.value) == (
        f"{spec}:2: data.dev: no such file: trian.jsonl (did you mean 'train.jsonl'?)\n"
        f"{spec}:3: tests[0].data: no such file: no.jsonl"
    )


def test_a_missing_spec_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "triage.yaml").write_text(ONE)
    with pytest.raises(InputError) as raised:
        load_spec(tmp_path / "traige.yaml")
    assert str(raised.value) == (f"{tmp_path}/traige.yaml: no such file (did you mean '{tmp_path}/triage.yaml'?)")


def test_the_schema_agrees() -> None:
    """What editors accept and refuse by the schema is what loading accepts and refuses."""
    schema = json.loads(json.dumps(json_schema()))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for good in (DESIGNED, ONE, TWO, LABELS + "readout: choice\nmodel: {id: a}\noptimize: {search: {demos: 3}}\n"):
        validator.validate(parse_yaml(good, "spec.yaml").data)
    for bad in (
        "optimise: {}",
        "readout: chioce",
        "optimize: {seed: soon}",
        "tests: [{nam: x}]",
        "model: {dtype: half}",
    ):
        assert list(validator.iter_errors(parse_yaml(ONE + bad, "spec.yaml").data))
