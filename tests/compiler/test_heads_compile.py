"""Heads from compile to call: chosen or not, written beside the program, read again, refused where they don't fit."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import KEYWORDS, FakeEngine, Triage, WordLearner, compile_tickets, fake_target, says, tickets, word_counts

import cuecard
from cuecard.compiler.cli.summary import summary
from cuecard.compiler.evaluator import predictors_of
from cuecard.compiler.from_spec import compile_spec
from cuecard.compiler.replay import recorded, replay_target
from cuecard.errors import CuecardError, InputError
from cuecard.models.target import Target
from cuecard.optimizers.base import Budget
from cuecard.programs.spec import load_spec

from .cli_cases import cuecard as run_cuecard
from .cli_cases import write_rows

FILE = "triage.main.queue.0123456789ab.head.safetensors"
SPEC = """\
name: triage
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
metric: exact_match
optimize: {budget: {metric_calls: 160}, search: {demos: 0, instructions: 1, readouts: [text, head]}}
"""
TWO = """\
name: two
inputs: {ticket: str}
nodes:
  urgency: {signature: "ticket -> level: Literal['high', 'low']"}
  route:
    signature: "ticket, level -> queue: Literal['billing', 'technical', 'account']"
    inputs: {ticket: "${inputs.ticket}", level: "${urgency.level}"}
outputs: {level: "${urgency.level}", queue: "${route.queue}"}
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
metric: exact_match
optimize: {budget: {metric_calls: 260}, search: {demos: 0, instructions: 1, readouts: [head]}}
"""


def noise(prompt: str, layer: int) -> tuple[list[float], list[float]]:
    """Hidden states that tell nothing."""
    drawn = random.Random(f"{layer} {prompt}")
    return [drawn.gauss(0, 1) for _ in range(6)], [drawn.gauss(0, 1) for _ in range(6)]


def lay_out(folder: Path, text: str = SPEC) -> Path:
    """A spec with its data, in which a technical ticket is of a high level."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": 24, "dev": 18, "test": 12}.items(), start=1):
        rows = [{**row, "level": "high" if row["queue"] == "technical" else "low"} for row in tickets(count, seed)]
        write_rows(folder / f"{split}.jsonl", rows)
    path = folder / f"{text.splitlines()[0].removeprefix('name: ')}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def seeing(**options: Any) -> FakeEngine:
    """A model that answers at random, whose hidden states hold the ticket's words."""
    return FakeEngine(says(" hm"), **{"layers": 2, **options})


def compiled_of(path: Path, engine: FakeEngine | None = None, **options: Any) -> cuecard.Compiled:
    return compile_spec(path, target=fake_target(engine or seeing()), runs=path.parent / "runs", **options)


def run_of(compiled: cuecard.Compiled) -> dict[str, Any]:
    return json.loads(compiled.compilation.folder.run.read_text())  # type: ignore[no-any-return]


def head_in(folder: Path) -> Path:
    """The only head in a folder."""
    [path] = folder.glob("*.head.safetensors")
    return path


def layers_asked(compiled: cuecard.Compiled) -> list[int]:
    """How many layers each batch of a compile asked for, 0 for one that asked for text."""
    lines = list(map(json.loads, compiled.compilation.folder.calls.read_text(encoding="utf-8").splitlines()))
    first = [lines[place + 1] for place, line in enumerate(lines) if "batch" in line]
    return [len(call.get("layers", ())) for call in first]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> cuecard.Compiled:
    """A compile that a head wins."""
    return compiled_of(lay_out(tmp_path_factory.mktemp("made")))


@pytest.fixture
def folder(made: cuecard.Compiled, tmp_path: Path) -> Path:
    """A copy of what it wrote."""
    beside = made.compilation.folder.path.parents[1]
    for name in ("triage.compiled.yaml", head_in(beside).name):
        (tmp_path / name).write_bytes((beside / name).read_bytes())
    return tmp_path


# ---- chosen


