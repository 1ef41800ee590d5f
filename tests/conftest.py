"""What tests share: a tiny model that needs no download, the default model, and a cache of a test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import build_tiny_model

ROOT = Path(__file__).resolve().parents[1]


class PlainRoot:
    """Keeps pytest from importing the root, which is the package `cuecard`, once more under its folder's name."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PlainRoot())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the default model carries the marker `model`, so that `-m "not model"` leaves it out."""
    for item in items:
        if "default_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.model)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer chat model (see `tiny.py`). Not to be written to."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The folder of the default model, which `make test` pulls; a test that needs it fails where it is missing."""
    from cuecard.models.pull import pulled

    folder = pulled("smollm2-135m")
    if folder is None:
        pytest.fail("the default model is not on this machine; run: cuecard models pull smollm2-135m", pytrace=False)
    return folder


@pytest.fixture
def cuecard_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, which `$CUECARD_HOME` names while the test runs."""
    home = tmp_path / "cuecard-home"
    monkeypatch.setenv("CUECARD_HOME", str(home))
    return home
