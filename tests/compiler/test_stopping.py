"""A compile that ends before its metric calls are spent: other limits, rules, a file, Ctrl-C; and its resumption."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeEngine, WordLearner, compile_tickets, fake_target, spec_folder, tickets
from rich.progress import Progress

import cuecard
from cuecard.compiler.api import Silent
from cuecard.compiler.cli.progress import Bar, Lines, budget_text
from cuecard.compiler.cli.summary import summary
from cuecard.compiler.from_spec import compile_spec
from cuecard.compiler.options import optimize_options
from cuecard.compiler.stopping import WISHES
from cuecard.errors import InputError
from cuecard.optimizers.base import Budget
from cuecard.optimizers.stopping import StopRules

from .cli_cases import cuecard as run_cli
from .cli_cases import write_spec

LONG = {"metric_calls": 900}  # more than any of these is let to spend
BATCH = 4  # a batch within the search's first generation


class Killed(BaseException):
    """Stands for a kill: nobody catches it."""


@pytest.fixture(autouse=True)
def usual_ctrl_c() -> Iterator[None]:
    """What Ctrl-C does in a terminal: a shell that starts the tests in the background makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def learner(at: int | None = None, then: Callable[[], None] | None = None, kill_at: int | None = None) -> FakeEngine:
    """The engine of the small compile, which does something as it begins a batch, and is killed as it begins another."""

    def before(batch: Any) -> None:
        if len(engine.batches) == at and then is not None:
            then()
        if len(engine.batches) == kill_at:
            raise Killed

    engine = WordLearner(bias={"billing": 2.0}).engine(before=before)
    return engine


def run_json(folder: Path) -> dict[str, Any]:
    state = json.loads((folder / "triage-1" / "run.json").read_text())
    state.pop("seconds")
    state["ledger"].pop("seconds")
    return state  # type: ignore[no-any-return]