def test_a_head_is_chosen_where_it_beats_the_prompts(made: cuecard.Compiled) -> None:
    compilation = made.compilation
    state = compilation.candidate.states["main"]
    assert compilation.result.accepted and state.readout.kind == "head"
    assert compilation.baseline["dev"].value == 0.0 and compilation.compiled["dev"].value > 0.8
    assert compilation.compiled["test"].value > 0.8
    head = state.readout.heads["queue"]
    assert (head.pooling, head.labels) == ("mean", ("billing", "technical", "account"))
    assert head.layer > 1, "the first layer holds noise"
    assert not state.demos and state.nearest is None
    trial = json.loads(compilation.folder.trials.read_text().splitlines()[-1])
    assert trial["best"] and trial["trial"] == run_of(made)["trial"] == run_of(made)["spent"]["trials"] - 1
    told = trial["params"]["main.queue.head"]
    assert (told["layer"], told["pooling"]) == (head.layer, "mean") and told["accuracy"] > 0.7


def test_the_best_of_prompts_alone_is_kept_beside_it(made: cuecard.Compiled) -> None:
    alone = made.spec.compiled.prompt_only  # type: ignore[union-attr]
    assert alone is not None and list(alone.predictors) == ["main"]
    assert alone.predictors["main"].readout.kind == "text"  # type: ignore[union-attr]
    assert alone.scores["dev"].value == made.compilation.baseline["dev"].value


def test_it_is_called_as_it_was_compiled(made: cuecard.Compiled) -> None:
    assert [made(ticket=row["ticket"]).queue for row in tickets(3, 9)] == ["billing", "technical", "account"]


def test_written_and_loaded_it_answers_the_same(made: cuecard.Compiled, folder: Path) -> None:
    loaded = cuecard.load(folder / "triage.compiled.yaml", target=fake_target(seeing()))
    rows = tickets(12, 9)
    answers = [loaded(ticket=row["ticket"]).queue for row in rows]
    assert answers == [made(ticket=row["ticket"]).queue for row in rows]
    assert sum(answer == row["queue"] for answer, row in zip(answers, rows, strict=True)) >= 10


def test_it_is_compiled_again_from_where_it_stands(folder: Path) -> None:
    lay_out(folder)
    (folder / "triage.yaml").unlink()
    again = compiled_of(folder / "triage.compiled.yaml", budget=Budget(trials=2))
    assert again.compilation.baseline["dev"].value > 0.8
    assert again.compilation.candidate.states["main"].readout.heads


def test_nothing_is_asked_to_be_written_where_the_head_answers(folder: Path) -> None:
    engine = seeing()
    program = cuecard.load(folder / "triage.compiled.yaml", target=fake_target(engine))
    program(ticket="the invoice and the refund")
    assert engine.ledger.generated_tokens == 0 and len(engine.batches) == 1


def test_in_a_program_of_two_predictors_each_has_its_head(tmp_path: Path) -> None:
    compiled = compiled_of(lay_out(tmp_path, TWO))
    states = compiled.compilation.candidate.states
    assert {name: list(state.readout.heads) for name, state in states.items()} == {
        "urgency": ["level"],
        "route": ["queue"],
    }
    written = sorted(re.sub("[0-9a-f]{12}", "HASH", path.name) for path in tmp_path.glob("*.safetensors"))
    assert written == ["two.route.queue.HASH.head.safetensors", "two.urgency.level.HASH.head.safetensors"]
    loaded = cuecard.load(tmp_path / "two.compiled.yaml", target=fake_target(seeing()))
    assert dict(loaded(ticket="a crash, an error, the screen").items()) == {"level": "high", "queue": "technical"}
    assert "language model" not in "".join(summary(compiled.compilation)) and run_of(compiled)["reference"] == {}


