"""The engine's contract over HTTP: against servers in this process, and against one that `CUECARD_TEST_SERVER` names.

CUECARD_TEST_SERVER=http://localhost:8000 CUECARD_TEST_TOKENIZER=FOLDER runs the contract against a real server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cuecard.models.engine import Engine
from cuecard.models.local import LocalEngine
from cuecard.models.server import server_target

from ..engine_conformance import EngineConformance
from ..helpers import engine_over, random_model
from .fake import FakeLlamaCpp, FakeVLLM

LIVE = "CUECARD_TEST_SERVER"


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    return engine_over(random_model("llama"))


@pytest.fixture(scope="module")
def vllm(local: LocalEngine) -> Iterator[Engine]:
    with FakeVLLM(local, context=local.context_window).running() as url:
        yield server_target(url).engine


@pytest.fixture(scope="module")
def llamacpp(local: LocalEngine) -> Iterator[Engine]:
    with FakeLlamaCpp(local, context=local.context_window).running() as url:
        yield server_target(url).engine


@pytest.fixture(scope="module")
def live() -> Engine:
    return server_target(os.environ[LIVE], tokenizer=os.environ.get("CUECARD_TEST_TOKENIZER")).engine


class TestVLLM(EngineConformance):
    @pytest.fixture
    def engine(self, vllm: Engine) -> Engine:
        return vllm


class TestLlamaCpp(EngineConformance):
    @pytest.fixture
    def engine(self, llamacpp: Engine) -> Engine:
        return llamacpp


@pytest.mark.skipif(LIVE not in os.environ, reason=f"${LIVE} names no server")
class TestLive(EngineConformance):
    tolerance = 0.05

    @pytest.fixture
    def engine(self, live: Engine) -> Engine:
        return live