def trials(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "triage-1" / "trials.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def result(compiled: cuecard.Compiled, folder: Path) -> tuple[bytes, dict[str, Any], list[dict[str, Any]]]:
    return compiled.write(folder / "x.compiled.yaml").read_bytes(), run_json(folder), trials(folder)


def kill_and_go_on(folder: Path, kill_at: int, at: int | None = None, then: Any = None, **changes: Any) -> Any:
    """The compile killed at a batch, and gone on with by an engine to which nothing happens."""
    with pytest.raises(Killed):
        compile_tickets(folder, learner(at, then, kill_at), **changes)
    return result(compile_tickets(folder, learner(), **changes), folder)


# ---- limits of what the model does


@pytest.mark.parametrize(("limit", "most"), [("model_calls", 150), ("tokens", 30000)])
def test_what_the_model_does_is_hardly_overrun_and_resumed_to_the_same_bytes(
    limit: str, most: int, tmp_path: Path
) -> None:
    engine = learner()
    whole = compile_tickets(tmp_path / "whole", engine, budget={limit: most})
    state = run_json(tmp_path / "whole")
    spent = {
        "model_calls": engine.ledger.calls,
        "tokens": engine.ledger.prompt_tokens + engine.ledger.generated_tokens,
    }[limit]
    assert most / 2 < spent <= 1.05 * most, "the test split's are within it"
    assert state["search"]["stopped_by"] == limit
    assert state["budget"] == {"metric_calls": None, "seconds": None, limit: most}
    assert set(state["spent"]) == {"metric_calls", "trials", limit}
    assert whole.compilation.result.trials > 1
    expected = result(whole, tmp_path / "whole")
    assert kill_and_go_on(tmp_path / "killed", int(0.7 * len(engine.batches)), budget={limit: most}) == expected


def test_an_answer_that_is_known_is_no_model_call(tmp_path: Path) -> None:
    """Choices with and without an offset ask the same of the model."""
    search = {"instructions": 1, "demos": 0, "nearest": 0, "formats": ["completion"], "readouts": ["choice"]}
    compiled = compile_tickets(tmp_path, budget=Budget(model_calls=500, trials=3), search=search)
    assert compiled.compilation.result.trials == 3
    assert run_json(tmp_path)["spent"]["model_calls"] < compiled.compilation.spent["metric_calls"]


def test_all_limits_of_a_budget_reach_it() -> None:
    given = {"metric_calls": 1, "model_calls": 2, "tokens": 3, "seconds": 4.0}
    assert optimize_options(given, 0, None, "joint")[1] == Budget(1, 4.0, None, 2, 3)
    assert optimize_options(Budget(tokens=5), 0, None, "joint")[1] == Budget(tokens=5)
    assert optimize_options({"tokens": 5}, 0, None, "joint")[1].metric_calls is None


@pytest.mark.parametrize("name", ["dspy.BootstrapFewShotWithRandomSearch"])
@pytest.mark.parametrize(("limit", "most"), [("model_calls", 40), ("tokens", 2000)])
def test_an_optimizer_of_dspy_stops_there_too(name: str, limit: str, most: int, tmp_path: Path) -> None:
    compile_tickets(tmp_path, optimizer=name, budget={limit: most})
    assert run_json(tmp_path)["search"]["stopped_by"] == limit


# ---- rules


def test_a_score_on_dev_ends_the_search(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, budget=LONG, stop={"score": 0.5})
    assert compiled.compilation.result.stopped_by == run_json(tmp_path)["search"]["stopped_by"] == "score"
    assert compiled.compilation.compiled["dev"].value >= 0.5
    assert run_json(tmp_path)["stop"] == {"score": 0.5, "trials_without_gain": None}


def test_trials_without_gain_end_the_search_and_a_resumed_one_too(tmp_path: Path) -> None:
    rules = {"budget": LONG, "stop": StopRules(trials_without_gain=6)}
    engine = learner()
    whole = compile_tickets(tmp_path / "whole", engine, **rules)
    expected = result(whole, tmp_path / "whole")
    assert expected[1]["search"]["stopped_by"] == "no_gain"
    best = max(line["trial"] for line in expected[2] if line["best"])
    assert len(expected[2]) - 1 - best == 6
    assert kill_and_go_on(tmp_path / "killed", len(engine.batches) - 1, **rules) == expected


def test_the_rules_are_part_of_what_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        compile_tickets(tmp_path, learner(kill_at=4), budget=LONG)
    compile_tickets(tmp_path, budget=LONG, stop={"score": 0.5})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["triage-1", "triage-2"]


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ({"score": 90}, r"optimize.stop.score: found 90; expected a score of exact_match: above 0, at most 1"),
        ({"score": 0}, r"optimize.stop.score: found 0; expected a score"),
        ({"trials_without_gain": 0}, r"stop.trials_without_gain: found 0; expected at least 1"),
        ({"scor": 0.9}, r"stop.scor: unknown key.*did you mean 'score'"),
    ],
)
def test_rules_that_make_no_sense_are_refused(stop: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        compile_tickets(tmp_path, stop=stop)
    assert not list(tmp_path.iterdir())


def test_an_optimizer_of_dspy_takes_no_rules(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dspy.COPRO searches by itself, and knows no rules to stop"):
        compile_tickets(tmp_path, optimizer="dspy.COPRO", stop={"score": 0.9})


def test_a_spec_holds_them(tmp_path: Path) -> None:
    path = spec_folder(tmp_path)
    text = path.read_text().replace("optimize: {", "optimize: {stop: {score: 0.4, trials_without_gain: 90}, ")
    path.write_text(text)
    target = fake_target(WordLearner().engine())
    compiled = compile_spec(path, target=target, runs=tmp_path / "runs")
    assert compiled.compilation.task.stop == StopRules(0.4, 90)
    assert "score: 0.4\n    trials_without_gain: 90\n" in (tmp_path / "two_steps.compiled.yaml").read_text()


# ---- the user


class Listening(Silent):
    """A reporter that keeps what it is told of a wish for an end, and may do something then."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.reasons: list[str] = []
        self.then = then

    def stopping(self, reason: str) -> None:
        self.reasons.append(reason)
        self.then()


def press() -> None:
    """Ctrl-C, which comes to the main thread whoever presses it."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_a_file_ends_the_search_with_the_best_so_far(tmp_path: Path) -> None:
    told = Listening()
    engine = learner(BATCH, (tmp_path / "whole" / "triage-1" / "stop").touch)
    whole = compile_tickets(tmp_path / "whole", engine, budget=LONG, reporter=told)
    state = run_json(tmp_path / "whole")
    assert (state["status"], state["search"]["stopped_by"], told.reasons) == ("finished", "file", ["file"])
    assert state["spent"]["metric_calls"] < 450
    assert whole.compilation.result.accepted
    assert whole.compilation.result.stopped_by == "file"
    assert set(state["compiled"]) == {"dev", "test"}
    expected = result(whole, tmp_path / "whole")

    folder, last = tmp_path / "killed", len(engine.batches) - 1
    with pytest.raises(Killed):
        compile_tickets(folder, learner(BATCH, (folder / "triage-1" / "stop").touch, last), budget=LONG)
    (folder / "triage-1" / "stop").unlink()
    again = compile_tickets(folder, learner(), budget=LONG)
    assert result(again, folder) == expected, "what was decided stands in the run, and not in the file"
    assert again.compilation.result.stopped_by == "file"


def test_a_wish_that_was_acted_on_is_not_forgotten_by_a_kill_before_the_searchs_end(tmp_path: Path) -> None:
    """One candidate runs on after the first block, since nothing is better than the baseline yet: it is killed there."""
    given = {"budget": LONG, "trainset": (), "devset": tickets(24, 2)}  # without calibrations to be fitted in between
    engine = learner(3, (tmp_path / "whole" / "triage-1" / "stop").touch)
    expected = result(compile_tickets(tmp_path / "whole", engine, **given), tmp_path / "whole")
    assert expected[1]["search"]["generations"][0][1] == 1
    seen = []
    for kill_at in range(4, len(engine.batches)):
        folder = tmp_path / str(kill_at)
        with pytest.raises(Killed):
            compile_tickets(folder, learner(3, (folder / "triage-1" / "stop").touch, kill_at), **given)
        search = json.loads((folder / "triage-1" / "run.json").read_text()).get("search", {})
        if "stopping" not in search:
            continue
        seen.append(search["stopping"])
        (folder / "triage-1" / "stop").unlink()
        assert result(compile_tickets(folder, learner(), **given), folder) == expected
        break
    assert seen == [{"by": "file", "steps": 0, "known": [1, 1]}]


def test_ctrl_c_ends_the_search_with_the_best_so_far(tmp_path: Path) -> None:
    told = Listening()

    engine = learner(BATCH, press)
    whole = compile_tickets(tmp_path / "whole", engine, budget=LONG, reporter=told)
    state = run_json(tmp_path / "whole")
    assert (state["status"], state["search"]["stopped_by"], told.reasons) == ("finished", "interrupt", ["interrupt"])
    assert whole.compilation.result.accepted
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    expected = result(whole, tmp_path / "whole")
    last = len(engine.batches) - 1
    assert kill_and_go_on(tmp_path / "killed", last, BATCH, press, budget=LONG) == expected


def test_ctrl_c_twice_leaves_at_once_and_the_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    expected = result(compile_tickets(tmp_path / "whole"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compile_tickets(tmp_path / "left", learner(BATCH, press), reporter=Listening(press))
    state = json.loads((tmp_path / "left" / "triage-1" / "run.json").read_text())
    assert (state["status"], state["search"].get("stopping")) == ("interrupted", None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = compile_tickets(tmp_path / "left")
    assert result(again, tmp_path / "left") == expected


def test_ctrl_c_before_the_search_leaves_at_once(tmp_path: Path) -> None:
    """There is nothing yet that could be kept."""
    with pytest.raises(KeyboardInterrupt):
        compile_tickets(tmp_path, learner(0, press))
    assert json.loads((tmp_path / "triage-1" / "run.json").read_text())["status"] == "interrupted"


def test_somebody_elses_way_with_ctrl_c_is_left_alone(tmp_path: Path) -> None:
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        compile_tickets(tmp_path, learner(BATCH, press))
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]
    assert run_json(tmp_path)["search"]["stopped_by"] == "metric_calls"


def test_a_thread_of_its_own_changes_nothing_of_ctrl_c(tmp_path: Path) -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(compile_tickets(tmp_path, budget={"metric_calls": 30})))
    thread.start()
    thread.join()
    assert made[0].compilation.result.stopped_by == "metric_calls"


def test_a_file_ends_an_optimizer_of_dspy_at_the_same_step_again(tmp_path: Path) -> None:
    given = {"optimizer": "dspy.BootstrapFewShotWithRandomSearch", "budget": {"metric_calls": 400}}
    engine = learner(12, (tmp_path / "whole" / "triage-1" / "stop").touch)
    expected = result(compile_tickets(tmp_path / "whole", engine, **given), tmp_path / "whole")
    assert expected[1]["search"]["stopped_by"] == "file"
    assert expected[1]["search"]["steps"] > 0
    folder, last = tmp_path / "killed", len(engine.batches) - 1
    with pytest.raises(Killed):
        compile_tickets(folder, learner(12, (folder / "triage-1" / "stop").touch, last), **given)
    (folder / "triage-1" / "stop").unlink()
    assert result(compile_tickets(folder, learner(), **given), folder) == expected


def test_without_a_reporter_the_users_wish_is_told_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compile_tickets(tmp_path, learner(BATCH, (tmp_path / "triage-1" / "stop").touch), budget=LONG)
    assert "there is a file 'stop' in the run's folder" in caplog.text


# ---- what is said of it


def test_what_a_reporter_on_the_screen_says() -> None:
    lines: list[str] = []
    for reason in WISHES:
        Lines(lines.append).stopping(reason)
    assert lines == [
        "stopping after this block: there is a file 'stop' in the run's folder",
        "stopping after this block: press Ctrl-C again to leave at once",
    ]
    assert budget_text(Budget(10, 2.0, None, 1, 5000)) == "10 metric calls or 1 model call or 5,000 tokens or 2 seconds"


def test_the_bar_goes_by_what_a_trial_says_of_tokens() -> None:
    with Progress(disable=True) as progress:
        bar = Bar(progress)
        task = SimpleNamespace(
            name="x", target=fake_target(learner()), metric=SimpleNamespace(name="f1"), train=(), dev=range(8), seed=0,
            test=(), budget=Budget(tokens=1000), study=None,
        )  # fmt: skip
        bar.begin(task, SimpleNamespace(path=Path("runs/x-1"), resumed=False), 0)  # type: ignore[arg-type]
        bar.runs(8, 2.0)
        assert bar._estimate(2.0) == (0.0, None)
        bar.phase("search", 0.25)
        assert bar._estimate(10.0) == (0.25, 30.0)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ({"score": 0.5}, "The search ended before its budget: the score that was asked for is reached on dev."),
        ({"trials_without_gain": 1}, "The search ended before its budget: nothing better was found for as many"),
    ],
)
def test_the_summary_says_why_it_ended(stop: dict[str, Any], text: str, tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, budget=LONG, stop=stop)
    assert any(line.startswith(text) for line in summary(compiled.compilation))


# ---- the command line


@pytest.mark.parametrize(
    ("words", "line", "error"),
    [
        (["--tokens", "0"], "", "--tokens"),
        (["--model-calls", "many"], "", "--model-calls"),
        (["--json"], "", "--json goes with --dry-run"),
        ([], "optimize: {stop: {score: 90}}", "triage.yaml:8: optimize.stop.score: found 90; expected a score of"),
        ([], "optimize: {stop: {trials_without_gain: 1.5}}", "triage.yaml:8: optimize.stop.trials_without_gain"),
        ([], "optimize: {budget: {tokens: 0}}", "triage.yaml:8: optimize.budget.tokens: found 0; expected at least 1"),
        ([], "optimize: {budget: {token: 9}}", "optimize.budget.token: unknown key"),
    ],
)
def test_wrong_words_are_told_and_end_with_2(
    words: list[str], line: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_spec(tmp_path, **({"optimize": line} if line else {}))
    said = run_cli(capsys, "compile", path, *words)
    assert (said.code, said.out) == (2, "")
    assert error in said.err


def test_limits_on_the_command_line_stand_beside_the_specs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spec_folder(tmp_path)
    monkeypatch.setattr("cuecard.compiler.from_spec.spec_target", lambda *_, **__: fake_target(WordLearner().engine()))
    said = run_cli(capsys, "compile", path, "--model-calls", 150, "--tokens", 100000, "--runs", tmp_path / "runs")
    assert said.code == 0
    assert "budget 120 metric calls or 150 model calls or 100,000 tokens; seed 0" in said.err
    state = json.loads((tmp_path / "runs" / "two_steps-1" / "run.json").read_text())
    assert state["budget"] == {"metric_calls": 120, "model_calls": 150, "tokens": 100000, "seconds": None}
    assert state["ledger"]["calls"] <= 150


def test_check_tells_a_score_that_no_metric_reaches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.yaml").write_text(
        "signature: 'question -> answer'\nmetric: exact_match\noptimize:\n  stop: {score: 2}\n", encoding="utf-8"
    )
    said = run_cli(capsys, "check", tmp_path / "q.yaml")
    assert said.code == 2 and "q.yaml:4: optimize.stop.score: found 2" in said.err