def test_a_head_alone_is_tried_on_the_written_text(tmp_path: Path) -> None:
    compiled = compiled_of(lay_out(tmp_path, SPEC.replace("[text, head]", "[head]")))
    trials = [json.loads(line) for line in compiled.compilation.folder.trials.read_text().splitlines()]
    assert {trial["params"].get("main.readout", "text") for trial in trials} == {"text"}
    assert compiled.compilation.candidate.states["main"].readout.kind == "head"


def test_a_python_program_has_heads_as_well(tmp_path: Path) -> None:
    options = {"search": {"instructions": 1, "demos": 0, "readouts": ["text", "head"]}, "budget": {"metric_calls": 90}}
    compiled = compile_tickets(tmp_path / "runs", seeing(), **options)
    path = compiled.write(tmp_path / "x.compiled.yaml")
    assert head_in(tmp_path).name.startswith("triage.route.queue.")
    with pytest.raises(InputError, match="compiled from a Python program"):
        cuecard.load(path)
    loaded = cuecard.load(path, program=Triage(), target=fake_target(seeing()))
    assert loaded(ticket="my password and my login").queue == "account"


def test_two_compiles_of_one_name_in_one_folder_both_keep_their_heads(tmp_path: Path) -> None:
    spec, rows = lay_out(tmp_path), tickets(12, 9)
    first = compiled_of(spec, output=tmp_path / "a.compiled.yaml")
    write_rows(tmp_path / "train.jsonl", [dict(row) for row in tickets(24, 7)])
    second = compiled_of(spec, output=tmp_path / "b.compiled.yaml")
    assert len(list(tmp_path.glob("triage.main.queue.*.head.safetensors"))) == 2
    for name, made in (("a", first), ("b", second)):
        loaded = cuecard.load(tmp_path / f"{name}.compiled.yaml", target=fake_target(seeing()))
        assert [loaded(**row.inputs()).queue for row in rows] == [made(**row.inputs()).queue for row in rows]


# ---- on another target


def elsewhere(**options: Any) -> FakeEngine:
    """Another model, whose hidden states have the same width."""
    return seeing(identity="other", **options)


def test_a_head_is_refused_on_another_model_of_its_width(folder: Path) -> None:
    engine = elsewhere()
    with pytest.raises(InputError) as caught:  # where it is loaded, or else where it is called
        cuecard.load(folder / "triage.compiled.yaml", target=fake_target(engine))(ticket="refund")
    told = str(caught.value)
    assert "the head of the output 'queue' does not go with fake (identity other)" in told
    assert "expected the target that it was fitted on: " in told and "identity fake" in told
    assert "compile the program for this one" in told and "compiled.prompt_only" in told
    assert not engine.batches, "nothing is asked of it"


def test_a_program_that_is_called_elsewhere_is_refused_as_well(folder: Path) -> None:
    program = cuecard.load(folder / "triage.compiled.yaml")
    for target in (fake_target(elsewhere()), fake_target(FakeEngine(identity="other"))):
        with pytest.raises(InputError, match="does not go with fake"):
            cuecard.evaluate(program, tickets(6, 3), "exact_match", target=target)
    assert cuecard.evaluate(program, tickets(6, 3), "exact_match", target=fake_target(seeing())).failed == 0


def test_it_is_not_compiled_again_elsewhere_from_where_it_stands(folder: Path) -> None:
    lay_out(folder)
    engine = elsewhere()
    with pytest.raises(InputError, match="the head of the output 'queue' does not go with fake"):
        compiled_of(folder / "triage.compiled.yaml", engine)
    assert not engine.batches
    compiled_of(folder / "triage.yaml", engine)
    assert engine.batches, "the spec that it was compiled from is"


# ---- not chosen


