"""Model servers as targets of specs and of the command line, over a server in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import cuecard
from cuecard.compiler.from_spec import spec_target, with_model
from cuecard.compiler.journal import Clock, JournaledEngine
from cuecard.compiler.task_space import bootstrap_candidate
from cuecard.errors import InputError, RunError
from cuecard.models.local import LocalEngine
from cuecard.models.server import DIALECTS
from cuecard.models.server.opening import GRAMMARS
from cuecard.models.target import target as open_target
from cuecard.optimizers.space import readouts_for
from cuecard.programs.schema import SERVER_KEYS, ModelSpec
from cuecard.programs.spec import load_spec
from tiny import build_tiny_tokenizer

from ..models.helpers import engine_over, random_model
from ..models.server.fake import FakeVLLM
from .cli_cases import QUEUES, SPEC, write_spec
from .cli_cases import cuecard as command

CHOICE = SPEC + "format: completion\nreadout: choice\ndecoding: {max_tokens: 12}\n"


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    return engine_over(random_model("llama"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def server(local: LocalEngine) -> FakeVLLM:
    return FakeVLLM(local, context=local.context_window)


@pytest.fixture
def url(server: FakeVLLM) -> Iterator[str]:
    with server.running() as address:
        yield address


@pytest.fixture(autouse=True)
def here(tmp_path: Path, cuecard_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def spec(model: str, text: str = CHOICE) -> Path:
    return write_spec(Path(), text, model=f"model: {model}")


# A spec's server


def test_a_compile_on_a_server(url: str, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec(f"{{server: {url}/v1, id: tiny, tokenizer: {tokenizer}, concurrency: 4}}")
    said = command(capsys, "compile", path, "--metric-calls", 20)
    assert said.code == 0, said.err
    assert said.err.startswith("triage on tiny (unknown, server)\n")
    (run,) = Path(".cuecard/runs").iterdir()
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))["target"]
    assert about["extra"] == {"server": url, "dialect": "vllm", "version": "0.32.0", "root": "org/tiny"}
    compiled = load_spec("triage.compiled.yaml")
    assert compiled.model == load_spec(path).model
    assert compiled.compiled is not None
    assert (compiled.compiled.target.name, compiled.compiled.target.device) == ("tiny", "server")
    said = command(capsys, "run", "triage.compiled.yaml", "--ticket", "money back")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)["queue"] in QUEUES


def test_what_a_server_answers_is_what_the_model_answers(url: str, local: LocalEngine) -> None:
    from cuecard.models.target import target_of

    path = spec(url)
    answers = [cuecard.load(path, target=each)(ticket="money back").queue for each in (target_of(local), url)]
    assert answers[0] == answers[1]


def test_loading_checking_and_showing_ask_no_server(
    server: FakeVLLM, url: str, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spec(f"{{server: 'http://me:secret@{url.removeprefix('http://')}', tokenizer: {tokenizer}}}")
    load_spec(path)
    cuecard.load(path)
    said = command(capsys, "check", path)
    assert (said.code, said.err) == (0, "")
    assert f"model     on the server {url}, which was not asked\n" in said.out
    said = command(capsys, "show", path, "--ticket", "money back")
    assert (said.code, said.err) == (
        0,
        "note: the server was not asked for its context window; all demos are shown\n",
    )
    assert f"triage on {url}, inputs from the command line" in said.out
    assert "Ticket: money back" in said.out
    said = command(capsys, "show", spec(f"{{id: tiny, server: {url}}}"), "--ticket", "money back")
    assert (said.code, said.out) == (2, "")
    assert "triage.yaml:3: model.tokenizer: the prompts cannot be shown without the served" in said.err
    assert server.paths == []


def test_a_tokenizer_beside_the_spec(
    url: str, tokenizer: str, local: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("words").symlink_to(tokenizer)
    read = load_spec(spec(f"{{server: {url}, dialect: openai, tokenizer: words}}").resolve())
    monkeypatch.chdir(tmp_path.parent)
    assert spec_target(read).engine.tokenizer.encode("a ticket") == local.tokenizer.encode("a ticket")


def test_a_key_that_the_spec_names(
    server: FakeVLLM, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.key = "s3cret"
    path = spec(f"{{server: {url}, api_key_env: MY_KEY}}")
    said = command(capsys, "run", path, "--ticket", "money back")
    assert (said.code, server.paths) == (2, [])
    assert "the environment variable MY_KEY is not set" in said.err
    monkeypatch.setenv("MY_KEY", "s3cret")
    assert command(capsys, "run", path, "--ticket", "money back").code == 0


def test_a_spec_does_not_get_a_key_that_it_does_not_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*_: Any, **options: Any) -> None:
        raise RunError(f"asked, with the key in {options.get('api_key_env')}")

    monkeypatch.setattr("cuecard.compiler.from_spec.server_target", asked)
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    silent = spec("{server: https://far.example/v1}")
    said = command(capsys, "run", silent, "--ticket", "money back")
    assert said.code == 2
    assert "triage.yaml:3: model.server: the spec does not say which key https://far.example/v1 gets" in said.err
    assert "s3cret" not in said.err
    words = ["--ticket", "money back"]
    assert "asked, with the key in None" in command(capsys, "run", silent, "--model", "https://far.example", *words).err
    for model, key in (
        ("{server: https://far.example, api_key_env: OPENAI_API_KEY}", "OPENAI_API_KEY"),
        ("http://far.example", "None"),
        ("https://localhost:8000", "None"),
    ):
        assert f"asked, with the key in {key}" in command(capsys, "run", spec(model), *words).err
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "asked, with the key in None" in command(capsys, "run", spec("https://far.example"), *words).err


def test_every_key_of_a_server_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "cuecard.compiler.from_spec.server_target", lambda *words, **named: asked.append((words, named))
    )
    given = {
        "dialect": "vllm", "tokenizer": "org/name", "api_key_env": "KEY", "concurrency": 3, "timeout": 9.5, "tries": 2,
        "context_window": 512, "grammars": "gbnf", "unseeded": False,
    }  # fmt: skip
    assert tuple(given) == SERVER_KEYS
    text = ", ".join(f"{key}: {json.dumps(value)}" for key, value in given.items())
    read = load_spec(spec(f"{{server: http://a:1, id: m, {text}}}"))
    spec_target(read)
    spec_target(read, "http://b:2")
    spec_target(load_spec(spec("small")), "http://b:2")
    assert asked == [(("http://a:1", "m"), given), (("http://b:2", "m"), given), (("http://b:2", None), {})]


def test_the_spec_knows_the_dialects_and_grammars_that_there_are() -> None:
    fields = ModelSpec.model_fields
    assert get_args(get_args(fields["dialect"].annotation)[0]) == ("auto", *DIALECTS)
    assert get_args(get_args(fields["grammars"].annotation)[0]) == GRAMMARS


# An address in place of a model


def test_an_address_on_the_command_line(
    server: FakeVLLM, url: str, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spec(f"{{server: http://127.0.0.1:9, dialect: vllm, tokenizer: {tokenizer}}}")
    said = command(capsys, "run", path, "--model", f"{url}/v1", "--ticket", "money back")
    assert (said.code, said.err) == (0, "")
    assert "/tokenize" in server.paths, "the spec's tokenizer is compared with the server's"
    assert "/version" in server.paths
    said = command(capsys, "eval", path, "--model", url)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("triage on tiny, unknown, server: 6 examples of test\n")
    said = command(capsys, "test", path, "--model", url, "-k", "refund")
    assert said.code in (0, 1)
    said = command(capsys, "show", path, "--model", url, "--ticket", "money back")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("triage on tiny, inputs from the command line\n")


def test_an_address_stands_in_the_compiled_program(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec("{id: smollm2-135m, dtype: float32, options: {max_tokens: 9}}")
    said = command(capsys, "compile", path, "--model", url, "--metric-calls", 8)
    assert said.code == 0, said.err
    made = load_spec("triage.compiled.yaml").model
    assert made is not None
    assert (made.server, made.id, made.dtype) == (url, None, None)
    assert made.options is not None and made.options.max_tokens == 9


@pytest.mark.parametrize("option", ["--dtype", "--device"])
def test_a_server_has_its_own_device_and_dtype(option: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"--dtype": "float32", "--device": "cpu"}[option]
    for model, words in ((url, []), ("small", ["--model", url])):
        said = command(capsys, "run", spec(model), *words, "--ticket", "x", option, value)
        assert (said.code, said.out) == (2, "")
        assert f"found the {option[2:]} {value!r} for a model server" in said.err
    with pytest.raises(InputError, match="The server has its own"):
        open_target(url, **{option[2:]: value})


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    said = command(capsys, "run", spec("http://127.0.0.1:9"), "--ticket", "x")
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith("error: no model server answers at http://127.0.0.1:9: ")


def test_the_facts_of_a_server(url: str, local: LocalEngine, capsys: pytest.CaptureFixture[str]) -> None:
    said = command(capsys, "models", "info", f"{url}/v1")
    assert (said.code, said.err) == (0, "")
    facts = {name: value.strip() for name, value in (line.split("  ", 1) for line in said.out.splitlines())}
    assert facts == {
        "name": "tiny",
        "server": url,
        "dialect": "vllm",
        "version": "0.32.0",
        "root": "org/tiny",
        "parameters": "unknown",
        "context window": f"{local.context_window:,} tokens",
        "dtype": "unknown",
        "scores texts": "yes",
        "identity": cuecard.server_target(url).description.identity,
    }


def test_a_target_by_its_address(url: str) -> None:
    assert cuecard.target(url).engine.identity == cuecard.server_target(url).engine.identity
    assert "server_target" in dir(cuecard)


def test_a_model_in_place_of_a_server_takes_no_keys_of_it() -> None:
    read = load_spec(spec("{server: http://a, id: m, dialect: vllm, options: {max_tokens: 9}}"))
    made = with_model(read, "org/name", "float32").model
    assert made is not None
    assert made.model_dump(exclude_unset=True, exclude={"options"}) == {"id": "org/name", "dtype": "float32"}
    assert made.options is not None and made.options.max_tokens == 9


def test_a_server_takes_no_dtype_into_the_compiled_program() -> None:
    for model, target in (("http://a", None), ("small", "http://b")):
        made = with_model(load_spec(spec(model)), target, "auto").model
        assert made == ModelSpec(server=target or model)


def test_a_dtype_for_a_model_in_its_short_form() -> None:
    made = with_model(load_spec(spec("small")), None, "float32").model
    assert made == ModelSpec(id="small", dtype="float32")


# A server that can't score


UNSCORED = "{{server: {url}, dialect: openai, tokenizer: {tokenizer}, context_window: 512}}"


def test_what_cannot_be_scored_is_not_searched(url: str, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = SPEC.replace("formats: [completion]", "formats: [completion], readouts: [text, choice]")
    path = spec(UNSCORED.format(url=url, tokenizer=tokenizer), text + "decoding: {max_tokens: 8}\n")
    said = command(capsys, "compile", path, "--metric-calls", 30)
    assert said.code == 0, said.err
    (run,) = Path(".cuecard/runs").iterdir()
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(trials) > 1
    assert {trial["params"]["main.readout"] for trial in trials[1:]} == {"text"}
    assert "failed" not in {trial["status"] for trial in trials}


def test_a_choice_that_cannot_be_scored_says_so(url: str, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec(UNSCORED.format(url=url, tokenizer=tokenizer))
    for words in (["run", path, "--ticket", "x"], ["compile", path]):
        said = command(capsys, *words)
        assert (said.code, said.out) == (3, "")
        assert f"the OpenAI server at {url} can't score a given text; use the read-outs `text` or" in said.err


def test_whether_an_engine_scores_is_handed_on(local: LocalEngine, url: str, tokenizer: str, tmp_path: Path) -> None:
    unscored = cuecard.server_target(url, dialect="openai", tokenizer=tokenizer)
    for engine, scores in ((local, True), (cuecard.server_target(url).engine, True), (unscored.engine, False)):
        journaled = JournaledEngine(engine, tmp_path / "calls.jsonl", Clock())
        assert journaled.can_score is scores


def test_read_outs_without_scores() -> None:
    typed = cuecard.signature("ticket -> queue: Literal['a', 'b']")
    assert readouts_for(typed, scores=False) == ("text", "constrained")
    assert readouts_for(typed, ("choice",), scores=False) == ("text",)
    program = cuecard.Predictor(typed)
    for scores, kind in ((True, "choice"), (False, "text")):
        (state,) = bootstrap_candidate(program, scores=scores).states.values()
        assert state.readout.kind == kind
