"""The pytest plugin: specs and files of tests as pytest tests, and fixtures for tests in Python.

A file of tests is collected when it is named on the command line (`pytest triage.tests.yaml`), or when it matches one
of the patterns of the setting `cuecard_files`, which is empty: where nobody asked, nothing is collected, no file is
read and nothing heavy is imported. A spec that is named is collected too.

The selected tests of a file run together, in one engine batch, when the first of them starts; with `-k`, `-m` or `--lf`
only those run. A test that could not be run is an error of its setup, one that failed a failure, as `cuecard test`
tells them apart. Under pytest-xdist each worker opens the model for itself; with `--dist loadfile` (or `loadscope`) the
tests of a file stay together in one batch, otherwise they are spread over the workers and run one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import CuecardError

if TYPE_CHECKING:
    from ..models.target import Target
    from ..programs.schema import Spec
    from .testing import Result, Suite, Test

TESTS = (".tests.yaml", ".tests.yml")
SPECS = (".yaml", ".yml")
PROGRAM = re.compile(rb"^(signature|nodes|predictors)\s*:", re.M)
OF_SPEC = re.compile(rb"^tests\s*:", re.M)
TOGETHER = ("no", "each", "loadfile", "loadscope")
"""The ways of xdist to hand out tests in which a worker that has one test of a file has all of them."""

TARGETS = pytest.StashKey[dict[str, Any]]()


class Hooks:
    """The hook that this plugin adds."""

    @pytest.hookspec(firstresult=True)
    def pytest_cuecard_target(self, config: pytest.Config, spec: Spec | None) -> Target | None:
        """The target for a spec, or (None) for the fixture `cuecard_target`. Give None to leave it to the others.

        A `conftest.py` can so open models its own way. It is called once for each model that specs name.
        """


# ---- settings


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options and settings."""
    group = parser.getgroup("cuecard", "prompt programs (cuecard)")
    group.addoption("--cuecard-model", metavar="NAME", help="The model to test on. Default: the one the spec names.")
    group.addoption("--cuecard-device", metavar="NAME", help="auto, cpu, cuda or mps.")
    group.addoption(
        "--cuecard-update-baseline", action="store_true", help="Write the gates' baselines instead of comparing."
    )
    group.addoption("--cuecard-allow-code", action="store_true", help="Let tests and metrics name Python functions.")
    group.addoption("--cuecard-allow-outside", action="store_true", help="Let specs read files outside their folder.")
    help_text = "Patterns of the files that are collected as tests of prompt programs, such as *.tests.yaml."
    parser.addini("cuecard_files", help_text, type="args", default=[])


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make `pytest_cuecard_target` known."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, which all collected tests carry."""
    config.addinivalue_line("markers", "cuecard: a test of a prompt program, from a spec or a file of tests")
    config.stash[TARGETS] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist how tests are handed out, which it does not know."""
    node.workerinput["cuecard_dist"] = node.config.option.dist


@pytest.hookimpl(trylast=True)
def pytest_cuecard_target(config: pytest.Config, spec: Spec | None) -> Target:
    """Open the model of the command line, else the spec's, else the default."""
    from ..models.target import DEFAULT_MODEL
    from ..models.target import target as open_target
    from .from_spec import spec_target

    model, device = config.getoption("--cuecard-model"), config.getoption("--cuecard-device")
    if spec is None:
        return open_target(model or DEFAULT_MODEL, device=device or "auto")
    return spec_target(spec, model, device=device)


def target_for(config: pytest.Config, spec: Spec | None) -> Target:
    """The target for a spec; programs on the same model share one."""
    named = spec is not None and spec.model is not None and not config.getoption("--cuecard-model")
    key = repr((spec.model, spec.folder)) if named and spec is not None else ""
    opened = config.stash[TARGETS]
    if key not in opened:
        opened[key] = config.hook.pytest_cuecard_target(config=config, spec=spec)
    target: Target = opened[key]
    return target


# ---- fixtures


@pytest.fixture(scope="session")
def cuecard_target(pytestconfig: pytest.Config) -> Target:
    """The model of `--cuecard-model`, else the default, as a `cuecard.Target`; opened once."""
    return target_for(pytestconfig, None)