def test_a_head_that_loses_leaves_the_prompt(tmp_path: Path) -> None:
    engine = WordLearner(bias={"billing": 2.0}).engine(layers=3, hidden=noise)
    search = {"instructions": 1, "demos": [0, 4], "readouts": ["text", "choice", "head"]}
    compiled = compile_tickets(tmp_path / "runs", engine, search=search, budget={"metric_calls": 200})
    result = compiled.compilation.result
    assert result.accepted and result.prompt_only is result.chosen
    state = compiled.compilation.candidate.states["route"]
    assert state.demos and state.readout.kind in ("text", "choice")
    last = json.loads(compiled.compilation.folder.trials.read_text().splitlines()[-1])
    assert last["states"]["route"]["readout"]["kind"] == "head" and not last["best"]
    compiled.write(tmp_path / "x.compiled.yaml")
    assert not list(tmp_path.glob("*.safetensors"))
    assert compiled.spec.compiled is not None and compiled.spec.compiled.prompt_only is None
    assert "a linear head" not in "\n".join(summary(compiled.compilation))


def test_the_budget_pays_for_heads(made: cuecard.Compiled) -> None:
    told = run_of(made)
    assert told["search"]["head"] == {"calls": 18 + 2 * 24, "rows": 24, "formats": 2} and "left_out" not in told
    dev = sum(trial["examples"] for trial in map(json.loads, made.compilation.folder.trials.read_text().splitlines()))
    assert told["spent"]["metric_calls"] == dev + 2 * 24 <= 160


def test_a_short_budget_has_room_for_one_format(tmp_path: Path) -> None:
    compiled = compiled_of(lay_out(tmp_path), budget=Budget(metric_calls=110))
    told = run_of(compiled)
    assert told["search"]["head"] == {"calls": 18 + 24, "rows": 24, "formats": 1}
    assert told["spent"]["metric_calls"] <= 110 and told["spent"]["trials"] > 2
    assert compiled.compilation.candidate.states["main"].readout.kind == "head"


def test_a_budget_without_room_leaves_the_head_out_and_says_so(tmp_path: Path) -> None:
    compiled = compiled_of(lay_out(tmp_path), budget=Budget(metric_calls=40))
    told = run_of(compiled)
    assert told["search"]["head"] is False and told["left_out"] == ["head"]
    assert compiled.compilation.result.left_out == ("head",)
    trials = [json.loads(line) for line in compiled.compilation.folder.trials.read_text().splitlines()]
    assert not any(key.endswith(".head") for trial in trials for key in trial["params"])
    assert not list(tmp_path.glob("*.safetensors"))


def test_none_is_tried_unless_the_spec_asks(tmp_path: Path) -> None:
    engine = seeing()
    compiled = compile_tickets(tmp_path, engine, budget=Budget(trials=2))
    assert compiled.compilation.result.prompt_only is None
    assert not any(hasattr(request, "layers") for batch in engine.batches for request in batch)


def test_a_model_without_hidden_states_is_told_before_anything_runs(tmp_path: Path) -> None:
    engine = FakeEngine()
    with pytest.raises(InputError, match="the read-out 'head' needs hidden states, which 'fake'") as caught:
        compile_tickets(tmp_path, engine, search={"readouts": ["text", "head"]})
    assert caught.value.field == "optimize.search.readouts" and not engine.batches


def test_a_program_with_a_head_says_so_on_a_model_without_hidden_states(folder: Path) -> None:
    program = cuecard.load(folder / "triage.compiled.yaml", target=fake_target(FakeEngine()))
    with pytest.raises(InputError, match="this target does not give hidden states, which a head reads"):
        program(ticket="refund")


# ---- replayed


def scored(target: Target, path: Path, count: int = 6) -> list[Any]:
    found = cuecard.evaluate(cuecard.load(path), tickets(count, 3), "exact_match", target=target)
    return [(outcome.prediction, outcome.measurement) for outcome in found.outcomes]


def test_what_a_head_read_is_replayed_without_the_model(folder: Path) -> None:
    path = folder / "triage.compiled.yaml"
    with recorded(fake_target(seeing()), folder / "calls") as target:
        found = scored(target, path)
    assert scored(replay_target(folder / "calls"), path) == found
    with pytest.raises(
        InputError, match="the prompt of the predictor 'main' has changed since its calls were recorded"
    ):
        scored(replay_target(folder / "calls"), path, count=7)


