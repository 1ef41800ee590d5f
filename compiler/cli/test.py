"""`cuecard test`: regression tests, in a spec, in a file of tests, or in a folder of such files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError, RunError
from .common import (
    AllowCode,
    AllowOutside,
    AsJson,
    DeviceName,
    DtypeName,
    ModelName,
    WeightsKind,
    check_folder_of,
    open_target,
)
from .progress import counting
from .screen import columns, note, say, say_json, short_path, warn

if TYPE_CHECKING:
    from ...models.target import Target
    from ..testing import Recorder, Report, Result, Status, Suite

EXAMPLE = """\
\b
Examples:
  $ cuecard test ticket_triage.compiled.yaml
  pass  a double charge goes to billing
  fail  a lost parcel goes to shipping   queue: found "account", expected equals "shipping"
  pass  quality holds on the test split  exact_match 0.583 [0.494, 0.668] on 120 rows, at least 0.5; ...
  2 passed, 1 failed

\b
  $ cuecard test tests/ --tag smoke --record-outputs outputs.jsonl
  $ cuecard test tests/ --rescore outputs.jsonl
  $ cuecard test tests/ --junit results.xml --markdown comment.md --html results.html
  $ cuecard test ticket_triage.tests.yaml --update-baseline

\b
Exit codes: 0 all passed, 1 a test failed, 2 the input was wrong, 3 a test could not be run.
"""

HELD = ("--device", "--dtype", "--weights")  # how a model is held
STYLES = {"pass": "green", "fail": "red", "error": "magenta", "skip": "yellow"}
WORDS: dict[Status, str] = {
    "pass": "passed",
    "fail": "failed",
    "error": "could not be run",
    "skip": "skipped",
}
TestsPath = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        show_default=False,
        help="A spec, a compiled program, a NAME.tests.yaml file, or a folder with such files.",
    ),
]
Named = Annotated[str | None, typer.Option("-k", metavar="NAME", help="Only the tests whose names hold this text.")]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="Only tests with this tag; may be repeated: any of them."),
]
LastFailed = Annotated[
    bool, typer.Option("--last-failed", help="Only the tests that failed last time; all, when none did.")
]
UpdateBaseline = Annotated[
    bool, typer.Option("--update-baseline", help="Write the gates' baseline files instead of comparing with them.")
]
Rescore = Annotated[
    Path | None,
    typer.Option("--rescore", metavar="FILE.jsonl", help="Judge recorded outputs again, without a model."),
]
RecordOutputs = Annotated[
    Path | None, typer.Option("--record-outputs", metavar="FILE.jsonl", help="Write what the program answered.")
]
Record = Annotated[
    Path | None, typer.Option("--record", metavar="FOLDER", help="Record every model call, to be replayed.")
]
Junit = Annotated[
    Path | None,
    typer.Option("--junit", metavar="FILE.xml", help="Write the results as JUnit XML, as CI servers read it."),
]
Markdown = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE.md", help="Write a comment for a pull request, in Markdown.")
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE.html", help="Write a page that needs no other file.")
]
Jsonl = Annotated[
    Path | None, typer.Option("--jsonl", metavar="FILE.jsonl", help="Write the results as JSON Lines, one test a line.")
]
Replay = Annotated[
    Path | None, typer.Option("--replay", metavar="FOLDER", help="Answer from recorded model calls, without the model.")
]


def test(
    path: TestsPath,
    name: Named = None,
    tag: Tags = None,
    last_failed: LastFailed = False,
    update_baseline: UpdateBaseline = False,
    rescore: Rescore = None,
    record_outputs: RecordOutputs = None,
    record: Record = None,
    replay: Replay = None,
    junit: Junit = None,
    markdown: Markdown = None,
    html: Html = None,
    jsonl: Jsonl = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    weights: WeightsKind = None,
    allow_outside: AllowOutside = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> int:
    """Run regression tests: assertions on outputs, and gates for a metric over a file of examples.

    A gate with a baseline fails only when the data show that the program got worse. The exit code is 0 when all pass,
    1 when one fails, 3 when one could not be run.
    """
    from ..testing import Recorder, Report, find_suites, read_last_failed, read_suite, select
    from ..testing.results import target_text

    sources = {"--rescore": rescore, "--replay": replay, "--record": record, "--model": model}
    sources |= {"--device": device, "--dtype": dtype, "--weights": weights}
    _check_options(sources, record_outputs)
    places = {"junit": junit, "markdown": markdown, "html": html, "jsonl": jsonl}
    for kind, place in places.items():
        check_folder_of(place, f"--{kind}")
    suites = [
        read_suite(file, allow_outside=allow_outside, allow_code=allow_code, baselines=not update_baseline)
        for file in find_suites(path)
    ]
    for text in dict.fromkeys(told for suite in suites for told in suite.notes):
        note(f"note: {text}")
    if not any(suite.tests for suite in suites):
        raise InputError("there are no `tests:`", path=path)
    failed = read_last_failed() if last_failed else None
    suites = select(suites, name=name, tags=tuple(tag or ()), failed=failed)
    recorder = Recorder()
    started = time.perf_counter()
    if rescore is not None:
        answered_by, results = _rescored(suites, rescore, update_baseline)
    else:
        with _targets(suites, model, device, dtype, weights, record, replay) as targets:
            recorder.models |= {target.engine.identity: target.description.name for target in targets}
            answered_by = ", ".join(target_text(name, identity) for identity, name in recorder.models.items())
            results = _run(suites, targets, recorder, update_baseline, timed=replay is None)
    title = suites[0].spec.name if len(suites) == 1 else short_path(path)
    every = tuple(result for part in results for result in part)
    report = Report(title, answered_by, every, time.perf_counter() - started)
    if record_outputs is not None:
        recorder.write(record_outputs)
    _note_failures(suites, results)
    _write_reports(report, places)
    _tell(report, suites, results, as_json=as_json)
    return report.exit_code


def _check_options(sources: dict[str, Any], record_outputs: Path | None) -> None:
    """The answers come from one place."""
    given = [option for option in ("--rescore", "--replay", "--record") if sources[option] is not None]
    if len(given) > 1:
        raise InputError(f"found {given[1]} beside {given[0]}", expected="one of them")
    if sources["--rescore"] is not None:
        told = {"--record-outputs": record_outputs, **{name: sources[name] for name in ("--model", *HELD)}}
        beside = next((name for name, value in told.items() if value is not None), None)
        if beside is not None:
            raise InputError(f"found {beside} beside --rescore", hint="Recorded outputs are judged without a model.")
    beside = next((name for name in HELD if sources[name] is not None), None)
    if sources["--replay"] is not None and beside is not None:
        raise InputError(f"found {beside} beside --replay", hint="What was recorded is answered without a model.")
    check_folder_of(record_outputs, "--record-outputs")


@contextmanager
def _targets(
    suites: Sequence[Suite],
    model: str | None,
    device: str | None,
    dtype: str | None,
    weights: str | None,
    record: Path | None,
    replay: Path | None,
) -> Iterator[list[Target]]:
    """The target of each suite; programs on the same model share one."""
    from ..replay import recorded, replay_target

    if replay is not None:
        target = replay_target(replay, model=model)
        yield [target for _ in suites]
        return
    wanted = [repr((suite.spec.model, suite.spec.folder if suite.spec.model else None)) for suite in suites]
    keys = wanted if model is None else ["" for _ in suites]
    if record is not None and len(set(keys)) > 1:
        hint = "Record them one by one, each into a folder of its own, or give --model."
        raise InputError("the tests are for several models", field="--record", expected="one", hint=hint)
    with ExitStack() as stack:
        opened: dict[str, Target] = {}
        for key, suite in zip(keys, suites, strict=True):
            if key not in opened:
                target = open_target(suite.spec, model, device, dtype, weights)
                opened[key] = target if record is None else stack.enter_context(recorded(target, record))
        yield [opened[key] for key in keys]


def _run(
    suites: Sequence[Suite], targets: Sequence[Target], recorder: Recorder, update_baseline: bool, *, timed: bool
) -> list[tuple[Result, ...]]:
    from ..testing import run_tests, runs_of

    results = []
    for suite, target in zip(suites, targets, strict=True):
        with counting("testing", sum(map(len, runs_of(suite.tests)))) as observer:
            found = run_tests(
                suite,
                target.lm,
                target=target.engine.identity,
                observer=observer,
                update_baseline=update_baseline,
                recorder=recorder,
                timed=timed,
            )
        results.append(found)
    return results


def _rescored(suites: Sequence[Suite], path: Path, update_baseline: bool) -> tuple[str, list[tuple[Result, ...]]]:
    from ..testing import read_recording
    from ..testing import rescore as judge

    recording = read_recording(path)
    found = [judge(suite, recording, update_baseline=update_baseline) for suite in suites]
    return ", ".join(recording.models), found


def _note_failures(suites: Sequence[Suite], results: Sequence[Sequence[Result]]) -> None:
    """Keep what failed for `--last-failed`. Where that cannot be written, the tests have still ended as they did."""
    from ..testing import write_last_failed

    ran = [(suite.path, result) for suite, part in zip(suites, results, strict=True) for result in part]
    try:
        write_last_failed(ran)
    except RunError as error:
        warn(f"--last-failed will not know of this run: {error}")


def _write_reports(report: Report, places: Mapping[str, Path | None]) -> None:
    """Write the report in each format that has a place. Raises `RunError`."""
    from ...files import write_atomic
    from ..reports import FORMATS

    for kind, place in places.items():
        if place is not None:
            write_atomic(place, FORMATS[kind](report))


def _tell(report: Report, suites: Sequence[Suite], results: Sequence[Sequence[Result]], *, as_json: bool) -> None:
    """Print the report."""
    if as_json:
        from ..reports import report_data

        say_json(report_data(report), indent=2)
        return
    for suite, part in zip(suites, results, strict=True):
        if len(suites) > 1:
            say(short_path(suite.path))
        lines = columns([(result.status, result.name, result.reason) for result in part])
        for result, line in zip(part, lines, strict=True):
            say(line, STYLES[result.status] if result.status != "pass" else None)
    counts: dict[Status, int] = {
        "pass": report.passed,
        "fail": report.failed,
        "error": report.errors,
        "skip": report.skipped,
    }
    say(", ".join(f"{counts[status]} {word}" for status, word in WORDS.items() if counts[status]))