@pytest.fixture
def cuecard_load(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A function that loads a program on its target: `cuecard_load("triage.compiled.yaml")`.

    A relative path starts at the test's folder. It takes the arguments of `cuecard.load`; `target` is by default that
    of `--cuecard-model`, else the one that the spec names, else the default.
    """

    def load_program(path: str | Path, **options: Any) -> Any:
        from ..programs.spec import load_spec
        from .api import load

        place = request.path.parent / path
        if options.get("target") is None:
            spec = load_spec(place, allow_outside=options.get("allow_outside", False))
            options["target"] = target_for(request.config, spec)
        return load(place, **options)

    return load_program


# ---- collecting


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A file of tests or a spec, where somebody asked for it."""
    if not file_path.name.endswith(SPECS):
        return None
    patterns = parent.config.getini("cuecard_files")
    named = parent.session.isinitpath(file_path) and (file_path.name.endswith(TESTS) or _is_spec(file_path))
    if named or any(file_path.match(pattern) for pattern in patterns):
        collector: pytest.Collector = SuiteFile.from_parent(parent, path=file_path)
        return collector
    return None


def _is_spec(path: Path) -> bool:
    """Whether a YAML file looks like a spec with tests: others may be another plugin's."""
    text = path.read_bytes()
    return PROGRAM.search(text) is not None and OF_SPEC.search(text) is not None


class SuiteFile(pytest.File):
    """A file of tests. It runs those that were selected in one batch, once, and keeps the results."""

    def collect(self) -> Iterable[pytest.Item]:
        """The tests in the file, in order. Raises `InputError`."""
        from .testing import read_suite

        option = self.config.getoption
        self.suite: Suite = read_suite(
            self.path,
            allow_outside=option("--cuecard-allow-outside"),
            allow_code=option("--cuecard-allow-code"),
            baselines=not option("--cuecard-update-baseline"),
        )
        for text in self.suite.notes:
            self.warn(pytest.PytestCollectionWarning(text))
        self._ended: dict[int, Result | CuecardError] = {}
        names: dict[str, int] = {}
        for index, test in enumerate(self.suite.tests):
            name = " ".join(test.name.split())
            names[name] = names.get(name, 0) + 1
            shown = name if names[name] == 1 else f"{name} ({names[name]})"
            item: SuiteItem = SuiteItem.from_parent(self, name=shown, index=index, test=test)
            yield item

    def result_of(self, item: SuiteItem) -> Result:
        """How a test ended. Raises the `CuecardError` that kept its batch from running."""
        if item.index not in self._ended:
            self._run(self._batch(item))
        ended = self._ended[item.index]
        if isinstance(ended, CuecardError):
            raise ended
        return ended

    def _batch(self, item: SuiteItem) -> list[int]:
        """The tests that run together with `item`: all selected ones of the file, if this process gets them all."""
        handed_out = getattr(self.config, "workerinput", {}).get("cuecard_dist", "no")
        if handed_out not in TOGETHER:
            return [item.index]
        selected = {each.index for each in self.session.items if isinstance(each, SuiteItem) and each.parent is self}
        return sorted((selected | {item.index}) - self._ended.keys())

    def _run(self, batch: list[int]) -> None:
        from .testing import run_tests

        suite = replace(self.suite, tests=tuple(self.suite.tests[index] for index in batch))
        try:
            target = target_for(self.config, suite.spec)
            update = self.config.getoption("--cuecard-update-baseline")
            identity = target.engine.identity
            results = run_tests(suite, target.lm, target=identity, update_baseline=update)
            self._ended.update(zip(batch, results, strict=True))
        except CuecardError as error:
            self._ended.update((index, error) for index in batch)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What is wrong with the file, without a traceback."""
        return str(excinfo.value) if isinstance(excinfo.value, CuecardError) else super().repr_failure(excinfo)


class SuiteItem(pytest.Item):
    """One case or gate."""

    parent: SuiteFile

    def __init__(self, *, index: int, test: Test, **parts: Any) -> None:
        super().__init__(**parts)
        self.index, self.test = index, test
        self.add_marker("cuecard")
        self.extra_keyword_matches.update(test.tags)

    def setup(self) -> None:
        """Find out how it ended; that it could not be run is an error here, and not a failure."""
        try:
            self.result = self.parent.result_of(self)
        except CuecardError as error:
            pytest.fail(str(error), pytrace=False)
        if self.result.score is not None:
            self.user_properties.append(("score", self.result.score))
        if self.result.status == "error":
            pytest.fail(self._told(), pytrace=False)
        if self.result.status == "skip":
            pytest.skip(self.result.reason)

    def runtest(self) -> None:
        """Fail where the program is not good enough."""
        if self.result.status == "fail":
            pytest.fail(self._told(), pytrace=False)

    def _told(self) -> str:
        from .reports.detail import detail

        return detail(self.result)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the test is written; of a table's row, in the table."""
        place = self.test.place
        return Path(place.path or self.path), None if place.line is None else place.line - 1, self.name