def test_a_head_that_reads_another_layer_is_told_in_a_replay(folder: Path) -> None:
    path = folder / "triage.compiled.yaml"
    with recorded(fake_target(seeing()), folder / "calls") as target:
        scored(target, path)
    program = cuecard.load(path)
    [predictor] = predictors_of(program).values()
    heads = {name: head.model_copy(update={"layer": 1}) for name, head in predictor.readout.heads.items()}
    predictor.readout = predictor.readout.model_copy(update={"heads": heads})
    with pytest.raises(InputError, match="The prompt is the same, the hidden states that a head reads are others"):
        cuecard.evaluate(program, tickets(6, 3), "exact_match", target=replay_target(folder / "calls"))


# ---- resumed


class Killed(BaseException):
    """Stands for a kill, within the process: nobody catches it."""


@pytest.mark.parametrize("where", ["features", "dev", "test"])
def test_killed_and_gone_on_with_it_writes_the_same_bytes(where: str, made: cuecard.Compiled, tmp_path: Path) -> None:
    asked = layers_asked(made)
    fitted = max(place for place, layers in enumerate(asked) if layers == 2)
    kill_at = {"features": fitted, "dev": fitted + 1, "test": len(asked) - 1}[where]

    def before(batch: Any) -> None:
        if len(engine.batches) == kill_at:
            raise Killed

    engine = seeing(before=before)
    path = lay_out(tmp_path / "killed")
    with pytest.raises(Killed):
        compiled_of(path, engine)
    assert not list(path.parent.glob("*.safetensors"))
    rest = seeing()
    again = compiled_of(path, rest)
    assert again.compilation.folder.resumed and len(rest.batches) == len(asked) - kill_at
    beside = made.compilation.folder.path.parents[1]
    for name in ("triage.compiled.yaml", head_in(beside).name):
        assert (path.parent / name).read_bytes() == (beside / name).read_bytes()
    timeless = [{**run_of(one), "seconds": 0, "ledger": 0} for one in (again, made)]
    assert timeless[0] == timeless[1]


# ---- what does not fit


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        cuecard.load(path, target=fake_target(seeing()))
    return str(caught.value)


def test_weights_that_were_changed_are_refused(folder: Path) -> None:
    file = head_in(folder)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    told = refused(folder / "triage.compiled.yaml")
    assert "the file's SHA-256 is" in told and file.name in told and "copy both together" in told


def test_weights_that_are_missing_are_told_by_name(folder: Path) -> None:
    file = head_in(folder)
    file.unlink()
    told = refused(folder / "triage.compiled.yaml")
    assert "no such file" in told and file.name in told


@pytest.mark.parametrize("name", [f"../{FILE}", f"/tmp/{FILE}", f"sub/{FILE}", "triage.compiled.yaml"])
def test_weights_elsewhere_are_not_read(name: str, folder: Path) -> None:
    inner = folder / "inner"
    (inner / "sub").mkdir(parents=True)
    file = head_in(folder)
    (inner / "sub" / FILE).write_bytes(file.read_bytes())
    text = (folder / "triage.compiled.yaml").read_text(encoding="utf-8")
    path = inner / "triage.compiled.yaml"
    path.write_text(text.replace(f"weights: {file.name}", f"weights: {name}"), encoding="utf-8")
    told = refused(path)
    assert f"the head's file is {name!r}" in told and "in the program's own folder" in told


def test_another_order_of_labels_is_not_what_the_file_holds(folder: Path) -> None:
    path = folder / "triage.compiled.yaml"
    text = path.read_text(encoding="utf-8")
    swapped = (
        text.replace("- billing\n", "- T\n").replace("- technical\n", "- billing\n").replace("- T\n", "- technical\n")
    )
    assert swapped != text
    path.write_text(swapped, encoding="utf-8")
    told = refused(path)
    assert "the head's labels: ['billing', 'technical', 'account']" in told and head_in(folder).name in told


def test_a_program_whose_labels_have_changed_is_refused(folder: Path) -> None:
    path = folder / "triage.compiled.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("'account']", "'account', 'sales']"), encoding="utf-8")
    assert "the head does not know the label 'sales' of the output 'queue'" in refused(path)


def test_another_models_width_is_told(folder: Path) -> None:
    def wider(prompt: str, layer: int) -> tuple[list[float], list[float]]:
        last, mean = word_counts(prompt, layer)
        return [*last, 0.0], [*mean, 0.0]

    program = cuecard.load(folder / "triage.compiled.yaml", target=fake_target(seeing(hidden=wider)))
    count = sum(map(len, KEYWORDS.values()))
    with pytest.raises(CuecardError, match=f"(?s)the head takes {count} numbers and got {count + 1}.*another model"):
        program(ticket="refund")


HEAD = f"{{weights: {FILE}, sha256: {'ab' * 32}, labels: [billing, technical, account], layer: 1, pooling: mean}}"
WRITTEN = """\
name: triage
signature: "ticket -> queue: Literal['billing', 'technical', 'account'], why: str"
readout: {readout}
"""


@pytest.mark.parametrize(
    ("readout", "told"),
    [
        ("head", "readout: the read-out 'head' has no 'heads'"),
        (f"{{kind: text, heads: {{queue: {HEAD}}}}}", "readout.heads: found 'heads' beside the read-out 'text'"),
        (f"{{kind: head, heads: {{quene: {HEAD}}}}}", "readout.heads.quene: no output with labels has this name"),
        (f"{{kind: head, heads: {{why: {HEAD}}}}}", "readout.heads.why: no output with labels has this name"),
        (
            f"{{kind: head, heads: {{queue: {HEAD.replace('technical', 'tecnical')}}}}}",
            "the output 'queue' has no label 'tecnical'",
        ),
        (
            f"{{kind: head, heads: {{queue: {HEAD.replace('technical, ', '')}}}}}",
            "the head does not know the label 'technical' of the output 'queue'",
        ),
    ],
)
def test_heads_that_do_not_fit_the_signature_are_told_with_their_line(readout: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "triage.yaml"
    path.write_text(WRITTEN.format(readout=readout), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_spec(path)
    assert told in str(caught.value) and "triage.yaml:3" in str(caught.value)


def test_the_nearest_names_are_told(tmp_path: Path) -> None:
    path = tmp_path / "triage.yaml"
    for wrong, right in (("{quene: ", "queue"), ("{queue: ", "technical")):
        readout = f"{{kind: head, heads: {wrong}{HEAD.replace('technical', 'tecnical')}}}}}"
        path.write_text(WRITTEN.format(readout=readout), encoding="utf-8")
        with pytest.raises(InputError) as caught:
            load_spec(path)
        assert f"{right!r}" in str(caught.value)


# ---- told


def test_the_summary_names_the_head_and_the_best_of_prompts_alone(made: cuecard.Compiled) -> None:
    lines = list(summary(made.compilation))
    place = lines.index("It reads a linear head, which is no prompt and goes with this model alone;")
    assert lines[place + 1].startswith("the best program of prompts alone has 0.000 [")
    assert any(line.endswith("a linear head on the hidden state (not a prompt)") for line in lines)


def test_a_program_is_shown_with_its_head(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run_cuecard(capsys, "show", folder / "triage.compiled.yaml", "--model", tiny_model, "--ticket", "refund")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[1].startswith("It reads a linear head, which is no prompt") and "has 0.000 [" in lines[1]
    assert "  read-out  a linear head on the hidden state (not a prompt)" in lines
    shown = next(line for line in lines if line.startswith("  queue "))
    assert "billing, technical, account, from layer" in shown and shown.endswith(head_in(folder).name)
